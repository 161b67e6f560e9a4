"""What one can watch while a fold trains: pictures, curves, the time left."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from MambaSegTraining import clock
from MambaSegTraining.__main__ import main
from MambaSegTraining.batches import Batch
from MambaSegTraining.board import FOLDER, Board
from MambaSegTraining.commands.bars import step_bar
from MambaSegTraining.fold_training import FoldJob, train_fold
from MambaSegTraining.pictures import draw_predictions, fullest_slice, overlay
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.training_log import EpochRecord, TrainingLog

from MambaSegLib.errors import EnvironmentProblemError
from MambaSegLib.progress import Progress


@pytest.fixture
def run(planned_run):
    assert main(["preprocess", str(planned_run), "--workers", "0"]) == 0
    return RunFolder(planned_run)


def test_a_picture_is_drawn_every_so_many_epochs(run):
    from matplotlib.image import imread

    recipe = replace(run.read_settings().recipe, epochs=3, iterations_per_epoch=1, picture_every=2)
    assert train_fold(FoldJob(run, 0, recipe, workers=0))
    pictures = sorted((run.fold(0) / "pictures").iterdir())
    assert [path.name for path in pictures] == ["epoch_0002.png"]
    picture = imread(pictures[0])[..., :3]
    assert (picture.max(axis=-1) - picture.min(axis=-1)).max() > 0.1, "the labels are in color"


def test_no_picture_is_drawn_where_none_is_wanted(run):
    recipe = replace(run.read_settings().recipe, epochs=1, iterations_per_epoch=1, picture_every=0)
    assert train_fold(FoldJob(run, 0, recipe, workers=0))
    assert not (run.fold(0) / "pictures").exists()


def test_pictures_show_the_slice_with_most_structure():
    labels = np.zeros((5, 4, 4), dtype=np.int16)
    assert fullest_slice(labels) == 2
    labels[1, 0, 0] = labels[3, :2, 0] = 1
    assert fullest_slice(labels) == 3


def test_labels_lie_in_color_over_gray():
    shown = overlay(np.array([[0.0, 1.0]]), np.array([[0, 2]]), {2: (0, 255, 0)})
    assert shown[0, 0].tolist() == [0, 0, 0]
    red, green, blue = shown[0, 1].tolist()
    assert (red, blue) == (115, 115)  # 255 x (1 - 0.55)
    assert green == 255


def test_a_case_without_contrast_is_drawn(tmp_path, run):
    image, labels = np.zeros((1, 1, 2, 4, 4), dtype=np.float32), np.zeros((1, 2, 4, 4), dtype=np.int16)
    draw_predictions(tmp_path / "a" / "b.png", "title", image, labels, labels, run.read_plan())
    assert (tmp_path / "a" / "b.png").stat().st_size > 1000


def _record(epoch):
    return EpochRecord(epoch, epoch + 1, 1e-3, 0.5, (0.8, 0.6), 0.7, 1.0, 2.0, 0.0)


def test_tensorboard_gets_a_point_per_epoch_and_curve(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is optional")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its protocol buffers
        board = Board(tmp_path, ["ball", "core"], first_step=1)
        for epoch in range(2):
            board.add(_record(epoch))
        board.close()
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    assert {"loss/train", "patch Dice/mean", "patch Dice/ball", "patch Dice/core"} <= set(events.Tags()["scalars"])
    assert [(point.step, point.value) for point in events.Scalars("patch Dice/core")] == [
        (1, pytest.approx(0.6)),
        (2, pytest.approx(0.6)),
    ]


def test_tensorboard_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(EnvironmentProblemError, match="pip install tensorboard"):
        Board(tmp_path, [], 0)


def test_the_bar_of_a_continued_training_does_not_count_what_was_done_before(monkeypatch):
    import tqdm

    bars = []

    class Watched(tqdm.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "disable": False})
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Watched)
    with step_bar("Fold 0", 1000, shown=True) as note:
        note(Progress("Training", 901, 1000))
        note(Progress("Training", 902, 1000))
        assert (bars[0].initial, bars[0].n) == (900, 902)


def test_the_share_of_time_spent_waiting_for_batches_is_what_was_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seconds for each batch and one for each step, by a clock that only these move; then none for the batches."""
    now = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    watch = clock.Clock(None, 10)

    def batches(count: int, seconds: float) -> Iterator[Batch]:
        for _ in range(count):
            now[0] += seconds
            yield Batch(torch.empty(0), torch.empty(0))

    for each, share in ((3.0, 0.75), (0.0, 0.0)):
        for _ in watch.waiting_for(batches(4, each)):
            now[0] += 1
        assert watch.finish_epoch() == (4 * (each + 1), share)


def test_a_structure_that_no_patch_holds_has_no_dice_instead_of_0(tmp_path: Path) -> None:
    record = EpochRecord(0, 5, 1e-3, 0.5, (None, 0.5), 0.5, 1.0, 2.0, 0.1)
    TrainingLog(tmp_path, ("rare", "usual"), keep_epochs=0).add(record)
    head, row = (tmp_path / "log.csv").read_text().splitlines()
    assert head.endswith(",patch_dice_rare,patch_dice_usual")
    assert row.endswith(",,0.5")
    assert TrainingLog(tmp_path, ("rare", "usual"), keep_epochs=1).records == [record]
