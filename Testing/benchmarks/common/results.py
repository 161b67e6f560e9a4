"""What benchmarks share that take one process a row: its peak memory, and where results go."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path


def peak_gib() -> float:
    """Peak resident memory of this process so far."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def publish(output: Path, text: str, content: Mapping[str, object]) -> None:
    """Print the text, write it to OUTPUT.md and every single measurement to OUTPUT.json."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    output.with_suffix(".json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"\n{text}")
