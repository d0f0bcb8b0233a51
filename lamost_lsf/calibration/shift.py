"""`shift_center`: a published spectrum's wavelengths from one centre definition to another, without its arc."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
from scipy.interpolate import make_interp_spline
from specutils import Spectrum

from lamost_lsf.lsf import LSF, as_lsf
from lamost_lsf.plugins import get_center, plugin_provenance
from lamost_lsf.units import check_medium, to_vacuum_angstrom, vacuum_to_air

__all__ = ["center_difference", "replace_axis", "shift_center"]

#: Distance of the wavelengths where centres are computed, Angstrom; in between, a cubic.
_STEP = 20.0


def _name(center: str | Callable) -> str:
    get_center(center)
    return plugin_provenance(center, "center").name


def center_difference(
    lsf: LSF, wavelength: u.Quantity, *, to: str | Callable, from_: str | Callable, medium: str = "vacuum"
) -> u.Quantity:
    """Distance of two centres of the instrumental profile, c_to(w) - c_from(w).

    Parameters
    ----------
    lsf : LSF, or what `~lamost_lsf.lsf.as_lsf` takes
        In the frame of the wavelengths.
    wavelength : `~astropy.units.Quantity`
        Any shape.
    to, from_ : str or callable
        Centre definitions; "zero" is offset 0 of the profile.
    medium : {"vacuum", "air"}
        Of ``wavelength``.

    Returns
    -------
    `~astropy.units.Quantity`
        Angstrom, shape of ``wavelength``.

    Raises
    ------
    OutOfRangeError
        Wavelengths that the LSF does not cover.
    ValueError
        A centre that cannot be determined.

    Examples
    --------
    The maximum of a profile with a red wing lies to the blue of its centroid:

    >>> import astropy.units as u, numpy as np
    >>> from lamost_lsf import InstrumentalProfile
    >>> from lamost_lsf.calibration import center_difference
    >>> x = np.linspace(-8, 8, 161)
    >>> ip = InstrumentalProfile(x * u.AA, np.exp(-0.5 * x**2) + 0.2 * np.exp(-0.5 * (x - 2) ** 2))
    >>> print(f"{center_difference(ip, 5000 * u.AA, to='centroid', from_='max'):.2f}")
    0.27 Angstrom
    """
    lsf = as_lsf(lsf)
    vacuum = to_vacuum_angstrom(wavelength, medium)
    flat = np.atleast_1d(vacuum).ravel()
    if not np.all(np.isfinite(flat)):
        raise ValueError("wavelengths must be finite")
    lsf._check_range(flat)
    if _name(to) == _name(from_):
        return np.zeros(vacuum.shape) * u.AA
    result = np.full(flat.shape, np.nan)
    for segment in lsf.segments():
        # arms are smooth each by itself
        here = (flat >= segment.low) & (flat < segment.high)
        if not np.any(here):
            continue
        low, high = flat[here].min(), flat[here].max()
        n = int(np.ceil((high - low) / _STEP)) + 1
        nodes = np.linspace(low, high, max(n, 4)) if high > low else np.array([low])
        distance = segment.lsf.zero_point(nodes, to) - segment.lsf.zero_point(nodes, from_)
        if nodes.size == 1:
            result[here] = distance[0]
        else:
            result[here] = make_interp_spline(nodes, distance, k=3)(flat[here])
    return result.reshape(vacuum.shape) * u.AA


def replace_axis(spectrum: Spectrum, axis: u.Quantity, meta: dict[str, Any]) -> Spectrum:
    """The spectrum's flux, uncertainty and mask on another axis."""
    return Spectrum(
        flux=spectrum.flux, spectral_axis=axis, uncertainty=spectrum.uncertainty, mask=spectrum.mask, meta=meta
    )


def shift_center(spectrum: Spectrum, lsf: LSF, *, to: str | Callable, from_: str | Callable | None = None) -> Spectrum:
    """Move a spectrum's wavelengths from one centre definition to another.

    A pipeline that took centre a of its arc lines for their wavelengths, and one that took centre b, differ by the
    distance of the two centres of the instrumental profile,

        w_b = w_a - [c_b(w) - c_a(w)],

    (Liu et al. 2026, section 5.2), so that the profile tells what the arc would have. The flux is left alone.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        With a spectral axis of wavelengths, vacuum unless ``meta["wavelength_medium"]`` says "air".
    lsf : LSF
        Of this spectrum, in its frame, as from `IPArchive.lsf_for`.
    to : str or callable
        Centre definition of the result; "zero" is the scale on which the profile's offsets are right.
    from_ : str or callable, optional
        That of the spectrum; ``meta["wavelength_center"]`` by default.

    Returns
    -------
    `~specutils.Spectrum`
        With ``meta["wavelength_center"]`` as ``to``; ``meta["wavelength_center_from"]`` is what it was.

    Raises
    ------
    TypeError
        No spectrum, or an axis of another kind.
    ValueError
        The spectrum does not say its centre, or says another than ``from_``; a profile without such a centre.
    OutOfRangeError
        Pixels that the LSF does not cover.

    Examples
    --------
    >>> import astropy.units as u, numpy as np
    >>> from specutils import Spectrum
    >>> from lamost_lsf import InstrumentalProfile
    >>> from lamost_lsf.calibration import shift_center
    >>> x = np.linspace(-8, 8, 161)
    >>> ip = InstrumentalProfile(x * u.AA, np.exp(-0.5 * x**2) + 0.2 * np.exp(-0.5 * (x - 2) ** 2))
    >>> axis = np.linspace(5000, 5050, 101) * u.AA
    >>> spectrum = Spectrum(np.ones(101) * u.one, spectral_axis=axis, meta={"wavelength_center": "max"})
    >>> moved = shift_center(spectrum, ip, to="centroid")
    >>> print(f"{moved.spectral_axis[0] - axis[0]:.2f}", moved.meta["wavelength_center"])
    -0.27 Angstrom centroid
    """
    if not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum must be a specutils Spectrum, got {type(spectrum).__name__}")
    axis = u.Quantity(spectrum.spectral_axis)
    if not axis.unit.is_equivalent(u.AA):
        raise TypeError(f"the spectral axis must be wavelengths, got {axis.unit}")
    own = spectrum.meta.get("wavelength_center")
    if from_ is None:
        if own is None:
            raise ValueError("the spectrum does not say its centre (meta['wavelength_center']): pass from_=")
        from_ = own
    elif own is not None and _name(own) != _name(from_):
        raise ValueError(f"the spectrum's centre is {own!r}, from_={from_!r} was passed")
    medium = check_medium(spectrum.meta.get("wavelength_medium") or "vacuum")
    vacuum = to_vacuum_angstrom(axis, medium)
    new = vacuum - center_difference(lsf, vacuum * u.AA, to=to, from_=from_).to_value(u.AA)
    if medium == "air":
        new = vacuum_to_air(new)
    meta = {**spectrum.meta, "wavelength_center": _name(to), "wavelength_center_from": _name(from_)}
    return replace_axis(spectrum, (new * u.AA).to(axis.unit), meta)
