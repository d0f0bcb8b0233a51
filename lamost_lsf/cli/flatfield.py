"""``lamost-lsf flatfield``: large-scale flat fields from standard stars."""

from __future__ import annotations

import argparse
from typing import Any

from lamost_lsf.cli._common import CommandError, check_output, note, print_json, read_observed, save_figure, write_table

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "flatfield",
        help="large-scale flat field of a slitless spectrograph from standard stars",
        description=(
            "Fit a polynomial of detector position to the ratio of observed to predicted flux of many standard "
            "stars, wavelength by wavelength, and assemble the 3-D flat-field cube with its error (Yang et al. 2024); "
            "divide a spectrum by it; or tell how precise it will be with so many stars."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf flatfield fit stars.fits -o cube.fits --domain 0 9216 0 9232\n"
            "  lamost-lsf flatfield apply cube.fits spectrum.fits --x 4310.5 --y 2200 -o corrected.fits\n"
            "  lamost-lsf flatfield precision stars.fits --stars 400 --json\n"
            "stars.fits is what StandardStars.write makes: HDUs WAVELENGTH, X, Y, OBSERVED, OBSERVED_ERROR,\n"
            "PREDICTED, PREDICTED_ERROR. Predictions are in the observer's frame and behind the dust, as\n"
            "StandardStars.from_predictions makes them."
        ),
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", help="fit the cube")
    fit.add_argument("stars", metavar="STARS", help="standard stars (FITS)")
    fit.add_argument("-o", "--output", metavar="FILE", required=True, help="cube to write (FITS)")
    fit.add_argument(
        "--domain", metavar=("X0", "X1", "Y0", "Y1"), type=float, nargs=4,
        help="detector, pixels (default: what the stars cover)",
    )  # fmt: skip
    fit.add_argument("--degree", type=int, default=2, help="total degree of the polynomial (default: 2)")
    fit.add_argument("--clip", type=float, default=4.0, help="rejection of outliers, sigma (default: 4)")
    fit.add_argument(
        "--normalize", metavar=("LOW", "HIGH"), type=float, nargs=2,
        help="scale predictions to the observed mean between these wavelengths first: for predictions without a "
        "magnitude (the paper: 5526 5586)",
    )  # fmt: skip
    fit.add_argument("--samples", metavar="N", type=int, default=32, help="of the cube along x and y (default: 32)")
    fit.add_argument("--plot", metavar="FILE", help="draw the cube at three wavelengths")
    apply = actions.add_parser("apply", help="divide a spectrum by the flat field")
    apply.add_argument("cube", metavar="CUBE", help="cube that fit wrote")
    apply.add_argument("spectrum", metavar="SPECTRUM", help="any file that specutils reads")
    apply.add_argument("--x", type=float, required=True, help="detector position, pixels")
    apply.add_argument("--y", type=float, required=True, help="detector position, pixels")
    apply.add_argument("--no-response", action="store_true", help="divide by the flat field alone")
    apply.add_argument("-o", "--output", metavar="FILE", required=True, help="spectrum to write (.fits or .ecsv)")
    precision = actions.add_parser("precision", help="Monte Carlo precision with N stars")
    precision.add_argument("stars", metavar="STARS", help="standard stars (FITS), whose stated errors are drawn from")
    precision.add_argument("--stars", dest="number", metavar="N", type=int, default=400, help="default: 400")
    precision.add_argument("--trials", metavar="N", type=int, default=100, help="default: 100")
    precision.add_argument("--seed", type=int, default=0)
    precision.add_argument("-o", "--output", metavar="FILE", help="table to write (.ecsv, .fits, .csv)")
    for action in (fit, apply, precision):
        action.add_argument("--overwrite", action="store_true", help="replace existing files")
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        action.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    check_output(args.output, args.overwrite)
    return {"fit": _fit, "apply": _apply, "precision": _precision}[args.action](args)


def _fit(args: argparse.Namespace) -> int:
    import numpy as np

    from lamost_lsf.sed.flatfield import FlatFieldFlag, StandardStars, fit_flat_field

    if args.samples < 2:
        raise CommandError(f"--samples must be 2 or more, got {args.samples}")
    check_output(args.plot, args.overwrite)
    stars = StandardStars.read(args.stars)
    if args.normalize:
        stars = stars.normalized(*args.normalize)
    domain = None if args.domain is None else (tuple(args.domain[:2]), tuple(args.domain[2:]))
    cube = fit_flat_field(stars, domain=domain, degree=args.degree, clip=args.clip)
    good = np.isfinite(cube.response)
    if not good.any():
        reasons = FlatFieldFlag(int(np.bitwise_or.reduce(cube.flag)))
        raise CommandError(f"no wavelength could be fitted: {', '.join(f.name for f in FlatFieldFlag if f in reasons)}")
    cube.write(args.output, n_x=args.samples, n_y=args.samples, overwrite=args.overwrite)
    _, error, _, _ = cube.cube(16, 16)
    summary = {
        "stars": len(stars),
        "wavelengths": int(good.size),
        "failed": int((~good).sum()),
        "median_error": float(np.nanmedian(error)),
        "median_chi2": float(np.nanmedian(cube.chi2)),
        "median_stars_used": int(np.median(cube.n_stars[good])),
        "rejected_stars": np.flatnonzero(cube.rejected > 0.5).tolist(),
        "output": args.output,
    }
    if args.plot:
        from lamost_lsf.sed.figures_libraries import plot_flat_field

        at = cube.wavelength[good][np.linspace(0, good.sum() - 1, 3).astype(int)]
        save_figure(plot_flat_field(cube, at), args.plot, overwrite=args.overwrite)
    if args.json:
        print_json(summary)
    else:
        print(
            f"{summary['stars']} stars, {summary['wavelengths']} wavelengths ({summary['failed']} failed); "
            f"median error {summary['median_error']:.5f}, reduced chi2 {summary['median_chi2']:.2f}"
        )
        if summary["rejected_stars"]:
            print(f"rejected at most wavelengths: stars {', '.join(map(str, summary['rejected_stars']))}")
    note(f"wrote {args.output}")
    return 0


def _apply(args: argparse.Namespace) -> int:
    import numpy as np

    from lamost_lsf.io import write_spectrum
    from lamost_lsf.sed.flatfield import FlatFieldCube

    cube = FlatFieldCube.read(args.cube)
    result = cube.correct(read_observed(args.spectrum), args.x, args.y, response=not args.no_response)
    write_spectrum(result, args.output, overwrite=args.overwrite)
    masked = int(np.count_nonzero(result.mask)) if result.mask is not None else 0
    if args.json:
        print_json({"output": args.output, "pixels": int(result.flux.size), "masked": masked})
    note(f"wrote {args.output}: {result.flux.size} pixels, {masked} masked")
    return 0


def _precision(args: argparse.Namespace) -> int:
    import numpy as np

    from lamost_lsf.sed.flatfield import StandardStars, flat_field_precision

    stars = StandardStars.read(args.stars)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.hypot(stars.predicted_error / stars.predicted, stars.observed_error / stars.observed)
    whole = np.all(np.isfinite(relative) & (relative > 0), axis=1)
    if not whole.any():
        raise CommandError(f"{args.stars}: no star has errors at all wavelengths")
    table = flat_field_precision(
        stars.wavelength, relative_error=relative[whole], n_stars=args.number, n_trials=args.trials, seed=args.seed
    )
    if args.output:
        write_table(table, args.output, overwrite=args.overwrite)
        note(f"wrote {args.output}")
    if args.json:
        print_json([{name: row[name] for name in table.colnames} for row in table])
    else:
        print(f"{'band':4}  {'range (A)':>13}  {'precision':>9}  {'one star':>9}")
        for row in table:
            limits = f"{row['low']:.0f}-{row['high']:.0f}"
            print(f"{row['band']:4}  {limits:>13}  {row['precision']:9.5f}  {row['single_star']:9.5f}")
    return 0
