"""Pages whose examples need an optional dependency that is not installed are not run."""

from importlib.util import find_spec

collect_ignore = ["sed.rst"] if find_spec("torch") is None else []
