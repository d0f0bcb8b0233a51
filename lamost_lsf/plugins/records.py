"""What is known about plug-ins: their objects, their faults, where a result came from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from lamost_lsf.errors import LamostLSFError

__all__ = [
    "Kind",
    "PluginEntry",
    "PluginError",
    "PluginProblem",
    "PluginProvenance",
    "fold_name",
    "valid_name",
]

#: What a plug-in can offer.
Kind = Literal["center", "wavelength_fitter"]

_NAME = re.compile(r"\w[\w.+-]*")


def fold_name(name: str) -> str:
    """Name without case, accents and surrounding blanks: what two names are compared by.

    Examples
    --------
    >>> fold_name("Sérsic"), fold_name(" GAUSS ")
    ('sersic', 'gauss')
    """
    # Case folding can bring combining marks back, so both steps are repeated until nothing changes.
    while True:
        plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
        folded = plain.casefold().strip()
        if folded == name:
            return folded
        name = folded


def valid_name(folded: str) -> bool:
    """Whether a folded name can be registered: letters, digits and ``_ . + -``, not ``:`` or ``@``."""
    return _NAME.fullmatch(folded) is not None


@dataclass(frozen=True)
class PluginProblem:
    """One reason why a plug-in, or one object of it, cannot be used as it asks to be.

    Attributes
    ----------
    kind : str
        "import" (it does not import), "hook" (a hook is unknown, unmarked or takes arguments), "call" (a hook
        raised), "type" (a hook or object of the wrong type), "name" (not a usable name) or "duplicate" (the
        name is taken: the object remains reachable by its qualified name, unless the message says otherwise).
    plugin : str
        Name of the entry point.
    distribution, version : str or None
        The installed distribution; None for a plug-in registered in this process.
    message : str
        What is wrong, and what to do about it.
    """

    kind: Literal["import", "hook", "call", "type", "name", "duplicate"]
    plugin: str
    distribution: str | None
    version: str | None
    message: str

    @property
    def source(self) -> str:
        """Plug-in with its distribution and version, for messages."""
        if self.distribution is None:
            return f"{self.plugin!r} (registered in this process)"
        return f"{self.plugin!r} ({' '.join(filter(None, (self.distribution, self.version)))})"

    def __str__(self) -> str:
        return f"plug-in {self.source}: {self.message}"


class PluginError(LamostLSFError):
    """A plug-in is at fault, and was registered by hand or in strict mode.

    Attributes
    ----------
    problems : tuple of `PluginProblem`
        All of them, not only the first.
    """

    def __init__(self, problems: Iterable[PluginProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple:
        # Exceptions are rebuilt from their arguments when they cross processes.
        return type(self), (self.problems,)


@dataclass(frozen=True)
class PluginProvenance:
    """Where a centre or fitter comes from, to be kept with a result.

    Attributes
    ----------
    name : str
        The name that finds the object again: bare for a built-in, "plugin:name" for a third party's,
        "module.function" for a callable that no plug-in registered.
    distribution, version : str or None
        None where the callable belongs to no installed distribution.

    Examples
    --------
    >>> str(PluginProvenance("bisector:bisector", "lsf-bisector", "1.2"))
    'bisector:bisector (lsf-bisector 1.2)'
    """

    name: str
    distribution: str | None
    version: str | None

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.distribution, self.version)))
        return f"{self.name} ({where})" if where else self.name


@dataclass(frozen=True)
class PluginEntry:
    """One named object of a plug-in.

    Attributes
    ----------
    kind : {"center", "wavelength_fitter"}
        What it is.
    name : str
        Folded name (see `fold_name`).
    plugin : str
        Folded name of the plug-in.
    obj : callable
        The estimator or fitter.
    distribution, version : str or None
        Where it comes from.
    builtin : bool
        Whether it is the package's own.
    unique : bool
        Whether ``plugin:name`` means this object only; if not, ``plugin@distribution:name`` does.
    message : str
        Empty, or why the bare name does not mean this object.
    """

    kind: Kind
    name: str
    plugin: str
    obj: Any = field(repr=False)
    distribution: str | None
    version: str | None
    builtin: bool = False
    unique: bool = True
    message: str = ""

    @property
    def qualified_name(self) -> str:
        """``plugin:name``, with ``@distribution`` where two distributions have plug-ins of one name."""
        if self.unique or self.distribution is None:
            return f"{self.plugin}:{self.name}"
        return f"{self.plugin}@{self.distribution}:{self.name}"

    @property
    def status(self) -> str:
        """Either "ok", or "shadowed" where the bare name does not mean this object."""
        return "shadowed" if self.message else "ok"

    @property
    def provenance(self) -> PluginProvenance:
        """What a result records."""
        name = self.name if self.builtin else self.qualified_name
        return PluginProvenance(name, self.distribution, self.version)
