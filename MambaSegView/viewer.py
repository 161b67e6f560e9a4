"""Ties the page to the session: what buttons do, and the news of a segmentation under way."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import vtk
from MambaSegmentationLib.model_details import modelHtml, modelTitle
from trame.app import TrameApp, asynchronous
from trame_slicer import module as slicer_scripts
from trame_slicer.core import LayoutManager, SlicerApp
from trame_slicer.rca_view import register_rca_factories
from trame_slicer.views import Layout, LayoutDirection, ViewLayoutDefinition

from MambaSegLib.bundle import load_bundle
from MambaSegLib.commands.reporting import progress_line
from MambaSegLib.errors import CancelledError, MambaSegError
from MambaSegLib.model_zoo import ListedModel
from MambaSegView import page
from MambaSegView.session import Session
from MambaSegView.settings import Settings

POLL_S = 0.2
DEVICES = ("auto", "cpu", "cuda", "mps")
LAYOUT = "Four views"


class Viewer(TrameApp):  # type: ignore[misc] # trame has no types
    """One person's viewer; all windows of the browser show the same.

    Attributes:
        session: What is loaded and going on.
    """

    def __init__(self, server: Any, settings: Settings, key: str) -> None:
        """Load everything and build the page, whose address carries a key.

        Raises:
            InputError: If the segmentation or the model to start with cannot be read.
        """
        super().__init__(server)
        self.server.enable_module(slicer_scripts)
        app = _quiet_application()
        register_rca_factories(app.view_manager, self.server, slice_view_ui_f=page.slice_view)
        layouts = LayoutManager(app.scene, app.view_manager, self.server)
        layouts.register_layout(LAYOUT, _four_views())
        layouts.set_layout(LAYOUT)
        self._app, self._settings = app, settings
        self.session = Session(app, settings)
        if settings.segmentation is not None:
            self.session.open(settings.segmentation, settings.segmentation.name)
        self._models = _choices(self.session)
        self._fill_state()
        self.ui = page.build(self.server, layouts, self, key)
        self.server.controller.on_server_ready.add(self._begin)
        self.server.controller.on_server_exited.add(lambda **_: self.session.close())

    def segment(self) -> None:
        """Start a segmentation."""
        self._guarded(self._start)

    def cancel(self) -> None:
        """Stop the segmentation under way."""
        if self.session.run is not None and self.state.busy:
            self.state.status = "Stopping ..."
            self.session.run.cancel()

    def toggle(self, segment_id: str) -> None:
        """Show or hide one segment."""
        self.session.toggle(segment_id)
        self._list_segments()

    def save(self) -> None:
        """Write the segmentation that is shown."""

        def write() -> None:
            path = self.session.save(self.state.path, replace=bool(self.state.replace))
            self.state.status, self.state.replace = f"Saved {path}", False

        self._guarded(write)

    def _start(self) -> None:
        self.session.start(self.state.model, self.state.device)
        self.state.update({"busy": True, "progress": 0, "status": "Starting", "notices": []})

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do something; what goes wrong is shown, and the viewer goes on."""
        self.state.error = ""
        try:
            action()
        except MambaSegError as error:
            self.state.error = str(error)

    def _fill_state(self) -> None:
        state, settings = self.state, self._settings
        size = " x ".join(map(str, settings.volume.geometry.shape[::-1]))
        spacing = " x ".join(f"{mm:g}" for mm in settings.volume.geometry.spacing_mm[::-1])
        state.trame__title = f"{settings.volume.name} - Mamba Segmentation"
        state.image = f"{settings.volume.name}: {size} voxels of {spacing} mm"
        state.models = [_model_item(value, model) for value, model in self._models.items()]
        state.channels = [{"title": name, "value": key} for key, name in self.session.channels()]
        state.channel = self.session.image.GetID()
        state.model = self.session.first_model
        state.devices = list(dict.fromkeys([settings.device, *DEVICES]))
        state.device = settings.device
        state.path = settings.output.name
        state.update({"busy": False, "progress": 0, "status": "Ready", "error": "", "notices": [], "details": ""})
        state.update({"segmentations": [], "segments": [], "shown": "", "opacity": 0.4, "upload": None})
        state.region = settings.region_ras_mm is not None
        state.change("model")(self._show_details)
        state.change("channel")(lambda channel, **_: self.session.show_channel(channel))
        state.change("region")(lambda region, **_: self.session.set_region(bool(region)))
        state.change("shown")(self._show_segmentation)
        state.change("opacity")(lambda opacity, **_: self.session.set_opacity(float(opacity)))
        state.change("upload")(self._open_upload)

    def _begin(self, **_: Any) -> None:
        for view in self._app.view_manager.get_threed_views():
            view.set_orientation_marker(slicer.vtkMRMLViewNode.OrientationMarkerTypeAxes)
        self._app.display_manager.reset_views()
        self._look_at_segmentation()
        self.state.flush()
        asynchronous.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            run = self.session.run
            if run is None or not self.state.busy:
                continue
            with self.state:
                if self.session.poll():
                    self._finish()
                elif not self.state.status.startswith("Stopping"):
                    self.state.progress = 100 * run.fraction
                    self.state.status = progress_line(run.progress)
                    self.state.notices = list(run.notices)

    def _finish(self) -> None:
        run, state = self.session.run, self.state
        state.busy, state.progress = False, 0
        state.notices = list(run.notices)
        if run.error is None:
            state.progress, state.status = 100, f"Done: {run.segmentationNode.GetName()}"
            self._look_at_segmentation()
        elif isinstance(run.error, CancelledError):
            state.status = str(run.error)
        else:
            state.status, state.error = "No result", str(run.error)

    def _look_at_segmentation(self) -> None:
        self._list_segments()
        self.session.jump_to_segmentation()
        for view in self._app.view_manager.get_threed_views():
            view.reset_view()

    def _list_segments(self) -> None:
        node = self.session.segmentation
        self.state.segmentations = [{"title": name, "value": key} for key, name in self.session.segmentations()]
        self.state.shown = node.GetID() if node else ""
        self.state.segments = [
            {"id": row.id, "name": row.name, "color": row.color, "visible": row.visible, "ml": f"{row.volume_ml:.2f}"}
            for row in self.session.rows()
        ]
        self.session.set_opacity(float(self.state.opacity))

    def _show_segmentation(self, shown: str, **_: Any) -> None:
        if shown and (self.session.segmentation is None or shown != self.session.segmentation.GetID()):
            self.session.show_id(shown)
            self._list_segments()

    def _show_details(self, model: str, **_: Any) -> None:
        chosen = self._models.get(model)
        self.state.details = modelHtml(chosen) if chosen else ""

    def _open_upload(self, upload: Any, **_: Any) -> None:
        """A file the browser sent; it is on disk only while it is read."""
        for file in upload if isinstance(upload, list) else [upload]:
            if not file or not file.get("content"):
                continue
            # Only the last part of the name, so that nothing is written outside the folder.
            name = Path(file["name"].replace("\\", "/")).name or "segmentation"
            with tempfile.TemporaryDirectory(prefix="mambaseg-view-") as folder:
                path = Path(folder) / name
                path.write_bytes(_bytes(file["content"]))
                self._guarded(lambda path=path, name=name: self.session.open(path, name))  # type: ignore[misc]
            if not self.state.error:
                self.state.status = f"Opened {name}"
                self._look_at_segmentation()
        self.state.upload = None


def _quiet_application() -> SlicerApp:
    """Slicer's logics without VTK's chatter about the missing screen; what matters is raised or shown in the page."""
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    app = SlicerApp()
    vtk.vtkOutputWindow.GetInstance().SetDisplayModeToNever()
    return app


def _bytes(content: Any) -> bytes:
    """What a file holds; large ones come in pieces."""
    return b"".join(content) if isinstance(content, list) else bytes(content)


def _model_item(value: str, model: ListedModel) -> dict[str, Any]:
    """Entry of the list; one that cannot be used is switched off and says why."""
    problem = {"disabled": True, "subtitle": model.problem, "lines": "three", "title": modelTitle(model)}
    return {"title": modelTitle(model), "value": value, "props": problem if model.problem else {}}


def _choices(session: Session) -> dict[str, ListedModel]:
    """Models by the name or path that starts them; one given by its path comes first."""
    models = {model.name: model for model in session.models()}
    first = session.first_model
    if first not in models or models[first].problem:  # by its path, it may be one that is listed as only copied
        bundle = load_bundle(first)
        models.pop(first, None)
        models = {first: ListedModel(bundle.name, "installed", bundle.path, bundle.manifest), **models}
    return models


def _four_views() -> Layout:
    """Axial and 3D above coronal and sagittal, as 3D Slicer's four-up layout."""
    return Layout(
        LayoutDirection.Vertical,
        [
            Layout(LayoutDirection.Horizontal, [ViewLayoutDefinition.axial_view(), ViewLayoutDefinition.threed_view()]),
            Layout(
                LayoutDirection.Horizontal, [ViewLayoutDefinition.coronal_view(), ViewLayoutDefinition.sagittal_view()]
            ),
        ],
    )
