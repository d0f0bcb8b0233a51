"""Independent truth for the convolution tests: LSFs in closed form and the scatter integral by brute force."""

from collections.abc import Callable

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from scipy.special import erf

from lamost_lsf import LSF


class SkewLSF(LSF):
    """Skewed Gaussian whose width, skewness and wing change with wavelength: nothing about it is symmetric or constant.

    The window cuts the profile off where it is not yet zero in the red, as LAMOST's window does.
    """

    def __init__(self, offset=None, wing=0.0, flip=False, scale=1.0, skew=1.0):
        super().__init__({})
        self.offset = np.linspace(-9.2, 9.8, 600) if offset is None else offset
        self.wing, self.flip, self.scale, self.skew = wing, flip, scale, skew

    def _sample(self, wavelength):
        w = np.asarray(wavelength)[:, None]
        sigma = self.scale * w / 1800 / 2.355 * 1.2 * (1 + 0.1 * np.sin(w / 1500))
        shape = self.skew * (1.0 + 0.5 * np.cos(w / 1500.0))
        z = (-self.offset if self.flip else self.offset) / sigma
        # the second term is a negative lobe beside the core, as interpolated arcs have
        return np.exp(-0.5 * z * z) * (1 + erf(shape * z / np.sqrt(2))) - self.wing * np.exp(
            -0.5 * (z + 2.8) ** 2 / 0.3
        )


class ConstantLSF(LSF):
    """A profile that is the same, in Angstrom, at every wavelength."""

    def __init__(self, offset=None, sigma=1.2, skew=1.5):
        super().__init__({})
        self.offset = np.linspace(-9.0, 10.0, 500) if offset is None else offset
        z = self.offset / sigma
        self._row = np.exp(-0.5 * z * z) * (1 + erf(skew * z / np.sqrt(2)))

    def _sample(self, wavelength):
        return np.tile(self._row, (np.size(wavelength), 1))


def scatter_integral(
    template: Callable[[np.ndarray], np.ndarray],
    lsf: LSF,
    output: np.ndarray,
    *,
    step: float = 0.02,
    zero: Callable[[np.ndarray], np.ndarray] | None = None,
    kernel_of_output: bool = False,
    limits: tuple[float, float] = (0.0, np.inf),
) -> np.ndarray:
    """``integral T(w') h(w - w'; w') dw'`` by midpoints in w', a spline of its own for every true wavelength.

    ``zero`` (of w') is the offset that lies at lag 0; ``kernel_of_output`` makes the wrong integral, with the profile
    of the output wavelength; ``limits`` are true wavelengths beyond which nothing is integrated.
    """
    x = lsf.offset
    result = np.empty(output.size)
    for k, w in enumerate(output):
        # midpoints between the ends of the window exactly, so that the jumps there cost no accuracy
        ends = [w - x[-1], w - x[0]]
        if zero is not None:
            ends = [brentq(lambda t, e=e: t - zero(t) - e, e - 3.0, e + 3.0, xtol=1e-12) for e in ends]
        low, high = max(ends[0], limits[0]), min(ends[1], limits[1])
        if low >= high:
            result[k] = 0.0
            continue
        n = int(np.ceil((high - low) / step))
        weight = (high - low) / n
        true = low + (np.arange(n) + 0.5) * weight
        at = w - true + (0.0 if zero is None else zero(true))
        profiles = lsf._sample(np.full(true.size, w) if kernel_of_output else true)
        spline = CubicSpline(x, profiles.T)
        area = spline.integrate(x[0], x[-1])
        cell = np.clip(np.searchsorted(x, at) - 1, 0, x.size - 2)
        t = at - x[cell]
        c = spline.c[:, cell, np.arange(true.size)]
        value = ((c[0] * t + c[1]) * t + c[2]) * t + c[3]
        value[(at < x[0]) | (at > x[-1])] = 0.0
        result[k] = np.sum(template(true) * value / area) * weight
    return result


class LineForest:
    """Continuum of 1 with narrow absorption lines (sigma 0.08 A), in closed form."""

    def __init__(self, low, high, n=300, seed=1, sigma=0.08):
        rng = np.random.default_rng(seed)
        self.center, self.depth = rng.uniform(low, high, n), rng.uniform(0, 0.9, n)
        self.sigma = sigma

    def __call__(self, wavelength):
        out = np.ones(np.shape(wavelength))
        for center, depth in zip(self.center, self.depth, strict=True):
            near = np.abs(wavelength - center) < 9 * self.sigma
            out[near] *= 1 - depth * np.exp(-0.5 * ((wavelength[near] - center) / self.sigma) ** 2)
        return out
