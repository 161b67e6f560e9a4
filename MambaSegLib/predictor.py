"""Volume in, segmentation out: a trained model on a device, ready for one case after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, prod
from os import PathLike, fspath
from typing import TYPE_CHECKING

from MambaSegLib import __version__, fingerprint_check
from MambaSegLib.cpu.choice import ENGINES
from MambaSegLib.devices import device_name, resolve_device
from MambaSegLib.errors import EnvironmentProblemError, InputError
from MambaSegLib.geometry import Array, Box
from MambaSegLib.idle_threads import import_torch
from MambaSegLib.preprocessing import Preprocessed, preprocess, select_channels
from MambaSegLib.progress import Progress, ProgressCallback
from MambaSegLib.quality import Quality, thoroughness
from MambaSegLib.scan import BACKENDS
from MambaSegLib.time_estimate import TimeEstimate
from MambaSegLib.volume import Labels, Volume

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from MambaSegLib.bundle import Bundle
    from MambaSegLib.memory_ladder import MemoryLadder
    from MambaSegLib.networks.contract import SegmentationNetwork
    from MambaSegLib.sliding_window import Ensemble, Slab

Clock = Callable[[], float]

NOTHING_FOUND = "None of the model's structures was found in the image."

NO_SCAN = "none"
"""Name of the scan backend of networks that scan nothing."""


@dataclass(frozen=True)
class PhaseSeconds:
    """Where the time went.

    Attributes:
        preprocessing: Crop, normalization, resampling.
        prediction: The networks.
        postprocessing: Probabilities to labels on the input's grid.
    """

    preprocessing: float
    prediction: float
    postprocessing: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.preprocessing + self.prediction + self.postprocessing


@dataclass(frozen=True)
class Prediction:
    """A segmented volume.

    Attributes:
        labels: On the volume's own grid.
        uncertainty: (Z, Y, X) float32, 0 sure to 1 clueless; None if not asked for. See
            `postprocessing.Segmented`.
        disagreement: (Z, Y, X) float32, the part of it that comes from folds or mirrored versions that differ; None
            if not asked for.
        notices: What the person should know before trusting it: how the volume is unlike the training images, what
            gave way when memory was short, which structures are larger or smaller than in training. One sentence or two each.
        backend: Scan backend that computed; "none" for a network without a scan.
        device: Device that computed, e.g. "cpu", "cuda:0 (NVIDIA H100)".
        seconds: Time per phase.
    """

    labels: Labels
    uncertainty: Array | None
    disagreement: Array | None
    notices: tuple[str, ...]
    backend: str
    device: str
    seconds: PhaseSeconds


class Predictor:
    """A model's networks, loaded; holds nothing of the cases it has segmented.

    Attributes:
        bundle: The model.
        device: Where it computes.
        backend: Scan backend it computes with, "none" if its network scans nothing.
        folds: Folds whose networks are averaged.
        overlap: Fraction of a tile that its neighbor covers again.
        tile_batch: Tiles computed at a time; None for what suits the device.
    """

    def __init__(
        self,
        bundle: Bundle | str | PathLike[str],
        *,
        device: str = "auto",
        scan: str = "auto",
        folds: Sequence[int] | None = None,
        quality: Quality = "standard",
        mirroring: bool | None = None,
        overlap: float | None = None,
        tile_batch: int | None = None,
        engine: str = "auto",
        speeds: Path | None = None,
    ) -> None:
        """Load the networks.

        If this is what imports PyTorch, idle threads of it will sleep; see `idle_threads.import_torch`.

        Args:
            bundle: The model, its name, or the path of its folder or .zip; see `bundle.load_bundle`.
            device: "auto", "cpu", "cuda", "cuda:1", "mps"; see `devices.resolve_device`.
            scan: Scan backend, or "auto" for the fastest there is; see `scan.resolve_backend`.
            folds: Folds to average; None takes all the model has.
            quality: "fast" lets tiles overlap by a quarter instead of half, "best" also averages over mirrored versions
                where the model was trained for it; see `quality`.
            mirroring: Whether to average over mirrored versions along the axes the model was trained to mirror: 2 to 8
                times the time, and often a little better; None leaves it to `quality`.
            overlap: Fraction of a tile that its neighbor covers again, 0 to below 1. Less is faster and rougher; None
                leaves it to `quality`.
            tile_batch: Tiles computed at a time; None for what suits the device. More is faster only on a large GPU with a
                small patch.
            engine: How the CPU computes a network's layers: "fused" (compiled by numba), "pytorch", or "auto" for the
                faster one here. Results are the same to rounding.
            speeds: File in which the time of a tile is remembered, so that the next volume's time is known at its start.

        Raises:
            InputError: If an argument is out of range, there is no such model, or it has no such fold.
            EnvironmentProblemError: If PyTorch, the device or the scan backend is missing.
        """
        _check(scan, folds, tile_batch, engine)
        how = thoroughness(quality, overlap, mirroring)
        _require_torch()
        bundle = _opened(bundle)
        self.bundle = bundle
        self.device = resolve_device(device)
        self.folds = tuple(bundle.fold_indices if folds is None else folds)
        self._scan = scan
        self._networks = _load(bundle, self.folds, scan, engine, self.device)
        self.backend = self._backend_on(self.device)
        self._mirroring, self._mirroring_named = how.mirroring, bool(mirroring)
        self.overlap = how.overlap
        self.tile_batch = tile_batch
        self._speeds = speeds
        self._engine = engine

    def predict(
        self,
        volume: Volume,
        progress: ProgressCallback | None = None,
        *,
        roi: Box | None = None,
        uncertainty: bool = False,
        disagreement: bool = False,
        on_notice: Callable[[str], None] | None = None,
        clock: Clock = time.perf_counter,
    ) -> Prediction:
        """Segment a volume.

        Args:
            volume: Channels by name in any order, or without names in the model's order.
            progress: Called after every step; raising `CancelledError` from it ends the work there.
            roi: Segment this part only (indices on the volume's grid); the rest becomes background.
            uncertainty: Also return how unsure the model is, per voxel.
            disagreement: Also return how much folds, mirrored versions and overlapping tiles differ, per voxel.
            on_notice: Called at once with what makes the image unlike the training images: before the networks compute, for
                minutes or hours. These are among the notices of the result, too.
            clock: Seconds, for the estimate of the time left.

        Raises:
            InputError: If the volume is not what the model expects; the message lists what it does.
            EnvironmentProblemError: If memory runs out on every step of the ladder, or a network's output is not finite.
            CancelledError: As raised by `progress`.
        """
        from MambaSegLib.memory_ladder import explain_lack_of_memory
        from MambaSegLib.postprocessing import to_labels

        if not isinstance(volume, Volume):
            msg = f"a Volume is needed, as read_volume returns it; found {type(volume).__name__}"
            raise InputError(msg)
        report, tell = progress or _ignore, on_notice or _ignore
        plan = self.bundle.manifest.plan
        with explain_lack_of_memory():
            start = clock()
            report(Progress("Preprocessing", 0, 1))
            preprocessed, notices = self._prepare(volume, roi)
            for notice in notices:
                tell(notice)
            report(Progress("Preprocessing", 1, 1))
            ladder = self._ladder(preprocessed)
            slabs = _Timed(self._slabs(preprocessed, ladder, report, disagreement, clock), clock)
            prepared = clock()
            segmented = to_labels(slabs, preprocessed.undo, plan, uncertainty=uncertainty, disagreement=disagreement)
            seconds = PhaseSeconds(prepared - start, slabs.seconds, clock() - prepared - slabs.seconds)
            report(Progress("Postprocessing", 1, 1, 0.0))
        device = ladder.placement.device
        labels = Labels(segmented.labels, volume.geometry, plan.predicted_labels, self._tags(volume))
        found = fingerprint_check.volume_notices(labels, plan) if labels.array.any() else (NOTHING_FOUND,)
        return Prediction(
            labels=labels,
            uncertainty=segmented.uncertainty,
            disagreement=segmented.disagreement,
            notices=(*notices, *ladder.notices, *found),
            backend=self._backend_on(device),
            device=device_name(device),
            seconds=seconds,
        )

    def tiles(self, volume: Volume) -> int:
        """Tiles of a volume that `predict` would compute, found out without computing them.

        Raises:
            InputError: As `predict`.
        """
        from MambaSegLib.body_crop import box_to_predict
        from MambaSegLib.sliding_window import tiles_to_compute

        plan = self.bundle.manifest.plan
        preprocessed = preprocess(volume, plan)
        image, ladder = preprocessed.array, self._ladder(preprocessed)
        box, air = box_to_predict(self.ensemble, image, plan, ladder, self.overlap, False)
        counted = tiles_to_compute(image[(slice(None), *box.slices)], plan.patch_size, self.overlap)
        return counted + (air is not None)

    @property
    def ensemble(self) -> Ensemble:
        """The networks and how they are combined."""
        from MambaSegLib.readout import readout_of
        from MambaSegLib.sliding_window import Ensemble

        plan = self.bundle.manifest.plan
        axes = plan.mirror_axes if self._mirroring else ()
        return Ensemble(self._networks, readout_of(plan), plan.patch_size, axes)

    def _prepare(self, volume: Volume, roi: Box | None) -> tuple[Preprocessed, tuple[str, ...]]:
        plan = self.bundle.manifest.plan
        volume = select_channels(volume, plan)
        preprocessed = preprocess(volume, plan, roi=roi)
        notices = fingerprint_check.notices(volume.cropped(roi) if roi else volume, plan)
        if self._mirroring_named and not plan.mirror_axes:
            notices += ("Mirroring was asked for, but the model was trained without it, so it was left out.",)
        return preprocessed, notices

    def _ladder(self, preprocessed: Preprocessed) -> MemoryLadder:
        from MambaSegLib.memory_ladder import MemoryLadder, first_placement, tiles_at_a_time
        from MambaSegLib.sliding_window import accumulator_bytes

        needed = accumulator_bytes(self.ensemble, preprocessed.array.shape[1:])
        tile_batch = self.tile_batch or tiles_at_a_time(self.device, prod(self.ensemble.patch_size))
        return MemoryLadder(first_placement(self.device, tile_batch, needed))

    def _slabs(
        self,
        preprocessed: Preprocessed,
        ladder: MemoryLadder,
        report: ProgressCallback,
        disagreement: bool,
        clock: Clock,
    ) -> Iterator[Slab]:
        from MambaSegLib.body_crop import box_to_predict, surrounded
        from MambaSegLib.sliding_window import predict_probabilities

        ensemble, image, overlap = self.ensemble, preprocessed.array, self.overlap
        box, air = box_to_predict(ensemble, image, self.bundle.manifest.plan, ladder, overlap, disagreement)
        estimate: TimeEstimate | None = None

        def on_tile(done: int, total: int) -> None:
            nonlocal estimate
            if estimate is None:
                estimate = TimeEstimate(total, clock, self._remembered_tile_s())
                left = estimate.seconds_expected()
            else:
                left = estimate.seconds_left(done)
            report(Progress("Predicting", done, total, left))
            if done == total:
                self._remember_tile_s(estimate.step_s())

        part = image[(slice(None), *box.slices)]
        slabs = predict_probabilities(
            ensemble, part, ladder, overlap=overlap, disagreement=disagreement, on_tile=on_tile
        )
        yield from slabs if air is None else surrounded(slabs, box, image.shape[1:], air)

    def _speed_key(self) -> str:
        import torch

        from MambaSegLib.cpu.choice import computer

        place = f"{device_name(self.device)}, {computer()}, {torch.get_num_threads()} threads, engine {self._engine}"
        model = f"{self.bundle.manifest.name} {self.bundle.sha256[:12]}, {len(self.folds)} folds"
        mirroring = self._mirroring and bool(self.bundle.manifest.plan.mirror_axes)
        return f"{model}, mirroring {mirroring}, scan {self.backend}, {place}"

    def _remembered_tile_s(self) -> float | None:
        from MambaSegLib.remembered import recall

        found = recall(self._speeds).get(self._speed_key()) if self._speeds is not None else None
        # Anyone may have edited the file: a number that is no time is no time.
        return float(found) if isinstance(found, int | float) and 0 < found < inf else None

    def _remember_tile_s(self, seconds: float | None) -> None:
        from MambaSegLib.remembered import remember

        if self._speeds is not None and seconds is not None:
            remember(self._speeds, self._speed_key(), round(seconds, 4))

    def _tags(self, volume: Volume) -> tuple[tuple[str, str], ...]:
        manifest = self.bundle.manifest
        regions = [f"{region.name} = {'+'.join(map(str, region.labels))}" for region in manifest.plan.compound_regions]
        return (
            ("Model", f"{manifest.name} {manifest.version}"),
            ("ModelSHA256", self.bundle.sha256),
            ("Folds", " ".join(str(fold) for fold in self.folds)),
            ("Source", volume.name),
            *((("Regions", "; ".join(regions)),) if regions else ()),
            ("Software", f"MambaSegmentation {__version__}"),
            ("Disclaimer", "Research use only; not approved for clinical use."),
        )

    def _backend_on(self, device: torch.device) -> str:
        from MambaSegLib.networks.mamba import MambaScan
        from MambaSegLib.scan import resolve_backend

        if not any(isinstance(module, MambaScan) for network in self._networks for module in network.modules()):
            return NO_SCAN
        return resolve_backend(self._scan, str(device))


class _Timed:
    """Slabs, and the time it took to make them."""

    def __init__(self, slabs: Iterator[Slab], clock: Clock) -> None:
        self._slabs = slabs
        self._clock = clock
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Slab]:
        return self

    def __next__(self) -> Slab:
        start = self._clock()
        try:
            return next(self._slabs)
        finally:
            self.seconds += self._clock() - start


def _ignore(news: object) -> None:
    del news


def _opened(bundle: Bundle | str | PathLike[str]) -> Bundle:
    from MambaSegLib.bundle import load_bundle

    if isinstance(bundle, str | PathLike):
        return load_bundle(fspath(bundle))
    if not hasattr(bundle, "manifest"):
        msg = (
            f"a model is needed: its name, the path of its folder or .zip, or what load_bundle returns; found {bundle!r} "
            f"({type(bundle).__name__})"
        )
        raise InputError(msg)
    return bundle


def _check(scan: str, folds: Sequence[int] | None, tile_batch: int | None, engine: str) -> None:
    if scan not in ("auto", *BACKENDS):
        msg = f"there is no scan backend {scan!r}; choose auto, {', '.join(BACKENDS)}"
        raise InputError(msg)
    if folds is not None and (not folds or len(set(folds)) != len(folds)):
        msg = f"give each fold to use once, or none to use all; found {list(folds)}"
        raise InputError(msg)
    if engine not in ("auto", *ENGINES):
        msg = f"there is no CPU engine {engine!r}; choose auto, {', '.join(ENGINES)}"
        raise InputError(msg)
    if tile_batch is not None and tile_batch < 1:
        msg = f"tiles are computed 1 or more at a time, found {tile_batch}"
        raise InputError(msg)


def _require_torch() -> None:
    try:
        import_torch()
    except ImportError as error:
        msg = (
            f"Segmenting needs PyTorch ({error}). Install it: pip install torch, or in 3D Slicer the PyTorch extension."
        )
        raise EnvironmentProblemError(msg) from None


def _load(
    bundle: Bundle, folds: Sequence[int], scan: str, engine: str, device: torch.device
) -> tuple[SegmentationNetwork, ...]:
    from MambaSegLib.cpu.network import prepared
    from MambaSegLib.networks import set_scan_backend

    networks = [bundle.load_network(fold) for fold in folds]
    for network in networks:
        network.deep_supervision = False
        network.requires_grad_(False)
        network.eval()
        set_scan_backend(network, scan)
    return tuple(prepared(networks, engine, device))
