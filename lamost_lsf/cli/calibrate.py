"""``lamost-lsf calibrate``: a wavelength solution from an arc and a line list."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np

from lamost_lsf.cli._common import CommandError, check_output, note, one_line, print_json, write_table

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "calibrate",
        help="wavelength solution from an arc",
        description=(
            "Find a lamp's lines in an arc spectrum, centre them by one definition, and fit the wavelength scale. The "
            "arc is an exposure of many fibres (FITS, as ArcExposure.write and `simulate` make them), a spectrum that "
            "specutils opens, or a text file of counts (one column, or pixel and counts). Without a rough scale lines "
            "are identified by their pattern."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf calibrate arc.fits --lines lamost-lrs-red --center half --output calibrated.fits\n"
            "  lamost-lsf calibrate arc.txt --lines NeI.dat ArI.dat --degree auto --output arc.ecsv\n"
            "  lamost-lsf calibrate arc.txt --lines lamp.csv --range 5000 10000 --json"
        ),
    )
    parser.add_argument("arc", metavar="ARC", help="arc exposure, spectrum, or text file of counts")
    parser.add_argument(
        "-l", "--lines", metavar="LIST", nargs="+", required=True, help="line lists (files), or names of instruments"
    )
    parser.add_argument("--medium", choices=("air", "vacuum"), help="of the lists' wavelengths, where they do not say")
    parser.add_argument("--center", metavar="NAME", default="half", help="centre of a line (default: half)")
    parser.add_argument("--fitter", metavar="NAME", default="legendre", help="wavelength fitter (default: legendre)")
    parser.add_argument("--degree", metavar="N", default="5", help="degree of the curve, or auto (default: 5)")
    parser.add_argument("--rough", metavar="FILE", help="rough wavelength solution (.asdf or .ecsv)")
    parser.add_argument("--blind", action="store_true", help="take no notice of the wavelengths that the arc carries")
    parser.add_argument(
        "--range", metavar=("LOW", "HIGH"), type=float, nargs=2, help="vacuum Angstrom that the arc does not exceed"
    )
    parser.add_argument(
        "--dispersion", metavar=("LEAST", "MOST"), type=float, nargs=2, help="Angstrom per pixel, for identification"
    )
    parser.add_argument("--min-snr", metavar="X", type=float, default=8.0, help="least signal-to-noise ratio of a line")
    parser.add_argument("--keep-blends", action="store_true", help="use lines that the list says are blended")
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="solution (.asdf, .ecsv); for an exposure, itself on the new scale (.fits) or a table of fibres (.ecsv)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    from lamost_lsf.calibration import ExposureCalibration, calibrate
    from lamost_lsf.wavelength import WavelengthSolution

    check_output(args.output, args.overwrite)
    if not Path(args.arc).is_file():
        raise CommandError(f"no such file: {args.arc}")
    degree = args.degree.lower()
    if degree != "auto":
        try:
            degree = int(degree)
        except ValueError:
            raise CommandError(f"--degree must be a whole number or auto, got {args.degree}") from None
    lines = _read_lines(args.lines, args.medium)
    arc = _read_arc(args.arc, args.blind)
    exposure = arc if hasattr(arc, "fiber") else None
    suffix = Path(args.output).suffix.lower() if args.output else ""
    allowed = (".fits", ".ecsv") if exposure is not None else (".asdf", ".ecsv")
    if args.output and suffix not in allowed:
        kind = "an exposure" if exposure is not None else "a spectrum"
        raise CommandError(f"{args.output}: what comes of {kind} is written as {' or '.join(allowed)}")
    result = calibrate(
        exposure.flux if exposure is not None and args.blind else arc,
        lines,
        center=args.center,
        fitter=args.fitter,
        degree=degree,
        rough=None if args.rough is None else WavelengthSolution.read(args.rough),
        ivar=exposure.ivar if exposure is not None and args.blind else None,
        wavelength_range=None if args.range is None else np.array(args.range) * u.AA,
        dispersion_range=None if args.dispersion is None else np.array(args.dispersion) * u.AA / u.pix,
        min_snr=args.min_snr,
        blends="keep" if args.keep_blends else "reject",
    )
    if isinstance(result, ExposureCalibration):
        if suffix == ".fits":
            _numbered(result, exposure).apply(exposure).write(args.output, overwrite=args.overwrite)
        elif args.output:
            write_table(_plain_table(result), args.output, overwrite=args.overwrite)
        summary = _summary_exposure(result)
        _print(args, summary, repr(result))
        return 0 if any(s is not None for s in result) else 1
    if args.output:
        result.write(args.output, overwrite=args.overwrite)
    _print(args, _summary(result), _text(result))
    return 0


def _read_lines(names: list[str], medium: str | None) -> Any:
    from lamost_lsf.instruments import get_instrument
    from lamost_lsf.lines import LineList

    lists = []
    for name in names:
        if Path(name).is_file():
            try:
                lists.append(LineList.read(name, medium=medium))
            except ValueError as error:
                raise CommandError(one_line(error).replace("medium=", "--medium ")) from None
        else:
            try:
                lists.append(get_instrument(name).lines)
            except LookupError:
                raise CommandError(f"{name} is neither a file nor the name of an instrument") from None
    if len(lists) == 1:
        return lists[0]
    parts = {key: np.concatenate([getattr(one, key) for one in lists]) for key in ("species", "intensity", "blend")}
    return LineList.from_wavelengths(
        np.concatenate([one.vacuum for one in lists]) * u.AA, medium="vacuum", name=" + ".join(names), **parts
    )


def _read_arc(path: str, blind: bool) -> Any:
    """Exposure, spectrum, or counts."""
    from lamost_lsf.arcs import ArcExposure
    from lamost_lsf.errors import FormatError

    if Path(path).suffix.lower() in (".txt", ".csv", ".dat"):
        text = Path(path).read_text(encoding="utf-8")
        comma = "," if "," in text else None
        try:
            table = np.loadtxt(text.splitlines(), delimiter=comma, ndmin=2)
        except ValueError as error:
            raise FormatError(f"{path}: no table of numbers: {one_line(error)}") from None
        if table.shape[1] > 2 or (table.shape[1] == 2 and not np.array_equal(table[:, 0], np.arange(len(table)))):
            raise FormatError(f"{path}: a column of counts, or two of pixels (0, 1, 2, ...) and counts, are expected")
        return table[:, -1]
    try:
        return ArcExposure.read(path)
    except FormatError:
        from lamost_lsf.cli._common import read_observed

        spectrum = read_observed(path)
        return spectrum.flux if blind else spectrum


def _numbered(result: Any, exposure: Any) -> Any:
    """Calibration with the exposure's fibre numbers, which a bare array does not have."""
    from dataclasses import replace

    return result if np.array_equal(result.fiber, exposure.fiber) else replace(result, fiber=exposure.fiber)


def _summary(solution: Any) -> dict[str, Any]:
    row = solution.to_row()
    facts = dict(solution.provenance.get("calibration") or {})
    lines = [
        {
            "species": str(line["label"]), "wavelength": float(line["wavelength"].value), "pixel": float(line["pixel"]),
            "residual": float(line["residual"].value), "used": bool(line["used"]), "reason": str(line["reason"]),
        }
        for line in solution.lines
    ]  # fmt: skip
    names = [n for n in row.colnames if n not in ("medium",)]
    values = {n: (row[n].value if isinstance(row[n], u.Quantity) else row[n]) for n in names}
    return {**values, "medium": "vacuum", **facts, "lines": lines}


def _summary_exposure(result: Any) -> dict[str, Any]:
    from lamost_lsf.calibration import CalibrationFlag

    table = _plain_table(result)
    fibers = [
        {name: (v.item() if isinstance(v, np.generic) else v) for name, v in zip(table.colnames, row, strict=True)}
        for row in table
    ]
    for fiber in fibers:
        fiber["flags"] = [f.name for f in CalibrationFlag if fiber["flag"] & f]
    return {
        "center": result.center, "n_fiber": len(result), "n_solved": sum(s is not None for s in result),
        "n_flagged": int(np.count_nonzero(result.flag)), "fibers": fibers,
    }  # fmt: skip


def _plain_table(result: Any) -> Any:
    from astropy.table import Table

    table = result.to_table()
    return Table({n: (table[n].value if isinstance(table[n], u.Quantity) else table[n]) for n in table.colnames})


def _text(solution: Any) -> str:
    facts = solution.provenance["calibration"]
    rejected = "; ".join(
        f"{line['label']} {line['wavelength'].value:.2f}: {line['reason']}".strip() for line in solution.rejected
    )
    left = ", ".join(f"{k}: {v:.3f}" for k, v in facts["leave_one_out"].items())
    return (
        f"{solution!r}\n"
        f"rms {solution.rms(u.pix):.4f}, {solution.rms(u.km / u.s):.3f}; leave-one-out rms by degree (pixels): {left}\n"
        f"not used: {rejected or 'none'}"
    )


def _print(args: argparse.Namespace, summary: dict[str, Any], text: str) -> None:
    if args.json:
        print_json(summary)
    else:
        print(text)
    if args.output:
        note(f"written: {args.output}")
