"""How thoroughly to predict: the overlap of tiles and mirrored versions under one name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from MambaSegLib.errors import InputError

Quality = Literal["fast", "standard", "best"]
QUALITIES: tuple[Quality, ...] = ("fast", "standard", "best")
"""From the quickest to the most thorough."""


@dataclass(frozen=True)
class Thoroughness:
    """What a quality stands for.

    Attributes:
        overlap: Fraction of a tile that its neighbor covers again, 0 to below 1.
        mirroring: Whether mirrored versions are averaged, too, along the axes the model was trained to mirror.
    """

    overlap: float
    mirroring: bool


_MEANING = {
    "fast": Thoroughness(0.25, False),  # in 3D a third to a half of the tiles
    "standard": Thoroughness(0.5, False),  # nnU-Net's overlap
    "best": Thoroughness(0.5, True),  # nnU-Net's default
}


def thoroughness(quality: str, overlap: float | None = None, mirroring: bool | None = None) -> Thoroughness:
    """What a quality stands for; an overlap or mirroring that is given takes the place of its own.

    Raises:
        InputError: If there is no such quality, or the overlap is out of range.
    """
    if quality not in _MEANING:
        msg = f"there is no quality {quality!r}; choose {', '.join(QUALITIES)}"
        raise InputError(msg)
    if overlap is not None and not 0 <= overlap < 1:
        msg = f"the overlap of tiles must be 0 or more and below 1, found {overlap}"
        raise InputError(msg)
    named = _MEANING[quality]
    return Thoroughness(
        named.overlap if overlap is None else overlap, named.mirroring if mirroring is None else mirroring
    )
