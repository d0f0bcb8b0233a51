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


def _add_library(parser: argparse.ArgumentParser, test_share: float) -> None:
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
    group.add_argument(
        "--fwhm", metavar="X", type=float,
        help="bring inputs to FWHM = max(X, wavelength / R), Angstrom; for libraries coarser than the input's R",
    )  # fmt: skip
    group.add_argument(
        "--test-share", metavar="X", type=float, default=test_share, help=f"of the stars, set aside ({test_share:g})"
    )
    group.add_argument("--split-seed", metavar="N", type=int, default=0, help="of the division into training and test")


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
    group.add_argument("--ensemble", metavar="N", type=int, default=1, help="networks (default: 1)")
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
    parser.add_argument("-o", "--output", metavar="FILE", help="table of SEDs, one row a spectrum (.fits or .ecsv)")
    parser.add_argument("--plot", metavar="FILE", help="plot of the SEDs")


def _add_evaluate(actions: Any) -> None:
    parser = actions.add_parser("evaluate", help="residuals and errors on stars whose SEDs are known")
    parser.add_argument("model", metavar="MODEL", help="model file")
    _add_library(parser, 0.25)
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
    if args.fwhm is not None:
        floor, power = args.fwhm, input_grid.resolving_power
        options["input_fwhm"] = lambda w: np.maximum(floor, w / power)
    spectra = prepare_set(library, input_grid=input_grid, output_grid=output_grid, **options)
    if not 0 < args.test_share < 1:
        raise CommandError(f"--test-share must lie between 0 and 1, got {args.test_share}")
    train, test = spectra.split(1.0 - args.test_share, seed=args.split_seed)
    return train, test


# -- train, finetune ----------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    from lamost_lsf.sed import Augmentation, SEDModel, TrainSettings, WavelengthGrid, finetune, fit_quantiles, pretrain

    if Path(args.output).suffix != ".safetensors":
        raise CommandError(f"{args.output}: a model file ends in .safetensors")
    history_path = Path(args.output).with_suffix(".history.ecsv")
    for path in (args.output, str(history_path)):
        check_output(path, args.overwrite)
    if args.ensemble < 1:
        raise CommandError(f"--ensemble must be at least 1, got {args.ensemble}")
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
    meta = {
        "library": args.library, "n_train": len(train),
        "split": {"test_share": args.test_share, "seed": args.split_seed},
    }  # fmt: skip
    bars, models, rows = Training(), [], []
    for k in range(args.ensemble):
        settings = TrainSettings(
            epochs=args.epochs, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed + k,
            validate_every=50 if base else 200, compile=args.compile, validation=args.validation,
            augmentation=Augmentation(
                snr=tuple(args.snr), snr_tilt=args.snr_tilt, smooth=args.smooth, reddening=args.reddening
            ),
        )  # fmt: skip
        stem = Path(args.checkpoint) if args.checkpoint else Path(args.output).with_suffix(".checkpoint")
        checkpoint = stem if args.ensemble == 1 else stem.with_name(f"{stem.stem}-{k}{stem.suffix}")
        options = {"device": args.device, "checkpoint": checkpoint, "progress": bars, "meta": meta}
        if base is None:
            model, history = pretrain(train, settings, **options)
        else:
            # each network of an ensemble goes on by itself
            one = SEDModel(
                [base.networks[k % len(base.networks)]], base.input_grid, base.output_grid, base.domain,
                snr_range=base.snr_range, teff_range=base.teff_range, meta=base.meta,
            )  # fmt: skip
            model, history = finetune(one, train, settings, **options)
        if args.quantiles > 0:
            last = replace(settings, epochs=args.quantiles, batch_size=128, learning_rate=2e-3)
            model, more = fit_quantiles(model, train, last, device=args.device, progress=bars)
            history.rows += more.rows
        models.append((model, checkpoint))
        rows.append(history)
    bars.close()
    result = SEDModel.ensemble([model for model, _ in models])
    result.write(args.output, overwrite=args.overwrite)
    _write_histories(rows, history_path, args.overwrite)
    for _, checkpoint in models:
        checkpoint.unlink(missing_ok=True)
    note(f"wrote {args.output} and {history_path.name}")
    best = min(row["validation_loss"] for row in rows[-1].rows)
    if args.json:
        print_json({"model": args.output, "n_train": len(train), "n_test": len(test), "validation_loss": best})
    return 0


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
    device = "cpu" if args.device == "auto" else args.device
    if len(spectra) == 1:
        # what is wrong with a single spectrum is an error
        predict(model, spectra[0], rv, device=device)
    result = predict(model, spectra, rv, device=device)
    meta = result.meta
    rows = [
        {
            "file": name, "rv": float(meta["rv"][k]), "snr": float(meta["snr"][k]), "flags": int(meta["flags"][k]),
            "reasons": str(SEDFlag(int(meta["flags"][k])).name or "").replace("|", " "),
            "median_error": float(np.median(result.uncertainty.array[k] / result.flux.value[k])),
        }
        for k, name in enumerate(names)
    ]  # fmt: skip
    if args.output:
        table = Table(rows)
        table["sed"] = result.flux.value
        table["error"] = result.uncertainty.array
        table.meta["wavelength"] = result.spectral_axis.value.tolist() if args.output.endswith(".ecsv") else None
        if args.output.endswith(".ecsv"):
            write_table(table, args.output, overwrite=args.overwrite)
        else:
            del table.meta["wavelength"]
            table["wavelength"] = np.tile(result.spectral_axis.value, (len(table), 1))
            table["wavelength"].unit = u.AA
            write_table(table, args.output, overwrite=args.overwrite)
        note(f"wrote {args.output}")
    if args.plot:
        from lamost_lsf.sed.figures import plot_predictions

        save_figure(plot_predictions(result, names).figure, args.plot, overwrite=args.overwrite)
        note(f"wrote {args.plot}")
    if args.json:
        print_json(rows + failed)
    else:
        for row in rows:
            print(
                f"{row['file']}: rv {row['rv']:.1f} km/s, SNR {row['snr']:.0f}, median error "
                f"{100 * row['median_error']:.1f} %, {row['reasons'] or 'good'}"
            )
    return 1 if failed or any(row["flags"] & SEDFlag.FAILED for row in rows) else 0


# -- evaluate -----------------------------------------------------------------------------------------------------


def _evaluate(args: argparse.Namespace) -> int:
    from lamost_lsf.sed import SEDModel, evaluate, summarize

    for path in (args.output, args.plot):
        check_output(path, args.overwrite)
    model = SEDModel.read(args.model)
    train, test = _spectra(args, model.input_grid, model.output_grid)
    if args.all:
        from lamost_lsf.sed import SpectralSet

        test = SpectralSet.concatenate([train, test])
    device = "cpu" if args.device == "auto" else args.device
    residuals = evaluate(model, test, args.snr, seed=args.seed, device=device)
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
