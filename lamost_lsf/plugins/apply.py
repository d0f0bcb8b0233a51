"""Any centre estimator on any array of profiles, with errors: one way to call them all.

What the package's own estimators promise (arrays in one call, NaN for a profile that has no centre) a third
party's may not keep. Here a batch survives the failure of single profiles, whoever wrote the estimator.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lamost_lsf.errors import FitWarning
from lamost_lsf.plugins.loading import call_mismatch, describe
from lamost_lsf.plugins.protocols import CenterEstimator

__all__ = ["apply_center", "center_uncertainty"]


def apply_center(
    estimator: str | CenterEstimator,
    x: ArrayLike,
    profile: ArrayLike,
    *,
    error: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> np.ndarray:
    """Centre of each profile, by any estimator.

    Parameters
    ----------
    estimator : str or callable
        Name of a centre, or an estimator (see `CenterEstimator`). One without ``vectorized = True`` is called
        once per profile.
    x : array_like (n,)
        Positions of the samples (offset in Angstrom, or pixels), finite and strictly increasing.
    profile : array_like (..., n)
        Flux. Samples that are not finite count as bad.
    error : array_like, optional
        Standard deviation of the flux, broadcastable with ``profile``. Samples whose error is not finite and
        positive count as bad.
    mask : array_like of bool, optional
        True marks bad samples, broadcastable with ``profile``.

    Returns
    -------
    ndarray (...)
        Centre in units of ``x``; a scalar for one profile. NaN where the estimator found none.

    Raises
    ------
    ValueError
        If ``x`` is not finite and strictly increasing, arrays are not real or their shapes do not fit, or the
        estimator returns an array of another shape than that of the leading axes.
    TypeError
        If an array has a unit, or the estimator cannot be called as
        ``(x, profile, *, error=None, mask=None)`` or returns something other than real numbers.
    PluginLookupError
        If no centre has that name.

    Warns
    -----
    FitWarning
        Once, where a third party's estimator raised for some profiles, which are NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.plugins import apply_center
    >>> def brightest(x, profile, *, error=None, mask=None):
    ...     return x[np.argmax(profile)]
    >>> x = np.linspace(-1.0, 1.0, 5)
    >>> apply_center(brightest, x, [[0, 1, 4, 1, 0], [0, 0, 1, 4, 1]])
    array([0. , 0.5])
    """
    function = _callable(estimator)
    _check_plain(x=x, profile=profile, error=error)
    if _is_builtin(function):
        return function(x, profile, error=_samples(error, x), mask=_samples(mask, x))
    return _run(function, function, *_prepare(x, profile, error, mask))[()]


def center_uncertainty(
    estimator: str | CenterEstimator,
    x: ArrayLike,
    profile: ArrayLike,
    *,
    error: ArrayLike,
    mask: ArrayLike | None = None,
) -> np.ndarray:
    """One-sigma error of each centre, from independent errors of the samples.

    The estimator's own ``uncertainty`` is asked where there is one. If not, the variance is propagated
    numerically to first order,

        var(c) = sum_i (dc/df_i)^2 sigma_i^2,

    with central differences over plus and minus the sample's own sigma, within 1e-6 to 1e-3 of the profile's
    maximum (less drowns in the rounding of an iterated fit, more is no derivative): 2 n calls per profile.

    Parameters
    ----------
    estimator, x, profile, mask
        As for `apply_center`.
    error : array_like
        Standard deviation of the flux, broadcastable with ``profile``.

    Returns
    -------
    ndarray (...)
        Standard deviation in units of ``x``; NaN where there is no centre.

    Raises
    ------
    ValueError, TypeError, PluginLookupError
        As for `apply_center`; ValueError also if ``error`` is None.

    Examples
    --------
    The mean of two positions, weighted by their fluxes 1 +- 0.1 and 1 +- 0.1, is known to 0.1 / sqrt(8):

    >>> import numpy as np
    >>> from lamost_lsf.plugins import center_uncertainty
    >>> def mean(x, profile, *, error=None, mask=None):
    ...     return np.sum(x * profile) / np.sum(profile)
    >>> print(f"{center_uncertainty(mean, [0.0, 1.0], [1.0, 1.0], error=0.1):.6f}")
    0.035355
    """
    if error is None:
        raise ValueError("error is required: the uncertainty of a centre is propagated from it")
    function = _callable(estimator)
    _check_plain(x=x, profile=profile, error=error)
    if _is_builtin(function):
        return function.uncertainty(x, profile, error=_samples(error, x), mask=_samples(mask, x))
    arrays = _prepare(x, profile, error, mask)
    own = getattr(function, "uncertainty", None)
    if callable(own):
        sigma = _run(function, own, *arrays)
    else:
        sigma = _propagate(function, *arrays)
    return np.where(sigma >= 0.0, sigma, np.nan)[()]


# -- arguments --------------------------------------------------------------------------------


def _callable(estimator: str | CenterEstimator) -> Any:
    from lamost_lsf.plugins import get_center

    function = get_center(estimator)
    mismatch = call_mismatch("center", function)
    if mismatch is not None:
        # Found before the loop, where it would look like the failure of every single profile.
        raise TypeError(f"{_name(function)} cannot be called as (x, profile, *, error=None, mask=None): {mismatch}")
    return function


def _is_builtin(estimator: Any) -> bool:
    """Whether the estimator is the package's own, which does by itself all that is done here for others."""
    module = str(getattr(estimator, "__module__", ""))
    return module.startswith("lamost_lsf.centers") and hasattr(estimator, "uncertainty")


def _check_plain(**values: Any) -> None:
    for name, value in values.items():
        if hasattr(value, "unit"):
            raise TypeError(f"{name} must be plain numbers, without a unit; use {name}.to_value(...)")


def _samples(value: ArrayLike | None, x: ArrayLike) -> ArrayLike | None:
    """A value that stands for all samples, one per sample."""
    return np.full(np.shape(x), value) if value is not None and np.ndim(value) == 0 else value


def _name(estimator: Any) -> str:
    return getattr(estimator, "__name__", type(estimator).__name__)


def _real(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be real numbers, not of dtype {array.dtype}")
    return array.astype(np.float64, copy=False)


def _prepare(
    x: ArrayLike, profile: ArrayLike, error: ArrayLike | None, mask: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Checked float64 arrays of one shape, bad samples in the mask."""
    x = _real("x", x)
    if x.ndim != 1 or x.size < 2:
        raise ValueError(f"x must be one-dimensional with at least 2 samples, not of shape {x.shape}")
    if not np.all(np.isfinite(x)) or not np.all(np.diff(x) > 0):
        raise ValueError("x must be finite and increase strictly; flip x and profile of a descending axis")
    if isinstance(profile, np.ma.MaskedArray):
        own = np.ma.getmaskarray(profile)
        mask = own if mask is None else own | np.asarray(mask, dtype=bool)
        profile = profile.data
    arrays = {"profile": _real("profile", profile)}
    if error is not None:
        arrays["error"] = _real("error", error)
    if mask is not None:
        bad = np.asarray(mask)
        if bad.dtype.kind not in "biu":
            raise ValueError(f"mask must be boolean (True = bad), not of dtype {bad.dtype}")
        arrays["mask"] = bad != 0
    for name, array in arrays.items():
        # A scalar stands for all samples; an array must have them.
        if (array.ndim == 0 and name == "profile") or (array.ndim and array.shape[-1] != x.size):
            raise ValueError(f"the last axis of {name} must have the {x.size} samples of x: its shape is {array.shape}")
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"the leading axes do not broadcast: {shapes}") from None
    full = {name: np.ascontiguousarray(np.broadcast_to(a, shape)) for name, a in arrays.items()}
    flux, sigma, marked = full["profile"], full.get("error"), full.get("mask")
    found = ~np.isfinite(flux)
    if sigma is not None:
        found |= ~(np.isfinite(sigma) & (sigma > 0))
    if marked is not None or found.any():
        marked = found if marked is None else marked | found
    return x, flux, sigma, marked


# -- calling --------------------------------------------------------------------------------


def _run(
    estimator: Any,
    function: Callable,
    x: np.ndarray,
    profile: np.ndarray,
    error: np.ndarray | None,
    mask: np.ndarray | None,
    *,
    warn: bool = True,
) -> np.ndarray:
    """Call ``function`` (the estimator, or its ``uncertainty``) on all profiles."""
    shape = profile.shape[:-1]

    def call(index: Any) -> Any:
        # Copies: what an estimator writes to must not reach the caller's data.
        flux, sigma, bad = (None if a is None else a[index].copy() for a in (profile, error, mask))
        return function(x.copy(), flux, error=sigma, mask=bad)

    failure: Exception | None = None
    if getattr(estimator, "vectorized", False):
        try:
            return _numbers(estimator, call(...), shape)
        except _ResultError as wrong:
            raise wrong.error from None
        except Exception as raised:
            failure = raised
    # One after the other; also after the failure of a whole batch, to keep the profiles that are good.
    result = np.full(shape, np.nan)
    failed = 0
    for index in np.ndindex(shape):
        if failure is not None and not shape:
            failed = 1
            break
        try:
            result[index] = _numbers(estimator, call(index), ())
        except _ResultError as wrong:
            raise wrong.error from None
        except Exception as raised:
            failure, failed = raised, failed + 1
    if failure is not None and failed and warn:
        _warn(f"{_name(estimator)} failed for {failed} of {result.size} profiles, NaN: {describe(failure)}")
    return result


class _ResultError(Exception):
    """The estimator returned something that is no result: its author's mistake, not a failed profile."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _numbers(estimator: Any, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if hasattr(value, "unit"):
        error = f"{_name(estimator)} must return plain numbers in units of x, not a {type(value).__name__}"
        raise _ResultError(TypeError(error))
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.filled(value.astype(np.float64), np.nan)
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        error = f"{_name(estimator)} must return real numbers, not {type(value).__name__} ({array.dtype})"
        raise _ResultError(TypeError(error))
    if array.shape != shape:
        error = f"{_name(estimator)} returned shape {array.shape} where the leading axes are {shape}"
        raise _ResultError(ValueError(error))
    array = array.astype(np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _propagate(
    estimator: Any, x: np.ndarray, profile: np.ndarray, error: np.ndarray | None, mask: np.ndarray | None
) -> np.ndarray:
    assert error is not None  # center_uncertainty has checked
    shape, n = profile.shape[:-1], x.size
    result = np.full(shape, np.nan)
    failures = 0
    # One warning for the batch, at its end, not one per profile.
    center = _run(estimator, estimator, x, profile, error, mask, warn=False)
    for index in np.ndindex(shape):
        flux, sigma = profile[index], error[index]
        bad = np.zeros(n, dtype=bool) if mask is None else mask[index]
        (where,) = np.nonzero(~bad)
        if not np.isfinite(center[index]) or where.size == 0:
            failures += 1
            continue
        scale = np.max(np.abs(flux[where]))
        step = np.clip(sigma[where], 1e-6 * scale, 1e-3 * scale) if scale > 0 else sigma[where]
        trial = np.broadcast_to(flux, (2, where.size, n)).copy()
        rows = np.arange(where.size)
        trial[0, rows, where] += step
        trial[1, rows, where] -= step
        errors = np.broadcast_to(sigma, trial.shape)
        masks = None if mask is None else np.broadcast_to(bad, trial.shape)
        plus, minus = _run(estimator, estimator, x, trial, errors, masks, warn=False)
        slope = (plus - minus) / (2.0 * step)
        result[index] = np.sqrt(np.sum((slope * sigma[where]) ** 2))
        failures += not np.isfinite(result[index])
    if failures:
        _warn(f"no uncertainty of {_name(estimator)} for {failures} of {result.size} profiles: NaN")
    return result


def _warn(message: str) -> None:
    """Warn at the line that called into this module."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FitWarning, stacklevel=level)
