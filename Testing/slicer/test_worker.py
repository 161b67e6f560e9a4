"""Worker processes: what they say, how they end, and that nothing of them is left."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from MambaSegmentationLib.worker import Worker, libraryCommand, libraryEnvironment

posix = pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")


def python(source):
    return [sys.executable, "-u", "-c", source]


def test_events_and_other_lines_are_told_apart():
    heard, said = [], []
    source = """if True:
        import sys
        print('{"event": "progress", "stage": "Predicting", "done": 1, "total": 2}')
        print("a library printed this")
        print('{"event": "result", "output": "a.seg.nrrd"}')
        print("to stderr", file=sys.stderr)
    """
    worker = Worker(python(source), onEvent=heard.append, onLog=said.append)
    assert worker.wait(30)
    assert [event["event"] for event in heard] == ["progress", "result"]
    assert worker.result["output"] == "a.seg.nrrd"
    assert sorted(said) == ["a library printed this", "to stderr"]
    assert worker.failure() == ""


def test_an_error_event_is_the_cause():
    source = """if True:
        import sys
        print('{"event": "error", "code": 3, "kind": "EnvironmentProblemError", "message": "Not enough memory."}')
        sys.exit(3)
    """
    worker = Worker(python(source))
    assert worker.wait(30)
    assert (worker.returnCode, worker.failure()) == (3, "Not enough memory.")


@posix
def test_a_crash_is_told_with_the_last_lines():
    worker = Worker(python("import os, sys; print('loading', file=sys.stderr); os.kill(os.getpid(), 11)"))
    assert worker.wait(30)
    assert "signal 11" in worker.failure()
    assert "loading" in worker.failure()


@posix
def test_a_killed_process_is_suspected_to_have_run_out_of_memory():
    worker = Worker(python("import os; os.kill(os.getpid(), 9)"))
    assert worker.wait(30)
    assert "run out of memory" in worker.failure()


@posix
@pytest.mark.parametrize("deaf", [False, True])
def test_cancelling_ends_the_process_and_its_children_within_two_seconds(deaf):
    """Even if they ignore the request to end."""
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
    child = f"{ignore}import time; print('child', flush=True); time.sleep(600)"
    source = f"{ignore}import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid); p.wait()"
    worker = Worker(python(source))
    end = time.monotonic() + 30
    while len(worker.log) < 2 and time.monotonic() < end:
        worker.poll()
        time.sleep(0.01)
    child_pid = next(int(line) for line in worker.log if line.isdigit())
    start = time.monotonic()
    worker.cancel()
    assert worker.wait(30)
    assert time.monotonic() - start < 2.0
    assert worker.cancelled
    assert not is_running(worker.pid)
    assert not is_running(child_pid)


def is_running(pid):
    end = time.monotonic() + 1  # an orphan's end is noticed by the system's first process a moment later
    while time.monotonic() < end:
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
        if not state.strip() or state.startswith("Z"):
            return False
        time.sleep(0.05)
    return True


@posix
def test_a_child_that_outlives_its_parent_does_not_keep_us_waiting():
    source = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    worker = Worker(python(source))
    assert worker.wait(30)
    assert worker.returnCode == 0


def test_cancelling_twice_or_after_the_end_does_nothing():
    worker = Worker(python("pass"))
    assert worker.wait(30)
    worker.cancel()
    assert not worker.cancelled
    assert worker.poll()


def test_a_program_that_does_not_exist_is_an_os_error():
    with pytest.raises(OSError, match="no-such-program"):
        Worker(["/no-such-program"])


def test_the_library_is_found_from_any_folder(tmp_path):
    environment = libraryEnvironment()
    command = libraryCommand("--version")
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("mambaseg "), result.stderr
