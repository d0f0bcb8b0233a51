"""`SEDModel`: trained networks with their grids, scales and domain; reading and writing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, fields
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from lamost_lsf.files import atomic_path
from lamost_lsf.modelfile import damaged_model, model_metadata, read_model_file
from lamost_lsf.sed.domain import Domain
from lamost_lsf.sed.error_scale import ErrorScale, color_index
from lamost_lsf.sed.grids import WavelengthGrid, normalize_flux
from lamost_lsf.sed.network import Architecture, UaRANet
from lamost_lsf.sed.preparation import SpectralSet
from lamost_lsf.training.loop import choose_device

if TYPE_CHECKING:
    from lamost_lsf.sed.training import TrainSettings

__all__ = ["SEDModel"]

FORMAT = "lamost-lsf/sed-model"
FORMAT_VERSION = 1


class SEDModel:
    """One or several `UaRANet` that predict SEDs from normalised spectra on a grid.

    Several networks, trained from different seeds, make an ensemble: the scatter of their answers is the epistemic
    part of the error (Yang et al. 2024 neglect it, section 3.2).

    Parameters
    ----------
    networks : sequence of UaRANet
    input_grid, output_grid : WavelengthGrid
    domain : Domain
        Where the training set lies.
    snr_range : tuple of float
        Trained signal-to-noise ratios a pixel.
    teff_range : tuple of float, optional
        Effective temperatures, K, of the training set, if its labels have them.
    coverage : ndarray (n_out,), optional
        What the training sets told of each output pixel: 2 the last one knew it, 1 only an earlier one, 0 none. By
        default 2.
    error_scale : ErrorScale, optional
        Factors of the errors, from stars that the networks were not trained on; see `lamost_lsf.sed.calibrate_errors`.
    meta : dict, optional
        Provenance; what JSON holds.

    Raises
    ------
    ValueError
        No network; networks, coverage or factors that do not fit the grids.
    """

    def __init__(
        self,
        networks: Sequence[UaRANet],
        input_grid: WavelengthGrid,
        output_grid: WavelengthGrid,
        domain: Domain,
        *,
        snr_range: tuple[float, float],
        teff_range: tuple[float, float] | None = None,
        coverage: np.ndarray | None = None,
        error_scale: ErrorScale | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        if not networks:
            raise ValueError("a model needs at least one network")
        for network in networks:
            a = network.architecture
            if (a.n_input, a.n_output) != (len(input_grid), len(output_grid)):
                raise ValueError(
                    f"a network of {a.n_input} input and {a.n_output} output pixels does not fit grids of "
                    f"{len(input_grid)} and {len(output_grid)}"
                )
        coverage = np.full(len(output_grid), 2) if coverage is None else np.asarray(coverage)
        if coverage.shape != (len(output_grid),) or not np.isin(coverage, (0, 1, 2)).all():
            raise ValueError(f"coverage must be 0, 1 or 2 for each of {len(output_grid)} pixels")
        if error_scale is not None and error_scale.factor.shape[2] != len(output_grid):
            raise ValueError(f"factors of {error_scale.factor.shape[2]} pixels do not fit a grid of {len(output_grid)}")
        self.networks = list(networks)
        for network in self.networks:
            network.eval()
        self.input_grid, self.output_grid, self.domain = input_grid, output_grid, domain
        self.snr_range = (float(snr_range[0]), float(snr_range[1]))
        self.teff_range = None if teff_range is None else (float(teff_range[0]), float(teff_range[1]))
        self.coverage = coverage.astype(np.uint8)
        self.error_scale = error_scale
        self.meta = dict(meta or {})

    def __repr__(self) -> str:
        i, o = self.input_grid, self.output_grid
        return (
            f"<SEDModel of {len(self.networks)} network{'s' if len(self.networks) > 1 else ''}: "
            f"{i.start:g}-{i.stop:g} A at R = {i.resolving_power:g} to {o.start:g}-{o.stop:g} A at "
            f"R = {o.resolving_power:g}>"
        )

    @classmethod
    def from_training(
        cls,
        networks: Sequence[UaRANet],
        spectra: SpectralSet,
        settings: TrainSettings,
        meta: dict[str, Any],
        before: np.ndarray | None = None,
    ) -> SEDModel:
        """Model of networks that were trained on ``spectra``, and before with the coverage ``before``."""
        known = np.isfinite(spectra.sed).any(axis=0)
        earlier = np.zeros(known.size) if before is None else np.minimum(before, 1)
        teff = None
        for name in spectra.labels.colnames:
            if name.lower() == "teff":
                values = np.ma.filled(np.ma.asarray(spectra.labels[name], dtype=float), np.nan)
                if np.isfinite(values).any():
                    teff = (float(np.nanmin(values)), float(np.nanmax(values)))
        snr = settings.augmentation.snr
        return cls(
            networks, spectra.input_grid, spectra.output_grid, Domain.fit(normalize_flux(spectra.flux)[0]),
            snr_range=(min(snr), max(snr)), teff_range=teff, coverage=np.where(known, 2, earlier), meta=meta,
        )  # fmt: skip

    @classmethod
    def ensemble(cls, models: Sequence[SEDModel]) -> SEDModel:
        """Models of the same training set as one, without the factors of their errors: those were of each alone.

        Raises
        ------
        ValueError
            Models on different grids.
        """
        models = list(models)
        if not models:
            raise ValueError("an ensemble needs at least one model")
        first = models[0]
        for model in models[1:]:
            if (model.input_grid, model.output_grid) != (first.input_grid, first.output_grid):
                raise ValueError("the models of an ensemble must share their grids")
        return cls(
            [network for model in models for network in model.networks], first.input_grid, first.output_grid,
            first.domain, snr_range=first.snr_range, teff_range=first.teff_range,
            coverage=np.min([model.coverage for model in models], axis=0), meta=first.meta,
        )  # fmt: skip

    def check_grids(self, spectra: SpectralSet) -> None:
        """Refuse spectra on other grids than the model's.

        Raises
        ------
        ValueError
            They are on others.
        """
        if (spectra.input_grid, spectra.output_grid) != (self.input_grid, self.output_grid):
            raise ValueError(
                f"the spectra's grids {spectra.input_grid}, {spectra.output_grid} are not the model's "
                f"{self.input_grid}, {self.output_grid}"
            )

    def single(self, k: int) -> SEDModel:
        """The k-th network by itself, without the factors of the errors of all."""
        alone = copy.copy(self)
        alone.networks, alone.error_scale = [self.networks[k]], None
        return alone

    def evaluate_networks(
        self, flux: np.ndarray, error: np.ndarray, *, batch_size: int = 256, device: str = "cpu"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """SEDs of inputs that are ready; `lamost_lsf.sed.predict` starts from spectra.

        Parameters
        ----------
        flux, error : ndarray (n, n_in)
            Normalised flux and relative error, finite.
        batch_size : int
        device : str

        Returns
        -------
        sed : ndarray (n, n_out)
            Scaled; the geometric mean of the networks'. NaN at pixels that no training set covered.
        aleatoric, epistemic : ndarray (n, n_out)
            Relative standard deviations: what the noise leaves open (root mean square of the networks' sigma), and the
            scatter of the networks (0 for a single one); both times the factors of `error_scale`.
        """
        flux = np.atleast_2d(np.asarray(flux, dtype=np.float32))
        error = np.broadcast_to(np.asarray(error, dtype=np.float32), flux.shape)
        n, m = len(flux), len(self.output_grid)
        if flux.shape[1] != len(self.input_grid):
            raise ValueError(f"inputs must have {len(self.input_grid)} pixels, got {flux.shape[1]}")
        sed, aleatoric, epistemic = (np.empty((n, m)) for _ in range(3))
        where = choose_device(device)
        networks = [network.to(where) for network in self.networks]
        with torch.inference_mode():
            for begin in range(0, n, batch_size):
                part = slice(begin, begin + batch_size)
                x = torch.tensor(flux[part]).to(where)
                e = torch.tensor(error[part]).to(where)
                answers = [network(x, e) for network in networks]
                logs = torch.stack([answer.log() for answer, _ in answers])
                sigmas = torch.stack([sigma for _, sigma in answers])
                sed[part] = logs.mean(0).exp().cpu().numpy()
                aleatoric[part] = sigmas.square().mean(0).sqrt().cpu().numpy()
                spread = logs.std(0) if len(networks) > 1 else torch.zeros_like(logs[0])
                epistemic[part] = spread.cpu().numpy()
        sed[:, self.coverage == 0] = np.nan
        if self.error_scale is not None:
            # the mean of the logarithm, which the networks go by, too
            snr = np.exp(-np.log(error.astype(np.float64)).mean(axis=1))
            grid = self.input_grid
            color = color_index(sed, self.output_grid.wavelength, grid.start, grid.stop)
            factor = self.error_scale.at(snr, color)
            aleatoric, epistemic = aleatoric * factor, epistemic * factor
        return sed, aleatoric, epistemic

    # -- files -------------------------------------------------------------------------------------------

    def write(self, path: str | PathLike, *, overwrite: bool = False) -> None:
        """Write to a safetensors file whose metadata hold format version, architecture, grids and trained ranges.

        Raises
        ------
        FileExistsError
            The file exists and ``overwrite`` is False.
        TypeError
            ``meta`` holds what JSON does not.
        """
        tensors = {}
        for k, network in enumerate(self.networks):
            tensors |= {
                f"network.{k}.{name}": t.detach().cpu().contiguous() for name, t in network.state_dict().items()
            }
        for name, array in self.domain.to_arrays().items():
            tensors[f"domain.{name}"] = torch.as_tensor(np.ascontiguousarray(array))
        tensors["coverage"] = torch.as_tensor(self.coverage)
        if self.error_scale is not None:
            for field in fields(self.error_scale):
                tensors[f"error_scale.{field.name}"] = torch.as_tensor(getattr(self.error_scale, field.name))
        header = {
            "format_version": FORMAT_VERSION,
            "architectures": [asdict(network.architecture) for network in self.networks],
            "input_grid": self.input_grid.to_dict(),
            "output_grid": self.output_grid.to_dict(),
            "snr_range": self.snr_range,
            "teff_range": self.teff_range,
            "meta": self.meta,
        }
        metadata = model_metadata(FORMAT, header)
        with atomic_path(path, overwrite=overwrite) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def read(cls, path: str | PathLike) -> SEDModel:
        """Read a file that `write` made.

        Raises
        ------
        FileNotFoundError
        FormatError
            Not such a file, another format version, or a damaged one.
        """
        header, tensors = read_model_file(path, FORMAT, FORMAT_VERSION, "pt")
        with damaged_model(path):
            networks = []
            for k, architecture in enumerate(header["architectures"]):
                network = UaRANet(Architecture(**architecture))
                network.load_state_dict(_part(tensors, f"network.{k}."))
                networks.append(network)
            factors = {name: t.numpy() for name, t in _part(tensors, "error_scale.").items()}
            return cls(
                networks,
                WavelengthGrid.from_dict(header["input_grid"]),
                WavelengthGrid.from_dict(header["output_grid"]),
                Domain.from_arrays({name: t.numpy() for name, t in _part(tensors, "domain.").items()}),
                snr_range=header["snr_range"],
                teff_range=header["teff_range"],
                coverage=tensors["coverage"].numpy(),
                error_scale=ErrorScale(**factors) if factors else None,
                meta=header["meta"],
            )


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
