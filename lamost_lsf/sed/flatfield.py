"""Large-scale flat field of a slitless spectrograph from standard stars (Yang et al. 2024, section 5)."""

from __future__ import annotations

import numpy as np
from astropy.table import Table

from lamost_lsf.errors import OutOfRangeError
from lamost_lsf.sed.flatfield_cube import FlatFieldCube, check_domain
from lamost_lsf.sed.flatfield_fit import FlatFieldFlag, basis_terms, design, fit_wavelengths
from lamost_lsf.sed.flatfield_stars import StandardStars
from lamost_lsf.sed.grids import BANDS

__all__ = ["BANDS", "FlatFieldCube", "FlatFieldFlag", "StandardStars", "fit_flat_field", "flat_field_precision"]


def fit_flat_field(
    stars: StandardStars,
    *,
    domain: tuple[tuple[float, float], tuple[float, float]] | None = None,
    degree: int = 2,
    clip: float = 4.0,
    scale_errors: bool = True,
    max_relative_error: float = 0.5,
) -> FlatFieldCube:
    """Large-scale flat field of every wavelength from standard stars.

    The ratio of observed to predicted flux is a polynomial of detector position (second-order in the paper). Both
    fluxes have errors: the fit is that of maximum likelihood (total least squares), every star weighted by its true
    flux as both tell it. A weight by the noisy fluxes themselves would favour low or high ratios. Outliers are
    rejected at ``clip`` sigma, wavelength by wavelength, about a robust first fit.

    Parameters
    ----------
    stars : StandardStars
        Predictions in the observer's frame, behind the dust; errors as described there.
    domain : tuple, optional
        ((x_low, x_high), (y_low, y_high)) of the detector, pixels; by default what the stars cover. Positions of stars
        beyond it are an error.
    degree : int
        Total degree.
    clip : float
        Sigma, of the larger of the stated error and the robust scatter.
    scale_errors : bool
        Multiply the covariance by the reduced chi-square where that is above 1: stated errors may be too small.
    max_relative_error : float
        Predictions of a larger stated relative error are left out.

    Returns
    -------
    FlatFieldCube
        NaN with a flag at wavelengths with too few stars.

    Raises
    ------
    ValueError
        Fewer stars than twice the number of coefficients, predictions without errors, bad options.
    OutOfRangeError
        Stars beyond ``domain``.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed.flatfield import StandardStars, fit_flat_field
    >>> rng = np.random.default_rng(1)
    >>> x, y = rng.uniform(0, 1000, (2, 400))
    >>> wavelength = np.array([3000.0, 5000.0, 8000.0])
    >>> flat = 1 + 0.05 * ((x - 500) / 500)[:, None] * (wavelength / 5000)
    >>> error = np.full((400, 3), 0.01)
    >>> observed = flat * (1 + error * rng.standard_normal((400, 3)))
    >>> stars = StandardStars(wavelength, x, y, observed, 0 * error, np.ones((400, 3)), error)
    >>> cube = fit_flat_field(stars, domain=((0, 1000), (0, 1000)))
    >>> value, sigma = cube.flat(1000, 500)
    >>> bool(np.all(np.abs(value - (1 + 0.05 * wavelength / 5000)) < 4 * sigma)), bool(np.all(sigma < 0.003))
    (True, True)
    """
    if degree < 0 or int(degree) != degree:
        raise ValueError(f"degree must be a whole number, 0 or more, got {degree}")
    if not (clip > 1 and 0 < max_relative_error < np.inf):
        raise ValueError(f"clip must be above 1 and max_relative_error positive, got {clip} and {max_relative_error}")
    if domain is None:
        domain = ((stars.x.min(), stars.x.max()), (stars.y.min(), stars.y.max()))
    domain = check_domain(domain)
    for name, value, (low, high) in (("x", stars.x, domain[0]), ("y", stars.y, domain[1])):
        if np.any((value < low) | (value > high)):
            raise OutOfRangeError(
                f"stars at {name} = {value.min():g} to {value.max():g} lie beyond the domain, {low:g} to {high:g}"
            )
    terms = len(basis_terms(degree))
    if len(stars) < 2 * terms:
        raise ValueError(f"{len(stars)} stars cannot determine {terms} coefficients; at least {2 * terms} are needed")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = stars.observed / stars.predicted
        relative = stars.predicted_error / stars.predicted
        absolute = stars.observed_error / stars.predicted
        good = np.isfinite(ratio) & (stars.predicted > 0) & (relative <= max_relative_error) & np.isfinite(absolute)
    if not np.any((relative + absolute)[good] > 0):
        raise ValueError("no errors are given: predicted_error and observed_error are 0 or not finite everywhere")
    good &= relative + absolute > 0
    ratio, relative, absolute = (
        np.where(good, v, fill) for v, fill in ((ratio, 0.0), (relative, 1.0), (absolute, 0.0))
    )
    phi = design(stars.x, stars.y, domain, degree)
    if phi.ndim == 2:
        phi = phi[:, None]
    result = fit_wavelengths(phi, ratio, relative, absolute, good, clip=clip)
    covariance = result.covariance
    if scale_errors:
        covariance = covariance * np.maximum(result.chi2, 1.0)[:, None, None]
    share = 1.0 - np.sum(result.used, axis=1) / np.maximum(good.sum(axis=1), 1)
    return FlatFieldCube(
        stars.wavelength, result.coefficients, covariance, domain, degree, n_stars=result.used.sum(axis=0),
        chi2=result.chi2, flag=result.flag, rejected=np.where(good.any(axis=1), share, 1.0),
        meta={"clip": float(clip), "scale_errors": bool(scale_errors), "n_stars": len(stars)},
    )  # fmt: skip


def flat_field_precision(
    wavelength: np.ndarray,
    *,
    relative_error: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    n_stars: int = 400,
    n_trials: int = 100,
    degree: int = 2,
    bands: dict[str, tuple[float, float]] | None = None,
    seed: int = 0,
) -> Table:
    """Monte Carlo precision of the flat field that ``n_stars`` standard stars give (section 5).

    Stars are drawn with replacement from a pool, placed at random over the detector, and their predictions are in error
    by a draw from the pool's errors; a flat field of 1 is fitted. The precision at a wavelength is the root mean square
    error of the fitted flat field over detector and trials.

    Parameters
    ----------
    wavelength : ndarray (n_wave,)
        Vacuum Angstrom.
    relative_error : ndarray (n_wave,) or (n_pool, n_wave), optional
        One-sigma relative errors of the predicted spectra, independent Gaussians; also the weights.
    residual : ndarray (n_pool, n_wave), optional
        Measured relative residuals of test stars, used as they are, with their tails and the correlation of
        wavelengths; without ``relative_error`` all stars weigh the same.
    n_stars, n_trials : int
    degree : int
    bands : dict, optional
        Name to (low, high); `BANDS` by default. Bands without wavelengths are left out.
    seed : int

    Returns
    -------
    `~astropy.table.Table`
        By band: ``precision`` (median over its wavelengths), ``best``, ``worst`` (5th and 95th percentile), ``bias``
        (median over wavelengths of the mean error), ``single_star`` (median relative error of one star).

    Raises
    ------
    ValueError
        Neither errors nor residuals, non-finite or non-positive errors, too few stars, no band.

    Examples
    --------
    >>> import numpy as np
    >>> table = flat_field_precision(np.array([3000.0, 5000.0]), relative_error=np.array([0.04, 0.002]), n_trials=50)
    >>> [f"{row['band']} {row['precision']:.4f}" for row in table]
    ['GU 0.0050', 'GV 0.0002']
    """
    wavelength = np.asarray(wavelength, dtype=np.float64)
    if relative_error is None and residual is None:
        raise ValueError("give relative_error or residual: how wrong the predicted spectra are")
    pool = None
    if relative_error is not None:
        pool = np.atleast_2d(np.asarray(relative_error, dtype=np.float64))
        if pool.shape[1] != wavelength.size or not np.all(np.isfinite(pool) & (pool > 0)):
            raise ValueError("relative_error must be positive and finite, (n_wave,) or (n_pool, n_wave)")
    if residual is not None:
        residual = np.atleast_2d(np.asarray(residual, dtype=np.float64))
        if residual.shape[1] != wavelength.size or not np.all(np.isfinite(residual) & (residual > -1)):
            raise ValueError("residual must be finite and above -1, (n_pool, n_wave)")
        if pool is None:
            pool = np.maximum(residual.std(axis=0, keepdims=True), 1e-12)
        elif len(pool) not in (1, len(residual)):
            raise ValueError(f"relative_error has {len(pool)} rows, residual {len(residual)}")
    terms = len(basis_terms(degree))
    if n_stars < 2 * terms or n_trials < 2:
        raise ValueError(f"at least {2 * terms} stars and 2 trials are needed, got {n_stars} and {n_trials}")
    bands = BANDS if bands is None else bands
    inside = {name: (wavelength >= low) & (wavelength <= high) for name, (low, high) in bands.items()}
    inside = {name: mask for name, mask in inside.items() if mask.any()}
    if not inside:
        raise ValueError(f"no wavelength lies in a band; bands are {bands}")
    rng = np.random.default_rng(seed)
    size = len(pool) if residual is None else len(residual)
    domain = ((-1.0, 1.0), (-1.0, 1.0))
    square = np.zeros(wavelength.size)
    mean = np.zeros(wavelength.size)
    for _ in range(n_trials):
        pick = rng.integers(size, size=n_stars)
        sigma = pool[pick if len(pool) > 1 else np.zeros(n_stars, dtype=int)]
        error = residual[pick] if residual is not None else sigma * rng.standard_normal(sigma.shape)
        error = np.maximum(error, -0.9)
        x, y = rng.uniform(-1, 1, (2, n_stars))
        stars = StandardStars(wavelength, x, y, np.ones_like(sigma), 0 * sigma, 1 + error, sigma * (1 + error))
        cube = fit_flat_field(stars, domain=domain, degree=degree, max_relative_error=np.finfo(float).max)
        # the mean over the detector of the square of a sum of orthogonal terms is the sum of their squares
        share = cube.coefficients[:, 1:] / cube.coefficients[:, :1]
        square += np.sum(share**2 * _mean_square(degree)[1:], axis=1) + (cube.coefficients[:, 0] - 1.0) ** 2
        mean += cube.coefficients[:, 0] - 1.0
    precision, bias = np.sqrt(square / n_trials), mean / n_trials
    typical = np.median(pool, axis=0) if residual is None else 1.4826 * np.median(np.abs(residual), axis=0)
    rows = [
        (
            name, *bands[name], n_stars, np.median(precision[m]), *np.percentile(precision[m], [5, 95]),
            np.median(bias[m]), np.median(typical[m]),
        )
        for name, m in inside.items()
    ]  # fmt: skip
    names = ["band", "low", "high", "n_stars", "precision", "best", "worst", "bias", "single_star"]
    return Table(rows=rows, names=names)


def _mean_square(degree: int) -> np.ndarray:
    """Mean over the detector of the squares of the basis functions: 1 / ((2 i + 1) (2 j + 1))."""
    return np.array([1.0 / ((2 * i + 1) * (2 * j + 1)) for i, j in basis_terms(degree)])
