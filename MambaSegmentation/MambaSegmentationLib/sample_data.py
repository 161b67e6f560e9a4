"""Images for a first try, offered in Slicer's Sample Data module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CATEGORY = "Mamba Segmentation"
FOLDER = Path(__file__).resolve().parent.parent / "Resources" / "SampleData"


@dataclass(frozen=True)
class SampleFile:
    """One file of a sample.

    Attributes:
        address: Where it comes from.
        sha256: Of its bytes.
        fileName: Its name in Slicer's cache.
        nodeName: Name of the node it becomes.
        fileType: Slicer's name of the reader.
    """

    address: str
    sha256: str
    fileName: str
    nodeName: str
    fileType: str = "VolumeFile"


@dataclass(frozen=True)
class Sample:
    """What one button of the Sample Data module loads.

    Attributes:
        name: Of the button, and for `SampleData.downloadSamples(name)`.
        thumbnail: Picture on the button, in `FOLDER`.
        files: Loaded in this order.
    """

    name: str
    thumbnail: str
    files: tuple[SampleFile, ...]


def samples() -> tuple[Sample, ...]:
    """All samples.

    The whole template is the file of nilearn 0.12.0 (also inside its package on PyPI, where the hash was taken); region
    and cut-out lie in this extension and need no network. Resources/SampleData/README.md names origin and license.
    """
    template = SampleFile(
        "https://raw.githubusercontent.com/nilearn/nilearn/0.12.0/nilearn/datasets/data/"
        "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
        "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        "ICBM152 T1",
    )
    region = SampleFile(
        (FOLDER / "left_hippocampus_region.mrk.json").as_uri(),
        "6a176b9e4356e1c9afec33adbb9a751bc76cdd5c29d248acbf24482ba79f874a",
        "left_hippocampus_region.mrk.json",
        "Left hippocampus region",
        "MarkupsFile",
    )
    cutOut = SampleFile(
        (FOLDER / "left_hippocampus_T1.nrrd").as_uri(),
        "2fb7f30813656c97e972a68b18177deca6bb6ab070180b266bafb22571ed2eb8",
        "left_hippocampus_T1.nrrd",
        "Left hippocampus T1",
    )
    return (
        Sample("LeftHippocampusT1", "left_hippocampus.png", (cutOut,)),
        Sample("HippocampusTemplateT1", "template.png", (template, region)),
    )


def register() -> None:
    """Add the samples to the Sample Data module; nothing is downloaded before a person presses a button there."""
    import SampleData

    for sample in samples():
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=sample.name,
            thumbnailFileName=str(FOLDER / sample.thumbnail),
            uris=[file.address for file in sample.files],
            fileNames=[file.fileName for file in sample.files],
            nodeNames=[file.nodeName for file in sample.files],
            loadFileType=[file.fileType for file in sample.files],
            checksums=[f"SHA256:{file.sha256}" for file in sample.files],
        )
