"""The network: a residual network with soft-threshold attention that gives a SED and its error (UaRA-net).

Yang et al. 2024, sections 3.1-3.3, Table 1 and Fig. 1. Where the text leaves a choice, `UaRANet` says what was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from lamost_lsf.sed.error_scale import ONE_SIGMA

__all__ = ["Architecture", "UaRANet", "relative_likelihood_loss", "relative_quantile_loss"]


@dataclass(frozen=True)
class Architecture:
    """Sizes of a `UaRANet`; the defaults are the paper's (Table 1).

    Attributes
    ----------
    n_input, n_output : int
        Pixels of the spectrum and of the SED.
    first : tuple of int
        (channels, size, stride) of the initial convolution.
    units : tuple of tuple of int
        (channels, size, stride) of the residual sub-units.
    hidden : tuple of int
        Widths of the fully connected layers before the SED's pixels.
    noise_width, error_width : int
        Widths of the uncertainty branch: of what is made of the input's noise, and of the layer after it was
        joined to Z.
    """

    n_input: int = 2238
    n_output: int = 574
    first: tuple[int, int, int] = (4, 3, 2)
    units: tuple[tuple[int, int, int], ...] = (
        (4, 3, 2), (4, 3, 1), (8, 3, 2), (8, 3, 1), (16, 3, 2), (16, 3, 1),
    )  # fmt: skip
    hidden: tuple[int, ...] = (100, 200, 300)
    noise_width: int = 16
    error_width: int = 64

    def __post_init__(self) -> None:
        # lists come from JSON
        object.__setattr__(self, "first", tuple(self.first))
        object.__setattr__(self, "units", tuple(tuple(unit) for unit in self.units))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("n_input", "n_output", "noise_width", "error_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.units or not self.hidden or min(self.hidden) < 1:
            raise ValueError("a network needs at least one sub-unit and one hidden layer, of at least one channel each")
        channels = 0
        for unit in (self.first, *self.units):
            if len(unit) != 3 or min(unit) < 1 or unit[1] % 2 == 0:
                raise ValueError(f"(channels, size, stride) must be positive and the size odd, got {unit}")
            if unit[0] < channels:
                raise ValueError(
                    f"channels must not decrease (the shortcut pads with zeros), got {unit} after {channels}"
                )
            channels = unit[0]

    @property
    def n_latent(self) -> int:
        """Length of Z."""
        return self.units[-1][0]


def _convolution(n_in: int, n_out: int, size: int, stride: int, bias: bool = True) -> nn.Conv2d:
    """1-D convolution as one of images of height 1: with channels last in memory 3-6 times faster for few channels."""
    return nn.Conv2d(n_in, n_out, (1, size), (1, stride), (0, size // 2), bias=bias)


class _SubUnit(nn.Module):
    """BN, ReLU and a convolution make M; three convolutions with ReLU of |M| make the attention; soft threshold."""

    def __init__(self, n_in: int, n_out: int, size: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, n_out - n_in
        self.norm = nn.BatchNorm2d(n_in)
        self.features = _convolution(n_in, n_out, size, stride, bias=False)
        self.attention = nn.ModuleList(_convolution(n_out, n_out, size, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = self.features(functional.relu(self.norm(x)))
        attention = m.abs()
        for convolution in self.attention:
            attention = functional.relu(convolution(attention))
        # Eqs. 5 and 6 in one: sgn(M) max(|M| - Mc |M|, 0) = M max(1 - Mc, 0), for Mc >= 0
        m = m * functional.relu(1.0 - attention)
        if self.stride > 1:
            x = x[..., :: self.stride]
        if self.extra:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.extra))
        return m + x


class UaRANet(nn.Module):
    """Uncertainty-aware residual attention network (Yang et al. 2024, sections 3.1-3.2, Table 1).

    Parameters
    ----------
    architecture : Architecture, optional
        The paper's by default.

    Notes
    -----
    What the paper leaves open, and is chosen here:

    - Of a sub-unit's four convolutions the first (with the stride) makes the feature map M from the batch-normalised,
      rectified input; the other three make the attention map of Eq. 4.
    - Z is the mean of the last unit's batch-normalised features after a ReLU, as those of every unit before.
    - The shortcut of a unit with a stride takes every stride-th pixel; new channels are zeros.
    - The input is the normalised flux minus 1 over ``input_scale``, the noise the logarithm of the relative error,
      standardised; both scales belong to the network's buffers and come from the training set.
    - Noise beyond the trained levels enters as the nearest of them, and the predicted error is scaled: in proportion to
      the noise above them, by its square root below, where what the network itself leaves does not shrink with it.
    - The last layer gives the logarithm of the SED in units of the training set's mean and standard deviation of each
      pixel, so that a SED is positive. The loss is Eq. 17 all the same.
    - The weights of the noise's pixels start equal, so that a network trained with the paper's noise, the same at all
      pixels, goes by the mean of the logarithm; the layer takes means over pixels for sums. Train with
      `Augmentation.snr_tilt` to have it use more.
    - sigma is the exponential of the uncertainty branch's last layer, held between exp(-9) and exp(2) by a smooth
      bound: always positive, and never so small that one pixel governs the loss.

    Examples
    --------
    >>> import torch
    >>> from lamost_lsf.sed import UaRANet
    >>> network = UaRANet()
    >>> sed, sigma = network(torch.ones(2, 2238), torch.full((2, 2238), 0.05))
    >>> sed.shape, sigma.shape, bool((sigma > 0).all())
    (torch.Size([2, 574]), torch.Size([2, 574]), True)
    """

    #: Bounds of log sigma.
    LOG_SIGMA = (-9.0, 2.0)

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = a = architecture or Architecture()
        channels, size, stride = a.first
        self.first = _convolution(1, channels, size, stride)
        units = []
        for unit in a.units:
            units.append(_SubUnit(channels, *unit))
            channels = unit[0]
        self.units = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(channels)
        widths = (channels, *a.hidden)
        self.dense = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(widths))
        self.sed = nn.Linear(widths[-1], a.n_output)
        self.noise = nn.Linear(a.n_input, a.noise_width)
        self.error = nn.Linear(channels + a.noise_width, a.error_width)
        self.log_sigma = nn.Linear(a.error_width, a.n_output)
        self.register_buffer("input_scale", torch.tensor(0.1))
        self.register_buffer("noise_center", torch.tensor(-3.4))  # ln of the relative error at SNR 30
        self.register_buffer("noise_scale", torch.tensor(0.25))
        self.register_buffer("noise_range", torch.log(torch.tensor([1.0 / 40.0, 1.0 / 20.0])))
        self.register_buffer("log_mean", torch.zeros(a.n_output))
        self.register_buffer("log_scale", torch.ones(a.n_output))
        self._initialise()
        self.to(memory_format=torch.channels_last)

    def _initialise(self) -> None:
        """He's initialisation; the two output layers start small, for their outputs are already standardised."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            # equal weights for all pixels of the noise: noise that is the same at all of them teaches the network
            # nothing about single ones, which must not matter by chance either
            row = self.noise.weight.sum(1, keepdim=True)
            self.noise.weight.copy_(row.expand_as(self.noise.weight))
            self.sed.weight *= 0.1
            self.log_sigma.weight *= 0.1
            self.log_sigma.bias.fill_(-2.0)

    def last_layers(self) -> list[nn.Module]:
        """The SED's last layer and the uncertainty branch: what makes answers of features, and no feature."""
        return [self.sed, self.noise, self.error, self.log_sigma]

    def latent(self, flux: torch.Tensor) -> torch.Tensor:
        """Z (n, n_latent) of normalised spectra (n, n_input) (Eq. 7)."""
        x = ((flux - 1.0) / self.input_scale)[:, None, None, :].to(memory_format=torch.channels_last)
        return functional.relu(self.norm(self.units(self.first(x)))).mean((-2, -1))

    def forward(self, flux: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """SED and its relative error.

        Parameters
        ----------
        flux, error : Tensor (n, n_input)
            Normalised flux, and its standard deviation.

        Returns
        -------
        sed, sigma : Tensor (n, n_output)
            Scaled SED (Eq. 8), and the standard deviation of (sed - true) / true (Eq. 11).
        """
        z = self.latent(flux)
        x = z
        for layer in self.dense:
            x = functional.relu(layer(x))
        # bounded, so that not even an absurd input gives infinity
        sed = torch.exp(self.log_mean + (self.log_scale * self.sed(x)).clamp(-30.0, 30.0))
        logarithm = torch.log(error)
        level = logarithm.mean(-1, keepdim=True)
        beyond = level - level.clamp(self.noise_range[0], self.noise_range[1])
        noise = (logarithm - beyond - self.noise_center) / self.noise_scale
        # the mean over pixels, not the sum: thousands of weights that move together would make a step of Adam thousands
        # of times too long, and leave units that are never active again
        noise = functional.relu(self.noise(noise / self.architecture.n_input))
        hidden = functional.relu(self.error(torch.cat([z, noise], dim=-1)))
        low, high = self.LOG_SIGMA
        log_sigma = self.log_sigma(hidden) + torch.where(beyond < 0, 0.5 * beyond, beyond)
        log_sigma = low + functional.softplus(log_sigma - low)
        log_sigma = high - functional.softplus(high - log_sigma)
        return sed, torch.exp(log_sigma)


def relative_likelihood_loss(
    sed: torch.Tensor,
    sigma: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    per_spectrum: bool = False,
) -> torch.Tensor:
    """Negative logarithm of the likelihood of relative residuals (Yang et al. 2024, Eqs. 12-17), mean over pixels.

    ``r^2 / (2 sigma^2) + log sigma + log Y`` with r = (sed - Y) / Y. The last term depends on the data alone and is
    left out, as is the constant; the mean stands for the sum so that the rate does not depend on the number of pixels.

    Parameters
    ----------
    sed, sigma, target : Tensor (n, n_output)
    weight : Tensor (n, n_output), optional
        0 where the target is not known.
    per_spectrum : bool
        One value for each spectrum (n,) instead of one for all.
    """
    residual = (sed - target) / target
    terms = 0.5 * (residual / sigma) ** 2 + torch.log(sigma)
    return _mean(terms, weight, per_spectrum)


def _mean(terms: torch.Tensor, weight: torch.Tensor | None, per_spectrum: bool) -> torch.Tensor:
    """Mean over pixels, of all spectra or each."""
    if weight is None:
        return terms.mean(-1) if per_spectrum else terms.mean()
    if per_spectrum:
        return (terms * weight).sum(-1) / weight.sum(-1).clamp(min=1.0)
    return (terms * weight).sum() / weight.sum().clamp(min=1.0)


def relative_quantile_loss(
    sed: torch.Tensor,
    sigma: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    per_spectrum: bool = False,
) -> torch.Tensor:
    """Least where the SED is the median of what it may be and 68.27 % of the residuals are below sigma.

    The loss is ``|ln(sed / target)|`` and the pinball loss of ln(sigma) about that of the absolute relative residual.
    The likelihood of `relative_likelihood_loss` has its optimum at the mean and the root mean square, which a few odd
    stars move away from what most have. Arguments as there.
    """
    residual = ((sed - target) / target).abs().detach()
    over = torch.log(residual.clamp(min=1e-7)) - torch.log(sigma)
    # of the logarithm: a relative residual would give faint SEDs more weight, and no median
    terms = torch.log(sed / target).abs()
    terms = terms + torch.maximum(ONE_SIGMA * over, (ONE_SIGMA - 1.0) * over)
    return _mean(terms, weight, per_spectrum)
