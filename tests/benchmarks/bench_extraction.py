"""Rate and peak memory of `extract_profiles`, on whole simulated exposures, in one thread.

Run from the root of the repository: ``python tests/benchmarks/bench_extraction.py``. The rate is the median of repeated
runs. For comparison, the same steps (background through the minima, cubic spline, peak) are done with numpy and scipy,
one profile after the other and without any quality control.
"""

import resource
import sys
import time
import tracemalloc

import numpy as np
from astropy.time import Time
from scipy.interpolate import CubicSpline
from threadpoolctl import threadpool_limits

from lamost_lsf.arcs import ArcExposure, ProfileSet, extract_profiles
from lamost_lsf.simulation import SimulatedIP, simulate_arc

PROMISED_RATE = 20_000.0
#: Peak of what extraction allocates, in sizes of the exposure's own arrays.
PROMISED_MEMORY = 4.0
REPEATS = 9


def scipy_profiles(exposure: ArcExposure, lines: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Profiles (n_fiber, n_line, n), without quality control."""
    out = np.empty((exposure.n_fiber, lines.size, offset.size))
    for f in range(exposure.n_fiber):
        for i, line in enumerate(lines):
            x = exposure.wavelength[f] - line
            first = max(np.searchsorted(x, offset[0]) - 4, 0)
            last = np.searchsorted(x, offset[-1], side="right") + 4
            x, y = x[first:last], exposure.flux[f, first:last]
            window = np.flatnonzero((x >= offset[0]) & (x <= offset[-1]))
            peak = window[np.argmax(y[window])]
            left = window[0] + np.argmin(y[window[0] : peak])
            right = peak + 1 + np.argmin(y[peak + 1 : window[-1] + 1])
            slope = (y[right] - y[left]) / (x[right] - x[left])
            spline = CubicSpline(x, y - y[left] - slope * (x - x[left]))
            roots = spline.derivative().roots(extrapolate=False)
            out[f, i] = np.clip(spline(offset) / np.max(spline(roots)), 0.0, None)
    return out


def measure(arm: str) -> dict:
    arc = simulate_arc(SimulatedIP(arm), Time("2017-01-10T15:00"), cosmic_rate=1e-5)
    exposure = ArcExposure.from_simulation(arc, instrument=f"lamost-lrs-{arm}")
    profiles: ProfileSet = extract_profiles(exposure)  # compiles
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        extract_profiles(exposure)
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    peer = scipy_profiles(exposure, profiles.lines.vacuum, profiles.offset)
    peer_time = time.perf_counter() - start
    tracemalloc.start()
    extract_profiles(exposure)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    own = sum(a.nbytes for a in (exposure.flux, exposure.ivar, exposure.mask, exposure.wavelength))
    good = profiles.good
    return {
        "arm": arm,
        "n": len(profiles),
        "good": int(good.sum()),
        "per_second": len(profiles) / np.median(times),
        "scipy_per_second": len(profiles) / peer_time,
        "difference": float(np.max(np.abs(peer.reshape(len(profiles), -1)[good] - profiles.profile[good]))),
        "peak_mib": peak / 2**20,
        "exposure_mib": own / 2**20,
    }


def run() -> list[dict]:
    """Measure, print a table, and return its rows."""
    with threadpool_limits(limits=1):
        rows = [measure(arm) for arm in ("blue", "red")]
    heads = (
        ("profiles", 8),
        ("good", 6),
        ("per s", 9),
        ("scipy/s", 9),
        ("max diff", 9),
        ("peak MiB", 9),
        ("exposure", 9),
    )
    print(f"{'arm':<5} " + " ".join(f"{name:>{width}}" for name, width in heads))
    for row in rows:
        print(
            f"{row['arm']:<5} {row['n']:>8} {row['good']:>6} {row['per_second']:>9.0f} {row['scipy_per_second']:>9.0f} "
            f"{row['difference']:>9.1e} {row['peak_mib']:>9.1f} {row['exposure_mib']:>9.1f}"
        )
    print(f"resident at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return rows


def main() -> int:
    """Run, and fail where extraction falls behind what the package promises."""
    short = []
    for row in run():
        if row["per_second"] < PROMISED_RATE:
            short.append(f"{row['arm']}: {row['per_second']:.0f} profiles a second (promised {PROMISED_RATE:.0f})")
        if row["peak_mib"] > PROMISED_MEMORY * row["exposure_mib"]:
            short.append(f"{row['arm']}: {row['peak_mib']:.0f} MiB for an exposure of {row['exposure_mib']:.0f} MiB")
    for line in short:
        print("FAILED", line)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
