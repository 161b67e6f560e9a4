"""Steps of `mambaseg-train` in files of their own: each adds its parser and runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable

AddStep = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Makes the parser of one step from its name, its function and its help."""
