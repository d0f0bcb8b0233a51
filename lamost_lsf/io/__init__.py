"""LAMOST files: reading spectra, their headers and frames. Importing it registers the specutils loaders."""

from .frames import HeliocentricCheck, check_heliocentric, detector_factor, detector_wavelength
from .headers import METADATA_KEYS
from .lamost import LamostArrays, PixelMask, read_lamost, read_lamost_arrays, read_lamost_mrs
from .loaders import identify_lamost_lrs, identify_lamost_mrs
from .spectra import read_spectrum, write_spectrum
from .templates import list_templates, read_template, read_templates

__all__ = [
    "METADATA_KEYS",
    "HeliocentricCheck",
    "LamostArrays",
    "PixelMask",
    "check_heliocentric",
    "detector_factor",
    "detector_wavelength",
    "identify_lamost_lrs",
    "identify_lamost_mrs",
    "list_templates",
    "read_lamost",
    "read_lamost_arrays",
    "read_lamost_mrs",
    "read_spectrum",
    "read_template",
    "read_templates",
    "write_spectrum",
]
