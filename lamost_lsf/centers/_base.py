"""What all built-in centre estimators share: checking of arguments, broadcasting, the shape of the result."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["CenterEstimator", "Samples", "prepare"]


class Samples:
    """Checked input of an estimator, flattened to two axes.

    Attributes
    ----------
    x : ndarray (n,)
        Strictly increasing, float64.
    profile : ndarray (m, n)
        float64, C order. Never written to.
    error : ndarray (m, n), (1, n) or (0, n)
        One row stands for all profiles; no row: no errors were given.
    mask : ndarray of uint8 (m, n), (1, n) or (0, n)
        As `error`; nonzero is bad.
    shape : tuple
        Leading axes of the result.
    """

    def __init__(
        self, x: np.ndarray, profile: np.ndarray, error: np.ndarray, mask: np.ndarray, shape: tuple[int, ...]
    ) -> None:
        self.x = x
        self.profile = profile
        self.error = error
        self.mask = mask
        self.shape = shape


def _real(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be an array of real numbers, not of dtype {array.dtype}")
    return array


def _frozen(array: np.ndarray) -> np.ndarray:
    """Read-only view: inputs are safe, and compiled functions meet one type whether or not the user's is."""
    view = array.view()
    view.flags.writeable = False
    return view


def _rows(array: np.ndarray | None, dtype: type, shape: tuple[int, ...], n: int) -> np.ndarray:
    """Flatten leading axes; keep a single row where one row serves all."""
    if array is None:
        return _frozen(np.empty((0, n), dtype))
    if array.size == n:
        return _frozen(np.ascontiguousarray(array.reshape(1, n), dtype=dtype))
    return _frozen(np.ascontiguousarray(np.broadcast_to(array, (*shape, n)), dtype=dtype).reshape(-1, n))


def prepare(x: ArrayLike, profile: ArrayLike, error: ArrayLike | None = None, mask: ArrayLike | None = None) -> Samples:
    """Check the arguments of an estimator and bring them to float64 rows.

    Raises
    ------
    ValueError
        If x is not one-dimensional, finite and strictly increasing, or the shapes do not fit.
    """
    x = np.ascontiguousarray(_real("x", x), dtype=np.float64)
    if x.ndim != 1 or x.size < 2:
        raise ValueError(f"x must be one-dimensional with at least 2 samples, not of shape {x.shape}")
    if not np.all(np.isfinite(x)):
        raise ValueError("x must be finite: it holds NaN or infinity")
    if not np.all(x[1:] > x[:-1]):
        raise ValueError("x must increase strictly: sort it, or flip x and profile of a descending axis")
    if isinstance(profile, np.ma.MaskedArray):
        own = np.ma.getmaskarray(profile)
        mask = own if mask is None else own | np.asarray(mask, dtype=bool)
        profile = profile.data
    arrays = {"profile": _real("profile", profile)}
    if error is not None:
        arrays["error"] = _real("error", error)
    if mask is not None:
        arrays["mask"] = _real("mask", mask)
        if arrays["mask"].dtype.kind == "f":
            raise ValueError("mask must be boolean or integer (True or nonzero = bad), not floating point")
    for name, array in arrays.items():
        if array.ndim == 0 or array.shape[-1] != x.size:
            raise ValueError(f"the last axis of {name} must have the {x.size} samples of x: its shape is {array.shape}")
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays.values()))[:-1]
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"the leading axes do not broadcast: {shapes}") from None
    n = x.size
    flat = np.ascontiguousarray(np.broadcast_to(arrays["profile"], (*shape, n)), dtype=np.float64).reshape(-1, n)
    bad = arrays.get("mask")
    return Samples(
        _frozen(x),
        _frozen(flat),
        _rows(arrays.get("error"), np.float64, shape, n),
        _rows(None if bad is None else bad != 0, np.uint8, shape, n),
        shape,
    )


class CenterEstimator:
    """Base class of the built-in centres: ``estimator(x, profile, *, error=None, mask=None)``.

    A subclass gives `_center` and `_uncertainty`, both from checked `Samples` to a flat array.
    """

    #: Name by which the estimator is registered.
    name: ClassVar[str]
    #: Leading axes of the profile are taken in one call.
    vectorized: ClassVar[bool] = True

    def __call__(
        self, x: ArrayLike, profile: ArrayLike, *, error: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> np.ndarray:
        """Centre of each profile.

        Parameters
        ----------
        x : array_like (n,)
            Sample positions (offset in Angstrom, or pixels), finite, strictly increasing; spacing may vary.
        profile : array_like (..., n)
            Flux. Samples that are not finite count as bad. Negative samples are used as they are.
        error : array_like, optional
            Standard deviation of the flux, broadcastable with `profile`. Samples whose error is not
            positive and finite count as bad. Only the fits weight samples by it.
        mask : array_like of bool, optional
            True marks bad samples, broadcastable with `profile`. A bad sample counts as if it were not there.

        Returns
        -------
        ndarray (...)
            Centre in units of `x`; NaN where a profile cannot be centred. A scalar for one profile.

        Raises
        ------
        ValueError
            If `x` is not finite and strictly increasing, or shapes do not fit.
        """
        samples = prepare(x, profile, error, mask)
        return self._center(samples).reshape(samples.shape)[()]

    def uncertainty(
        self, x: ArrayLike, profile: ArrayLike, *, error: ArrayLike, mask: ArrayLike | None = None
    ) -> np.ndarray:
        """Standard deviation of the centre, by linear propagation of independent errors of the samples.

        Parameters
        ----------
        x, profile, error, mask
            As for calling the estimator; `error` is required.

        Returns
        -------
        ndarray (...)
            One sigma in units of `x`; NaN where there is no centre.

        Raises
        ------
        ValueError
            As for calling the estimator, or if `error` is None.
        """
        if error is None:
            raise ValueError("error is required: the uncertainty of a centre is propagated from it")
        samples = prepare(x, profile, error, mask)
        return self._uncertainty(samples).reshape(samples.shape)[()]

    def _center(self, samples: Samples) -> np.ndarray:
        raise NotImplementedError

    def _uncertainty(self, samples: Samples) -> np.ndarray:
        raise NotImplementedError
