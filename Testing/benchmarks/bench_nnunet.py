"""Peak memory and time of preprocessing and of validation export beside nnU-Net v2: same cases, machine and plan.

nnU-Net plans each data set; its plan is read into this project's own, so that both sides resample to the same voxels and
use the same patch. Every figure is of a process of its own that handles the cases one after the other. The network of the
export is one pointwise convolution on both sides. This project's export reads and preprocesses the images again, as its
validation does; nnU-Net's reads what it preprocessed before.

    python -m venv nnunet && nnunet/bin/pip install torch nnunetv2
    python Testing/benchmarks/bench_nnunet.py --nnunet-python nnunet/bin/python --dataset DATASET --ct IMAGE LABELS
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from nnunet_side import peak_mib

if TYPE_CHECKING:
    from MambaSegLib.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
SIDE = Path(__file__).with_name("nnunet_side.py")
NUMBER = 901
CT_SPACINGS_MM = ((0.9, 0.9, 2.0), (0.7, 0.7, 3.0))
"""(X, Y, Z) of the two volumes made from one CT: as large as a scanner's, and different, so that both are resampled."""
STAGE_IMPORTS = {
    "preprocess": ("MambaSegTraining.preprocess", "SimpleITK"),
    "export": ("MambaSegTraining.validation", "MambaSegLib.postprocessing", "MambaSegLib.memory_ladder", "SimpleITK"),
}
STRUCTURES = 13
"""As many as the Synapse data set has."""


@dataclass(frozen=True)
class Figure:
    """One process.

    Attributes:
        seconds: Time for all cases, imports left out.
        processor_s: Time of all threads on the processor, which other programs on the computer disturb least.
        peak_mib: Most memory at once.
        before_mib: The same before the first case: interpreter and libraries.
        cases: How many.
    """

    seconds: float
    processor_s: float
    peak_mib: float
    before_mib: float
    cases: int


def link_dataset(source: Path, target: Path, count: int) -> None:
    """The first cases of a data set in nnU-Net's raw layout, as links."""
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    names = sorted(path.name.removesuffix(ending) for path in (source / "labelsTr").glob(f"*{ending}"))[:count]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    for name in names:
        (target / "labelsTr" / f"{name}{ending}").symlink_to(source / "labelsTr" / f"{name}{ending}")
        for image in sorted((source / "imagesTr").glob(f"{name}_????{ending}")):
            (target / "imagesTr" / image.name).symlink_to(image)
    (target / "dataset.json").write_text(json.dumps(description | {"numTraining": len(names)}))


def make_ct_dataset(image_file: Path, label_file: Path, target: Path) -> None:
    """Two large volumes with many structures, resampled from one small CT."""
    import numpy as np
    import SimpleITK

    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    image, labels = SimpleITK.ReadImage(str(image_file)), SimpleITK.ReadImage(str(label_file))
    array = SimpleITK.GetArrayFromImage(labels)
    values, counts = np.unique(array[array > 0], return_counts=True)
    table = np.zeros(int(array.max()) + 1, np.uint8)
    largest = sorted(values[np.argsort(-counts)][:STRUCTURES])
    table[largest] = np.arange(1, len(largest) + 1)
    compact = SimpleITK.GetImageFromArray(table[array])
    compact.CopyInformation(image)
    for number, spacing in enumerate(CT_SPACINGS_MM):
        size = [round(n * s / t) for n, s, t in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
        for source, kind, name in (
            (SimpleITK.Cast(image, SimpleITK.sitkInt16), SimpleITK.sitkLinear, f"imagesTr/ct_{number}_0000.nii.gz"),
            (compact, SimpleITK.sitkNearestNeighbor, f"labelsTr/ct_{number}.nii.gz"),
        ):
            grid = (size, SimpleITK.Transform(), kind, image.GetOrigin(), spacing, image.GetDirection())
            SimpleITK.WriteImage(SimpleITK.Resample(source, *grid), str(target / name))
    names = {"background": 0} | {f"structure {k}": k for k in range(1, len(largest) + 1)}
    description = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 2, "file_ending": ".nii.gz"}
    (target / "dataset.json").write_text(json.dumps(description))


def planned(dataset: Path, plans: Path) -> Plan:
    """nnU-Net's plan as this project's."""
    from MambaSegTraining.nnunet_json import read_nnunet_plan

    return read_nnunet_plan(plans, dataset / "dataset.json", network="mamba_unet_unidirectional").plan


def preprocess(dataset: Path, plan: Plan, folder: Path) -> int:
    """This project's preprocessing; returns the number of cases."""
    from MambaSegTraining.dataset import read_dataset
    from MambaSegTraining.preprocess import preprocess_cases

    return preprocess_cases(read_dataset(dataset).cases, plan, folder / "ours_preprocessed")


def export(dataset: Path, plan: Plan, folder: Path) -> int:
    """This project's validation without the measuring; returns the number of cases."""
    import torch
    from MambaSegTraining.dataset import read_dataset
    from MambaSegTraining.validation import predict_case

    from MambaSegLib.predictor import Predictor

    cases = read_dataset(dataset).cases

    class Pointwise(torch.nn.Module):
        deep_supervision = False

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = torch.nn.Conv3d(plan.network.in_channels, plan.network.out_channels, 1)

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.conv(image),)

    manifest = SimpleNamespace(plan=plan, name="bench.pointwise", version="1")
    bundle: Any = SimpleNamespace(
        manifest=manifest, fold_indices=(0,), sha256="", load_network=lambda fold: Pointwise()
    )
    predictor = Predictor(bundle, device="cpu")
    output = folder / "ours_exported"
    output.mkdir(exist_ok=True)
    for case in cases:
        predict_case(predictor, case, plan).write(output / f"{case.name}.nii.gz")
    return len(cases)


def run_here(stage: str, dataset: Path, plan_file: Path, folder: Path) -> Figure:
    """One of this project's stages in this process."""
    for name in STAGE_IMPORTS[stage]:  # with all that the stage loads later: imports count for neither side
        import_module(name)
    from MambaSegTraining.files import read_json

    from MambaSegLib.plan import Plan

    plan = read_json(Plan, plan_file)  # as the commands read it
    before, start, processor = peak_mib(), time.perf_counter(), time.process_time()
    cases = {"preprocess": preprocess, "export": export}[stage](dataset, plan, folder)
    return Figure(time.perf_counter() - start, time.process_time() - processor, peak_mib(), before, cases)


def compare(name: str, dataset: Path, folder: Path, interpreter: Path) -> list[str]:
    """Lines of the table for one data set."""
    from MambaSegTraining.files import write_json

    paths = {f"nnUNet_{kind}": str(folder / f"nnunet_{kind}") for kind in ("raw", "preprocessed", "results")}
    environment = {**os.environ, **paths, "PYTHONPATH": ""}
    for path in paths.values():
        Path(path).mkdir(exist_ok=True)
    (folder / "nnunet_raw" / dataset.name).symlink_to(dataset)

    def theirs(stage: str) -> str:
        command = [str(interpreter), str(SIDE), stage, str(NUMBER), str(folder / "theirs_exported")]
        return _output(command, environment)

    theirs("plan")
    plan_file = folder / "plan.json"
    write_json(plan_file, planned(dataset, folder / "nnunet_preprocessed" / dataset.name / "nnUNetPlans.json"))
    lines = []
    for stage in ("preprocess", "export"):
        other = Figure(**json.loads(theirs(stage).splitlines()[-1]))
        command = [sys.executable, __file__, "--stage", stage, str(dataset), str(plan_file), str(folder)]
        mine = Figure(
            **json.loads(_output(command, {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'Training'}"}).splitlines()[-1])
        )
        lines.append(table_row(f"{name}, {mine.cases} cases", stage, other, mine))
        print(lines[-1], flush=True)
    return lines


def table_row(data: str, stage: str, other: Figure, mine: Figure) -> str:
    """One line; ratios are this project's figure by nnU-Net's."""
    memory = [f"{figure.peak_mib:.0f} MiB ({figure.before_mib:.0f})" for figure in (other, mine)]
    wall, processor = ([getattr(figure, name) for figure in (other, mine)] for name in ("seconds", "processor_s"))
    cells = [data, stage, *memory, f"{mine.peak_mib / other.peak_mib:.2f}"]
    for first, second in (wall, processor):
        cells += [f"{first:.1f} s", f"{second:.1f} s", f"{second / first:.2f}"]
    return f"| {' | '.join(cells)} |"


def _output(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def main() -> int:
    """Compare on a data set, a CT, or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet-python", type=Path, help="interpreter that has nnunetv2")
    parser.add_argument("--dataset", type=Path, help="data set in nnU-Net's raw layout")
    parser.add_argument("--cases", type=int, default=20, help="how many of its cases (default: %(default)s)")
    parser.add_argument("--ct", type=Path, nargs=2, metavar=("IMAGE", "LABELS"), help="a CT with many structures")
    parser.add_argument("--stage", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage, *paths = options.stage
        print(json.dumps(run_here(stage, *map(Path, paths)).__dict__))
        return 0
    if not options.nnunet_python:
        print("Nothing to compare with: give --nnunet-python and --dataset or --ct.")
        return 0
    lines = [
        "| data | stage | peak (libraries): nnU-Net | here | ratio | time: nnU-Net | here | ratio | threads: nnU-Net | here | ratio |",
        f"|---|---|{'--:|' * 9}",
    ]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as scratch:
        if options.dataset:
            folder = Path(scratch) / "given"
            link_dataset(options.dataset.resolve(), folder / f"Dataset{NUMBER}_Given", options.cases)
            compare(options.dataset.name, folder / f"Dataset{NUMBER}_Given", folder, options.nnunet_python.absolute())
        if options.ct:
            folder = Path(scratch) / "ct"
            make_ct_dataset(*options.ct, folder / f"Dataset{NUMBER}_CT")
            compare("large CT", folder / f"Dataset{NUMBER}_CT", folder, options.nnunet_python.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
