"""Centre of a fitted Gaussian, and what fitted peaks share."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from lamost_lsf.centers import fitting
from lamost_lsf.centers._base import CenterEstimator, Samples, prepare
from lamost_lsf.errors import FitWarning

__all__ = ["Gauss", "PeakFit"]


class PeakFit(CenterEstimator):
    """Base class of the centres that are a parameter of a fitted peak."""

    #: Names of the parameters, in the order alpha, c, g, d, a, b of Liu et al. Eq. 6.
    _names: ClassVar[tuple[str, ...]] = ("amplitude", "center", "width", "exponent", "slope", "intercept")
    # the step (relative to the width) at which the next would be far below 1e-6
    _tolerance: ClassVar[float]

    def _model(self) -> tuple[list[int], float, tuple[float, float]]:
        """Free parameters, exponent to start from, bounds of the exponent."""
        raise NotImplementedError

    def _run(self, samples: Samples, full: bool, stacklevel: int = 4) -> np.ndarray:
        free, exponent, bounds = self._model()
        out = np.empty((samples.profile.shape[0], 16))
        fitting.fit_peaks(
            samples.x,
            samples.profile,
            samples.error,
            samples.mask,
            np.array(free),
            float(exponent),
            np.array(bounds, dtype=float),
            self._tolerance,
            full,
            out,
        )
        failed = int(np.count_nonzero(out[:, fitting.CONVERGED] == 0.0))
        if failed:
            warnings.warn(
                f"{self.name}: {failed} of {len(out)} profiles could not be fitted and are NaN "
                "(no positive peak, too few good samples, a centre outside the window, or no convergence)",
                FitWarning,
                stacklevel=stacklevel,
            )
        return out

    def _center(self, samples: Samples) -> np.ndarray:
        return self._run(samples, full=False)[:, fitting.CENTER]

    def _uncertainty(self, samples: Samples) -> np.ndarray:
        return self._run(samples, full=True)[:, 6 + fitting.CENTER]

    def fit(
        self, x: ArrayLike, profile: ArrayLike, *, error: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> np.ndarray:
        """All parameters of the fit.

        Parameters
        ----------
        x, profile, error, mask
            As for calling the estimator. Samples are weighted by 1 / error**2, or equally.

        Returns
        -------
        ndarray (...)
            Structured array: each free or fixed parameter, its standard deviation as ``<name>_error`` (NaN
            without `error`; 0 where the parameter is fixed or held at a bound), ``chi2``, ``n_used`` (good
            samples), ``n_iterations`` and ``converged``. Parameters are NaN where ``converged`` is False.

        Raises
        ------
        ValueError
            If `x` is not finite and strictly increasing, or shapes do not fit.

        Warns
        -----
        FitWarning
            Once, if any profile could not be fitted.
        """
        samples = prepare(x, profile, error, mask)
        out = self._run(samples, full=True, stacklevel=3)
        dtype = [(name, float) for name in self._names] + [(f"{name}_error", float) for name in self._names]
        dtype += [("chi2", float), ("n_used", int), ("n_iterations", int), ("converged", bool)]
        result = np.empty(len(out), dtype=dtype)
        for k, name in enumerate(self._names):
            result[name] = out[:, k]
            result[f"{name}_error"] = out[:, 6 + k]
        result["chi2"] = out[:, fitting.CHI2]
        result["n_used"] = out[:, fitting.N_USED]
        result["n_iterations"] = np.nan_to_num(out[:, fitting.N_ITERATIONS])
        result["converged"] = out[:, fitting.CONVERGED] == 1.0
        return result.reshape(samples.shape)[()]


_BACKGROUNDS = {
    "none": [],
    "constant": [fitting.CONSTANT],
    "linear": [fitting.SLOPE, fitting.CONSTANT],
}


@dataclass(frozen=True)
class Gauss(PeakFit):
    """Centre of the Gaussian that fits best: A exp(-(x - c)^2 / (2 s^2)), by least squares.

    Samples are weighted by 1 / error**2 where errors are given, else equally. The optimum is that of the
    samples, found from one start (half-maximum crossings) and converged to better than 1e-7 of the width.
    NaN, with one `~lamost_lsf.errors.FitWarning` per call, where there is no positive peak, fewer good samples
    than parameters, no convergence, a centre outside the window, or a width below a fifth of the sample
    spacing or above four windows. Source: Liu et al. 2026, section 5.1.

    Parameters
    ----------
    background : {"none", "constant", "linear"}
        What is fitted along with the Gaussian.

    Raises
    ------
    ValueError
        If `background` is none of these.

    Notes
    -----
    `uncertainty` is H^-1 (J^T W J) H^-1 with the full Hessian H, which stays true where the profile is no
    Gaussian. In `fit`, ``width`` is the standard deviation s and ``exponent`` is 2.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.centers import Gauss
    >>> x = np.linspace(-8.335, 9.25, 600)
    >>> profile = 40.0 * np.exp(-0.5 * ((x - 0.25) / 1.3) ** 2) + 3.0
    >>> estimator = Gauss(background="constant")
    >>> print(f"{estimator(x, profile):.5f}")
    0.25000
    >>> fit = estimator.fit(x, profile)
    >>> print(f"{fit['width']:.4f} {fit['intercept']:.4f}")
    1.3000 3.0000
    """

    name: ClassVar[str] = "gauss"
    _tolerance: ClassVar[float] = 3e-5
    background: str = "none"

    def __post_init__(self) -> None:
        if self.background not in _BACKGROUNDS:
            raise ValueError(f"background must be one of {sorted(_BACKGROUNDS)}, not {self.background!r}")

    def _model(self) -> tuple[list[int], float, tuple[float, float]]:
        peak = [fitting.ALPHA, fitting.CENTER, fitting.WIDTH]
        return peak + _BACKGROUNDS[self.background], 2.0, (2.0, 2.0)
