"""What a centre estimator and a wavelength fitter have to look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from astropy.modeling import Model

__all__ = ["CenterEstimator", "WavelengthFitter"]


@runtime_checkable
class CenterEstimator(Protocol):
    """A definition of the centre of a line profile: any callable with this signature.

    Two attributes are optional:

    ``vectorized``
        True where the estimator takes profiles with leading axes, (..., n), in one call. Without it
        `apply_center` calls the estimator once per profile, with ``profile`` of shape (n,).
    ``uncertainty(x, profile, *, error, mask=None)``
        One-sigma error of the centre, of the shape and in the unit of the centre. Without it
        `center_uncertainty` propagates the errors numerically.
    """

    def __call__(
        self,
        x: np.ndarray,
        profile: np.ndarray,
        *,
        error: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> ArrayLike:
        """Centre of one profile, or of each of many.

        Parameters
        ----------
        x : ndarray (n,)
            Positions of the samples: offsets in Angstrom, or pixels. Finite and strictly increasing; the
            spacing may vary.
        profile : ndarray (n,), or (..., n) where ``vectorized`` is True
            Flux, background removed. It must not be written to.
        error : ndarray of the shape of ``profile``, optional
            Standard deviation of the flux.
        mask : ndarray of bool of the shape of ``profile``, optional
            True marks a bad sample, whose flux and error mean nothing and may be NaN.

        Returns
        -------
        float, or ndarray (...)
            Centre in the units of ``x``, as a plain number. NaN where the profile has no centre: an
            estimator does not raise for bad data.
        """
        ...


@runtime_checkable
class WavelengthFitter(Protocol):
    """A way to fit wavelength as a function of pixel: any callable with this signature."""

    def __call__(
        self,
        pixel: np.ndarray,
        wavelength: np.ndarray,
        *,
        error: np.ndarray | None = None,
        degree: int = 5,
        domain: tuple[float, float],
    ) -> Model:
        """Fit one spectrum's lines.

        Parameters
        ----------
        pixel : ndarray (n,)
            Measured centres of the lines, in any order; finite.
        wavelength : ndarray (n,)
            Wavelengths of the lines, all in one medium and unit; finite.
        error : ndarray (n,), optional
            Standard deviation of each line, in the unit of ``wavelength``. None: all lines weigh the same.
        degree : int
            Order of the curve: a polynomial fitter has ``degree + 1`` coefficients.
        domain : (float, float)
            First and last pixel where the solution will be used.

        Returns
        -------
        `~astropy.modeling.Model`
            One input (pixel), one output (wavelength), without units. Rejection of outliers is the caller's.

        Raises
        ------
        ValueError
            If there are too few lines for ``degree``.
        """
        ...
