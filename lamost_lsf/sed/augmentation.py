"""Training spectra without end: noise, stars between stars, dust; made anew for every batch, from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from lamost_lsf.sed.dust import extinction_curve
from lamost_lsf.sed.grids import CONTINUUM_WINDOW
from lamost_lsf.sed.preparation import SpectralSet

__all__ = ["Augmentation", "Augmenter"]


@dataclass(frozen=True)
class Augmentation:
    """What is done to the spectra of a training set.

    Attributes
    ----------
    snr : tuple of float
        Signal-to-noise ratios a pixel, of which each spectrum gets one (Yang et al. 2024, Eq. 1 and section 2.1).
    snr_tilt : float
        Standard deviation, in ln(SNR), of a random parabola in wavelength that the SNR of a spectrum is multiplied by;
        0 is the paper's SNR that is the same everywhere. Real spectra have less signal in the blue: train with 0.3 or
        so what is meant for them.
    smooth : float
        Largest width of a smoothed bootstrap, 0 to 1: a star is moved towards the mean of its group by sqrt(1 - h^2)
        and gets h times a random deviation of the group's covariance, with h drawn from 0 to this. Mean and covariance
        of the group stay what they are, whatever h; 1 reaches from the stars themselves to a Gaussian of their
        covariance. It fills the gaps of a library of few stars whose spectra are nearly linear in a few numbers.
    reddening : float
        Largest E(B-V), magnitudes, of dust put before the *input* (drawn uniformly from 0); the SED stays that of the
        star without dust. Needs `dust_extinction`.
    r_v : float
        A(V) / E(B-V) of that dust.
    rv_error : float
        Standard deviation, km/s, of an error of the radial velocity: inputs are shifted by it.
    """

    snr: tuple[float, ...] = (20.0, 25.0, 30.0, 35.0, 40.0)
    snr_tilt: float = 0.0
    smooth: float = 0.0
    reddening: float = 0.0
    r_v: float = 3.1
    rv_error: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "snr", tuple(float(s) for s in self.snr))
        if not self.snr or min(self.snr) <= 0:
            raise ValueError(f"snr must be positive numbers, got {self.snr}")
        for name in ("snr_tilt", "smooth", "reddening", "rv_error"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.smooth > 1:
            raise ValueError(f"smooth must be at most 1, got {self.smooth}")


class Augmenter:
    """Noisy, normalised inputs with their errors and SEDs, for numbers of a set's spectra.

    Everything random follows from the seed given with the batch, so that a training that is taken up again sees the
    same spectra.

    Parameters
    ----------
    spectra : SpectralSet
    augmentation : Augmentation
    device : torch.device
    """

    def __init__(self, spectra: SpectralSet, augmentation: Augmentation, device: torch.device | str = "cpu") -> None:
        self.augmentation = augmentation
        self.device = torch.device(device)
        self.flux = torch.as_tensor(spectra.flux, dtype=torch.float32)
        known = np.isfinite(spectra.sed)
        self.weight = None if known.all() else torch.as_tensor(known, dtype=torch.float32)
        # where a SED is not known its weight is 0, and a 1 harms nothing
        self.sed = torch.as_tensor(np.where(known, spectra.sed, 1.0), dtype=torch.float32)
        self.grid = spectra.input_grid
        self.members, self.member_of = _groups(spectra)
        self.extinction = None
        if augmentation.reddening > 0:
            curve = extinction_curve(spectra.input_grid.wavelength, augmentation.r_v)
            self.extinction = torch.as_tensor(0.4 * np.log(10.0) * curve, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.flux)

    def __call__(
        self, which: torch.Tensor, seed: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Inputs (k, n_in), their relative errors, SEDs (k, n_out) and the SEDs' weights (None: all 1)."""
        a = self.augmentation
        rng = torch.Generator().manual_seed(
            int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0] >> 1)
        )
        k = len(which)
        flux, sed = self.flux[which], self.sed[which]
        weight = None if self.weight is None else self.weight[which]
        if a.smooth > 0:
            flux, sed, weight = self._smoothed(which, flux, sed, weight, rng)
        if self.extinction is not None:
            flux = flux * torch.exp(-a.reddening * torch.rand(k, 1, generator=rng) * self.extinction)
        if a.rv_error > 0:
            flux = _shifted(flux, a.rv_error * torch.randn(k, 1, generator=rng) / 299792.458 / self.grid.step)
        snr = torch.tensor(a.snr)[torch.randint(len(a.snr), (k, 1), generator=rng)]
        relative = (1.0 / snr).expand(k, flux.shape[1])
        if a.snr_tilt > 0:
            relative = relative * torch.exp(a.snr_tilt * _parabolas(k, flux.shape[1], rng))
        flux = flux * (1.0 + relative * torch.randn(flux.shape, generator=rng))
        return (
            normalized(flux.to(self.device)),
            relative.to(self.device),
            sed.to(self.device),
            (None if weight is None else weight.to(self.device)),
        )

    def _smoothed(
        self,
        which: torch.Tensor,
        flux: torch.Tensor,
        sed: torch.Tensor,
        weight: torch.Tensor | None,
        rng: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Stars of a smoothed bootstrap; SEDs of mean 1 in the reference band keep that mean."""
        h = self.augmentation.smooth * torch.rand(len(which), 1, generator=rng)
        keep = torch.sqrt(1.0 - h**2)
        flux, sed = flux.clone(), sed.clone()
        weight = None if weight is None else weight.clone()
        for g, members in enumerate(self.members):
            rows = torch.nonzero(self.member_of[which] == g)[:, 0]
            if not len(rows) or len(members) < 3:
                continue
            share = torch.randn(len(rows), len(members), generator=rng) / (len(members) - 1) ** 0.5
            # deviations from the mean, so that the weights sum to one
            share = h[rows] * (share - share.mean(1, keepdim=True)) + (1.0 - keep[rows]) / len(members)
            new_flux = keep[rows] * flux[rows] + share @ self.flux[members]
            new_sed = keep[rows] * sed[rows] + share @ self.sed[members]
            # a combination may be no star: negative flux, or the half of what any member has
            floor_flux, floor_sed = 0.5 * self.flux[members].amin(0), 0.5 * self.sed[members].amin(0)
            good = (new_flux > floor_flux).all(1) & (new_sed > floor_sed).all(1)
            rows, new_flux, new_sed = rows[good], new_flux[good], new_sed[good]
            flux[rows], sed[rows] = new_flux, new_sed
            if weight is not None:
                weight[rows] = weight[rows] * self.weight[members].amin(0)
        return flux, sed, weight


def normalized(flux: torch.Tensor, window: int = CONTINUUM_WINDOW) -> torch.Tensor:
    """Flux (k, n) over its moving average; the same as `lamost_lsf.sed.normalize_flux` without a mask."""
    mean = functional.avg_pool1d(flux.unsqueeze(1), window, 1, window // 2, count_include_pad=False).squeeze(1)
    return flux / mean


def _shifted(flux: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Spectra (k, n) shifted by fractions of a pixel (k, 1), by the quadratic through each pixel and its neighbours."""
    left, right = torch.roll(flux, 1, 1), torch.roll(flux, -1, 1)
    left[:, 0], right[:, -1] = flux[:, 0], flux[:, -1]
    return flux - 0.5 * pixels * (right - left) + 0.5 * pixels**2 * (right - 2.0 * flux + left)


def _parabolas(k: int, n: int, rng: torch.Generator) -> torch.Tensor:
    """Random parabolas (k, n) over the pixels, of mean square 1."""
    x = torch.linspace(-1.0, 1.0, n)
    shapes = torch.stack([torch.ones(n), x * 3**0.5, (3.0 * x**2 - 1.0) * 0.5 * 5**0.5]) / 3**0.5
    return torch.randn(k, 3, generator=rng) @ shapes


def _groups(spectra: SpectralSet) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Numbers of each group's spectra, one a star, and the group (n,) of each spectrum."""
    groups, number = np.unique(spectra.group, return_inverse=True)
    members = []
    for g in range(groups.size):
        mine = np.flatnonzero(number == g)
        _, first = np.unique(spectra.star[mine], return_index=True)
        members.append(torch.as_tensor(mine[np.sort(first)]))
    return members, torch.as_tensor(number)
