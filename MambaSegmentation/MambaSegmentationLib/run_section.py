"""Part of the window: how far the work is, what to know about it, and the log."""

from __future__ import annotations

from html import escape
from typing import Any

import qt

from MambaSegLib.commands.reporting import duration, progress_line
from MambaSegmentationLib.batch_run import BatchRun
from MambaSegmentationLib.job import Job
from MambaSegmentationLib.translation import tr as _


class RunSection:
    """Progress bar, status, notices and log."""

    def __init__(self, ui: Any) -> None:
        """Nothing runs."""
        self._ui = ui
        self._logged = 0
        ui.progressBar.setVisible(False)
        ui.warningLabel.setVisible(False)
        ui.copyLogButton.clicked.connect(lambda *_: self._copy())

    def clear(self) -> None:
        """Before another run."""
        self._logged = 0
        self._ui.logText.clear()
        self._ui.progressBar.setValue(0)
        self.warn([])

    def say(self, text: str) -> None:
        """Show one sentence."""
        self._ui.statusLabel.setText(text)

    def write(self, text: str) -> None:
        """Add to the log."""
        self._ui.logText.appendPlainText(text)

    def warn(self, notices: list[str]) -> None:
        """Show what the person should know before trusting the result."""
        self._ui.warningLabel.setText("<br>".join(f"<b>{_('Notice:')}</b> {escape(notice)}" for notice in notices))
        self._ui.warningLabel.setVisible(bool(notices))

    def follow(self, job: Job) -> None:
        """Show how far a job is and what it has said since the last time."""
        self._ui.progressBar.setVisible(True)
        for line in job.log[self._logged :]:
            self.write(line)
        self._logged = len(job.log)
        self._ui.progressBar.setValue(int(100 * job.fraction))
        self.say(statusLine(job))
        self.warn(job.notices)

    def end(self, text: str, *, done: bool) -> None:
        """Show how a job has ended."""
        self._ui.progressBar.setValue(100 if done else 0)
        self._ui.progressBar.setVisible(False)
        self.say(text)

    def _copy(self) -> None:
        qt.QApplication.clipboard().setText(self._ui.logText.property("plainText"))


def statusLine(job: Job) -> str:
    """E.g. "Predicting 25 % (1 of 4), about 10 s left", in a batch "patient_3: Predicting (2 of 30), about 5 min left"."""
    if not isinstance(job, BatchRun) or not job.cases:
        return progress_line(job.progress)
    left = _(", about {time} left").format(time=duration(job.secondsLeft)) if job.secondsLeft is not None else ""
    place = _("({number} of {count})").format(number=min(len(job.outcomes) + 1, job.cases), count=job.cases)
    return f"{job.progress.stage} {place}{left}"
