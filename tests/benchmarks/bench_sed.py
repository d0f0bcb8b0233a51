"""Rates of SED networks: training, and prediction in batches against one spectrum at a time, in one thread.

Run from the root of the repository: ``python tests/benchmarks/bench_sed.py``. Rates are medians of repeated runs of the
network of the paper's size (2238 pixels to 574), which is as fast untrained as trained. With ``--compile`` the rate of
training a compiled network is measured, too.
"""

import sys
import time

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from lamost_lsf import sed
from lamost_lsf.sed.augmentation import Augmenter

PROMISED_RATE = 1000.0
PROMISED_RATIO = 3.0
REPEATS = 5


def rate(action, n: int, repeats: int = REPEATS) -> float:
    """Spectra a second of CPU time: other programs on the machine do not count."""
    action()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return n / float(np.median(times))


def training_rate(spectra: sed.SpectralSet, compiled: bool) -> float:
    torch.manual_seed(0)
    network = sed.UaRANet()
    forward = torch.compile(network) if compiled else network
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    augmenter = Augmenter(spectra, sed.Augmentation())
    which = torch.arange(128) % len(spectra)
    count = iter(range(1000))

    def step() -> None:
        flux, error, target, weight = augmenter(which, (0, next(count)))
        optimizer.zero_grad()
        sed.relative_likelihood_loss(*forward(flux, error), target, weight).backward()
        optimizer.step()

    return rate(step, 128)


def run(compiled: bool = False) -> list[dict]:
    """Measure, print a table, and return its rows."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    n = 64
    flux = 1.0 + 0.1 * rng.normal(size=(n, 2238)).astype(np.float32)
    spectra = sed.SpectralSet(flux, np.ones((n, 574), np.float32), np.arange(n), np.full(n, "all"))
    model = sed.SEDModel(
        [sed.UaRANet()], sed.INPUT_GRID, sed.OUTPUT_GRID, sed.Domain.fit(flux, n_components=4), snr_range=(20, 40)
    )
    many = np.tile(flux, (8, 1))
    with threadpool_limits(limits=1):
        rows = [
            {
                "what": "prediction, batches of 256",
                "rate": rate(lambda: model.evaluate_networks(many, 0.03), len(many)),
            },
            {
                "what": "prediction, one at a time",
                "rate": rate(lambda: [model.evaluate_networks(row, 0.03) for row in flux], n),
            },
            {"what": "training, batches of 128", "rate": training_rate(spectra, False)},
        ]
        if compiled:
            rows.append({"what": "training, compiled", "rate": training_rate(spectra, True)})
    for row in rows:
        print(f"{row['what']:30s} {row['rate']:8.0f} spectra/s")
    print(f"batches against one at a time: {rows[0]['rate'] / rows[1]['rate']:.1f}")
    return rows


if __name__ == "__main__":
    result = run("--compile" in sys.argv[1:])
    met = result[0]["rate"] >= PROMISED_RATE and result[0]["rate"] >= PROMISED_RATIO * result[1]["rate"]
    sys.exit(0 if met else 1)
