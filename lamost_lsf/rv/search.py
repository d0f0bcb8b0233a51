"""The search: chi-squares of many spectra at all trial velocities, as matrix products.

With a continuum ``sum_i c_i T_i(x)`` the chi-square of one trial velocity needs, of a spectrum, ``sum w f M T_i`` and
``sum w M^2 T_i T_j``. Products of Chebyshev polynomials are sums of two of them,

    T_i T_j = (T_{i+j} + T_{|i-j|}) / 2,

so that ``sum w M^2 T_m`` for m up to twice the degree is enough. The models ``M T_i`` and ``M^2 T_m`` of every trial
velocity are the same for all spectra: both sets of sums are products of one matrix of spectra with one of models.

A wide window has a continuum of high degree. For the search it is cut into pieces with a polynomial of low degree
each: at least as free as the one polynomial, a fraction of the work, and well conditioned in single precision.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numba import njit

from lamost_lsf.convolution.loggrid import FASTMATH, LogGrid, gather

__all__ = ["VelocitySearch", "chebyshev"]

#: Bytes of models that are made at a time.
_BLOCK = 64_000_000
#: Highest degree of the continuum of one piece.
_PIECE_DEGREE = 6


def chebyshev(x: np.ndarray, degree: int) -> np.ndarray:
    """Chebyshev polynomials 0..degree at x (n,): shape (degree + 1, n)."""
    out = np.empty((degree + 1, x.size))
    out[0] = 1.0
    if degree:
        out[1] = x
    for k in range(2, degree + 1):
        out[k] = 2.0 * x * out[k - 1] - out[k - 2]
    return out


class VelocitySearch:
    """Models of templates at all trial velocities on fixed pixels; gives the chi-squares of spectra on them.

    Parameters
    ----------
    rest : ndarray (n_template, n_node)
        Templates at rest, seen through the search's LSF, at the nodes of ``grid``.
    grid : LogGrid
    log_wavelength : ndarray (n,)
        ln of the pixels' wavelengths.
    shift : ndarray (k,)
        Trial shifts of ln(wavelength).
    degree : int
        Of the continuum.
    single : bool
        Whether the products are made in single precision: good to some 1e-6 of ``sum(ivar flux^2)``, which is what a
        search needs, and twice as fast.
    keep : int
        Bytes of models that may be kept between calls; if there are more they are made anew, block by block, each time.
    """

    def __init__(
        self,
        rest: np.ndarray,
        grid: LogGrid,
        log_wavelength: np.ndarray,
        shift: np.ndarray,
        degree: int,
        single: bool = True,
        keep: int = 256_000_000,
    ) -> None:
        self.n_templates, self.n_pixels, self.n_trials = rest.shape[0], log_wavelength.size, shift.size
        self._rest, self._position, self._nodes = rest, grid.position(log_wavelength), shift / grid.step
        self._type = np.float32 if single else np.float64
        # rounding of the products must not decide; the scale of a model is arbitrary, so this is relative
        self._ridge = 1e-6 if single else 1e-11
        count = 1 if degree <= _PIECE_DEGREE else math.ceil((degree + 1) / (_PIECE_DEGREE - 1))
        self.degree = degree if count == 1 else _PIECE_DEGREE - 2
        edges = np.linspace(0, self.n_pixels, count + 1).round().astype(int)
        self._pieces = [slice(a, b) for a, b in pairwise(edges)]
        wavelength = np.exp(log_wavelength)
        self._polynomials = [_scaled_chebyshev(wavelength[piece], 2 * self.degree) for piece in self._pieces]
        per_trial = (3 * self.degree + 2) * self.n_pixels * np.dtype(self._type).itemsize
        self._per_block = max(1, int(_BLOCK // per_trial))
        fits = per_trial * self.n_trials * self.n_templates <= keep
        self._kept: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] | None = {} if fits else None

    def _design(self, template: int, number: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Models times polynomials (n, k (degree + 1)) and squared models times polynomials (n, k (2 degree + 1))."""
        key = template, number, first
        if self._kept is not None and key in self._kept:
            return self._kept[key]
        nodes, piece = self._nodes[first : first + self._per_block], self._pieces[number]
        p, n = self.degree + 1, piece.stop - piece.start
        linear = np.empty((nodes.size, p, n), dtype=self._type)
        square = np.empty((nodes.size, 2 * p - 1, n), dtype=self._type)
        _fill(self._rest[template], self._position[piece], nodes, self._polynomials[number], linear, square)
        # transposed views: what BLAS multiplies without copying
        out = linear.reshape(-1, n).T, square.reshape(-1, n).T
        if self._kept is not None:
            self._kept[key] = out
        return out

    def chi2(
        self, weighted: np.ndarray, ivar: np.ndarray, square: np.ndarray, templates: np.ndarray | None = None
    ) -> np.ndarray:
        """Chi-squares at all trial velocities.

        Parameters
        ----------
        weighted, ivar : ndarray (m, n)
            Flux times inverse variance, and inverse variance (0 for unusable pixels).
        square : ndarray (m,)
            ``sum(ivar flux^2)``.
        templates : sequence of int, optional
            All by default.

        Returns
        -------
        ndarray (m, n_template, k)
            Infinite where the model is not defined.
        """
        chosen = range(self.n_templates) if templates is None else templates
        p, m = self.degree + 1, square.size
        gain = np.zeros((m, len(chosen), self.n_trials))
        # inverse variances of order 1: single precision has no room for physical units
        total = ivar.sum(axis=1)
        scale = np.divide(ivar.shape[1], total, out=np.zeros(m), where=total > 0)
        left, right = (weighted * scale[:, None]).astype(self._type), (ivar * scale[:, None]).astype(self._type)
        for k, template in enumerate(chosen):
            for first in range(0, self.n_trials, self._per_block):
                for number, piece in enumerate(self._pieces):
                    linear, models = self._design(template, number, first)
                    count = linear.shape[1] // p
                    b = (left[:, piece] @ linear).reshape(m, count, p)
                    moments = (right[:, piece] @ models).reshape(m, count, 2 * p - 1)
                    _add_gain(b, moments, self._ridge, gain[:, k, first : first + count])
        # no model at all where there are data, or one that is not defined there, gains nothing or NaN
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(gain > 0.0, square[:, None, None] - gain / scale[:, None, None], np.inf)


def _scaled_chebyshev(wavelength: np.ndarray, degree: int) -> np.ndarray:
    span = wavelength[-1] - wavelength[0]
    x = (2.0 * wavelength - wavelength[0] - wavelength[-1]) / span if span > 0 else np.zeros(wavelength.size)
    return chebyshev(x, degree)


@njit(cache=True, error_model="numpy")
def _fill(rest, position, nodes, polynomials, linear, square):
    model = np.empty(position.size)
    for k in range(nodes.size):
        gather(rest, position - nodes[k], model)
        for i in range(linear.shape[1]):
            for j in range(model.size):
                linear[k, i, j] = model[j] * polynomials[i, j]
        for i in range(square.shape[1]):
            for j in range(model.size):
                square[k, i, j] = model[j] * model[j] * polynomials[i, j]


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def _add_gain(b, moments, ridge, gain):
    """Add what the best continuum takes off the chi-square; NaN where the model is not defined."""
    m, count, p = b.shape
    a, y, inverse = np.empty((p, p)), np.empty(p), np.empty(p)
    for i in range(m):
        for k in range(count):
            for r in range(p):
                d = 0.5 * (moments[i, k, 2 * r] + moments[i, k, 0])
                if not d < np.inf:
                    gain[i, k] = np.nan
                # a polynomial that is 0 at all pixels in use drops out
                inverse[r] = 1.0 / np.sqrt(d) if d > 0.0 else 0.0
            for r in range(p):
                for c in range(r + 1):
                    if r == c:
                        total = 1.0 + ridge
                    else:
                        total = 0.5 * (moments[i, k, r + c] + moments[i, k, r - c]) * inverse[r] * inverse[c]
                    for q in range(c):
                        total -= a[r, q] * a[c, q]
                    if r == c:
                        a[r, r] = 1.0 / np.sqrt(total) if total > 0.1 * ridge else 0.0
                    else:
                        a[r, c] = total * a[c, c]
                total = b[i, k, r] * inverse[r]
                for q in range(r):
                    total -= a[r, q] * y[q]
                # so does one that the pixels cannot tell from those before it
                y[r] = total * a[r, r]
                gain[i, k] += y[r] * y[r]
