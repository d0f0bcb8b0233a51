"""`predict`: SEDs with errors from observed spectra."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Sequence
from typing import Any

import astropy.units as u
import numpy as np
from astropy.constants import c
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum, SpectrumList

from lamost_lsf.errors import CoverageWarning, FitWarning
from lamost_lsf.sed.grids import REFERENCE_BAND
from lamost_lsf.sed.inputs import InputSpectrum, input_vector
from lamost_lsf.sed.model import SEDModel

__all__ = ["SEDFlag", "predict"]

_LIGHT = c.to_value(u.km / u.s)
#: Vacuum Angstrom, as observed: [O I] 5577, Na D and [O I] 6300 of the sky and what lies before the star, the
#: atmosphere's O2 and H2O. They are in real spectra and in no library, and say nothing of what kind of star it is.
_FOREIGN = ((5572.0, 5586.0), (5885.0, 5902.0), (6275.0, 6330.0), (6865.0, 6970.0))
_PER_WAVELENGTH = tuple(
    u.Unit(text) for text in ("W / m3", "ph / (s m3)", "ct / AA", "ct / (s AA)", "electron / (s AA)")
)
#: Below this share of the lowest trained SNR nothing is predicted.
_HOPELESS = 0.25


class SEDFlag(enum.IntFlag):
    """What to be wary of in a predicted SED; 0 is good.

    Examples
    --------
    >>> from lamost_lsf.sed import SEDFlag
    >>> SEDFlag(3)
    <SEDFlag.FAR_FROM_TRAINING|LOW_SNR: 3>
    """

    #: The input is unlike the training set: another kind of object (by its header, or by its spectrum), a wrong
    #: velocity, another resolution.
    FAR_FROM_TRAINING = 1
    #: Noisier than anything that the network was trained on.
    LOW_SNR = 2
    #: Less noisy than anything that the network was trained on: the error is extrapolated.
    HIGH_SNR = 4
    #: The effective temperature that was given lies outside the trained range.
    TEFF_RANGE = 8
    #: More than a twentieth of the input's pixels were bridged.
    MASKED = 16
    #: No prediction: the spectrum could not be used, or is noisier than four times what was trained with.
    FAILED = 32


def predict(
    model: SEDModel,
    spectra: Spectrum | Sequence[Spectrum],
    rv: u.Quantity | None = None,
    *,
    teff: u.Quantity | None = None,
    reference_flux: u.Quantity | None = None,
    max_masked: float = 0.2,
    batch_size: int = 256,
    device: str = "cpu",
) -> Spectrum:
    """Predict the SED of one spectrum, or of many.

    Parameters
    ----------
    model : SEDModel
    spectra : `~specutils.Spectrum` or sequence of them
        With uncertainties, of any flux unit; see `input_vector`.
    rv : `~astropy.units.Quantity`, optional
        Radial velocity, or one for each spectrum, in the spectra's frame. The headers' by default.
        Positive receding.
    teff : `~astropy.units.Quantity`, optional
        Effective temperature(s), if known (NaN where not): stars outside the trained range are flagged. Stars a little
        hotter than those trained on are not recognised otherwise.
    reference_flux : `~astropy.units.Quantity`, optional
        Mean flux density of the star(s) per wavelength, between 5526 and 5586 A, which the scaled SED is multiplied by.
    max_masked : float
        Largest share of bridged pixels.
    batch_size : int
        Spectra that go through the network at once.
    device : str

    Returns
    -------
    `~specutils.Spectrum`
        On the model's output grid (vacuum, rest frame), flux (n_out,) or (n, n_out) per wavelength, scaled to the mean
        1 in the reference band or to ``reference_flux``; `~astropy.nddata.StdDevUncertainty` (aleatoric and epistemic
        in quadrature; the error of ``reference_flux`` is not in it). It is the star's own, without the dust before it,
        if the training SEDs were. ``meta`` holds ``flags`` (`SEDFlag`), ``aleatoric`` and ``epistemic`` (relative),
        ``rv`` (km/s), ``snr``, ``domain_distance``, ``domain_residual``, ``messages``, and ``coverage``
        (`SEDModel.coverage`): 1 where only an earlier training set than the last knew the SED.
        Pixels that no training set covered are NaN and masked. Of many spectra, one that cannot be used is NaN, masked
        and flagged FAILED.

    Warns
    -----
    CoverageWarning
        Inputs far from the training set.
    FitWarning
        Spectra of a batch that could not be used.

    Raises
    ------
    TypeError, ValueError, OutOfRangeError
        As `input_vector`, where a single spectrum was given; one that is hopelessly noisy; arguments that do not fit
        the spectra.
    """
    single = isinstance(spectra, Spectrum)
    if not single and not isinstance(spectra, (list, tuple, SpectrumList)):
        raise TypeError(f"spectra must be a Spectrum or a list of them, got {type(spectra).__name__}")
    items = [spectra] if single else list(spectra)
    n = len(items)
    if not isinstance(model, SEDModel):
        raise TypeError(f"model must be a SEDModel (SEDModel.read reads one), got {type(model).__name__}")
    if n == 0:
        raise ValueError("there is no spectrum to predict from")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    velocities = _per_spectrum(rv, n, "rv", u.km / u.s)
    temperatures = _per_spectrum(teff, n, "teff", u.K)
    scale = _reference(reference_flux, n)

    flags = np.zeros(n, dtype=np.int64)
    messages = [""] * n
    inputs: list[InputSpectrum | None] = []
    for k, item in enumerate(items):
        try:
            velocity = None if velocities is None else velocities[k] * u.km / u.s
            one = input_vector(item, velocity, grid=model.input_grid, max_masked=max_masked)
            if one.snr < _HOPELESS * model.snr_range[0]:
                raise ValueError(
                    f"an SNR of {one.snr:.1f} is too low: the model was trained with {model.snr_range[0]:g} "
                    f"to {model.snr_range[1]:g}"
                )
            inputs.append(one)
        except (ValueError, TypeError) as error:
            if single:
                raise
            flags[k] |= SEDFlag.FAILED
            messages[k] = str(error)
            inputs.append(None)
    usable = np.array([x is not None for x in inputs])

    m = len(model.output_grid)
    sed, aleatoric, epistemic = (np.full((n, m), np.nan) for _ in range(3))
    distance, residual, snr, shift = (np.full(n, np.nan) for _ in range(4))
    if usable.any():
        good = [x for x in inputs if x is not None]
        flux, error = np.stack([x.flux for x in good]), np.stack([x.error for x in good])
        filled = np.stack([x.filled for x in good])
        sed[usable], aleatoric[usable], epistemic[usable] = model.evaluate_networks(
            flux, error, batch_size=batch_size, device=device
        )
        observed = model.input_grid.wavelength * (1.0 + np.array([[x.rv] for x in good]) / _LIGHT)
        foreign = np.any([(observed > low) & (observed < high) for low, high in _FOREIGN], axis=0)
        distance[usable], residual[usable] = model.domain.measure(flux, np.where(filled | foreign, np.inf, error))
        snr[usable], shift[usable] = [x.snr for x in good], [x.rv for x in good]
        flags[usable] |= np.where(filled.mean(axis=1) > 0.05, SEDFlag.MASKED, 0)
    far = (distance > model.domain.limit_distance) | (residual > model.domain.limit_residual)
    for k, item in enumerate(items):
        kind = str(item.meta.get("class") or "STAR").upper()
        if usable[k] and kind != "STAR":
            far[k], messages[k] = True, f"the spectrum's header says {kind}"
    flags |= np.where(far, SEDFlag.FAR_FROM_TRAINING, 0)
    low, high = model.snr_range
    # a median of many pixels is known to a few per cent
    flags |= np.where(snr < 0.95 * low, SEDFlag.LOW_SNR, 0) | np.where(snr > 1.05 * high, SEDFlag.HIGH_SNR, 0)
    if temperatures is not None and model.teff_range is not None:
        outside = (temperatures < model.teff_range[0]) | (temperatures > model.teff_range[1])
        flags |= np.where(outside, SEDFlag.TEFF_RANGE, 0)
    _warn(flags, messages, n)

    sigma = sed * np.hypot(aleatoric, epistemic)
    value, sigma = sed * scale[:, None], sigma * scale[:, None]
    meta: dict[str, Any] = {
        "flags": flags, "messages": messages, "aleatoric": aleatoric, "epistemic": epistemic, "rv": shift, "snr": snr,
        "domain_distance": distance, "domain_residual": residual,
    }  # fmt: skip
    if single:
        meta = {name: entry[0] for name, entry in meta.items()}
        meta["flags"] = SEDFlag(int(meta["flags"]))
        value, sigma, usable = value[0], sigma[0], usable[0]
    meta |= {
        "coverage": model.coverage.copy(),
        "wavelength_medium": "vacuum",
        "frame": "rest",
        "reference_band": REFERENCE_BAND,
        "model": repr(model),
    }
    return Spectrum(
        flux=value,
        spectral_axis=model.output_grid.spectral_axis,
        uncertainty=StdDevUncertainty(sigma.value, unit=sigma.unit),
        mask=np.broadcast_to(~usable[..., None] | (model.coverage == 0), value.shape).copy(),
        meta=meta,
    )


def _per_spectrum(values: u.Quantity | None, n: int, name: str, unit: u.Unit) -> np.ndarray | None:
    if values is None:
        return None
    try:
        array = u.Quantity(values).to_value(unit)
    except u.UnitConversionError:
        raise TypeError(f"{name} must be in units such as {unit}, got {values!r}") from None
    if array.shape not in ((), (n,)):
        raise ValueError(f"{name} must be one value or {n}, got shape {array.shape}")
    return np.broadcast_to(array, (n,)).astype(np.float64)


def _reference(flux: u.Quantity | None, n: int) -> u.Quantity:
    if flux is None:
        return np.ones(n) * u.one
    flux = u.Quantity(flux)
    if flux.shape not in ((), (n,)):
        raise ValueError(f"reference_flux must be one value or {n}, got shape {flux.shape}")
    if not np.all(np.isfinite(flux.value) & (flux.value > 0)):
        raise ValueError(f"reference_flux must be positive and finite, got {flux}")
    if flux.unit != u.one and not any(flux.unit.is_equivalent(unit) for unit in _PER_WAVELENGTH):
        raise TypeError(f"reference_flux must be per wavelength, as the SED is, or without a unit; got {flux.unit}")
    return np.broadcast_to(flux, (n,), subok=True)


def _warn(flags: np.ndarray, messages: list[str], n: int) -> None:
    failed = np.flatnonzero(flags & SEDFlag.FAILED)
    if failed.size:
        warnings.warn(
            f"{failed.size} of {n} spectra could not be used; the first: {messages[failed[0]]}",
            FitWarning,
            stacklevel=3,
        )
    far = int(np.sum((flags & SEDFlag.FAR_FROM_TRAINING) > 0))
    if far:
        warnings.warn(
            f"{far} of {n} spectra are unlike the training set; their SEDs and errors are not to be trusted "
            "(see the flags)", CoverageWarning, stacklevel=3,
        )  # fmt: skip
