"""Whether a fold is measured on what it was trained on: same patient, same voxels, or nearly the same image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from MambaSegLib.errors import InputError
from MambaSegLib.schema import to_json
from MambaSegLib.volume import Array, Volume
from MambaSegTraining.json_hash import json_hash
from MambaSegTraining.splits import Fold, Splits

EDGE = 16
"""Cells per axis of the descriptor."""
CORRELATION_FLOOR, CORRELATION_CEILING = 0.90, 0.995
"""Images correlating less than the floor are different, more than the ceiling are the same, whatever the data set.

Measured on 208 hippocampus crops (the hardest case: all alike, in one position): different subjects reach 0.83, the two
sides of one head 0.85; 30 heart stacks 0.72; 14 leg tumors 0.71. Changed copies: with 30 % noise 0.996, gamma 0.7 or 1.3
0.975, resampled to 80 % 0.98, blurred 0.99, 8 bit 1.00, moved by one voxel of 35 0.91, one voxel cut off each axis 0.935.
"""
OUTLIER_SIGMAS = 6.0
"""Between floor and ceiling a pair must stand out by this much (in Fisher's z, by median and MAD) from the pairs of other
subjects: skull-stripped brains in one atlas space, for one, correlate highly without being copies."""
FEW_PAIRS = 45

Kind = Literal["same case", "same patient", "same voxels", "near-duplicate image"]


@dataclass(frozen=True)
class CaseContent:
    """What tells copies of an image.

    Attributes:
        name: The case.
        sha256: Hash of the voxels of all channels and their shape: equal for equal voxels, whatever file holds them.
        descriptor: (C x 16^3,) means of the image's cells in one orientation, mean 0 and norm 1 over all.
    """

    name: str
    sha256: str
    descriptor: Array


@dataclass(frozen=True)
class SimilarPair:
    """Two cases with the same or nearly the same image."""

    first: str
    second: str
    kind: Kind
    correlation: float

    def __str__(self) -> str:
        """The pair in words."""
        if self.kind == "same voxels":
            return f"{self.second} is a copy of {self.first}: the same voxels"
        return f"{self.second} is nearly the same image as {self.first} (correlation {self.correlation:.3f})"


@dataclass(frozen=True)
class Leak:
    """One reason why a measurement cannot be trusted.

    Attributes:
        where: "fold 0", or "test" for the cases held out from all folds.
        kind: What is on both sides.
        train: Case that is trained on.
        measured: Case that is measured.
    """

    where: str
    kind: Kind
    train: str
    measured: str

    def __str__(self) -> str:
        """The leak in words."""
        return f"{self.where}: {self.measured} is measured and {self.train} trained on ({self.kind})"


@dataclass(frozen=True)
class LeakageRecord:
    """Result of the check, stored with the run and told in its report.

    Attributes:
        splits: Where the folds are from.
        splits_sha256: Their hash.
        cases: Cases compared.
        threshold: Correlation from which two images count as nearly the same.
        images_compared: Whether images were looked at; else only case and patient names were.
        leaks: Everything found.
        forced: Whether the person who started the run chose to go on despite leaks.
    """

    splits: str
    splits_sha256: str
    cases: int
    threshold: float
    images_compared: bool
    leaks: tuple[Leak, ...]
    forced: bool

    @property
    def sha256(self) -> str:
        """Hash of the whole record."""
        return json_hash(to_json(self))

    def describe(self) -> str:
        """A paragraph for the report."""
        compared = (
            f"{self.cases} images compared, threshold {self.threshold:.3f}" if self.images_compared else "by name"
        )
        if not self.leaks:
            return f"No leak between training and measured cases ({compared})."
        places = sorted({leak.where for leak in self.leaks})
        counts = ", ".join(f"{self._measured(kind)} by {kind}" for kind in _kinds(self.leaks))
        listed = "\n  ".join(map(str, self.leaks[:20]))
        more = f"\n  and {len(self.leaks) - 20} more" if len(self.leaks) > 20 else ""
        return (
            f"LEAK in {self.splits}: {', '.join(places)}; measured cases that were leaked: {counts}. "
            f"Scores are better than they would be on unseen patients ({compared}).\n  {listed}{more}"
        )

    def _measured(self, kind: Kind) -> int:
        return len({(leak.where, leak.measured) for leak in self.leaks if leak.kind == kind})


class LeakageError(InputError):
    """Folds that leak; `record` has the details."""

    def __init__(self, record: LeakageRecord) -> None:
        """Say what leaks and what to do."""
        self.record = record
        super().__init__(
            f"{record.describe()}\nLeave the split out to have folds made by patient, correct subjects and cases, or go on "
            "all the same with --force-leaks: report and bundle will tell."
        )


def case_content(name: str, volume: Volume) -> CaseContent:
    """What tells copies of this image."""
    return CaseContent(name, _voxel_hash(volume.array), descriptor(volume))


def descriptor(volume: Volume) -> Array:
    """A small fingerprint that survives noise, rescaled intensities, resampling and small shifts.

    Each channel is brought to one orientation, averaged in 16 x 16 x 16 cells and standardized.
    """
    array = volume.reoriented(volume.geometry.reorientation_to("SPL")).array
    rows = [_standardized(_cells(channel)) for channel in array]
    joined: Array = (np.concatenate(rows) / np.sqrt(len(rows))).astype(np.float32)
    return joined


def similar_pairs(
    contents: Sequence[CaseContent], subjects: Mapping[str, str]
) -> tuple[tuple[SimilarPair, ...], float]:
    """Find copies, and images of different subjects that are nearly the same.

    Two images of one subject may be alike (end-diastole and end-systole); they are listed only if all voxels agree.

    Returns:
        The pairs, and the correlation from which images counted as nearly the same.
    """
    if len(contents) < 2:
        return (), CORRELATION_FLOOR
    matrix = np.stack([content.descriptor for content in contents])
    correlation = np.clip(matrix @ matrix.T, -1, 1)
    people = np.array([subjects[content.name] for content in contents])
    hashes = np.array([content.sha256 for content in contents])
    upper = np.triu(np.ones(correlation.shape, bool), 1)
    others = upper & (people[:, None] != people)
    copies = upper & (hashes[:, None] == hashes)
    threshold = _threshold(correlation[others & ~copies])
    near = others & ~copies & (correlation >= threshold)
    pairs = [_pair(contents, i, j, "same voxels", 1.0) for i, j in np.argwhere(copies)]
    pairs += [_pair(contents, i, j, "near-duplicate image", correlation[i, j]) for i, j in np.argwhere(near)]
    return tuple(pairs), threshold


def check_leakage(splits: Splits, contents: Sequence[CaseContent] = (), *, force: bool = False) -> LeakageRecord:
    """Compare what each fold learns from with what it is measured on, and all folds with the held-out cases.

    Args:
        splits: The folds, the subject of each case, and the cases held out from all folds.
        contents: `case_content` of every case; without it only names are compared.
        force: Return a record with the leaks instead of refusing.

    Raises:
        LeakageError: If anything leaks and `force` is not set.
    """
    pairs, threshold = similar_pairs(contents, splits.subjects)
    leaks = []
    for number, fold in enumerate(splits.folds):
        leaks += _leaks(f"fold {number}", fold, splits.subjects, pairs)
    if splits.test:
        trained = sorted({case for fold in splits.folds for case in (*fold.train, *fold.val)})
        leaks += _leaks("test", Fold(tuple(trained), splits.test), splits.subjects, pairs)
    record = LeakageRecord(
        splits.source, splits.sha256, len(contents) or len(splits.subjects), threshold, bool(contents), tuple(leaks),
        forced=force and bool(leaks),
    )  # fmt: skip
    if leaks and not force:
        raise LeakageError(record)
    return record


def _leaks(where: str, fold: Fold, subjects: Mapping[str, str], pairs: Sequence[SimilarPair]) -> list[Leak]:
    train, measured = set(fold.train), set(fold.val)
    leaks = [Leak(where, "same case", case, case) for case in sorted(train & measured)]
    by_subject = {subjects[case]: case for case in sorted(train - measured, reverse=True)}
    known = [case for case in sorted(measured - train) if subjects[case] in by_subject]
    leaks += [Leak(where, "same patient", by_subject[subjects[case]], case) for case in known]
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if one in train and other in measured:
                leaks.append(Leak(where, pair.kind, one, other))
    return leaks


def _kinds(leaks: Sequence[Leak]) -> list[Kind]:
    return list(dict.fromkeys(leak.kind for leak in leaks))


def _pair(contents: Sequence[CaseContent], i: int, j: int, kind: Kind, correlation: float) -> SimilarPair:
    return SimilarPair(contents[i].name, contents[j].name, kind, round(float(correlation), 4))


def _threshold(correlations: Array) -> float:
    """Correlation that pairs of different subjects do not reach; see the constants of this module."""
    if len(correlations) < FEW_PAIRS:
        return CORRELATION_FLOOR
    z = np.arctanh(np.clip(correlations, -0.9999, 0.9999))
    median = np.median(z)
    spread = 1.4826 * np.median(np.abs(z - median))
    outlying = float(np.tanh(median + OUTLIER_SIGMAS * spread))
    return min(max(outlying, CORRELATION_FLOOR), CORRELATION_CEILING)


def _voxel_hash(array: Array) -> str:
    values = np.ascontiguousarray(array, dtype=np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def _standardized(cells: Array) -> Array:
    centered = cells - cells.mean()
    return (centered / max(float(np.linalg.norm(centered)), np.finfo(np.float64).tiny)).ravel()  # type: ignore[no-any-return]


def _cells(array: Array) -> Array:
    """Means of the voxels of 16 equal parts of each axis; a voxel on a border counts to both by its share."""
    result = array.astype(np.float64)
    for axis in range(3):
        result = np.moveaxis(np.tensordot(_shares(result.shape[axis]), result, axes=(1, axis)), 0, axis)
    return result


def _shares(length: int) -> Array:
    """(16, length): share of each voxel in each part, rows summing to 1."""
    edges = np.linspace(0, length, EDGE + 1)
    voxels = np.arange(length)
    overlap = np.minimum(edges[1:, None], voxels + 1) - np.maximum(edges[:-1, None], voxels)
    shares = np.clip(overlap, 0, None)
    return shares / shares.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
