"""The command ``lamost-lsf``: one module for each sub-command, and what they share in `_common` and `_lsf`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from lamost_lsf.cli import (
    calibrate,
    convolve,
    demo,
    evaluate,
    experiment,
    extract,
    flatfield,
    plugins,
    profile,
    rv,
    sed,
    simulate,
    survey,
    train,
)
from lamost_lsf.cli._common import CommandError, one_line

__all__ = ["build_parser", "main"]

#: What messages of the library tell a script to pass, and what it is called here.
_OPTIONS = {
    "extrapolate=True": "--extrapolate",
    "overwrite=True": "--overwrite",
    "by member=": "as FILE::MEMBER",
    "by read_template": "as FILE::MEMBER",
    "window=": "--window",
    "velocity_range=": "--velocity-range",
    "wavelength_range=": "--range",
    "dispersion_range=": "--dispersion",
    "rough=": "--rough",
}

_COMMANDS = (
    demo,
    rv,
    survey,
    convolve,
    profile,
    calibrate,
    plugins,
    simulate,
    extract,
    train,
    evaluate,
    experiment,
    sed,
    flatfield,
)


class _Parser(argparse.ArgumentParser):
    """Usage errors in one line, with where to find help, instead of the whole usage."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command and its sub-commands.

    Examples
    --------
    >>> build_parser().parse_args(["plugins", "--json"]).json
    True
    """
    from lamost_lsf import __version__

    parser = _Parser(
        prog="lamost-lsf",
        description="LAMOST's instrumental profile: models, convolution, radial velocities.",
        epilog="lamost-lsf COMMAND --help explains a command and has an example.",
    )
    parser.add_argument("--version", action="version", version=f"lamost-lsf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for module in _COMMANDS:
        sub = module.add_parser(commands)
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=module.run)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    print(f"lamost-lsf: warning: {one_line(message)}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lamost-lsf``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the name of the command; those of the process by default.

    Returns
    -------
    int
        0; 1 after an error, which is one line on stderr; 2 for wrong usage.

    Examples
    --------
    >>> main(["plugins", "--json"])                       # doctest: +ELLIPSIS
    [...
    0
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed what there is to say
        return int(stop.code or 0)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                # once each, and nothing about deprecated calls inside libraries
                warnings.simplefilter("default")
                for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                    warnings.simplefilter("ignore", category)
            warnings.showwarning = _show_warning
            code = int(args.run(args) or 0)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # the reader (head, less) has seen enough; what is left in the buffer must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("lamost-lsf: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"lamost-lsf {args.command}: error: {_explain(error)}", file=sys.stderr)
        return 1


def _explain(error: Exception) -> str:
    """One line for the user: the message of an expected error, with the type of any other."""
    expected = (CommandError, OSError, ValueError, TypeError, LookupError)
    # a KeyError shows its key's repr, which says nothing by itself
    if isinstance(error, expected) and type(error) is not KeyError and str(error):
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            return f"{error.filename}: {error.strerror}"
        message = one_line(error)
        for argument, option in _OPTIONS.items():
            message = message.replace(argument, option)
        return message
    return f"{type(error).__name__}: {one_line(error)} (unexpected; --debug shows where)"
