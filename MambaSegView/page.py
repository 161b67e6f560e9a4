"""The page: widgets of the drawer and the views beside it. What they do is in `viewer`; state names are shared with it."""

from __future__ import annotations

from typing import Any

from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client, html
from trame.widgets import vuetify3 as v3
from trame_slicer.app.ui import create_vertical_slice_view_gutter_ui

from MambaSegLib.model_card import DISCLAIMER

BUSY = ("busy",)
EDGE = "text-shadow: 0 0 2px #000, 0 0 4px #000, 0 0 6px #000"
WRAP = "white-space: pre-line; overflow-wrap: anywhere"
"""Of messages: they may hold long paths."""
STYLE = """
html { overflow: hidden; }
.details td { padding: 0 12px 6px 0; vertical-align: top; overflow-wrap: anywhere; }
.details td:first-child { white-space: nowrap; overflow-wrap: normal; }
"""
SLICE_COLORS = {"Axial": "#F34A33", "Coronal": "#6DAD4A", "Sagittal": "#EFD64D"}


def build(server: Any, layouts: Any, actions: Any, key: str) -> Any:
    """Make the page.

    Args:
        server: trame's server.
        layouts: trame-slicer's layout manager, which puts the views in place.
        actions: Object with a method for each button.
        key: What the page's address must carry.
    """
    with VAppLayout(server) as page:
        page.root.theme = "dark"
        client.Style(STYLE)
        # The connection takes the key out of the address; without it, a page that is loaded again would stay empty.
        client.Script(f"history.replaceState(null, '', '?secret={key}')")
        with v3.VAppBar(density="compact", flat=True, border="b"):
            v3.VAppBarTitle("Mamba Segmentation")
            _channels()
            html.Div(
                "{{ image }}",
                classes="text-medium-emphasis text-body-2 px-4 text-truncate",
                id="image",
                title=("image",),
            )
        with v3.VNavigationDrawer(permanent=True, width=380), html.Div(classes="pa-4 d-flex flex-column ga-3"):
            v3.VAlert(DISCLAIMER, type="warning", variant="tonal", density="compact", icon=False)
            _model()
            _work(actions)
            _messages()
            v3.VDivider()
            _segments(actions)
            _files(actions)
        with v3.VMain(), html.Div(style="position: relative; width: 100%; height: 100%; display: flex;"):
            layouts.initialize_layout_grid(page)
    return page


def slice_view(server: Any, view_id: str, view: Any) -> None:
    """What lies over a slice: trame-slicer's buttons and slider, and a bar in the color Slicer gives the view."""
    create_vertical_slice_view_gutter_ui(server, view_id, view)
    orientation = view.get_orientation()
    bar = f"position: absolute; top: 0; left: 0; width: 100%; height: 3px; background: {SLICE_COLORS[orientation]}"
    # A dark edge, since the image below may be bright.
    name = (
        f"position: absolute; top: 6px; right: 10px; color: {SLICE_COLORS[orientation]}; pointer-events: none; {EDGE}"
    )
    html.Div(style=bar)
    html.Div(orientation, style=name, classes="text-body-2")


def _channels() -> None:
    """Which of several channels the views show."""
    with v3.VBtnToggle(
        v_if="channels.length > 1",
        v_model=("channel",),
        mandatory=True,
        density="compact",
        variant="outlined",
        classes="flex-shrink-0",
        id="channels",
        title="Channel that is shown",
    ):
        v3.VBtn(
            "{{ each.title }}", v_for="each in channels", key="each.value", value=("each.value",), classes="text-none"
        )


def _model() -> None:
    with html.Div(classes="d-flex align-center ga-1", title=("model",)):
        v3.VSelect(
            label="Model",
            v_model=("model",),
            items=("models",),
            disabled=BUSY,
            density="compact",
            hide_details=True,
            id="model",
        )
        v3.VBtn(
            icon="mdi-information-outline",
            click="about = true",
            variant="text",
            size="small",
            id="about",
            title="About this model",
        )
    with v3.VDialog(v_model=("about", False), max_width=820, scrollable=True), v3.VCard():
        with v3.VCardText():
            html.Div(v_html="details", classes="details text-body-2", id="details")
        with v3.VCardActions():
            v3.VSpacer()
            v3.VBtn("Close", click="about = false")


def _work(actions: Any) -> None:
    with html.Div(classes="d-flex align-center ga-3"):
        v3.VSelect(
            label="Device", v_model=("device",), items=("devices",), disabled=BUSY, density="compact", hide_details=True
        )
        v3.VSwitch(
            label="Only a region",
            v_model=("region", False),
            disabled=BUSY,
            density="compact",
            hide_details=True,
            color="primary",
            id="region",
        )
    with html.Div(classes="d-flex ga-3"):
        v3.VBtn("Segment", click=actions.segment, disabled=BUSY, color="primary", id="segment", classes="flex-grow-1")
        v3.VBtn("Cancel", click=actions.cancel, disabled=("!busy",), variant="outlined", id="cancel")
    v3.VProgressLinear(model_value=("progress", 0), indeterminate=("busy && progress === 0",), height=8, rounded=True)
    html.Div("{{ status }}", id="status", classes="text-body-2", style=WRAP)


def _messages() -> None:
    v3.VAlert(
        v_if="error",
        text=("error", ""),
        type="error",
        variant="tonal",
        density="compact",
        closable=True,
        click_close="error = ''",
        style=WRAP,
        id="error",
    )
    v3.VAlert(
        "{{ notice }}",
        v_for="notice in notices",
        key="notice",
        type="info",
        variant="tonal",
        density="compact",
        classes="notice",
    )


def _segments(actions: Any) -> None:
    v3.VSelect(
        v_if="segmentations.length",
        label="Segmentation",
        v_model=("shown",),
        items=("segmentations",),
        density="compact",
        hide_details=True,
        id="segmentation",
    )
    with html.Div(v_if="segments.length", classes="d-flex flex-column ga-1"):
        with html.Div(
            v_for="segment in segments", key="segment.id", classes="d-flex align-center ga-2 segment text-body-2"
        ):
            html.Span(style=("`width: 14px; height: 14px; border-radius: 3px; background: ${segment.color}`",))
            html.Span("{{ segment.name }}", classes="flex-grow-1")
            html.Span("{{ segment.ml }} ml", classes="text-medium-emphasis")
            v3.VBtn(
                icon=("segment.visible ? 'mdi-eye' : 'mdi-eye-off'",),
                click=(actions.toggle, "[segment.id]"),
                variant="text",
                size="x-small",
            )
        v3.VSlider(
            label="Fill", v_model=("opacity", 0.4), min=0, max=1, step=0.05, density="compact", hide_details=True
        )


def _files(actions: Any) -> None:
    with html.Div(v_if="segments.length", classes="d-flex flex-column ga-2"):
        v3.VTextField(
            label="Save as", v_model=("path", ""), density="compact", hide_details=True, id="path", spellcheck=False
        )
        with html.Div(classes="d-flex align-center ga-3"):
            v3.VBtn("Save", click=actions.save, variant="tonal", id="save")
            v3.VCheckbox(label="Replace a file", v_model=("replace", False), density="compact", hide_details=True)
    v3.VFileInput(
        label="Open another segmentation",
        v_model=("upload", None),
        accept=".nrrd,.nii,.gz,.mha",
        prepend_icon="",
        prepend_inner_icon="mdi-folder-open",
        density="compact",
        hide_details=True,
        id="open",
    )
