"""Centres and wavelength fitters by name: the package's own and those of third parties.

A third party's distribution has an entry point in the group "lamost_lsf" whose module implements one or
both hooks of `lamost_lsf.plugins.hookspecs`. The package's own register through the same hooks. Nothing is
imported before the first look-up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lamost_lsf.plugins.apply import apply_center, center_uncertainty
from lamost_lsf.plugins.hookspecs import hookimpl, hookspec
from lamost_lsf.plugins.manager import PluginRegistry
from lamost_lsf.plugins.protocols import CenterEstimator, WavelengthFitter
from lamost_lsf.plugins.records import Kind, PluginError, PluginProblem, PluginProvenance

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = [
    "CenterEstimator",
    "PluginError",
    "PluginProblem",
    "PluginProvenance",
    "WavelengthFitter",
    "apply_center",
    "center_uncertainty",
    "get_center",
    "get_wavelength_fitter",
    "hookimpl",
    "hookspec",
    "list_plugins",
    "plugin_problems",
    "plugin_provenance",
    "register",
    "reload_plugins",
    "unregister",
]

_registry = PluginRegistry()


def get_center(name: str | CenterEstimator) -> CenterEstimator:
    """Centre estimator of a name.

    Parameters
    ----------
    name : str or callable
        Name, in any case and with or without accents; "plugin:name" for one plug-in's. A callable is handed
        back as it is.

    Returns
    -------
    callable
        ``estimator(x, profile, *, error=None, mask=None)``, see `CenterEstimator`. Call it through
        `apply_center`, which takes arrays of profiles for every estimator.

    Raises
    ------
    PluginLookupError
        If no usable plug-in has the name, or several third parties' have it.
    TypeError
        If `name` is neither a str nor callable.

    Examples
    --------
    >>> from lamost_lsf.plugins import get_center
    >>> get_center("Sérsic") is get_center("sersic")
    True
    """
    return _registry.get("center", name)


def get_wavelength_fitter(name: str | WavelengthFitter) -> WavelengthFitter:
    """Wavelength fitter of a name.

    Parameters
    ----------
    name : str or callable
        As for `get_center`.

    Returns
    -------
    callable
        ``fitter(pixel, wavelength, *, error=None, degree=5, domain)``, see `WavelengthFitter`.

    Raises
    ------
    PluginLookupError
        If no usable plug-in has the name, or several third parties' have it.
    TypeError
        If `name` is neither a str nor callable.

    Examples
    --------
    >>> from lamost_lsf.plugins import get_wavelength_fitter
    >>> get_wavelength_fitter("Legendre") is get_wavelength_fitter("builtin:legendre")
    True
    """
    return _registry.get("wavelength_fitter", name)


def list_plugins() -> Table:
    """All centres and wavelength fitters, and the plug-ins that cannot be used.

    Returns
    -------
    `~astropy.table.Table`
        Columns of str, empty where they do not apply: ``kind`` ("center", "wavelength_fitter", or "plugin"
        for a row about a whole plug-in), ``name``, ``qualified_name`` (always means this object), ``origin``
        ("builtin", the distribution, or "in-process"), ``version``, ``status`` ("ok", "shadowed": to be had
        by its qualified name only, "error" or "disabled"), ``message`` (what is wrong) and ``summary`` (first
        line of the object's documentation).

    Examples
    --------
    >>> from lamost_lsf.plugins import list_plugins
    >>> table = list_plugins()
    >>> builtin = table[table["origin"] == "builtin"]
    >>> sorted(map(str, builtin["name"][builtin["kind"] == "wavelength_fitter"]))
    ['legendre', 'polynomial']
    """
    return _registry.table()


def plugin_problems() -> tuple[PluginProblem, ...]:
    """Everything that is wrong with the plug-ins of this process; loads them, and does not warn or raise.

    Examples
    --------
    >>> from lamost_lsf.plugins import plugin_problems
    >>> isinstance(plugin_problems(), tuple)
    True
    """
    return _registry.all_problems()


def plugin_provenance(target: str | Callable, kind: Kind | None = None) -> PluginProvenance:
    """Name, distribution and version of a centre or fitter, to be kept with a result.

    Parameters
    ----------
    target : str or callable
        A name, or what `get_center` or `get_wavelength_fitter` returned, or any callable.
    kind : {"center", "wavelength_fitter"}, optional
        Needed where one name means both.

    Returns
    -------
    PluginProvenance
        Fields ``name`` (finds the object again), ``distribution`` and ``version``.

    Raises
    ------
    PluginLookupError
        If `target` is a name that no plug-in has, or several have.
    ValueError
        If the name is a centre of one distribution and a fitter of another, and `kind` is not given.
    TypeError
        If `target` is neither a str nor callable.

    Examples
    --------
    >>> from lamost_lsf.plugins import plugin_provenance
    >>> plugin_provenance("Gauss").name, plugin_provenance("Gauss").distribution
    ('gauss', 'lamost-lsf')
    """
    return _registry.provenance(target, kind)


def register(plugin: Any, name: str | None = None) -> str:
    """Register a plug-in of this process, without an entry point.

    Parameters
    ----------
    plugin : object
        A module, or an object with methods, whose hooks are marked with ``@hookimpl``.
    name : str, optional
        Name of the plug-in, for "name:center". By default the last part of a module's name, or the name of an
        object's class.

    Returns
    -------
    str
        The name, without case and accents; `unregister` takes it.

    Raises
    ------
    PluginError
        If a hook or an object is faulty; nothing is registered. In strict mode also for a name
        that is taken.
    ValueError
        If `name` is not a name, or a plug-in has it.

    Examples
    --------
    >>> import numpy as np
    >>> from lamost_lsf.plugins import apply_center, hookimpl, register, unregister
    >>> def middle(x, profile, *, error=None, mask=None):
    ...     return float(np.median(x))
    >>> class Mine:
    ...     @hookimpl
    ...     def lamost_lsf_centers(self):
    ...         return {"middle": middle}
    >>> register(Mine(), name="mine")
    'mine'
    >>> float(apply_center("mine:middle", np.arange(5.0), np.ones(5)))
    2.0
    >>> unregister("mine")
    """
    return _registry.register(plugin, name)


def unregister(name: str) -> None:
    """Take back a `register`.

    Parameters
    ----------
    name : str
        What `register` returned.

    Raises
    ------
    PluginLookupError
        If no such plug-in was registered in this process. Installed ones are switched off by
        LAMOST_LSF_DISABLED_PLUGINS.
    """
    _registry.unregister(name)


def reload_plugins() -> None:
    """Look for installed plug-ins, and read the environment, again at the next look-up.

    For a notebook in which a plug-in was installed after the first look-up. Modules that were imported stay
    imported; plug-ins registered with `register` stay registered.
    """
    _registry.reload()
