"""Wavelength fitters and `WavelengthSolution`: from the pixels of identified lines to a wavelength scale.

Pixel centres are whole numbers counted from 0; pixel 0 reaches from -0.5 to 0.5. Wavelengths are vacuum.
"""

from collections.abc import Callable

from lamost_lsf.plugins import hookimpl
from lamost_lsf.wavelength.covariance import parameter_covariance, parameter_jacobian
from lamost_lsf.wavelength.fit import fit_wavelength_solution
from lamost_lsf.wavelength.fitters import fit_legendre, fit_polynomial
from lamost_lsf.wavelength.solution import WavelengthSolution

__all__ = [
    "WavelengthSolution",
    "fit_legendre",
    "fit_polynomial",
    "fit_wavelength_solution",
    "lamost_lsf_wavelength_fitters",
    "parameter_covariance",
    "parameter_jacobian",
]


@hookimpl
def lamost_lsf_wavelength_fitters() -> dict[str, Callable]:
    """Built-in fitters, registered through the hook that a third party uses."""
    return {"polynomial": fit_polynomial, "legendre": fit_legendre}
