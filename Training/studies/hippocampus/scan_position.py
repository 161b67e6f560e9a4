"""Does it matter where along the scan a structure lies? The initial state of a Mamba layer is zero, so early tokens see little.

Each structure is put early, in the middle and late in the patch by moving the patch along Z, the slowest axis of the memory
order; beyond the image the patch is 0, as in prediction. The same voxels are then right or wrong at different places of the
scan, and with a network that has no direction the error depends on the distance to the patch's border alone. What a one-way
scan adds is a difference between early and late.

    python Training/studies/hippocampus/scan_position.py runs/unidirectional runs/bidirectional -o scan_position.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from MambaSegTraining.export import save_working_bundle
from MambaSegTraining.files import write_json
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.store import open_case

from MambaSegLib.geometry import Array
from MambaSegLib.networks.contract import SegmentationNetwork

BINS = 8
"""Parts of the scan. Position counts slices along Z, as all tokens of a slice follow each other."""


@dataclass(frozen=True)
class PositionErrors:
    """Share of foreground voxels that got a wrong class.

    Attributes:
        name: Name of the run.
        cases: Cases measured.
        error: Per part of the scan, first to last, each case and patch counted by its voxels.
        early_minus_late: Error in the first quarter of the scan minus that in the last, mean over cases of the same voxels.
        ci_low: Lower end of its 95 % interval, by bootstrap over cases.
        ci_high: Upper end.
    """

    name: str
    cases: int
    error: tuple[float, ...]
    early_minus_late: float
    ci_low: float
    ci_high: float


def measure(run: RunFolder, every: int) -> PositionErrors:
    """Errors of a run on every n-th validation case of each trained fold, each by the network that has not seen it."""
    wrong, seen = np.zeros(BINS), np.zeros(BINS)
    differences = []
    for fold in run.trained_folds():
        network = _network(run, fold)
        for name in run.read_fold(fold).val[::every]:
            case = open_case(run.store, name)
            errors = _errors_by_slice(
                network, np.asarray(case.image), np.asarray(case.labels), run.read_plan().patch_size
            )
            early: dict[int, float] = {}
            late: dict[int, float] = {}
            for position, image_slice, share, voxels in errors:
                part = min(int(position * BINS), BINS - 1)
                wrong[part] += share * voxels
                seen[part] += voxels
                (early if part < BINS // 4 else late if part >= BINS - BINS // 4 else {})[image_slice] = share
            both = early.keys() & late.keys()
            if both:
                differences.append(float(np.mean([early[one] - late[one] for one in both])))
    low, high = _interval(differences)
    with np.errstate(invalid="ignore"):
        error = tuple(float(value) for value in wrong / seen)
    return PositionErrors(run.path.name, len(differences), error, float(np.mean(differences)), low, high)


def _network(run: RunFolder, fold: int) -> SegmentationNetwork:
    bundle = save_working_bundle(run, fold, "final")
    network = bundle.load_network(bundle.fold_indices[0])
    network.deep_supervision = False
    return network.eval()


@torch.no_grad()
def _errors_by_slice(
    network: SegmentationNetwork, image: Array, labels: Array, patch: Sequence[int]
) -> Iterator[tuple[float, int, float, int]]:
    """Move the patch along Z; yields (position in the scan, slice of the image, share wrong, voxels) per slice."""
    depth = patch[0]
    padded_image, padded_labels = _padded(image, patch), _padded(labels[None], patch)[0]
    for start in range(0, padded_labels.shape[0] - depth + 1, depth // BINS):
        truth = padded_labels[start : start + depth]
        if not (truth > 0).any():
            continue
        logits = network(torch.from_numpy(padded_image[None, :, start : start + depth].copy()))[0]
        wrong = logits[0].argmax(0).numpy() != truth
        for z in range(depth):
            inside = truth[z] > 0
            if inside.any():
                yield (z + 0.5) / depth, start + z, float(wrong[z][inside].mean()), int(inside.sum())


def _padded(image: Array, patch: Sequence[int]) -> Array:
    """Zeros for a whole patch before and after along Z; Y and X cut or filled to the patch, centered."""
    pads = [(0, 0), (patch[0], patch[0])]
    slices: list[slice] = [slice(None), slice(None)]
    for size, wanted in zip(image.shape[2:], patch[1:], strict=True):
        missing, surplus = max(0, wanted - size), max(0, size - wanted)
        pads.append((missing // 2, missing - missing // 2))
        slices.append(slice(surplus // 2, surplus // 2 + min(size, wanted)))
    return np.pad(image[tuple(slices)], pads)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = generator.choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Measure the runs, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("run_dir", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="only every n-th validation case of a fold")
    options = parser.parse_args()
    rows = tuple(measure(RunFolder(path), options.every) for path in options.run_dir)
    write_json(options.output, rows)
    print("| run | cases | error along the scan, first to last | early minus late (95 % interval) |\n|---|---|---|---|")
    for row in rows:
        errors = " ".join(f"{value:.3f}" for value in row.error)
        print(
            f"| {row.name} | {row.cases} | {errors} | {row.early_minus_late:+.4f} ({row.ci_low:+.4f} to {row.ci_high:+.4f}) |"
        )


if __name__ == "__main__":
    main()
