"""Draws the tutorial's pictures in 3D Slicer's own views, off-screen.

Needs the packages of the extra "view" (`make view`) and what `make demo` segmented; no screen and no Slicer:

    make demo view
    .venv-view/bin/python Testing/demo/slicer_views.py TEMPLATE demo_output/hippocampus.seg.nrrd

where TEMPLATE is the ICBM152 file inside the package nilearn, which `make demo` names. The views are made by Slicer's
displayable managers (slicer-core, trame-slicer), so what is drawn is what Slicer draws; only frames and names are added.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from PIL import Image, ImageDraw, ImageFont
from trame_slicer.core import SlicerApp
from trame_slicer.views import DirectViewFactory, ViewLayoutDefinition, ViewProps, ViewType
from vtk.util.numpy_support import vtk_to_numpy

from MambaSegLib import read_volume
from MambaSegLib.volume import Volume
from MambaSegView.session import Session
from MambaSegView.settings import Settings

RESOURCES = Path(__file__).resolve().parents[2] / "MambaSegmentation" / "Resources"
PANEL = RESOURCES / "Screenshots" / "panel.png"
"""Made by module_panel.py."""

REGION = (-45.0, -9.0, -47.0, 1.0, -35.0, 10.0)
"""Box around the left hippocampus, RAS mm: the demo's and the sample's."""

FILL = 0.45
GAP, BAR = 3, 22
BACKGROUND, INK = (18, 19, 22), (20, 20, 20)
COLORS = {"Axial": "#F34A33", "3D": "#8F9BD8", "Coronal": "#6DAD4A", "Sagittal": "#EFD64D"}
"""The views in the order of Slicer's Four-Up layout, row by row, with the colors of their bars."""


@dataclass(frozen=True)
class Look:
    """What the views show and how.

    Attributes:
        size: Width and height of one view, pixels.
        segmented: Whether the segmentation is shown.
        region: Whether the box that limits the work is shown.
        field_mm: Width of the slices, around the segmentation; None shows the whole image.
    """

    size: tuple[int, int] = (420, 315)
    segmented: bool = True
    region: bool = True
    field_mm: float | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path, help="the whole template")
    parser.add_argument("segmentation", type=Path, help="what was found in it")
    parser.add_argument("--output", type=Path, default=RESOURCES, help="folder of the pictures (%(default)s)")
    options = parser.parse_args(arguments)
    scene = Scene(read_volume(options.image), options.segmentation)
    for folder in ("Screenshots", "SampleData"):
        (options.output / folder).mkdir(parents=True, exist_ok=True)
    screenshots = options.output / "Screenshots"
    four_up(scene.drawn(Look(segmented=False))).save(screenshots / "tutorial_region.png", optimize=True)
    result = four_up(scene.drawn(Look(field_mm=110.0)))
    beside(Image.open(PANEL).convert("RGB"), result).save(screenshots / "module.png", optimize=True)
    small = {"size": (240, 180), "segmented": False}
    whole = scene.drawn(Look(**small))["Coronal"]
    whole.save(options.output / "SampleData" / "template.png", optimize=True)
    part = scene.drawn(Look(**small, region=False, field_mm=60.0))["Sagittal"]
    part.save(options.output / "SampleData" / "left_hippocampus.png", optimize=True)
    return 0


class Scene:
    """Image and segmentation in Slicer's scene, and its four views."""

    def __init__(self, volume: Volume, segmentation: Path) -> None:
        """Load both."""
        vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
        app = SlicerApp()
        vtk.vtkOutputWindow.GetInstance().SetDisplayModeToNever()
        app.view_manager.register_factory(DirectViewFactory(do_render_offscreen=True))
        create = app.view_manager.create_view
        self.views = {
            name: create(ViewLayoutDefinition(name, ViewType.SLICE_VIEW, ViewProps(orientation=name, color=color)))
            for name, color in COLORS.items()
            if name != "3D"
        }
        self.views["3D"] = create(ViewLayoutDefinition.threed_view())
        self.app = app
        self.session = Session(app, Settings(volume, Path("unused.seg.nrrd"), region_ras_mm=REGION))
        self.session.open(segmentation, segmentation.name)
        self.session.set_opacity(FILL)
        self.session.set_region(True)
        plain_box(self.session.region)
        self.region = self.session.region

    def drawn(self, look: Look) -> dict[str, Image.Image]:
        """The views as pictures, by name."""
        for view in self.views.values():
            view.update_size(*look.size)
        self.session.segmentation.GetDisplayNode().SetVisibility(True)
        self.region.SetDisplayVisibility(look.region)
        self.app.display_manager.reset_views()
        self.session.jump_to_segmentation()
        turn(self.views["3D"])
        if look.field_mm:
            for name in COLORS.keys() - {"3D"}:
                zoom(self.views[name].get_view_node(), look, self.session.middle_ras())
        self.session.segmentation.GetDisplayNode().SetVisibility(look.segmented)
        return {name: snapshot(view) for name, view in self.views.items()}


def plain_box(region: Any) -> None:
    """A box without handles; its one point, in the middle, would hide what lies there."""
    display = region.GetDisplayNode()
    display.SetHandlesInteractive(False)
    display.SetPointLabelsVisibility(False)
    display.SetGlyphScale(0.01)
    display.SetSelectedColor(1.0, 0.85, 0.35)


def turn(view: Any) -> None:
    """Look from the left and the front, a little from above, with Slicer's axes in the corner."""
    view.set_orientation_marker(slicer.vtkMRMLViewNode.OrientationMarkerTypeAxes)
    camera = view.get_camera_node().GetCamera()
    camera.Azimuth(52)
    camera.Elevation(18)
    camera.OrthogonalizeViewUp()
    view.renderer().ResetCamera()
    camera.Zoom(1.0)
    view.renderer().ResetCameraClippingRange()


def zoom(node: Any, look: Look, middle: tuple[float, float, float]) -> None:
    """Show a part of a slice around a position."""
    width, height = look.size
    _, _, depth = node.GetFieldOfView()
    node.SetFieldOfView(look.field_mm, look.field_mm * height / width, depth)
    node.JumpSliceByCentering(*middle)


def snapshot(view: Any) -> Image.Image:
    """What a view shows."""
    view.render()
    window = view.render_window()
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    return Image.fromarray(np.ascontiguousarray(array[::-1, :, :3]))


def beside(panel: Image.Image, views: Image.Image) -> Image.Image:
    """The module's panel at the left of the views, as in Slicer's window."""
    height = max(panel.height, views.height)
    picture = Image.new("RGB", (panel.width + GAP + views.width, height), panel.getpixel((0, 0)))
    picture.paste(panel, (0, 0))
    picture.paste(BACKGROUND, (panel.width, 0, picture.width, height))
    picture.paste(views, (panel.width + GAP, (height - views.height) // 2))
    return picture


def four_up(views: dict[str, Image.Image]) -> Image.Image:
    """The four views in Slicer's Four-Up layout, each below the colored bar Slicer gives it."""
    width, height = views["3D"].size
    picture = Image.new("RGB", (2 * width + GAP, 2 * (height + BAR) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, (name, color) in enumerate(COLORS.items()):
        left, top = (number % 2) * (width + GAP), (number // 2) * (height + BAR + GAP)
        draw.rectangle((left, top, left + width - 1, top + BAR - 1), fill=color)
        draw.text((left + 8, top + BAR // 2), name, fill=INK, anchor="lm", font=ImageFont.load_default(14))
        picture.paste(views[name], (left, top + BAR))
    return picture


if __name__ == "__main__":
    sys.exit(main())
