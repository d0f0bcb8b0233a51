"""``lamost-lsf evaluate``: how well a model predicts profiles."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lamost_lsf.cli._common import CommandError, note, one_line, print_json, save_figure, write_table
from lamost_lsf.cli._lsf import read_model
from lamost_lsf.cli.extract import expand

__all__ = ["add_parser", "run"]

#: [O I] of the night sky, air Angstrom: the line of the paper that no network was trained on.
SKY_LINE = 5577.338


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "evaluate",
        help="residuals of a model on profiles",
        description=(
            "Observed minus predicted profiles (Liu et al. 2026, Eqs. 4-5): mean and dispersion in units of the peak, "
            "by line, fibre and exposure; fibres that stand out from their neighbours; the share of pixels within one "
            "predicted sigma. Profiles are those of the exposures that were held out in training, where the model was "
            "trained on this store, and all of them otherwise."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf evaluate models/01_b_2017.safetensors profiles/01_b_2017.profiles\n"
            "  lamost-lsf evaluate models/01_b_2017.safetensors profiles/01_b_2017.profiles --output tables/ \\\n"
            "      --plot figures/ --sky 'arcs/sky_01_b_*.fits' --arc arcs/arc_01_b_82832345.fits"
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="model file: .safetensors, or published .npz")
    parser.add_argument("store", metavar="STORE", help="store of profiles")
    parser.add_argument(
        "--on", choices=("held-out", "left-out", "all"),
        help="profiles of the exposures held out in training, of the line or night that was left out, or all",
    )  # fmt: skip
    parser.add_argument("--line", metavar="N", type=int, nargs="+", help="numbers of lines, to the exclusion of others")
    parser.add_argument(
        "--kind", choices=("native", "resampled"), default="native",
        help="native (default): the detector's pixels, amplitude and background refitted; resampled: the 600 samples",
    )  # fmt: skip
    parser.add_argument(
        "--sky", metavar="FILE", nargs="+", default=[], help="sky exposures, for [O I] 5577 as a held-out line"
    )
    parser.add_argument("--extrapolate", action="store_true", help="allow labels outside the model's trained range")
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="DIR", help="write the tables into this folder")
    group.add_argument("--plot", metavar="DIR", help="draw the figures into this folder")
    group.add_argument(
        "--arc", metavar="FILE", help="with --plot: an arc exposure, for the lamp's spectrum and the slit"
    )
    group.add_argument("--fibers", metavar="N", type=int, nargs="+", help="with --plot: whose profiles to draw")
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    group.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    try:
        from lamost_lsf.training import evaluate
    except ImportError as error:
        raise CommandError(str(error)) from None
    from lamost_lsf.store import ProfileStore

    for name in ("output", "plot"):
        _check_folder(getattr(args, name))
    if (args.arc or args.fibers) and not args.plot:
        raise CommandError("--arc and --fibers go with --plot")
    model = read_model(args.model)
    store = ProfileStore(args.store, "r")
    chosen, index = _choose(model, store, args)
    result = evaluate(model, store, kind=args.kind, index=index, extrapolate=args.extrapolate)
    sky = _evaluate_sky(model, args) if args.sky else None
    tables = {
        "summary": result.summary(),
        "by_line": result.by("line"),
        "by_fiber": result.by("fiber"),
        "by_exposure": result.by("exposure"),
        "unusual_fibers": result.unusual_fibers(),
    }
    for name, key in (("by_line", "line"), ("by_exposure", "exposure")):
        _annotate(tables[name], key, store)
    if sky is not None:
        tables["held_out_line"] = sky[1].summary()
    if args.output:
        _write_tables(tables, result, args)
    if args.plot:
        _draw(model, store, result, sky, args)
    if args.json:
        summary = {
            "model": str(args.model), "store": str(args.store), "kind": args.kind, "on": chosen,
            **{name: _rows(table) for name, table in tables.items()},
        }  # fmt: skip
        summary["summary"] = summary["summary"][0]
        if sky is not None:
            summary["held_out_line"] = {"air": SKY_LINE, **summary["held_out_line"][0]}
        print_json(summary)
    else:
        _print(tables, chosen)
    return 0


def _check_folder(path: str | None) -> None:
    if path is None:
        return
    folder = Path(path).absolute()
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{path} is a file; a folder is needed")
    if not folder.parent.is_dir():
        raise CommandError(f"folder {folder.parent} does not exist")


def _choose(model: Any, store: Any, args: argparse.Namespace) -> tuple[str, Any]:
    """Which profiles to take, in a word, and their numbers among the good ones."""
    import numpy as np

    from lamost_lsf.training import split_by_exposure
    from lamost_lsf.training.source import open_source

    labels = open_source(store).labels
    training = model.meta.get("training") or {}
    own = model.meta.get("training_set") == store.id
    on = args.on or ("held-out" if own and "fraction" in training else "all")
    keep = np.ones(len(labels), dtype=bool)
    if on == "held-out":
        if not own or "fraction" not in training:
            raise CommandError(f"{args.model} does not say which exposures of this store were held out; take --on all")
        _, validation = split_by_exposure(labels, training["fraction"], seed=training["seed"])
        if validation.size:
            keep[:] = False
            keep[validation] = True
    left = {name: training.get(f"leave_out_{name}") for name in ("line", "night", "fiber")}
    if on == "left-out":
        if all(value is None for value in left.values()):
            raise CommandError(f"{args.model} was trained without leaving out a line, a night or a fibre")
        for name, value in left.items():
            if value is not None:
                keep &= getattr(labels, name) == value
    elif on == "held-out":
        # what was left out is another question
        for name, value in left.items():
            if value is not None:
                keep &= getattr(labels, name) != value
    if args.line is not None:
        keep &= np.isin(labels.line, args.line)
    if not keep.any():
        raise CommandError(f"no good profile is left to evaluate on; lines there are {np.unique(labels.line).tolist()}")
    return on, np.flatnonzero(keep)


def _evaluate_sky(model: Any, args: argparse.Namespace) -> tuple[Any, Any]:
    """Profiles of [O I] 5577 in sky exposures, and the residuals."""
    import astropy.units as u

    from lamost_lsf.arcs import ArcExposure, extract_profiles
    from lamost_lsf.lines import LineList
    from lamost_lsf.training import evaluate

    line = LineList.from_wavelengths([SKY_LINE] * u.AA, medium="air", species="[O I]")
    sets = []
    for path in expand(args.sky):
        exposure = ArcExposure.read(path)
        spectrograph, arm = (model.meta.get(name) for name in ("spectrograph", "arm"))
        if (arm is not None and exposure.arm != arm) or (
            spectrograph is not None and exposure.spectrograph != spectrograph
        ):
            raise CommandError(
                f"{path} is of spectrograph {exposure.spectrograph}, {exposure.arm} arm; "
                f"the model is of {spectrograph}, {arm}"
            )
        sets.append(extract_profiles(exposure, lines=line, instrument=exposure.instrument or model.meta["instrument"]))
    profiles = sets[0].concatenate(*sets[1:])
    if not profiles.good.any():
        raise CommandError("no good profile of [O I] 5577 in the sky exposures")
    try:
        return profiles, evaluate(model, profiles, kind=args.kind, extrapolate=args.extrapolate)
    except ValueError as error:
        raise CommandError(f"[O I] 5577: {one_line(error)}") from None


def _annotate(table: Any, key: str, store: Any) -> None:
    """Say which line or exposure a number is."""
    import numpy as np

    number = np.asarray(table[key])
    if key == "line":
        table.add_column(store.lines.species[number], name="species", index=1)
        table.add_column(np.round(store.lines.air[number], 4), name="air", index=2)
    else:
        exposures = store.exposures
        table.add_column(np.asarray(exposures["lmjm"])[number], name="lmjm", index=1)
        table.add_column(np.asarray(exposures["time"])[number].astype(str), name="time", index=2)


def _write_tables(tables: dict[str, Any], result: Any, args: argparse.Namespace) -> None:
    folder = Path(args.output)
    names = [*(f"{name}.ecsv" for name in tables), "profiles.fits"]
    _refuse(folder, names, args.overwrite)
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        write_table(table, str(folder / f"{name}.ecsv"), overwrite=args.overwrite)
    write_table(result.table, str(folder / "profiles.fits"), overwrite=args.overwrite)
    note(f"wrote {len(names)} tables to {folder}")


def _refuse(folder: Path, names: list[str], overwrite: bool) -> None:
    for name in names:
        if (folder / name).exists() and not overwrite:
            raise CommandError(f"{folder / name} exists; --overwrite replaces it")


def _draw(model: Any, store: Any, result: Any, sky: Any, args: argparse.Namespace) -> None:
    """All figures that the arguments allow; one that cannot be drawn is said, not fatal."""
    import astropy.units as u
    import numpy as np
    from astropy.table import Table

    from lamost_lsf import figures
    from lamost_lsf.arcs import ArcExposure
    from lamost_lsf.time import lmjm_to_time

    model = model.with_labels("median")  # figures run over time, fibre and wavelength
    folder = Path(args.plot)
    minutes = np.unique(np.asarray(result.table["lmjm"]))
    times = lmjm_to_time(np.array([store.labels["lmjm"].min(), store.labels["lmjm"].max()]))
    middle = lmjm_to_time(minutes[minutes.size // 2])
    lines = np.unique(np.asarray(result.table["line"]))
    number = np.unique(np.asarray(result.table["fiber"]))
    odd = result.unusual_fibers()["fiber"].tolist()
    fibers = args.fibers or _neighbourhood(number, odd)
    along = number[np.unique(np.linspace(0, number.size - 1, 3).astype(int))]
    across = store.lines.vacuum[lines[np.unique(np.linspace(0, lines.size - 1, 3).astype(int))]] * u.AA
    more = {"extrapolate": args.extrapolate}
    # the profiles of a few fibres and of one exposure, not of the whole store
    wanted = np.isin(store.labels["fiber"], fibers) & store.good & np.isin(store.labels["line"], lines)
    plots = {
        "maps": lambda: figures.plot_maps(model, middle, **more),
        "residuals": lambda: figures.plot_residual_distributions({str(store.arm): result}),
        "fibers": lambda: figures.plot_fibers(model, store.profile_set(np.flatnonzero(wanted)[:5000]), fibers, **more),
        "epochs": lambda: figures.plot_epochs(model, times, fiber=along, wavelength=across, **more),
    }
    history = Path(args.model).with_name(f"{Path(args.model).stem}.history.ecsv")
    if history.is_file():
        plots["losses"] = lambda: figures.plot_losses(Table.read(history, format="ascii.ecsv")).figure
    if args.arc:
        arc = ArcExposure.read(args.arc)
        own = arc.instrument or store.instrument
        plots["lamp"] = lambda: figures.plot_lamp(arc, instrument=own).figure
        plots["slit"] = lambda: figures.plot_slit(arc, instrument=own, defective=odd)
    if sky is not None:
        plots["held_out_line"] = lambda: figures.plot_held_out_line(model, *sky, **more)
    _refuse(folder, [f"{name}.png" for name in plots], args.overwrite)
    folder.mkdir(exist_ok=True)
    drawn = 0
    for name, plot in plots.items():
        try:
            save_figure(plot(), str(folder / f"{name}.png"), overwrite=args.overwrite)
            drawn += 1
        except ValueError as error:
            note(f"no figure {name}: {one_line(error)}")
    note(f"wrote {drawn} figures to {folder}")


def _neighbourhood(number: Any, odd: list[int]) -> list[int]:
    """Three fibres in a row: about the one that stands out, or in the middle."""
    import numpy as np

    middle = int(np.searchsorted(number, odd[0])) if odd else number.size // 2
    start = int(np.clip(middle - 1, 0, max(number.size - 3, 0)))
    return [int(n) for n in number[start : start + 3]]


def _rows(table: Any) -> list[dict[str, Any]]:
    return [{name: row[name] for name in table.colnames} for row in table]


def _print(tables: dict[str, Any], chosen: str) -> None:
    row = tables["summary"][0]
    print(f"{row['n']} profiles ({chosen}); residuals in units of the peak")
    header = f"{'':24}  {'n':>8}  {'|mean|':>8}  {'disp.':>8}  {'/ noise':>8}  {'chi2/dof':>8}  {'within 1 sigma':>14}"
    print(header)
    print(_line("all", row))
    for line in tables["by_line"]:
        print(_line(f"line {line['line']:2d} {line['species']} {line['air']:.2f}", line))
    if "held_out_line" in tables:
        print(_line(f"[O I] {SKY_LINE} (sky)", tables["held_out_line"][0]))
    odd = tables["unusual_fibers"]
    if len(odd):
        names = ", ".join(f"{r['fiber']} ({r['ratio']:.2f} x its neighbours)" for r in odd)
        print(f"fibres that stand out: {names}")
    else:
        print("no fibre stands out from its neighbours")


def _line(name: str, row: Any) -> str:
    return (
        f"{name:24}  {row['n']:8d}  {row['abs_mean']:8.1e}  {row['dispersion']:8.5f}  "
        f"{row['dispersion_over_noise']:8.3f}  {row['chi2_per_dof']:8.3f}  {row['covered']:14.1%}"
    )
