"""Which modules have no examples to run here: those whose optional dependency is not installed."""

from importlib.util import find_spec

_OPTIONAL = {
    "torch": (
        "training/*",
        *(
            f"sed/{name}.py"
            for name in ("augmentation", "cross_fitting", "evaluation", "model", "network", "prediction", "training")
        ),
    ),
    "sklearn": ("sed/gaussian_process*.py", "sed/libraries_check.py", "sed/libraries_labels.py"),
    "pyarrow": ("batch/output.py", "batch/run.py"),
    "h5py": ("store/*",),
}

collect_ignore_glob = [
    pattern for package, patterns in _OPTIONAL.items() if find_spec(package) is None for pattern in patterns
]
