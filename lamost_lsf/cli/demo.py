"""``lamost-lsf demo``: the radial velocity of a star, with an asymmetric profile that varies with wavelength."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from lamost_lsf.cli._common import CommandError, save_figure

__all__ = ["add_parser", "run"]

#: Window (vacuum Angstrom) with the Mg b triplet and many Fe lines; the best of the blue arm for F and G stars.
WINDOW = (4900.0, 5400.0)
VELOCITY_RANGE = (-500.0, 500.0)
#: Signal-to-noise ratio (g) that the star should have: well above it the template, not the noise, limits the fit.
SIGNAL_TO_NOISE = 60.0
# A fibre of the simulated instrument whose profile is clearly skew and varies across the window.
SPECTROGRAPH, FIBER = 11, 25
_SUBCLASSES = ("F7", "F8", "F9", "G0", "G1", "G2", "G3", "G4")
_SPECTRA, _TEMPLATES = "lamost/lrs_repeats_dr8", "templates/phoenix"


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "demo",
        help="measure the velocity of a star and draw it",
        description=(
            "Read a LAMOST spectrum, convolve templates by an asymmetric profile that varies with wavelength, measure "
            "the radial velocity, and draw spectrum, model, residuals, chi-square and profile. Without data everything "
            f"is simulated. With LAMOST_LSF_DATA, a folder that has {_SPECTRA}/*.fits* and {_TEMPLATES}/*.npz, "
            "spectrum and templates are real; the profile is that of the simulated instrument (LAMOST's own: "
            "lamost-lsf rv --archive)."
        ),
        epilog="example:\n  lamost-lsf demo --output demo.png",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="lamost-lsf-demo.png", help="plot to write (default: %(default)s)"
    )
    parser.add_argument("--simulated", action="store_true", help="do not look for real data")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    import astropy.units as u

    from lamost_lsf.plots import plot_rv_summary
    from lamost_lsf.rv import measure_rv
    from lamost_lsf.simulation import Observatory
    from lamost_lsf.units import SPEED_OF_LIGHT

    if not Path(args.output).absolute().parent.is_dir():
        raise CommandError(f"folder {Path(args.output).absolute().parent} does not exist")
    spectrum, templates = (None if args.simulated else _real()) or _simulated()
    meta = spectrum.meta
    name = Path(str(meta.get("filename") or "simulated star")).name
    print(
        f"spectrum   {name}: spectrograph {meta['spectrograph']}, fibre {meta['fiber']}, "
        f"{meta['time'].ravel()[0].isot[:16]} UTC, S/N {meta['snr']['g']:.0f} (g)"
    )
    print(f"templates  {', '.join(template.meta['name'] for template in templates)}")
    lsf = Observatory().lsf_for(spectrum)
    ip = lsf.profile([WINDOW[0], WINDOW[1]] * u.AA)
    fwhm, skewness = ip.fwhm.to_value(u.AA), ip.skewness
    print(
        f"profile    simulated instrument: FWHM {fwhm[0]:.2f} to {fwhm[1]:.2f} A, skewness {skewness[0]:+.2f} to "
        f"{skewness[1]:+.2f} from {WINDOW[0]:.0f} to {WINDOW[1]:.0f} A"
    )
    result = measure_rv(spectrum, templates, lsf, window=WINDOW * u.AA, velocity_range=VELOCITY_RANGE)
    print(
        f"fit        {result.template}, {result.n_pixels} pixels, chi2/dof {result.chi2_reduced:.2f}, "
        f"centre {result.center!r} at lag 0"
    )
    if not result.success:
        raise CommandError(f"no velocity was measured: {result.flags.reasons()}")
    if "truth" in meta:
        beside = f"true {meta['truth']['velocity'].to_value(u.km / u.s):.2f}"
    else:
        beside = (
            f"LAMOST pipeline {meta['z'] * SPEED_OF_LIGHT:.2f}" if meta.get("z") is not None else "no pipeline velocity"
        )
    print(
        f"RV         {result.rv.value:.2f} +- {result.rv_err.value:.2f} km/s, {result.frame} "
        f"(error scaled to chi2/dof: {result.rv_err_scaled.value:.2f}; {beside})"
    )
    save_figure(plot_rv_summary(result, lsf, title=name), args.output, overwrite=True)
    print(f"plot       {args.output}")
    return 0


def _real() -> tuple[Any, list[Any]] | None:
    """Spectrum and templates of the data folder; None, with the reason printed, where there are none."""
    folder = os.environ.get("LAMOST_LSF_DATA")
    if not folder:
        return None
    spectra = sorted((Path(folder) / _SPECTRA).glob("*.fits*"))
    templates = sorted((Path(folder) / _TEMPLATES).glob("*.npz"))
    if not spectra or not templates:
        print(f"data       {folder} lacks {_SPECTRA}/*.fits* or {_TEMPLATES}/*.npz: simulated instead")
        return None
    from lamost_lsf.errors import LamostLSFError
    from lamost_lsf.io import read_lamost, read_lamost_arrays, read_templates

    best, difference = None, float("inf")
    for path in spectra:
        try:
            meta = read_lamost_arrays(path).meta
        except (LamostLSFError, OSError):
            continue  # one bad file among many is not the subject here
        ratio = meta["snr"].get("g") or 0.0
        if str(meta["subclass"]).startswith(_SUBCLASSES) and abs(ratio - SIGNAL_TO_NOISE) < difference:
            best, difference = path, abs(ratio - SIGNAL_TO_NOISE)
    if best is None:
        print(f"data       no readable F7-G4 star in {Path(folder) / _SPECTRA}: simulated instead")
        return None
    return read_lamost(best), [template for path in templates for template in read_templates(path)]


def _simulated() -> tuple[Any, list[Any]]:
    """A star as LAMOST would publish it, of known velocity, and templates of which one is its own."""
    import astropy.units as u
    from astropy.time import Time

    from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template

    templates = [synthetic_template(temperature) for temperature in (5600, 6000, 6400)]
    star = simulate_star(
        templates[1],
        Observatory(),
        time=Time(["2017-01-10T13:00", "2017-01-10T13:33", "2017-01-10T14:06"]),
        fiber=FIBER,
        spectrograph=SPECTROGRAPH,
        velocity=-42.0 * u.km / u.s,
        snr=60.0,
        center="sersic",
        ra=42.0 * u.deg,
        dec=28.0 * u.deg,
        seed=2017,
    )
    return star, templates
