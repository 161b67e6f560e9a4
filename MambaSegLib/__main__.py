"""The `mambaseg` command, also `python -m MambaSegLib`.

Exit codes: 0 done, 2 bad input or usage, 3 environment (a package, a device, memory or disk space is missing),
130 cancelled, 1 a defect of the program. What `--events` writes is described in `commands/reporting.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from MambaSegLib import __version__
from MambaSegLib.commands import batch, doctor, models, networks, remote, remote_job, segment, view
from MambaSegLib.commands.failures import guarded
from MambaSegLib.commands.parsing import Parser
from MambaSegLib.commands.reporting import Reporter, open_missing_streams, reporter
from MambaSegLib.idle_threads import let_idle_threads_sleep

_DESCRIPTION = """3D medical image segmentation with Mamba U-Nets.
For research only. Not a medical device. Not for clinical use."""


def build_parser() -> Parser:
    """The whole command line; needs no heavy package."""
    parser = Parser(prog="mambaseg", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"mambaseg {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for command in (segment, batch, view, models, networks, doctor, remote, remote_job):
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    let_idle_threads_sleep()
    open_missing_streams()
    # Known before the line is parsed, so that usage errors are events as well.
    with reporter(events="--events" in words, verbose="--verbose" in words) as chosen:
        return guarded(lambda: _run(words, chosen), chosen)


def _run(words: Sequence[str], chosen: Reporter) -> int:
    parsed = build_parser().parse_args(words)
    code: int = parsed.run(parsed, chosen)
    return code


if __name__ == "__main__":
    sys.exit(main())
