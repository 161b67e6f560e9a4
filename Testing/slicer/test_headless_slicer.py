"""Whether the tests of the Slicer module can run here; the others are left out where they cannot."""

from __future__ import annotations

import pytest
from slicer_requirements import MISSING


@pytest.mark.skipif(
    bool(MISSING), reason=f"tests of the Slicer module need slicer-core and PySide6; missing: {MISSING}"
)
def test_the_scene_of_the_tests_holds_slicers_own_nodes(scene):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "T1")
    assert scene.GetNodeByID(node.GetID()) is node
