"""The selective scan on a CPU, compiled on the user's computer by numba: no compiler to install.

Tensors are read where they are: any scan order by index, B and C inside a wider projection, no copies in another layout.
float32 inside; bfloat16 and float16 come in and go out by conversion.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from MambaSegLib.scan.order import ScanOrder
from MambaSegLib.scan.parallel import run_tasks
from MambaSegLib.scan.paths import Array, Grid, path_numbers

BLOCKS_PER_TASK = 4
"""Neighboring blocks of 16 channels that one task owns: 256 bytes of every row, or memory traffic doubles."""
CHECKPOINT_SHARE = 0.15
"""Most memory that checkpoints may take, as a share of u, once they take more than `FREE_CHECKPOINT_BYTES`."""
FREE_CHECKPOINT_BYTES = 32 << 20


def why_unavailable(device: str, needs_gradient: bool) -> str | None:
    """Say why this backend cannot run on `device`; None if it can."""
    del needs_gradient
    if torch.device(device).type != "cpu":
        return f"it computes on the CPU, and the tensors are on {device}"
    try:
        import numba  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a broken numba raises whatever it likes; the person gets its words
        return f"numba cannot be imported ({error}); pip install numba"
    return None


class _Settings(NamedTuple):
    """What the kernels need besides tensors."""

    path: Array
    softplus: bool
    threads: int


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    grid: Grid,
    order: ScanOrder,
) -> tuple[Tensor, Tensor]:
    """Output (B, D, L) in the dtype of u, and the last state (B, D, N) without gradient; see `scan.selective_scan`.

    Raises:
        ValueError: For float64 tensors, which this backend would round.
    """
    for tensor in (u, delta, A, B, C, D, z, delta_bias):
        if tensor is not None and tensor.dtype == torch.float64:
            msg = "the numba backend computes in float32 and would round these float64 tensors; use backend='pytorch'"
            raise ValueError(msg)
    settings = _Settings(path_numbers(grid, order), delta_softplus, torch.get_num_threads())
    rows = [None if t is None else t.transpose(1, 2).float() for t in (u, delta, B, C, z)]
    parameters = [None if t is None else t.float() for t in (A, D, delta_bias)]
    y, last_state = _Scan.apply(settings, *rows, *parameters)
    return y.transpose(1, 2).to(u.dtype), last_state


class _Scan(torch.autograd.Function):
    """Rows (B, L, D) and (B, L, N) in natural token order."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        u: Tensor,
        delta: Tensor,
        B: Tensor,
        C: Tensor,
        z: Tensor | None,
        A: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        tensors = [None if t is None else _by_rows(t.detach()) for t in (u, delta, B, C, z)]
        out = torch.empty(u.shape)
        parameters = _blocked_parameters(A, D, delta_bias)
        needed = any(ctx.needs_input_grad)
        every = _checkpoint_steps(u.shape, A.shape[1]) if needed else 0
        checkpoints = _checkpoint_array(u.shape, parameters[0].shape, every)
        states = _forward(settings, tensors, out, parameters, checkpoints, every)
        if needed:
            ctx.settings, ctx.every, ctx.checkpoints = settings, every, checkpoints
            ctx.save_for_backward(u, delta, B, C, z, A, D, delta_bias)
        last_state = _state_tensor(states, A.shape)
        ctx.mark_non_differentiable(last_state)
        return out, last_state

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, B, C, z, A, D, delta_bias = ctx.saved_tensors
        tensors = [None if t is None else _by_rows(t.detach()) for t in (u, delta, B, C, z)]
        parameters = _blocked_parameters(A, D, delta_bias)
        du, ddelta, dB, dC, dz, sums = _backward(
            ctx.settings, tensors, _by_rows(dout), parameters, ctx.checkpoints, ctx.every
        )
        dA = _state_tensor(sums[0][None], A.shape)[0]
        dD = None if D is None else torch.from_numpy(sums[1].reshape(-1)[: D.shape[0]]).float()
        dbias = None if delta_bias is None else torch.from_numpy(sums[2].reshape(-1)[: delta_bias.shape[0]]).float()
        return None, du, ddelta, dB, dC, dz, dA, dD, dbias


def _by_rows(tensor: Tensor) -> Tensor:
    """The tensor itself if the values of a token are neighbors, else a copy in which they are."""
    return tensor if tensor.stride(2) == 1 or tensor.shape[2] == 1 else tensor.contiguous()


def _rows(tensor: Tensor | None) -> Any:
    from MambaSegLib.scan.numba_tiles import Rows

    return Rows(0, 0, 0) if tensor is None else Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _blocked_parameters(A: Tensor, D: Tensor | None, delta_bias: Tensor | None) -> tuple[Array, Array, Array]:
    """A as (blocks, states, 16) and D, delta_bias as (blocks, 16), filled up with zeros to whole blocks and groups."""
    from MambaSegLib.scan.numba_tiles import GROUP
    from MambaSegLib.scan.vector_ir import LANES

    channels, states = A.shape
    blocks, width = -(-channels // LANES), -(-states // GROUP) * GROUP
    padded = np.zeros((blocks * LANES, width), np.float32)
    padded[:channels, :states] = A.detach().numpy()
    rates = np.ascontiguousarray(padded.reshape(blocks, LANES, width).transpose(0, 2, 1))
    vectors = np.zeros((2, blocks * LANES), np.float32)
    for row, vector in zip(vectors, (D, delta_bias), strict=True):
        if vector is not None:
            row[:channels] = vector.detach().numpy()
    skip, bias = vectors.reshape(2, blocks, LANES)
    return rates, np.ascontiguousarray(skip), np.ascontiguousarray(bias)


def _state_tensor(blocked: Array, shape: tuple[int, ...]) -> Tensor:
    """(B, blocks, states, 16) as (B, D, N)."""
    batch, blocks, width, lanes = blocked.shape
    tensor = torch.from_numpy(blocked).transpose(2, 3).reshape(batch, blocks * lanes, width)
    return tensor[:, : shape[0], : shape[1]].float().contiguous()


def _checkpoint_steps(shape: tuple[int, ...], states: int) -> int:
    """Positions between checkpoints: every tile while memory is small, farther apart (and slower) on large volumes."""
    from MambaSegLib.scan.numba_tiles import TILE

    batch, length, channels = shape
    if 4 * batch * length * channels * states // TILE <= FREE_CHECKPOINT_BYTES:
        return TILE
    return TILE * max(1, -(-states // int(TILE * CHECKPOINT_SHARE)))


def _checkpoint_array(shape: tuple[int, ...], rates_shape: tuple[int, ...], every: int) -> Array:
    count = 0 if every == 0 else -(-shape[1] // every)
    return np.empty((shape[0], count, *rates_shape), np.float32)


def _block_groups(blocks: int, wanted: int) -> list[tuple[int, int]]:
    """Split the blocks into about `wanted` runs, of at least one block each."""
    size = max(1, min(BLOCKS_PER_TASK, -(-blocks // wanted)))
    return [(first, min(first + size, blocks)) for first in range(0, blocks, size)]


def _forward(
    settings: _Settings,
    tensors: list[Any],
    out: Tensor,
    parameters: tuple[Array, Array, Array],
    checkpoints: Array,
    every: int,
) -> Array:
    """Fill `out` and `checkpoints`; return the last states, (B, blocks, states, 16)."""
    from MambaSegLib.scan.numba_forward import scan_forward

    u, delta, B, C, z = (_rows(t) for t in tensors)
    batch, length, channels = out.shape
    states = np.zeros((batch, *parameters[0].shape), np.float32)
    sizes = (channels, tensors[2].shape[2])
    tasks = [
        partial(
            scan_forward,
            u,
            delta,
            z,
            B,
            C,
            _rows(out),
            sizes,
            settings.path,
            parameters,
            states[entry],
            checkpoints[entry],
            every,
            settings.softplus,
            entry,
            blocks,
            (0, length),
        )  # fmt: skip
        for entry in range(batch)
        for blocks in _block_groups(states.shape[1], -(-settings.threads // batch))
    ]
    run_tasks(tasks, settings.threads)
    return states


def _backward(
    settings: _Settings,
    tensors: list[Any],
    dout: Tensor,
    parameters: tuple[Array, Array, Array],
    checkpoints: Array,
    every: int,
) -> tuple[Any, ...]:
    """Gradients of u, delta, B, C, z, and float64 sums for A, D, delta_bias."""
    from MambaSegLib.scan.numba_backward import scan_backward

    batch, length, channels = dout.shape
    u, delta, B, C, z = (_rows(t) for t in tensors)
    states = tensors[2].shape[2]
    du, ddelta = torch.empty(dout.shape), torch.empty(dout.shape)
    dz = None if tensors[4] is None else torch.empty(dout.shape)
    blocks = parameters[0].shape[0]
    groups = _block_groups(blocks, -(-settings.threads // batch))
    dB, dC = torch.empty(len(groups), batch, length, states), torch.empty(len(groups), batch, length, states)
    sums = [tuple(np.zeros(p.shape, np.float64) for p in parameters) for _ in range(batch)]
    carries = np.zeros((batch, *parameters[0].shape), np.float32)
    tasks = [
        partial(
            scan_backward,
            u,
            delta,
            z,
            B,
            C,
            _rows(dout),
            (_rows(du), _rows(ddelta), _rows(dz), _rows(dB[number]), _rows(dC[number])),
            (channels, states),
            settings.path,
            parameters,
            sums[entry],
            checkpoints[entry],
            every,
            carries[entry],
            settings.softplus,
            entry,
            group,
            (0, length),
        )  # fmt: skip
        for entry in range(batch)
        for number, group in enumerate(groups)
    ]
    run_tasks(tasks, settings.threads)
    total = tuple(np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
    if len(groups) == 1:
        return du, ddelta, dB[0], dC[0], dz, total
    return du, ddelta, dB.sum(0), dC.sum(0), dz, total


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, grid: Grid, order: ScanOrder
) -> Tensor:
    """See `scan.causal_conv1d`.

    Raises:
        ValueError: For float64 tensors, which this backend would round.
    """
    for tensor in (x, weight, bias):
        if tensor is not None and tensor.dtype == torch.float64:
            msg = "the numba backend computes in float32 and would round these float64 tensors; use backend='pytorch'"
            raise ValueError(msg)
    settings = _Settings(path_numbers(grid, order), activation == "silu", torch.get_num_threads())
    y: Tensor = _Convolution.apply(
        settings, x.transpose(1, 2).float(), weight.float(), None if bias is None else bias.float()
    )
    return y.transpose(1, 2).to(x.dtype)


class _Convolution(torch.autograd.Function):
    """Rows (B, L, D) in natural token order; `_Settings.softplus` says whether SiLU follows."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        from MambaSegLib.scan.numba_conv import conv_forward

        source = _by_rows(x.detach())
        out = torch.empty(x.shape)
        blocked = _blocked_taps(weight, bias)
        tasks = [
            partial(
                conv_forward, _rows(source), _rows(out), x.shape[2], settings.path, *blocked, settings.softplus, *part
            )
            for part in _convolution_parts(x.shape, settings.threads)
        ]
        run_tasks(tasks, settings.threads)
        ctx.settings = settings
        ctx.save_for_backward(x, weight, bias)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        from MambaSegLib.scan.numba_conv import conv_backward

        x, weight, bias = ctx.saved_tensors
        source, dout = _by_rows(x.detach()), _by_rows(dout)
        dx = torch.empty(x.shape)
        blocked = _blocked_taps(weight, bias)
        parts = _convolution_parts(x.shape, ctx.settings.threads)
        sums = [(np.zeros(blocked[0].shape), np.zeros(blocked[1].shape)) for _ in parts]
        tasks = [
            partial(
                conv_backward,
                _rows(source),
                _rows(dout),
                _rows(dx),
                x.shape[2],
                ctx.settings.path,
                *blocked,
                own,
                ctx.settings.softplus,
                *part,
            )
            for part, own in zip(parts, sums, strict=True)
        ]
        run_tasks(tasks, ctx.settings.threads)
        dweight, dbias = (np.sum(parts, axis=0) for parts in zip(*sums, strict=True))
        taps = torch.from_numpy(dweight).transpose(1, 2).reshape(-1, weight.shape[1])[: weight.shape[0]].float()
        return None, dx, taps, None if bias is None else torch.from_numpy(dbias).reshape(-1)[: bias.shape[0]].float()


CONVOLUTION_SPAN = 4096
"""Tokens per convolution task."""


def _convolution_parts(shape: tuple[int, ...], threads: int) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """(batch entry, all blocks, span of positions) of every task."""
    from MambaSegLib.scan.vector_ir import LANES

    batch, length, channels = shape
    span = length if threads == 1 else CONVOLUTION_SPAN
    blocks = (0, -(-channels // LANES))
    return [
        (entry, blocks, (first, min(first + span, length)))
        for entry in range(batch)
        for first in range(0, length, span)
    ]


def _blocked_taps(weight: Tensor, bias: Tensor | None) -> tuple[Array, Array]:
    """Weights as (blocks, K, 16) and the bias as (blocks, 16), filled up with zeros."""
    from MambaSegLib.scan.vector_ir import LANES

    channels, taps = weight.shape
    blocks = -(-channels // LANES)
    padded = np.zeros((blocks * LANES, taps), np.float32)
    padded[:channels] = weight.detach().numpy()
    offsets = np.zeros(blocks * LANES, np.float32)
    if bias is not None:
        offsets[:channels] = bias.detach().numpy()
    return np.ascontiguousarray(padded.reshape(blocks, LANES, taps).transpose(0, 2, 1)), offsets.reshape(blocks, LANES)
