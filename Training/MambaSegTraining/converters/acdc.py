"""ACDC: one case per end-diastolic and end-systolic frame; the two of a patient stay together in every fold."""

from __future__ import annotations

from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegTraining.converters.raw_layout import RawCase, RawDataset, Source

SOURCE = Source(
    title="Automated Cardiac Diagnosis Challenge (ACDC)",
    url="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    terms="CC BY-NC-SA 4.0 as stated on the download page; not for commercial use",
    citation=(
        "O. Bernard, A. Lalande, C. Zotti, F. Cervenansky, et al., Deep Learning Techniques for Automatic MRI Cardiac "
        "Multi-structures Segmentation and Diagnosis: Is the Problem Solved?, IEEE Transactions on Medical Imaging "
        "37(11), 2514-2525, 2018, doi:10.1109/TMI.2018.2837502"
    ),
)
LABELS = {1: "RV", 2: "MYO", 3: "LV"}


def find_cases(folder: Path) -> RawDataset:
    """List the frames of a download: patient001/{Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz, ...}.

    Patients below a folder named `testing` become held-out cases.

    Raises:
        InputError: If there is no patient, or an Info.cfg lacks its frames.
    """
    patients = sorted(path.parent for path in folder.rglob("Info.cfg") if path.parent.name.startswith("patient"))
    if not patients:
        msg = f"{folder} holds no patient folder with an Info.cfg; give the folder the ACDC download unpacks to."
        raise InputError(msg)
    held_out = {patient: "testing" in patient.relative_to(folder).parts for patient in patients}
    cases = tuple(case for patient in patients for case in _patient_cases(patient, held_out[patient]))
    return RawDataset("ACDC", ("cineMRI",), LABELS, cases, SOURCE, repair_headers=True)


def _patient_cases(patient: Path, held_out: bool) -> list[RawCase]:
    info = _read_info(patient / "Info.cfg")
    cases = []
    for frame in sorted({info["ED"], info["ES"]}):
        name = f"{patient.name}_frame{frame:02d}"
        image, labels = _either(patient / name), _either(patient / f"{name}_gt")
        cases.append(RawCase(name, patient.name, ((image, None),), labels, held_out))
    return cases


def _either(stem: Path) -> Path:
    """The compressed file, unless only the plain one is there."""
    plain = stem.with_name(stem.name + ".nii")
    return plain if plain.is_file() else stem.with_name(stem.name + ".nii.gz")


def _read_info(path: Path) -> dict[str, int]:
    """Read the frame numbers "ED" and "ES", counted from 1."""
    pairs = (line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in pairs}
    try:
        return {key: int(values[key]) for key in ("ED", "ES")}
    except (KeyError, ValueError) as error:
        msg = f"{path} does not tell the frames ED and ES as whole numbers; get it again."
        raise InputError(msg) from error
