"""Gaussian-process regression from stellar labels to spectra (Yang et al. 2024, appendix A)."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from lamost_lsf.errors import FormatError
from lamost_lsf.files import atomic_path

__all__ = ["GPPrediction", "SpectralGP", "rmsae"]

_FORMAT, _VERSION = "lamost_lsf spectral Gaussian process", 1

#: Bounds of signal, noise (both in units of a wavelength's own spread) and length scale (in standard deviations of the
#: labels).
_BOUNDS = {"signal": (1e-2, 1e3), "noise": (1e-4, 3.0), "length": (1e-2, 1e3)}


def rmsae(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Root mean square of the relative residuals (Yang et al. 2024, Eqs. 2 and 3), along the last axis.

    Parameters
    ----------
    predicted, true : ndarray (..., n_pix)

    Returns
    -------
    ndarray (...)

    Examples
    --------
    >>> import numpy as np
    >>> print(f"{rmsae(np.full(100, 1.05), np.ones(100)):.3f}")
    0.050
    """
    return np.sqrt(np.mean((np.asarray(predicted) / np.asarray(true) - 1.0) ** 2, axis=-1))


def left_out(regression: Any) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (n, m) of a fitted regression, each star left out, and variances (n, 1), in units of scaled targets."""
    diagonal = np.diag(cho_solve((regression.L_, True), np.eye(len(regression.L_))))[:, None]
    return regression.alpha_ / diagonal, 1.0 / diagonal


@dataclass(frozen=True, repr=False)
class GPPrediction:
    """Spectra predicted from labels.

    Attributes
    ----------
    flux : ndarray (n, n_pix)
        Predictive mean, in the units of the training flux.
    error : ndarray (n, n_pix)
        Predictive standard deviation of an observed spectrum: that of the mean and the noise, one sigma.
    novelty : ndarray (n,)
        Share of the signal's prior variance that the training stars leave: 0 amid them, 1 far from all.
    beyond : ndarray (n,), bool
        A label lies outside the range of the training stars' by more than a twentieth of it.
    """

    flux: np.ndarray
    error: np.ndarray
    novelty: np.ndarray
    beyond: np.ndarray

    def __repr__(self) -> str:
        n, m = self.flux.shape
        return f"<GPPrediction of {n} spectra of {m} pixels, {int(self.outside.sum())} outside the training labels>"

    @property
    def outside(self) -> np.ndarray:
        """Mask (n,) of the stars that lie outside the training labels: beyond their ranges, or novelty above a half."""
        return self.beyond | (self.novelty > 0.5)


class SpectralGP:
    """Gaussian process from (Teff, log g, [Fe/H]) to the flux at every wavelength (Yang et al. 2024, appendix A).

    Labels are z-scored; the covariance is ``sf**2 exp(-|x - x'|**2 / (2 l**2)) + sn**2 delta`` (Eq. A5), one for all
    wavelengths; {sf, sn, l} maximise the marginal likelihood (Eq. A10) of all wavelengths together. Where the paper is
    silent: every wavelength is scaled by its mean and standard deviation over the training stars, hence sf and sn are
    in units of these; the parameters have no prior but wide bounds.

    One noise cannot be right at all wavelengths: on MILES it is 1.2 times too small at 3600 A and twice too large at
    4000 A. Predicted errors are therefore multiplied by ``calibration``, a factor a wavelength, such that 68.3 % of the
    training stars lie within one error of their leave-one-out prediction.

    The regression is scikit-learn's ``GaussianProcessRegressor``. Its marginal likelihood of m outputs needs
    n x n x m numbers for the gradient; here the same function is computed from the n x n matrix of the outputs' scalar
    products, on which alone it depends, so that 2238 wavelengths cost no more than a few.

    Parameters
    ----------
    labels : ndarray (n_star, 3)
        Teff (K), log g, [Fe/H].
    wavelength : ndarray (n_pix,)
        Vacuum Angstrom.
    flux : ndarray (n_star, n_pix)
        Finite; normalised or scaled alike for all stars.
    isotropic : bool
        One length scale for the three z-scored labels, as in the paper; else one each.
    parameters : sequence of float, optional
        (sf, sn, l) or (sf, sn, l_teff, l_logg, l_feh) to keep instead of fitting them.
    start : sequence of float, optional
        Where the fit starts.

    Raises
    ------
    ImportError
        scikit-learn is not installed.
    ValueError
        Fewer than ten stars, non-finite values, shapes that do not fit, a label that is the same for all stars.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.sed.gaussian_process import SpectralGP
    >>> rng = np.random.default_rng(1)
    >>> labels = np.stack([rng.uniform(5000, 9000, 60), rng.uniform(3, 5, 60), rng.uniform(-1, 0, 60)], axis=1)
    >>> wavelength = np.linspace(4000, 7000, 50)
    >>> def truth(labels):
    ...     return (wavelength / 5500) ** (3 - labels[:, :1] / 1500)
    >>> gp = SpectralGP(labels, wavelength, truth(labels) * (1 + 0.01 * rng.standard_normal((60, 50))))
    >>> new = np.array([[7000.0, 4.2, -0.3]])
    >>> prediction = gp.predict(new)
    >>> bool(np.all(np.abs(prediction.flux / truth(new) - 1) < 0.02)), prediction.outside.tolist()
    (True, [False])
    """

    def __init__(
        self,
        labels: np.ndarray,
        wavelength: np.ndarray,
        flux: np.ndarray,
        *,
        isotropic: bool = True,
        parameters: Any = None,
        start: Any = None,
    ) -> None:
        labels, flux = np.asarray(labels, dtype=np.float64), np.asarray(flux, dtype=np.float64)
        self.wavelength = np.asarray(wavelength, dtype=np.float64)
        if labels.ndim != 2 or labels.shape[1] != 3:
            raise ValueError(f"labels must be (n_star, 3): Teff, log g, [Fe/H]; got shape {labels.shape}")
        n = len(labels)
        if n < 10:
            raise ValueError(f"a Gaussian process of three labels needs at least 10 stars, got {n}")
        if flux.shape != (n, self.wavelength.size):
            raise ValueError(f"flux has shape {flux.shape}, expected {(n, self.wavelength.size)}")
        if not (np.all(np.isfinite(labels)) and np.all(np.isfinite(flux))):
            raise ValueError("labels and flux must be finite; leave out such stars, or use check_spectra")
        spread = labels.std(axis=0)
        if np.any(spread <= 0):
            name = ("Teff", "log g", "[Fe/H]")[int(np.argmin(spread))]
            raise ValueError(f"all stars have the same {name}; a regression on it is not possible")
        self.labels, self.flux = labels, flux
        self.mean, self.spread = labels.mean(axis=0), spread
        self.isotropic = bool(isotropic)
        self._regression = self._fit(parameters, start)
        self.calibration = np.ones(self.wavelength.size)
        one = self.leave_one_out()
        within = np.percentile(np.abs((flux - one.flux) / one.error), 68.27, axis=0)
        self.calibration = np.where(within > 0, within, 1.0)

    # -- fit ------------------------------------------------------------------------------------------------

    def _scaled(self, labels: np.ndarray) -> np.ndarray:
        return (labels - self.mean) / self.spread

    def _fit(self, parameters: Any, start: Any) -> Any:
        try:
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
        except ImportError:
            raise ImportError("Gaussian-process regression needs scikit-learn: pip install 'lamost-lsf[sed]'") from None
        n_length = 1 if self.isotropic else 3
        given = start if parameters is None else parameters
        start = np.asarray([1.0, 0.2] + [1.5] * n_length if given is None else given, dtype=np.float64).ravel()
        if start.shape != (2 + n_length,) or not np.all(np.isfinite(start) & (start > 0)):
            raise ValueError(f"parameters must be {2 + n_length} positive numbers: sf, sn, l; got {given!r}")
        length = start[2] if self.isotropic else start[2:]
        kernel = ConstantKernel(start[0] ** 2, np.square(_BOUNDS["signal"])) * RBF(length, _BOUNDS["length"])
        kernel = kernel + WhiteKernel(start[1] ** 2, np.square(_BOUNDS["noise"]))
        optimizer = None
        if parameters is None:
            center, scale = self.flux.mean(axis=0), self.flux.std(axis=0)
            scaled = (self.flux - center) / np.where(scale > 0, scale, 1.0)
            objective = MarginalLikelihood(kernel, self._scaled(self.labels), scaled)

            def optimizer(_: Any, initial: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
                found = minimize(objective, initial, jac=True, method="L-BFGS-B", bounds=bounds)
                return found.x, float(found.fun)

        regression = GaussianProcessRegressor(kernel, optimizer=optimizer, normalize_y=True, alpha=1e-10)
        with warnings.catch_warnings():
            # spectra without noise, as theoretical ones, are no failure
            warnings.filterwarnings("ignore", "(?s).*noise_level is close to the specified lower bound")
            return regression.fit(self._scaled(self.labels), self.flux)

    @property
    def parameters(self) -> np.ndarray:
        """Signal sf and noise sn, in units of a wavelength's spread, and length(s) l, in those of the labels."""
        signal, noise = self._regression.kernel_.k1, self._regression.kernel_.k2
        return np.array(
            [np.sqrt(signal.k1.constant_value), np.sqrt(noise.noise_level), *np.atleast_1d(signal.k2.length_scale)]
        )

    @property
    def log_marginal_likelihood(self) -> float:
        """Of the scaled flux at the parameters found, summed over wavelengths (Eq. A10)."""
        return float(self._regression.log_marginal_likelihood_value_)

    def __repr__(self) -> str:
        values = ", ".join(f"{p:.3g}" for p in self.parameters)
        w = self.wavelength
        what = f"{len(self.labels)} stars, {w.size} pixels, {w[0]:.0f}-{w[-1]:.0f} A"
        return f"<SpectralGP: {what}, {{sf, sn, l}} = {{{values}}}>"

    # -- predict --------------------------------------------------------------------------------------------

    def predict(self, labels: np.ndarray) -> GPPrediction:
        """Spectra of stars of the given labels (Eqs. A7 and A8).

        Parameters
        ----------
        labels : ndarray (n, 3) or (3,)
            Teff (K), log g, [Fe/H]. Non-finite labels give NaN.

        Returns
        -------
        GPPrediction
        """
        labels = np.atleast_2d(np.asarray(labels, dtype=np.float64))
        if labels.ndim != 2 or labels.shape[1] != 3:
            raise ValueError(f"labels must be (n, 3): Teff, log g, [Fe/H]; got shape {labels.shape}")
        good = np.all(np.isfinite(labels), axis=1)
        flux = np.full((len(labels), self.wavelength.size), np.nan)
        error, novelty = flux.copy(), np.full(len(labels), np.nan)
        if good.any():
            x = self._scaled(labels[good])
            flux[good], error[good] = self._regression.predict(x, return_std=True)
            error[good] *= self.calibration
            signal = self._regression.kernel_.k1
            cross = signal(self._scaled(self.labels), x)
            left = signal.diag(x) - np.sum(cross * cho_solve((self._regression.L_, True), cross), axis=0)
            novelty[good] = np.clip(left / signal.diag(x), 0.0, 1.0)
        low, high = self.labels.min(axis=0), self.labels.max(axis=0)
        edge = 0.05 * (high - low)
        return GPPrediction(flux, error, novelty, np.any((labels < low - edge) | (labels > high + edge), axis=1))

    def leave_one_out(self) -> GPPrediction:
        """Prediction of every training star by all others, at the same parameters; exact, without refitting.

        With ``K`` the covariance and ``a = K^-1 y`` the prediction is ``y_i - a_i / (K^-1)_ii`` and its variance
        ``1 / (K^-1)_ii`` (Rasmussen & Williams 2006, section 5.4.2).
        """
        regression = self._regression
        residual, variance = left_out(regression)
        scale = np.broadcast_to(regression._y_train_std, self.wavelength.shape)
        flux = self.flux - residual * scale
        signal, noise = regression.kernel_.k1.k1.constant_value, regression.kernel_.k2.noise_level
        novelty = np.clip((variance[:, 0] - noise) / signal, 0.0, 1.0)
        return GPPrediction(flux, np.sqrt(variance) * scale * self.calibration, novelty, np.zeros(novelty.shape, bool))

    # -- files ----------------------------------------------------------------------------------------------

    def write(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write training set and parameters to an npz file."""
        with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(
                stream, format=_FORMAT, version=_VERSION, labels=self.labels, wavelength=self.wavelength,
                flux=self.flux, parameters=self.parameters, isotropic=self.isotropic,
            )  # fmt: skip

    @classmethod
    def read(cls, path: str | os.PathLike) -> SpectralGP:
        """Read what `write` wrote; nothing is fitted again.

        Raises
        ------
        FormatError
            Another file, or a version of a later release.
        """
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as npz:
                data = {key: npz[key] for key in npz.files}
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, numpy and zlib raise what they like on damage
            raise FormatError(f"{os.fspath(path)}: not a readable npz file: {error}") from None
        if str(data.get("format")) != _FORMAT:
            raise FormatError(f"{os.fspath(path)} does not hold a spectral Gaussian process")
        if int(data["version"]) > _VERSION:
            raise FormatError(f"{os.fspath(path)} is of version {int(data['version'])}; this release reads {_VERSION}")
        missing = {"labels", "wavelength", "flux", "parameters", "isotropic"} - set(data)
        if missing:
            raise FormatError(f"{os.fspath(path)}: {', '.join(sorted(missing))} missing")
        return cls(
            data["labels"], data["wavelength"], data["flux"], isotropic=bool(data["isotropic"]),
            parameters=data["parameters"],
        )  # fmt: skip


class MarginalLikelihood:
    """Negative log marginal likelihood of many outputs of one covariance, and its gradient.

    ``tr(K^-1 G) / 2 + m log|K| / 2 + n m log(2 pi) / 2`` with ``G = Y Y^T``: what scikit-learn sums output by output.

    Parameters
    ----------
    kernel : scikit-learn kernel
    x : ndarray (n, n_label)
    y : ndarray (n, m)
        Mean 0.
    """

    def __init__(self, kernel: Any, x: np.ndarray, y: np.ndarray, jitter: float = 1e-10) -> None:
        self.kernel, self.x, self.jitter = kernel, x, jitter
        self.gram, self.outputs = y @ y.T, y.shape[1]

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        covariance, derivative = self.kernel.clone_with_theta(theta)(self.x, eval_gradient=True)
        n, m = len(self.x), self.outputs
        covariance[np.diag_indices(n)] += self.jitter
        try:
            factor = cho_factor(covariance, lower=True)
        except np.linalg.LinAlgError:
            return np.inf, np.zeros_like(theta)
        inverse = cho_solve(factor, np.eye(n))
        weighted = inverse @ self.gram
        value = 0.5 * np.trace(weighted) + m * np.sum(np.log(np.diag(factor[0]))) + 0.5 * n * m * np.log(2.0 * np.pi)
        inner = m * inverse - weighted @ inverse
        return float(value), 0.5 * np.einsum("ij,ijk->k", inner, derivative)
