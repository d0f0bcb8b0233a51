"""Quantities at the door, float64 arrays of Angstrom inside: the conversions used everywhere."""

from __future__ import annotations

from typing import Literal

import astropy.units as u
import numpy as np
from astropy.constants import c as _c

__all__ = [
    "SPEED_OF_LIGHT",
    "Medium",
    "air_to_vacuum",
    "check_medium",
    "doppler_factor",
    "to_angstrom",
    "to_vacuum_angstrom",
    "vacuum_to_air",
]

Medium = Literal["vacuum", "air"]

#: Speed of light, km/s.
SPEED_OF_LIGHT = _c.to_value(u.km / u.s)


def to_angstrom(value: u.Quantity, name: str = "wavelength") -> np.ndarray:
    """Plain float64 array in Angstrom from a length Quantity.

    Parameters
    ----------
    value : `~astropy.units.Quantity`
        Any unit of length.
    name : str
        What the value is, for the message.

    Returns
    -------
    ndarray
        Angstrom, float64, shape of ``value``.

    Raises
    ------
    TypeError
        Where ``value`` carries no unit of length.
    """
    if not isinstance(value, u.Quantity):
        raise TypeError(
            f"{name} must be a Quantity with a unit of length, e.g. 5000 * u.AA; "
            f"got {type(value).__name__} without a unit"
        )
    try:
        # float64 first: astropy converts float32 values in float32
        return np.asarray(u.Quantity(value, dtype=np.float64).to_value(u.AA))
    except u.UnitConversionError:
        raise TypeError(f"{name} must have a unit of length (Angstrom, nm, micron, ...), got {value.unit}") from None


def check_medium(medium: str) -> Medium:
    """Return ``medium`` in lower case, or raise ``ValueError`` unless it is "vacuum" or "air"."""
    lowered = str(medium).lower()
    if lowered not in ("vacuum", "air"):
        raise ValueError(f"medium must be 'vacuum' or 'air', got {medium!r}")
    return lowered  # type: ignore[return-value]


def _refractivity(vacuum: np.ndarray) -> np.ndarray:
    # Ciddor (1996, Applied Optics 35, 1566), standard air (15 C, 101325 Pa, 450 ppm CO2); n - 1.
    s2 = (1e4 / vacuum) ** 2
    return 1e-8 * (5792105.0 / (238.0185 - s2) + 167917.0 / (57.362 - s2))


def vacuum_to_air(wavelength: np.ndarray) -> np.ndarray:
    """Air wavelength of a vacuum wavelength, both in Angstrom (Ciddor 1996).

    Below 2000 A, where no standard-air formula holds, wavelengths are returned as they are.

    Examples
    --------
    >>> print(f"{vacuum_to_air(5578.88675):.3f}")
    5577.338
    """
    wavelength = np.asarray(wavelength, dtype=np.float64)
    index = 1.0 + _refractivity(np.maximum(wavelength, 2000.0))
    return np.where(wavelength >= 2000.0, wavelength / index, wavelength)


def air_to_vacuum(wavelength: np.ndarray) -> np.ndarray:
    """Vacuum wavelength of an air wavelength, both in Angstrom: the inverse of `vacuum_to_air`.

    The refractive index is a function of the vacuum wavelength, so the inverse is iterated; three steps
    leave less than 1e-10 A.

    Examples
    --------
    >>> print(f"{air_to_vacuum(5577.338):.5f}")
    5578.88675
    """
    wavelength = np.asarray(wavelength, dtype=np.float64)
    vacuum = wavelength
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(4):
            vacuum = wavelength * (1.0 + _refractivity(vacuum))
    return np.where(vacuum >= 2000.0, vacuum, wavelength)


def to_vacuum_angstrom(value: u.Quantity, medium: str = "vacuum", name: str = "wavelength") -> np.ndarray:
    """Vacuum Angstrom, as a plain array, from a Quantity measured in ``medium``.

    Parameters
    ----------
    value : `~astropy.units.Quantity`
        Any unit of length.
    medium : {"vacuum", "air"}
        Medium of ``value``; air is converted by `air_to_vacuum`.
    name : str
        What the value is, for the message.

    Raises
    ------
    TypeError
        ``value`` without a unit of length.
    ValueError
        Another medium.
    """
    angstrom = to_angstrom(value, name)
    return air_to_vacuum(angstrom) if check_medium(medium) == "air" else angstrom


def doppler_factor(velocity: float | np.ndarray) -> np.ndarray:
    """Relativistic Doppler factor of wavelengths, sqrt((1 + b) / (1 - b)), of a radial velocity in km/s.

    Positive velocities recede: the observed wavelength is the emitted one times the factor.

    Raises
    ------
    ValueError
        A speed that is not below that of light. NaN stays NaN.

    Examples
    --------
    >>> float(doppler_factor(0.0))
    1.0
    """
    beta = np.asarray(velocity, dtype=np.float64) / SPEED_OF_LIGHT
    if np.any(np.abs(beta) >= 1.0):
        raise ValueError(f"velocities must be below the speed of light, {SPEED_OF_LIGHT} km/s, got {velocity}")
    return np.sqrt((1.0 + beta) / (1.0 - beta))
