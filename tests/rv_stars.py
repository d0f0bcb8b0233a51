"""Templates and Doppler factors made without the package, for the tests of velocities."""

import numpy as np

C = 299792.458


def lines(wavelength, seed=1, n=150, depth=0.8):
    """Narrow lines on a sloping continuum, at wavelengths around 5100 Angstrom."""
    rng = np.random.default_rng(seed)
    flux = np.ones(wavelength.size)
    for w, d in zip(rng.uniform(wavelength[0], wavelength[-1], n), rng.uniform(0.1, 1.0, n) * depth):
        flux *= 1 - d * np.exp(-0.5 * ((wavelength - w) / 0.35) ** 2)
    return flux * (1.2 - 0.3 * (wavelength - 5100) / 200)


def doppler(velocity):
    """Relativistic factor of wavelengths, for km/s."""
    b = velocity / C
    return np.sqrt((1 + b) / (1 - b))
