"""Names to objects: the registry of centres and wavelength fitters."""

from __future__ import annotations

import functools
import importlib.metadata as metadata
import inspect
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

import lamost_lsf
from lamost_lsf.errors import PluginLookupError, PluginWarning
from lamost_lsf.plugins.loading import (
    HookManager,
    Source,
    builtin_source,
    disabled_by_environment,
    installed_sources,
)
from lamost_lsf.plugins.records import (
    Kind,
    PluginEntry,
    PluginError,
    PluginProblem,
    PluginProvenance,
    fold_name,
    valid_name,
)

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = ["BUILTIN_MODULES", "PluginRegistry"]

#: Modules of the package that implement hooks; imported at the first look-up of a name.
BUILTIN_MODULES = ("lamost_lsf.centers", "lamost_lsf.wavelength")

_COLUMNS = ("kind", "name", "qualified_name", "origin", "version", "status", "message", "summary")
_WORDS: dict[Kind, str] = {"center": "center", "wavelength_fitter": "wavelength fitter"}
_GETTERS: dict[Kind, str] = {"center": "get_center", "wavelength_fitter": "get_wavelength_fitter"}


def _strict() -> bool:
    value = os.environ.get("LAMOST_LSF_STRICT_PLUGINS", "").strip().casefold()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("", "0", "false", "no", "off"):
        return False
    raise ValueError(f"LAMOST_LSF_STRICT_PLUGINS must be 1 or 0, got {value!r}")


def _warn(message: str) -> None:
    """Warn at the line outside this package from which the look-up came."""
    package = str(Path(lamost_lsf.__file__).parent)
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, PluginWarning, stacklevel=level)


class PluginRegistry:
    """All plug-ins of a process.

    Nothing is imported before the first look-up. The functions of `lamost_lsf.plugins` are the methods of one
    registry that all share; another is of use in tests only.

    Parameters
    ----------
    builtins : sequence of str
        Modules whose names win over everybody's.
    """

    def __init__(self, builtins: tuple[str, ...] = BUILTIN_MODULES) -> None:
        self._builtins = builtins
        # A plug-in may look names up while it is imported, so the lock must let its own thread in again.
        self._lock = threading.RLock()
        self._warned: set[PluginProblem] = set()
        self._in_process: dict[str, list[PluginEntry]] = {}
        self._forget()

    # -- loading ----------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._entries: list[PluginEntry] = []
        self._faults: list[PluginProblem] = []
        self._disabled: list[Source] = []
        self._loading = self._loaded = False

    def reload(self) -> None:
        """Forget what is installed, so that the next look-up finds plug-ins and environment anew.

        Modules that were imported stay imported; plug-ins registered with `register` stay registered.
        """
        with self._lock:
            self._forget()
            _packages.cache_clear()

    def _ensure_loaded(self, report: bool = True) -> None:
        with self._lock:
            if self._loading:
                return
            if not self._loaded:
                self._forget()
                self._loading = True
                try:
                    self._load()
                    self._loaded = True
                finally:
                    self._loading = False
        if report:
            self._report()

    def _load(self) -> None:
        hooks = HookManager()
        for module in self._builtins:
            self._collect(hooks, builtin_source(module, lamost_lsf.__version__))
        for entries in self._in_process.values():
            self._entries += entries
        sources = installed_sources()
        copies = Counter((fold_name(s.name), s.distribution) for s in sources)
        for source in sources:
            if disabled_by_environment(source):
                self._disabled.append(source)
            elif not valid_name(fold_name(source.name)):
                message = "the name of an entry point may hold letters, digits and _ . + - only; not loaded"
                self._faults.append(source.problem("name", message))
            elif copies[fold_name(source.name), source.distribution] > 1:
                message = f"{source.name!r} stands more than once in the entry points; not loaded"
                self._faults.append(source.problem("duplicate", message))
            else:
                self._collect(hooks, source)
        self._settle()

    def _collect(self, hooks: HookManager, source: Source) -> None:
        entries, problems = hooks.collect(source)
        self._entries += entries
        self._faults += problems

    def _settle(self) -> None:
        """Note which objects their bare name does not mean, and which plug-ins share a name."""
        plugins = Counter((e.kind, e.plugin, e.name) for e in self._entries)
        settled = []
        for entry in self._entries:
            rivals = [e for e in self._entries if e is not entry and (e.kind, e.name) == (entry.kind, entry.name)]
            unique = entry.builtin or (plugins[entry.kind, entry.plugin, entry.name] == 1 and entry.plugin != "builtin")
            settled.append((replace(entry, unique=unique, message=""), rivals))
        self._entries = [
            entry if entry.builtin or not rivals else replace(entry, message=_clash(entry, rivals))
            for entry, rivals in settled
        ]

    # -- faults -----------------------------------------------------------------------------------------

    @property
    def problems(self) -> tuple[PluginProblem, ...]:
        """All that is wrong with the plug-ins of this process; empty before the first look-up."""
        clashes = [
            PluginProblem("duplicate", e.plugin, e.distribution, e.version, e.message)
            for e in self._entries
            if e.message
        ]
        return (*self._faults, *clashes)

    def all_problems(self) -> tuple[PluginProblem, ...]:
        """All that is wrong, after loading; neither warns nor raises."""
        self._ensure_loaded(report=False)
        return self.problems

    def _report(self) -> None:
        problems = self.problems
        if not problems:
            return
        if _strict():
            raise PluginError(problems)
        # All are noted first: where warnings are errors, the first one leaves this loop.
        fresh = [problem for problem in problems if problem not in self._warned]
        self._warned.update(fresh)
        for problem in fresh:
            _warn(str(problem))

    # -- in-process plug-ins ------------------------------------------------------------------------------

    def register(self, plugin: Any, name: str | None = None) -> str:
        """Register a plug-in of this process, without an entry point.

        Parameters
        ----------
        plugin : object
            A module, or an object with methods, whose hooks are marked with ``@hookimpl``.
        name : str, optional
            Name of the plug-in, for "name:center". By default the last part of a module's name, or the name
            of an object's class.

        Returns
        -------
        str
            The name, without case and accents.

        Raises
        ------
        PluginError
            If a hook or an object is faulty; nothing is registered. In strict mode also for a name that is
            taken.
        ValueError
            If `name` is not a name, or a plug-in has it.
        """
        if name is None:
            name = getattr(plugin, "__name__", type(plugin).__name__).rpartition(".")[2]
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        folded = fold_name(name)
        if not valid_name(folded):
            raise ValueError(f"{name!r} is not a name for a plug-in: letters, digits and _ . + - only")
        with self._lock:
            taken = {"builtin", *self._in_process, *(fold_name(s.name) for s in installed_sources())}
            if folded in taken:
                raise ValueError(f"there is a plug-in {name!r} already; give another name")
            distribution, version = _owner(plugin)
            source = Source(name, distribution, version, lambda: plugin, repr(plugin))
            entries, problems = HookManager().collect(source)
            if problems:
                raise PluginError(problems)
            self._in_process[folded] = entries
            if self._loaded or self._loading:
                self._entries += entries
                self._settle()
        if self._loaded:
            try:
                self._report()
            except PluginError:
                self.unregister(folded)
                raise
        return folded

    def unregister(self, name: str) -> None:
        """Take back what `register` did.

        Parameters
        ----------
        name : str
            Name that `register` returned.

        Raises
        ------
        PluginLookupError
            If no such plug-in was registered in this process. Installed ones are switched off by
            LAMOST_LSF_DISABLED_PLUGINS.
        """
        folded = fold_name(name)
        with self._lock:
            if folded not in self._in_process:
                known = ", ".join(sorted(self._in_process)) or "none"
                raise PluginLookupError(f"no plug-in {name!r} was registered in this process (there: {known})")
            gone = {id(entry.obj) for entry in self._in_process.pop(folded)}
            self._entries = [e for e in self._entries if e.plugin != folded or id(e.obj) not in gone]
            self._settle()

    # -- look-up ------------------------------------------------------------------------------------------

    def get(self, kind: Kind, name: str | Callable) -> Any:
        """Object of a name; a callable is handed back as it is."""
        if callable(name):
            return name
        if not isinstance(name, str):
            raise TypeError(f"a {_WORDS[kind]} must be a name or a callable, not {type(name).__name__}")
        return self.find(kind, name).obj

    def find(self, kind: Kind, name: str) -> PluginEntry:
        """Entry of a bare or qualified name.

        Raises
        ------
        PluginLookupError
            If the name is unknown, or several plug-ins have it.
        """
        self._ensure_loaded()
        found = self._matches(kind, name)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(sorted(e.qualified_name for e in found))
            raise PluginLookupError(f"{_WORDS[kind]} {name!r} is ambiguous; use one of: {names}")
        raise PluginLookupError(self._unknown(kind, name))

    def _matches(self, kind: Kind, name: str) -> list[PluginEntry]:
        plugin, colon, bare = name.rpartition(":")
        found = [e for e in self._entries if e.kind == kind and e.name == fold_name(bare)]
        if colon:
            plugin, at, distribution = plugin.partition("@")
            found = [e for e in found if e.plugin == fold_name(plugin)]
            if at:
                found = [e for e in found if fold_name(e.distribution or "") == fold_name(distribution)]
            elif fold_name(plugin) == "builtin":
                found = [e for e in found if e.builtin]
        # Built-ins win: what a bare name means does not depend on what is installed beside the package.
        return [e for e in found if e.builtin] or found

    def _unknown(self, kind: Kind, name: str) -> str:
        names = sorted(e.qualified_name if e.message else e.name for e in self._entries if e.kind == kind)
        lines = [f"no {_WORDS[kind]} is named {name!r}"]
        everything = [*names, *(e.qualified_name for e in self._entries if e.kind == kind)]
        if close := get_close_matches(fold_name(name), everything, n=1):
            lines[0] += f"; did you mean {close[0]!r}?"
        for other in _WORDS:
            if any(e.kind == other and fold_name(name) in (e.name, e.qualified_name) for e in self._entries):
                lines.append(f"{name!r} is a {_WORDS[other]}: use {_GETTERS[other]}")
        lines.append(f"Available: {', '.join(names) or 'none'}")
        if self._faults:
            lines.append("Unusable plug-ins:")
            lines += [f"  {problem.source}: {problem.message}" for problem in self._faults]
        if self._disabled:
            off = ", ".join(s.name for s in self._disabled)
            lines.append(f"Disabled by LAMOST_LSF_DISABLED_PLUGINS: {off}")
        return "\n".join(lines)

    def provenance(self, target: str | Callable, kind: Kind | None = None) -> PluginProvenance:
        """Where a name or a callable comes from; see `lamost_lsf.plugins.plugin_provenance`."""
        if kind is not None and kind not in _WORDS:
            raise ValueError(f"kind must be one of {', '.join(_WORDS)}, got {kind!r}")
        if isinstance(target, str):
            return self._name_provenance(target, kind)
        if not callable(target):
            raise TypeError(f"a name or a callable is needed, not {type(target).__name__}")
        self._ensure_loaded()
        for entry in self._entries:
            same = entry.obj is target
            if isinstance(target, MethodType):  # every access makes another object of a bound method
                same = isinstance(entry.obj, MethodType) and _same_method(entry.obj, target)
            if same and kind in (None, entry.kind):
                return entry.provenance
        return PluginProvenance(_callable_name(target), *_owner(target))

    def _name_provenance(self, name: str, kind: Kind | None) -> PluginProvenance:
        self._ensure_loaded()
        kinds = [kind] if kind else [each for each in _WORDS if self._matches(each, name)]
        found = {self.find(each, name).provenance for each in kinds or ["center"]}
        if len(found) > 1:
            raise ValueError(f"{name!r} is both a {' and a '.join(_WORDS.values())}: say which with kind=")
        return found.pop()

    def table(self) -> Table:
        """All objects and all faults; see `lamost_lsf.plugins.list_plugins`."""
        from astropy.table import Table

        self._ensure_loaded()
        rows = [
            (
                str(e.kind),
                e.name,
                e.qualified_name,
                "builtin" if e.builtin else e.distribution or "in-process",
                e.version or "",
                e.status,
                e.message,
                _summary(e.obj),
            )
            for e in self._entries
        ]
        rows += [
            ("plugin", "", p.plugin, p.distribution or "in-process", p.version or "", "error", p.message, "")
            for p in self._faults
        ]
        message = "disabled by LAMOST_LSF_DISABLED_PLUGINS"
        rows += [
            ("plugin", "", s.name, s.distribution or "", s.version or "", "disabled", message, "")
            for s in self._disabled
        ]
        columns = zip(*rows) if rows else [[] for _ in _COLUMNS]
        return Table({name: np.array(column, dtype=str) for name, column in zip(_COLUMNS, columns)})


def _clash(entry: PluginEntry, rivals: list[PluginEntry]) -> str:
    word, own = _WORDS[entry.kind], f"this one is {entry.qualified_name!r}"
    if any(rival.builtin for rival in rivals):
        return f"{word} {entry.name!r} is a built-in, which keeps the bare name; {own}"
    others = ", ".join(sorted({f"{r.plugin} ({r.distribution or 'in-process'})" for r in rivals}))
    return f"{word} {entry.name!r} is also in {others}, so that the bare name is refused; {own}"


def _same_method(one: MethodType, other: MethodType) -> bool:
    return one.__self__ is other.__self__ and one.__func__ is other.__func__


def _summary(obj: Any) -> str:
    """First line of the documentation, empty where there is none or it cannot be read."""
    while isinstance(obj, functools.partial):
        obj = obj.func
    try:
        lines = (inspect.getdoc(obj) or "").strip().splitlines()
    except Exception:
        return ""
    return lines[0] if lines else ""


def _callable_name(obj: Any) -> str:
    if isinstance(obj, functools.partial):
        return f"functools.partial({_callable_name(obj.func)})"
    if not hasattr(obj, "__qualname__"):
        obj = type(obj)
    return f"{obj.__module__}.{obj.__qualname__}"


@functools.cache
def _packages() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def _owner(obj: Any) -> tuple[str | None, str | None]:
    """Distribution and version that a module or callable comes from, (None, None) for a script's own."""
    while isinstance(obj, functools.partial):
        obj = obj.func
    module = obj.__name__ if isinstance(obj, ModuleType) else getattr(obj, "__module__", None)
    top = str(module).partition(".")[0]
    if top == lamost_lsf.__name__:
        return "lamost-lsf", lamost_lsf.__version__
    names = _packages().get(top)
    return (names[0], metadata.version(names[0])) if names else (None, None)
