"""What crosses from one chunk of a sequence to the next, so that chunks can run at the same time.

A chunk's own contribution to its last state (or, in the backward pass, to the carry before its first position) is found
from zero; what came in from its neighbor arrives multiplied by exp(A sum delta). Where that factor is below 2**-27 for
every state, older positions cannot change a float32 result, and only the last few tiles are computed. In trained and fresh
networks that is most of the work saved; at worst, when nothing decays, this pass costs as much as the scan's own.
"""

from __future__ import annotations

import numpy as np

from MambaSegLib.scan.numba_backward import output_gradient_of_block
from MambaSegLib.scan.numba_forward import advance_tile, prepare_block
from MambaSegLib.scan.numba_tiles import (
    GROUP,
    ROW_BYTES,
    TILE,
    TILE_BYTES,
    Group,
    Part,
    Problem,
    RowLists,
    Rows,
    fill_rows,
    gather,
    row_buffers,
)
from MambaSegLib.scan.paths import Array
from MambaSegLib.scan.vector_ir import LANES, Value, Vectors, address_of, compiled, keep, vector_kernel

FORGOTTEN = -27.0
"""Base-2 logarithm of a decay that float32 arithmetic cannot tell from zero."""


@compiled
def leaving_states(problem: Problem, part: Part, states: Array, delta_sums: Array, complete: Array) -> None:
    """States after a chunk that starts from zero.

    Args:
        problem: The scan.
        part: The chunk.
        states: (blocks, N rounded up, 16) of zeros; on return the states.
        delta_sums: (blocks, 16) of zeros; on return the sum of delta / ln 2 over the tiles that were computed.
        complete: One element, set to 1 if the whole chunk was computed: only then does something pass through it.
    """
    tiles = (part.stop - part.start + TILE - 1) // TILE
    needed = 0
    while needed < tiles and not _all_forgotten(problem, part, delta_sums):
        needed += 1
        _add_delta(problem, part, part.start + (tiles - needed) * TILE, delta_sums)
    for tile in range(tiles - needed, tiles):
        advance_tile(problem, states[part.first_block :], part.first_block, part, part.start + tile * TILE)
    complete[0] = needed == tiles


@compiled
def leaving_carries(
    problem: Problem, dout: Rows, part: Part, carries: Array, delta_sums: Array, complete: Array
) -> None:
    """Carries a_t dh_t at a chunk's first position if zero comes in at its end; otherwise as `leaving_states`."""
    tiles = (part.stop - part.start + TILE - 1) // TILE
    needed = 0
    while needed < tiles and not _all_forgotten(problem, part, delta_sums):
        _add_delta(problem, part, part.start + needed * TILE, delta_sums)
        needed += 1
    for tile in range(needed - 1, -1, -1):
        _retreat_tile(problem, dout, part, part.start + tile * TILE, carries)
    complete[0] = needed == tiles


@compiled
def _all_forgotten(problem: Problem, part: Part, delta_sums: Array) -> bool:
    """Whether no state survives the given sums."""
    for block in range(part.first_block, part.end_block):
        lanes = min(LANES, problem.channels - block * LANES)
        for n in range(problem.states):
            for lane in range(lanes):
                # Written so that a NaN counts as remembered.
                if not problem.rates[block, n, lane] * delta_sums[block, lane] < FORGOTTEN:
                    return False
    return True


@compiled
def _add_delta(problem: Problem, part: Part, start: int, delta_sums: Array) -> None:
    """Add one tile's delta / ln 2 to the sums."""
    steps = min(TILE, part.stop - start)
    rows, counting = row_buffers(TILE)
    tiles = np.zeros((5, TILE, LANES), np.float32)
    lists = RowLists(address_of(rows), address_of(counting))
    tile, spare = address_of(tiles), address_of(tiles[3])
    fill_rows(problem.path, start, steps, rows)
    for block in range(part.first_block, part.end_block):
        lanes = min(LANES, problem.channels - block * LANES)
        prepare_block(problem, part.batch, block, lanes, steps, lists, tile, spare)
        for step in range(steps):
            for lane in range(LANES):
                delta_sums[block, lane] += tiles[0, step, lane]
    keep((rows, counting))
    keep((tiles,))


@vector_kernel
def retreat_carries(
    v: Vectors,
    steps: Value,
    decay_rates: Value,
    carries: Value,
    c_tile: Value,
    width: Value,
    delta2_tile: Value,
    dy_tile: Value,
) -> None:
    """Take `GROUP` carries of 16 channels back through a tile; no gradient is output."""
    group = Group(v, decay_rates, carries)
    with v.reverse_loop(steps) as step:
        c_row = v.at(c_tile, v.builder.mul(step, width))
        delta2, dy = v.load(v.tile_row(delta2_tile, step)), v.load(v.tile_row(dy_tile, step))
        for n in range(GROUP):
            dh = v.fma(v.broadcast(v.at(c_row, n)), dy, group.values[n].get())
            group.values[n].set(v.mul(dh, group.decay(n, delta2)))
    group.store(carries)


@compiled
def _retreat_tile(problem: Problem, dout: Rows, part: Part, start: int, carries: Array) -> None:
    """Take carries (blocks, N rounded up, 16) back through the tile at `start`."""
    width = problem.rates.shape[1]
    steps = min(TILE, part.stop - start)
    rows, counting = row_buffers(TILE)
    lists = RowLists(address_of(rows), address_of(counting))
    tiles, c_rows = np.zeros((8, TILE, LANES), np.float32), np.zeros((TILE, width), np.float32)
    tile, spare, c_tile = address_of(tiles), address_of(tiles[4]), address_of(c_rows)
    dy_tile = tile + 3 * TILE_BYTES
    fill_rows(problem.path, start, steps, rows)
    gather(problem.c, part.batch, problem.states, steps, lists, c_tile, width)
    for block in range(part.first_block, part.end_block):
        lanes = min(LANES, problem.channels - block * LANES)
        prepare_block(problem, part.batch, block, lanes, steps, lists, tile, spare)
        output_gradient_of_block(
            problem.z, dout, part.batch, block, lanes, steps, lists, dy_tile, spare + 2 * TILE_BYTES
        )
        for n in range(0, width, GROUP):
            at = (block * width + n) * ROW_BYTES
            rates_at, carries_at = address_of(problem.rates) + at, address_of(carries) + at
            retreat_carries((steps, rates_at, carries_at, c_tile + 4 * n, width, tile, dy_tile))
    keep((rows, counting))
    keep((tiles, c_rows))
