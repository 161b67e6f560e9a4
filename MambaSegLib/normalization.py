"""Bringing one channel's intensities to the range a network was trained on: nnU-Net's four schemes.

Statistics are taken on the cropped image before it is resampled, as nnU-Net does, and in float64.
"""

from __future__ import annotations

import numpy as np

from MambaSegLib.geometry import Array
from MambaSegLib.plan import Normalization

SMALLEST_SPREAD = 1e-8
"""Divisor of a channel without any contrast, which so becomes 0 instead of undefined."""


def normalize(image: Array, how: Normalization, inside: Array | None = None) -> None:
    """Normalize one channel in place.

    Args:
        image: (Z, Y, X) float32, C-contiguous or a view; overwritten.
        how: The scheme.
        inside: Boolean (Z, Y, X), the body; needed where `how.masked`.

    Source:
        nnU-Net v2, `preprocessing/normalization`: CTNormalization, ZScoreNormalization, RescaleTo01Normalization.
    """
    if how.scheme == "ct":
        np.clip(image, how.lower, how.upper, out=image)
        _standardize(image, how.mean, how.std)
    elif how.scheme == "zscore" and how.masked:
        _standardize_inside(image, inside)
    elif how.scheme == "zscore":
        _standardize(image, *mean_and_std(image))
    elif how.scheme == "rescale":
        image -= image.min()
        image /= max(float(image.max()), SMALLEST_SPREAD)


def mean_and_std(image: Array) -> tuple[float, float]:
    """Mean and (population) standard deviation of all values, in float64 without a float64 copy of the image."""
    mean = float(image.mean(dtype=np.float64))
    # Slice by slice: a deviation array of a whole CT would take 1.3 GB.
    squares = sum(float(np.square(part.astype(np.float64) - mean).sum()) for part in image)
    return mean, float(np.sqrt(squares / image.size))


def _standardize(image: Array, mean: float, std: float) -> None:
    image -= np.float32(mean)
    image /= np.float32(max(std, SMALLEST_SPREAD))


def _standardize_inside(image: Array, inside: Array | None) -> None:
    if inside is None:
        msg = "a masked z-score needs the mask of the nonzero region"
        raise ValueError(msg)
    values = image[inside]
    if values.size:
        mean = float(values.mean(dtype=np.float64))
        std = float(values.std(dtype=np.float64))
        image[inside] = (values - np.float32(mean)) / np.float32(max(std, SMALLEST_SPREAD))
    image[~inside] = 0
