"""What a backend is asked to compute. A new backend needs to know nothing but this file: see `Backend`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from MambaSegLib.scan.checks import check_convolution, check_scan

if TYPE_CHECKING:
    from torch import Tensor

    from MambaSegLib.scan.order import ScanOrder
    from MambaSegLib.scan.paths import Grid


@dataclass(frozen=True)
class _Operands:
    """Tensors in the letters of mamba-ssm's `selective_scan_fn`; what they mean is said in `scan.selective_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    softplus: bool
    grid: Grid

    @property
    def sequences(self) -> tuple[Tensor | None, ...]:
        """What has values for every token: u, delta, B, C, z."""
        return self.u, self.delta, self.B, self.C, self.z

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        """What all tokens share: A, D, delta_bias."""
        return self.A, self.D, self.delta_bias

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them: `sequences`, then `parameters`."""
        return *self.sequences, *self.parameters


@dataclass(frozen=True)
class Scan(_Operands):
    """One selective scan, whose tensors fit together.

    Attributes:
        u: (B, D, L) as `delta` and `z`: D channels, L tokens in memory order; usually a transposed view of (B, L, ...).
        A: (D, N).
        B: (B, N, L) as `C`.
        D: (D,) as `delta_bias`.
        softplus: Whether delta + delta_bias goes through softplus.
        grid: (Z, Y, X) with Z Y X = L: the volume whose voxels the tokens are.
        order: In which order the scan visits them.
    """

    order: ScanOrder

    def __post_init__(self) -> None:
        """Refuse tensors that do not fit together."""
        check_scan(self)


@dataclass(frozen=True)
class Scans(_Operands):
    """Several scans of one volume, each along an order of its own, as rows of tokens. Made by `networks`, so unchecked.

    Attributes:
        u: (directions, B, L, D) as `delta` and `z`. Any steps in memory as long as the last axis is contiguous;
            others are copied, as `B` and `C` are.
        A: (directions, D, N).
        B: (directions, B, L, N) as `C`.
        D: (directions, D) as `delta_bias`.
        softplus: As in `Scan`.
        grid: As in `Scan`.
        orders: One per direction.
    """

    orders: tuple[ScanOrder, ...]

    def one_by_one(self) -> Iterator[Scan]:
        """Each direction's scan."""
        u, delta, B, C, z = each(lambda t: t.transpose(2, 3), self.sequences)
        whole = (u, delta, self.A, B, C, self.D, z, self.delta_bias)
        apart: list[Any] = [[None] * len(self.orders) if t is None else t.unbind() for t in whole]
        for u, delta, A, B, C, D, z, delta_bias, order in zip(*apart, self.orders, strict=True):
            yield Scan(u, delta, A, B, C, D, z, delta_bias, self.softplus, self.grid, order)


@dataclass(frozen=True)
class Convolution:
    """One depthwise causal convolution, whose tensors fit together; see `scan.causal_conv1d`.

    Attributes:
        x: (B, D, L) as in `Scan`.
        weight: (D, K), the token's own tap last.
        bias: (D,).
        silu: Whether SiLU follows.
        grid: As in `Scan`.
        order: In which order the taps reach back.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    silu: bool
    grid: Grid
    order: ScanOrder

    def __post_init__(self) -> None:
        """Refuse tensors that do not fit together."""
        check_convolution(self)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them."""
        return self.x, self.weight, self.bias


class BlockWeights(NamedTuple):
    """Parameters of a Mamba block, named and shaped as in `mamba_ssm.Mamba`; A is -exp(A_log), conv is (D, K)."""

    in_proj: Tensor
    conv: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    out_proj: Tensor


def each(change: Callable[[Tensor], Tensor], tensors: Iterable[Tensor | None]) -> tuple[Any, ...]:
    """Every tensor changed, None where there is none."""
    return tuple([None if tensor is None else change(tensor) for tensor in tensors])


class Backend(Protocol):
    """What a module `MambaSegLib.scan.NAME_backend` has."""

    def why_unavailable(self, device: str, needs_gradient: bool) -> str | None:
        """Say why it cannot run on a device, in words a person can act on; None if it can."""

    def selective_scan(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """Output (B, D, L) in the dtype of u, tokens in memory order; and the last state (B, D, N), without gradient.

        Raises:
            ValueError: For what this backend cannot compute exactly; float64 where it would round, for example.
        """

    def causal_conv1d(self, convolution: Convolution) -> Tensor:
        """Result (B, D, L) in the dtype of x, tokens in memory order.

        Raises:
            ValueError: As `selective_scan`.
        """
