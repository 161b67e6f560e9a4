"""Synapse (BTCV, abdomen): Training/img/img0001.nii.gz beside Training/label/label0001.nii.gz."""

from __future__ import annotations

from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegTraining.converters.raw_layout import RawCase, RawDataset, Source

SOURCE = Source(
    title="Multi-Atlas Labeling Beyond the Cranial Vault: abdomen (BTCV, Synapse)",
    url="https://www.synapse.org/Synapse:syn3193805",
    terms="as agreed to on registering for the data at synapse.org",
    citation=(
        "B. Landman, Z. Xu, J. E. Iglesias, M. Styner, T. R. Langerak, A. Klein, MICCAI Multi-Atlas Labeling Beyond the "
        "Cranial Vault: Workshop and Challenge, 2015"
    ),
)
ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal vein and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip


def find_cases(folder: Path) -> RawDataset:
    """List the 30 labelled cases as case0001, ...; those of Testing/img have no labels and become held-out cases.

    Raises:
        InputError: If there is no image.
    """
    training = sorted(folder.rglob("Training/img/img*.nii.gz"))
    if not training:
        msg = f"{folder} holds no Training/img/img0001.nii.gz, ...; give the folder RawData.zip unpacks to."
        raise InputError(msg)
    cases = [_case(path, path.parents[1] / "label" / path.name.replace("img", "label")) for path in training]
    cases += [_case(path, None) for path in sorted(folder.rglob("Testing/img/img*.nii.gz"))]
    return RawDataset("Synapse", ("CT",), dict(enumerate(ORGANS, start=1)), tuple(cases), SOURCE)


def _case(image: Path, labels: Path | None) -> RawCase:
    name = image.name.removesuffix(".nii.gz").replace("img", "case")
    return RawCase(name, name, ((image, None),), labels, held_out=labels is None)
