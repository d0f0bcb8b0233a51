"""``lamost-lsf simulate``: arcs, skies and stars of an instrument whose profile is known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lamost_lsf.cli._common import CommandError, print_json
from lamost_lsf.cli._progress import Items

__all__ = ["add_parser", "run"]

#: Velocities (km/s) that simulated stars are drawn from: uniform between plus and minus this.
_VELOCITY = 150.0
_TEMPERATURES = (5200.0, 5600.0, 6000.0, 6400.0, 6800.0)


def fiber_numbers(text: str) -> list[int]:
    """Fibres of "1-20,155": in order, each once.

    Examples
    --------
    >>> fiber_numbers("154-156,3")
    [3, 154, 155, 156]
    """
    numbers: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            low, high = int(first), int(last) if dash else int(first)
            if low < 1 or high < low:
                raise ValueError
            numbers.update(range(low, high + 1))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of fibres such as 1-20,155") from None
    return sorted(numbers)


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "simulate",
        help="arcs of a season, of an instrument whose profile is known",
        description=(
            "Write simulated arc exposures of a season as FITS files that `extract` reads; night-sky exposures for "
            "`evaluate --sky` and stars for `rv` on request. The same arguments give the same files."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf simulate --output arcs/ --season 2017\n"
            "  lamost-lsf simulate --output arcs/ --season 2017 --arm blue red --spectrograph 1 2 --exposures 48 \\\n"
            "      --sky 2 --stars 10 --seed 3"
        ),
    )
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the files, made if missing")
    parser.add_argument(
        "--season", metavar="YEAR", type=int, nargs="+", default=[2017], help="by last year; default 2017"
    )
    parser.add_argument("--arm", choices=("blue", "red"), nargs="+", default=["blue"], help="default: blue")
    parser.add_argument("--spectrograph", metavar="N", type=int, nargs="+", default=[1], help="1-16; default: 1")
    parser.add_argument("--exposures", metavar="N", type=int, default=24, help="arcs a season (default: %(default)s)")
    parser.add_argument("--nights", metavar="N", type=int, help="that they are spread over; default: half as many")
    parser.add_argument("--fibers", metavar="LIST", type=fiber_numbers, help="such as 1-20,155; default: all 250")
    parser.add_argument(
        "--peak", metavar="E", type=float, default=2e4, help="electrons at a line's peak (default: 20000)"
    )
    parser.add_argument("--blends", action="store_true", help="with contaminants that no line list has")
    parser.add_argument("--sky", metavar="N", type=int, default=0, help="sky exposures a season, besides")
    parser.add_argument("--stars", metavar="N", type=int, default=0, help="stars a season and spectrograph, besides")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="another seed is another instrument and season"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--json", action="store_true", help="print the list of files as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    for name in ("exposures", "nights", "sky", "stars"):
        value = getattr(args, name)
        low = 1 if name in ("exposures", "nights") else 0
        if value is not None and value < low:
            raise CommandError(f"--{name} must be at least {low}, got {value}")
    folder = Path(args.output).absolute()
    if not folder.parent.is_dir():
        raise CommandError(f"folder {folder.parent} does not exist")
    # all that can be wrong is found before the first file is written
    jobs = _plan(args, folder)
    present = [path for path, _ in jobs if path.exists()]
    if present and not args.overwrite:
        raise CommandError(f"{present[0]} exists; --overwrite replaces it")
    folder.mkdir(exist_ok=True)
    files = []
    with Items(len(jobs), "files") as items:
        for path, make in jobs:
            make(path)
            files.append(str(path))
            items.advance()
    if args.json:
        print_json({"folder": str(folder), "files": files})
    else:
        print(f"{len(files)} files in {folder}")
    return 0


def _plan(args: argparse.Namespace, folder: Path) -> list[tuple[Path, Any]]:
    """Every file and what writes it."""
    import numpy as np

    from lamost_lsf.simulation import SimulatedIP, season_times
    from lamost_lsf.time import lmjm_to_time, time_to_lmjm

    nights = args.nights if args.nights is not None else max(1, args.exposures // 2)
    jobs = []
    for spectrograph in sorted(set(args.spectrograph)):
        ips = {arm: SimulatedIP(arm, spectrograph, seed=args.seed) for arm in sorted(set(args.arm))}
        for year in sorted(set(args.season)):
            times = season_times(year, args.exposures, nights, seed=args.seed)
            minutes = np.round(time_to_lmjm(times))
            # files are named by the minute, and a store tells exposures by their times: no two of one minute
            for i in range(1, minutes.size):
                minutes[i] = max(minutes[i], minutes[i - 1] + 1)
            times = lmjm_to_time(minutes)
            for arm, ip in ips.items():
                for i, minute in enumerate(minutes):
                    name = f"arc_{spectrograph:02d}_{arm[0]}_{minute:.0f}.fits"
                    jobs.append((folder / name, _Exposure("arc", ip, times[i], (args.seed, year, i), args)))
                for i, k in enumerate(_spread(args.sky, args.exposures)):
                    # a little after an arc, as science exposures are
                    name = f"sky_{spectrograph:02d}_{arm[0]}_{minutes[k] + 30 + i:.0f}.fits"
                    jobs.append(
                        (folder / name, _Exposure("sky", ip, times[k], (args.seed, year, i, 1), args, 30.0 + i))
                    )
            for i, k in enumerate(_spread(args.stars, args.exposures)):
                name = f"star_{spectrograph:02d}_{year}_{i + 1:04d}.fits"
                jobs.append((folder / name, _Star(spectrograph, times[k], (args.seed, year, i, 2), args)))
    return jobs


def _spread(n: int, among: int) -> list[int]:
    return [i * among // n if n <= among else i % among for i in range(n)]


class _Exposure:
    """Writes one arc or sky exposure."""

    def __init__(self, kind: str, ip: Any, time: Any, seed: tuple[int, ...], args: Any, later: float = 0.0) -> None:
        self.kind, self.ip, self.time, self.seed, self.args, self.later = kind, ip, time, seed, args, later

    def __call__(self, path: Path) -> None:
        import astropy.units as u

        from lamost_lsf.arcs import ArcExposure
        from lamost_lsf.simulation import simulate_arc, simulate_sky

        if self.kind == "arc":
            seen = simulate_arc(
                self.ip, self.time, fiber=self.args.fibers, peak=self.args.peak, blends=self.args.blends, seed=self.seed
            )
        else:
            seen = simulate_sky(
                self.ip,
                self.time + self.later * u.min,
                fiber=self.args.fibers,
                peak=0.5 * self.args.peak,
                seed=self.seed,
            )
        exposure = ArcExposure.from_simulation(seen, instrument=f"lamost-lrs-{seen.arm}")
        exposure.write(path, overwrite=self.args.overwrite)


class _Star:
    """Writes one star in the layout of LAMOST's low-resolution files, with what is true of it in the header."""

    def __init__(self, spectrograph: int, time: Any, seed: tuple[int, ...], args: Any) -> None:
        self.spectrograph, self.time, self.seed, self.args = spectrograph, time, seed, args

    def __call__(self, path: Path) -> None:
        import astropy.units as u
        import numpy as np
        from astropy.io import fits

        from lamost_lsf.files import atomic_path
        from lamost_lsf.simulation import Observatory, simulate_star, synthetic_template
        from lamost_lsf.time import time_to_lmjm

        rng = np.random.default_rng(self.seed)
        fibers = self.args.fibers or list(range(1, 251))
        fiber = int(rng.choice(fibers))
        temperature = float(rng.choice(_TEMPERATURES))
        velocity = round(float(rng.uniform(-_VELOCITY, _VELOCITY)), 3)
        snr = round(float(rng.uniform(30.0, 100.0)), 1)
        star = simulate_star(
            synthetic_template(temperature), Observatory(seed=self.args.seed), time=self.time, fiber=fiber,
            spectrograph=self.spectrograph, velocity=velocity * u.km / u.s, snr=snr, center="sersic", seed=rng,
        )  # fmt: skip
        mask = np.asarray(star.mask, dtype=float)
        rows = [star.flux.value, star.uncertainty.array, star.spectral_axis.to_value(u.AA), mask, mask]
        hdu = fits.PrimaryHDU(np.array(rows, dtype=np.float32))
        header = hdu.header
        header["TELESCOP"], header["ORIGIN"] = "SIMULATION", ("lamost_lsf simulation", "not an observation")
        header["SPID"], header["FIBERID"] = self.spectrograph, fiber
        header["LMJMLIST"] = f"{float(time_to_lmjm(self.time)):.0f}"
        header["HELIO"], header["HELIO_RV"], header["VACUUM"] = True, 0.0, True
        wavelength = star.spectral_axis.to_value(u.AA)
        header["COEFF0"], header["COEFF1"] = float(np.log10(wavelength[0])), 1e-4
        for band, value in star.meta["snr"].items():
            header[f"SNR{band.upper()}"] = value
        header["TRUE_RV"] = (velocity, "km/s, heliocentric, positive receding")
        header["TRUETEFF"] = (temperature, "K, of synthetic_template")
        with atomic_path(path, overwrite=self.args.overwrite) as temporary:
            hdu.writeto(temporary, overwrite=True, checksum=True)
