"""``lamost-lsf rvs``: radial velocities of any number of files, on one machine or a cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lamost_lsf.cli._common import CommandError, add_template_argument, note, print_json, read_template_arguments
from lamost_lsf.cli._lsf import LSFChoice, add_lsf_arguments
from lamost_lsf.cli._progress import _bar_class

__all__ = ["add_parser", "run"]

_EVERY_S = 10.0
#: What messages of the library tell a script to pass, and what it is called here.
_OPTIONS = {"root=": "--root", "column=": "--column"}


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "rvs",
        help="radial velocities of surveys",
        description=(
            "Radial velocities of any number of files, as a folder of Parquet files with one row for each spectrum and "
            "window; a file that cannot be read or measured is a row with the reason. A run that was interrupted, even "
            "killed, is taken up by repeating the command: only what is missing is measured. Needs pyarrow, and dask "
            "for --workers and --scheduler (pip install 'lamost-lsf[dask]')."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf rvs 'dr10/**/*.fits.gz' -o rv -t templates.npz --archive models/ --window segments\n"
            "  lamost-lsf rvs --manifest dr10.csv -o rv -t models.npz --archive models/ --workers 16 --table rv.fits\n"
            "  lamost-lsf rvs --manifest dr10.parquet --column combined_file -o rv -t models.npz --archive models/ \\\n"
            "      --scheduler tcp://node1:8786"
        ),
    )
    parser.add_argument("spectra", metavar="SPECTRUM", nargs="*", help="files, folders, or quoted patterns (*, ?, **)")
    parser.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="folder of results, made where it is missing"
    )
    add_template_argument(parser)
    add_lsf_arguments(parser, labels="by default as in each spectrum's header")
    group = parser.add_argument_group("manifest")
    group.add_argument("--manifest", metavar="FILE", help="table of paths: .ecsv, .csv, .fits, .parquet, or .txt")
    group.add_argument("--column", metavar="NAME", help="its column of paths (default: path, file or filename)")
    group.add_argument("--root", metavar="DIR", help="folder of its relative paths (default: the manifest's own)")
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--window", metavar="W", nargs="+", action="append",
        help=(
            "LOW HIGH, or one wavelength for 150 A either side (vacuum Angstrom), or blue, red, arms, segments; may be "
            "repeated; default: all of each spectrum"
        ),
    )  # fmt: skip
    group.add_argument(
        "--center", metavar="NAME", help="centre of the profile at lag 0 (default: the spectrum's, else zero)"
    )
    group.add_argument(
        "--velocity-range", metavar=("LOW", "HIGH"), type=float, nargs=2, default=(-1000.0, 1000.0), help="km/s"
    )
    group.add_argument("--continuum", choices=("ratio", "normalize"), default="ratio", help="default: ratio")
    group.add_argument("--degree", type=int, help="of the continuum polynomial")
    group.add_argument("--frame", choices=("heliocentric", "barycentric", "topocentric"), help="of the velocities")
    group.add_argument("--mask", choices=("and", "or", "ivar"), default="and", help="of the files (default: and)")
    group.add_argument("--extension", metavar="NAME", help="of medium-resolution files, e.g. COADD_R")
    group = parser.add_argument_group("where and how")
    group.add_argument("--workers", metavar="N", type=int, help="so many processes on this machine")
    group.add_argument("--scheduler", metavar="ADDRESS", help="Dask scheduler, of a cluster that runs")
    group.add_argument("--chunk", metavar="N", type=int, default=1000, help="spectra in a file of results (1000)")
    group.add_argument("--read-threads", metavar="N", type=int, default=1, help="of each worker, that read ahead (1)")
    group = parser.add_argument_group("output")
    group.add_argument("--table", metavar="FILE", help="all rows as one table, too (.ecsv, .csv or .fits)")
    group.add_argument("--overwrite", action="store_true", help="replace results of other settings, and the table")
    group.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


class _LSFOfMeta:
    """LSF of a spectrum by its header and the options; pickles, and says what it is."""

    def __init__(self, choice: LSFChoice) -> None:
        self._choice = choice

    def __call__(self, meta: Mapping[str, Any]) -> Any:
        return self._choice.lsf(meta)

    def lsfs_for(self, metas: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Of many spectra, or what was wrong: an archive's in one go where no option overrides the headers."""
        choice, args = self._choice, self._choice._args
        given = args.time, args.fiber, args.spectrograph, choice._extra, choice._model
        if choice._archive is not None and all(x is None or x == [] for x in given):
            return choice._archive.lsfs_for(metas, extrapolate=args.extrapolate)
        out: list[Any] = []
        for meta in metas:
            try:
                out.append(choice.lsf(meta))
            except Exception as error:  # a header holds whatever it likes
                out.append(error)
        return out

    def identity(self) -> dict[str, Any]:
        """Model and labels, by content."""
        from lamost_lsf.batch.identity import describe_lsf, file_digest

        args = self._choice._args
        if args.model:
            model: Any = file_digest(Path(args.model))
        else:
            model = describe_lsf(self._choice._archive)
        return {
            "model": model,
            "time": None if args.time is None else [time.isot for time in args.time],
            "fiber": args.fiber, "spectrograph": args.spectrograph, "extrapolate": args.extrapolate,
            "labels": [list(pair) for pair in args.label],
        }  # fmt: skip


class _Progress:
    """Bar with rate and remaining time on a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._began = self._last = time.monotonic()
        self._before = 0

    def __call__(self, done: int, total: int, flagged: int) -> None:
        now = time.monotonic()
        if self._bar is None:
            tqdm = _bar_class()
            self._before = done
            self._bar = tqdm(total=total, initial=done, unit=" spectra", file=sys.stderr) if tqdm else False
        if self._bar:
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix_str(f"{flagged} flagged")
        elif now - self._last > _EVERY_S:
            self._last = now
            rate = (done - self._before) / (now - self._began)
            note(f"{done} of {total} spectra, {flagged} flagged, {rate:.0f}/s, {_remaining(total - done, rate)}")

    def close(self) -> None:
        if self._bar:
            self._bar.close()


def _remaining(number: int, rate: float) -> str:
    if not rate:
        return "remaining time unknown"
    minutes, seconds = divmod(round(number / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d} to go"


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    import astropy.units as u

    from lamost_lsf.batch import measure_survey

    if bool(args.spectra) == bool(args.manifest):
        raise CommandError("give files, folders or patterns, or --manifest")
    if not args.manifest and (args.column or args.root):
        raise CommandError("--column and --root go with --manifest")
    templates = read_template_arguments(args.templates)
    choice = LSFChoice(args)
    lsf = choice.lsf() if args.resolving_power is not None else _LSFOfMeta(choice)
    progress = _Progress()
    try:
        summary = measure_survey(
            args.spectra, args.output, templates, lsf, manifest=args.manifest, column=args.column, root=args.root,
            table=args.table, scheduler=args.scheduler, workers=args.workers, chunk=args.chunk,
            read_threads=args.read_threads, overwrite=args.overwrite, progress=progress,
            windows=_windows(args.window), center=args.center,
            velocity_range=tuple(args.velocity_range) * u.km / u.s, continuum=args.continuum, degree=args.degree,
            frame=args.frame, mask=args.mask, extension=args.extension,
        )  # fmt: skip
    except (ImportError, ValueError) as error:
        text = str(error)
        for argument, option in _OPTIONS.items():
            text = text.replace(argument, option)
        raise CommandError(text) from error
    finally:
        progress.close()
    if args.json:
        print_json(
            {
                "spectra": summary.n_spectra, "before": summary.n_before, "measured": summary.n_measured,
                "flagged": summary.n_flagged, "rows": summary.n_rows, "seconds": summary.seconds, "rate": summary.rate,
                "waited": summary.waited, "memory": max(summary.memory.values()), "folder": str(summary.folder),
            }
        )  # fmt: skip
        return 0
    note(
        f"{summary.n_spectra} spectra: {summary.n_before} before, {summary.n_measured} now "
        f"({summary.n_flagged} flagged), {summary.seconds:.1f} s, {summary.rate:.0f}/s"
    )
    note(f"wrote {summary.folder}" + (f" and {args.table}" if args.table else ""))
    return 0


def _windows(groups: list[list[str]] | None) -> Any:
    """What `measure_rvs` takes as windows."""
    import astropy.units as u

    if groups is None:
        return None
    windows: list[Any] = []
    for group in groups:
        if len(group) > 2:
            raise CommandError("--window takes one wavelength, two, or a name; repeat it for several windows")
        try:
            numbers = [float(text) for text in group]
        except ValueError:
            if len(group) > 1:
                raise CommandError(f"--window {' '.join(group)}: neither two wavelengths nor a name") from None
            windows.append(group[0])
            continue
        windows.append(numbers[0] * u.AA if len(numbers) == 1 else numbers * u.AA)
    return windows[0] if len(windows) == 1 else windows
