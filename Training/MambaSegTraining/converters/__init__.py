"""From the downloads of public data sets, as they are distributed, to nnU-Net v2's raw layout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegTraining.converters import acdc, decathlon, synapse
from MambaSegTraining.converters.archives import unpacked
from MambaSegTraining.converters.raw_layout import Conversion, RawDataset, write_raw_layout

CONVERTERS: dict[str, Callable[[Path], RawDataset]] = {
    "acdc": acdc.find_cases,
    "braintumour": decathlon.find_brain_tumour_cases,
    "msd": decathlon.find_cases,
    "synapse": synapse.find_cases,
}
"""What `mambaseg-train convert` knows: each looks through an unpacked download and lists what it holds."""


def convert(kind: str, source: Path, output: Path, *, link: bool = False, regions: bool = False) -> Conversion:
    """Convert a download.

    Args:
        kind: A key of `CONVERTERS`.
        source: Folder of the unpacked download, or the .tar, .tar.gz or .zip itself (unpacked beside `output` for the
            time of the conversion).
        output: Folder of the data set; appears whole or not at all. One that an earlier conversion of the same files
            made is left as it is, any other is refused.
        link: Hard-link files that need no change instead of copying them, where the file system allows it.
        regions: Have regions learned instead of labels, where the data set has such.

    Returns:
        What was written.

    Raises:
        InputError: If the download is not laid out as expected, `output` holds something else, or there are no regions.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(unpacked(source, output.parent)) if source.is_file() else source
        dataset = CONVERTERS[kind](folder)
        if regions and not dataset.regions:
            msg = f"{dataset.name} has no regions of its own; describe yours in [[regions]] of the configuration."
            raise InputError(msg)
        return write_raw_layout(replace(dataset, learn_regions=regions), output, link=link)
