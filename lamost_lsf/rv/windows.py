"""Windows of a batch: whole spectra, arms, the paper's segments, or whatever the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import astropy.units as u
import numpy as np

from lamost_lsf.rv.prepare import SEGMENT_HALF_WIDTH
from lamost_lsf.units import to_angstrom

__all__ = ["Window", "default_degree", "parse_windows"]

#: What a window's ends are rounded to where it is "whatever the spectrum has": Angstrom.
_WHOLE_STEP = 50.0


@dataclass(frozen=True)
class Window:
    """A window: its name and limits (vacuum Angstrom); infinite limits mean all pixels."""

    name: str
    low: float = 0.0
    high: float = np.inf

    def of(self, wavelength: np.ndarray) -> tuple[float, float]:
        """Limits for a spectrum's usable wavelengths: these, rounded outwards, where the window's are infinite."""
        if np.isfinite(self.high):
            return self.low, self.high
        return (
            float(np.floor(wavelength[0] / _WHOLE_STEP) * _WHOLE_STEP),
            float(np.ceil(wavelength[-1] / _WHOLE_STEP) * _WHOLE_STEP),
        )


def default_degree(width: float) -> int:
    """Degree of the continuum for a width in Angstrom: one for every 100 A plus 1, between 2 and 20."""
    return int(np.clip(round(width / 100.0) + 1, 2, 20))


def _arm(name: str) -> Window:
    from lamost_lsf.instruments import get_instrument

    limits = get_instrument(f"lamost-lrs-{name}").arm_limits()
    low, high = limits.to_value(u.AA)
    return Window(name, float(low), float(high))


def _segments() -> list[Window]:
    """Segments around the lines of LAMOST's arcs, of both arms."""
    from lamost_lsf.instruments import get_instrument

    out: dict[str, Window] = {}
    for arm in ("blue", "red"):
        for w in get_instrument(f"lamost-lrs-{arm}").lines.vacuum:
            window = _segment(float(w))
            out.setdefault(window.name, window)
    return list(out.values())


def _segment(center: float) -> Window:
    return Window(f"{center:.0f}", center - SEGMENT_HALF_WIDTH, center + SEGMENT_HALF_WIDTH)


def parse_windows(windows: Any) -> list[Window]:
    """Windows from whatever names them.

    Parameters
    ----------
    windows : None, str, Quantity, mapping, or sequence of them
        None: all of a spectrum. "blue", "red": an arm; "arms": both; "segments": 150 A either side of every line of
        LAMOST's arcs (Liu et al. 2026, section 5.2). A wavelength: 150 A either side of it. Two: from one to the other.
        A mapping names each: ``{"Mg": (5000, 5300) * u.AA}``.

    Raises
    ------
    TypeError, ValueError
        Anything else, names that occur twice, or windows that are not two increasing wavelengths.
    """
    found = _parse(windows)
    if not found:
        raise ValueError("give at least one window, or None for all of each spectrum")
    names = [w.name for w in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"windows must have different names, got {', '.join(twice)} more than once")
    if "combined" in names:
        raise ValueError("a window may not be called 'combined', the name of the row of all windows")
    return found


def _parse(windows: Any) -> list[Window]:
    if windows is None:
        return [Window("all")]
    if isinstance(windows, Window):
        return [windows]
    if isinstance(windows, str):
        name = windows.lower()
        if name == "segments":
            return _segments()
        if name == "arms":
            return [_arm("blue"), _arm("red")]
        if name in ("blue", "red"):
            return [_arm(name)]
        if name == "all":
            return [Window("all")]
        raise ValueError(f"windows must be 'all', 'arms', 'blue', 'red', 'segments' or wavelengths, got {windows!r}")
    if isinstance(windows, Mapping):
        out = []
        for name, limits in windows.items():
            (window,) = _parse(limits) if limits is None or isinstance(limits, str) else [_limits(limits)]
            out.append(Window(str(name), window.low, window.high))
        return out
    if isinstance(windows, u.Quantity) or _is_pair(windows):
        return [_limits(windows)]
    if isinstance(windows, Sequence):
        return [w for item in windows for w in _parse(item)]
    raise TypeError(f"windows must be None, a name, wavelengths, a mapping or a list of these, got {windows!r}")


def _is_pair(windows: Any) -> bool:
    return (
        isinstance(windows, tuple)
        and len(windows) == 2
        and all(isinstance(w, u.Quantity) and w.ndim == 0 for w in windows)
    )


def _limits(limits: Any) -> Window:
    if isinstance(limits, tuple | list):
        limits = u.Quantity([to_angstrom(w, "each end of a window") for w in limits], u.AA)
    values = to_angstrom(limits, "a window")
    if values.ndim == 0 and np.isfinite(values) and values > SEGMENT_HALF_WIDTH:
        return _segment(float(values))
    if values.shape != (2,) or not np.all(np.isfinite(values)) or not 0 < values[0] < values[1]:
        raise ValueError(f"a window must be one wavelength or two increasing ones, got {limits}")
    return Window(f"{values[0]:.0f}-{values[1]:.0f}", float(values[0]), float(values[1]))
