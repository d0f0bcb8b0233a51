"""Inference: profiles of 600 samples, and whole LSFs convolved with a template, in one thread, processor time.

Run from the root of the repository: ``python tests/benchmarks/bench_inference.py``. The reference is a call as the
published reader makes it: the weights are read from their npz file, one label goes through the network (hidden width
300), the profile comes back. Ours: a model of the default recipe trained on a small simulated season, and the same
network as the reference, both for many labels at once. An LSF with its convolution: the network at the nodes of a kept
basis, and the template's kept convolutions added up at 1,500 pixels; the reference is a loop over the pixels, profile
by profile. Times are the best of repeated runs.
"""

import sys
import tempfile
import time
from pathlib import Path

import astropy.units as u
import numpy as np
import torch
from astropy.time import Time
from threadpoolctl import threadpool_limits

import lamost_lsf as ll
from lamost_lsf.arcs import ArcExposure, extract_profiles
from lamost_lsf.rv.family import LSFFamily
from lamost_lsf.simulation import SimulatedIP, simulate_season, synthetic_template
from lamost_lsf.time import lmjm_to_time, time_to_lmjm

PROMISED_RATIO = 400.0
PROMISED_MS = 0.3
N_PIXELS = 1500


def best(function, repeats: int = 25) -> float:
    """Least processor seconds of some calls."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def trained() -> ll.NeuralIP:
    arcs = simulate_season(SimulatedIP("blue"), 2017, 6, 3, fiber=list(range(1, 251, 6)), dead_fibers=[])
    sets = [extract_profiles(ArcExposure.from_simulation(a), instrument="lamost-lrs-blue") for a in arcs]
    return ll.train(sets[0].concatenate(*sets[1:]), settings={"min_steps": 100, "epochs": 1, "rounds": 1})[0]


def published_like(folder: Path, like: ll.NeuralIP, width: int = 300) -> Path:
    """A weight file of the published kind; what the numbers are does not matter to the time."""
    rng = np.random.default_rng(1)
    sizes = [3, width, width, 600]
    arrays = {f"w_array_{i}": rng.normal(size=(sizes[i + 1], sizes[i])) / np.sqrt(sizes[i]) for i in range(3)}
    arrays |= {f"b_array_{i}": rng.normal(size=sizes[i + 1]) for i in range(3)}
    arrays["b_array_2"] += 20.0  # positive everywhere, as a profile is
    path = folder / "NN_normalized_spectra_01_b_2017.npz"
    np.savez(path, **arrays, x_min=like.label_min, x_max=like.label_max)
    return path


def reference_call(path: Path, label: np.ndarray) -> np.ndarray:
    """One profile, as the published reader makes it."""
    with np.load(path) as f:
        w0, w1, w2 = (f[f"w_array_{i}"] for i in range(3))
        b0, b1, b2 = (f[f"b_array_{i}"] for i in range(3))
        low, high = f["x_min"], f["x_max"]
    x = (label - low) / (high - low) - 0.5
    x = w0 @ x + b0
    x = np.where(x > 0, x, 0.01 * x)
    x = w1 @ x + b1
    x = np.where(x > 0, x, 0.01 * x)
    return w2 @ x + b2


def run() -> dict[str, float]:
    """Measure, print, and return the numbers."""
    torch.set_num_threads(1)
    with threadpool_limits(limits=1), tempfile.TemporaryDirectory() as folder:
        model = trained()
        path = published_like(Path(folder), model)
        same = ll.NeuralIP.from_pylamostip(path)
        when: Time = lmjm_to_time(0.5 * (model.label_min[0] + model.label_max[0]))
        lmjm = float(time_to_lmjm(when))
        one = best(lambda: reference_call(path, np.array([lmjm, 76.0, 5000.0])), 200)
        rng = np.random.default_rng(0)
        n = 4096
        fiber, wavelength = rng.integers(1, 245, n), rng.uniform(4100.0, 5700.0, n)
        fiber = 1 + 6 * (fiber // 6)
        out = {"reference_us": 1e6 * one}
        for name, ip in (("default", model), ("same_network", same)):
            bare = best(lambda ip=ip: ip._evaluate(np.full(n, lmjm), fiber, wavelength)) / n
            whole = best(lambda ip=ip: ip.profile(time=when, fiber=fiber, wavelength=wavelength * u.AA)) / n
            out |= {f"{name}_us": 1e6 * bare, f"{name}_ratio": one / bare}
            out |= {f"{name}_profile_us": 1e6 * whole, f"{name}_profile_ratio": one / whole}
        axis = np.linspace(4310.0, 5590.0, N_PIXELS)
        lsfs = [model.at(time=when, fiber=f) for f in range(1, 245, 6)]
        family = LSFFamily(lsfs[::8], (4300.0, 5600.0))
        bound = ll.TemplateBasis(synthetic_template(), family.basis).on_axis(axis * u.AA)

        def many():
            for coefficients, _ in family.coefficients_many(lsfs):
                bound.apply(coefficients)

        out["lsf_ms"] = 1e3 * best(lambda: bound.apply(family.coefficients(lsfs[7])[0]), 200)
        out["lsf_of_many_ms"] = 1e3 * best(many) / len(lsfs)
        out["lsf_reference_ms"] = 1e3 * N_PIXELS * one
        exact = ll.convolve(synthetic_template(), lsfs[7], spectral_axis=axis * u.AA).flux.value
        fast = bound.apply(family.coefficients(lsfs[7])[0])[0]
        out["difference"] = float(np.nanmax(np.abs(fast - exact)))
    for key, value in out.items():
        print(f"{key:24s} {value:.3g}")
    return out


def main() -> int:
    out = run()
    ok = out["default_profile_ratio"] >= PROMISED_RATIO and out["lsf_ms"] <= PROMISED_MS
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
