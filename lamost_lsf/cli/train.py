"""``lamost-lsf train``: models of the instrumental profile, of one set of profiles or of all."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from lamost_lsf.cli._common import CommandError, note, print_json
from lamost_lsf.cli._progress import Items, Training

__all__ = ["add_parser", "run"]


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.strip(), value.strip()


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "train",
        help="train models of the instrumental profile",
        description=(
            "Train the model of one store of profiles, or of every store under a folder. Beside each model stand its "
            "loss history (.history.ecsv) and a plot of it (.loss.png). Training that was interrupted, even killed, is "
            "taken up by repeating the command; what is finished is not done twice. Needs torch "
            "(pip install 'lamost-lsf[train]')."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf train profiles/01_b_2017.profiles --output 01_b_2017.safetensors\n"
            "  lamost-lsf train --all profiles/ --output models/\n"
            "  lamost-lsf train --all profiles/ --output models/ --workers 4\n"
            "  lamost-lsf train --all profiles/ --output models/ --scheduler tcp://node1:8786"
        ),
    )
    parser.add_argument("store", metavar="STORE", nargs="?", help="store of profiles, as `extract` makes them")
    parser.add_argument("--all", metavar="ROOT", help="every store (*.profiles) under this folder instead")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="model file (.safetensors); with --all a folder"
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe", choices=("expanded", "payne"), default="expanded",
        help="expanded (default): basis, fibre and night terms, uncertainty; payne: the published recipe",
    )  # fmt: skip
    group.add_argument("--epochs", metavar="X", type=float, help="passes over the training set; default: the recipe's")
    group.add_argument(
        "--setting", metavar="NAME=VALUE", type=_setting, action="append", default=[],
        help="any other setting of the recipe, such as hidden=128; may be repeated",
    )  # fmt: skip
    group.add_argument("--fraction", metavar="X", type=float, default=0.8, help="of the exposures, to train on (0.8)")
    group.add_argument("--leave-out-line", metavar="N", type=int, help="number of a line to leave out, to evaluate on")
    group.add_argument("--leave-out-night", metavar="MJD", type=int, help="night to leave out, likewise")
    group.add_argument("--leave-out-fiber", metavar="N", type=int, help="fibre to leave out, likewise")
    group.add_argument(
        "--label", metavar="NAME", action="append", default=[],
        help="further label of every exposure, such as temperature, that the profile depends on; may be repeated",
    )  # fmt: skip
    group.add_argument("--seed", metavar="N", type=int, default=0)
    group.add_argument("--device", metavar="NAME", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    group.add_argument("--threads", metavar="N", type=int, default=1, help="of torch on the CPU (default: 1)")
    group = parser.add_argument_group("campaign")
    group.add_argument("--scheduler", metavar="ADDRESS", help="with --all: Dask scheduler to train on")
    group.add_argument("--workers", metavar="N", type=int, help="with --all: so many processes on this machine")
    group.add_argument("--work", metavar="DIR", help="folder of checkpoints; default: .work beside the models")
    group.add_argument("--checkpoint-every", metavar="N", type=int, default=500, help="steps (default: 500)")
    group.add_argument("--overwrite", action="store_true", help="replace models of other profiles or settings")
    group.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    if (args.store is None) == (args.all is None):
        raise CommandError("give a store, or --all and a folder of stores")
    if args.all is None and (args.scheduler or args.workers is not None):
        raise CommandError("--scheduler and --workers go with --all")
    try:
        from lamost_lsf.training.campaign import TrainingPlan, train_all, train_set
    except ImportError as error:
        raise CommandError(str(error)) from None
    plan = TrainingPlan(
        recipe=args.recipe, settings=_settings(args), fraction=args.fraction, leave_out_line=args.leave_out_line,
        leave_out_night=args.leave_out_night, leave_out_fiber=args.leave_out_fiber, labels=tuple(args.label),
        seed=args.seed, device=args.device, threads=args.threads,
        checkpoint_every=args.checkpoint_every,
    )  # fmt: skip
    bars = Training()
    try:
        if args.all is None:
            return _one(args, plan, train_set, bars)
        return _all(args, plan, train_all, bars)
    except ImportError as error:
        raise CommandError(str(error)) from None
    finally:
        bars.close()


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the recipe, as the types that its fields have."""
    from lamost_lsf.training import ExpandedSettings, PayneSettings

    chosen = {"expanded": ExpandedSettings, "payne": PayneSettings}[args.recipe]
    kinds = {f.name: str(f.type) for f in fields(chosen) if f.name != "seed"}
    settings: dict[str, Any] = {} if args.epochs is None else {"epochs": args.epochs}
    for name, text in args.setting:
        if name not in kinds:
            raise CommandError(f"recipe {args.recipe} has no setting {name!r}; it has {', '.join(kinds)}")
        try:
            if "None" in kinds[name] and text.lower() == "none":
                settings[name] = None
            else:
                settings[name] = float(text) if kinds[name] == "float" else int(text)
        except ValueError:
            kind = "a number" if kinds[name] == "float" else "a whole number"
            raise CommandError(f"setting {name} must be {kind}, got {text!r}") from None
    for name, value in settings.items():
        if value is not None and not value > 0:
            raise CommandError(f"setting {name} must be above 0, got {value}")
    return settings


def _one(args: argparse.Namespace, plan: Any, train_set: Any, bars: Training) -> int:
    model = Path(args.output).absolute()
    if model.is_dir():
        model = model / f"{Path(args.store).stem}.safetensors"
    if model.suffix != ".safetensors":
        raise CommandError(f"{model}: a model file ends in .safetensors")
    if not model.parent.is_dir():
        raise CommandError(f"folder {model.parent} does not exist")
    row = train_set(args.store, model, plan, work=args.work, overwrite=args.overwrite, progress=bars)
    bars.close()
    if row["status"] in ("outdated", "busy", "failed"):
        hint = "" if row["status"] == "busy" else "; --overwrite trains it anew"
        raise CommandError(f"{model.name}: {row['reason']}{hint}")
    if args.json:
        print_json(row)
    else:
        _print([row])
    return 0


def _all(args: argparse.Namespace, plan: Any, train_all: Any, bars: Training) -> int:
    from lamost_lsf.training.campaign import find_stores

    elsewhere = args.scheduler is not None or args.workers is not None
    items = Items(len(find_stores(args.all)), "sets") if elsewhere else None

    def report(row: dict[str, Any]) -> None:
        bars.close()
        reason = f": {row['reason']}" if row["reason"] else ""
        message = f"{row['set']}: {row['status']}{reason}"
        if items is None:
            note(message)
        else:
            items.say(message)
            items.advance()

    table = train_all(
        args.all, args.output, plan=plan, scheduler=args.scheduler, workers=args.workers, work=args.work,
        overwrite=args.overwrite, progress=None if elsewhere else bars.named, report=report,
    )  # fmt: skip
    rows = [{name: row[name] for name in table.colnames} for row in table]
    if args.json:
        print_json(rows)
    else:
        _print(rows)
        note(f"summary in {Path(args.output) / 'summary.ecsv'}")
    return 0 if all(row["status"] in ("trained", "finished") for row in rows) else 1


def _print(rows: list[dict[str, Any]]) -> None:
    width = max(len("set"), *(len(row["set"]) for row in rows))
    print(f"{'set':{width}}  {'status':8}  {'profiles':>9}  {'chi2':>6}  {'linear':>6}  {'loss':>8}  {'seconds':>8}")
    for row in rows:
        numbers = (
            f"{row['n_profiles']:9d}  {_number(row['validation_chi2'], '6.3f')}  "
            f"{_number(row['validation_chi2_baseline'], '6.3f')}  {_number(row['validation_loss'], '8.4g')}  "
            f"{_number(row['seconds'], '8.1f')}"
        )
        print(f"{row['set']:{width}}  {row['status']:8}  {numbers}" + (f"  {row['reason']}" if row["reason"] else ""))


def _number(value: float, form: str) -> str:
    width = int(form.partition(".")[0])
    return format(value, form) if value == value else f"{'-':>{width}}"
