"""Random networks in the layout of the published weights, and an evaluation that shares no code with the package."""

import math
from datetime import datetime

import numpy as np

#: The published windows: offsets (Angstrom) of the 600 samples (Liu et al. 2026, section 2.2).
WINDOWS = {"blue": (-8.335, 9.25), "red": (-9.163, 9.833)}
AIR_RANGE = {"blue": (4046.565, 5790.670), "red": (5944.834, 8495.3598)}


def lmjm(when: datetime) -> float:
    """Local modified Julian minute of a UTC date: minutes since 1858-11-17 0h, 8 hours on."""
    since = when - datetime(1858, 11, 17)
    return since.days * 1440 + since.seconds / 60 + 480


def season_minutes(season: int) -> tuple[float, float]:
    return lmjm(datetime(season - 1, 8, 31, 16)), lmjm(datetime(season, 8, 31, 15, 59))


def random_arrays(seed: int, arm: str, season: int, n_hidden: int = 12) -> dict[str, np.ndarray]:
    """The eight arrays of a published file; the profiles are skewed, positive and vary with every label."""
    rng = np.random.default_rng(seed)
    x = np.linspace(*WINDOWS[arm], 600)
    base = np.exp(-0.5 * (x / np.where(x < 0, 1.1, 1.5)) ** 2)
    modes = np.exp(-0.5 * ((x - rng.uniform(-2, 2, (n_hidden, 1))) / 1.2) ** 2)
    first, last = season_minutes(season)
    low, high = AIR_RANGE[arm]
    return {
        "w_array_0": rng.normal(size=(n_hidden, 3)),
        "b_array_0": rng.normal(size=n_hidden) * 0.3,
        "w_array_1": rng.normal(size=(n_hidden, n_hidden)) / math.sqrt(n_hidden),
        "b_array_1": rng.normal(size=n_hidden) * 0.3,
        "w_array_2": (0.08 * modes * rng.choice([-1, 1], (n_hidden, 1))).T,
        "b_array_2": base,
        "x_min": np.array([first, 0.0, low]),
        "x_max": np.array([last, 249.0, high]),
    }


def write_published(folder, seed: int, spectrograph: int, arm: str, season: int, **kwargs):
    """Write ``NN_normalized_spectra_{spectrograph}_{b|r}_{season}.npz``; give its path and arrays."""
    arrays = random_arrays(seed, arm, season, **kwargs)
    path = folder / f"NN_normalized_spectra_{spectrograph:02d}_{arm[0]}_{season}.npz"
    np.savez(path, **arrays)
    return path, arrays


def evaluate(arrays: dict[str, np.ndarray], minute: float, fiber_label: float, wavelength_label: float) -> np.ndarray:
    """The published network, neuron by neuron: labels as given, LeakyReLU of slope 0.01 after the first two layers."""
    low, high = np.ravel(arrays["x_min"]), np.ravel(arrays["x_max"])
    labels = (minute, fiber_label, wavelength_label)
    values = [(v - float(a)) / (float(b) - float(a)) - 0.5 for v, a, b in zip(labels, low, high, strict=True)]
    for layer in range(3):
        weights, biases = arrays[f"w_array_{layer}"], np.ravel(arrays[f"b_array_{layer}"])
        sums = [
            math.fsum(float(w) * v for w, v in zip(row, values, strict=True)) + float(b)
            for row, b in zip(weights, biases, strict=True)
        ]
        values = [s if s > 0 or layer == 2 else 0.01 * s for s in sums]
    return np.array(values)
