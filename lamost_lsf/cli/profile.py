"""``lamost-lsf profile``: the instrumental profile at given times, fibres and wavelengths."""

from __future__ import annotations

import argparse
from typing import Any

from lamost_lsf.cli._common import check_output, note, print_json, save_figure, write_table
from lamost_lsf.cli._lsf import LSFChoice, add_lsf_arguments

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "profile",
        help="instrumental profile at a time, fibre and wavelength",
        description="Width, shape and centres of the instrumental profile; the profile itself as a table or a plot.",
        epilog=(
            "examples:\n"
            "  lamost-lsf profile --resolving-power 1800 --wavelength 4500 5500\n"
            "  lamost-lsf profile --archive models/ --spectrograph 1 --fiber 12 --time 2017-01-05T14:00 \\\n"
            "      --wavelength 4359.56 --medium air --plot profile.png"
        ),
    )
    parser.add_argument(
        "-w", "--wavelength", metavar="W", type=float, nargs="+", required=True, help="true wavelength(s), Angstrom"
    )
    parser.add_argument("--medium", choices=("vacuum", "air"), default="vacuum", help="of the wavelengths")
    add_lsf_arguments(parser, labels="all that the model needs")
    parser.add_argument(
        "--center", metavar="NAME", nargs="+", default=["max", "centroid", "half"], help="centres to print and to mark"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the sampled profiles (.ecsv or .fits)")
    parser.add_argument("--plot", metavar="FILE", help="write a plot (.png, .pdf, ...)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--json", action="store_true", help="print JSON, with the sampled profiles")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    import astropy.units as u
    import numpy as np

    from lamost_lsf.units import to_vacuum_angstrom

    for path in (args.output, args.plot):
        check_output(path, args.overwrite)
    profiles = LSFChoice(args).profiles(args.wavelength * u.AA, args.medium)
    rows = []
    for given, ip in zip(args.wavelength, profiles, strict=True):
        vacuum = float(to_vacuum_angstrom(given * u.AA, args.medium))
        row = {
            "wavelength": vacuum,
            "fwhm": ip.fwhm.to_value(u.AA),
            "resolving_power": vacuum / ip.fwhm.to_value(u.AA),
            "skewness": ip.skewness,
            "kurtosis": ip.kurtosis,
        }
        row |= {name: ip.center(name).to_value(u.AA) for name in args.center}
        rows.append({key: float(value) for key, value in row.items()})
    if args.output:
        write_table(_table(rows, profiles), args.output, overwrite=args.overwrite)
        note(f"wrote {args.output}")
    if args.plot:
        save_figure(_figure(profiles, args.center), args.plot, overwrite=args.overwrite)
        note(f"wrote {args.plot}")
    if args.json:
        area = [ip.normalized("area") for ip in profiles]
        print_json([{**row, "offset": ip.offset.to(u.AA), "flux": ip.flux} for row, ip in zip(rows, area, strict=True)])
        return 0
    print("wavelength (vacuum), FWHM and centres in Angstrom")
    print("  ".join(f"{name:>15}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:15.4f}" if np.isfinite(value) else f"{'nan':>15}" for value in row.values()))
    return 0


def _table(rows: list[dict[str, float]], profiles: list[Any]) -> Any:
    """One row a sample: profiles of different arms have different offsets."""
    import astropy.units as u
    import numpy as np
    from astropy.table import QTable

    flux = [ip.normalized("area") for ip in profiles]
    table = QTable(
        {
            "wavelength": np.repeat([row["wavelength"] for row in rows], [ip.offset.size for ip in profiles]) * u.AA,
            "offset": np.concatenate([ip.offset.to_value(u.AA) for ip in profiles]) * u.AA,
            "flux": np.concatenate([ip.flux for ip in flux]) / u.AA,
        }
    )
    table.meta["comments"] = ["offset: observed minus true wavelength; flux: unit area; wavelengths in vacuum"]
    return table


def _figure(profiles: list[Any], centers: list[str]) -> Any:
    from lamost_lsf.plots import plot_profile

    if len(profiles) == 1:
        return plot_profile(profiles[0], centers=centers).figure
    ax = None
    for i, ip in enumerate(profiles):
        ax = plot_profile(ip, ax=ax, color=f"C{i % 10}", legend=False)
    ax.set_xlim(min(ip.offset.value[0] for ip in profiles), max(ip.offset.value[-1] for ip in profiles))
    ax.legend(fontsize="small", frameon=False)
    return ax.figure
