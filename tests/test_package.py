"""The package as a distribution: what its files say of it agrees, and importing it stays light."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lamost_lsf

ROOT = Path(__file__).resolve().parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def bounds(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)>=([\w.]+)$", text, flags=re.M))


def test_version_is_the_same_everywhere():
    version = SETUP["metadata"]["version"]
    assert lamost_lsf.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_public_name_is_there():
    # a name whose module moved would fail only when a user asks for it
    for name in lamost_lsf.__all__:
        assert getattr(lamost_lsf, name) is not None, name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lamost_lsf.nonsense


def test_import_does_not_bring_torch():
    # all public names included: using a trained model must not need torch either
    code = (
        "import sys, lamost_lsf as ll\n"
        "for name in ll.__all__: getattr(ll, name)\n"
        "import lamost_lsf.cli, lamost_lsf.simulation, lamost_lsf.testing, lamost_lsf.plots\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_oldest_constraints_are_the_lower_bounds():
    lower = bounds(SETUP["options"]["install_requires"]) | bounds(SETUP["options.extras_require"]["test"])
    text = (ROOT / "tests/constraints/oldest.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", text, flags=re.M))

    def numbers(version: str) -> list[int]:
        parts = [int(part) for part in version.split(".")]
        return parts + [0] * (3 - len(parts))

    for name, version in lower.items():
        assert numbers(pinned[name]) == numbers(version), name


def test_every_dependency_has_its_reason():
    text = (ROOT / "docs/dependencies.rst").read_text(encoding="utf-8")
    extras = SETUP["options.extras_require"]
    for block in (SETUP["options"]["install_requires"], extras["train"], extras["test"], extras["docs"]):
        for name in bounds(block):
            assert re.search(rf"^{re.escape(name)}  ", text, flags=re.M), f"{name} is not explained in dependencies.rst"


def test_continuous_integration_runs_the_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [c.strip() for c in re.findall(r"```bash\n(.*?)```", readme, flags=re.S)]
    assert len(commands) == 2
    assert commands[0].endswith("lamost-lsf demo")
    assert commands[1] in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_torch_cannot_come_with_cuda():
    # without the local version, pip would take PyPI's wheel of the same number: gigabytes of CUDA
    text = (ROOT / "tests/constraints/torch.txt").read_text(encoding="utf-8")
    assert re.search(r'^torch==2\.13\.0\+cpu ; sys_platform == "linux"$', text, flags=re.M)
