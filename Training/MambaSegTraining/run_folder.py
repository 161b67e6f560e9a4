"""Where a run keeps its files: one folder from data set to bundle, each step reading what the one before wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Plan
from MambaSegTraining.files import read_json
from MambaSegTraining.settings import Settings
from MambaSegTraining.splits import Fold, Splits


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of a run.

    Attributes:
        path: The folder.
        results: Where validation writes; None: into the run's folder, where report and export look for it.
    """

    path: Path
    results: Path | None = None

    @property
    def settings_file(self) -> Path:
        """The configuration, resolved."""
        return self.path / "settings.json"

    @property
    def fingerprint_file(self) -> Path:
        """What the images are like."""
        return self.path / "fingerprint.json"

    @property
    def plan_file(self) -> Path:
        """The plan that preprocessing, networks and bundle share."""
        return self.path / "plan.json"

    @property
    def splits_file(self) -> Path:
        """The folds."""
        return self.path / "splits.json"

    @property
    def leakage_file(self) -> Path:
        """What the check of the folds for leaks found."""
        return self.path / "leakage.json"

    @property
    def store(self) -> Path:
        """The preprocessed cases."""
        return self.path / "preprocessed"

    def fold(self, fold: int) -> Path:
        """Folder of one fold."""
        return self.path / f"fold_{fold}"

    def validation(self, fold: int) -> Path:
        """Predictions and scores of the validation cases of a fold."""
        return self.results / f"fold_{fold}" if self.results else self.fold(fold) / "validation"

    def working_bundle(self, fold: int) -> Path:
        """One fold as a bundle, written to be validated as it will be used."""
        return (self.validation(fold) if self.results else self.fold(fold)) / "bundle"

    @property
    def tables(self) -> Path:
        """What all validated folds come to."""
        return self.results or self.path / "validation"

    def read_settings(self) -> Settings:
        """The settings `plan` was called with."""
        return read_json(Settings, self.settings_file)

    def read_plan(self) -> Plan:
        """The plan."""
        return read_json(Plan, self.plan_file)

    def read_splits(self) -> Splits:
        """The folds.

        Raises:
            InputError: If they are missing or damaged.
        """
        return read_json(Splits, self.splits_file)

    def read_fold(self, fold: int) -> Fold:
        """One fold.

        Raises:
            InputError: If there is no fold of that number.
        """
        folds = self.read_splits().folds
        if not 0 <= fold < len(folds):
            msg = f"There is no fold {fold}; {self.path} has folds 0 to {len(folds) - 1}."
            raise InputError(msg)
        return folds[fold]

    def trained_folds(self) -> tuple[int, ...]:
        """Folds whose training is finished."""
        folds = range(len(self.read_splits().folds))
        return tuple(fold for fold in folds if (self.fold(fold) / WEIGHTS_FILE).is_file())

    def require_weights(self, fold: int) -> Path:
        """Path of the final weights of a fold.

        Raises:
            InputError: If its training is not finished.
        """
        path = self.fold(fold) / WEIGHTS_FILE
        if not path.is_file():
            msg = f"Fold {fold} of {self.path} is not trained to its end; run: mambaseg-train train {self.path} --fold {fold}"
            raise InputError(msg)
        return path


WEIGHTS_FILE = "weights.safetensors"
CHECKPOINT_FILE = "checkpoint.pt"
RECIPE_FILE = "recipe.json"
