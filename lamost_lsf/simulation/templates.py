"""`synthetic_template`: a star's spectrum of high resolution without any data at hand."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from scipy.special import voigt_profile
from specutils import Spectrum

from lamost_lsf.units import SPEED_OF_LIGHT, air_to_vacuum, to_angstrom

__all__ = ["synthetic_template"]

# Hydrogen, air Angstrom (NIST): Balmer lines by upper level, then Paschen lines.
_BALMER = (
    6562.80, 4861.35, 4340.472, 4101.734, 3970.075, 3889.064, 3835.397, 3797.909, 3770.633, 3750.151, 3734.369,
    3721.946, 3711.978, 3703.859,
)  # fmt: skip
_PASCHEN = (9014.910, 8862.783, 8750.473, 8665.019, 8598.394, 8545.384, 8502.487, 8467.256)
# Air wavelength (Angstrom, laboratory), equivalent width in a Sun-like star (Angstrom), kind: 0 neutral, 1 ionised.
_METALS = (
    (3706.03, 0.35, 1), (3719.935, 1.3, 0), (3734.864, 1.8, 0), (3737.131, 1.1, 0), (3745.561, 0.9, 0),
    (3748.262, 0.5, 0), (3749.485, 1.1, 0), (3758.233, 1.1, 0), (3763.789, 0.8, 0), (3767.192, 0.8, 0),
    (3815.840, 0.9, 0), (3820.425, 1.4, 0), (3824.444, 0.5, 0), (3825.881, 1.2, 0), (3827.822, 0.7, 0),
    (3829.355, 0.9, 0), (3832.304, 1.5, 0), (3838.292, 1.8, 0), (3849.967, 0.5, 0), (3856.372, 0.6, 0),
    (3859.911, 1.3, 0), (3878.573, 0.6, 0), (3886.282, 0.8, 0), (3899.707, 0.4, 0), (3905.523, 0.7, 0),
    (3920.258, 0.3, 0), (3922.912, 0.4, 0), (3927.920, 0.2, 0), (3930.296, 0.2, 0), (3933.663, 17.0, 1),
    (3944.006, 0.5, 0), (3961.520, 0.6, 0), (3968.469, 12.0, 1), (4005.242, 0.4, 0), (4030.753, 0.33, 0),
    (4033.062, 0.25, 0), (4034.483, 0.2, 0), (4045.812, 1.1, 0), (4063.594, 0.8, 0), (4071.738, 0.7, 0),
    (4077.709, 0.42, 1), (4132.058, 0.35, 0), (4143.868, 0.45, 0), (4167.271, 0.2, 0), (4202.029, 0.33, 0),
    (4215.519, 0.23, 1), (4226.728, 1.45, 0), (4233.172, 0.13, 1), (4246.822, 0.17, 1), (4250.787, 0.34, 0),
    (4254.332, 0.39, 0), (4260.474, 0.6, 0), (4271.760, 0.75, 0), (4274.797, 0.22, 0), (4289.716, 0.2, 0),
    (4290.215, 0.12, 1), (4299.234, 0.2, 0), (4307.902, 0.72, 0), (4315.085, 0.15, 0), (4325.762, 0.79, 0),
    (4351.760, 0.13, 1), (4383.545, 1.0, 0), (4395.031, 0.14, 1), (4404.750, 0.9, 0), (4415.122, 0.42, 0),
    (4427.310, 0.13, 0), (4435.679, 0.14, 0), (4443.801, 0.12, 1), (4454.779, 0.2, 0), (4461.653, 0.13, 0),
    (4468.507, 0.13, 1), (4481.228, 0.1, 1), (4494.563, 0.19, 0), (4501.270, 0.12, 1), (4528.614, 0.28, 0),
    (4533.960, 0.12, 1), (4549.474, 0.15, 1), (4554.029, 0.16, 1), (4563.757, 0.12, 1), (4571.968, 0.13, 1),
    (4583.837, 0.12, 1), (4602.941, 0.12, 0), (4646.162, 0.11, 0), (4702.991, 0.33, 0), (4736.773, 0.13, 0),
    (4754.042, 0.13, 0), (4783.427, 0.14, 0), (4823.524, 0.15, 0), (4871.318, 0.25, 0), (4878.218, 0.12, 0),
    (4890.755, 0.2, 0), (4891.492, 0.31, 0), (4903.310, 0.15, 0), (4918.994, 0.25, 0), (4920.502, 0.47, 0),
    (4923.927, 0.18, 1), (4934.076, 0.18, 1), (4957.596, 0.7, 0), (4981.731, 0.12, 0), (4991.067, 0.11, 0),
    (5006.119, 0.15, 0), (5012.068, 0.13, 0), (5018.440, 0.2, 1), (5041.756, 0.14, 0), (5049.820, 0.15, 0),
    (5051.634, 0.12, 0), (5079.740, 0.1, 0), (5110.413, 0.13, 0), (5139.463, 0.2, 0), (5167.321, 0.65, 0),
    (5167.488, 0.28, 0), (5169.033, 0.19, 1), (5171.596, 0.2, 0), (5172.684, 1.26, 0), (5183.604, 1.58, 0),
    (5191.455, 0.18, 0), (5192.344, 0.2, 0), (5204.506, 0.19, 0), (5206.037, 0.2, 0), (5208.425, 0.22, 0),
    (5226.862, 0.12, 0), (5227.189, 0.29, 0), (5232.940, 0.35, 0), (5266.555, 0.25, 0), (5269.537, 0.48, 0),
    (5270.356, 0.3, 0), (5281.790, 0.15, 0), (5283.621, 0.2, 0), (5302.300, 0.16, 0), (5316.615, 0.12, 1),
    (5324.179, 0.33, 0), (5328.039, 0.37, 0), (5339.929, 0.17, 0), (5341.024, 0.2, 0), (5345.796, 0.11, 0),
    (5371.489, 0.26, 0), (5383.369, 0.18, 0), (5397.128, 0.24, 0), (5404.151, 0.19, 0), (5405.774, 0.27, 0),
    (5415.199, 0.2, 0), (5424.068, 0.2, 0), (5429.696, 0.28, 0), (5434.523, 0.18, 0), (5446.916, 0.24, 0),
    (5455.609, 0.22, 0), (5476.904, 0.15, 0), (5528.405, 0.29, 0), (5569.618, 0.15, 0), (5572.842, 0.2, 0),
    (5586.755, 0.22, 0), (5588.749, 0.15, 0), (5615.644, 0.26, 0), (5711.088, 0.1, 0), (5857.451, 0.13, 0),
    (5889.951, 0.75, 0), (5895.924, 0.56, 0), (6102.723, 0.13, 0), (6122.217, 0.22, 0), (6136.615, 0.14, 0),
    (6137.691, 0.14, 0), (6141.713, 0.12, 1), (6162.173, 0.24, 0), (6191.558, 0.14, 0), (6230.722, 0.16, 0),
    (6252.555, 0.12, 0), (6301.500, 0.13, 0), (6336.824, 0.11, 0), (6393.600, 0.13, 0), (6400.000, 0.17, 0),
    (6411.648, 0.14, 0), (6430.845, 0.12, 0), (6439.075, 0.17, 0), (6462.567, 0.17, 0), (6494.980, 0.18, 0),
    (6496.897, 0.1, 1), (6677.986, 0.14, 0), (6717.681, 0.12, 0), (7445.746, 0.12, 0), (7495.066, 0.12, 0),
    (7511.019, 0.15, 0), (7698.964, 0.17, 0), (7771.944, 0.07, 1), (7774.166, 0.06, 1), (7775.388, 0.05, 1),
    (8046.047, 0.1, 0), (8085.172, 0.11, 0), (8183.255, 0.23, 0), (8194.824, 0.3, 0), (8327.056, 0.19, 0),
    (8387.772, 0.2, 0), (8468.407, 0.14, 0), (8498.023, 1.3, 1), (8514.072, 0.11, 0), (8542.091, 3.5, 1),
    (8662.141, 2.6, 1), (8674.746, 0.12, 0), (8688.625, 0.27, 0), (8806.756, 0.5, 0), (8824.221, 0.22, 0),
)  # fmt: skip

_RESIDUAL = 0.06


def synthetic_template(
    temperature: float = 6000.0,
    *,
    metallicity: float = 0.0,
    seed: int = 0,
    step: u.Quantity = 0.05 * u.AA,
    wavelength_range: u.Quantity = (3600.0, 9200.0) * u.AA,
    broadening: u.Quantity = 7.0 * u.km / u.s,
) -> Spectrum:
    """Spectrum that looks like a star's: hydrogen, some 200 true metal lines, and a forest of random weak ones.

    Line positions of the named lines are true; depths follow rough rules (Saha and Boltzmann in spirit, fitted by
    eye). Good for
    demonstrations and for tests of radial velocities, in which template and star are the same; not for stellar
    parameters.

    Parameters
    ----------
    temperature : float
        Effective temperature, 4500-10000 K.
    metallicity : float
        [Fe/H], -3 to 0.5.
    seed : int
        Of the weak lines.
    step : `~astropy.units.Quantity`
        Sampling, at most 0.1 A.
    wavelength_range : `~astropy.units.Quantity`, (2,)
        Vacuum, within 3000-10500 A.
    broadening : `~astropy.units.Quantity`
        FWHM of the weakest lines (thermal motion, turbulence, rotation), velocity; at least 5 km/s.

    Returns
    -------
    `~specutils.Spectrum`
        Flux density per wavelength, 1 at 5500 A without lines; vacuum, rest frame; ``meta["name"]``.

    Raises
    ------
    TypeError, ValueError
        Arguments of the wrong unit or out of range.

    Examples
    --------
    >>> from lamost_lsf.simulation import synthetic_template
    >>> star = synthetic_template(5800)
    >>> star.flux.shape
    (112001,)
    """
    if not 4500.0 <= temperature <= 10000.0:
        raise ValueError(f"temperature must be 4500-10000 K, got {temperature!r}")
    if not -3.0 <= metallicity <= 0.5:
        raise ValueError(f"metallicity must be -3 to 0.5, got {metallicity!r}")
    dw = float(to_angstrom(step, "step"))
    if not 0.0 < dw <= 0.1:
        raise ValueError(f"step must be above 0 and at most 0.1 A, got {step}")
    limits = to_angstrom(u.Quantity(wavelength_range), "wavelength_range")
    if limits.shape != (2,) or not 3000.0 <= limits[0] < limits[1] <= 10500.0:
        raise ValueError(f"wavelength_range must be two increasing lengths in 3000-10500 A, got {wavelength_range}")
    if not isinstance(broadening, u.Quantity) or not broadening.unit.is_equivalent(u.km / u.s):
        raise TypeError(f"broadening must be a velocity, got {broadening!r}")
    fwhm = float(broadening.to_value(u.km / u.s))
    if not 5.0 <= fwhm <= 500.0:
        raise ValueError(f"broadening must be 5-500 km/s, got {broadening}")
    wavelength = limits[0] + dw * np.arange(int(np.floor((limits[1] - limits[0]) / dw + 1e-9)) + 1)
    sigma = fwhm / 2.3548 / SPEED_OF_LIGHT

    # Optical depths add up; where they are small they are depths.
    depth = np.zeros_like(wavelength)
    excitation = 5040.0 / temperature - 5040.0 / 5777.0
    neutral = 10.0 ** (0.6 * metallicity) * 10.0 ** (1.6 * excitation)
    ionised = 10.0 ** (0.6 * metallicity) * 10.0 ** (0.3 * excitation - 0.9 * min(excitation + 0.2, 0.0) ** 2)
    hydrogen = np.exp(-(((temperature - 9200.0) / 2300.0) ** 2)) / np.exp(-(((5777.0 - 9200.0) / 2300.0) ** 2))
    for n, air in enumerate(_BALMER):
        # pressure-broadened: nearly all of the strength is in Lorentzian wings
        area = 3.6 * hydrogen * (1.0, 0.95, 0.85, 0.8, 0.7, 0.62, 0.5, 0.4, 0.32, 0.24, 0.18, 0.13, 0.09, 0.06)[n]
        _add(depth, wavelength, air, 0.9 * area, 0.4, 0.9 * min(hydrogen, 12.0) ** 0.6, 220.0)
    for air in _PASCHEN:
        _add(depth, wavelength, air, 0.12 * hydrogen, 0.5, 0.8 * min(hydrogen, 12.0) ** 0.5, 120.0)
    for air, width, kind in _METALS:
        area = 1.25 * width * (ionised if kind else neutral)
        # beyond a quarter of an Angstrom lines grow by damping wings
        damping = 0.12 * area if area > 0.25 else 0.01
        _add(depth, wavelength, air, area, air * sigma, damping, min(20.0 + 40.0 * area, 400.0))
    rng = np.random.default_rng(seed)
    # more and deeper towards the blue; the CH band at 4300 A is part of the forest
    n_weak = 3200
    position = np.concatenate(
        [3000.0 + rng.exponential(1500.0, n_weak), rng.uniform(4290.0, 4317.0, 120), rng.uniform(3000.0, 10500.0, 500)]
    )
    strength = 0.075 * 10.0 ** rng.uniform(-1.6, 0.0, position.size) * (5000.0 / position) ** 1.2
    strength *= neutral ** rng.uniform(0.7, 1.3, position.size)
    for air, area in zip(position, strength, strict=True):
        _add(depth, wavelength, air, area, air * sigma, 0.0, 12.0 * air * sigma)
    # the core of a strong line is formed high up, where it is cool but not dark
    line = _RESIDUAL + (1.0 - _RESIDUAL) * np.exp(-depth)
    flux = _planck(wavelength, temperature) / _planck(np.array(5500.0), temperature) * line
    return Spectrum(
        flux=flux * u.dimensionless_unscaled,
        spectral_axis=wavelength * u.AA,
        meta={
            "name": f"synthetic T{temperature:.0f} [Fe/H]{metallicity:+.1f} seed{seed}",
            "wavelength_medium": "vacuum",
            "frame": "rest",
            "temperature": float(temperature),
            "metallicity": float(metallicity),
        },
    )


def _planck(wavelength: np.ndarray, temperature: float) -> np.ndarray:
    """Shape of Planck's law per wavelength (Angstrom)."""
    return wavelength**-5.0 / np.expm1(1.438777e8 / (wavelength * temperature))


def _add(
    depth: np.ndarray, wavelength: np.ndarray, air: float, area: float, sigma: float, gamma: float, reach: float
) -> None:
    """Add a Voigt line of optical depth ``area`` (Angstrom) at an air wavelength, in place."""
    center = float(air_to_vacuum(air))
    first, last = np.searchsorted(wavelength, (center - reach, center + reach))
    if first == last:
        return
    x = wavelength[first:last] - center
    line = area * voigt_profile(x, sigma, gamma)
    # brought to 0 smoothly at the end of its reach
    depth[first:last] += line * (1.0 - (x / reach) ** 2) ** 2
