"""The log of a training as TensorBoard shows it; an optional package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegTraining.training_log import EpochRecord

FOLDER = "tensorboard"


class Board:
    """Writes one point per epoch and curve into `fold_<k>/tensorboard`."""

    def __init__(self, folder: Path, labels: Sequence[str], first_step: int) -> None:
        """Open the curves.

        Args:
            folder: Folder of the fold.
            labels: Names of the structures.
            first_step: Points of an earlier run at or after this step are hidden: they are made again.

        Raises:
            EnvironmentProblemError: If TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            msg = "TensorBoard is not installed; pip install tensorboard, or leave out --tensorboard."
            raise EnvironmentProblemError(msg) from error
        self._labels = tuple(labels)
        self._writer: Any = SummaryWriter(str(folder / FOLDER), purge_step=first_step)

    def add(self, record: EpochRecord) -> None:
        """Add the points of an epoch."""
        points = {
            "loss/train": record.train_loss,
            "learning rate": record.learning_rate,
            "gradient norm": record.gradient_norm,
            "time/seconds per epoch": record.seconds,
            "time/share of waiting": record.wait_share,
        }
        if record.mean_patch_dice is not None:
            points["patch Dice/mean"] = record.mean_patch_dice
        pairs = zip(self._labels, record.patch_dice, strict=False)
        points |= {f"patch Dice/{name}": value for name, value in pairs if value is not None}
        for name, value in points.items():
            self._writer.add_scalar(name, value, record.iteration)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
