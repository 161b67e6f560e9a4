"""Starts the viewer's server."""

from __future__ import annotations

import sys
import webbrowser
from typing import Any

from trame.app import get_server

from MambaSegView.access import guard, is_loopback, new_key
from MambaSegView.settings import Settings
from MambaSegView.viewer import Viewer


def serve(settings: Settings) -> None:
    """Show the viewer until the process is interrupted.

    Raises:
        InputError: If something to start with cannot be read.
        OSError: If the address or port cannot be used.
    """
    key = new_key()
    server = get_server("mambaseg", client_type="vue3")
    Viewer(server, settings, key)
    server.controller.on_server_bind.add(lambda web: web.app.middlewares.append(guard(settings.host)))
    server.controller.on_server_ready.add(lambda **_: _announce(server, settings, key))
    # trame reads its own options from the command line of the process: it gets its words, not ours.
    sys.argv = [sys.argv[0], "--authKey", key]
    server.start(
        host=settings.host,
        port=settings.port,
        timeout=0,
        open_browser=False,
        show_connection_info=False,
        disable_logging=True,
    )


def _announce(server: Any, settings: Settings, key: str) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{server.port}/index.html?secret={key}"
    reach = "" if is_loopback(settings.host) else " Whoever has this address can use the viewer."
    print(f"The viewer is at {url}\nIt ends with Ctrl+C.{reach}", flush=True)
    if settings.open_browser:
        webbrowser.open(url)
