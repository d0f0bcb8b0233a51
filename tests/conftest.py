"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_download():
    """Tests must not reach for the network: astropy would fetch tables of the Earth's rotation."""
    from astropy.utils import iers

    with iers.conf.set_temp("auto_download", False):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data (LAMOST_LSF_DATA); skips the test where it is absent."""
    path = os.environ.get("LAMOST_LSF_DATA")
    if not path:
        pytest.skip("LAMOST_LSF_DATA is not set: no real data")
    root = Path(path)
    if not root.is_dir():
        pytest.skip(f"LAMOST_LSF_DATA={path} is not a folder")
    return root
