"""An LSF that many measurements of one spectrum share: its model is asked once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.interpolate import BSpline, make_interp_spline

from lamost_lsf.lsf import LSF

__all__ = ["KeptLSF"]

#: Distance of the wavelengths at which the model is asked, Angstrom; profiles in between by a cubic.
_STEP = 6.0


class KeptLSF(LSF):
    """An LSF sampled every few Angstrom between two wavelengths; its cubic spline there, itself elsewhere.

    A velocity by each of six centres, on each of six wavelength scales, asks for the same profiles many times.

    Parameters
    ----------
    lsf : LSF
        Smooth between the two wavelengths.
    low, high : float
        Vacuum Angstrom, the frame of ``lsf``; narrowed to its range.
    """

    def __init__(self, lsf: LSF, low: float, high: float) -> None:
        super().__init__(lsf.meta)
        self._inner = lsf
        self.offset, self.wavelength_range, self.center = lsf.offset, lsf.wavelength_range, lsf.center
        self._range_hint = lsf._range_hint
        self._low, self._high = max(low, lsf.wavelength_range[0]), min(high, lsf.wavelength_range[1])
        n = max(int(np.ceil((self._high - self._low) / _STEP)) + 1, 4)
        self._nodes = np.linspace(self._low, self._high, n)
        self._profiles = make_interp_spline(self._nodes, lsf.sample(self._nodes), k=3)
        self._zero: dict[str, BSpline] = {}

    @classmethod
    def of(cls, lsf: LSF, low: float, high: float) -> LSF:
        """Of an LSF that is smooth there; an LSF of joined arms, or one beside the window, is given back as it is."""
        first, last = lsf.wavelength_range
        if len(lsf.segments()) > 1 or not max(low, first) < min(high, last):
            return lsf
        return cls(lsf, low, high)

    def _inside(self, wavelength: np.ndarray) -> bool:
        return wavelength.size > 0 and bool(np.min(wavelength) >= self._low and np.max(wavelength) <= self._high)

    def _sample(self, wavelength: np.ndarray) -> np.ndarray:
        return self._profiles(wavelength) if self._inside(wavelength) else self._inner.sample(wavelength)

    def zero_point(self, wavelength: np.ndarray, center: str | Callable | None = None) -> np.ndarray:
        """As for `LSF`; centres are those of the sampled profiles, and a cubic in between."""
        center = center if center is not None else (self.center or "zero")
        wavelength = np.asarray(wavelength, dtype=np.float64)
        if not isinstance(center, str) or not self._inside(wavelength):
            return self._inner.zero_point(wavelength, center)
        if center not in self._zero:
            self._zero[center] = make_interp_spline(self._nodes, self._inner.zero_point(self._nodes, center), k=3)
        return self._zero[center](wavelength)
