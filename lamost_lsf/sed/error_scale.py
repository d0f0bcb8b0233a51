"""`ErrorScale`: factors that make predicted errors those of stars that a network was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamost_lsf.sed.grids import INPUT_GRID, WavelengthGrid, moving_average

if TYPE_CHECKING:
    from lamost_lsf.sed.evaluation import Residuals

__all__ = ["ErrorScale", "color_index"]

#: Share of a Gaussian within one standard deviation.
ONE_SIGMA = 0.6826894921


def color_index(sed: np.ndarray, wavelength: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colour of SEDs (n,): mean of ln(flux) over the blue half of a range, in ln(wavelength), minus that over the red.

    Parameters
    ----------
    sed : ndarray (n, n_out)
    wavelength : ndarray (n_out,)
        Angstrom.
    low, high : float
        Ends of the range; the spectra that SEDs are predicted from cover it.
    """
    middle = np.sqrt(low * high)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log(np.asarray(sed, dtype=np.float64))
    halves = [(wavelength >= low) & (wavelength < middle), (wavelength >= middle) & (wavelength <= high)]
    blue, red = (np.ma.masked_invalid(logarithm[:, half]).mean(axis=1).filled(np.nan) for half in halves)
    return blue - red


@dataclass(frozen=True)
class ErrorScale:
    """Factors of a model's predicted errors by output pixel, noise level of the input and colour of the SED.

    A network knows the stars that it was trained on better than any other, and its errors are those of the former. How
    much larger the latter's are is told by stars that were kept from it. It depends on how close together the training
    stars are, and so on their colour.

    Attributes
    ----------
    snr : ndarray (k,)
        Signal-to-noise ratios a pixel, rising.
    color : ndarray (m,)
        Colours (`color_index` over the input's range), rising.
    factor : ndarray (k, m, n_out)
        Interpolated in ln(SNR) and in colour; beyond their ends that of the nearest.

    Raises
    ------
    ValueError
        Levels or colours that do not rise, shapes that do not fit, or factors that are not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed import ErrorScale
    >>> scale = ErrorScale([20.0, 80.0], [0.0], [[[1.0, 1.2]], [[2.0, 1.2]]])
    >>> print(scale.at(np.array([20.0, 40.0, 100.0]), np.zeros(3)))
    [[1.  1.2]
     [1.5 1.2]
     [2.  1.2]]
    """

    snr: np.ndarray
    color: np.ndarray
    factor: np.ndarray

    def __post_init__(self) -> None:
        snr, color, factor = (np.asarray(x, dtype=np.float64) for x in (self.snr, self.color, self.factor))
        for name, nodes in (("snr", snr), ("color", color)):
            if nodes.ndim != 1 or not nodes.size or not np.isfinite(nodes).all() or np.any(np.diff(nodes) <= 0):
                raise ValueError(f"{name} must be finite and rising, got {nodes}")
        if snr[0] <= 0:
            raise ValueError(f"snr must be positive, got {snr}")
        if factor.ndim != 3 or factor.shape[:2] != (snr.size, color.size):
            raise ValueError(f"factor must have shape ({snr.size}, {color.size}, n_out), got {factor.shape}")
        if not np.all(np.isfinite(factor) & (factor > 0)):
            raise ValueError("factors must be finite and positive")
        for name, array in (("snr", snr), ("color", color), ("factor", factor)):
            object.__setattr__(self, name, array)

    @classmethod
    def fit(
        cls,
        residuals: Residuals,
        input_grid: WavelengthGrid = INPUT_GRID,
        *,
        colors: int | None = None,
        window: int = 51,
        highest_snr: float = np.inf,
    ) -> ErrorScale:
        """Factors with which predicted errors hold 68.27 % of the residuals, by SNR and in classes of colour.

        Parameters
        ----------
        residuals : Residuals
            Of stars that the network, or each star's network, was not trained on.
        input_grid : WavelengthGrid
            Of the model.
        colors : int, optional
            Classes of colour, of as many spectra each; by default one for every 50 spectra, six at most.
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
        grid = residuals.grid
        level = np.minimum(residuals.snr, highest_snr)
        if not np.isfinite(level).all():
            raise ValueError("an SNR of infinity needs highest_snr, which it counts as")
        if colors is None:
            colors = int(np.clip(np.unique(residuals.index).size // 50, 1, 6))
        color = color_index(residuals.sed, grid.wavelength, input_grid.start, input_grid.stop)
        number = np.empty(color.size, dtype=np.intp)
        for k, rows in enumerate(np.array_split(np.argsort(color, kind="stable"), colors)):
            number[rows] = k
        levels = np.unique(level)
        factor = [
            [_factors(residuals, (level == value) & (number == k), window) for k in range(colors)] for value in levels
        ]
        return cls(levels, np.array([np.median(color[number == k]) for k in range(colors)]), np.array(factor))

    def at(self, snr: np.ndarray, color: np.ndarray) -> np.ndarray:
        """Factors (n, n_out) at SNRs (n,) and colours (n,)."""
        i, share = _between(np.log(self.snr), np.log(np.asarray(snr, dtype=np.float64)))
        j, part = _between(self.color, np.asarray(color, dtype=np.float64))
        share, part = share[:, None], part[:, None]
        after, next_color = np.minimum(i + 1, self.snr.size - 1), np.minimum(j + 1, self.color.size - 1)
        low = (1.0 - part) * self.factor[i, j] + part * self.factor[i, next_color]
        high = (1.0 - part) * self.factor[after, j] + part * self.factor[after, next_color]
        return (1.0 - share) * low + share * high


def _factors(residuals: Residuals, chosen: np.ndarray, window: int) -> np.ndarray:
    """Quantile (n_out,) of the residuals over their errors, smoothed in wavelength."""
    pull = np.abs(residuals.residual[chosen] / residuals.sigma[chosen])
    known = np.isfinite(pull).sum(axis=0) >= 2
    if not known.any():
        raise ValueError("no pixel has two finite residuals at each SNR and colour")
    quantile = np.nanquantile(pull[:, known], ONE_SIGMA, axis=0)
    mean = moving_average(np.log(np.maximum(quantile, 1e-3)), window)
    # pixels without a known SED have the factor of the nearest with one
    return np.exp(np.interp(np.arange(known.size), np.flatnonzero(known), mean))


def _between(nodes: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the node below each x, and how far x is on the way to the next, 0 to 1."""
    below = np.clip(np.searchsorted(nodes, x, side="right") - 1, 0, max(nodes.size - 2, 0))
    step = nodes[np.minimum(below + 1, nodes.size - 1)] - nodes[below]
    # a colour that is not known is taken for the bluest: errors are there, whatever they are worth
    share = np.nan_to_num((x - nodes[below]) / np.where(step > 0, step, np.inf))
    return below, np.clip(share, 0.0, 1.0)
