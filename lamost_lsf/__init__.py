"""LAMOST's instrumental profile: learn it, convolve with it, measure consistent radial velocities.

Importing the package registers the LAMOST loaders with specutils, so that ``Spectrum.read(path)`` opens LAMOST files.
The public names below are imported when first used.
"""

from importlib import import_module
from typing import Any

import lamost_lsf.io  # noqa: F401  registers the loaders

__version__ = "0.1.0.dev0"

#: Public name -> module that defines it.
_PUBLIC = {
    "ArcExposure": "arcs",
    "ArcSeries": "calibration",
    "BoundTemplate": "convolution",
    "Coefficients": "convolution",
    "Evaluation": "training",
    "GaussHermiteIP": "models",
    "GaussianIP": "models",
    "IPArchive": "models",
    "IPBasis": "convolution",
    "IPModel": "models",
    "InstrumentalProfile": "profile",
    "JoinedLSF": "lsf",
    "LSF": "lsf",
    "MeanLSF": "lsf",
    "NeuralIP": "models",
    "ProfileSet": "arcs",
    "ProfileStore": "store",
    "RVFlag": "rv",
    "RVMachine": "rv",
    "RVResult": "rv",
    "ResolutionMatrix": "convolution",
    "SimulatedIP": "simulation",
    "TabulatedLSF": "lsf",
    "TemplateBasis": "convolution",
    "WavelengthSolution": "wavelength",
    "apply_center": "plugins",
    "calibrate": "calibration",
    "convolve": "convolution",
    "evaluate": "training",
    "extract_profiles": "arcs",
    "fit_wavelength_solution": "wavelength",
    "get_center": "plugins",
    "get_instrument": "instruments",
    "get_wavelength_fitter": "plugins",
    "list_instruments": "instruments",
    "list_plugins": "plugins",
    "measure_drift": "calibration",
    "measure_rv": "rv",
    "measure_rvs": "rv",
    "measure_survey": "batch",
    "plugin_provenance": "plugins",
    "read_lamost": "io",
    "recalibrate": "calibration",
    "register": "plugins",
    "shift_center": "calibration",
    "train": "training",
    "train_all": "training",
}

#: Needs torch: not part of ``from lamost_lsf import *``, which must work without it.
_NEEDS_TORCH = {name for name, module in _PUBLIC.items() if module == "training"}

__all__ = ["__version__", *sorted(set(_PUBLIC) - _NEEDS_TORCH)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(f"lamost_lsf.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
