"""Exceptions and warnings raised by lamost_lsf.

Bad arguments raise one of these (or a plain `ValueError`/`TypeError`) at once. A fit that fails in the
middle of a batch never raises: it gives NaN, a flag and one `FitWarning`.
"""

from astropy.utils.exceptions import AstropyUserWarning

__all__ = [
    "CenterMismatchWarning",
    "CoverageWarning",
    "FitWarning",
    "FormatError",
    "FrameWarning",
    "LamostLSFError",
    "LamostLSFWarning",
    "ModelNotFoundError",
    "OutOfRangeError",
    "PluginLookupError",
    "PluginWarning",
    "SamplingWarning",
]


class LamostLSFError(Exception):
    """Base class of the errors that only lamost_lsf raises."""


class FormatError(LamostLSFError, ValueError):
    """A file is not what it claims to be: wrong layout, wrong version, truncated."""


class OutOfRangeError(LamostLSFError, ValueError):
    """A label (time, fibre, wavelength) lies outside the range that a model was trained on."""


class ModelNotFoundError(LamostLSFError, LookupError):
    """An archive holds no model for the season, spectrograph or arm asked for."""


class PluginLookupError(LamostLSFError, LookupError):
    """No plug-in of that name."""


class LamostLSFWarning(AstropyUserWarning):
    """Base class of the package's warnings."""


class PluginWarning(LamostLSFWarning):
    """A plug-in could not be used."""


class FitWarning(LamostLSFWarning):
    """At least one fit of a batch failed and is NaN in the result."""


class CenterMismatchWarning(LamostLSFWarning):
    """Wavelength scale and kernel use different centre definitions."""


class CoverageWarning(LamostLSFWarning):
    """A result leans on data that are not there: extrapolation, template or label coverage."""


class FrameWarning(LamostLSFWarning):
    """A header's frame or velocity disagrees with what its other entries imply."""


class SamplingWarning(LamostLSFWarning):
    """A grid is too coarse for the profile that is sampled on it."""
