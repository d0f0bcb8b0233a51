"""``lamost-lsf plugins``: centres and wavelength fitters, and plug-ins that cannot be used."""

from __future__ import annotations

import argparse
from typing import Any

from lamost_lsf.cli._common import print_json

__all__ = ["add_parser", "run"]

_COLUMNS = ("kind", "name", "origin", "version", "status")


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "plugins",
        help="list the centres and wavelength fitters, and broken plug-ins",
        description="List the centres and wavelength fitters that are installed, and plug-ins that cannot be used.",
        epilog="example:\n  lamost-lsf plugins --json",
    )
    parser.add_argument("--json", action="store_true", help="a JSON list of all rows and columns")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    import warnings

    from lamost_lsf.errors import PluginWarning
    from lamost_lsf.plugins import list_plugins

    with warnings.catch_warnings():
        # the table says the same, row by row
        warnings.simplefilter("ignore", PluginWarning)
        table = list_plugins()
    rows = [{name: str(row[name]) for name in table.colnames} for row in table]
    if args.json:
        print_json(rows)
        return 0
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in _COLUMNS}
    print("  ".join(name.ljust(width[name]) for name in _COLUMNS) + "  about")
    for row in rows:
        about = row["message"] or row["summary"]
        print(("  ".join(row[name].ljust(width[name]) for name in _COLUMNS) + f"  {about}").rstrip())
    return 0
