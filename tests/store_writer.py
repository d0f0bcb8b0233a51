"""Sets of profiles for the tests of the store, and a writer that they run in a process of its own.

``python store_writer.py PATH FIRST N [DUPLICATES]`` appends exposures FIRST to FIRST + N - 1, one at a time.
"""

import sys
from types import SimpleNamespace

import numpy as np
from astropy.table import Table
from astropy.time import Time, TimeDelta

START = Time("2016-10-24T11:32:00")
LINES = np.array([4047.7082, 4359.5600, 4679.4580, 4801.2540])  # vacuum Angstrom


def make_set(first=0, n_exposure=1, *, n_fiber=40, lines=LINES, n_sample=600, n_pixel=24, seed=0, **replace):
    """Profiles of exposures taken 6 h apart, each different, reproducible one by one."""
    offset = np.linspace(-8.335, 9.25, n_sample)
    parts = []
    for k in range(first, first + n_exposure):
        rng = np.random.default_rng([seed, k])
        fiber, line = (a.ravel() for a in np.meshgrid(np.arange(1, n_fiber + 1), np.arange(len(lines)), indexing="ij"))
        width = rng.uniform(1.2, 1.9, (fiber.size, 1))
        pixel = np.linspace(-8.0, 9.0, n_pixel) + rng.uniform(-0.3, 0.3, (fiber.size, 1))
        counts = 1000.0 * np.exp(-0.5 * (pixel / width) ** 2) + 20.0
        counts = counts + rng.normal(size=counts.shape) * np.sqrt(counts)
        ivar = 1.0 / np.maximum(counts, 1.0)
        ivar[rng.random(ivar.shape) < 0.02] = 0.0
        profile = np.exp(-0.5 * (offset / width) ** 2)
        profile += rng.normal(size=(fiber.size, 1)) * 0.01 * np.cos(offset)
        time = START + TimeDelta(6 * k * 3600, format="sec")
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
                "exposure": np.full(fiber.size, k - first),
                "flag": np.where(rng.random(fiber.size) < 0.05, 4, 0),
            }
        )
    types = {"lmjm": "f8", "wavelength": "f8", "fiber": "i2", "line": "i8", "exposure": "i8", "flag": "i4"}
    columns = {k: np.concatenate([p[k] for p in parts]).astype(types.get(k, "f4")) for k in parts[0]}
    exposures = Table(
        {
            "file": [f"arc-{k:04d}.fits" for k in range(first, first + n_exposure)],
            "time": START + TimeDelta(6 * 3600.0 * np.arange(first, first + n_exposure), format="sec"),
            "lamp": ["HgCd"] * n_exposure,
            "temperature": 4.0 + 0.1 * np.arange(first, first + n_exposure),
        }
    )
    exposures["temperature"].unit = "deg_C"
    identity = {"instrument": "lamost-lrs-blue", "arm": "blue", "spectrograph": 1, "offset": offset}
    return SimpleNamespace(**{**columns, "exposures": exposures, **identity, **replace})


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
