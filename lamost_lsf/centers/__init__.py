"""Centres of a line: where an asymmetric profile *is* (Liu et al. 2026, section 5.1).

Each estimator is called as ``estimator(x, profile, *, error=None, mask=None)`` with profiles of shape (..., n),
and gives centres of shape (...) in units of x. The classes take options; their default instances are the
built-in plug-ins, registered by the same hook as a third party's:

========== =========================================================================
name       centre
========== =========================================================================
max        top of the cubic spline through the samples (`Max`)
centroid   flux-weighted mean (`Centroid`)
gauss      least-squares Gaussian (`Gauss`)
sersic     least-squares Sersic profile with a linear background (`Sersic`)
half       equal integrated flux on either side (`Half`)
fourier    amplitude-weighted centre of the first five harmonics (`Fourier`)
zero       0: the wavelength scale's own zero (`Zero`)
========== =========================================================================
"""

from lamost_lsf.centers.fourier import Fourier
from lamost_lsf.centers.gauss import Gauss
from lamost_lsf.centers.moments import Centroid, Half, Max, Zero, max_centroid_half
from lamost_lsf.centers.sersic import Sersic
from lamost_lsf.plugins import hookimpl

__all__ = ["Centroid", "Fourier", "Gauss", "Half", "Max", "Sersic", "Zero", "max_centroid_half"]


@hookimpl
def lamost_lsf_centers():
    """Give the built-in centre estimators, by name."""
    estimators = (Max(), Centroid(), Gauss(), Sersic(), Half(), Fourier(), Zero())
    return {estimator.name: estimator for estimator in estimators}
