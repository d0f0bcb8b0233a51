"""Errors from stars that were kept from the training: `calibrate_errors`, `cross_fit`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lamost_lsf.sed.domain import Domain
from lamost_lsf.sed.error_scale import ErrorScale
from lamost_lsf.sed.evaluation import Residuals, evaluate
from lamost_lsf.sed.grids import normalize_flux
from lamost_lsf.sed.model import SEDModel
from lamost_lsf.sed.preparation import SpectralSet

__all__ = ["calibrate_errors", "cross_fit"]


def calibrate_errors(
    model: SEDModel,
    spectra: SpectralSet,
    snr: Sequence[float] | None = None,
    *,
    repeats: int = 4,
    seed: int = 0,
    device: str = "cpu",
) -> SEDModel:
    """Scale a model's errors so that they hold 68.27 % of the residuals of stars it was not trained on.

    Parameters
    ----------
    model : SEDModel
        Left as it is; factors that it has already are replaced.
    spectra : SpectralSet
        Stars that were set aside for this, neither trained on nor kept to test the model with.
    snr : sequence of float, optional
        Noise levels at which to compare; by default the lowest and the highest that the model was trained with.
        Infinity adds no noise: for real stars that have their own.
    repeats : int
        Realisations of the noise for each star.
    seed : int
    device : str

    Returns
    -------
    SEDModel
        With `SEDModel.error_scale`.

    Raises
    ------
    ValueError
        Spectra on other grids than the model's, or without a known SED.
    """
    residuals = evaluate(
        SEDModel.ensemble([model]), spectra, _levels(model, snr), repeats=repeats, seed=seed, device=device
    )
    return _scaled(model, residuals)


def cross_fit(
    fit: Callable[[SpectralSet, int], SEDModel],
    spectra: SpectralSet,
    n: int = 4,
    snr: Sequence[float] | None = None,
    *,
    repeats: int = 4,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[SEDModel, Residuals]:
    """Train ``n`` networks, each without one part of the stars, and join them; those parts tell the errors.

    All stars are trained on and all are used to tell the errors, and no star judges a network that knows it. Beyond the
    paper, whose errors are those of the stars trained on.

    Parameters
    ----------
    fit : callable
        ``fit(part, k)`` trains the k-th network, of any recipe, on a part of the set: it may begin with a model that no
        star of ``spectra`` was used for.
    spectra : SpectralSet
    n : int
        Parts.
    snr, repeats, device
        As for `calibrate_errors`.
    seed : int
        Of the division into parts and of the noise.

    Returns
    -------
    model : SEDModel
        Ensemble of the networks. Its errors are those of a single network of it, which are a little larger than the
        ensemble's.
    residuals : Residuals
        Of all stars, each predicted by the network that does not know it, with errors *before* they are scaled.

    Raises
    ------
    ValueError
        Fewer than two parts, or more than the largest group has stars.

    Notes
    -----
    :ref:`sed` has an example.
    """
    parts = list(spectra.folds(n, seed=seed))
    models = [fit(train, k) for k, (train, _) in enumerate(parts)]
    model = SEDModel.ensemble(models)
    # no part of the set is unknown to all networks
    model.domain = Domain.fit(normalize_flux(spectra.flux)[0])
    ranges = [one.teff_range for one in models if one.teff_range is not None]
    model.teff_range = (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None
    held_out = []
    for k, (_, kept) in enumerate(parts):
        options = {"repeats": repeats, "seed": seed, "device": device}
        own = evaluate(SEDModel.ensemble([models[k]]), kept, _levels(model, snr), **options)
        # the spread of the ensemble belongs to the error that is scaled
        held_out.append(replace(own, sigma=evaluate(model, kept, _levels(model, snr), **options).sigma))
    residuals = Residuals.concatenate(held_out)
    return _scaled(model, residuals), residuals


def _levels(model: SEDModel, snr: Sequence[float] | None) -> list[float]:
    return sorted(set(model.snr_range)) if snr is None else list(snr)


def _scaled(model: SEDModel, residuals: Residuals) -> SEDModel:
    scaled = copy.copy(model)
    scaled.error_scale = ErrorScale.fit(residuals, model.input_grid, highest_snr=model.snr_range[1])
    scaled.meta = {
        **model.meta,
        "errors": {"spectra": len(np.unique(residuals.index)), "snr": [*scaled.error_scale.snr]},
    }
    return scaled
