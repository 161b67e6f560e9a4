"""Distance from points to a surface of polygons, not only to their centers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MambaSegLib.volume import Array
from MambaSegTraining.metrics.surface_elements import Shapes, Surface

NEAREST = 4
"""Polygons that are measured exactly for each point, those with the nearest centers. More change distances on random
shapes, with voxels up to 4 times longer than wide, by 0.2 % at most."""

CHUNK = 20_000
"""Points handled at a time, about 100 MB."""


def distances_to_surface(points: Array, surface: Surface) -> Array:
    """Distance of each point to the nearest place on a surface.

    Args:
        points: In mm, (N, 3).
        surface: The surface, not empty.

    Returns:
        In mm, (N,).
    """
    from scipy.spatial import cKDTree

    # The tree is not balanced: medians of points on a grid cost more than they save.
    tree = cKDTree(surface.centers, balanced_tree=False, compact_nodes=False)
    sides = _Sides.of(surface.shapes)
    near = min(NEAREST, len(surface.centers))
    distances = np.empty(len(points))
    for start in range(0, len(points), CHUNK):
        chunk = points[start : start + CHUNK]
        found = tree.query(chunk, k=near)[1].reshape(len(chunk), near)
        offsets = chunk[:, None] - surface.centers[found]
        squares = _squared_distances(offsets.reshape(-1, 3), surface.kinds[found.ravel()], surface.shapes, sides)
        distances[start : start + CHUNK] = np.sqrt(squares.reshape(len(chunk), near).min(axis=1))
    return distances


@dataclass(frozen=True)
class _Sides:
    """What the distance to the triangle between a side and the center needs, (E, 3) or (E,).

    A point v relative to the center lies above the triangle (0, p, q) if v·beta and v·gamma, its coordinates along p
    and q, are not negative and their sum is 1 at most; its height is v·normal then.
    """

    beta: Array
    gamma: Array
    normal: Array
    along: Array
    squared_length: Array

    @classmethod
    def of(cls, shapes: Shapes) -> _Sides:
        cross = np.cross(shapes.starts, shapes.ends)
        square = (cross**2).sum(axis=1, keepdims=True)
        along = shapes.ends - shapes.starts
        return cls(
            np.cross(shapes.ends, cross) / square,
            np.cross(cross, shapes.starts) / square,
            cross / np.sqrt(square),
            along,
            (along**2).sum(axis=1),
        )


def _squared_distances(offsets: Array, kinds: Array, shapes: Shapes, sides: _Sides) -> Array:
    """Squared distance of points to one polygon each; `offsets` are relative to the polygons' centers."""
    counts = shapes.sides[kinds]
    firsts = np.cumsum(counts) - counts
    side = np.arange(counts.sum()) + np.repeat(shapes.first_side[kinds] - firsts, counts)
    point = np.repeat(offsets, counts, axis=0)
    beta, gamma = _dot(point, sides.beta[side]), _dot(point, sides.gamma[side])
    above = (beta >= 0) & (gamma >= 0) & (beta + gamma <= 1)
    relative, along = point - shapes.starts[side], sides.along[side]
    place = np.clip(_dot(relative, along) / sides.squared_length[side], 0, 1)
    rest = relative - place[:, None] * along
    squares = np.where(above, _dot(point, sides.normal[side]) ** 2, _dot(rest, rest))
    nearest: Array = np.minimum.reduceat(squares, firsts)
    return nearest


def _dot(first: Array, second: Array) -> Array:
    product: Array = np.einsum("ij,ij->i", first, second)
    return product
