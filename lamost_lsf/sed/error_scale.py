"""`ErrorScale`: factors that make predicted errors those of stars that a network was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamost_lsf.sed.grids import moving_average

if TYPE_CHECKING:
    from lamost_lsf.sed.evaluation import Residuals

__all__ = ["ErrorScale"]

#: Share of a Gaussian within one standard deviation.
ONE_SIGMA = 0.6826894921


@dataclass(frozen=True)
class ErrorScale:
    """Factors of a model's predicted errors by output pixel, at one or several noise levels of the input.

    A network knows the stars that it was trained on better than any other, and its errors are those of the former. How
    much larger the latter's are is told by stars that were kept from it.

    Attributes
    ----------
    snr : ndarray (k,)
        Signal-to-noise ratios a pixel, rising.
    factor : ndarray (k, n_out)
        Interpolated in ln(SNR); beyond the levels that of the nearest.

    Raises
    ------
    ValueError
        Levels that do not rise, shapes that do not fit, or factors that are not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed import ErrorScale
    >>> scale = ErrorScale(np.array([20.0, 80.0]), np.array([[1.0, 1.2], [2.0, 1.2]]))
    >>> print(scale.at(np.array([20.0, 40.0, 100.0])))
    [[1.  1.2]
     [1.5 1.2]
     [2.  1.2]]
    """

    snr: np.ndarray
    factor: np.ndarray

    def __post_init__(self) -> None:
        snr = np.atleast_1d(np.asarray(self.snr, dtype=np.float64))
        factor = np.atleast_2d(np.asarray(self.factor, dtype=np.float64))
        if snr.ndim != 1 or not np.all(np.isfinite(snr) & (snr > 0)) or np.any(np.diff(snr) <= 0):
            raise ValueError(f"snr must be finite, positive and rising, got {self.snr}")
        if factor.ndim != 2 or len(factor) != len(snr):
            raise ValueError(f"factor must have one row for each of {len(snr)} SNRs, got shape {factor.shape}")
        if not np.all(np.isfinite(factor) & (factor > 0)):
            raise ValueError("factors must be finite and positive")
        object.__setattr__(self, "snr", snr)
        object.__setattr__(self, "factor", factor)

    @classmethod
    def fit(cls, residuals: Residuals, *, window: int = 51, highest_snr: float = np.inf) -> ErrorScale:
        """Factors with which predicted errors hold 68.27 % of the residuals, at each of their SNRs.

        Parameters
        ----------
        residuals : Residuals
            Of stars that the network, or each star's network, was not trained on.
        window : int
            Pixels, odd, over which the logarithms of the factors are averaged: a pixel's own is as uncertain as the
            stars are few.
        highest_snr : float
            What an SNR of infinity (stars with their own noise) counts as: the highest that the model was trained with.

        Raises
        ------
        ValueError
            No residual that is finite; an SNR of infinity without ``highest_snr``.
        """
        residual, sigma = np.abs(residuals.residual), residuals.sigma
        level = np.minimum(residuals.snr, highest_snr)
        if not np.isfinite(level).all():
            raise ValueError("an SNR of infinity needs highest_snr, which it counts as")
        levels, rows = np.unique(level), []
        for value in levels:
            at = level == value
            known = np.isfinite(residual[at] / sigma[at]).sum(axis=0) >= 2
            if not known.any():
                raise ValueError(f"no pixel has two finite residuals at SNR {value:g}")
            pull = np.nanquantile(residual[at][:, known] / sigma[at][:, known], ONE_SIGMA, axis=0)
            mean = moving_average(np.log(np.maximum(pull, 1e-3)), window)
            # pixels without a known SED have the factor of the nearest with one
            rows.append(np.exp(np.interp(np.arange(known.size), np.flatnonzero(known), mean)))
        return cls(levels, np.array(rows))

    def at(self, snr: np.ndarray) -> np.ndarray:
        """Factors (n, n_out) at SNRs (n,)."""
        x, known = np.log(np.asarray(snr, dtype=np.float64)), np.log(self.snr)
        right = np.clip(np.searchsorted(known, x), 1, max(len(known) - 1, 1))
        left, right = right - 1, np.minimum(right, len(known) - 1)
        step = known[right] - known[left]
        share = np.clip((x - known[left]) / np.where(step > 0, step, 1.0), 0.0, 1.0)[:, None]
        return (1.0 - share) * self.factor[left] + share * self.factor[right]
