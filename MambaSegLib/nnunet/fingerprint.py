"""What the training images were like, from nnU-Net's dataset_fingerprint.json."""

from __future__ import annotations

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.nnunet.plans import Content, intensities, lengths
from MambaSegLib.plan import Fingerprint, IntensityRange, Plan


def parse_fingerprint(content: Content, plans: Content, plan: Plan) -> Fingerprint:
    """Ranges of voxel size, field of view and, for CT, intensities.

    nnU-Net stores shapes after it has cropped empty margins, and how much of the image that left in the median: shapes are
    enlarged by that share.

    Args:
        content: Of dataset_fingerprint.json; its axes are the files', the plan's are swapped by `transpose_forward`.
        plans: Of plans.json.
        plan: What was read from them.

    Raises:
        InputError: If it is no such file.
    """
    try:
        axes = list(plans["transpose_forward"])
        spacings = np.array(content["spacings"], np.float64)[:, axes]
        shapes = np.array(content["shapes_after_crop"], np.float64)[:, axes]
        extents = spacings * shapes * float(content["median_relative_size_after_cropping"]) ** (-1 / 3)
        facts = intensities(plans)
        ranges = tuple(
            IntensityRange(*(float(facts[str(index)][key]) for key in ("percentile_00_5", "median", "percentile_99_5")))
            for index in range(len(plan.channels))
        )
        return Fingerprint(
            spacing_min_mm=lengths(spacings.min(axis=0)),
            spacing_max_mm=lengths(spacings.max(axis=0)),
            extent_min_mm=lengths(extents.min(axis=0)),
            extent_max_mm=lengths(extents.max(axis=0)),
            intensities=ranges if all(channel.modality == "CT" for channel in plan.channels) else (),
        )
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        msg = (
            f"dataset_fingerprint.json is not nnU-Net's ({error!r}). Leave it out of the folder to convert without it."
        )
        raise InputError(msg) from None
