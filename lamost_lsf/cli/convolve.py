"""``lamost-lsf convolve``: a template as the instrument would see it."""

from __future__ import annotations

import argparse
from typing import Any

from lamost_lsf.cli._common import CommandError, check_output, note, read_observed
from lamost_lsf.cli._lsf import LSFChoice, add_lsf_arguments

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "convolve",
        help="convolve a template by the instrumental profile",
        description="Convolve a template by the varying, asymmetric profile, onto a spectrum's pixels or any grid.",
        epilog=(
            "examples:\n"
            "  lamost-lsf convolve sun.fits --resolving-power 1800 --range 4000 5500 --step 0.5 -o seen.fits\n"
            "  lamost-lsf convolve models.npz::lte05800-4.50-0.0 --archive models/ --like spec.fits.gz -o seen.fits"
        ),
    )
    parser.add_argument("template", metavar="TEMPLATE[::MEMBER]", help="template, see lamost-lsf rv --help")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="spectrum to write (.fits or .ecsv)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    grid = parser.add_argument_group("pixels of the result (one of)")
    grid.add_argument("--like", metavar="SPECTRUM", help="those of this file, whose header also gives time and fibre")
    grid.add_argument("--extension", metavar="NAME", help="of a medium-resolution file, e.g. COADD_R")
    grid.add_argument(
        "--range", metavar=("LOW", "HIGH"), type=float, nargs=2, help="vacuum Angstrom, with --step or --log-step"
    )
    steps = grid.add_mutually_exclusive_group()
    steps.add_argument("--step", metavar="D", type=float, help="Angstrom per pixel")
    steps.add_argument("--log-step", metavar="D", type=float, help="log10(wavelength) per pixel (LAMOST: 1e-4)")
    add_lsf_arguments(parser, labels="by default as in the file of --like")
    parser.add_argument(
        "--center", metavar="NAME", help="centre of the profile at lag 0 (default: the spectrum's, else zero)"
    )
    parser.add_argument(
        "--preserve", choices=("flux", "continuum"), default="flux", help="what the convolution keeps (default: flux)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    import numpy as np

    from lamost_lsf.convolution import convolve
    from lamost_lsf.io import read_template, write_spectrum

    check_output(args.output, args.overwrite)
    path, separator, member = args.template.partition("::")
    template = read_template(path, member if separator else None)
    meta = None
    if args.like is not None:
        if args.range is not None:
            raise CommandError("give the pixels by --like or by --range, not both")
        axis = read_observed(args.like, args.extension)
        meta = axis.meta
    else:
        axis = _axis(args)
    result = convolve(template, LSFChoice(args).lsf(meta), axis, center=args.center, preserve=args.preserve)
    result.meta["lsf"] = _describe(args)
    write_spectrum(result, args.output, overwrite=args.overwrite)
    masked = int(np.count_nonzero(result.mask)) if result.mask is not None else 0
    center = result.meta["kernel_center"]
    note(f"wrote {args.output}: {result.flux.size} pixels, {masked} masked, centre {center!r} at lag 0")
    return 0


def _axis(args: argparse.Namespace) -> Any:
    import astropy.units as u
    import numpy as np

    if args.range is None or (args.step is None and args.log_step is None):
        raise CommandError("say on which pixels: --like SPECTRUM, or --range LOW HIGH with --step or --log-step")
    low, high = args.range
    step = args.step if args.step is not None else args.log_step
    if not 0 < low < high < np.inf:
        raise CommandError(f"--range must be two increasing wavelengths, got {low:g} {high:g}")
    if not 0 < step < np.inf:
        raise CommandError(f"the step must be positive, got {step:g}")
    first, last = (low, high) if args.step is not None else (np.log10(low), np.log10(high))
    number = (last - first) / step
    if number > 1e7:
        raise CommandError(f"a step of {step:g} makes {number:.3g} pixels; at most 10 million")
    grid = first + step * np.arange(int(np.floor(number + 1e-9)) + 1)
    return (grid if args.step is not None else 10.0**grid) * u.AA


def _describe(args: argparse.Namespace) -> str:
    if args.resolving_power is not None:
        return f"Gaussian R={args.resolving_power:g}"
    return args.archive or args.model or "simulated"
