"""Stand-in for Slicer's Sample Data module: keeps what is registered, and fetches, checks and loads as the module does."""

import urllib.request
from pathlib import Path
from typing import Any

import slicer


class SampleDataLogic:
    """Registered samples by category, as keyword arguments."""

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: Any = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: Any = None,
        loadFileType: Any = "VolumeFile",
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
    ) -> None:
        """As Slicer 5.12: parallel lists of one length; the same source twice counts once."""
        source = {key: value for key, value in locals().items() if key != "category"}
        lists = (uris, fileNames, nodeNames, loadFileType, checksums)
        if len({len(entries) for entries in lists}) != 1:
            message = "All fields of sample data source must have the same length"
            raise ValueError(message)
        registered = slicer.modules.__dict__.setdefault("sampleDataSources", {}).setdefault(category, [])
        if source not in registered:
            registered.append(source)


def load(source: dict[str, Any], cache: Path, mirror: dict[str, str]) -> list[Any]:
    """Fetch the files of a source into a folder, check them and add them to the scene.

    Args:
        source: What was registered.
        cache: Folder for the files.
        mirror: Address on this computer for addresses on the internet.
    """
    nodes = []
    keys = ("uris", "fileNames", "nodeNames", "loadFileType", "checksums")
    for uri, fileName, nodeName, fileType, checksum in zip(*(source[key] for key in keys), strict=True):
        path = str(cache / fileName)
        urllib.request.urlretrieve(mirror.get(uri, uri), path)
        algorithm, digest = slicer.util.extractAlgoAndDigest(checksum)
        if slicer.util.computeChecksum(algorithm, path) != digest:
            message = f"{fileName} has another checksum"
            raise ValueError(message)
        node = _READERS[fileType](path, nodeName)
        if node is None:
            message = f"{fileName} cannot be read"
            raise ValueError(message)
        nodes.append(node)
    return nodes


def _volume(path: str, name: str) -> Any:
    return slicer.modules.volumes.logic().AddArchetypeVolume(path, name)


def _roi(path: str, name: str) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    storage = slicer.vtkMRMLMarkupsROIJsonStorageNode()
    storage.SetFileName(path)
    return node if storage.ReadData(node) else None


_READERS = {"VolumeFile": _volume, "MarkupsFile": _roi}
