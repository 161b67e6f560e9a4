"""What the viewer is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.quality import Quality
from MambaSegLib.volume import Volume


@dataclass(frozen=True)
class Settings:
    """What to show, how to segment, and where to listen.

    Attributes:
        volume: The image; several channels are several images on one grid.
        output: File the save button suggests.
        segmentation: Segmentation to show from the start; None for none.
        model: Model chosen at first, by name or path.
        models_folder: Folder of installed models; None is the user's own.
        region_ras_mm: Region to segment, x0 x1 y0 y1 z0 z1 in RAS mm; None starts without one.
        device: "auto", "cpu", "cuda", "mps".
        scan: Scan backend, or "auto".
        folds: Folds to average; () takes all.
        quality: "fast", "standard" or "best".
        mirroring: Whether to average over mirrored images; None leaves it to the quality.
        host: Address to listen at; "127.0.0.1" can only be reached from this computer.
        port: Port to listen at; 0 takes a free one.
        open_browser: Whether to open the page at once.
    """

    volume: Volume
    output: Path
    segmentation: Path | None = None
    model: str = ""
    models_folder: Path | None = None
    region_ras_mm: tuple[float, ...] | None = None
    device: str = "auto"
    scan: str = "auto"
    folds: tuple[int, ...] = ()
    quality: Quality = "standard"
    mirroring: bool | None = None
    host: str = "127.0.0.1"
    port: int = 0
    open_browser: bool = True
