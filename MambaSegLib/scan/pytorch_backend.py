"""The selective scan in plain PyTorch: the specification, and a faster form of it that runs on any device.

In the letters of the Mamba paper (Gu and Dao 2023, eq. 2 and Sec. 3.2), per channel with N states::

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        h_0 = 0
    y_t = C_t h_t + D u_t
    out_t = y_t silu(z_t)                                 only with a gate z

with delta_t = softplus(delta_t + delta_bias) if `delta_softplus`. A is (D, N); B_t and C_t are shared by all channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from MambaSegLib.scan.arguments import Convolution, Scan, each
from MambaSegLib.scan.checks import has_float64
from MambaSegLib.scan.paths import from_scan_order, to_scan_order

STATES_IN_FLIGHT = 1 << 18
"""State values that `selective_scan` advances at once: 1 MiB, large enough to hide PyTorch's cost per operation."""

Core = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def why_unavailable(device: str, needs_gradient: bool) -> str | None:
    """Return None: this backend runs wherever PyTorch does."""
    del device, needs_gradient
    return None


def selective_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """Many chunks of the sequence advance in step: L / G operations on G chunks, memory in proportion to L D, not L D N.

    A first pass finds every chunk's last state from a zero start; a chunk decays by exp(A sum delta), so the true first
    states follow; a second pass gives the output.
    """
    return _around(_LockStep.apply, scan)


def selective_scan_sequential(scan: Scan) -> tuple[Tensor, Tensor]:
    """One step after the other, as the formulas read; float64 in, float64 out. What every other form is tested against."""
    return _around(_sequential_core, scan)


def _around(core: Core, scan: Scan) -> tuple[Tensor, Tensor]:
    """What surrounds the recurrence: half types to float32, order, softplus, skip and gate."""
    state_type = torch.float64 if has_float64(scan.tensors) else torch.float32
    u, delta = scan.u.to(state_type), scan.delta.to(state_type)
    if scan.delta_bias is not None:
        delta = delta + scan.delta_bias.to(state_type)[:, None]
    if scan.softplus:
        delta = functional.softplus(delta)
    walk = scan.grid, scan.order
    rows = [to_scan_order(t.to(state_type), *walk).transpose(1, 2) for t in (u, delta, scan.B, scan.C)]
    y, last_state = core(rows[0], rows[1], scan.A.to(state_type), rows[2], rows[3])
    y = from_scan_order(y.transpose(1, 2), *walk)
    if scan.D is not None:
        y = y + scan.D.to(state_type)[:, None] * u
    if scan.z is not None:
        y = y * functional.silu(scan.z.to(state_type))
    return y.to(scan.u.dtype), last_state


def _sequential_core(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence on (B, L, D) and (B, L, N) rows in scan order."""
    h = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    # `unbind` once, not `[:, t]` per step: the gradient of an index is as large as the whole sequence.
    for u_t, delta_t, B_t, C_t in zip(*(t.unbind(1) for t in (u, delta, B, C)), strict=True):
        h = torch.exp(delta_t[:, :, None] * A) * h + (delta_t * u_t)[:, :, None] * B_t[:, None, :]
        outputs.append((h * C_t[:, None, :]).sum(-1))
    return torch.stack(outputs, 1), h.detach()


class _LockStep(torch.autograd.Function):
    """The recurrence with G chunks per batch entry advanced together; rows as in `_sequential_core`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        batch, length, _ = u.shape
        chunks = _chunk_count(length, batch * A.numel())
        split = [_split(t, chunks) for t in (u * delta, delta, B, C)]
        starts, last_state = _first_states(split[0], split[1], A, split[2], batch)
        y = u.new_empty(split[0].shape)
        h = starts
        for t in range(y.shape[0]):
            h = _advance(h, split[0][t], split[1][t], A, split[2][t])
            torch.bmm(h, split[3][t][:, :, None], out=y[t][:, :, None])
        ctx.save_for_backward(u, delta, A, B, C, starts)
        ctx.mark_non_differentiable(last_state)
        return _join(y, batch, length), last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, starts = ctx.saved_tensors
        batch, length, _channels = u.shape
        chunks = starts.shape[0] // batch
        inputs, deltas, Bs, Cs, dys = (_split(t, chunks) for t in (u * delta, delta, B, C, dy))
        carry = _last_carries(deltas, A, Cs, dys, batch)
        d_input, d_delta = torch.empty_like(inputs), torch.empty_like(deltas)
        dB, dC, dA = torch.empty_like(Bs), torch.empty_like(Cs), torch.zeros_like(A)
        segment = max(1, math.isqrt(inputs.shape[0]))
        for first, h in reversed(_segment_states(starts, inputs, deltas, A, Bs, segment)):
            steps = range(first, min(first + segment, inputs.shape[0]))
            states = [h]
            for t in steps:
                states.append(_advance(states[-1], inputs[t], deltas[t], A, Bs[t]))
            for t in reversed(steps):
                after, before = states.pop(), states[-1]
                dC[t] = torch.bmm(dys[t][:, None, :], after)[:, 0]
                dh = carry.addcmul_(dys[t][:, :, None], Cs[t][:, None, :])
                dB[t] = torch.bmm(inputs[t][:, None, :], dh)[:, 0]
                d_input[t] = torch.bmm(dh, Bs[t][:, :, None])[:, :, 0]
                carry = dh.mul_(torch.exp(deltas[t][:, :, None] * A))
                by_decay = carry * before
                d_delta[t] = torch.einsum("mdn,dn->md", by_decay, A)
                dA += torch.einsum("mdn,md->dn", by_decay, deltas[t])
        d_input, d_delta, dB, dC = (_join(t, batch, length) for t in (d_input, d_delta, dB, dC))
        return d_input * delta, d_delta + d_input * u, dA, dB, dC


def _chunk_count(length: int, states: int) -> int:
    return max(1, min(length // 8, STATES_IN_FLIGHT // states))


def _split(rows: Tensor, chunks: int) -> Tensor:
    """(B, L, K) to (steps per chunk, B x chunks, K); zeros fill up the last chunk: they leave the state as it is."""
    batch, length, width = rows.shape
    steps = -(-length // chunks)
    padded = functional.pad(rows, (0, 0, 0, steps * chunks - length))
    return padded.reshape(batch * chunks, steps, width).transpose(0, 1).contiguous()


def _join(split: Tensor, batch: int, length: int) -> Tensor:
    """Undo `_split`."""
    return split.transpose(0, 1).reshape(batch, -1, split.shape[-1])[:, :length]


def _advance(h: Tensor, input_t: Tensor, delta_t: Tensor, A: Tensor, B_t: Tensor) -> Tensor:
    decay = torch.mul(delta_t[:, :, None], A).exp_()
    return decay.mul_(h).addcmul_(input_t[:, :, None], B_t[:, None, :])


def _first_states(inputs: Tensor, deltas: Tensor, A: Tensor, Bs: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """State before every chunk, and the one after the last chunk of each batch entry."""
    h = inputs.new_zeros(inputs.shape[1], *A.shape)
    for t in range(inputs.shape[0]):
        h = _advance(h, inputs[t], deltas[t], A, Bs[t])
    ends = h.reshape(batch, -1, *A.shape)
    decays = torch.exp(deltas.sum(0)[:, :, None] * A).reshape(batch, -1, *A.shape)
    starts, state = torch.empty_like(ends), torch.zeros_like(ends[:, 0])
    for chunk in range(ends.shape[1]):
        starts[:, chunk] = state
        state = decays[:, chunk] * state + ends[:, chunk]
    return starts.flatten(0, 1), state


def _last_carries(deltas: Tensor, A: Tensor, Cs: Tensor, dys: Tensor, batch: int) -> Tensor:
    """a_{t+1} dh_{t+1} coming into every chunk from the one after it: `_first_states` in reverse."""
    carry = dys.new_zeros(dys.shape[1], *A.shape)
    for t in reversed(range(dys.shape[0])):
        carry.addcmul_(dys[t][:, :, None], Cs[t][:, None, :]).mul_(torch.exp(deltas[t][:, :, None] * A))
    own = carry.reshape(batch, -1, *A.shape)
    decays = torch.exp(deltas.sum(0)[:, :, None] * A).reshape(batch, -1, *A.shape)
    incoming, total = torch.empty_like(own), torch.zeros_like(own[:, 0])
    for chunk in reversed(range(own.shape[1])):
        incoming[:, chunk] = total
        total = decays[:, chunk] * total + own[:, chunk]
    return incoming.flatten(0, 1)


def _segment_states(
    starts: Tensor, inputs: Tensor, deltas: Tensor, A: Tensor, Bs: Tensor, segment: int
) -> list[tuple[int, Tensor]]:
    """Every `segment` steps, the step and the state before it."""
    kept, h = [], starts
    for t in range(inputs.shape[0]):
        if t % segment == 0:
            kept.append((t, h))
        h = _advance(h, inputs[t], deltas[t], A, Bs[t])
    return kept


def causal_conv1d(convolution: Convolution) -> Tensor:
    """Tap by tap in PyTorch's own convolution; half types are computed in float32, as in the scan."""
    kind = torch.float64 if has_float64(convolution.tensors) else torch.float32
    x, weight, bias = each(lambda t: t.to(kind), convolution.tensors)
    walk = convolution.grid, convolution.order
    sequence = functional.pad(to_scan_order(x, *walk), (weight.shape[1] - 1, 0))
    y = from_scan_order(functional.conv1d(sequence, weight[:, None], bias, groups=x.shape[1]), *walk)
    return (functional.silu(y) if convolution.silu else y).to(convolution.x.dtype)
