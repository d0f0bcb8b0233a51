"""Hooks that do not return a mapping."""

from lamost_lsf.plugins import hookimpl


@hookimpl
def lamost_lsf_centers():
    """A list."""
    return ["gauss", "sersic"]


@hookimpl
def lamost_lsf_wavelength_fitters():
    """Its return was forgotten."""
