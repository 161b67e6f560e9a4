"""What the overlap of tiles costs and gains: DSC and time of a trained model on labelled images, at several overlaps.

    python Testing/benchmarks/bench_overlap.py --model RUN_OR_BUNDLE --data DATASET            # folder of dataset.json
    python Testing/benchmarks/bench_overlap.py --model BUNDLE --data DATASET --overlaps 0.25 0.5 --cases 20 --out-of-fold

Paired: every image is segmented at every overlap, and differences are taken image by image; the baseline is the largest
overlap. With --out-of-fold each image is segmented only by the fold that has not seen it (the folds of DATASET's
splits_final.json), as validation does; without it, by all folds together, whose DSC on images of their own training
is too good to be true but whose differences are still of use. Structures missing in an image's reference do not count there. "tiles"
says whether it matters at all: with one tile an image, the overlap changes nothing.
Prints a Markdown table and writes it to OUTPUT.md, with every single measurement in OUTPUT.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Training"), str(ROOT / "Testing" / "benchmarks" / "common")]

import numpy as np
import torch
from MambaSegTraining.metrics.overlap import dice
from results import publish

from MambaSegLib.bundle import Bundle, load_bundle
from MambaSegLib.cpu.choice import computer
from MambaSegLib.predictor import Predictor
from MambaSegLib.volume import Labels, Volume
from MambaSegLib.volume_io import read_channels, read_labels


@dataclass(frozen=True)
class Row:
    """One image at one overlap; `dice` is the mean over the structures the reference has."""

    case: str
    overlap: float
    tiles: int
    dice: float
    seconds: float
    differing_voxels: int


def images(data: Path, count: int | None) -> Iterator[tuple[str, list[Path], Path]]:
    """Name, channels and label map of the training cases of a data set in nnU-Net's layout."""
    ending = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    for label_map in sorted((data / "labelsTr").glob(f"*{ending}"))[:count]:
        name = label_map.name.removesuffix(ending)
        yield name, sorted((data / "imagesTr").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}")), label_map


def folds_of(data: Path) -> dict[str, int]:
    """Fold whose network has not seen a case."""
    splits = json.loads((data / "splits_final.json").read_text(encoding="utf-8"))
    return {case: fold for fold, split in enumerate(splits) for case in split["val"]}


def mean_dice(found: Labels, reference: Labels, values: list[int]) -> float:
    """Mean over the structures the reference has; NaN if it has none."""
    present = [value for value in values if (reference.array == value).any()]
    scores = [dice(found.array == value, reference.array == value) for value in present]
    return statistics.fmean(scores) if scores else float("nan")


def measure(bundle: Bundle, options: argparse.Namespace) -> list[Row]:
    """All rows."""
    held_out = folds_of(options.data) if options.out_of_fold else {}
    names = tuple(channel.name for channel in bundle.manifest.plan.channels)
    values = [label.value for label in bundle.manifest.plan.predicted_labels]
    overlaps = sorted(options.overlaps, reverse=True)

    @cache
    def predictor(overlap: float, fold: int | None) -> Predictor:
        folds = None if fold is None else [fold]
        return Predictor(
            bundle,
            device=options.device,
            engine=options.engine,
            folds=folds,
            overlap=overlap,
            mirroring=options.mirroring,
        )

    rows: list[Row] = []
    for number, (case, channels, label_map) in enumerate(images(options.data, options.cases)):
        volume, reference = replace(read_channels(channels), channels=names), read_labels(label_map)
        fold = held_out[case] if held_out else None
        if number == 0:
            predictor(overlaps[0], fold).predict(volume)  # compiles
        baseline: np.ndarray | None = None
        for overlap in overlaps:
            row, labels = _segmented(predictor(overlap, fold), case, volume, reference, values, baseline)
            baseline = labels if baseline is None else baseline
            rows.append(row)
        print(
            f"{case}: "
            + ", ".join(f"{r.overlap:g}: {r.dice:.4f} in {r.seconds:.1f} s" for r in rows[-len(overlaps) :]),
            flush=True,
        )
    return rows


def _segmented(
    predictor: Predictor, case: str, volume: Volume, reference: Labels, values: list[int], baseline: np.ndarray | None
) -> tuple[Row, np.ndarray]:
    totals = [0]
    found = predictor.predict(
        volume, lambda progress: totals.append(progress.total if progress.stage == "Predicting" else 0)
    )
    labels = found.labels.array
    differing = 0 if baseline is None else int(np.count_nonzero(labels != baseline))
    score = mean_dice(found.labels, reference, values)
    return Row(case, predictor.overlap, max(totals), score, found.seconds.total, differing), labels


def table(rows: list[Row], rng_seed: int = 0) -> str:
    """Markdown: means over images, and differences to the largest overlap with a 95 % bootstrap interval."""
    by_overlap: dict[float, list[Row]] = {}
    for row in rows:
        if not np.isnan(row.dice):
            by_overlap.setdefault(row.overlap, []).append(row)
    largest = max(by_overlap)
    lines = [
        "| overlap | images | tiles per image | mean DSC | difference to the largest overlap (95 %) | worst image | time s | x time |",
        "|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    base = by_overlap[largest]
    for overlap, mine in sorted(by_overlap.items(), reverse=True):
        differences = np.array([a.dice - b.dice for a, b in zip(mine, base, strict=True)])
        drawn = np.random.default_rng(rng_seed).choice(differences, (10_000, len(differences))).mean(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        change = "" if overlap == largest else f"{differences.mean():+.5f} ({low:+.5f} to {high:+.5f})"
        tiles, seconds = statistics.fmean(r.tiles for r in mine), statistics.fmean(r.seconds for r in mine)
        share = statistics.median(a.seconds / b.seconds for a, b in zip(mine, base, strict=True))
        lines.append(
            f"| {overlap:g} | {len(mine)} | {tiles:.1f} | {statistics.fmean(r.dice for r in mine):.4f} | {change} "
            f"| {differences.min():+.4f} | {seconds:.2f} | {share:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or path of a model; without it there is nothing to measure")
    parser.add_argument("--data", type=Path, help="data set in nnU-Net's layout")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75])
    parser.add_argument("--cases", type=int, help="the first so many")
    parser.add_argument("--out-of-fold", action="store_true")
    parser.add_argument("--mirroring", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="auto", choices=("auto", "fused", "pytorch"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("bench_overlap"), help="without suffix")
    options = parser.parse_args()
    if options.model is None or options.data is None:
        print("Needs --model and --data: a trained model and labelled images of its kind.")
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    bundle = load_bundle(options.model)
    rows = measure(bundle, options)
    how = "each image by the fold that has not seen it" if options.out_of_fold else "all folds together"
    text = f"{table(rows)}\n\n{bundle.name}, {how}. {options.device}, {computer()}\n"
    content = {"computer": computer(), "model": bundle.name, "how": how, "rows": [asdict(row) for row in rows]}
    publish(options.output, text, content)


if __name__ == "__main__":
    main()
