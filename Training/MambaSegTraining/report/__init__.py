"""The report of a validation: one HTML page for people, JSON with everything, Markdown with the table."""

from __future__ import annotations

from MambaSegTraining.report.collect import model_run, report_runs
from MambaSegTraining.report.records import CaseImages, Cost, ModelRun
from MambaSegTraining.report.write import ReportFiles, write_report

__all__ = ["CaseImages", "Cost", "ModelRun", "ReportFiles", "model_run", "report_runs", "write_report"]
