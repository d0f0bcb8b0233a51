"""What the spectra of a library say about its labels, where the catalogue errs: regression from spectra to labels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from lamost_lsf.sed.gaussian_process import left_out

__all__ = ["check_labels"]

#: Offsets below these are within what catalogues differ by, whatever the scatter: ln Teff, log g, [Fe/H].
_LEAST = np.array([0.02, 0.25, 0.15])


def check_labels(
    flux: np.ndarray, labels: np.ndarray, trained: np.ndarray, usable: np.ndarray, *, neighbours: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Predict each star's labels from its spectrum and all other stars, and compare.

    A wrong log g hardly shows in a low-resolution spectrum, which is near that of the right one; but it shows in that
    stars of like spectra agree on another. Gaussian-process regression from ``ln(flux)`` to (ln Teff, log g, [Fe/H]),
    one kernel (radial, and noise) for the three; every training star is left out of its own prediction. Spectra tell
    labels better in one part of the diagram than in another, so an offset counts in units of the scatter (1.48 times
    the median) of the offsets of the stars with the nearest spectra.

    Parameters
    ----------
    flux : ndarray (n_star, n_pix)
        All scaled alike; positive for those that are usable.
    labels : ndarray (n_star, 3)
        Teff (K), log g, [Fe/H].
    trained, usable : ndarray (n_star,) of bool
        Who is taken for right, and who is judged.
    neighbours : int
        Stars of like spectra.

    Returns
    -------
    offset : ndarray (n_star, 3)
        Teff (K), log g and [Fe/H], given minus predicted; NaN for stars that are not usable.
    ratio : ndarray (n_star, 3)
        The offsets over the scatter of those of stars of like spectra; 0 where an offset is within what catalogues
        differ by.

    Raises
    ------
    ImportError
        scikit-learn is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed.libraries_labels import check_labels
    >>> rng = np.random.default_rng(0)
    >>> labels = np.stack([rng.uniform(5000, 9000, 80), rng.uniform(2, 5, 80), rng.uniform(-1, 0.5, 80)], axis=1)
    >>> depth = (labels - labels.mean(axis=0)) / labels.std(axis=0) * 0.05
    >>> flux = np.exp(np.repeat(depth, 20, axis=1) + 0.005 * rng.standard_normal((80, 60)))
    >>> labels[7, 1] += 1.5
    >>> everyone = np.ones(80, dtype=bool)
    >>> offset, ratio = check_labels(flux, labels, everyone, everyone)
    >>> int(np.argmax(ratio.max(axis=1))), f"{offset[7, 1]:.1f}"
    (7, '1.5')
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    except ImportError:
        raise ImportError("Gaussian-process regression needs scikit-learn: pip install 'lamost-lsf[sed]'") from None
    x, y = np.full(np.shape(flux), np.nan), np.full((len(flux), 3), np.nan)
    x[usable], y[usable] = np.log(flux[usable]), labels[usable]
    y[usable, 0] = np.log(y[usable, 0])
    x -= x[trained].mean(axis=0)
    x /= np.sqrt(np.mean(np.sum(x[trained] ** 2, axis=1)))
    spread = y[trained].std(axis=0)
    kernel = ConstantKernel(10.0, (1e-2, 1e5)) * RBF(1.0, (1e-2, 1e3)) + WhiteKernel(0.05, (1e-6, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is no harm
        gp: Any = GaussianProcessRegressor(kernel, normalize_y=True).fit(x[trained], y[trained])
    offset = np.full((len(flux), 3), np.nan)
    offset[trained] = left_out(gp)[0] * spread
    others = usable & ~trained
    if others.any():
        offset[others] = y[others] - gp.predict(x[others])
    _, near = cKDTree(x[trained]).query(x[usable], k=min(neighbours, int(trained.sum())))
    scatter = 1.4826 * np.median(np.abs(offset[trained])[near], axis=1)
    ratio = np.full((len(flux), 3), np.nan)
    size = np.abs(offset[usable])
    ratio[usable] = np.where(size >= _LEAST, size / np.maximum(scatter, 1e-12), 0.0)
    offset[:, 0] = labels[:, 0] * (1.0 - np.exp(-offset[:, 0]))
    return offset, ratio
