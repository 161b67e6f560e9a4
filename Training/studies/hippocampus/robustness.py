"""How a trained run bears images it was not trained for: rotated, noisy, shaded, coarser.

Every case is segmented by the network that has not seen its patient, once as it is and once per disturbance. What is found is
brought back to the reference's own grid (nearest voxel) and scored there, so that a coarser grid pays for its coarseness.

    python Training/studies/hippocampus/robustness.py runs/hippocampus --every 4 -o robustness.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from MambaSegTraining.dataset import Case, read_dataset
from MambaSegTraining.export import save_working_bundle
from MambaSegTraining.files import read_json, write_json
from MambaSegTraining.fingerprint import DatasetFingerprint
from MambaSegTraining.metrics.overlap import dice
from MambaSegTraining.run_folder import RunFolder

from MambaSegLib.geometry import Array, Geometry
from MambaSegLib.predictor import Predictor
from MambaSegLib.resampling_itk import resample_onto
from MambaSegLib.volume import Labels, Volume
from MambaSegLib.volume_io import read_channels, read_labels

Disturb = Callable[[Volume, np.random.Generator], Volume]


@dataclass(frozen=True)
class Condition:
    """Result under one disturbance.

    Attributes:
        name: The disturbance.
        cases: How many were measured.
        mean_dsc: Mean over cases of the mean over structures.
        worst_dsc: The worst case.
        change: Mean difference from the undisturbed images, case by case.
    """

    name: str
    cases: int
    mean_dsc: float
    worst_dsc: float
    change: float


def rotated(degrees: float) -> Disturb:
    """Turn the grid about an axis drawn at random; what the grid covers beyond the crop is 0."""

    def disturb(volume: Volume, generator: np.random.Generator) -> Volume:
        axis = generator.normal(size=3)
        turn = _rotation(axis / np.linalg.norm(axis), np.deg2rad(degrees))
        geometry = volume.geometry
        center = geometry.to_world((np.array(geometry.shape) - 1) / 2)
        matrix = geometry.index_to_world.copy()
        matrix[:3, :3] = turn @ matrix[:3, :3]
        matrix[:3, 3] = center - matrix[:3, :3] @ ((np.array(geometry.shape) - 1) / 2)
        return resample_onto(volume, Geometry.from_matrix(matrix, geometry.shape))

    return disturb


def noisy(fraction: float) -> Disturb:
    """Add Rician noise, as magnitude images have; its sigma is a fraction of the 99th percentile."""

    def disturb(volume: Volume, generator: np.random.Generator) -> Volume:
        image = volume.array.astype(np.float64)
        sigma = fraction * np.percentile(image, 99)
        real = image + generator.normal(0, sigma, image.shape)
        return _with(volume, np.hypot(real, generator.normal(0, sigma, image.shape)))

    return disturb


def shaded(strength: float) -> Disturb:
    """Multiply by a smooth field from 1 - strength to 1 + strength along a direction drawn at random."""

    def disturb(volume: Volume, generator: np.random.Generator) -> Volume:
        axes = [np.linspace(-1, 1, size) for size in volume.geometry.shape]
        slope = generator.normal(size=3)
        plane = sum(part * axis for part, axis in zip(slope, np.meshgrid(*axes, indexing="ij"), strict=True))
        return _with(volume, volume.array * (1 + strength * np.sin(np.pi / 2 * plane / np.abs(plane).max())))

    return disturb


def coarser(factor: tuple[float, float, float]) -> Disturb:
    """Voxels larger by a factor along (Z, Y, X)."""

    def disturb(volume: Volume, generator: np.random.Generator) -> Volume:
        del generator
        shape = [max(1, round(size / times)) for size, times in zip(volume.geometry.shape, factor, strict=True)]
        return resample_onto(volume, volume.geometry.resampled(shape))

    return disturb


CONDITIONS: dict[str, Disturb] = {
    "as it is": lambda volume, generator: volume,
    "turned by 10 degrees": rotated(10),
    "turned by 20 degrees": rotated(20),
    "noise, 5 % of the 99th percentile": noisy(0.05),
    "noise, 10 %": noisy(0.10),
    "shading, plus and minus 30 %": shaded(0.3),
    "shading, plus and minus 60 %": shaded(0.6),
    "voxels of 1.5 mm": coarser((1.5, 1.5, 1.5)),
    "slices of 3 mm": coarser((3.0, 1.0, 1.0)),
}


def _with(volume: Volume, array: Array) -> Volume:
    return replace(volume, array=array.astype(np.float32))


def _rotation(axis: Array, angle: float) -> Array:
    """Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def brought_back(labels: Labels, geometry: Geometry) -> Array:
    """Labels at the voxel centers of another grid: the nearest voxel's, 0 outside."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij"), axis=-1)
    nearest = np.rint(labels.geometry.to_index(geometry.to_world(index.reshape(-1, 3)))).astype(int)
    inside = ((nearest >= 0) & (nearest < labels.geometry.shape)).all(axis=1)
    found = np.zeros(len(nearest), labels.array.dtype)
    found[inside] = labels.array[tuple(nearest[inside].T)]
    return found.reshape(geometry.shape)


def measure(run: RunFolder, every: int, device: str) -> dict[str, list[float]]:
    """Mean DSC per case (in one order) under each condition; every n-th validation case of each trained fold."""
    dataset = read_dataset(Path(read_json(DatasetFingerprint, run.fingerprint_file).folder))
    result: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    for fold in run.trained_folds():
        predictor = Predictor(save_working_bundle(run, fold, "final"), device=device)
        names = run.read_fold(fold).val[::every]
        for case in (case for case in dataset.cases if case.name in names):
            for name, dsc in _under_all_conditions(predictor, case, run):
                result[name].append(dsc)
    return result


def _under_all_conditions(predictor: Predictor, case: Case, run: RunFolder) -> Iterator[tuple[str, float]]:
    plan = run.read_plan()
    volume = read_channels({channel.name: path for channel, path in zip(plan.channels, case.images, strict=True)})
    reference = read_labels(case.labels)
    for number, (name, disturb) in enumerate(CONDITIONS.items()):
        generator = np.random.default_rng([number, *case.name.encode()])
        found = brought_back(predictor.predict(disturb(volume, generator)).labels, reference.geometry)
        yield name, float(np.mean([dice(found == one.value, reference.array == one.value) for one in plan.labels]))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="only every n-th validation case of a fold")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    values = measure(RunFolder(options.run_dir), options.every, options.device)
    plain = np.array(values["as it is"])
    rows = [
        Condition(name, len(dsc), float(np.mean(dsc)), float(np.min(dsc)), float(np.mean(np.array(dsc) - plain)))
        for name, dsc in values.items()
    ]
    write_json(options.output, tuple(rows))
    print("| condition | cases | mean DSC | change | worst case |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.name} | {row.cases} | {row.mean_dsc:.3f} | {row.change:+.3f} | {row.worst_dsc:.3f} |")


if __name__ == "__main__":
    main()
