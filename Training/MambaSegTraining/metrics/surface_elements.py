"""A mask's surface as small pieces with a place and an area."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from MambaSegLib.plan import IntTriple, Triple
from MambaSegLib.volume import Array

# The corners of a cell are the centers of 2 x 2 x 2 voxels; corner (dz, dy, dx) is bit 4 dz + 2 dy + dx of its code.
CORNERS: tuple[IntTriple, ...] = tuple((z, y, x) for z, y, x in product((0, 1), repeat=3))


@dataclass(frozen=True)
class Shapes:
    """All polygons that can occur in a cell, for one voxel size. Sides are counted over all of them.

    Attributes:
        shapes_of_code: Shapes of each code, padded with -1, (256, 4).
        centers: Mean of each shape's vertices, in mm from the cell's first corner, (S, 3).
        areas_mm2: Area of the triangles between center and sides, (S,).
        first_side: Number of each shape's first side, (S,).
        sides: How many it has, (S,).
        starts: First vertex of each side, in mm from the shape's center, (E, 3).
        ends: Its second vertex, (E, 3).
    """

    shapes_of_code: Array
    centers: Array
    areas_mm2: Array
    first_side: Array
    sides: Array
    starts: Array
    ends: Array


@dataclass(frozen=True)
class Surface:
    """The surface of a mask as polygons.

    Attributes:
        centers: In mm along (Z, Y, X), counted from the first voxel's center, (N, 3).
        kinds: Shape of each, (N,).
        shapes: The shapes.
    """

    centers: Array
    kinds: Array
    shapes: Shapes

    @property
    def areas_mm2(self) -> Array:
        """Area of each polygon, (N,)."""
        areas: Array = self.shapes.areas_mm2[self.kinds]
        return areas


def surface_of(mask: Array, spacing_mm: Triple, unknown: Array | None = None) -> Surface:
    """Marching-cubes surface between the voxels of a mask and the others; outside of the array is background.

    Args:
        mask: Boolean mask, (Z, Y, X).
        spacing_mm: Voxel size per array axis.
        unknown: Boolean mask; cells with such a voxel at a corner are left out.

    Source:
        Lorensen and Cline 1987; the neighbor code as an index of areas as in Nikolov et al., arXiv:1809.04430.
    """
    shapes = cell_shapes(spacing_mm)
    codes = _neighbor_codes(mask)
    crossed = (codes != 0) & (codes != 255)
    if unknown is not None:
        crossed &= _neighbor_codes(unknown) == 0
    cells = np.argwhere(crossed)
    kinds = shapes.shapes_of_code[codes[tuple(cells.T)]]
    cell, column = np.nonzero(kinds >= 0)
    kinds = kinds[cell, column]
    # The array was padded by one voxel: its first cell begins at index -1.
    centers = (cells[cell] - 1) * np.asarray(spacing_mm) + shapes.centers[kinds]
    return Surface(centers, kinds, shapes)


def _neighbor_codes(mask: Array) -> Array:
    """Code of every cell, one more along each axis than there are voxels; axis by axis, so each voxel is read thrice."""
    codes = np.pad(mask, 1).astype(np.uint8)
    codes = codes[:, :, :-1] + (codes[:, :, 1:] << 1)
    codes = codes[:, :-1] + (codes[:, 1:] << 2)
    combined: Array = codes[:-1] + (codes[1:] << 4)
    return combined


@cache
def cell_shapes(spacing_mm: Triple) -> Shapes:
    """The polygons of all 256 codes, in mm."""
    polygons = [[loop * np.asarray(spacing_mm) for loop in surface_polygons(code)] for code in range(256)]
    shapes_of_code = np.full((256, max(map(len, polygons))), -1)
    count = 0
    for code, loops in enumerate(polygons):
        shapes_of_code[code, : len(loops)] = range(count, count + len(loops))
        count += len(loops)
    loops = [loop for loops in polygons for loop in loops]
    sides = np.array([len(loop) for loop in loops])
    centers = np.array([loop.mean(axis=0) for loop in loops])
    starts = np.concatenate([loop - center for loop, center in zip(loops, centers, strict=True)])
    ends = np.concatenate([np.roll(loop, -1, axis=0) - center for loop, center in zip(loops, centers, strict=True)])
    first_side = np.cumsum(sides) - sides
    areas = np.add.reduceat(np.linalg.norm(np.cross(starts, ends), axis=1) / 2, first_side)
    return Shapes(shapes_of_code, centers, areas, first_side, sides, starts, ends)


def surface_polygons(code: int) -> list[Array]:
    """Closed polygons that separate the corners inside the mask from the others, in a cell with edges of length 1.

    They cross the cell's edges halfway. On a face whose inside corners lie diagonally they keep those apart; both cells
    at such a face decide alike, so the whole surface is closed.
    """
    links: dict[Triple, list[Triple]] = {}
    for face in _faces():
        for first, second in _crossings(face, code):
            links.setdefault(first, []).append(second)
            links.setdefault(second, []).append(first)
    loops = []
    while links:
        start = previous = next(iter(links))
        loop, current = [start], links[start][0]
        while current != start:
            loop.append(current)
            before, after = links.pop(current)
            previous, current = current, after if before == previous else before
        del links[start]
        loops.append(np.array(loop))
    return loops


def _faces() -> list[list[IntTriple]]:
    """The six faces of a cell, corners in order around each."""
    around = ((0, 0), (0, 1), (1, 1), (1, 0))
    faces = []
    for axis, side in product(range(3), (0, 1)):
        corners = [[*pair[:axis], side, *pair[axis:]] for pair in around]
        faces.append([(z, y, x) for z, y, x in corners])
    return faces


def _crossings(face: list[IntTriple], code: int) -> list[tuple[Triple, Triple]]:
    """Straight pieces of the surface's outline on one face, each from edge middle to edge middle."""
    inside = [bool(code >> CORNERS.index(corner) & 1) for corner in face]
    middles = [_middle(face[k], face[(k + 1) % 4]) for k in range(4)]
    crossed = [k for k in range(4) if inside[k] != inside[(k + 1) % 4]]
    if len(crossed) == 2:
        return [(middles[crossed[0]], middles[crossed[1]])]
    return [(middles[k - 1], middles[k]) for k in range(4) if crossed and inside[k]]


def _middle(first: IntTriple, second: IntTriple) -> Triple:
    z, y, x = ((a + b) / 2 for a, b in zip(first, second, strict=True))
    return z, y, x
