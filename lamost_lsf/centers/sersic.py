"""Centre of a fitted Sersic profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lamost_lsf.centers import fitting
from lamost_lsf.centers.gauss import PeakFit

__all__ = ["Sersic"]


@dataclass(frozen=True)
class Sersic(PeakFit):
    """Centre c of the best ``f = alpha exp(-|x - c|^d / (d g^d)) + a x + b`` (Liu et al. 2026, Eq. 6).

    All six parameters are fitted by least squares, weighted by 1 / error**2 where errors are given. The start
    is a Gaussian (d = 2) on the line through the window's ends; the optimum is converged to about 1e-7 of the
    width. NaN, with one `~lamost_lsf.errors.FitWarning` per call, where there is no peak above that line,
    fewer than six good samples, no convergence, a centre outside the window, or a width below a fifth of the
    sample spacing or above four windows. On an undersampled line chi-square can be flat along a valley of
    exponents; the fit then ends where chi-square has stopped falling.

    Parameters
    ----------
    exponent_bounds : (float, float)
        Range of d, at least 1 (below, the model has a cusp that a single high sample can always fit). A fit
        that ends at a bound is converged; its exponent is then the bound.

    Raises
    ------
    ValueError
        Unless 1 <= low < high.

    Notes
    -----
    Profiles of arc lines have d near 1.9, where the second derivative of ``|x - c|^d`` is infinite at c; its
    first derivative, all that a gradient needs, is continuous for d > 1. In `fit`, alpha is ``amplitude``,
    g ``width``, d ``exponent``, a ``slope`` and b ``intercept``.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.centers import Sersic
    >>> x = np.linspace(-8.335, 9.25, 600)
    >>> profile = 30.0 * np.exp(-abs(x - 0.25) ** 1.9 / (1.9 * 1.3**1.9)) + 0.1 * x + 2.0
    >>> fit = Sersic().fit(x, profile)
    >>> print(f"{fit['center']:.5f} {fit['exponent']:.4f} {fit['slope']:.4f}")
    0.25000 1.9000 0.1000
    """

    name: ClassVar[str] = "sersic"
    _tolerance: ClassVar[float] = 1e-6
    exponent_bounds: tuple[float, float] = (1.0, 10.0)

    def __post_init__(self) -> None:
        low, high = self.exponent_bounds
        if not 1.0 <= low < high < float("inf"):
            raise ValueError(f"exponent_bounds must be 1 <= low < high, not {self.exponent_bounds}")

    def _model(self) -> tuple[list[int], float, tuple[float, float]]:
        low, high = self.exponent_bounds
        free = [fitting.ALPHA, fitting.CENTER, fitting.WIDTH, fitting.EXPONENT, fitting.SLOPE, fitting.CONSTANT]
        return free, min(max(2.0, low), high), (low, high)
