"""The hooks that a plug-in may implement, and the markers that go with them."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from lamost_lsf.plugins.protocols import CenterEstimator, WavelengthFitter

__all__ = ["PROJECT", "hookimpl", "hookspec", "lamost_lsf_centers", "lamost_lsf_wavelength_fitters"]

#: Name of the pluggy project and of the entry-point group.
PROJECT = "lamost_lsf"

#: Marks a specification of a hook.
hookspec = pluggy.HookspecMarker(PROJECT)

#: Marks a plug-in's function as the implementation of a hook.
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lamost_lsf_centers() -> Mapping[str, CenterEstimator]:  # type: ignore[empty-body]
    """Centre estimators: definitions of where the centre of a (perhaps asymmetric) line is.

    Returns
    -------
    mapping of str to `CenterEstimator`
        Names are letters, digits and ``_ . + -``; case and accents do not matter.
    """


@hookspec
def lamost_lsf_wavelength_fitters() -> Mapping[str, WavelengthFitter]:  # type: ignore[empty-body]
    """Wavelength fitters: the family of curves from pixel to wavelength, and how it is fitted to lines.

    Returns
    -------
    mapping of str to `WavelengthFitter`
        Names are letters, digits and ``_ . + -``; case and accents do not matter.
    """
