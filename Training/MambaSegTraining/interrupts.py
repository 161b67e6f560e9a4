"""Signals that a process, or those it starts, must not end by."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ignoring(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal for a while; processes that are started meanwhile ignore it for good.

    Those that a Ctrl-C in the terminal reaches, too, must not end by it before the one that started them. Signals can be
    set in the main thread only; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)
