"""From a plug-in (installed or given) to the objects that its hooks return, whatever is wrong with it.

Nothing here raises for a faulty plug-in: a fault is a `PluginProblem`, and the rest of the plug-in is used.
"""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import pluggy

from lamost_lsf.plugins import hookspecs
from lamost_lsf.plugins.hookspecs import PROJECT
from lamost_lsf.plugins.records import Kind, PluginEntry, PluginProblem, fold_name, valid_name

__all__ = [
    "HOOKS",
    "HookManager",
    "Source",
    "builtin_source",
    "call_mismatch",
    "describe",
    "disabled_by_environment",
    "installed_sources",
]

#: Hook -> what its objects are.
HOOKS: dict[str, Kind] = {
    "lamost_lsf_centers": "center",
    "lamost_lsf_wavelength_fitters": "wavelength_fitter",
}

#: How each kind of object is going to be called: positional arguments, keyword arguments.
_CALLS: dict[Kind, tuple[tuple, dict[str, Any]]] = {
    "center": ((None, None), {"error": None, "mask": None}),
    "wavelength_fitter": ((None, None), {"error": None, "degree": 5, "domain": (0.0, 1.0)}),
}
_SIGNATURES: dict[Kind, str] = {
    "center": "(x, profile, *, error=None, mask=None)",
    "wavelength_fitter": "(pixel, wavelength, *, error=None, degree=5, domain)",
}


@dataclass(frozen=True)
class Source:
    """A plug-in that has not been loaded yet.

    Attributes
    ----------
    name : str
        Name of the entry point, as it was written.
    distribution, version : str or None
        Where it is from.
    load : callable
        Imports the plug-in: returns the object whose attributes are hooks.
    target : str
        What is imported, for messages.
    builtin : bool
        Whether it is the package's own.
    """

    name: str
    distribution: str | None
    version: str | None
    load: Callable[[], Any] = field(repr=False)
    target: str
    builtin: bool = False

    def problem(self, kind: str, message: str) -> PluginProblem:
        """A problem of this plug-in."""
        return PluginProblem(kind, self.name, self.distribution, self.version, message)  # type: ignore[arg-type]


def describe(error: BaseException) -> str:
    """One line about an exception that somebody else's code raised."""
    try:
        text = " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # its own __str__ is somebody else's code, too
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def installed_sources() -> list[Source]:
    """Entry points of the group "lamost_lsf" in all installed distributions, in order of their names."""
    found: list[Source] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        # One distribution with a damaged record must not hide the plug-ins of the others, which is why
        # importlib.metadata.entry_points, all or nothing, is not used.
        try:
            text = distribution.read_text("entry_points.txt")
            if not text or PROJECT not in text:
                continue
            name, version = distribution.metadata["Name"], distribution.version
            points = distribution.entry_points.select(group=PROJECT)
        except Exception:
            continue
        # The first distribution of a name on sys.path is the one that is imported.
        if fold_name(name) in seen:
            continue
        seen.add(fold_name(name))
        found += [Source(point.name, name, version, point.load, point.value) for point in points]
    return sorted(found, key=lambda source: (fold_name(source.name), fold_name(source.distribution or "")))


def disabled_by_environment(source: Source) -> bool:
    """Whether LAMOST_LSF_DISABLED_PLUGINS names the plug-in, or says "all"."""
    words = {fold_name(word) for word in os.environ.get("LAMOST_LSF_DISABLED_PLUGINS", "").split(",")}
    name = fold_name(source.name)
    return bool(words & {"all", name, f"{name}@{fold_name(source.distribution or '')}"})


class HookManager(pluggy.PluginManager):
    """pluggy's manager, which skips and records a faulty hook where pluggy would raise or say nothing."""

    def __init__(self) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(hookspecs)

    def collect(self, source: Source) -> tuple[list[PluginEntry], list[PluginProblem]]:
        """Load a plug-in, register it, and call its hooks."""
        problems: list[PluginProblem] = []
        try:
            plugin = source.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a script without a main guard raises SystemExit
            problems.append(source.problem("import", f"cannot load {source.target}: {describe(error)}"))
            return [], problems
        label = source.target if source.builtin else f"{source.name}@{source.distribution}"
        #: What `parse_hookimpl_opts`, which pluggy calls, reports about.
        self._source, self._found = source, problems
        try:
            self.register(plugin, name=label)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            problems.append(source.problem("hook", f"cannot be registered: {describe(error)}"))
            return [], problems
        implementations = [
            (hook, implementation)
            for hook in HOOKS
            for implementation in getattr(self.hook, hook).get_hookimpls()
            if implementation.plugin_name == label
        ]
        if not implementations and not problems:
            known = " and ".join(HOOKS)
            message = f"{source.target} has no hook; the hooks are {known}, marked with @hookimpl"
            problems.append(source.problem("hook", message))
        entries: list[PluginEntry] = []
        for hook, implementation in implementations:
            # One implementation at a time: called through the manager, the first to raise would end all.
            entries += self._call(source, hook, implementation.function, problems)
        return entries, problems

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Options of a hook, or None where an attribute is no hook or one that cannot be used."""
        try:
            options = super().parse_hookimpl_opts(plugin, name)
            fault = self._fault(plugin, name, options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # An attribute that cannot be looked at is a fault only where it asks to be a hook.
            fault = f"{name}: {describe(error)}" if name.startswith(PROJECT + "_") else None
            options = None
        if fault is None:
            return options
        self._found.append(self._source.problem("hook", fault))
        return None

    @staticmethod
    def _fault(plugin: Any, name: str, options: Any) -> str | None:
        if options is None:
            if not name.startswith(PROJECT + "_") or not inspect.isroutine(getattr(plugin, name)):
                return None
            if name in HOOKS:
                return f"{name} is not marked: write @lamost_lsf.plugins.hookimpl above it"
            return _unknown_hook(name)
        hook = options.get("specname") or name
        if hook not in HOOKS:
            return None if options.get("optionalhook") else _unknown_hook(hook)
        if options.get("wrapper") or options.get("hookwrapper"):
            return f"{name} is a hook wrapper; a plug-in may add names, not change those of others"
        try:
            inspect.signature(getattr(plugin, name)).bind()
        except TypeError as error:
            return f"{name} must be callable without arguments ({error})"
        return None

    @staticmethod
    def _call(source: Source, hook: str, function: Callable, problems: list[PluginProblem]) -> Iterator[PluginEntry]:
        kind = HOOKS[hook]
        try:
            result = function()
            if not isinstance(result, Mapping):
                message = f"{hook} must return a mapping of names to callables, not {type(result).__name__}"
                problems.append(source.problem("type", message))
                return
            items = list(result.items())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            problems.append(source.problem("call", f"{hook} raised {describe(error)}"))
            return
        seen: set[str] = set()
        for name, obj in items:
            try:
                fault = _object_fault(kind, name, obj, seen)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                fault = ("type", f"an object of {hook} cannot be examined: {describe(error)}")
            if fault is not None:
                problems.append(source.problem(*fault))
                continue
            folded = fold_name(name)
            seen.add(folded)
            yield PluginEntry(
                kind,
                folded,
                fold_name(source.name),
                obj,
                source.distribution,
                source.version,
                builtin=source.builtin,
            )


def _unknown_hook(name: str) -> str:
    close = get_close_matches(name, HOOKS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{name} is not a hook of this version ({', '.join(HOOKS)}){hint}"


def _object_fault(kind: Kind, name: Any, obj: Any, seen: set[str]) -> tuple[str, str] | None:
    what = kind.replace("_", " ")
    if not isinstance(name, str):
        return "name", f"the name of a {what} must be a str, not {name!r} of type {type(name).__name__}"
    folded = fold_name(name)
    if not valid_name(folded):
        return "name", f"{name!r} is not a name for a {what}: letters, digits and _ . + - only"
    if not callable(obj):
        return "type", f"{what} {name!r} must be callable, not of type {type(obj).__name__}"
    if (mismatch := call_mismatch(kind, obj)) is not None:
        return "type", f"{what} {name!r} must be callable as {_SIGNATURES[kind]}: {mismatch}"
    if folded in seen:
        return "duplicate", f"{what} {name!r} comes twice; only the first is used"
    return None


def call_mismatch(kind: Kind, obj: Callable) -> str | None:
    """Why a callable cannot be called as its kind is, or None."""
    if isinstance(inspect.getattr_static(type(obj), "__call__", None), staticmethod):
        # inspect takes the first argument of such a __call__ for self.
        obj = type(obj).__call__
    try:
        signature = inspect.signature(obj)
    except (TypeError, ValueError):  # compiled code may not say
        return None
    positional, keywords = _CALLS[kind]
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        return str(error)
    return None


def builtin_source(module: str, version: str) -> Source:
    """The package's own plug-ins take the road of everybody else's."""
    return Source("builtin", "lamost-lsf", version, lambda: importlib.import_module(module), module, builtin=True)
