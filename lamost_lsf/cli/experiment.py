"""``lamost-lsf experiment``: centres and velocities over a change of the instrumental profile."""

from __future__ import annotations

import argparse
from typing import Any

from lamost_lsf.cli._common import (
    CommandError,
    check_output,
    note,
    parse_time,
    print_json,
    read_template_arguments,
    save_figure,
    write_table,
)
from lamost_lsf.cli._lsf import LSFChoice, read_model
from lamost_lsf.cli._progress import Items

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "experiment",
        help="the experiments of the IP paper, simulated or on your own spectra",
        description="Experiments of Liu et al. 2026 (arXiv:2603.09178), on the simulated instrument or on your files.",
        epilog=(
            "examples:\n"
            "  lamost-lsf experiment centers --plot figure8.png\n"
            "  lamost-lsf experiment rv-epochs --mixing --plot figure9.png --plot-mixing mixing.png\n"
            "  lamost-lsf experiment rv-epochs --manifest star.csv -t phoenix.npz --archive models/ --change 2020-09-01"
        ),
    )
    kinds = parser.add_subparsers(dest="experiment", metavar="EXPERIMENT", required=True)
    for add in (_add_centers, _add_rv_epochs):
        sub = add(kinds)
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        sub.add_argument("--overwrite", action="store_true", help="replace existing files")
        sub.add_argument("--json", action="store_true", help="print the results as JSON")
        # "experiment centers --debug" as well as "experiment --debug centers"
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _centers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--centers", metavar="NAME", nargs="+", help="default: max centroid gauss sersic half fourier"
    )  # fmt: skip


def _add_centers(kinds: Any) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        "centers",
        help="stability of the centres (Figure 8)",
        description=(
            "Centres of one line in one fibre, exposure by exposure, on measured profiles and on those that a model "
            "predicts. Without a store, arcs of a season are simulated; without a model, their true profiles predict."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf experiment centers --exposures 200 --plot figure8.png\n"
            "  lamost-lsf experiment centers --store profiles/01_b_2017.profiles \\\n"
            "      --model models/01_b_2017.safetensors --fiber 1 --line 4359.56"
        ),
    )  # fmt: skip
    parser.add_argument("--store", metavar="STORE", help="store of measured profiles, from extract")
    parser.add_argument("--model", metavar="FILE", help="model that predicts: .safetensors, or published .npz")
    parser.add_argument("--fiber", metavar="N", type=_positive, default=1, help="default: 1")
    parser.add_argument(
        "--line", metavar="W", type=float, default=4359.56, help="vacuum Angstrom; default: 4359.56 (Hg I)"
    )
    _centers_argument(parser)
    group = parser.add_argument_group("simulation (without --store)")
    group.add_argument("--season", metavar="YEAR", type=_positive, default=2017, help="by last year; default: 2017")
    group.add_argument("--exposures", metavar="N", type=_positive, default=200, help="default: 200")
    group.add_argument("--spectrograph", metavar="N", type=_positive, default=1, help="1-16; default: 1")
    group.add_argument("--arm", choices=("blue", "red"), default="blue", help="default: blue")
    group.add_argument("--seed", metavar="N", type=int, default=0)
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="FILE", help="write the table (.ecsv, .fits or .csv)")
    group.add_argument("--plot", metavar="FILE", help="draw the distributions")
    return parser


def _add_rv_epochs(kinds: Any) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        "rv-epochs",
        help="velocities of one star over a change of the profile (Figure 9)",
        description=(
            "Radial velocities of one star, exposure by exposure: by a Gaussian kernel, by the IP, and by the IP on "
            "wavelengths recalibrated with the same centre. Mean, scatter and jump over the change. Without a "
            "manifest, the star, its arcs and the change are simulated."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf experiment rv-epochs --plot figure9.png -o velocities.ecsv\n"
            "  lamost-lsf experiment rv-epochs --noiseless --exposures 24 --mixing --json\n"
            "  lamost-lsf experiment rv-epochs --manifest star.csv -t phoenix.npz --archive models/ --change 2020-09-01"
        ),
    )
    parser.add_argument(
        "--window", metavar="W", type=float, nargs="+", default=[4359.56],
        help="LOW HIGH, or one wavelength for 150 A either side (vacuum Angstrom); default: 4359.56",
    )  # fmt: skip
    _centers_argument(parser)
    parser.add_argument("--mixing", action="store_true", help="also every kernel centre on every other's wavelengths")
    parser.add_argument(
        "--gaussian", metavar="R", type=float, default=1800.0, help="resolving power of the Gaussian; default: 1800"
    )
    group = parser.add_argument_group("your own spectra")
    group.add_argument("--manifest", metavar="FILE", help="CSV file, one exposure a line (see the documentation)")
    group.add_argument(
        "-t", "--template", dest="templates", metavar="FILE[::MEMBER]", nargs="+", help="templates, as for rv"
    )
    group.add_argument("--change", metavar="T", type=parse_time, help="when the profile changed, where no column says")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--archive", metavar="DIR", help="folder of models by season, spectrograph and arm")
    one.add_argument("--model", metavar="FILE", help="one model: .safetensors, published .npz, or specex .fits")
    group.add_argument("--extrapolate", action="store_true", help="allow labels outside the model's trained range")
    group = parser.add_argument_group("simulation (without --manifest)")
    group.add_argument("--exposures", metavar="N", type=_positive, default=240, help="default: 240")
    group.add_argument("--nights", metavar="N", type=_positive, help="default: one for ten exposures, at least 4")
    group.add_argument("--arcs", metavar="N", type=_positive, default=4, help="a night; default: 4")
    group.add_argument("--spectrograph", metavar="N", type=_positive, default=1, help="1-16; default: 1")
    group.add_argument("--fiber", metavar="N", type=_positive, default=100, help="default: 100")
    group.add_argument(
        "--snr", metavar=("LOW", "HIGH"), type=float, nargs=2, default=(20.0, 40.0), help="default: 20 40"
    )
    group.add_argument("--drift", metavar="A", type=float, default=0.1, help="rms from night to night, Angstrom")
    group.add_argument(
        "--flexure", metavar="V", type=float, default=0.0, help="rms between arc and star, km/s; default: 0"
    )
    group.add_argument(
        "--noiseless", action="store_true", help="neither arcs nor star have noise: the methods' own errors"
    )
    group.add_argument("--seed", metavar="N", type=int, default=0)
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="FILE", help="write all velocities (.ecsv, .fits or .csv)")
    group.add_argument("--plot", metavar="FILE", help="draw the velocities")
    group.add_argument("--plot-mixing", metavar="FILE", help="with --mixing: draw the jumps")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    return {"centers": _run_centers, "rv-epochs": _run_rv_epochs}[args.experiment](args)


def _check_centers(names: list[str] | None) -> tuple[str, ...]:
    from lamost_lsf.experiments import CENTERS
    from lamost_lsf.plugins import get_center

    chosen = CENTERS if names is None else tuple(dict.fromkeys(name.lower() for name in names))
    if "zero" in chosen:
        raise CommandError('"zero" is the zero of a wavelength scale, no centre of a line')
    for name in chosen:
        get_center(name)
    return chosen


def _run_centers(args: argparse.Namespace) -> int:
    import astropy.units as u
    import numpy as np

    from lamost_lsf.experiments import center_stability, simulate_profiles

    for path in (args.output, args.plot):
        check_output(path, args.overwrite)
    centers = _check_centers(args.centers)
    model = read_model(args.model) if args.model else None
    if args.store:
        from lamost_lsf.store import ProfileStore

        store = ProfileStore(args.store, "r")
        labels = store.labels
        profiles = store.profile_set(np.flatnonzero((labels["fiber"] == args.fiber) & store.good))
    else:
        from lamost_lsf.simulation import SimulatedIP

        ip = SimulatedIP(args.arm, args.spectrograph, seed=args.seed)
        profiles = simulate_profiles(
            ip, args.season, n_exposures=args.exposures, fiber=args.fiber, seed=args.seed
        )  # fmt: skip
        model = ip if model is None else model
    result = center_stability(
        profiles, model, fiber=args.fiber, wavelength=args.line * u.AA, centers=centers
    )  # fmt: skip
    table = result.summary()
    if args.output:
        write_table(table, args.output, overwrite=args.overwrite)
        note(f"wrote {args.output}")
    if args.plot:
        from lamost_lsf.experiments.figures import plot_centers

        save_figure(plot_centers(result), args.plot, overwrite=args.overwrite)
        note(f"wrote {args.plot}")
    if args.json:
        facts = {"fiber": result.fiber, "wavelength": result.wavelength, "predicted_by": result.source}
        print_json({**facts, "centers": _rows(table)})
    else:
        print(
            f"fibre {result.fiber}, line {result.wavelength:.2f} A (vacuum); predicted: {result.source or 'no model'}"
        )
        _print(table)
    return 0


def _run_rv_epochs(args: argparse.Namespace) -> int:
    import astropy.units as u

    from lamost_lsf.experiments import rv_epochs

    for path in (args.output, args.plot, args.plot_mixing):
        check_output(path, args.overwrite)
    if len(args.window) > 2:
        raise CommandError("--window takes one wavelength or two")
    if args.plot_mixing and not args.mixing:
        raise CommandError("--plot-mixing goes with --mixing")
    centers = _check_centers(args.centers)
    visits, templates, ip = _own(args) if args.manifest else _simulated(args)
    window = args.window[0] * u.AA if len(args.window) == 1 else args.window * u.AA
    with Items(len(visits), "exposures") as items:
        result = rv_epochs(
            visits, templates, ip, window=window, centers=centers, mixing=args.mixing, change=args.change,
            resolving_power=args.gaussian, progress=items.advance,
        )  # fmt: skip
    table = result.summary()
    if args.output:
        write_table(result.table, args.output, overwrite=args.overwrite)
        note(f"wrote {args.output}")
    if args.plot or args.plot_mixing:
        from lamost_lsf.experiments.figures import plot_jumps, plot_rv_epochs

        drawn = [(args.plot, plot_rv_epochs), (args.plot_mixing, lambda r: plot_jumps(r).figure)]
        for path, draw in drawn:
            if path:
                save_figure(draw(result), path, overwrite=args.overwrite)
                note(f"wrote {path}")
    if args.json:
        print_json({"window": result.window, "velocity": result.velocity, "summary": _rows(table)})
    else:
        _print(table)
    return 1 if len(table) and not any(table["n"]) else 0


def _own(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    from lamost_lsf.experiments import read_manifest

    if not args.templates:
        raise CommandError("--manifest needs templates: pass --template")
    if not (args.archive or args.model):
        raise CommandError("--manifest needs the profile of the instrument: pass --archive or --model")
    visits = read_manifest(args.manifest)
    labels = {"time": None, "fiber": None, "spectrograph": None, "simulated": False, "resolving_power": None}
    choice = LSFChoice(argparse.Namespace(**{**vars(args), **labels}))
    return visits, read_template_arguments(args.templates), lambda spectrum: choice.lsf(spectrum.meta)


def _simulated(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    import astropy.units as u

    from lamost_lsf.experiments import simulate_epochs
    from lamost_lsf.simulation import Observatory, synthetic_template

    if args.change is not None:
        raise CommandError("--change goes with --manifest; the simulated instrument changes on 2020-08-31")
    if args.model:
        raise CommandError("--model goes with --manifest; simulated stars take an --archive")
    observatory = Observatory(args.seed)
    templates = read_template_arguments(args.templates) if args.templates else [synthetic_template(6200)]
    ip = observatory
    if args.archive:
        from lamost_lsf.models import IPArchive

        ip = IPArchive(args.archive)
    middle = sum(args.window) / len(args.window)
    if len(args.window) == 2 and args.window[1] - args.window[0] > 300.0:
        raise CommandError("a simulated segment has 300 A; --window must lie within that")
    arm = "blue" if middle < 5800.0 else "red"
    nights = args.nights if args.nights is not None else max(4, args.exposures // 10)
    visits = simulate_epochs(
        templates[0], observatory, n_exposures=args.exposures, n_nights=nights, arcs_per_night=args.arcs,
        spectrograph=args.spectrograph, arm=arm, fiber=args.fiber, wavelength=middle * u.AA, snr=tuple(args.snr),
        drift=args.drift * u.AA, flexure=args.flexure * u.km / u.s, noise=not args.noiseless, seed=args.seed,
    )  # fmt: skip
    return visits, templates, ip


def _rows(table: Any) -> list[dict[str, Any]]:
    return [{name: getattr(row[name], "value", row[name]) for name in table.colnames} for row in table]


def _print(table: Any) -> None:
    print("\n".join(table.pformat(max_lines=-1, max_width=-1)))
