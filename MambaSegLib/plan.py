"""What a trained model expects and how its network is built: data, never code.

The records here are stored in a bundle's `bundle.json` and written by training; both sides read the same ones.
Triples are in array order (Z, Y, X).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Triple = tuple[float, float, float]
IntTriple = tuple[int, int, int]
OptionValue = str | int | float | bool | tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True)
class StagePlan:
    """One resolution level of a U-Net encoder.

    Attributes:
        features: Channels of this stage.
        stride: Downsampling on entering the stage, per axis.
        kernel: Convolution kernel, per axis.
        blocks: Residual (or plain convolution) blocks in the encoder.
        decoder_blocks: Blocks of the decoder at the same resolution; ignored for the deepest stage.
    """

    features: int
    stride: IntTriple
    kernel: IntTriple
    blocks: int
    decoder_blocks: int = 1


@dataclass(frozen=True)
class NetworkPlan:
    """Everything `networks.create_network` needs.

    Attributes:
        name: A name of the network table, see `networks.list_networks`.
        in_channels: Image channels.
        out_channels: Classes including background, or regions, see `Plan.outputs`.
        patch_size: Input size the network is trained with.
        stages: Finest resolution first.
        deep_supervision: Whether the coarser decoder stages have a head, too.
        options: Further settings the network's builder knows and checks.
    """

    name: str
    in_channels: int
    out_channels: int
    patch_size: IntTriple
    stages: tuple[StagePlan, ...]
    deep_supervision: bool = True
    options: Mapping[str, OptionValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Normalization:
    """How one channel's intensities are brought to the range the network knows; nnU-Net's schemes.

    Attributes:
        scheme: "ct" clips to [lower, upper] and standardizes with the data set's mean and std; "zscore" standardizes
            with the case's own mean and std; "rescale" maps the case's minimum and maximum to 0 and 1; "none".
        masked: For "zscore": take mean and std over the nonzero region only, and leave 0 outside it.
        lower: For "ct": 0.5th percentile of the foreground intensities of the training set.
        upper: For "ct": 99.5th percentile.
        mean: For "ct": mean of the foreground intensities.
        std: For "ct": standard deviation of the foreground intensities.
    """

    scheme: Literal["ct", "zscore", "rescale", "none"]
    masked: bool = False
    lower: float = 0.0
    upper: float = 0.0
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Channel:
    """One input channel.

    Attributes:
        name: As in `FLAIR=image.nii.gz` on the command line.
        normalization: Its intensity normalization.
        modality: "MR", "CT", "PT", ... for the person who chooses an image; may be empty.
    """

    name: str
    normalization: Normalization
    modality: str = ""


@dataclass(frozen=True)
class Code:
    """A coded concept, e.g. ("SCT", "123037004", "Anatomical Structure")."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Terminology:
    """What a segment is, in DICOM's terms: 3D Slicer shows and exports it.

    Attributes:
        category: e.g. Anatomical Structure.
        type: e.g. Hippocampus.
        type_modifier: e.g. Right.
    """

    category: Code
    type: Code
    type_modifier: Code | None = None


@dataclass(frozen=True)
class Label:
    """One structure the network segments.

    Attributes:
        value: Voxel value in the label map, 1 or more; 0 is background.
        name: What a person calls it.
        color: Red, green, blue, 0-255.
        terminology: Its coded meaning, where one is known.
    """

    value: int
    name: str
    color: IntTriple
    terminology: Terminology | None = None


@dataclass(frozen=True)
class Region:
    """A structure made of several labels; regions may overlap, as a whole tumor and its core do.

    Attributes:
        name: What a person calls it.
        labels: Values of the labels that belong to it.
        value: One of them: what voxels become where it is found. Regions are painted in their order, so that what lies
            inside comes after what surrounds it (`regions_class_order` in nnU-Net's dataset.json).
    """

    name: str
    labels: tuple[int, ...]
    value: int


@dataclass(frozen=True)
class IntensityRange:
    """Percentiles of one channel over the training set, before normalization; None where scales are arbitrary (MR)."""

    percentile_00_5: float
    median: float
    percentile_99_5: float


@dataclass(frozen=True)
class VolumeRange:
    """How large one structure was in the training images."""

    smallest_ml: float
    largest_ml: float


@dataclass(frozen=True)
class Fingerprint:
    """What the training images were like; a prediction on an image unlike them, or unlike theirs, comes with a notice.

    Attributes:
        spacing_min_mm: Smallest voxel size seen, per axis of the plan's orientation.
        spacing_max_mm: Largest voxel size seen.
        extent_min_mm: Smallest field of view seen.
        extent_max_mm: Largest field of view seen.
        intensities: Per channel; empty where intensity scales mean nothing (MR).
        obliquity_max_deg: Largest angle between an axis of a training image and the body's; None where unknown.
        volumes: Per label, in their order, 0 to ... where an image lacked it; empty where unknown.
    """

    spacing_min_mm: Triple
    spacing_max_mm: Triple
    extent_min_mm: Triple
    extent_max_mm: Triple
    intensities: tuple[IntensityRange, ...] = ()
    obliquity_max_deg: float | None = None
    volumes: tuple[VolumeRange, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How a volume becomes network input and network output becomes labels.

    Attributes:
        orientation: Anatomical directions in which the array axes (Z, Y, X) of the network's input grow, one letter of
            L/R, A/P, S/I each: "SPL" is the usual axial stack. Volumes are brought to it by flips and axis swaps.
        spacing_mm: Voxel size the network works at.
        channels: In the order the network takes them.
        labels: Structures, background left out, by increasing value.
        network: The network.
        regions: Where not empty, the network has one output for each, decided by itself, instead of one per label.
        ignore_value: Value of training label maps where nobody labelled; never learned, measured or predicted.
        crop_to_nonzero: Crop the empty (zero) margin first, as nnU-Net does.
        mirror_axes: Axes along which training mirrored; the only ones test-time mirroring may use.
        keep_largest: Values of labels of which only the largest connected component is kept.
        fingerprint: What the training images were like.
        thick_slices: How slices far apart (`resampling.coarse_axis`) are brought to another spacing, image and prediction
            alike: "interpolated" between two, or "repeated", the nearest one, as nnU-Net does.
    """

    orientation: str
    spacing_mm: Triple
    channels: tuple[Channel, ...]
    labels: tuple[Label, ...]
    network: NetworkPlan
    regions: tuple[Region, ...] = ()
    ignore_value: int | None = None
    crop_to_nonzero: bool = True
    mirror_axes: tuple[int, ...] = ()
    keep_largest: tuple[int, ...] = ()
    fingerprint: Fingerprint | None = None
    thick_slices: Literal["interpolated", "repeated"] = "interpolated"

    @property
    def patch_size(self) -> IntTriple:
        """Size of the tiles the network sees, in voxels."""
        return self.network.patch_size

    @property
    def outputs(self) -> int:
        """Channels of the network's output: one per region, or one per label and one for background."""
        return len(self.regions) or len(self.labels) + 1

    @property
    def structure_names(self) -> tuple[str, ...]:
        """What is learned and measured: the regions where there are any, else the labels."""
        return tuple(structure.name for structure in self.regions or self.labels)

    @property
    def predicted_labels(self) -> tuple[Label, ...]:
        """Labels that a prediction may hold: all, or those that regions become."""
        painted = {region.value for region in self.regions}
        return tuple(label for label in self.labels if not painted or label.value in painted)

    @property
    def compound_regions(self) -> tuple[Region, ...]:
        """Regions that are more than one label of a prediction, without labels it cannot hold."""
        known = {label.value for label in self.predicted_labels}
        cut = [replace(region, labels=tuple(sorted(known & set(region.labels)))) for region in self.regions]
        return tuple(region for region in cut if len(region.labels) > 1)
