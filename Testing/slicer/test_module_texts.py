"""What Slicer shows of the module before it is opened: its place, help, acknowledgement and icon."""

from __future__ import annotations

import importlib
import types
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from MambaSegLib.model_card import DISCLAIMER

MODULE_FILE = Path(__file__).parents[2] / "MambaSegmentation" / "MambaSegmentation.py"


@pytest.fixture
def described(scene):
    """What the module's constructor tells Slicer."""
    parent = types.SimpleNamespace(path=str(MODULE_FILE), name="MambaSegmentation")
    importlib.import_module("MambaSegmentation").MambaSegmentation(parent)
    return parent


def test_the_help_says_how_to_begin_and_what_the_module_is_not_for(described):
    for words in ("Sample Data", "Apply", "region", DISCLAIMER):
        assert words in described.helpText


def test_the_acknowledgement_names_the_paper_and_the_sources_of_the_samples(described):
    for words in ("Lumetti", "Accurate 3D Medical Image Segmentation with Mambas", "please cite", "ICBM152", "Fonov"):
        assert words in described.acknowledgementText


def test_the_module_is_found_under_segmentation_and_has_its_icon(described):
    assert described.categories == ["Segmentation"]
    assert described.title == "Mamba Segmentation"
    assert (MODULE_FILE.parent / "Resources" / "Icons" / "MambaSegmentation.png").is_file()


def test_no_two_widgets_of_a_form_share_a_place():
    form = ET.parse(MODULE_FILE.parent / "Resources" / "UI" / "MambaSegmentation.ui")
    for layout in form.iter("layout"):
        places = [(item.get("row"), item.get("column")) for item in layout.findall("item") if item.get("row")]
        assert len(set(places)) == len(places), layout.get("name")
