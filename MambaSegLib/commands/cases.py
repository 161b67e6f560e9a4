"""Which images of a folder belong together: the cases of a batch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.download import sha256_of
from MambaSegLib.errors import InputError
from MambaSegLib.volume_io import files_of

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")
_PLACEHOLDER = "{case}"


@dataclass(frozen=True)
class Case:
    """One volume to segment.

    Attributes:
        name: What its outputs are called.
        images: Image per channel, by name in the model's order.
        problem: Why it cannot be segmented, e.g. a channel is missing; "" if it can.
    """

    name: str
    images: Mapping[str, Path]
    problem: str = ""

    def sha256(self) -> str:
        """Hash of all its images, DICOM folders included: a changed input is segmented again.

        Raises:
            OSError: If one may not be read.
            InputError: If a folder may not be read.
        """
        digest = hashlib.sha256()
        for channel, path in self.images.items():
            for file in files_of(path):
                digest.update(f"{channel}:{sha256_of(file)};".encode())
        return digest.hexdigest()


def find_cases(
    folder: Path, channels: Sequence[str], patterns: Mapping[str, str], output: Path | None = None
) -> tuple[Case, ...]:
    """List the cases of a folder, sorted by name.

    Without patterns, `case_0000.nii.gz`, `case_0001.nii.gz`, ... are the channels of a case in the model's order; for a
    model with one channel any image file, and any folder (of DICOM files), is a case of its own.

    Args:
        folder: Where the images are.
        channels: The model's channels.
        patterns: Channel -> path below the folder with {case} in it, e.g. "{case}/{case}_flair.nii.gz".
        output: Folder of results: what lies there is no image to segment.

    Raises:
        InputError: If there is no case, patterns and channels do not agree, or two images claim one place.
    """
    if not folder.is_dir():
        message = f"The input folder {folder} does not exist."
        if folder.exists():
            message = f"{folder} is a file; a folder of images is needed. `mambaseg segment` takes one image."
        raise InputError(message)
    found = _by_pattern(folder, channels, patterns) if patterns else _by_number(folder, channels)
    grouped: dict[str, dict[str, Path]] = {}
    for case, channel, path in found:
        # Path.resolve fails at a link to itself.
        if output is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(output)):
            continue
        images = grouped.setdefault(case, {})
        if channel in images:
            message = f"{images[channel]} and {path} are both channel {channel} of case {case}. Remove one of them."
            raise InputError(message)
        images[channel] = path
    if not grouped:
        message = f"{folder} holds no images this model could take. {_expected(channels, patterns)}"
        raise InputError(message)
    return tuple(_case(name, grouped[name], channels) for name in sorted(grouped))


def parse_patterns(words: Iterable[str]) -> dict[str, str]:
    """Read "NAME={case}_t1.nii.gz" words.

    Raises:
        InputError: If a word has no name or no {case}.
    """
    patterns: dict[str, str] = {}
    for word in words:
        name, equals, pattern = word.partition("=")
        if not equals or _PLACEHOLDER not in pattern or name in patterns:
            message = f'--pattern "{word}": expected NAME=PATTERN with {{case}} in it, e.g. T1={{case}}_t1.nii.gz.'
            raise InputError(message)
        patterns[name] = pattern.replace("\\", "/")
    return patterns


def _by_pattern(folder: Path, channels: Sequence[str], patterns: Mapping[str, str]) -> Iterator[tuple[str, str, Path]]:
    names = {channel.lower(): channel for channel in channels}
    if sorted(name.lower() for name in patterns) != sorted(names):
        message = f"The model takes the channels {', '.join(channels)}; --pattern names {', '.join(patterns)}."
        raise InputError(message)
    expressions = {names[name.lower()]: _expression(pattern) for name, pattern in patterns.items()}
    for path in sorted(folder.rglob("*") if any("/" in pattern for pattern in patterns.values()) else folder.iterdir()):
        relative = path.relative_to(folder).as_posix()
        for channel, expression in expressions.items():
            match = expression.fullmatch(relative)
            if match:
                yield match["case"], channel, path


def _expression(pattern: str) -> re.Pattern[str]:
    first, *others = (re.escape(part) for part in pattern.split(_PLACEHOLDER))
    return re.compile(first + "(?P<case>[^/]+)" + "(?P=case)".join(others))


def _by_number(folder: Path, channels: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    stems = {path: stem for path in sorted(folder.iterdir()) if (stem := _stem(path)) is not None}
    numbers = {path: match for path, stem in stems.items() if (match := _NUMBERED.fullmatch(stem))}
    # With one channel, "patient_0012" is a case's own number unless every number is the channel 0000.
    if len(channels) == 1 and {match["channel"] for match in numbers.values()} != {"0000"}:
        numbers = {}
    for path, stem in stems.items():
        match = numbers.get(path)
        if match is None and len(channels) == 1:
            yield stem, channels[0], path
        elif match is not None and int(match["channel"]) >= len(channels):
            message = f"{path} is channel {match['channel']}, but the model takes {', '.join(channels)} only."
            raise InputError(message)
        elif match is not None:
            yield match["case"], channels[int(match["channel"])], path


def _stem(path: Path) -> str | None:
    """Name without the image suffix; a folder's own name; None for other files and hidden ones."""
    if path.name.startswith("."):
        return None
    if path.is_dir():
        return path.name
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix) and not path.name.lower().endswith(".seg.nrrd"):
            return path.name[: -len(suffix)]
    return None


def _case(name: str, images: Mapping[str, Path], channels: Sequence[str]) -> Case:
    missing = [channel for channel in channels if channel not in images]
    problem = f"The image for {', '.join(missing)} is missing." if missing else ""
    return Case(name, {channel: images[channel] for channel in channels if channel in images}, problem)


def _expected(channels: Sequence[str], patterns: Mapping[str, str]) -> str:
    if patterns:
        return f"Looked for {', '.join(patterns.values())}."
    if len(channels) == 1:
        return f"Looked for {', '.join(SUFFIXES)} files and folders of DICOM files."
    numbered = ", ".join(f"case_{index:04d}.nii.gz ({channel})" for index, channel in enumerate(channels))
    return f"Looked for {numbered}; other names need --pattern."
