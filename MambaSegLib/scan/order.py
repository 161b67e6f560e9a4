"""In which order a scan visits the voxels of a volume: six axis permutations, forward or backward."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Literal, get_args

ScanDirection = Literal["forward", "backward", "both"]

AXES_OF_LETTERS = {"H": 0, "W": 1, "D": 2}
"""The paper's letters for the three array axes, slowest first: H = Z, W = Y, D = X of a (B, C, Z, Y, X) tensor."""


@dataclass(frozen=True)
class ScanOrder:
    """One traversal of a (Z, Y, X) grid as a sequence.

    Attributes:
        axes: Array axes from slowest to fastest varying; (0, 1, 2) is row-major memory order.
        backward: Visit the same sequence from its end.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    backward: bool = False

    def __post_init__(self) -> None:
        """Refuse anything that is not a permutation of the three axes."""
        if sorted(self.axes) != [0, 1, 2]:
            msg = f"scan axes must be a permutation of (0, 1, 2), got {self.axes}"
            raise ValueError(msg)


NATURAL_ORDER = ScanOrder()


@dataclass(frozen=True)
class ScanPath:
    """One entry of a Mamba layer's `scan_orders`: an axis permutation, walked one way or both ways.

    Written as text ``"HWD:forward"``, ``"HDW:both"``, ... in plans and bundles (`parse`, `str`).
    """

    letters: str
    direction: ScanDirection

    def __post_init__(self) -> None:
        """Refuse unknown letters and directions."""
        if "".join(sorted(self.letters)) != "DHW":
            msg = f"scan order {self.letters!r} is not one of {', '.join(ALL_LETTERS)}"
            raise ValueError(msg)
        if self.direction not in get_args(ScanDirection):
            msg = f"scan direction {self.direction!r} is not one of {', '.join(get_args(ScanDirection))}"
            raise ValueError(msg)

    @classmethod
    def parse(cls, text: str) -> ScanPath:
        """Read ``"HWD:both"``; without a direction, forward is meant."""
        letters, _, direction = text.partition(":")
        return cls(letters, direction or "forward")  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.letters}:{self.direction}"

    @property
    def axes(self) -> tuple[int, int, int]:
        """Array axes from slowest to fastest varying."""
        first, second, third = (AXES_OF_LETTERS[letter] for letter in self.letters)
        return first, second, third

    @property
    def orders(self) -> tuple[ScanOrder, ...]:
        """The one or two scans this path stands for, forward first."""
        ways = {"forward": (False,), "backward": (True,), "both": (False, True)}[self.direction]
        return tuple(ScanOrder(self.axes, backward) for backward in ways)


ALL_LETTERS = tuple("".join(letters) for letters in permutations("HWD"))
"""The six axis permutations: HWD, HDW, WHD, WDH, DHW, DWH."""
