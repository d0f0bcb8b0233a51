"""Convolution with one basis for many IPs: templates are convolved once, any IP is then a multiply-add.

Instrumental profiles form a family of low rank: ``g(u; s') = sum_k c_k(s') b_k(u)``. The scatter integral needs the
coefficients at the *true* wavelength ``s' = s - u``; expanded about the observed one,

    F(s) = sum_k c_k(s) (T * b_k)(s) - c_k'(s) (T * u b_k)(s) + O(c''),

so that two convolutions a component, made once for a template, serve every fibre, time and trial velocity. The
derivative term is what keeps this true to the scatter integral; the next one is of order (profile width / scale on
which the IP changes) squared, some 1e-7 for LAMOST.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from numba import njit
from scipy.fft import irfft, next_fast_len, rfft
from specutils import Spectrum

from lamost_lsf.convolution.axes import axis_angstrom, flux_and_mask, warn_coarse
from lamost_lsf.convolution.ip_basis import Coefficients, IPBasis
from lamost_lsf.convolution.loggrid import FASTMATH, LogGrid, lagrange8
from lamost_lsf.convolution.nodes import node_cubics, node_position
from lamost_lsf.convolution.spreading import spread_template
from lamost_lsf.units import SPEED_OF_LIGHT, check_medium, doppler_factor

__all__ = ["BoundTemplate", "Coefficients", "IPBasis", "TemplateBasis"]


class TemplateBasis:
    """Templates convolved once with every component of an `IPBasis`.

    Parameters
    ----------
    templates : `~specutils.Spectrum` or sequence of them
        Vacuum (or ``meta["wavelength_medium"] = "air"``), rest frame, finite and unmasked within the range used.
    basis : IPBasis
    max_velocity : float or `~astropy.units.Quantity`
        Largest shift, km/s, that will be asked for: how far beyond the basis's range the templates are kept.

    Attributes
    ----------
    values : ndarray (n_template, n, 2 n_component)
        Templates convolved with every component, and with every component times its lag, at the nodes of ``grid``. NaN
        where a template does not reach over all of a kernel.
    grid : LogGrid
        Rest wavelengths.
    coverage : list of tuple of float
        First and last wavelength of each template (vacuum Angstrom) that was used.

    Raises
    ------
    TypeError
        Templates that are not Spectrum objects.
    ValueError
        No templates; a template with bad pixels, or one that does not reach the basis's range.

    Notes
    -----
    Pixels within one profile of a join between arms use the profile of their own arm for all that they receive;
    `convolve` and `ResolutionMatrix` use the arm of the true wavelength.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from specutils import Spectrum
    >>> from lamost_lsf import GaussianIP, IPBasis, TemplateBasis
    >>> axis = np.arange(4900, 5100, 0.05) * u.AA
    >>> template = Spectrum(flux=(1 - 0.5 * np.exp(-(axis.value - 5000) ** 2 / 2)) * u.one, spectral_axis=axis)
    >>> lsf = GaussianIP(1800).at()
    >>> basis = IPBasis.from_lsfs(lsf, (4950, 5050))
    >>> bound = TemplateBasis(template, basis).on_axis(np.arange(4960, 5040) * u.AA)
    >>> print(f"{bound.apply(basis.coefficients(lsf))[0].min():.3f}")
    0.677
    """

    def __init__(
        self,
        templates: Spectrum | Sequence[Spectrum],
        basis: IPBasis,
        *,
        max_velocity: float | u.Quantity = 0.0,
    ) -> None:
        templates = [templates] if isinstance(templates, Spectrum) else list(templates)
        if not templates:
            raise ValueError("give at least one template")
        for template in templates:
            if not isinstance(template, Spectrum):
                raise TypeError(f"templates must be specutils Spectrum objects, got {type(template).__name__}")
        fastest = _velocity(max_velocity)
        self.basis = basis
        low, high = basis.wavelength_range
        stretch = float(doppler_factor(abs(fastest)))
        n_lag = basis.components.shape[1]
        grid = LogGrid.covering(low / stretch, high * stretch, basis.refinement, margin=n_lag + 16)
        self.grid = grid
        size = next_fast_len(grid.size + n_lag, real=True)
        lag = (basis.first_lag + np.arange(n_lag)) * grid.step
        filters = np.concatenate([basis.components, basis.components * lag])
        transforms = rfft(filters, size)
        self.values = np.empty((len(templates), grid.size, filters.shape[0]))
        self.coverage: list[tuple[float, float]] = []
        node = np.arange(grid.start, grid.start + grid.size) * grid.step
        used = lag[np.max(np.abs(basis.components), axis=0) > 1e-8]
        for row, template in zip(self.values, templates, strict=True):
            spectrum, covered, edges = _on_grid(template, grid, basis.width)
            self.coverage.append(covered)
            convolved = irfft(rfft(spectrum, size) * transforms, size)
            # lag 0 of the filter sits at its element -first_lag
            start = -basis.first_lag
            row[:] = convolved[:, start : start + grid.size].T
            row[(node - used[-1] < np.log(edges[0])) | (node - used[0] > np.log(edges[1]))] = np.nan

    @property
    def n_templates(self) -> int:
        """Number of templates."""
        return self.values.shape[0]

    def on_axis(
        self, spectral_axis: u.Quantity, *, velocity: float | u.Quantity = 0.0, medium: str = "vacuum"
    ) -> BoundTemplate:
        """Fix the output axis and a velocity; what is left is a multiply-add.

        Parameters
        ----------
        spectral_axis : `~astropy.units.Quantity` (n,)
            Observed wavelengths, increasing, within the basis's range.
        velocity : float or `~astropy.units.Quantity`
            Of the source, km/s; positive recedes.
        medium : {"vacuum", "air"}
            Medium of ``spectral_axis``.

        Raises
        ------
        ValueError
            An axis that leaves the basis's range, or a velocity that moves it off the templates' grid.
        """
        wavelength = axis_angstrom(u.Quantity(spectral_axis), check_medium(medium), "spectral_axis")
        low, high = self.basis.wavelength_range
        if wavelength[0] < low * (1 - 1e-12) or wavelength[-1] > high * (1 + 1e-12):
            raise ValueError(
                f"spectral_axis ({wavelength[0]:.2f}-{wavelength[-1]:.2f} A) leaves the basis's range "
                f"{low:.2f}-{high:.2f} A"
            )
        speed = _velocity(velocity)
        position = self.grid.position(np.log(wavelength) - np.log(float(doppler_factor(speed))))
        if position[0] < 3 or position[-1] > self.grid.size - 5:
            raise ValueError(
                f"a velocity of {speed:.1f} km/s leaves the templates' grid; make the TemplateBasis with a larger "
                "max_velocity"
            )
        values = np.empty((self.n_templates, wavelength.size, self.values.shape[2]))
        for template, out in zip(self.values, values, strict=True):
            gather_rows(template, position, out)
        return BoundTemplate(values, np.log(wavelength))


@dataclass(frozen=True)
class BoundTemplate:
    """Convolved components of templates at the pixels of one axis; see `TemplateBasis.on_axis`."""

    values: np.ndarray
    log_wavelength: np.ndarray

    def apply(self, coefficients: Coefficients) -> np.ndarray:
        """Flux of every template seen through one LSF: shape (n_template, n_pixel).

        NaN where a template does not reach over all of the kernel.
        """
        for value in coefficients.values:
            if 2 * value.shape[1] != self.values.shape[2]:
                raise ValueError(
                    f"the coefficients are of a basis of {value.shape[1]} components, the templates of one of "
                    f"{self.values.shape[2] // 2}; use those of the templates' own basis"
                )
        out = np.empty(self.values.shape[:2])
        edges = np.searchsorted(self.log_wavelength, np.log(coefficients.boundaries)) if coefficients.boundaries else []
        edges = [0, *(int(e) for e in edges), self.log_wavelength.size]
        for k, value in enumerate(coefficients.values):
            a, b = edges[k], edges[k + 1]
            if a < b:
                multiply_add(
                    self.values, self.log_wavelength, value, coefficients.log_start[k],
                    1.0 / coefficients.log_step[k], a, b, out,
                )  # fmt: skip
        return out


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def multiply_add(values, s, coefficients, s0, inverse_ds, begin, end, out):
    """Flux at pixels begin..end: sum over components of c_k P_k - c_k' Q_k (see the module's text).

    Parameters
    ----------
    values : ndarray (n_template, n_pixel, 2 n_component)
        P_k and Q_k at the pixels.
    s : ndarray (n_pixel,)
        ln(wavelength).
    coefficients : ndarray (n_node, n_component)
    s0, inverse_ds : float
        First node, nodes per unit of ln(wavelength).
    begin, end : int
    out : ndarray (n_template, n_pixel)
    """
    n_nodes, n_k = coefficients.shape
    # Cubics in the position t between nodes, for the c_k and then the -c_k', constant first; the same for all pixels
    # between two nodes.
    q0, q1, q2, q3 = np.empty(2 * n_k), np.empty(2 * n_k), np.empty(2 * n_k), np.empty(2 * n_k)
    factor = np.empty(2 * n_k)
    now = -1
    for j in range(begin, end):
        i, t = node_position(s[j], s0, inverse_ds, n_nodes)
        if i != now:
            now = i
            node_cubics(coefficients, i, inverse_ds, q0, q1, q2, q3)
        if values.shape[0] == 1:
            row = values[0, j]
            total = 0.0
            for k in range(row.size):
                total += (q0[k] + t * (q1[k] + t * (q2[k] + t * q3[k]))) * row[k]
            out[0, j] = total
            continue
        for k in range(factor.size):
            factor[k] = q0[k] + t * (q1[k] + t * (q2[k] + t * q3[k]))
        for template in range(values.shape[0]):
            row = values[template, j]
            total = 0.0
            for k in range(row.size):
                total += factor[k] * row[k]
            out[template, j] = total


@njit(cache=True, error_model="numpy", fastmath=FASTMATH)
def gather_rows(grid, position, out):
    """`gather` for an array (n, m) of m values a node; NaN beyond the grid."""
    from_grid = grid.shape[0]
    for j in range(position.size):
        i = int(np.floor(position[j]))
        w = lagrange8(position[j] - i)
        i -= 3
        if i < 0 or i + 8 > from_grid:
            out[j, :] = np.nan
            continue
        for m in range(grid.shape[1]):
            out[j, m] = 0.0
        for k in range(8):
            for m in range(grid.shape[1]):
                out[j, m] += w[k] * grid[i + k, m]


def _velocity(velocity: float | u.Quantity) -> float:
    """Plain km/s."""
    value = float(velocity.to_value(u.km / u.s)) if isinstance(velocity, u.Quantity) else float(velocity)
    if not abs(value) < SPEED_OF_LIGHT:
        raise ValueError(f"a velocity must be finite and less than that of light, got {value} km/s")
    return value


def _on_grid(
    template: Spectrum, grid: LogGrid, narrowest: float
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Template times its pixel widths, spread onto the grid.

    Returns
    -------
    spectrum : ndarray (n,)
    covered : tuple of float
        First and last wavelength used.
    edges : tuple of float
        Outer edges of the pixels used.
    """
    medium = check_medium(template.meta.get("wavelength_medium") or "vacuum")
    w = axis_angstrom(template.spectral_axis, medium, "the template's axis")
    flux, _, bad = flux_and_mask(template, None, w.size)
    if flux.ndim != 1:
        raise ValueError(f"a template must be one spectrum, got flux of shape {flux.shape}")
    nodes = grid.wavelength[[0, -1]]
    first, last = np.searchsorted(w, nodes)
    if last - first < 2:
        raise ValueError(
            f"the template ({w[0]:.1f}-{w[-1]:.1f} A) does not reach the wavelengths {nodes[0]:.1f}-{nodes[1]:.1f} A"
        )
    here = slice(first, last)
    if bad is not None and np.any(bad[here]):
        where = w[here][bad[here]][0]
        raise ValueError(f"the template has masked or non-finite pixels (first at {where:.2f} A) in the range used")
    warn_coarse(np.log(w[here]), narrowest, " in ln(wavelength)")
    out = np.zeros((2, grid.size))
    spread_template(w, flux[None], first, last, 0.0, np.inf, grid.step, grid.start, out)
    edges = (1.5 * w[first] - 0.5 * w[first + 1], 1.5 * w[last - 1] - 0.5 * w[last - 2])
    return out[0], (float(w[first]), float(w[last - 1])), edges
