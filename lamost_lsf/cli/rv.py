"""``lamost-lsf rv``: radial velocities of spectra."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lamost_lsf.cli._common import (
    CommandError,
    add_template_argument,
    check_output,
    note,
    one_line,
    print_json,
    read_observed,
    read_template_arguments,
    save_figure,
    write_table,
)
from lamost_lsf.cli._lsf import LSFChoice, add_lsf_arguments

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "rv",
        help="radial velocities of spectra",
        description=(
            "Radial velocities (km/s, positive receding, in the frame of the file's wavelengths: LAMOST's are "
            "heliocentric) against templates convolved by the instrumental profile."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf rv spec.fits.gz --template models.npz --resolving-power 1800 --window 4900 5400\n"
            "  lamost-lsf rv spec-*.fits.gz -t lte05800-4.50-0.0.fits --archive models/ -o rv.ecsv --plot rv.png"
        ),
    )
    parser.add_argument("spectra", metavar="SPECTRUM", nargs="+", help="LAMOST files, or any that specutils reads")
    add_template_argument(parser)
    add_lsf_arguments(parser, labels="by default as in each spectrum's header")
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--window", metavar="W", type=float, nargs="+", action="append",
        help="LOW HIGH, or one wavelength for 150 A either side (vacuum Angstrom); may be repeated; default: all",
    )  # fmt: skip
    group.add_argument(
        "--center", metavar="NAME", help="centre of the profile at lag 0 (default: the spectrum's, else zero)"
    )
    group.add_argument(
        "--velocity-range", metavar=("LOW", "HIGH"), type=float, nargs=2, default=(-1000.0, 1000.0), help="km/s"
    )
    group.add_argument("--continuum", choices=("ratio", "normalize"), default="ratio", help="default: ratio")
    group.add_argument("--degree", type=int, help="of the continuum polynomial")
    group.add_argument("--extension", metavar="NAME", help="of medium-resolution files, e.g. COADD_R")
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="FILE", help="write the results as a table (.ecsv, .fits or .csv)")
    group.add_argument("--plot", metavar="FILE", help="plot the fit (one spectrum and window only)")
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    group.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    from astropy.table import vstack

    for path in (args.output, args.plot):
        check_output(path, args.overwrite)
    windows = args.window or [None]
    if any(window is not None and len(window) > 2 for window in windows):
        raise CommandError("--window takes one wavelength or two; repeat it for several windows")
    if args.plot and len(args.spectra) * len(windows) > 1:
        raise CommandError("--plot draws one spectrum and one window")
    templates = read_template_arguments(args.templates)
    choice = LSFChoice(args)
    results, failed = [], []
    for path in args.spectra:
        try:
            results += [(path, *_measure(path, choice, templates, window, args)) for window in windows]
        except Exception as error:
            # one bad file must not cost the others their results; a single one is an error like any
            if len(args.spectra) == 1 or args.debug:
                raise
            failed.append({"file": path, "error": one_line(error)})
            print(f"lamost-lsf rv: error: {one_line(error)}", file=sys.stderr)
    rows = [{"file": path, **_row(result)} for path, result, _ in results]
    if args.output and results:
        table = vstack([result.to_row().table for _, result, _ in results], metadata_conflicts="silent")
        table.add_column([path for path, _, _ in results], name="file", index=0)
        write_table(table, args.output, overwrite=args.overwrite)
        note(f"wrote {args.output}")
    if args.plot and results:
        from lamost_lsf.plots import plot_rv_summary

        _, result, lsf = results[0]
        save_figure(plot_rv_summary(result, lsf), args.plot, overwrite=args.overwrite)
        note(f"wrote {args.plot}")
    if args.json:
        print_json(rows + failed)
    else:
        _print(rows)
    return 1 if failed else 0


def _measure(
    path: str, choice: LSFChoice, templates: list[Any], window: list[float] | None, args: Any
) -> tuple[Any, Any]:
    import astropy.units as u

    from lamost_lsf.rv import measure_rv

    spectrum = read_observed(path, args.extension)
    lsf = choice.lsf(spectrum.meta)
    limits = None
    if window is not None:
        limits = window[0] * u.AA if len(window) == 1 else window * u.AA
    result = measure_rv(
        spectrum, templates, lsf, center=args.center, window=limits, velocity_range=tuple(args.velocity_range),
        continuum=args.continuum, degree=args.degree,
    )  # fmt: skip
    return result, lsf


def _row(result: Any) -> dict[str, Any]:
    row = result.to_row()
    return {name: getattr(row[name], "value", row[name]) for name in row.colnames}


def _print(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    width = max(len("file"), *(len(_short(row["file"])) for row in rows))
    print(f"{'file':{width}}  {'window':>13}  {'RV km/s':>9}  {'error':>7}  {'chi2/dof':>8}  template")
    for row in rows:
        window = f"{row['window_low']:.0f}-{row['window_high']:.0f}"
        text = f"{_short(row['file']):{width}}  {window:>13}  {row['rv']:9.3f}  {row['rv_err']:7.3f}"
        text += f"  {row['chi2_reduced']:8.2f}  {row['template']}"
        if row["reasons"]:
            text += f"  [{row['reasons']}]"
        print(text)


def _short(path: str) -> str:
    return path if len(path) <= 48 else "..." + path[-45:]
