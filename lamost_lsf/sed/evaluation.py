"""How good predictions are: residuals by wavelength, band, class and SNR, and whether the errors are true."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.table import Table, vstack

from lamost_lsf.sed.grids import BANDS, WavelengthGrid, normalize_flux
from lamost_lsf.sed.model import SEDModel
from lamost_lsf.sed.preparation import SpectralSet

__all__ = ["Residuals", "evaluate", "noisy_inputs", "robust_scatter", "summarize"]


def robust_scatter(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Half the distance of the 16th and the 84th percentile: 1 sigma of a Gaussian, whatever the outliers."""
    if not np.size(values):
        # numpy drops the axis of percentiles there
        return np.full(np.delete(np.shape(values), axis), np.nan)
    low, high = np.nanpercentile(values, [15.8655, 84.1345], axis=axis)
    return 0.5 * (high - low)


@dataclass(frozen=True)
class Residuals:
    """Relative residuals of predictions, (predicted - true) / true (Yang et al. 2024, Eq. 2).

    Attributes
    ----------
    grid : WavelengthGrid
    residual : ndarray (n, n_out)
        NaN where the true SED is not known.
    sigma : ndarray (n, n_out)
        Predicted relative error.
    group : ndarray (n,)
        Class of the star.
    snr : ndarray (n,)
    index : ndarray (n,)
        Number of the spectrum in the set.
    sed, true : ndarray (n, n_out)
    """

    grid: WavelengthGrid
    residual: np.ndarray
    sigma: np.ndarray
    group: np.ndarray
    snr: np.ndarray
    index: np.ndarray
    sed: np.ndarray
    true: np.ndarray

    def select(self, group: str | None = None, snr: float | None = None) -> Residuals:
        """Those of a class and of an SNR."""
        keep = np.ones(len(self.residual), dtype=bool)
        if group is not None:
            keep &= self.group == group
        if snr is not None:
            keep &= self.snr == snr
        arrays = (self.residual, self.sigma, self.group, self.snr, self.index, self.sed, self.true)
        return Residuals(self.grid, *(array[keep] for array in arrays))

    @property
    def groups(self) -> list[str]:
        """Classes by the number they begin with, "5000-6000" before "10000-11000", else by the alphabet."""

        def rank(group: str) -> tuple[float, str]:
            number = re.match(r"[+-]?\d+(\.\d+)?", group)
            return (float(number[0]) if number else np.inf), group

        return sorted({str(group) for group in self.group}, key=rank)

    @classmethod
    def concatenate(cls, parts: Sequence[Residuals]) -> Residuals:
        """Residuals of several sets on one grid as one; the second set's spectra are numbered after the first's.

        Raises
        ------
        ValueError
            No part, or parts on different grids.
        """
        parts = list(parts)
        if not parts or any(part.grid != parts[0].grid for part in parts):
            raise ValueError("residuals to concatenate must be on one grid, and there must be at least one part")
        begin = np.cumsum([0, *(int(part.index.max(initial=-1)) + 1 for part in parts[:-1])])
        index = np.concatenate([part.index + first for part, first in zip(parts, begin, strict=True)])
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("residual", "sigma", "group", "snr", "sed", "true")
        }
        return cls(parts[0].grid, index=index, **arrays)

    @property
    def rmsae(self) -> np.ndarray:
        """Root mean square of each star's relative residuals (n,) (Eq. 3)."""
        return np.sqrt(np.nanmean(self.residual**2, axis=1))

    def by_wavelength(self) -> Table:
        """Columns wavelength, median, scatter (robust 1 sigma), sigma (median predicted), pull (scatter of r/sigma)."""
        known = np.isfinite(self.residual).sum(axis=0) >= 2
        residual, sigma = self.residual[:, known], self.sigma[:, known]
        return Table(
            {
                "wavelength": self.grid.spectral_axis[known],
                "median": np.nanmedian(residual, axis=0),
                "scatter": robust_scatter(residual),
                "sigma": np.nanmedian(np.where(np.isfinite(residual), sigma, np.nan), axis=0),
                "pull": robust_scatter(residual / sigma),
            }
        )


def noisy_inputs(spectra: SpectralSet, snr: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normalised inputs with the noise of an SNR (Eq. 1), and their relative errors, both (n, n_in)."""
    if not snr > 0:
        raise ValueError(f"snr must be positive, got {snr}")
    rng = np.random.default_rng([seed, round(1000 * snr)])
    flux = spectra.flux * (1.0 + rng.normal(0.0, 1.0 / snr, spectra.flux.shape))
    return normalize_flux(flux)[0], np.full(flux.shape, 1.0 / snr)


def evaluate(
    model: SEDModel,
    spectra: SpectralSet,
    snr: Sequence[float] = (20.0, 40.0, 80.0),
    *,
    repeats: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> Residuals:
    """Predict the SEDs of a set whose SEDs are known.

    Parameters
    ----------
    model : SEDModel
    spectra : SpectralSet
        On the model's grids.
    snr : sequence of float
        Noise to add; infinity adds none, for spectra that have their own, and gives the network the error of the
        highest trained SNR.
    repeats : int
        Realisations of the noise for each spectrum.
    seed : int
    device : str
    """
    model.check_grids(spectra)
    parts = []
    for value in snr:
        for k in range(repeats if np.isfinite(value) else 1):
            if np.isfinite(value):
                flux, error = noisy_inputs(spectra, value, seed=seed + k)
            else:
                flux = normalize_flux(spectra.flux)[0]
                error = np.full(flux.shape, 1.0 / model.snr_range[1])
            sed, aleatoric, epistemic = model.evaluate_networks(flux, error, device=device)
            parts.append((sed, np.hypot(aleatoric, epistemic), np.full(len(sed), float(value))))
    sed, sigma, level = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    index = np.tile(np.arange(len(spectra)), len(parts))
    true = spectra.sed.astype(np.float64)[index]
    return Residuals(model.output_grid, sed / true - 1.0, sigma, spectra.group[index], level, index, sed, true)


def summarize(residuals: Residuals, bands: dict[str, tuple[float, float]] = BANDS) -> Table:
    """Residuals by class, SNR and band: one row for each.

    Returns
    -------
    `~astropy.table.Table`
        ``group``, ``snr``, ``band``, ``n`` (spectra), and medians over the band's pixels: ``median`` (of the
        residuals), ``bias`` (of its absolute value, in units of sigma), ``scatter`` (robust 1 sigma of the residuals),
        ``sigma`` (predicted), ``ratio`` (sigma / scatter).
    """
    tables = []
    for group in residuals.groups:
        for snr in np.unique(residuals.snr):
            part = residuals.select(group, snr)
            if not len(part.residual):
                continue
            curve = part.by_wavelength()
            w = curve["wavelength"].value
            rows = []
            for name, (low, high) in bands.items():
                inside = (w >= low) & (w <= high)
                if not inside.any():
                    continue
                c = curve[inside]
                scatter, sigma = float(np.median(c["scatter"])), float(np.median(c["sigma"]))
                rows.append(
                    {
                        "group": group, "snr": float(snr), "band": name, "n": len(part.residual),
                        "median": float(np.median(c["median"])),
                        "bias": float(np.median(np.abs(c["median"]) / c["sigma"])),
                        "scatter": scatter, "sigma": sigma, "ratio": sigma / scatter,
                    }
                )  # fmt: skip
            if rows:
                tables.append(Table(rows))
    if not tables:
        raise ValueError("no residual lies in any of the bands")
    return vstack(tables)
