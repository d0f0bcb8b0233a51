"""The profile store at the size of a season's largest set: rates, bytes and resident memory.

Run from the root of the repository: ``python tests/benchmarks/bench_store.py [PROFILES [FOLDER]]``; five million by
default, which take 10 GB in FOLDER (a temporary one by default) and some minutes. Appending, opening, shuffled passes
over all profiles, random access and verification each run in a process of their own; resident memory is the peak of
that process. Rates hold for a warm page cache where memory allows one. Ends with a non-zero status where a step needs
more than 4 GiB.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from store_writer import START, make_set

from lamost_lsf.store import ProfileStore

N_PROFILES = 5_000_000
LIMIT_GIB = 4.0
N_LINES = 21  # of the red arm: 5250 profiles an exposure


def noisy_set():
    """One exposure of noisy profiles clipped at zero, as extraction makes them: they compress as real ones do."""
    profiles = make_set(0, n_fiber=250, lines=6000.0 + 100.0 * np.arange(N_LINES), n_pixel=32)
    rng = np.random.default_rng(1)
    # noise of the pixels, interpolated to 600 samples
    knots = rng.normal(size=(profiles.flag.size, 32)) / 140.0
    position = np.linspace(0.0, 30.999, 600)
    whole, part = position.astype(int), position % 1.0
    np.add(
        profiles.profile, (knots[:, whole] * (1 - part) + knots[:, whole + 1] * part).astype("f4"), out=profiles.profile
    )
    np.maximum(profiles.profile, 0.0, out=profiles.profile)
    return profiles


def append(path, n):
    profiles = noisy_set()
    good = int((profiles.flag == 0).sum())
    store = ProfileStore(path)
    start = time.perf_counter()
    for k in range(-(-n // good)):
        when = START.utc.mjd * 1440 + 480 + 15 * k
        profiles.exposures["lmjm"] = when
        profiles.lmjm[:] = when
        store.append(profiles)
    seconds = time.perf_counter() - start
    info = store.info()
    return {
        "profiles": len(store),
        "batches": info["n_batches"],
        "profiles_per_s": len(store) / seconds,
        "bytes_per_profile": info["bytes"] / len(store),
    }


def opening(path, n):
    start = time.perf_counter()
    store = ProfileStore(path, "r")
    opened = time.perf_counter()
    store.split(0.8)
    return {"open_s": opened - start, "labels_and_split_s": time.perf_counter() - opened}


def stream(path, columns):
    store = ProfileStore(path, "r")
    train, validation = store.split(0.8)
    start, seen = time.perf_counter(), 0
    for part in store.iter_batches(train, columns, shuffle=True, seed=0):
        seen += part["row"].size
    for part in store.iter_batches(validation, columns):
        seen += part["row"].size
    assert seen == len(store)
    return {"profiles_per_s": seen / (time.perf_counter() - start)}


def shuffled_pass(path, n):
    return stream(path, ["profile", "lmjm", "fiber", "wavelength"])


def native_pass(path, n):
    return stream(path, ["native_offset", "native_flux", "native_ivar"])


def random_access(path, n):
    store = ProfileStore(path, "r")
    rows = np.random.default_rng(0).choice(len(store), 2000, replace=False)
    start = time.perf_counter()
    store.load(rows, "profile")
    return {"profiles_per_s": rows.size / (time.perf_counter() - start)}


def verify(path, n):
    store = ProfileStore(path, "r")
    start = time.perf_counter()
    store.verify()
    return {"profiles_per_s": len(store) / (time.perf_counter() - start)}


STEPS = (append, opening, shuffled_pass, native_pass, random_access, verify)


def main(arguments):
    if arguments[:1] == ["--step"]:
        step = {f.__name__: f for f in STEPS}[arguments[1]]
        result = step(Path(arguments[2]), int(arguments[3]))
        result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(result))
        return 0
    n = int(arguments[0]) if arguments else N_PROFILES
    peak = 0.0
    with tempfile.TemporaryDirectory(dir=arguments[1] if arguments[1:] else None) as folder:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step.__name__, f"{folder}/01_b_2017.profiles", str(n)]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                print(run.stderr, file=sys.stderr)
                return 1
            result = json.loads(run.stdout.splitlines()[-1])
            peak = max(peak, result["peak_gib"])
            print(f"{step.__name__:<14}", ", ".join(f"{k} {v:,.5g}" for k, v in result.items()), flush=True)
    if peak > LIMIT_GIB:
        print(f"FAILED: {peak:.2f} GiB resident (promised {LIMIT_GIB:g})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
