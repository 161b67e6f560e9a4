"""`mambaseg networks`: the networks that can be trained and used."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from MambaSegLib.commands.reporting import Reporter
from MambaSegLib.networks import list_networks


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("networks", help="list the networks", description="List the networks.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, reporter: Reporter) -> int:
    """Print the network table."""
    entries = list_networks()
    if arguments.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2))
        return 0
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        print(f"{entry.name:<{width}}  {entry.source}")
    return 0
