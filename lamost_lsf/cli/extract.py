"""``lamost-lsf extract``: line profiles of arc exposures, into one store for each season, spectrograph and arm."""

from __future__ import annotations

import argparse
import glob
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lamost_lsf.cli._common import CommandError, note, one_line, print_json
from lamost_lsf.cli._progress import Items

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Parser of the sub-command, added to ``commands``."""
    parser = commands.add_parser(
        "extract",
        help="cut line profiles out of arc exposures",
        description=(
            "Cut the instrument's lines out of arc exposures (FITS files that ArcExposure.write and `simulate` make) "
            "and append them to one store for each season, spectrograph and arm. Exposures that a store has are passed "
            "over: a run that was interrupted is repeated."
        ),
        epilog=(
            "examples:\n"
            "  lamost-lsf extract arcs/*.fits --output profiles/\n"
            "  lamost-lsf extract 'arcs/**/arc_*.fits' --output profiles/ --json"
        ),
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="arc exposures; patterns such as 'arcs/**/*.fits' too")
    parser.add_argument("-o", "--output", metavar="ROOT", required=True, help="folder of the stores, made if missing")
    parser.add_argument("--instrument", metavar="NAME", help="name or file; default: what each exposure says")
    parser.add_argument("--saturation", metavar="COUNTS", type=float, help="level at which a pixel is full")
    parser.add_argument("--keep-flagged", action="store_true", help="store rejected profiles too, with their flags")
    parser.add_argument("--compression", choices=("lzf", "gzip", "none"), default="lzf", help="default: lzf")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the sub-command; its exit status."""
    root = Path(args.output).absolute()
    if not root.parent.is_dir():
        raise CommandError(f"folder {root.parent} does not exist")
    if root.exists() and not root.is_dir():
        raise CommandError(f"{root} is a file; --output is a folder of stores")
    files = expand(args.files)
    if args.instrument is not None:
        from lamost_lsf.instruments import get_instrument

        get_instrument(args.instrument)  # a name that does not exist: once, not for every file
    root.mkdir(exist_ok=True)
    extractor = _Extractor(root, args)
    failed = []
    with Items(len(files), "exposures") as items:
        for path in files:
            try:
                extractor.add(path)
            except Exception as error:
                # one bad file must not cost the others theirs; a single one is an error like any
                if len(files) == 1 or args.debug:
                    raise
                failed.append({"file": path, "error": one_line(error)})
                message = one_line(error)
                items.say(f"lamost-lsf extract: error: {message if path in message else f'{path}: {message}'}")
            items.advance()
    stores = extractor.summary()
    if args.json:
        print_json({"root": str(root), "stores": stores, "failed": failed})
    else:
        _print(stores, failed)
    return 1 if failed else 0


def expand(patterns: list[str]) -> list[str]:
    """Files of names and patterns, each once, in order.

    Raises
    ------
    CommandError
        A name without a file, a pattern that fits none.
    """
    files: dict[str, None] = {}
    for pattern in patterns:
        if Path(pattern).is_file():
            found = [pattern]
        elif glob.has_magic(pattern):
            found = sorted(f for f in glob.glob(pattern, recursive=True) if Path(f).is_file())
            if not found:
                raise CommandError(f"no file fits {pattern}")
        else:
            raise CommandError(f"no such file: {pattern}")
        files |= dict.fromkeys(found)
    return list(files)


class _Extractor:
    """Extracts exposures and appends them, each to the store that it belongs to."""

    def __init__(self, root: Path, args: argparse.Namespace) -> None:
        self.root, self.args = root, args
        self.stores: dict[Path, Any] = {}
        self.known: dict[Path, set[tuple[int, str]]] = {}
        self.counts: dict[Path, dict[str, Any]] = {}

    def add(self, path: str) -> None:
        """One file."""
        from lamost_lsf.arcs import ArcExposure, ProfileFlag, extract_profiles
        from lamost_lsf.store import ProfileStore
        from lamost_lsf.time import season

        exposure = ArcExposure.read(path)
        if exposure.lamp.strip().lower() == "sky":
            raise CommandError(f"{path} is an exposure of the night sky, not of an arc lamp; evaluate --sky takes it")
        where = ProfileStore.path_for(self.root, exposure.spectrograph, exposure.arm, int(season(exposure.time)))
        if where not in self.stores:
            compression = None if self.args.compression == "none" else self.args.compression
            store = self.stores[where] = ProfileStore(where, compression=compression)
            self.known[where] = _keys(store)
            self.counts[where] = {"appended": 0, "skipped": 0, "profiles": 0, "good": 0, "reasons": {}}
        counts = self.counts[where]
        key = _key(exposure.lmjm, exposure.lamp)
        if key in self.known[where]:
            counts["skipped"] += 1
            return
        exposure = replace(exposure, meta={"file": str(path), **exposure.meta})
        profiles = extract_profiles(exposure, instrument=self.args.instrument, saturation=self.args.saturation)
        # another process may have stored it meanwhile
        batch = self.stores[where].append(profiles, include_flagged=self.args.keep_flagged, duplicates="skip")
        self.known[where].add(key)
        if batch is None:
            counts["skipped"] += 1
            return
        counts["appended"] += 1
        counts["profiles"] += len(profiles)
        counts["good"] += int(profiles.good.sum())
        for row in profiles.yields(by="reason"):
            name = ProfileFlag[row["reason"]].name.lower()
            counts["reasons"][name] = counts["reasons"].get(name, 0) + int(row["n"])

    def summary(self) -> list[dict[str, Any]]:
        """One entry a store: what was appended now, and what it holds altogether."""
        rows = []
        for path in sorted(self.stores):
            store, counts = self.stores[path], self.counts[path]
            begun = len(self.known[path]) > 0
            rows.append(
                {"store": str(path), **counts, "total_profiles": len(store), "total_exposures": store.n_exposures,
                 "id": store.id if begun else None}
            )  # fmt: skip
        return rows


def _key(lmjm: float, lamp: str) -> tuple[int, str]:
    """Identity of an exposure in a store: its time to the second, and its lamp."""
    return round(float(lmjm) * 60.0), str(lamp).strip().lower()


def _keys(store: Any) -> set[tuple[int, str]]:
    if not store.n_exposures:
        return set()
    table = store.exposures
    return {_key(lmjm, lamp) for lmjm, lamp in zip(table["lmjm"], table["lamp"], strict=True)}


def _print(stores: list[dict[str, Any]], failed: list[dict[str, str]]) -> None:
    for row in stores:
        share = f" ({row['good'] / row['profiles']:.1%})" if row["profiles"] else ""
        print(
            f"{row['store']}: {row['appended']} exposures appended, {row['skipped']} there already; "
            f"{row['good']} of {row['profiles']} profiles good{share}; holds {row['total_profiles']} profiles of "
            f"{row['total_exposures']} exposures"
        )
        for name, n in row["reasons"].items():
            if n:
                print(f"  {name:18} {n:9d}  {n / row['profiles']:7.2%}")
    if failed:
        note(f"{len(failed)} files could not be used")
    sys.stdout.flush()
