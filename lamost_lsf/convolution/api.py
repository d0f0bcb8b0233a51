"""`convolve`: the front door of the convolution."""

from __future__ import annotations

from collections.abc import Callable

import astropy.units as u
import numpy as np
from specutils import Spectrum

from lamost_lsf.convolution.axes import axis_angstrom, build_spectrum, flux_and_mask, variance_of
from lamost_lsf.convolution.fast import convolve_flux
from lamost_lsf.convolution.matrix import ResolutionMatrix, build_matrix, check_options
from lamost_lsf.lsf import LSF, as_lsf
from lamost_lsf.profile import resolve_center
from lamost_lsf.units import check_medium

__all__ = ["convolve"]


def convolve(
    template: Spectrum,
    lsf: LSF,
    spectral_axis: u.Quantity | Spectrum | None = None,
    *,
    center: str | Callable | None = None,
    max_masked: float = 1e-3,
    preserve: str = "flux",
    medium: str | None = None,
    output_medium: str | None = None,
) -> Spectrum:
    """Convolve a template with a varying, asymmetric LSF onto another wavelength axis.

    ``F(w) = integral T(w') h(w - w'; w') dw'``: every true wavelength spreads by its own profile, so the flux of a line
    is conserved. Variance is propagated as sum of k^2 sigma^2 (the result's pixels are correlated; that covariance is
    not kept), masks grow by the kernel, and edges are masked and NaN.

    Parameters
    ----------
    template : `~specutils.Spectrum`
        Flux (n,) or (..., n) with the spectral axis last, in any unit per wavelength (or none); wavelengths increasing.
    lsf : LSF
        From ``model.at(...)`` or ``archive.lsf_for(spectrum)``; also an IP model that depends on wavelength only
        (`GaussianIP`), or an `InstrumentalProfile`: one holds everywhere, several are interpolated.
    spectral_axis : `~astropy.units.Quantity` or `~specutils.Spectrum`, optional
        Wavelengths of the result, or the observed spectrum that has them. The template's own by default.
    center : str or callable, optional
        Centre of the profile at lag 0. None: the LSF's own, else the ``meta["wavelength_center"]`` of ``spectral_axis``
        (if a Spectrum) or of the template, else "zero".
    max_masked : float
        Share of an output pixel's kernel that may fall on masked or missing template. Above it the pixel is NaN and
        masked, below it the rest is renormalised.
    preserve : {"flux", "continuum"}
        A constant template returns ``integral h(w - w'; w') dw'``, which differs from 1 by up to 3e-4 where the
        asymmetry varies; "continuum" divides by it.
    medium, output_medium : {"vacuum", "air"}, optional
        Medium of the template's axis and of ``spectral_axis``. By default ``meta["wavelength_medium"]`` of the template
        (and of ``spectral_axis`` if it is a Spectrum), else vacuum; ``output_medium`` falls back on the template's.

    Returns
    -------
    `~specutils.Spectrum`
        On ``spectral_axis`` as given, in the template's unit, with its meta, ``meta["kernel_center"]`` and
        ``meta["wavelength_medium"]``. Masked pixels are NaN; their inverse variance is 0.

    Warns
    -----
    SamplingWarning
        Template pixels wider than a third of the profile.

    Raises
    ------
    TypeError
        Something other than a Spectrum, or axes that are not wavelengths.
    ValueError
        Axes that do not increase, hold non-finite values or do not overlap; unknown options.
    OutOfRangeError
        The LSF is not defined where it is needed.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from specutils import Spectrum
    >>> import lamost_lsf as ll
    >>> axis = np.arange(4900, 5100, 0.02) * u.AA
    >>> flux = np.ones(axis.size)
    >>> flux[5000] = 51.0                                     # a line of equivalent width 1 A at 5000 A
    >>> spectrum = Spectrum(flux=flux * u.Jy, spectral_axis=axis)
    >>> result = ll.convolve(spectrum, ll.GaussianIP(1800), np.arange(4950, 5050, 0.5) * u.AA)
    >>> print(f"{result.flux.value.max() - 1:.4f}")           # 1 / (sqrt(2 pi) sigma)
    0.3382
    """
    if not isinstance(template, Spectrum):
        raise TypeError(f"template must be a specutils Spectrum, got {type(template).__name__}")
    check_options(max_masked, preserve)
    lsf = as_lsf(lsf)
    observed_meta = spectral_axis.meta if isinstance(spectral_axis, Spectrum) else None
    if isinstance(spectral_axis, Spectrum):
        axis_out = spectral_axis.spectral_axis
    else:
        axis_out = template.spectral_axis if spectral_axis is None else u.Quantity(spectral_axis)
    medium = check_medium(medium or template.meta.get("wavelength_medium") or "vacuum")
    output_medium = check_medium(output_medium or (observed_meta or {}).get("wavelength_medium") or medium)
    definition = resolve_center(center, {"wavelength_center": lsf.center}, observed_meta, template.meta)
    w_in = axis_angstrom(template.spectral_axis, medium, "the template's axis")
    w_out = axis_angstrom(axis_out, output_medium, "spectral_axis")
    flux, unit, bad = flux_and_mask(template, None, w_in.size)
    variance, kind = variance_of(template)
    if bad is not None and np.all(bad):
        raise ValueError("every pixel of the template is masked or non-finite")
    if variance is None and bad is None:
        rows = flux.reshape(-1, w_in.size)
        value, mask = convolve_flux(rows, w_in, w_out, lsf, definition, max_masked=max_masked, preserve=preserve)
        value = value.reshape((*flux.shape[:-1], w_out.size))
        mask, new_variance = np.broadcast_to(mask, value.shape).copy(), None
    else:
        matrix, response = build_matrix(lsf, w_in, w_out, definition)
        operator = ResolutionMatrix(matrix, response, w_in * u.AA, w_out * u.AA, definition)
        value, mask, new_variance = operator._apply(flux, bad, variance, max_masked, preserve)
    axis_out = u.Quantity(axis_out)
    return build_spectrum(template, value * unit, mask, new_variance, kind, axis_out, definition, output_medium)
