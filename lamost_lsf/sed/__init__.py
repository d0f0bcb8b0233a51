"""Spectral energy distributions from normalised spectra, with errors (Yang et al. 2024, arXiv:2401.13167).

Grids, preparation and libraries need no more than the package does; the network needs torch
(``pip install lamost-lsf[train]``), which is imported when one of its names is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from lamost_lsf.sed.domain import Domain
from lamost_lsf.sed.download import download_library
from lamost_lsf.sed.dust import deredden
from lamost_lsf.sed.error_scale import ErrorScale
from lamost_lsf.sed.flatfield import FlatFieldCube, FlatFieldFlag, StandardStars, fit_flat_field, flat_field_precision
from lamost_lsf.sed.gaussian_process import GPPrediction, SpectralGP, rmsae
from lamost_lsf.sed.grids import (
    BANDS,
    CONTINUUM_WINDOW,
    INPUT_GRID,
    OUTPUT_GRID,
    REFERENCE_BAND,
    WavelengthGrid,
    moving_average,
    normalize_flux,
    scale_sed,
)
from lamost_lsf.sed.inputs import InputSpectrum, input_vector
from lamost_lsf.sed.libraries import Library, read_library
from lamost_lsf.sed.libraries_check import (
    SpectrumFlag,
    check_spectra,
    clean_library,
    generate_spectra,
    generated_set,
)
from lamost_lsf.sed.libraries_labels import check_labels
from lamost_lsf.sed.optimum import LinearFamily
from lamost_lsf.sed.preparation import SpectralSet, convolve_library, prepare_set

#: Names that need torch, and the module that has them.
_NEEDS_TORCH = {
    "Architecture": "network",
    "Augmentation": "augmentation",
    "PAPER_FINETUNE": "training",
    "PAPER_PRETRAIN": "training",
    "Residuals": "evaluation",
    "SEDFlag": "prediction",
    "SEDModel": "model",
    "TrainSettings": "training",
    "UaRANet": "network",
    "calibrate_errors": "cross_fitting",
    "cross_fit": "cross_fitting",
    "evaluate": "evaluation",
    "finetune": "training",
    "fit_quantiles": "training",
    "predict": "prediction",
    "pretrain": "training",
    "relative_likelihood_loss": "network",
    "relative_quantile_loss": "network",
    "summarize": "evaluation",
}

__all__ = [
    "FlatFieldCube",
    "FlatFieldFlag",
    "GPPrediction",
    "SpectralGP",
    "SpectrumFlag",
    "StandardStars",
    "check_labels",
    "check_spectra",
    "clean_library",
    "deredden",
    "download_library",
    "fit_flat_field",
    "flat_field_precision",
    "generate_spectra",
    "generated_set",
    "rmsae",
    "BANDS",
    "CONTINUUM_WINDOW",
    "INPUT_GRID",
    "OUTPUT_GRID",
    "REFERENCE_BAND",
    "Domain",
    "ErrorScale",
    "InputSpectrum",
    "Library",
    "LinearFamily",
    "SpectralSet",
    "WavelengthGrid",
    "convolve_library",
    "input_vector",
    "moving_average",
    "normalize_flux",
    "prepare_set",
    "read_library",
    "scale_sed",
    *_NEEDS_TORCH,
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"lamost_lsf.sed.{name} needs torch: pip install 'lamost-lsf[train]'") from error
    value = getattr(importlib.import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
