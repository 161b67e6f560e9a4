"""Costs as Markdown: a table per data set, and one beside the values the paper printed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from MambaSegTraining.costs.counting import CONVENTION
from MambaSegTraining.costs.paper_values import NOTES, PAPER_DATASET, PRINTED
from MambaSegTraining.costs.records import Measurement, NetworkCost

COUNTS_HEAD = ("Network", "Patch", "Parameters [M]", "GMACs", "convolution", "linear", "attention", "sampling", "scan")
MEASURED_HEAD = (
    "Network", "Patch", "Batch", "Training step [s]", "Training memory [GB]", "Patch prediction [s]",
    "Prediction memory [GB]", "Patches per image", "Image [s]",
)  # fmt: skip
PRINTED_HEAD = ("Network", "Parameters [M]", "printed", "GMACs", "printed GFLOPs", "About the printed values")


def as_markdown(costs: Sequence[NetworkCost], title: str = "What the networks cost") -> str:
    """The whole page."""
    lines = [f"# {title}", ""]
    for dataset, group in groupby(costs, lambda cost: cost.dataset):
        lines += [f"## {dataset}", "", *_dataset(tuple(group)), ""]
    beside = [cost for cost in costs if cost.dataset == PAPER_DATASET and cost.network in PRINTED and cost.macs]
    if beside:
        lines += [
            "## Beside the paper's Table 1",
            "",
            *_table(PRINTED_HEAD, [_printed_row(cost) for cost in beside]),
            "",
        ]
        lines += [*(f"* {note}" for note in NOTES), ""]
    return "\n".join([*lines, "## How it was counted", "", CONVENTION, ""])


def _dataset(costs: Sequence[NetworkCost]) -> list[str]:
    lines = _table(COUNTS_HEAD, [_counts_row(cost) for cost in costs if cost.macs])
    measured = [(cost.network, cost.measured) for cost in costs if cost.measured is not None]
    if measured:
        lines += ["", *_table(MEASURED_HEAD, [_measured_row(name, values) for name, values in measured])]
        lines += ["", *(f"* {text}" for text in dict.fromkeys(_circumstances(values) for _, values in measured))]
    problems = [f"* {cost.network}: {cost.problem}" for cost in costs if cost.problem]
    return [*lines, "", *problems] if problems else lines


def _counts_row(cost: NetworkCost) -> tuple[str, ...]:
    macs = cost.macs
    assert macs is not None, "only what could be counted gets a row"
    parts = (macs.total, macs.convolution, macs.linear, macs.attention, macs.sampling, macs.scan)
    giga = (f"{count / 1e9:.2f}" if count else "" for count in parts)
    return (cost.network, _size(cost.patch_size), _millions(cost), *giga)


def _measured_row(network: str, measured: Measurement) -> tuple[str, ...]:
    return (
        network,
        _size(measured.patch_size),
        str(measured.batch_size),
        f"{measured.training_step_s:.3g}",
        _gigabytes(measured.training_memory_bytes),
        f"{measured.tile_s:.3g}",
        _gigabytes(measured.inference_memory_bytes),
        str(measured.tiles),
        f"{measured.volume_s:.3g}",
    )


def _printed_row(cost: NetworkCost) -> tuple[str, ...]:
    printed = PRINTED[cost.network]
    return (
        cost.network,
        _millions(cost),
        f"{printed.parameters_m:.2f}",
        f"{cost.gmacs:.2f}",
        f"{printed.gflops:.2f}",
        printed.about,
    )


def _circumstances(measured: Measurement) -> str:
    where = "memory is what PyTorch allocated" if measured.device != "cpu" else "memory is the growth of the process"
    image = _size([f"{length:g}" for length in measured.volume_shape])
    return (
        f"Measured on {measured.hardware}, {measured.threads} threads, scan {measured.scan}, "
        f"precision {measured.precision}{', recomputation' if measured.recompute else ''}; medians of {measured.repeats}; {where}. "
        f"Image: {image} voxels, patches half over each other, no mirroring, time of one patch times their number. "
        f"Software: {', '.join(measured.software)}."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    texts = [f"| {' | '.join(head)} |", f"|{'---|' + '---:|' * (len(head) - 1)}"]
    return texts + [f"| {' | '.join(row)} |" for row in rows]


def _size(lengths: Sequence[object]) -> str:
    return " × ".join(map(str, lengths))


def _millions(cost: NetworkCost) -> str:
    return "" if cost.parameters is None else f"{cost.parameters / 1e6:.2f}"


def _gigabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"
