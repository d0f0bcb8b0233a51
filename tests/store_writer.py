"""Sets of profiles for the tests of the store, and a writer that they run in a process of its own.

``python store_writer.py PATH FIRST N [DUPLICATES]`` appends exposures FIRST to FIRST + N - 1, one at a time.
"""

import dataclasses
import sys

import astropy.units as u
import numpy as np
from astropy.table import Table
from astropy.time import Time, TimeDelta

from lamost_lsf.arcs import ProfileSet
from lamost_lsf.lines import LineList

START = Time("2016-10-24T11:32:00")
LINES = np.array([4047.7082, 4359.5600, 4679.4580, 4801.2540])  # vacuum Angstrom


def exposures_at(times, first=0):
    """Table of exposures as extraction makes it."""
    n = len(times)
    return Table(
        {
            "file": [f"arc-{k:04d}.fits" for k in range(first, first + n)],
            "sha256": [f"{k:064x}" for k in range(first, first + n)],
            "time": times.utc.isot,
            "lmjm": times.utc.mjd * 1440 + 480,
            "time_reference": ["start"] * n,
            "lamp": ["HgCd"] * n,
            "spectrograph": np.ones(n, dtype=np.int32),
            "temperature": 4.0 + 0.1 * np.arange(first, first + n),
            "wavelength_center": ["sersic"] * n,
        }
    )


def make_set(first=0, n_exposure=1, *, n_fiber=40, lines=LINES, n_sample=600, n_pixel=24, times=None, **replace):
    """Profiles of exposures taken 6 h apart (or at ``times``), each different, reproducible one by one."""
    if times is None:
        times = START + TimeDelta(6 * 3600.0 * np.arange(first, first + n_exposure), format="sec")
    exposures = exposures_at(times, first)
    offset = np.linspace(-8.335, 9.25, n_sample)
    parts = []
    for k, time in enumerate(times):
        rng = np.random.default_rng([0, first + k])
        fiber, line = (a.ravel() for a in np.meshgrid(np.arange(1, n_fiber + 1), np.arange(len(lines)), indexing="ij"))
        width = rng.uniform(1.2, 1.9, (fiber.size, 1))
        pixel = np.linspace(-8.0, 9.0, n_pixel) + rng.uniform(-0.3, 0.3, (fiber.size, 1))
        counts = 1000.0 * np.exp(-0.5 * (pixel / width) ** 2) + 20.0
        counts = counts + rng.normal(size=counts.shape) * np.sqrt(counts)
        ivar = 1.0 / np.maximum(counts, 1.0)
        ivar[rng.random(ivar.shape) < 0.02] = 0.0
        profile = np.exp(-0.5 * (offset / width) ** 2)
        profile += rng.normal(size=(fiber.size, 1)) * 0.01 * np.cos(offset)
        parts.append(
            {
                "profile": profile,
                "noise": rng.uniform(0.004, 0.02, fiber.size),
                "native_offset": pixel,
                "native_flux": counts,
                "native_ivar": ivar,
                "lmjm": np.full(fiber.size, time.utc.mjd * 1440 + 480),
                "fiber": fiber,
                "wavelength": np.asarray(lines)[line],
                "line": line,
                "exposure": np.full(fiber.size, k),
                "flag": np.where(rng.random(fiber.size) < 0.05, 4, 0),
            }
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    line_list = LineList.from_wavelengths(np.asarray(lines) * u.AA, medium="vacuum", species="Hg I")
    profiles = ProfileSet(
        instrument="lamost-lrs-blue",
        digest="0123456789abcdef",
        arm="blue",
        spectrograph=1,
        offset=offset,
        lines=line_list,
        exposures=exposures,
        **columns,
    )
    return dataclasses.replace(profiles, **replace)


if __name__ == "__main__":
    from lamost_lsf.store import ProfileStore

    path, first, count, *rest = sys.argv[1:]
    sets = [make_set(k, n_fiber=250) for k in range(int(first), int(first) + int(count))]
    store = ProfileStore(path)
    print("ready", flush=True)
    if rest[1:]:
        sys.stdin.readline()
    for profiles in sets:
        store.append(profiles, duplicates=rest[0] if rest else "raise")
    print(len(store), flush=True)
