"""Mamba blocks and the paper's Uni-, Bi- and Multidirectional 3D Mamba layers.

Parameter names inside `MambaBlock` are those of `mamba_ssm.Mamba`, so that weights are interchangeable.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from MambaSegLib.networks.float32_layer import in_float32
from MambaSegLib.networks.mamba_directions import half_precision, sum_of_paths
from MambaSegLib.scan import causal_conv1d, fuses_blocks, selective_scan, streams_blocks
from MambaSegLib.scan.arguments import BlockWeights
from MambaSegLib.scan.directions import share_launches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from MambaSegLib.plan import IntTriple
    from MambaSegLib.scan.order import ScanOrder, ScanPath

HeadKind = Literal["linear", "mlp"]

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class MambaScan(nn.Module):
    """What a Mamba block has between its two projections: the causal convolution and the selective scan."""

    d_state: int
    dt_rank: int
    scan_backend: str

    def _build_scan(self, d_model: int, d_state: int, d_conv: int = 4, expand: int = 2) -> None:
        d_inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.scan_backend = "auto"
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1, dtype=torch.float32)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))

    def _initialize_time_steps(self) -> None:
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        span = math.log(DT_MAX) - math.log(DT_MIN)
        dt = torch.exp(torch.rand_like(self.dt_proj.bias) * span + math.log(DT_MIN)).clamp(min=DT_FLOOR)
        with torch.no_grad():
            # The inverse of softplus, so that softplus(bias) is the wanted time step.
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def scan(self, x: Tensor, z: Tensor, grid: IntTriple, order: ScanOrder) -> Tensor:
        """Convolve and scan along one order.

        Args:
            x: Input, (B, D, L).
            z: Gate, (B, D, L).
            grid: (Z, Y, X).
            order: In which order convolution and scan visit the voxels.

        Returns:
            (B, D, L), in memory order as the input.
        """
        taps = self.conv1d.weight.squeeze(1)
        u = causal_conv1d(x, taps, self.conv1d.bias, "silu", grid=grid, order=order, backend=self.scan_backend)
        projected = self.x_proj(u.transpose(1, 2))
        dt, B, C = projected.split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return selective_scan(
            u,
            F.linear(dt, self.dt_proj.weight).transpose(1, 2),
            -torch.exp(self.A_log),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            grid=grid,
            order=order,
            backend=self.scan_backend,
        )


class MambaBlock(MambaScan):
    """Selective state-space block (Gu & Dao, arXiv 2312.00752, Fig. 3) over the voxels of a volume.

    Tokens stay in memory order throughout; the causal convolution and the scan visit them in the order they are given.
    """

    def __init__(self, d_model: int, d_state: int, d_conv: int = 4, expand: int = 2) -> None:
        """Build and initialize as mamba_ssm does: S4D-real A, time steps log-uniform in [1e-3, 1e-1]."""
        super().__init__()
        self.in_proj = nn.Linear(d_model, 2 * expand * d_model, bias=False)
        self._build_scan(d_model, d_state, d_conv, expand)
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=False)
        self._initialize_time_steps()

    def forward(self, tokens: Tensor, grid: IntTriple, order: ScanOrder) -> Tensor:
        """Mix tokens along one scan order.

        Args:
            tokens: (B, L, C), L = Z * Y * X voxels in memory order.
            grid: (Z, Y, X).
            order: In which order convolution and scan visit the voxels.

        Returns:
            (B, L, C), in memory order.
        """
        if streams_blocks(tokens, self.scan_backend):
            from MambaSegLib.scan.numba_layer import stream_block

            # Prediction on a CPU: no tensor of the volume's size but the result.
            return stream_block(tokens, self._weights(), grid, order)
        xz = self.in_proj(tokens)
        if fuses_blocks(tokens, self.conv1d.weight.shape[2], self.scan_backend):
            from MambaSegLib.scan.mamba_ssm_backend import run_block

            return run_block(xz, self._weights(), grid, order)
        # (B, L, 2D) seen as (B, D, L): the scan's signature, without a copy.
        x, z = xz.transpose(1, 2).chunk(2, dim=1)
        mixed: Tensor = self.out_proj(self.scan(x, z, grid, order).transpose(1, 2))
        return mixed

    def _weights(self) -> BlockWeights:
        return BlockWeights(
            self.in_proj.weight,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            -torch.exp(self.A_log),
            self.D,
            self.out_proj.weight,
        )


def _head(channels: int, kind: HeadKind) -> nn.Module:
    if kind == "linear":
        return nn.Linear(channels, channels)
    return nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))


class MambaLayer(nn.Module):
    """T(x): x1 = Mamba(LN(x)) + x, then head(LN(x1)) + x1 (paper, Fig. 1a).

    The paper says "MLP head"; the released code has one linear layer. Both are there: `head`.
    """

    def __init__(self, channels: int, d_state: int, head: HeadKind) -> None:
        """Build the layer for one scan order."""
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mamba = MambaBlock(channels, d_state)
        self.norm2 = nn.LayerNorm(channels)
        self.head = _head(channels, head)

    def forward(self, tokens: Tensor, grid: IntTriple, order: ScanOrder) -> Tensor:
        """(B, L, C) -> (B, L, C), both in memory order."""
        mixed = self.mamba(self.norm1(tokens), grid, order) + tokens
        result: Tensor = self.head(self.norm2(mixed)) + mixed
        return result


class MambaPath(nn.Module):
    """One axis permutation, walked one way (T) or both ways: LN(T_forward(x) + T_backward(x)) (paper, Fig. 1b)."""

    def __init__(self, path: ScanPath, channels: int, d_state: int, head: HeadKind) -> None:
        """Build one layer, with weights of its own, per direction."""
        super().__init__()
        self.orders = path.orders
        self.recompute = False
        self.layers = nn.ModuleList(MambaLayer(channels, d_state, head) for _ in self.orders)
        self.norm = nn.LayerNorm(channels) if len(self.orders) > 1 else nn.Identity()

    def forward(self, tokens: Tensor, grid: IntTriple) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        results = [self._run(layer, tokens, grid, order) for layer, order in zip(self.layers, self.orders, strict=True)]
        total: Tensor = self.norm(results[0] + results[1] if len(results) > 1 else results[0])
        return total

    def _run(self, layer: nn.Module, tokens: Tensor, grid: IntTriple, order: ScanOrder) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(layer, tokens, grid, order, use_reentrant=False)
            return again
        result: Tensor = layer(tokens, grid, order)
        return result


class MambaLayer3d(nn.Module):
    """Mean over scan paths, on a feature map.

    One forward path is the paper's Unidirectional layer, one path both ways its Bidirectional, several its
    Multidirectional layer. With `outer_norm` the tokens are normalized before anything else, residuals included: the
    released Uni- and Bidirectional networks do that, so their output does not depend on the scale of the input.
    """

    def __init__(
        self, channels: int, paths: Sequence[ScanPath], d_state: int, outer_norm: bool, head: HeadKind
    ) -> None:
        """Build one `MambaPath` per entry of `paths`."""
        super().__init__()
        self.norm = nn.LayerNorm(channels) if outer_norm else nn.Identity()
        self.paths = nn.ModuleList(MambaPath(path, channels, d_state, head) for path in paths)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape; computed in float32 whatever autocast says.

        Half precision overflows in the recurrence (the scan multiplies many factors), which is why the released Uni-
        and Bidirectional networks switch autocast off here, too. Only where all directions run side by side on a GPU,
        bfloat16 between the projections is allowed: the recurrence itself is float32 there (`mamba_directions`). With
        float64 weights (`.double()`) everything is float64, by the backend pytorch.
        """
        batch, channels, *sizes = features.shape
        grid = (sizes[0], sizes[1], sizes[2])
        precision = half_precision(features.device)
        with torch.autocast(features.device.type, enabled=False):
            tokens = self.norm(in_float32(features, self).flatten(2).transpose(1, 2).contiguous())
            mixed = self._sum(tokens, grid, precision) / len(self.paths)
        return mixed.transpose(1, 2).reshape(batch, channels, *sizes).to(features.dtype)

    def _sum(self, tokens: Tensor, grid: IntTriple, precision: torch.dtype) -> Tensor:
        paths = cast("list[MambaPath]", list(self.paths))
        backend: str = paths[0].layers[0].mamba.scan_backend  # type: ignore[union-attr, assignment]
        if tokens.dtype == torch.float32 and share_launches(tokens.device, backend):
            return sum_of_paths(paths, tokens, grid, precision)
        mixed: Tensor = paths[0](tokens, grid)
        for path in paths[1:]:
            mixed = mixed + path(tokens, grid)
        return mixed
