"""``lamost-lsf sed``: spectral energy distributions from spectra: train, finetune, predict, evaluate."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lamost_lsf.cli._common import (
    CommandError,
    check_output,
    note,
    one_line,
    print_json,
    read_observed,
    save_figure,
    write_table,
)
from lamost_lsf.cli._lsf import open_archive
from lamost_lsf.cli._progress import Training

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "sed",
        help="spectral energy distributions of stars from their normalised spectra",
        description=(
            "Train networks (UaRA-net, Yang et al. 2024) that predict a star's SED at R = 200, with errors, from its "
            "spectrum between 4000 and 7000 A; use them and see how good they are. Needs torch "
            "(pip install 'lamost-lsf[train]')."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf sed train redrock/ --library redrock --types AFG --positive --output-range 3050 10500 "
            "-o sed.safetensors\n"
            "  lamost-lsf sed evaluate sed.safetensors redrock/ --library redrock --types AFG --positive\n"
            "  lamost-lsf sed finetune sed.safetensors miles/ --library miles --teff 5000 9750 --fwhm 2.5 "
            "--clean -o miles.safetensors\n"
            "  lamost-lsf sed predict miles.safetensors spec-*.fits.gz -o seds.fits"
        ),
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_train(actions)
    _add_finetune(actions)
    _add_predict(actions)
    _add_evaluate(actions)
    for sub in actions.choices.values():
        sub.add_argument("--device", metavar="NAME", default="auto", help="auto (default), cpu, cuda, ...")
        sub.add_argument("--threads", metavar="N", type=int, default=1, help="of torch on the CPU (default: 1)")
        sub.add_argument("--overwrite", action="store_true", help="replace existing files")
        sub.add_argument("--json", action="store_true", help="print the results as JSON")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")
    return parser


def _add_library(parser: argparse.ArgumentParser, test_share: float | None) -> None:
    group = parser.add_argument_group("library")
    group.add_argument("folder", metavar="FOLDER", help="of the library's files")
    group.add_argument("--library", metavar="NAME", required=True, help="redrock, miles, ngsl, bosz, calspec, ...")
    group.add_argument("--types", metavar="LETTERS", help="first letters of the spectral types to keep, such as AFG")
    group.add_argument("--teff", metavar=("LOW", "HIGH"), type=float, nargs=2, help="effective temperatures to keep, K")
    group.add_argument("--ebv", metavar="X", type=float, help="largest E(B-V) to keep")
    group.add_argument("--positive", action="store_true", help="drop stars whose flux is not positive in the ranges")
    group.add_argument(
        "--clean", action="store_true",
        help="drop stars that are unlike what their labels predict, by a Gaussian process (needs scikit-learn)",
    )  # fmt: skip
    group.add_argument("--distinct", action="store_true", help="one spectrum of each star: copies are dropped")
    group.add_argument(
        "--fwhm", metavar="X", type=float,
        help="bring inputs to FWHM = max(X, wavelength / R), Angstrom; for libraries coarser than the input's R",
    )  # fmt: skip
    group.add_argument(
        "--lsf-of", metavar="FILE",
        help="LAMOST spectrum whose instrumental profile makes the inputs, instead of a Gaussian of the input's R",
    )  # fmt: skip
    source = group.add_mutually_exclusive_group()
    source.add_argument("--archive", metavar="DIR", help="folder of instrumental profile models, for --lsf-of")
    source.add_argument("--simulated", action="store_true", help="the built-in simulated instrument, for --lsf-of")
    own = "default: as the model was trained, where this is its library, else {}"
    group.add_argument(
        "--test-share", metavar="X", type=float, default=test_share,
        help="of the stars, set aside (" + (own.format(0.25) if test_share is None else f"{test_share:g}") + ")",
    )  # fmt: skip
    group.add_argument(
        "--split-seed",
        metavar="N",
        type=int,
        default=None if test_share is None else 0,
        help="of the division into training and test" + (f" ({own.format(0)})" if test_share is None else ""),
    )


def _add_training(parser: argparse.ArgumentParser, epochs: float, batch: int, rate: float) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("-o", "--output", metavar="FILE", required=True, help="model file (.safetensors)")
    group.add_argument("--epochs", metavar="X", type=float, default=epochs, help=f"default: {epochs:g}")
    group.add_argument("--batch-size", metavar="N", type=int, default=batch, help=f"default: {batch}")
    group.add_argument("--learning-rate", metavar="X", type=float, default=rate, help=f"default: {rate:g}")
    group.add_argument("--snr", metavar="X", type=float, nargs="+", default=[20, 25, 30, 35, 40], help="of the noise")
    group.add_argument("--snr-tilt", metavar="X", type=float, default=0.0, help="variation of ln(SNR) with wavelength")
    group.add_argument("--smooth", metavar="X", type=float, default=0.0, help="width of the smoothed bootstrap, 0-1")
    group.add_argument("--reddening", metavar="X", type=float, default=0.0, help="largest E(B-V) put before inputs")
    group.add_argument("--validation", metavar="X", type=float, default=0.0, help="share of the stars to validate on")
    group.add_argument(
        "--quantiles", metavar="X", type=float, default=0.0,
        help="passes of a last stage that makes SEDs medians and errors hold 68 %% of the residuals (default: none)",
    )  # fmt: skip
    several = group.add_mutually_exclusive_group()
    several.add_argument("--ensemble", metavar="N", type=int, help="networks (default: 1, or those of MODEL)")
    several.add_argument(
        "--folds", metavar="N", type=int, default=0,
        help="networks that are each trained without one part of the stars, which then tells how large errors are",
    )  # fmt: skip
    group.add_argument(
        "--error-snr", metavar="X", type=float, nargs="+",
        help="noise to add to those parts; inf adds none (default: the lowest and the highest of --snr)",
    )  # fmt: skip
    group.add_argument("--compile", action="store_true", help="compile the network first (needs a C++ compiler)")
    group.add_argument("--seed", metavar="N", type=int, default=0)
    group.add_argument("--checkpoint", metavar="FILE", help="default: the model's name with .checkpoint")


def _add_train(actions: Any) -> None:
    parser = actions.add_parser(
        "train", help="pre-train on a library",
        description=(
            "Pre-train on a library. A training that was interrupted is taken up by repeating the command. Beside the "
            "model stands its loss history (.history.ecsv)."
        ),
    )  # fmt: skip
    _add_library(parser, 0.25)
    parser.add_argument("--input-range", metavar=("LOW", "HIGH"), type=float, nargs=2, default=(4000.0, 7000.0))
    parser.add_argument("--input-r", metavar="R", type=float, default=2000.0, help="resolving power (2000)")
    parser.add_argument("--output-range", metavar=("LOW", "HIGH"), type=float, nargs=2, default=(2500.0, 10500.0))
    parser.add_argument("--output-r", metavar="R", type=float, default=200.0, help="resolving power (200)")
    _add_training(parser, 200, 128, 3e-3)


def _add_finetune(actions: Any) -> None:
    parser = actions.add_parser("finetune", help="go on training on another library")
    parser.add_argument("model", metavar="MODEL", help="model file")
    _add_library(parser, 0.2)
    _add_training(parser, 200, 32, 1e-3)


def _add_predict(actions: Any) -> None:
    parser = actions.add_parser("predict", help="SEDs of spectra")
    parser.add_argument("model", metavar="MODEL", help="model file")
    parser.add_argument("spectra", metavar="SPECTRUM", nargs="+", help="LAMOST files, or any that specutils reads")
    parser.add_argument("--rv", metavar="V", type=float, help="km/s, of all spectra; default: the headers' redshift")
    parser.add_argument("--teff", metavar="K", type=float, help="of all spectra: flags those outside the trained range")
    parser.add_argument("-o", "--output", metavar="FILE", help="table of SEDs, one row a spectrum (.fits or .ecsv)")
    parser.add_argument("--plot", metavar="FILE", help="plot of the SEDs")


def _add_evaluate(actions: Any) -> None:
    parser = actions.add_parser("evaluate", help="residuals and errors on stars whose SEDs are known")
    parser.add_argument("model", metavar="MODEL", help="model file")
    _add_library(parser, None)
    parser.add_argument("--all", action="store_true", help="all stars of the library, not the test share alone")
    parser.add_argument(
        "--snr", metavar="X", type=float, nargs="+", default=[20, 40, 80], help="noise to add; inf adds none"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the noise")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the table (.ecsv, .fits or .csv)")
    parser.add_argument("--plot", metavar="FILE", help="plot of medians and scatter by wavelength")


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    try:
        import torch
    except ImportError:
        raise CommandError("lamost-lsf sed needs torch: pip install 'lamost-lsf[train]'") from None
    if args.threads < 1:
        raise CommandError(f"--threads must be at least 1, got {args.threads}")
    torch.set_num_threads(args.threads)
    actions = {"train": _train, "finetune": _train, "predict": _predict, "evaluate": _evaluate}
    return actions[args.action](args)


# -- libraries ----------------------------------------------------------------------------------------------------


def _spectra(args: argparse.Namespace, input_grid: Any, output_grid: Any) -> tuple[Any, Any]:
    """Training and test set that the arguments describe."""
    from lamost_lsf.sed import prepare_set, read_library

    # redrock's classes are files: those that are not wanted need not be there
    own = {"types": args.types} if args.types and args.library.lower() == "redrock" else {}
    library = read_library(args.library, args.folder, **own)
    ranges = {}
    if args.teff:
        ranges["teff"] = tuple(args.teff)
    if args.ebv is not None:
        ranges["ebv"] = (-np.inf, args.ebv)
    if args.types or ranges:
        library = library.select(types=args.types, **ranges)
    if args.positive and len(library):
        low = max(min(input_grid.start, output_grid.start), library.wavelength[0])
        library = library[library.positive(low, max(input_grid.stop, output_grid.stop))]
    if args.clean and len(library):
        from lamost_lsf.sed import clean_library

        library, table = clean_library(library, grid=output_grid)
        note(f"{len(library)} of {len(table)} stars are normal")
    if len(library) < 2:
        raise CommandError(f"{len(library)} stars of library {args.library} are left by these choices")
    options = {}
    if args.lsf_of:
        options["input_lsf"] = _lsf(args)
    elif args.archive or args.simulated:
        raise CommandError("--archive and --simulated go with --lsf-of")
    if args.fwhm is not None:
        if args.lsf_of:
            raise CommandError("give --fwhm or --lsf-of, not both")
        floor, power = args.fwhm, input_grid.resolving_power
        options["input_fwhm"] = lambda w: np.maximum(floor, w / power)
    spectra = prepare_set(library, input_grid=input_grid, output_grid=output_grid, **options)
    if args.distinct:
        spectra = spectra.distinct()
    if not 0 < args.test_share < 1:
        raise CommandError(f"--test-share must lie between 0 and 1, got {args.test_share}")
    train, test = spectra.split(1.0 - args.test_share, seed=args.split_seed)
    return train, test


def _lsf(args: argparse.Namespace) -> Any:
    """LSF of the spectrum that the arguments name."""
    archive = open_archive(args)
    if archive is None:
        raise CommandError("--lsf-of needs --archive DIR or --simulated")
    return archive.lsf_for(read_observed(args.lsf_of))


def _split(args: argparse.Namespace) -> dict[str, Any]:
    """What decides which stars are set aside: the share, the seed, and the choice of stars that are divided."""
    chosen = {name: getattr(args, name) for name in ("types", "teff", "ebv", "positive", "clean", "distinct")}
    return {"test_share": args.test_share, "seed": args.split_seed, **{k: v for k, v in chosen.items() if v}}


# -- train, finetune ----------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    from lamost_lsf.sed import SEDModel, WavelengthGrid, cross_fit

    if Path(args.output).suffix != ".safetensors":
        raise CommandError(f"{args.output}: a model file ends in .safetensors")
    history_path = Path(args.output).with_suffix(".history.ecsv")
    for path in (args.output, str(history_path)):
        check_output(path, args.overwrite)
    if args.ensemble is not None and args.ensemble < 1:
        raise CommandError(f"--ensemble must be at least 1, got {args.ensemble}")
    if args.folds < 0 or args.folds == 1:
        raise CommandError(f"--folds must be at least 2, got {args.folds}")
    if args.error_snr and not args.folds:
        raise CommandError("--error-snr goes with --folds")
    base = None
    if args.action == "finetune":
        base = SEDModel.read(args.model)
        grids = (base.input_grid, base.output_grid)
    else:
        grids = (
            WavelengthGrid(args.input_r, *args.input_range),
            WavelengthGrid(args.output_r, *args.output_range),
        )
    train, test = _spectra(args, *grids)
    note(f"{len(train)} spectra to train on, {len(test)} set aside")
    if args.ensemble is None:
        args.ensemble = 1 if base is None else len(base.networks)
    trainer = _Trainer(args, base, len(train))
    if args.folds:
        result, _ = cross_fit(trainer, train, args.folds, args.error_snr, seed=args.seed)
    else:
        result = SEDModel.ensemble([trainer(train, k) for k in range(args.ensemble)])
    trainer.bars.close()
    result.write(args.output, overwrite=args.overwrite)
    _write_histories(trainer.histories, history_path, args.overwrite)
    for checkpoint in trainer.checkpoints:
        checkpoint.unlink(missing_ok=True)
    note(f"wrote {args.output} and {history_path.name}")
    best = min(row["validation_loss"] for row in trainer.histories[-1].rows)
    if args.json:
        print_json({"model": args.output, "n_train": len(train), "n_test": len(test), "validation_loss": best})
    return 0


class _Trainer:
    """Trains the k-th network of a command on a set; keeps histories and checkpoints."""

    def __init__(self, args: argparse.Namespace, base: Any, n_train: int) -> None:
        self.args, self.base = args, base
        self.bars, self.histories, self.checkpoints = Training(), [], []
        self.meta = {"library": args.library, "n_train": n_train, "split": _split(args)}

    def __call__(self, train: Any, k: int) -> Any:
        from lamost_lsf.sed import Augmentation, TrainSettings, finetune, fit_quantiles, pretrain

        args, base = self.args, self.base
        settings = TrainSettings(
            epochs=args.epochs, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed + k,
            validate_every=50 if base else 200, compile=args.compile, validation=args.validation,
            augmentation=Augmentation(
                snr=tuple(args.snr), snr_tilt=args.snr_tilt, smooth=args.smooth, reddening=args.reddening
            ),
        )  # fmt: skip
        stem = Path(args.checkpoint) if args.checkpoint else Path(args.output).with_suffix(".checkpoint")
        alone = args.ensemble == 1 and not args.folds
        checkpoint = stem if alone else stem.with_name(f"{stem.stem}-{k}{stem.suffix}")
        options = {"device": args.device, "checkpoint": checkpoint, "progress": self.bars, "meta": self.meta}
        if base is None:
            model, history = pretrain(train, settings, **options)
        else:
            # each network of an ensemble goes on by itself
            model, history = finetune(base.single(k % len(base.networks)), train, settings, **options)
        if args.quantiles > 0:
            last = replace(settings, epochs=args.quantiles, batch_size=128, learning_rate=2e-3)
            model, more = fit_quantiles(model, train, last, device=args.device, progress=self.bars)
            history.rows += more.rows
        self.histories.append(history)
        self.checkpoints.append(checkpoint)
        return model


def _write_histories(histories: list[Any], path: Path, overwrite: bool) -> None:
    from astropy.table import vstack

    tables = []
    for k, history in enumerate(histories):
        table = history.to_table()
        table.add_column(k, name="network", index=0)
        tables.append(table)
    write_table(vstack(tables), str(path), overwrite=overwrite)


# -- predict ------------------------------------------------------------------------------------------------------


def _predict(args: argparse.Namespace) -> int:
    import astropy.units as u
    from astropy.table import Table

    from lamost_lsf.sed import SEDFlag, SEDModel, predict

    for path in (args.output, args.plot):
        check_output(path, args.overwrite)
    if args.output and Path(args.output).suffix.lower() not in (".fits", ".ecsv"):
        raise CommandError(f"{args.output}: SEDs can be .fits or .ecsv; choose one as the ending of its name")
    model = SEDModel.read(args.model)
    spectra, names, failed = [], [], []
    for path in args.spectra:
        try:
            spectra.append(read_observed(path))
            names.append(path)
        except Exception as error:
            # one bad file must not cost the others their results
            if len(args.spectra) == 1 or args.debug:
                raise
            failed.append({"file": path, "error": one_line(error)})
            note(f"lamost-lsf sed: error: {one_line(error)}")
    if not spectra:
        raise CommandError("none of the files could be read")
    rv = None if args.rv is None else args.rv * u.km / u.s
    teff = None if args.teff is None else args.teff * u.K
    result = predict(model, spectra, rv, teff=teff, device=args.device)
    meta = result.meta
    if len(spectra) == 1 and meta["flags"][0] & SEDFlag.FAILED:
        # what is wrong with a single spectrum is an error
        raise CommandError(f"{names[0]}: {meta['messages'][0]}")
    rows = [
        {
            "file": name, "rv": float(meta["rv"][k]), "snr": float(meta["snr"][k]), "flags": int(meta["flags"][k]),
            "reasons": str(SEDFlag(int(meta["flags"][k])).name or "").replace("|", " "),
            "message": meta["messages"][k],
            "median_error": _median(result.uncertainty.array[k] / result.flux.value[k]),
        }
        for k, name in enumerate(names)
    ]  # fmt: skip
    if args.output:
        table = Table(rows)
        table["sed"] = result.flux.value
        table["error"] = result.uncertainty.array
        table["wavelength"] = np.tile(result.spectral_axis.value, (len(table), 1)) * u.AA
        table.meta |= {"medium": meta["wavelength_medium"], "frame": meta["frame"], "model": Path(args.model).name}
        write_table(table, args.output, overwrite=args.overwrite)
        note(f"wrote {args.output}")
    if args.plot:
        from lamost_lsf.sed.figures import plot_predictions

        figure = plot_predictions(result, [Path(name).name for name in names]).figure
        save_figure(figure, args.plot, overwrite=args.overwrite)
        note(f"wrote {args.plot}")
    if args.json:
        print_json(rows + failed)
    else:
        for row in rows:
            if row["flags"] & SEDFlag.FAILED:
                print(f"{row['file']}: FAILED: {row['message']}")
                continue
            print(
                f"{row['file']}: rv {row['rv']:.1f} km/s, SNR {row['snr']:.0f}, median error "
                f"{100 * row['median_error']:.1f} %, {row['reasons'] or 'good'}"
                + (f" ({row['message']})" if row["message"] else "")
            )
    return 1 if failed or any(row["flags"] & SEDFlag.FAILED for row in rows) else 0


def _median(values: np.ndarray) -> float:
    """Of what is known; NaN of nothing."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


# -- evaluate -----------------------------------------------------------------------------------------------------


def _same_split(args: argparse.Namespace, meta: dict[str, Any]) -> None:
    """Set stars aside as the model's training did, or say that some of those were trained on."""
    own = meta.get("split", {}) if str(meta.get("library", "")).lower() == args.library.lower() else {}
    args.test_share = own.get("test_share", 0.25) if args.test_share is None else args.test_share
    args.split_seed = own.get("seed", 0) if args.split_seed is None else args.split_seed
    if own and not args.all and _split(args) != own:
        differ = sorted(name for name in {*own, *_split(args)} if own.get(name) != _split(args).get(name))
        note(f"the model was trained with another {', '.join(differ)}: some of these stars may be among those it knows")


def _evaluate(args: argparse.Namespace) -> int:
    from lamost_lsf.sed import SEDModel, evaluate, summarize

    for path in (args.output, args.plot):
        check_output(path, args.overwrite)
    model = SEDModel.read(args.model)
    _same_split(args, model.meta)
    train, test = _spectra(args, model.input_grid, model.output_grid)
    if args.all:
        from lamost_lsf.sed import SpectralSet

        test = SpectralSet.concatenate([train, test])
    residuals = evaluate(model, test, args.snr, seed=args.seed, device=args.device)
    table = summarize(residuals)
    if args.output:
        write_table(table, args.output, overwrite=args.overwrite)
        note(f"wrote {args.output}")
    if args.plot:
        from lamost_lsf.sed.figures import plot_residual_curves

        save_figure(plot_residual_curves(residuals), args.plot, overwrite=args.overwrite)
        note(f"wrote {args.plot}")
    if args.json:
        print_json([dict(zip(table.colnames, row, strict=True)) for row in table])
    else:
        for name in ("median", "bias", "scatter", "sigma", "ratio"):
            table[name].format = ".4f"
        table.pprint_all()
    return 0
