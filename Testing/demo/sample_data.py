"""Makes the sample data that ship with the Slicer module: a cut-out of the ICBM152 template and the region it shows.

The template is the one inside the package nilearn. Run it again only if origin, region or format change; the hashes in
MambaSegmentationLib/sample_data.py, which a test compares, must then be renewed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from hippocampus import ROI_RAS_MM, template_file

from MambaSegLib import read_volume
from MambaSegLib.geometry import box_from_world
from MambaSegLib.volume_io import write_volume

FOLDER = Path(__file__).resolve().parents[2] / "MambaSegmentation" / "Resources" / "SampleData"


def main() -> int:
    """Write both files."""
    x0, x1, y0, y1, z0, z1 = map(float, ROI_RAS_MM)
    template = read_volume(template_file())
    box = box_from_world(template.geometry, (-x1, -y1, z0), (-x0, -y0, z1))
    part = template.array[0][box.slices]
    # The template has 8 bits; the reader gives floats.
    if not np.array_equal(part, part.astype(np.uint8)):
        sys.exit("The template no longer holds whole numbers from 0 to 255.")
    write_volume(part.astype(np.uint8), template.geometry.cropped(box), FOLDER / "left_hippocampus_T1.nrrd")
    region = FOLDER / "left_hippocampus_region.mrk.json"
    region.write_text(json.dumps(markup((x0, x1, y0, y1, z0, z1)), indent=1) + "\n", encoding="utf-8")
    return 0


def markup(bounds: tuple[float, ...]) -> dict[str, object]:
    """A box as 3D Slicer stores it (markups schema 1.0.3), positions in LPS mm."""
    low, high = np.array(bounds[0::2]), np.array(bounds[1::2])
    center = (low + high) / 2 * (-1, -1, 1)
    box = {
        "type": "ROI",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "roiType": "Box",
        "center": center.tolist(),
        "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
        "size": (high - low).tolist(),
        "insideOut": False,
        "controlPoints": [{"id": "1", "label": "R-1", "position": center.tolist(), "positionStatus": "defined"}],
    }
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    return {"@schema": f"{schema}markups-schema-v1.0.3.json#", "markups": [box]}


if __name__ == "__main__":
    sys.exit(main())
