"""`InstrumentalProfile`: one measured or modelled profile, or an array of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import astropy.units as u
import numpy as np

from lamost_lsf.kernel import IPKernel, kernel_from_samples
from lamost_lsf.spline import SplineFamily, quadrature_weights
from lamost_lsf.units import to_angstrom

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from specutils import SpectralAxis

__all__ = ["InstrumentalProfile", "resolve_center"]


def resolve_center(center: str | Callable | None, *metas: Mapping[str, Any] | None) -> str | Callable:
    """Centre definition meant by ``center=None``: the first ``wavelength_center`` recorded, else "zero"."""
    if center is not None:
        return center
    for meta in metas:
        if meta and meta.get("wavelength_center") is not None:
            return meta["wavelength_center"]
    return "zero"


def _plain(values: Any) -> np.ndarray:
    """float64 array; masked values are NaN."""
    if isinstance(values, np.ma.MaskedArray):
        return values.astype(np.float64).filled(np.nan)
    return np.asarray(values, dtype=np.float64)


class InstrumentalProfile:
    """Instrumental profile(s) (line-spread functions) sampled on a grid of wavelength offsets.

    Parameters
    ----------
    offset : `~astropy.units.Quantity`, shape (n,)
        Observed minus true wavelength, strictly increasing, any unit of length.
    flux : array_like, shape (..., n)
        Response at each offset; any normalisation (peak or area). Leading axes are an array of profiles. Masked samples
        become NaN: everything derived from such a profile is NaN, the others are not touched.
    wavelength : `~astropy.units.Quantity`, shape broadcastable to ``flux.shape[:-1]``, optional
        True wavelength of each profile, vacuum.
    error : array_like, shape of ``flux``, or callable, optional
        1-sigma uncertainty of ``flux``; or a function without arguments that gives it, called when it is first asked
        for.
    meta : mapping, optional
        Provenance. ``meta["wavelength_center"]`` names the centre that ``center=None`` stands for.

    Raises
    ------
    TypeError
        ``offset`` or ``wavelength`` without a unit of length.
    ValueError
        Shapes that do not match, or offsets that do not increase.

    Notes
    -----
    Offsets are observed minus true: a line at true wavelength w0 has the profile h(w - w0). Between its
    samples the profile is their cubic spline; outside the window it is 0.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from lamost_lsf import InstrumentalProfile
    >>> x = np.linspace(-8, 8, 401) * u.AA
    >>> ip = InstrumentalProfile(x, np.exp(-0.5 * (x.value - 0.2) ** 2 / 1.2**2), wavelength=5000 * u.AA)
    >>> ip.shape
    ()
    >>> print(f"{ip.fwhm:.4f} {ip.center('centroid'):.4f}")
    2.8258 Angstrom 0.2000 Angstrom
    """

    def __init__(
        self,
        offset: u.Quantity,
        flux: np.ndarray,
        *,
        wavelength: u.Quantity | None = None,
        error: np.ndarray | Callable[[], np.ndarray] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self._offset = np.atleast_1d(to_angstrom(offset, "offset"))
        self._unit = offset.unit
        if self._offset.ndim != 1 or self._offset.size < 5:
            raise ValueError(f"offset must be one-dimensional with at least 5 samples, got shape {offset.shape}")
        if not np.all(np.isfinite(self._offset)) or np.any(np.diff(self._offset) <= 0):
            raise ValueError("offset must be finite and strictly increasing")
        self.flux = _plain(flux)
        if self.flux.ndim < 1 or self.flux.shape[-1] != self._offset.size:
            raise ValueError(
                f"the last axis of flux (shape {self.flux.shape}) must match offset ({self._offset.size} samples)"
            )
        if wavelength is None:
            self._wavelength = None
        else:
            angstrom = to_angstrom(wavelength)
            try:
                self._wavelength = np.broadcast_to(angstrom, self.shape)
            except ValueError:
                raise ValueError(
                    f"wavelength of shape {angstrom.shape} does not broadcast to the profiles' {self.shape}"
                ) from None
        self._error = error if error is None or callable(error) else self._checked_error(error)
        self.meta = dict(meta) if meta else {}

    # -- array of profiles ----------------------------------------------------------------------------

    @property
    def offset(self) -> u.Quantity:
        """Observed minus true wavelength, shape (n,)."""
        return (self._offset * u.AA).to(self._unit)

    @property
    def wavelength(self) -> u.Quantity | None:
        """True vacuum wavelength of each profile, shape ``shape``; None where unknown."""
        return None if self._wavelength is None else self._wavelength * u.AA

    @property
    def error(self) -> np.ndarray | None:
        """1-sigma uncertainty of ``flux``; None where unknown."""
        if callable(self._error):
            self._error = self._checked_error(self._error())
        return self._error

    def _checked_error(self, error: np.ndarray) -> np.ndarray:
        error = _plain(error)
        if error.shape != self.flux.shape:
            raise ValueError(f"error has shape {error.shape}, flux {self.flux.shape}")
        return error

    def __getstate__(self) -> dict[str, Any]:
        """As it is, with the error: what would give it may be a whole model."""
        return {**self.__dict__, "_error": self.error}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of profiles; () for one."""
        return self.flux.shape[:-1]

    @property
    def ndim(self) -> int:
        """Number of leading axes."""
        return self.flux.ndim - 1

    @property
    def size(self) -> int:
        """Number of profiles."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single InstrumentalProfile has no len()")
        return self.shape[0]

    def __getitem__(self, item: Any) -> InstrumentalProfile:
        if not self.shape:
            raise TypeError("a single InstrumentalProfile cannot be indexed")
        # The sample axis is not an axis of the array of profiles: whatever is asked for, it stays whole and last.
        index = item if isinstance(item, tuple) else (item,)
        if not any(part is Ellipsis for part in index):
            index = (*index, Ellipsis)
        index = (*index, slice(None))
        error = None if self.error is None else self.error[index]
        wavelength = None if self._wavelength is None else self._wavelength[item] * u.AA
        return InstrumentalProfile(self.offset, self.flux[index], wavelength=wavelength, error=error, meta=self.meta)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        at = ""
        if self._wavelength is not None and self.size:
            low, high = self._wavelength.min(), self._wavelength.max()
            at = f" at {low:.2f} A" if low == high else f" at {low:.2f}-{high:.2f} A"
        return (
            f"<InstrumentalProfile shape={self.shape}, {self._offset.size} samples "
            f"{self._offset[0]:+.3f}..{self._offset[-1]:+.3f} A{at}>"
        )

    def mean(self, axis: int | tuple[int, ...] | None = None) -> InstrumentalProfile:
        """Mean of unit-area profiles: the IP of a co-add of equal exposures.

        Parameters
        ----------
        axis : int or tuple of int, optional
            Leading axes to average over; all of them by default.

        Returns
        -------
        InstrumentalProfile
            Unit area. ``wavelength`` is averaged likewise; ``error`` is that of the mean of independent profiles.

        Raises
        ------
        `~numpy.exceptions.AxisError`
            An axis that the array of profiles does not have.
        """
        axes = tuple(range(self.ndim)) if axis is None else tuple(int(a) for a in np.atleast_1d(axis))
        for a in axes:
            # numpy would count the sample axis too
            if not -self.ndim <= a < self.ndim:
                raise np.exceptions.AxisError(a, self.ndim)
        axes = tuple(a % self.ndim for a in axes)
        unit = self.normalized("area")
        count = np.prod([self.shape[a] for a in axes], initial=1.0)
        error = None if unit.error is None else np.sqrt(np.sum(unit.error**2, axis=axes)) / count
        wavelength = None if self._wavelength is None else self._wavelength.mean(axis=axes) * u.AA
        flux = unit.flux.mean(axis=axes)
        return InstrumentalProfile(self.offset, flux, wavelength=wavelength, error=error, meta=self.meta)

    # -- normalisation and moments ----------------------------------------------------------------------

    @property
    def area(self) -> np.ndarray:
        """Integral of the spline through the samples, over the window, in Angstrom; shape ``shape``."""
        return self.flux @ quadrature_weights(self._offset)

    def normalized(self, to: str = "area") -> InstrumentalProfile:
        """Copy of unit "area" (per Angstrom) or unit "peak" (largest sample).

        Raises
        ------
        ValueError
            Another word for ``to``.
        """
        if to == "area":
            scale = self.area
        elif to == "peak":
            scale = self.flux.max(axis=-1)
        else:
            raise ValueError(f"to must be 'area' or 'peak', got {to!r}")
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.where(scale > 0, 1.0 / scale, np.nan)[..., None]
        error = None if self.error is None else self.error * factor
        return InstrumentalProfile(
            self.offset, self.flux * factor, wavelength=self.wavelength, error=error, meta=self.meta
        )

    def _central_moments(self, order: int) -> np.ndarray:
        weights = quadrature_weights(self._offset)
        area = self.flux @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = (self.flux @ (weights * self._offset)) / area
            deviation = self._offset - mean[..., None]
            moment = np.sum(self.flux * weights * deviation**order, axis=-1) / area
        return np.where(area > 0, moment, np.nan)

    @property
    def sigma(self) -> u.Quantity:
        """Square root of the second central moment; NaN where it is not positive."""
        variance = self._central_moments(2)
        return (np.sqrt(np.where(variance > 0, variance, np.nan)) * u.AA).to(self._unit)

    @property
    def skewness(self) -> np.ndarray:
        """Third central moment over sigma cubed, shape ``shape``."""
        return self._central_moments(3) / self.sigma.to_value(u.AA) ** 3

    @property
    def kurtosis(self) -> np.ndarray:
        """Excess kurtosis: fourth central moment over sigma to the fourth, minus 3; shape ``shape``."""
        return self._central_moments(4) / self.sigma.to_value(u.AA) ** 4 - 3.0

    @property
    def fwhm(self) -> u.Quantity:
        """Full width at half of the spline's maximum, between the half-maximum crossings next to the peak.

        NaN where a side never falls to half of the maximum within the window.
        """
        width = SplineFamily(self._offset, self.flux).fwhm()
        return (width * u.AA).to(self._unit)

    def center(
        self, name: str | Callable | None = None, *, mask: np.ndarray | None = None, weighted: bool = False
    ) -> u.Quantity:
        """Centre of every profile by a named (or given) definition.

        Parameters
        ----------
        name : str or callable, optional
            Name of a centre plug-in ("max", "centroid", "gauss", "sersic", "half", "fourier", "zero", or a third
            party's) or an estimator. None means ``meta["wavelength_center"]``, else "zero".
        mask : array_like of bool, optional
            True where a sample is bad; broadcast to ``flux``.
        weighted : bool
            Let ``error`` weight the fits. Not by default: the centre of an asymmetric line depends on the weights,
            and a
            kernel must be centred as the arc's lines were, whatever is known of either's errors.

        Returns
        -------
        `~astropy.units.Quantity`
            Shape ``shape``; NaN where the estimator failed.
        """
        from lamost_lsf.plugins import apply_center, get_center

        estimator = get_center(resolve_center(name, self.meta))
        error = self.error if weighted else None
        value = apply_center(estimator, self._offset, self.flux, error=error, mask=mask)
        return (np.asarray(value) * u.AA).to(self._unit)

    # -- use --------------------------------------------------------------------------------------------

    def __call__(self, offset: u.Quantity) -> np.ndarray:
        """Cubic spline of the samples at ``offset`` (m,), 0 outside the window; shape (..., m)."""
        x = np.atleast_1d(to_angstrom(offset, "offset"))
        return SplineFamily(self._offset, self.flux)(x)

    def to_kernel(
        self,
        *,
        dispersion: u.Quantity | None = None,
        spectral_axis: SpectralAxis | u.Quantity | None = None,
        at: u.Quantity | None = None,
        center: str | Callable | None = None,
    ) -> IPKernel:
        """Convolution kernel for a spectrum's own sampling.

        Give either ``dispersion``, the width of a pixel, or ``spectral_axis``, whose (linear or logarithmic)
        sampling is found from the axis itself.

        Parameters
        ----------
        dispersion : `~astropy.units.Quantity`, optional
            Pixel width of a linear axis.
        spectral_axis : `~specutils.SpectralAxis` or `~astropy.units.Quantity`, optional
            Axis of the spectrum to be convolved; uniform in wavelength or in its logarithm.
        at : `~astropy.units.Quantity`, optional
            True wavelength where a logarithmic axis is evaluated; the profile's own wavelength by default.
        center : str or callable, optional
            Which centre of the profile is put at lag 0. None means ``meta["wavelength_center"]``, else "zero".

        Returns
        -------
        `IPKernel`
            An astropy `~astropy.convolution.Kernel1D`: odd length, unit sum, zero lag at ``n // 2``. The profile is
            not flipped: a line convolved with it looks like the profile.

        Raises
        ------
        ValueError
            An axis that is not uniform, an array of profiles, or a centre that could not be found.

        Warns
        -----
        SamplingWarning
            Pixels too coarse for the profile: its area on them is off by more than 5 %.
        """
        if self.shape:
            raise ValueError(
                f"to_kernel makes one kernel from one profile; index this array of shape {self.shape} first"
            )
        definition = resolve_center(center, self.meta)
        zero = float(self.center(definition).to_value(u.AA))
        if not np.isfinite(zero):
            raise ValueError(f"the centre {definition!r} of this profile could not be determined")
        wavelength = at if at is not None else self.wavelength
        if np.size(wavelength if wavelength is not None else 0.0) != 1:
            raise ValueError(f"at must be one wavelength, got {np.shape(wavelength)}")
        return kernel_from_samples(
            self._offset,
            self.flux,
            zero=zero,
            center=definition,
            wavelength=None if wavelength is None else to_angstrom(wavelength, "at").item(),
            dispersion=dispersion,
            spectral_axis=spectral_axis,
        )

    def peek(self, ax: Axes | None = None, **kwargs: Any) -> Axes:
        """Quick look: the profiles on one axes; see `lamost_lsf.plots.plot_profile`."""
        from lamost_lsf.plots import plot_profile

        return plot_profile(self, ax=ax, **kwargs)
