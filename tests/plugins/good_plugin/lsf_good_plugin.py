"""Two centres and a wavelength fitter for lamost_lsf: an example of a plug-in."""

import numpy as np
from astropy.modeling.fitting import LinearLSQFitter
from astropy.modeling.models import Chebyshev1D

from lamost_lsf.plugins import hookimpl


def bisector(x, profile, *, error=None, mask=None):
    """Mean of the line's bisector between 20 and 80 per cent of the peak."""
    if mask is not None:
        x, profile = x[~mask], profile[~mask]
    if profile.size < 3 or not np.max(profile) > 0:
        return np.nan
    top = int(np.argmax(profile))
    middles = []
    for level in np.linspace(0.2, 0.8, 13) * profile[top]:
        left = top - np.argmax(profile[top::-1] < level)
        right = top + np.argmax(profile[top:] < level)
        if left == top or right == top:
            return np.nan  # the line does not come down to this level
        blue = np.interp(level, profile[left : left + 2], x[left : left + 2])
        red = np.interp(-level, -profile[right - 1 : right + 1], x[right - 1 : right + 1])
        middles.append(0.5 * (blue + red))
    return np.mean(middles)


class Contrast:
    """Centroid weighted by the square of the flux, which the noise of the wings does not reach."""

    #: Profiles with leading axes are taken in one call.
    vectorized = True

    def __call__(self, x, profile, *, error=None, mask=None):
        weight = profile**2
        if mask is not None:
            weight = np.where(mask, 0.0, weight)
        total = np.sum(weight, axis=-1)
        with np.errstate(invalid="ignore"):
            return np.where(total > 0, np.sum(weight * (x - x[0]), axis=-1) / total, np.nan) + x[0]

    def uncertainty(self, x, profile, *, error, mask=None):
        """One-sigma error by linear propagation."""
        center = np.asarray(self(x, profile, mask=mask))
        weight, variance = profile**2, np.asarray(error) ** 2 * profile**2 * (x - center[..., None]) ** 2
        if mask is not None:
            weight, variance = np.where(mask, 0.0, weight), np.where(mask, 0.0, variance)
        return 2.0 * np.sqrt(np.sum(variance, axis=-1)) / np.sum(weight, axis=-1)


def chebyshev(pixel, wavelength, *, error=None, degree=5, domain):
    """Chebyshev series, weighted by the errors of the lines."""
    if len(pixel) <= degree:
        raise ValueError(f"{len(pixel)} lines are too few for degree {degree}")
    weights = None if error is None else 1.0 / np.asarray(error)
    return LinearLSQFitter()(Chebyshev1D(degree, domain=domain), pixel, wavelength, weights=weights)


@hookimpl
def lamost_lsf_centers():
    """Centres of this plug-in."""
    return {"Bisector": bisector, "contrast": Contrast()}


@hookimpl
def lamost_lsf_wavelength_fitters():
    """Wavelength fitters of this plug-in."""
    return {"chebyshev": chebyshev}
