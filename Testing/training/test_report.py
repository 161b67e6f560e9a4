"""The report of two made-up models: one page, one table, one file of numbers."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from MambaSegTraining.costs.records import MacCount, Measurement, NetworkCost, write_cost
from MambaSegTraining.largest_component import choose_keep_largest
from MambaSegTraining.metrics import score_case, structures_of
from MambaSegTraining.metrics.legacy import score_case_legacy
from MambaSegTraining.report import CaseImages, Cost, ModelRun, ReportFiles, model_run, report_runs, write_report
from MambaSegTraining.report.charts import bland_altman
from MambaSegTraining.report.collect import legacy_scores
from MambaSegTraining.report.drawing import as_svg, draw_dots, new_figure
from MambaSegTraining.report.paper_table import as_markdown, paper_table
from MambaSegTraining.report.ranking import worst_first
from MambaSegTraining.run_folder import RunFolder
from MambaSegTraining.trained_recipe import describe_recipe
from MambaSegTraining.training_log import EpochRecord

from MambaSegLib.errors import InputError
from MambaSegLib.plan import Label
from MambaSegLib.volume import Geometry, Labels, Volume
from MambaSegLib.volume_io import read_labels

TABLE = (Label(1, "liver", (200, 90, 60)), Label(2, "a <b> & 'c'", (60, 120, 200)))
SHAPE = (10, 20, 24)
MATRIX = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
CASES = tuple(f"case_{number}" for number in range(8))


def labels_of(case: str, shift: int) -> Labels:
    array = np.zeros(SHAPE, np.uint8)
    number = CASES.index(case)
    array[2:6, 4:12, 4 + shift : 12 + shift] = 1
    if not (shift and number == 3):  # missed by the models
        array[6:9, 13 : 17 + number % 2, 14:20] = 2
    return Labels(array, Geometry.from_matrix(MATRIX, SHAPE), TABLE)


def images(case: str, shift: int) -> CaseImages:
    reference = labels_of(case, 0)
    voxels = np.random.default_rng(CASES.index(case)).normal(size=(1, *SHAPE)) + reference.array
    return CaseImages(Volume(voxels, reference.geometry), reference, labels_of(case, shift))


def run_of(name: str, shift: int, **changes: object) -> ModelRun:
    structures = structures_of(TABLE, {"liver": 1.5})
    pairs = [(labels_of(case, shift), labels_of(case, 0), case, k % 5) for k, case in enumerate(CASES)]
    scores = tuple(score for pair in pairs for score in score_case(*pair, structures))
    curves = tuple(EpochRecord(k, k, 1e-3, 1 / (k + 1), (), 0.5 if k % 2 else None, 1.0, 1.0, 0.1) for k in range(6))
    return replace(
        ModelRun(
            name=name,
            dataset="Phantom",
            protocol="out of fold, 5-fold cross-validation grouped by subject",
            structures=structures,
            scores=scores,
            subjects={case: case for case in CASES},
            leakage="No subject is on both sides of a fold.",
            provenance={"Hash of the folds (SHA-256)": "ab" * 32},
            curves={0: curves},
            legacy=tuple(score for pair in pairs for score in score_case_legacy(*pair, structures)),
            components=choose_keep_largest(scores, scores, [structure.name for structure in structures]),
            load_case=lambda case: images(case, shift),
        ),
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    cost = Cost(parameters=1_234_567, volume_s=2.5, hardware="one test computer")
    runs = [run_of("Good & fast", 1, cost=cost), run_of("Poor", 3, family="CNNs")]
    return write_report(runs, tmp_path_factory.mktemp("report"), "Phantoms")


class _Tags(HTMLParser):
    VOID = ("meta", "img", "br", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def parsed(report: ReportFiles) -> _Tags:
    parser = _Tags()
    parser.feed(report.html.read_text(encoding="utf-8"))
    return parser


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(report: ReportFiles, parsed: _Tags) -> None:
    assert parsed.open == []
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in parsed.addresses)
    page = report.html.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|url\((?!#)", page)
    assert len(page) < 2_000_000


def test_the_page_says_what_a_clinician_must_know(parsed: _Tags) -> None:
    text = " ".join(" ".join(parsed.text).split())
    for expected in (
        "Mean over: liver, a <b> & 'c'",  # the classes beside the mean
        "No subject is on both sides of a fold.",
        "Tolerance of the NSD: liver 1.5 mm, a <b> & 'c' 2 mm",
        "Both masks empty: left out and counted",
        "missed: a <b> & 'c'",
        "abab",
        "not a medical device",
        "one test computer",
    ):
        assert expected in text, expected


def test_every_plot_is_there_with_axes_in_units(report: ReportFiles) -> None:
    page = report.html.read_text(encoding="utf-8")
    assert page.count("<svg") == 1 + 2 + 2  # boxes; volumes and training of two models
    assert page.count("<img") == 8
    for unit in ("HD95 [mm]", "ASSD [mm]", "reference [ml]", "epoch"):
        assert unit in page


def test_figures_follow_the_colors_of_the_page(report: ReportFiles) -> None:
    page = report.html.read_text(encoding="utf-8")
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "currentColor" in svg
    assert "#111213" not in svg
    assert "#000000" not in svg
    assert not re.search(r"<g id=", svg)  # ids would repeat within the page


def test_the_numbers_are_all_in_the_json_file(report: ReportFiles) -> None:
    content = json.loads(report.json.read_text(encoding="utf-8"))
    assert [run["model"] for run in content["runs"]] == ["Good & fast", "Poor"]
    assert len(content["runs"][0]["scores"]) == 2 * len(CASES)
    assert {entry["id"] for entry in content["definitions"]} >= {"dsc-voxel-1", "legacy-hd95-voxels"}
    assert len(content["comparisons"]) == 3


def test_the_table_has_the_papers_shape(report: ReportFiles) -> None:
    lines = report.markdown.read_text(encoding="utf-8").splitlines()
    head, rows = lines[2], lines[4:6]
    assert head.startswith("| Family | Model | Phantom DSC ↑ [%] | Phantom HD95 ↓ [mm] |")
    assert rows[0].startswith("| CNNs | Poor |")
    assert rows[1].startswith("| Mamba | Good & fast | **")
    assert rows[1].endswith("| 1.23 |  |  |  |  | 2.50 |")  # parameters; not measured; a volume


def test_a_single_model_is_neither_best_nor_second() -> None:
    text = as_markdown(paper_table([run_of("Only", 1)]))
    assert "**" not in text
    assert "<u>" not in text


def test_the_means_of_the_table_are_those_of_the_scores() -> None:
    run = run_of("Only", 1, legacy=())
    dice = [score.dice for score in run.scores if score.dice is not None]
    assert f"| {100 * sum(dice) / len(dice):.2f} |" in as_markdown(paper_table([run]))


def test_cases_with_missed_structures_come_first_then_low_overlap() -> None:
    ranked = worst_first(run_of("Only", 1).scores)
    assert ranked[0].case == "case_3"
    assert ranked[0].problem == "missed: a <b> & 'c'"
    assert [entry.dice for entry in ranked[1:]] == sorted(entry.dice for entry in ranked[1:])


def test_models_that_measured_different_structures_are_not_compared(tmp_path: Path) -> None:
    other = run_of("Other", 1, structures=structures_of(TABLE, {"liver": 3.0}))
    with pytest.raises(InputError, match="different structures or tolerances"):
        write_report([run_of("One", 1), other], tmp_path)


def test_runs_without_scores_or_with_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scores"):
        write_report([run_of("One", 1, scores=())], tmp_path)
    with pytest.raises(InputError, match="different names"):
        write_report([run_of("One", 1), run_of("One", 2)], tmp_path)
    with pytest.raises(InputError, match="at least one"):
        write_report([], tmp_path)


@pytest.fixture(scope="module")
def costed_run(validated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, with what `mambaseg-train cost` writes."""
    run = tmp_path_factory.mktemp("costed") / "run"
    shutil.copytree(validated_run, run)
    measured = Measurement(
        hardware="2 cores of a test", software=(), device="cpu", threads=2, scan="numba", precision="off",
        recompute=True, batch_size=2, patch_size=(16, 16, 16), training_step_s=0.25,
        training_memory_bytes=123_000_000, tile_s=0.5, inference_memory_bytes=1, volume_shape=(18, 22, 20),
        tiles=8, repeats=3,
    )  # fmt: skip
    macs = MacCount(convolution=4_000_000_000, scan=500_000_000)
    write_cost(RunFolder(run), NetworkCost("mamba_unet_multidirectional", "Balls", (16, 16, 16), 54321, macs, measured))
    return run


def test_costs_of_a_run_stand_beside_its_scores_with_convention_and_hardware(costed_run: Path, tmp_path: Path) -> None:
    text = report_runs([costed_run], tmp_path / "report").markdown.read_text(encoding="utf-8")
    assert "Params [M] | GMACs per patch | Training memory [GB] | Training step [s] |" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| Mamba |"))
    assert row.split(" | ")[4:8] == ["0.05", "4.5", "0.12", "0.250"]
    assert row.endswith(" | 4.00 |")  # eight tiles of half a second
    assert "a multiplication with or without an addition counts once" in text
    assert "Memory, step and volume measured on" in text
    assert "2 cores of a test, off, batch 2, patch 16 x 16 x 16, Mamba layers recomputed" in text


def test_a_page_to_be_passed_on_shows_no_patient(costed_run: Path, tmp_path: Path) -> None:
    shown, hidden = (
        report_runs([costed_run], tmp_path / str(asked), pictures=asked).html.read_text(encoding="utf-8")
        for asked in (True, False)
    )
    assert "data:image/" in shown
    assert "data:image/" not in hidden
    assert "Worst cases first" in hidden


def test_the_legacy_convention_is_there_by_name_and_only_then(costed_run: Path, tmp_path: Path) -> None:
    plain, legacy = (
        report_runs([costed_run], tmp_path / str(asked), legacy=asked).markdown.read_text(encoding="utf-8")
        for asked in (False, True)
    )
    assert "legacy" not in plain
    assert "legacy HD95 ↓ [voxels]" in legacy
    scores = model_run(RunFolder(costed_run), legacy=True).legacy
    assert len(scores) == 6 * 2


def test_a_missed_structure_has_a_perfect_legacy_distance_which_is_why_it_is_not_the_default(
    costed_run: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(costed_run, run.path)
    case = run.read_fold(0).val[0]
    prediction = run.fold(0) / "validation" / f"{case}.nii.gz"
    found = read_labels(prediction)
    replace(found, array=np.zeros_like(found.array)).write(prediction)
    assert {score.hd95_voxels for score in legacy_scores(run) if score.case == case} == {0.0}


def test_a_hundred_more_cases_add_little_to_a_plot_and_each_is_a_dot() -> None:
    few, many = (
        bland_altman(run_of("Only", 1, scores=tuple(
            replace(score, case=f"{score.case}_{copy}", predicted_ml=score.predicted_ml * (1 + copy / 500))
            for copy in range(copies) for score in run_of("Only", 1).scores
        )))
        for copies in (25, 50)
    )  # fmt: skip
    assert few.count("h0") == 25 * 2 * len(CASES)
    assert many.count("h0") == 50 * 2 * len(CASES)
    assert len(many) - len(few) < 20 * 25 * 2 * len(CASES)


def test_shortened_figures_keep_every_place_to_a_tenth_of_a_point() -> None:
    figure, (axis,) = new_figure(3, 2, 1, 1)
    axis.plot([0, 1, 2], [5.0, -3.0, 4.0])
    draw_dots(axis, np.array([0.5, 1.5]), np.array([1.0, 2.0]), 2.0, "#123456", 0.5, 3)
    svg = as_svg(figure, "Lines")
    transform = axis.transData.transform
    height = 2 * 72
    for x, y in ([0, 5.0], [1, -3.0], [2, 4.0], [0.5, 1.0], [1.5, 2.0]):
        right, up = transform((x, y)) * 72 / figure.dpi
        numbers = [f"{value:.1f}".removesuffix(".0") for value in (right, height - up)]
        assert re.search(rf"[ML]{numbers[0]} {numbers[1]}(?![\d.])", svg), (x, y)
    assert svg.count("h0") == 2
    assert "font-family" not in svg


def test_each_model_says_on_which_cases_it_was_measured(tmp_path: Path) -> None:
    runs = [run_of("One", 1, protocol="out of fold <all>"), run_of("Other", 1, protocol="out of fold, fold 0 only")]
    page = write_report(runs, tmp_path).html.read_text(encoding="utf-8")
    assert "Measured: out of fold &lt;all&gt;." in page
    assert "Measured: out of fold, fold 0 only." in page


def test_people_are_counted_once_also_where_only_one_of_the_runs_knows_them(tmp_path: Path) -> None:
    people = {case: f"person {number // 2}" for number, case in enumerate(CASES)}
    runs = [run_of("One", 1), run_of("Other", 2, subjects=people)]
    content = json.loads(write_report(runs, tmp_path).json.read_text(encoding="utf-8"))
    assert {test["subjects"] for test in content["comparisons"]} == {4}


def test_measures_that_no_case_has_are_left_out_of_the_comparison(tmp_path: Path) -> None:
    """Surface distances are undefined where single slices are labelled."""
    runs = [run_of(name, shift) for name, shift in (("One", 1), ("Other", 2))]
    bare = [
        replace(run, scores=tuple(replace(score, nsd=None, hd95_mm=None, assd_mm=None) for score in run.scores))
        for run in runs
    ]
    content = json.loads(write_report(bare, tmp_path).json.read_text(encoding="utf-8"))
    assert [test["metric"] for test in content["comparisons"]] == ["dsc-voxel-1"]
    other = tuple(replace(score, case=f"other {score.case}") for score in runs[1].scores)
    with pytest.raises(InputError, match="no common case"):
        write_report([runs[0], replace(runs[1], scores=other)], tmp_path)


def test_a_recipe_that_is_not_the_runs_is_told(costed_run: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(costed_run, run.path)
    assert describe_recipe(run, range(3)) == "test"
    path = run.fold(1) / "recipe.json"
    recipe = json.loads(path.read_text())
    path.write_text(json.dumps({**recipe, "learning_rate": 0.5, "recompute": True}))
    assert describe_recipe(run, range(3)) == "test (fold 1: learning_rate 0.5 instead of 0.01)"
    assert describe_recipe(run, (0, 2)) == "test"
    assert describe_recipe(run, (1, 7)).endswith("instead of 0.01)")
