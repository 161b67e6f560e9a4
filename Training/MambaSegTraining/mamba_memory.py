"""Bytes a Mamba layer keeps for its backward pass, tensor by tensor, for each way in which its directions are computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from MambaSegLib.networks.mamba_options import MambaOptions
from MambaSegLib.scan.order import ScanPath

FULL, HALF = 4, 2
EXPAND = 2
TILE = 64
"""Positions between two kept states of the numba scan, while they are few."""
STATE_SHARE, FREE_STATE_BYTES = 0.15, 32 << 20
"""Kept states never take more than this share of the scan's input once they are above the free bytes."""
CUDA_CHUNK = 2048
"""Positions between two kept states in mamba_ssm's kernel."""

Scan = Literal["side_by_side", "indexed", "mamba_ssm"]
"""How the directions of a layer are computed: side by side, sharing one normalized input (GPUs, "triton"); one after the other,
read by index where they are (CPUs, "numba"); or from copies in scan order ("mamba_ssm"; this one is counted from its source and
has not been compared with a GPU's own count)."""


@dataclass(frozen=True)
class MambaCost:
    """Bytes of one `MambaLayer3d`.

    Attributes:
        kept: Between forward and backward pass, states of the scan left out.
        kept_states: States of the scan.
        backward: Most that its backward pass needs besides: gradients, room of the kernels, what is computed again; an upper
            estimate.
    """

    kept: int
    kept_states: int
    backward: int


def mamba_cost(
    channels: int, tokens: int, options: MambaOptions, scan: Scan, *, recompute: bool, half: bool
) -> MambaCost:
    """Bytes of a layer.

    Args:
        channels: Of its input.
        tokens: Voxels of all batch entries.
        options: Of the network.
        scan: See `Scan`.
        recompute: Whether the directions keep their input only.
        half: Whether what lies between the projections is bfloat16, which is possible side by side only.
    """
    layer = _Layer(channels, tokens, min(channels, options.d_state_max), options.head == "mlp")
    paths = options.paths()
    # The tokens in float32, and the normalized ones with mean and deviation where there is an outer norm.
    base = FULL * tokens * channels + (FULL * tokens * (channels + 2) if options.outer_norm else 0)
    if scan == "side_by_side":
        return layer.side_by_side(paths, base, recompute, HALF if half else FULL)
    return layer.one_by_one(paths, base, recompute, scan)


@dataclass(frozen=True)
class _Layer:
    channels: int
    tokens: int
    states: int
    mlp: bool

    @property
    def inner(self) -> int:
        return EXPAND * self.channels

    def side_by_side(self, paths: Sequence[ScanPath], base: int, recompute: bool, width: int) -> MambaCost:
        """As `networks.mamba_directions` computes: some paths at a time; no states are kept."""
        from MambaSegLib.networks.mamba_directions import paths_at_once

        most = max(len(path.orders) for path in paths)
        projected = math.ceil(self.channels / 16) + 2 * self.states
        at_once = paths_at_once(self.tokens, self.channels, self.inner, projected, width, most)
        together = [paths[start : start + at_once] for start in range(0, len(paths), at_once)]
        each = [self._together(some, width) for some in together]
        directions = max(sum(len(path.orders) for path in some) for some in together)
        scanned = self.tokens * width * directions * (4 * self.inner + 2 * self.states)
        # Gradients of y, u, delta, z, B and C, and twice of the tokens; what is computed again is down to x, z, u, delta, B, C
        # and the normalized tokens by then.
        backward = scanned + self.tokens * 2 * FULL * self.channels + self._kernel_room(directions)
        if recompute:
            again = scanned + self.tokens * width * self.channels + directions * self._weights(width)
            return MambaCost(base, 0, backward + again)
        return MambaCost(base + sum(each), 0, backward)

    def _together(self, paths: Sequence[ScanPath], width: int) -> int:
        """What some paths keep besides the tokens."""
        channels, inner, states = self.channels, self.inner, self.states
        directions = sum(len(path.orders) for path in paths)
        kept = 2 * inner  # x and z
        kept += inner  # after the convolution
        kept += inner + 2 * states  # time steps, B and C, one tensor
        kept += inner  # the scan's output, for the output projection
        kept += 2 * channels  # the block's output, and normalized for the head
        kept += 2 * channels if self.mlp else 0  # before and after the head's activation
        kept *= directions
        kept += channels  # the normalized tokens, for all directions
        kept += channels * sum(
            len(path.orders) for path in paths if len(path.orders) > 1
        )  # the heads' output, for the norm
        return width * self.tokens * kept + directions * self._weights(width)

    def _weights(self, width: int) -> int:
        """Weights of one direction as the products take them: stacked, with those of the norms folded in, transposed."""
        channels, inner, states = self.channels, self.inner, self.states
        folded = 2 * inner * channels + channels * channels  # input projection and head
        others = inner * (inner + 2 * states) + inner * channels + (channels * channels if self.mlp else 0)
        return FULL * folded + width * (folded + others) + 2 * FULL * inner * states  # the last: decay rates

    def _kernel_room(self, directions: int) -> int:
        """What the scan's backward kernels write besides gradients, see `scan.triton_launch.run_backward`."""
        from MambaSegLib.scan.triton_tuning import SCRATCH_BYTES, pieces, rule

        config = rule("backward", self.inner, self.states, self.tokens, directions)
        chunks = pieces(self.tokens, config.chunk)
        between_chunks = FULL * directions * chunks * self.states * self.inner
        in_chunk = self.states * (
            config.chunk // config.kept_every * self.inner
            + 2 * config.chunk * pieces(self.inner, config.block_channels)
        )
        scratch = FULL * directions * in_chunk
        # States entering and leaving the chunks, and each chunk's part of the gradient of A.
        return 3 * between_chunks + min(scratch * chunks, max(scratch, SCRATCH_BYTES))

    def one_by_one(self, paths: Sequence[ScanPath], base: int, recompute: bool, scan: Scan) -> MambaCost:
        """As `networks.mamba` computes, in float32."""
        directions = sum(len(path.orders) for path in paths)
        both = sum(len(path.orders) > 1 for path in paths)
        own, states = self._direction(scan), self._states(scan)
        kept_directions = 0 if recompute else directions
        # Each path's sum before its norm.
        kept = base + both * FULL * self.tokens * (self.channels + 2) + kept_directions * own
        # The convolution's output and the time steps, computed again, the output behind the gate, gradients of y and of those.
        fused = FULL * self.tokens * 5 * self.inner if scan == "mamba_ssm" else 0
        return MambaCost(kept, kept_directions * states, fused + (2 * own + states if recompute else own))

    def _direction(self, scan: Scan) -> int:
        """What one scan direction keeps besides its input, in the order `MambaLayer` computes."""
        channels, inner, states = self.channels, self.inner, self.states
        kept = channels  # the normalized tokens, for the input projection
        if scan == "indexed":
            kept += 2 * inner  # x and z, two halves of one tensor
            kept += inner  # after the convolution
            kept += inner  # time steps
            kept += inner  # the scan's output, for the output projection
        else:
            # One function from x and z to the output projection, which computes the rest again (`mamba_inner_fn`).
            kept += 2 * inner  # x and z in scan order
            kept += inner  # output before the gate in scan order
            kept += 2 * states  # B and C in scan order
        kept += math.ceil(channels / 16) + 2 * states  # time steps of low rank, B and C
        kept += 2 * channels  # before and after the second norm
        kept += 2 * channels if self.mlp else 0  # before and after the head's activation
        return FULL * self.tokens * (kept + 4)  # mean and deviation of two norms

    def _states(self, scan: Scan) -> int:
        if scan == "mamba_ssm":
            return FULL * 2 * self.states * self.inner * math.ceil(self.tokens / CUDA_CHUNK)
        every_tile = FULL * self.tokens * self.inner * self.states // TILE
        return min(every_tile, max(FREE_STATE_BYTES, int(STATE_SHARE * FULL * self.tokens * self.inner)))
