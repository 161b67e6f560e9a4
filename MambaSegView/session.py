"""The scene that is shown and the segmentation under way, without anything of the page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import slicer
from MambaSegmentationLib.conversion import RAS_TO_LPS, labelsFromSegmentation
from MambaSegmentationLib.logic import DEFAULT_MODEL, Segmenter
from MambaSegmentationLib.region import trainedExtent

from MambaSegLib.bundle import load_bundle
from MambaSegLib.errors import InputError
from MambaSegLib.model_zoo import ListedModel
from MambaSegView.nodes import add_image, add_region, add_segmentation, save_segmentation
from MambaSegView.settings import Settings


@dataclass(frozen=True)
class SegmentRow:
    """One segment as the page lists it.

    Attributes:
        id: Slicer's name for it.
        name: Its name.
        color: "#rrggbb".
        visible: Whether the views show it.
        volume_ml: Its size on the image's grid.
    """

    id: str
    name: str
    color: str
    visible: bool
    volume_ml: float


class Session:
    """What is loaded and what is going on.

    Attributes:
        images: Node per channel, on one grid.
        image: The one of them that the views show.
        segmentation: Node of the segmentation that is shown; None if there is none.
        run: The segmentation under way or the last one; None before the first.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        """Put the image into the scene of a trame-slicer application and into its views."""
        _publish(app)
        self._app, self._settings = app, settings
        self._segmenter = Segmenter()
        self._segmenter.modelsFolder = settings.models_folder
        self.images = add_image(app.scene, settings.volume)
        self.segmentation: Any = None
        self.run: Any = None
        self._region: Any = None
        self.image = self.images[0]
        # Before any segmentation: slices draw in the order in which things came, and blend with what is there.
        app.display_manager.show_volume_in_slice_background(self.image)
        app.display_manager.reset_views()

    def models(self) -> tuple[ListedModel, ...]:
        """The models of this computer, those that cannot be used with their problem."""
        models: tuple[ListedModel, ...] = self._segmenter.models()
        return models

    @property
    def first_model(self) -> str:
        """Name or path of the model to start with."""
        return self._settings.model or DEFAULT_MODEL

    def channels(self) -> list[tuple[str, str]]:
        """Node id and name of each channel."""
        names = self._settings.volume.channels or [node.GetName() for node in self.images]
        return [(node.GetID(), name) for node, name in zip(self.images, names, strict=True)]

    def show_channel(self, node_id: str) -> None:
        """Show another channel where the views are; what is segmented from it does not change."""
        self.image = next(node for node in self.images if node.GetID() == node_id)
        self._app.display_manager.show_volume_in_slice_background(self.image)

    def segmentations(self) -> list[tuple[str, str]]:
        """Node id and name of all segmentations."""
        nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        return [(node.GetID(), node.GetName()) for node in nodes]

    def show(self, node: Any) -> None:
        """Show one segmentation and hide the others."""
        for other in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            other.GetDisplayNode().SetVisibility(other is node)
        node.GetDisplayNode().SetOpacity2DOutline(1.0)
        self.segmentation = node

    def show_id(self, node_id: str) -> None:
        """Show the segmentation with this node id."""
        node = self._app.scene.GetNodeByID(node_id)
        if node is not None:
            self.show(node)

    def open(self, path: Path, name: str) -> None:
        """Read a segmentation and show it.

        Raises:
            InputError: If it cannot be read.
        """
        node = add_segmentation(self._app.scene, self._app.segmentations_logic, path, _bare(name))
        node.CreateClosedSurfaceRepresentation()
        self.show(node)

    def save(self, path: str, *, replace: bool) -> Path:
        """Write the segmentation that is shown; returns the file.

        Raises:
            InputError: If there is none, or the path cannot be used.
            EnvironmentProblemError: If it cannot be written.
        """
        if self.segmentation is None:
            message = "There is no segmentation to save yet."
            raise InputError(message)
        target = (self._settings.output.parent / path.strip()).absolute()
        save_segmentation(self.segmentation, self.images[0], target, replace=replace)
        return target

    @property
    def region(self) -> Any:
        """The box the work is limited to; None for the whole image."""
        return self._region if self._region is not None and self._region.GetDisplayVisibility() else None

    def set_region(self, wanted: bool) -> None:
        """Show or hide the box that limits the work; it keeps its place while it is hidden."""
        if wanted and self._region is None:
            plan = load_bundle(self.first_model, models_dir=self._settings.models_folder).manifest.plan
            largest_mm = trainedExtent(plan)
            self._region = add_region(self._app.scene, self.images[0], self._settings.region_ras_mm, largest_mm)
        if self._region is not None:
            self._region.SetDisplayVisibility(wanted)

    def start(self, model: str, device: str) -> None:
        """Segment the image in another process; `run` tells how far it is.

        Raises:
            InputError: If image, model or region do not fit, or a segmentation is under way.
            EnvironmentProblemError: If a package is missing.
        """
        settings = self._settings
        self.run = self._segmenter.start(
            self._nodes_for(model),
            model=model,
            roiNode=self.region,
            device=device,
            scan=settings.scan,
            folds=settings.folds,
            quality=settings.quality,
            mirroring=settings.mirroring,
            show3D=True,
        )

    def poll(self) -> bool:
        """Take news from the segmentation under way; returns whether it has just ended. A result is shown."""
        run = self.run
        if run is None or run.state != "running" or not run.poll():
            return False
        if run.segmentationNode is not None:
            self.show(run.segmentationNode)
        return True

    def rows(self) -> list[SegmentRow]:
        """The segments of the segmentation that is shown."""
        if self.segmentation is None:
            return []
        labels = labelsFromSegmentation(self.segmentation, self.images[0])
        voxel_ml = labels.geometry.voxel_volume_mm3 / 1000
        display = self.segmentation.GetDisplayNode()
        return [
            SegmentRow(
                segment_id,
                label.name,
                "#{:02x}{:02x}{:02x}".format(*label.color),
                bool(display.GetSegmentVisibility(segment_id)),
                float((labels.array == label.value).sum()) * voxel_ml,
            )
            for segment_id, label in zip(_ids(self.segmentation), labels.table, strict=True)
        ]

    def toggle(self, segment_id: str) -> None:
        """Show a hidden segment, hide a shown one."""
        display = self.segmentation.GetDisplayNode()
        display.SetSegmentVisibility(segment_id, not display.GetSegmentVisibility(segment_id))

    def set_opacity(self, opacity: float) -> None:
        """How solid segments are filled in slices, 0 to 1; the outline stays."""
        if self.segmentation is not None:
            self.segmentation.GetDisplayNode().SetOpacity2DFill(opacity)

    def middle_ras(self) -> tuple[float, float, float] | None:
        """Middle of the box around all segments, RAS mm; None if there is nothing."""
        if self.segmentation is None:
            return None
        labels = labelsFromSegmentation(self.segmentation, self.images[0])
        found = [np.flatnonzero(labels.array.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        if not all(part.size for part in found):
            return None
        x, y, z = RAS_TO_LPS[:3, :3] @ labels.geometry.to_world([(part[0] + part[-1]) / 2 for part in found])
        return float(x), float(y), float(z)

    def jump_to_segmentation(self) -> None:
        """Move the slices to the middle of what was found; they stay if nothing was."""
        middle = self.middle_ras()
        if middle is not None:
            for view in self._app.view_manager.get_slice_views():
                view.get_view_node().JumpSliceByOffsetting(*middle)

    def close(self) -> None:
        """Stop what is under way and wait until its process has ended."""
        if self.run is not None and self.run.state == "running":
            self.run.cancel()
            while not self.run.poll():
                time.sleep(0.02)

    def _nodes_for(self, model: str) -> Any:
        """The channels the model takes, of those there are; for a model of one channel that is not among them, what is shown."""
        plan = load_bundle(model, models_dir=self._settings.models_folder).manifest.plan
        images = dict(zip(self._settings.volume.channels, self.images, strict=False))
        wanted = [channel.name for channel in plan.channels]
        if set(wanted) <= set(images):
            return {name: images[name] for name in wanted}
        return self.image if len(wanted) == 1 else images or self.images


def _publish(app: Any) -> None:
    """Put scene and logic where `slicer.util` looks for them, as the application does."""
    slicer.mrmlScene = app.scene
    slicer.modules = SimpleNamespace(segmentations=SimpleNamespace(logic=lambda: app.segmentations_logic))


def _ids(node: Any) -> list[str]:
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegmentID(k) for k in range(segmentation.GetNumberOfSegments())]


def _bare(name: str) -> str:
    """File name without the endings of images."""
    for suffix in (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
