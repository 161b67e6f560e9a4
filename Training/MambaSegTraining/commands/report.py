"""`mambaseg-train report`: validated runs as one page for people, one JSON file and one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from MambaSegTraining.commands import AddStep


def add_report(step: AddStep) -> None:
    """Add the step."""
    report = step("report", run_report, "Report validated runs: HTML, JSON and a table; compares runs of one data set.")
    report.add_argument("run_dir", type=Path, nargs="+", help="folders of the runs, validated")
    report.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")
    report.add_argument("--name", action="append", default=[], help="what to call a run (once per run, in order)")
    report.add_argument(
        "--legacy", action="store_true", help="add DSC and HD95 by the convention of the 2025 paper's scripts (voxels)"
    )
    report.add_argument(
        "--no-pictures", action="store_true", help="show no slices of patients, for passing the page on"
    )
    report.add_argument("--title", default="", help="title of the page")


def run_report(options: argparse.Namespace) -> int:
    """Step `report`."""
    from MambaSegTraining.report import report_runs

    files = report_runs(
        options.run_dir,
        options.output,
        options.name,
        options.title,
        legacy=options.legacy,
        pictures=not options.no_pictures,
    )
    print(f"{files.html}\n{files.json}\n{files.markdown}")
    return 0
