"""Hooks that no version knows, one that lacks its mark, and one that wants an argument."""

from lamost_lsf.plugins import hookimpl


@hookimpl
def lamost_lsf_centres():
    """British."""
    return {}


def lamost_lsf_fitters():
    """Shortened, and not marked."""
    return {}


def lamost_lsf_centers():
    """Right, but not marked."""
    return {}


@hookimpl
def lamost_lsf_wavelength_fitters(config):
    """Right, but for its argument."""
    return {}
