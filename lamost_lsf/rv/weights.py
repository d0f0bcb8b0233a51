"""Weights of windows whose errors are correlated, from stars that were seen more than once.

The difference of two visits to a star does not contain its velocity, nor what a template does to all its visits alike.
What is left in a window is noise of the flux and of the wavelength scale. The latter is common to several windows, so
that an inverse-variance mean takes neighbouring windows for more independent than they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["WindowCovariance", "fit_window_covariance"]

#: Iterations end where no element of the covariance changes by more than this share of the largest.
_STEPS = 1e-4


@dataclass(frozen=True, eq=False)
class WindowCovariance:
    """Scatter of windows between visits.

    Attributes
    ----------
    covariance : ndarray (n_window, n_window)
        Of one visit's velocities beyond what the flux errors explain, (km/s)^2, shrunk. With a finite ``freedom``
        it is the scale matrix of the t distribution, which describes the core and not the outliers.
    error_scale : float
        Ratio of the noise of the flux to the errors that the velocities came with.
    n_pairs : int
        Pairs that had a part in it.
    shrinkage : float
        Share of the model of one correlation for all pairs of windows.
    """

    covariance: np.ndarray
    error_scale: float
    n_pairs: int
    shrinkage: float

    def weights(self, error: ArrayLike, *, nonnegative: bool = True) -> np.ndarray:
        """Weights of least variance that add up to 1.

        Parameters
        ----------
        error : array_like (..., n_window)
            Flux errors of one visit in each window, km/s. Windows that are not finite get no weight. A star's visits
            should share one set of errors: its windows differ by kilometres per second where the template does not
            fit, and weights that differ between visits turn that into a difference of velocities.
        nonnegative : bool
            Whether windows with a negative weight are left out. Without, strongly correlated windows get weights of
            either sign, which a covariance that is not well known does not justify.

        Returns
        -------
        ndarray (..., n_window)
            NaN where no window is usable.
        """
        error = np.asarray(error, dtype=float)
        n = len(self.covariance)
        if error.shape[-1:] != (n,):
            raise ValueError(f"error must have {n} windows in its last axis, got shape {error.shape}")
        flat = error.reshape(-1, n)
        out = np.array([self._weights(row, nonnegative) for row in flat])
        return out.reshape(error.shape)

    def _weights(self, error: np.ndarray, nonnegative: bool) -> np.ndarray:
        use = np.isfinite(error) & (error > 0)
        out = np.zeros(error.size)
        while use.any():
            total = self.total(error)[np.ix_(use, use)]
            solved = np.linalg.solve(total, np.ones(use.sum()))
            share = solved / solved.sum()
            if not nonnegative or np.all(share >= 0):
                out[use] = share
                return out
            # the most negative one first: others may come back to positive weights without it
            use[np.flatnonzero(use)[np.argmin(share)]] = False
        return np.full(error.size, np.nan)

    def total(self, error: ArrayLike) -> np.ndarray:
        """Covariance (n_window, n_window) of one visit, flux errors included; those not finite count as 0."""
        error = np.asarray(error, dtype=float)
        return self.covariance + np.diag((self.error_scale * np.where(np.isfinite(error), error, 0.0)) ** 2)


def fit_window_covariance(
    difference: ArrayLike,
    error: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    shrinkage: float | None = None,
    error_scale: float | None = None,
    freedom: float = 4.0,
    max_iterations: int = 500,
) -> WindowCovariance:
    """Covariance of the windows of one visit from the differences of pairs of visits.

    Differences are taken as ``x + e``: ``e`` of the flux, independent between windows, with the given errors times one
    factor, and ``x`` of the rest, the same for all stars. Both are drawn from a multivariate t distribution, lest
    variable stars and failed fits decide.

    Parameters
    ----------
    difference : array_like (n_pair, n_window)
        Velocity of one visit minus that of another, km/s; NaN where a window has none.
    error : array_like (n_pair, n_window)
        Flux errors of the differences: both visits' in quadrature, km/s. Windows must not overlap.
    weight : array_like (n_pair,), optional
        Of each pair: 2 / (number of visits) where all pairs of a star's visits are given, as these are not independent.
    shrinkage : float, optional
        Share, 0 to 1, of the model in which all pairs of windows have one correlation. By default
        ``n_window / (n_window + n_pair)``, n_pair counted by weight.
    error_scale : float, optional
        Ratio of the noise of the flux to ``error``; fitted by default.
    freedom : float
        Degrees of freedom of the t distribution; infinity for a normal one.
    max_iterations : int

    Returns
    -------
    WindowCovariance

    Raises
    ------
    ValueError
        Shapes that do not fit, errors that are not positive, fewer than 3 pairs, a window without any.

    Notes
    -----
    Expectation maximisation for noisy and incomplete rows (Dempster, Laird & Rubin 1977, J. R. Stat. Soc. B 39, 1),
    with the weights of a multivariate t distribution (Lange, Little & Taylor 1989, J. Am. Stat. Assoc. 84, 881) and a
    target of constant correlation (Ledoit & Wolf 2004, J. Portf. Manag. 30, 110).

    Examples
    --------
    Two windows that share 2 km/s and have 1 and 2 km/s of their own:

    >>> import numpy as np
    >>> from lamost_lsf.rv.weights import fit_window_covariance
    >>> rng = np.random.default_rng(1)
    >>> visit = lambda: 2 * rng.normal(size=(4000, 1)) + rng.normal(size=(4000, 2)) * (1, 2)
    >>> flux = np.full((4000, 2), 0.5)
    >>> found = fit_window_covariance(visit() - visit(), flux, error_scale=1.0, freedom=np.inf)
    >>> print(found.weights([0.3, 0.3]).round(1))
    [0.8 0.2]
    """
    d, s = np.array(difference, dtype=float), np.array(error, dtype=float)
    if d.ndim != 2 or s.shape != d.shape:
        raise ValueError(f"difference and error must have one shape (n_pair, n_window), got {d.shape} and {s.shape}")
    seen = np.isfinite(d) & np.isfinite(s)
    if np.any(s[seen] <= 0):
        raise ValueError("errors must be positive")
    given = np.ones(len(d)) if weight is None else np.asarray(weight, dtype=float)
    if given.shape != (len(d),) or not np.all(np.isfinite(given)) or np.any(given <= 0):
        raise ValueError(f"weight must be one positive number for each of {len(d)} pairs")
    if not freedom > 2:
        raise ValueError(f"freedom must be above 2, got {freedom}")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be in 0 to 1, got {shrinkage}")
    if error_scale is not None and not error_scale > 0:
        raise ValueError(f"error_scale must be positive, got {error_scale}")
    rows = np.flatnonzero(seen.any(axis=1))
    if rows.size < 3:
        raise ValueError(f"at least 3 pairs with a velocity are needed, got {rows.size}")
    if not np.all(seen.any(axis=0)):
        raise ValueError(f"windows {np.flatnonzero(~seen.any(axis=0)).tolist()} have no pair")
    d, s, seen, given = d[rows], s[rows], seen[rows], given[rows]
    count, n = float(given.sum()), d.shape[1]
    share = n / (n + count) if shrinkage is None else float(shrinkage)
    robust = np.array([np.median(np.abs(d[seen[:, j], j])) for j in range(n)]) * 1.4826
    matrix = np.diag(np.maximum(robust, 1e-3) ** 2) / 2.0
    scale2 = 1.0 if error_scale is None else float(error_scale) ** 2
    # windows without a velocity: no information, in arrays of one shape for all pairs
    value, sigma2 = np.where(seen, d, 0.0), np.where(seen, s, 1.0) ** 2
    n_seen = seen.sum(axis=1)
    both = (seen[:, :, None] & seen[:, None, :]).astype(float)
    for _ in range(max_iterations):
        noise = np.where(seen, scale2 * sigma2, 1.0)
        total = both * matrix + noise[:, :, None] * np.eye(n)
        inverse = np.linalg.inv(total) * both
        gain = matrix @ inverse
        expected = np.einsum("kij,kj->ki", gain, value)
        left = matrix - gain @ matrix
        distance = np.einsum("ki,kij,kj->k", value, inverse, value)
        # an outlying pair counts less, in all its windows
        core = (freedom + n_seen) / (freedom + distance) if np.isfinite(freedom) else np.ones(len(d))
        moment = np.einsum("k,ki,kj->ij", given * core, expected, expected) + np.einsum("k,kij->ij", given, left)
        square = core[:, None] * (value - expected) ** 2 + np.diagonal(left, axis1=1, axis2=2)
        flux = np.sum(given[:, None] * np.where(seen, square / sigma2, 0.0)) / np.sum(given * n_seen)
        new = shrink_to_constant_correlation(moment / count, share)
        change = np.max(np.abs(new - matrix)) / np.max(np.diag(new))
        matrix = new
        if error_scale is None:
            scale2 = max(float(flux), 1e-6)
        if change < _STEPS:
            break
    return WindowCovariance(matrix / 2.0, float(np.sqrt(scale2)), int(rows.size), share)


def shrink_to_constant_correlation(covariance: np.ndarray, share: float) -> np.ndarray:
    """Covariance with all its correlations moved towards their mean by a share of 0 to 1; variances stay."""
    sigma = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    correlation = covariance / np.outer(sigma, sigma)
    n = len(sigma)
    mean = (correlation.sum() - np.trace(correlation)) / (n * (n - 1)) if n > 1 else 0.0
    mean = max(mean, 0.0)  # a negative one for all would not be a covariance
    target = np.full((n, n), mean)
    np.fill_diagonal(target, 1.0)
    mixed = (1.0 - share) * correlation + share * target
    np.fill_diagonal(mixed, 1.0)
    return mixed * np.outer(sigma, sigma)
