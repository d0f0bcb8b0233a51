"""Which modules have no examples to run here: those whose optional dependency is not installed."""

from importlib.util import find_spec

_OPTIONAL = {"torch": ("training/*", "sed/*"), "h5py": ("store/*",)}

collect_ignore_glob = [
    pattern for package, patterns in _OPTIONAL.items() if find_spec(package) is None for pattern in patterns
]
