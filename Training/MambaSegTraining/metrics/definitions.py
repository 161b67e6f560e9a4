"""What each number means, in words that go into bundles and reports: a score without its definition compares with nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EMPTY_RULE = (
    "If a structure is in neither mask, the case is left out for it and counted; if it is in only one of them, "
    "the case counts with the worst value and is flagged."
)


@dataclass(frozen=True)
class MetricDefinition:
    """One measured quantity.

    Attributes:
        id: Stable name in files; a changed definition gets a new one.
        field: Name of its field in `LabelScore`.
        name: Short name in tables.
        title: Name in full.
        unit: "mm", "ml"; "" for a ratio.
        better: Whether higher values, lower values or values near zero are good.
        text: The definition in sentences, the empty-mask rule included.
        plain: What it tells a reader who does not know it.
    """

    id: str
    field: str
    name: str
    title: str
    unit: str
    better: Literal["higher", "lower", "zero"]
    text: str
    plain: str


DSC = MetricDefinition(
    id="dsc-voxel-1",
    field="dice",
    name="DSC",
    title="Dice similarity coefficient",
    unit="",
    better="higher",
    text=(
        "2|P∩R| / (|P| + |R|), counted in voxels of the image's own grid, P the predicted and R the reference mask of "
        "one structure in one case. Both masks empty: the case is left out and counted as excluded; one empty: 0, flagged."
    ),
    plain="Share of overlap: 1 is a perfect match, 0 no overlap.",
)
HD95 = MetricDefinition(
    id="hd95-surfel-mm-1",
    field="hd95_mm",
    name="HD95",
    title="95th percentile Hausdorff distance",
    unit="mm",
    better="lower",
    text=(
        "The larger of two values: the distance that 95 % of the predicted surface's area does not exceed to the "
        "reference surface, and the same the other way round. In mm, with area-weighted marching-cubes surface elements "
        "of the image's own grid. Both masks empty: left out and counted as excluded; one empty: the diagonal of the "
        "image, flagged."
    ),
    plain="How far the worst parts of the outline are off, leaving out the worst 5 % of the surface.",
)
NSD = MetricDefinition(
    id="nsd-surfel-1",
    field="nsd",
    name="NSD",
    title="Normalized surface distance",
    unit="",
    better="higher",
    text=(
        "Share of the area of both surfaces that lies within the structure's tolerance (in mm, stated with the "
        "structure) of the other surface; also called surface Dice. Both masks empty: left out and counted as excluded; "
        "one empty: 0, flagged."
    ),
    plain="Share of the outline that is right within the tolerance: 1 means nothing to correct.",
)
ASSD = MetricDefinition(
    id="assd-surfel-mm-1",
    field="assd_mm",
    name="ASSD",
    title="Average symmetric surface distance",
    unit="mm",
    better="lower",
    text=(
        "Mean distance of all surface elements of both masks, weighted by their areas, to the other surface, in mm. Both "
        "masks empty: left out and counted as excluded; one empty: the diagonal of the image, flagged."
    ),
    plain="How far the outline is off on average.",
)
VOLUME_ERROR = MetricDefinition(
    id="volume-error-ml-1",
    field="volume_error_ml",
    name="Volume error",
    title="Signed volume error",
    unit="ml",
    better="zero",
    text=(
        "Predicted minus reference volume in ml; positive means too much was segmented. Both masks empty: left out and "
        "counted as excluded; one empty: the whole volume of the other, flagged."
    ),
    plain="How many milliliters too much (+) or too little (-) were segmented.",
)
RELATIVE_VOLUME_ERROR = MetricDefinition(
    id="volume-error-relative-1",
    field="volume_error_relative",
    name="Relative volume error",
    title="Signed relative volume error",
    unit="",
    better="zero",
    text=(
        "Predicted minus reference volume, divided by the reference volume. Prediction empty: -1, flagged. Reference "
        "empty: not defined, left out and counted as excluded."
    ),
    plain="The volume error as a share of the true volume.",
)
DEFINITIONS = (DSC, NSD, HD95, ASSD, VOLUME_ERROR, RELATIVE_VOLUME_ERROR)

LEGACY_DSC = MetricDefinition(
    id="legacy-dsc",
    field="dice",
    name="legacy DSC",
    title="Dice as in the evaluation scripts of the 2025 paper",
    unit="",
    better="higher",
    text="As DSC, but 1 where both masks are empty. Only for comparison with published tables.",
    plain="For comparison with published tables only.",
)
LEGACY_HD95 = MetricDefinition(
    id="legacy-hd95-voxels",
    field="hd95_voxels",
    name="legacy HD95",
    title="HD95 as in the evaluation scripts of the 2025 paper",
    unit="voxels",
    better="lower",
    text=(
        "95th percentile of the distances of all surface voxels of both masks, pooled, in voxels: the voxel size is "
        "ignored, and a mask that is empty, even a missed organ, scores a perfect 0. Not comparable with HD95 in mm."
    ),
    plain="For comparison with published tables only.",
)
LEGACY_DEFINITIONS = (LEGACY_DSC, LEGACY_HD95)


def definition(field: str) -> MetricDefinition:
    """Definition of a field of `LabelScore`."""
    return next(metric for metric in DEFINITIONS if metric.field == field)
