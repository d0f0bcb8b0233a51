"""Default recipe against the paper's, on whole simulated seasons: error against the noiseless truth, time, memory.

Run from the root of the repository: ``python tests/benchmarks/bench_training.py [blue|red ...]``. One thread, processor
time. A season is 24 exposures on 12 nights of 250 fibres and all lines, at a peak S/N of about 140; both recipes train
on the same store. "First better" is the processor time after which the default's error is below the final one of
``recipe="payne"``.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import astropy.units as u
import numpy as np
import torch
from threadpoolctl import threadpool_limits

import lamost_lsf as ll
from lamost_lsf.arcs import ArcExposure, extract_profiles
from lamost_lsf.simulation import EmissionLine, SimulatedIP, simulate_season, simulate_sky
from lamost_lsf.store import ProfileStore
from lamost_lsf.time import lmjm_to_time
from lamost_lsf.training import expanded
from lamost_lsf.training.api import split_by_exposure
from lamost_lsf.training.source import open_source

DEFECTIVE = 155
CENTERS = ("centroid", "gauss", "sersic", "half", "fourier")


def build(arm: str, folder: Path) -> ProfileStore:
    store = ProfileStore(folder / f"{arm}.profiles")
    for arc in simulate_season(SimulatedIP(arm), 2017, 24, 12, seed=1):
        store.append(extract_profiles(ArcExposure.from_simulation(arc), instrument=f"lamost-lrs-{arm}"))
    return store


def errors(model, truth, store, *, thin: int = 1) -> dict[str, float]:
    """Predicted minus true profile, in units of the peak, and what follows from the profiles."""
    good = store.good
    wavelength = np.unique(store.labels["wavelength"][good])
    times = lmjm_to_time(np.unique(store.labels["lmjm"][good]))[::thin]
    fibers = np.setdiff1d(np.unique(store.labels["fiber"][good]), [DEFECTIVE])

    def difference(lines, times):
        rows = []
        for t in times:
            for w in lines:
                h = truth.evaluate(truth.offset * u.AA, time=t, fiber=fibers, wavelength=w * u.AA)
                p = model.profile(time=t, fiber=fibers, wavelength=w * u.AA).flux
                rows.append(p / p.max(axis=1, keepdims=True) - h / h.max(axis=1, keepdims=True))
        return np.array(rows).reshape(len(times), len(lines), fibers.size, -1)

    at = difference(wavelength, times)
    systematic = np.sqrt(np.mean(at.mean(axis=(0, 2)) ** 2, axis=-1))
    between = difference(0.5 * (wavelength[1:] + wavelength[:-1]), times[::4])
    return {
        "rms": np.sqrt(np.mean(at**2)),
        "systematic": systematic.max(),
        "systematic_second": np.sort(systematic)[-2],
        "between": np.sqrt(np.mean(between**2)),
    }


def shapes(model, truth, store) -> dict[str, float]:
    """Errors of width and centres at the lines: rms over fibres and exposures, of the worst line."""
    good = store.good
    times = lmjm_to_time(np.unique(store.labels["lmjm"][good]))[::4]
    fibers = np.setdiff1d(np.arange(1, 251, 3), [DEFECTIVE])
    out = {"fwhm_percent": [], **{name: [] for name in CENTERS}}
    for w in np.unique(store.labels["wavelength"][good]):
        rows = {name: [] for name in out}
        for t in times:
            ours = model.profile(time=t, fiber=fibers, wavelength=w * u.AA)
            true = truth.profile(time=t, fiber=fibers, wavelength=w * u.AA)
            rows["fwhm_percent"].append(100.0 * ((ours.fwhm / true.fwhm).to_value(u.one) - 1.0))
            for name in CENTERS:
                rows[name].append((ours.center(name) - true.center(name)).to_value(u.AA))
        for name in out:
            out[name].append([np.sqrt(np.mean(np.square(rows[name]))), np.mean(rows[name])])
    return {name: np.abs(np.array(v)).max(axis=0) for name, v in out.items()}


def held_out_line(model, truth, store) -> float:
    """Dispersion of [O I] 5577 in sky exposures, treated like an arc line, about the model (Eq. 5), less its noise."""
    from lamost_lsf.lines import LineList
    from lamost_lsf.units import air_to_vacuum

    line = LineList(
        air=[5577.338], vacuum=[float(air_to_vacuum(5577.338))], species=["O I"], intensity=[1.0], blend=[False],
        name="[O I]",
    )  # fmt: skip
    times = lmjm_to_time(np.unique(store.labels["lmjm"][store.good]))[::6]
    sets = []
    for i, t in enumerate(times):
        sky = simulate_sky(
            truth, t, [EmissionLine("O I", 5577.338, 1.0)], peak=2.0e4, background=50.0, cosmic_rate=0.0, seed=i
        )
        sets.append(extract_profiles(ArcExposure.from_simulation(sky), instrument="lamost-lrs-blue", lines=line))
    result = ll.evaluate(model, sets[0].concatenate(*sets[1:]))
    row = result.summary()[0]
    dispersion = float(row["dispersion"])
    return dispersion, dispersion / float(row["dispersion_over_noise"])


def measure(arm: str, folder: Path) -> dict:
    store, truth = build(arm, folder), SimulatedIP(arm)
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # torch imports its compiler at the first optimiser
    quick = {"epochs": 0, "rounds": 0}
    ll.train(store, settings=quick)  # compiles
    began = time.process_time()
    model, _ = ll.train(store)
    row = {"arm": arm, "profiles": int(store.good.sum()), "seconds": time.process_time() - began}
    row |= errors(model, truth, store)
    began = time.process_time()
    payne, _ = ll.train(store, recipe="payne")
    row["payne_seconds"] = time.process_time() - began
    row |= {f"payne_{k}": v for k, v in errors(payne, truth, store).items()}
    row["first_better"] = first_better(store, truth, row["payne_rms"])
    source = open_source(store)
    _, validation = split_by_exposure(source.labels)
    result = ll.evaluate(model, store, index=validation)
    summary = result.summary()[0]
    resampled = ll.evaluate(model, store, index=validation, kind="resampled").summary()[0]
    by_fiber = ll.evaluate(model, store).by("fiber")
    number, dispersion = np.asarray(by_fiber["fiber"]), np.asarray(by_fiber["dispersion"])
    near = (np.abs(number - DEFECTIVE) <= 5) & (number != DEFECTIVE)
    row |= {
        "covered": float(summary["covered"]),
        "dispersion_over_noise": float(summary["dispersion_over_noise"]),
        "resampled_mean": float(resampled["abs_mean"]),
        "defective": float(dispersion[number == DEFECTIVE][0] / np.median(dispersion[near])),
        **{k: tuple(float(x) for x in v) for k, v in shapes(model, truth, store).items()},
    }
    if arm == "blue":
        row["held_out_5577"] = held_out_line(model, truth, store)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def first_better(store, truth, target: float) -> float:
    """Processor time from the start of the default recipe to the first term whose model is better than a target.

    The run is stopped after the second, third, ... term (the first is on a quarter of the lines) and what there is made
    into a model.
    """
    original, run_original = expanded.ExpandedTrainer._fitted, expanded.ExpandedTrainer.run

    class ReachedError(Exception):
        pass

    for last in range(2, 9):
        state = {"calls": 0, "seconds": np.nan}

        def fitted(self, name, index, last=last, state=state, **options):
            term = original(self, name, index, **options)
            state["calls"] += 1
            if state["calls"] == last:
                state["seconds"] = time.process_time() - state["began"]
                setattr(self, f"{name}_term", term)
                raise ReachedError
            return term

        def run(self, *args, **options):
            try:
                return run_original(self, *args, **options)
            except ReachedError:
                return self._expansion()

        expanded.ExpandedTrainer._fitted, expanded.ExpandedTrainer.run = fitted, run
        try:
            state["began"] = time.process_time()
            model, _ = ll.train(store)
        finally:
            expanded.ExpandedTrainer._fitted, expanded.ExpandedTrainer.run = original, run_original
        if errors(model, truth, store, thin=2)["rms"] <= target:
            return float(state["seconds"])
    return float("nan")


def run(arms: list[str]) -> list[dict]:
    """Measure, print, and return the rows."""
    torch.set_num_threads(1)
    rows = []
    with threadpool_limits(limits=1), tempfile.TemporaryDirectory() as folder:
        for arm in arms:
            row = measure(arm, Path(folder))
            rows.append(row)
            print(f"{arm}: {row['profiles']} profiles")
            for key, value in row.items():
                if key not in ("arm", "profiles"):
                    shown = value if isinstance(value, float) else np.array(value)
                    print(f"    {key:24s} {np.format_float_scientific(shown, 2) if np.ndim(shown) == 0 else shown}")
            ratio = row["payne_seconds"] / row["first_better"]
            print(f"    payne's final error after 1/{ratio:.1f} of its time")
    return rows


def main() -> int:
    arms = sys.argv[1:] or ["blue", "red"]
    rows = run(arms)
    ok = all(r["rms"] <= 1e-3 and r["rms"] <= 0.5 * r["payne_rms"] for r in rows)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
