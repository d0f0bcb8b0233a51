"""Choosing the instrumental profile on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import astropy.units as u
from astropy.time import Time

from lamost_lsf.cli._common import CommandError, parse_time

__all__ = ["LSFChoice", "add_lsf_arguments", "open_archive"]


def add_lsf_arguments(parser: argparse.ArgumentParser, *, labels: str) -> None:
    """Options that choose a model; ``labels`` says where time, fibre and spectrograph come from by default."""
    group = parser.add_argument_group("instrumental profile (one of)")
    one = group.add_mutually_exclusive_group(required=True)
    one.add_argument("--archive", metavar="DIR", help="folder of models by season, spectrograph and arm")
    one.add_argument("--model", metavar="FILE", help="one model: .safetensors, published .npz, or specex .fits")
    one.add_argument("--resolving-power", metavar="R", type=float, help="Gaussian of FWHM = wavelength / R")
    one.add_argument("--simulated", action="store_true", help="the built-in simulated instrument")
    group = parser.add_argument_group(f"what the model depends on ({labels})")
    group.add_argument(
        "--time", metavar="T", type=parse_time, nargs="+",
        help="date and time, UTC, or local modified Julian minute (LMJM); several for the exposures of a co-add",
    )  # fmt: skip
    group.add_argument("--fiber", metavar="N", type=int, help="fibre, 1-250")
    group.add_argument("--spectrograph", metavar="N", type=int, help="spectrograph, 1-16")
    group.add_argument(
        "--label", metavar="NAME=VALUE", type=_label, action="append", default=[],
        help="further label of the model, such as temperature=3.1 (may be repeated), or 'median' of its training",
    )  # fmt: skip
    group.add_argument("--extrapolate", action="store_true", help="allow labels outside the model's trained range")


def _label(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if text == "median":
        return text, 0.0
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE or 'median', got {text!r}") from None


def read_model(path: str) -> Any:
    """IP model of a file; what it is follows from the ending of its name."""
    from lamost_lsf.models import GaussHermiteIP, NeuralIP

    if not Path(path).is_file():
        raise CommandError(f"no such file: {path}")
    suffix = Path(path.removesuffix(".gz")).suffix.lower()
    readers = {
        ".safetensors": NeuralIP.read,
        ".npz": NeuralIP.from_pylamostip,
        ".fits": GaussHermiteIP.from_specex,
    }
    if suffix not in readers:
        raise CommandError(f"{path}: a model ends in {', '.join(readers)}")
    return readers[suffix](path)


def open_archive(args: argparse.Namespace) -> Any:
    """Archive of models that ``--archive`` or ``--simulated`` names; None without either."""
    if args.simulated:
        from lamost_lsf.simulation import Observatory

        return Observatory()
    if args.archive:
        from lamost_lsf.models import IPArchive

        return IPArchive(args.archive)
    return None


class LSFChoice:
    """The model that the options name, read once, and its LSF for each spectrum.

    Parameters
    ----------
    args : argparse.Namespace
        With the options of `add_lsf_arguments`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from lamost_lsf.models import GaussianIP

        self._args = args
        given = dict(getattr(args, "label", []))
        self._extra = "median" if "median" in given else given or None
        self._archive = open_archive(args)
        self._model = None
        if args.model:
            self._model = read_model(args.model)
        elif args.resolving_power is not None:
            self._model = GaussianIP(args.resolving_power)
        if self._model is not None and self._extra is not None:
            self._model = self._model.with_labels(self._extra, extrapolate=args.extrapolate)

    def _labels(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Time, fibre and spectrograph: the options', else the spectrum's."""
        args = self._args
        time = meta.get("time")
        if args.time:
            time = args.time[0] if len(args.time) == 1 else Time(args.time)
        given = {"time": time, "fiber": args.fiber, "spectrograph": args.spectrograph}
        return {key: meta.get(key) if value is None else value for key, value in given.items()}

    def _need(self, labels: dict[str, Any], *names: str) -> None:
        if missing := [name for name in names if labels[name] is None]:
            raise CommandError(
                f"the profile depends on {', '.join(missing)}: pass {', '.join('--' + n for n in missing)}"
            )

    def lsf(self, meta: Mapping[str, Any] | None = None) -> Any:
        """LSF of a spectrum of that meta, in its own frame; without one, in the detector's."""
        from lamost_lsf.io import detector_factor
        from lamost_lsf.models import GaussianIP

        # without a spectrum, wavelengths are the detector's own
        meta = {"frame": "topocentric"} if meta is None else dict(meta)
        labels = self._labels(meta)
        extrapolate = self._args.extrapolate
        if isinstance(self._model, GaussianIP):
            return self._model.at()
        if self._archive is not None:
            self._need(labels, "spectrograph", "fiber", "time")
            return self._archive.lsf_for({**meta, **labels}, labels=self._extra, extrapolate=extrapolate)
        self._need(labels, *[n for n in ("time", "fiber") if getattr(self._model, f"needs_{n}")])
        lsf = self._model.at(time=labels["time"], fiber=labels["fiber"], extrapolate=extrapolate)
        return lsf.shifted(detector_factor(meta)).centered(meta.get("wavelength_center"))

    def profiles(self, wavelength: u.Quantity, medium: str) -> list[Any]:
        """One instrumental profile a wavelength; a list, because arms have offsets of their own."""
        from lamost_lsf.models import GaussianIP

        labels = self._labels({})
        if labels["time"] is not None and not labels["time"].isscalar:
            raise CommandError("a profile is of one time")
        options = {"medium": medium, "extrapolate": self._args.extrapolate}
        if isinstance(self._model, GaussianIP):
            return [self._model.profile(wavelength=w, **options) for w in wavelength]
        if self._model is not None:
            self._need(labels, *[n for n in ("time", "fiber") if getattr(self._model, f"needs_{n}")])
            labels = {"time": labels["time"], "fiber": labels["fiber"]}
            return [self._model.profile(wavelength=w, **labels, **options) for w in wavelength]
        self._need(labels, "spectrograph", "fiber", "time")
        return [self._archive.profile(wavelength=w, **labels, labels=self._extra, **options) for w in wavelength]
