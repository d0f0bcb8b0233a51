"""Lines that the simulated spectrographs see: arc lamps and the night sky."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lamost_lsf.simulation._random import deviate
from lamost_lsf.units import air_to_vacuum

__all__ = ["EmissionLine", "arc_lines", "sky_lines"]


@dataclass(frozen=True)
class EmissionLine:
    """One line, infinitely narrow.

    Attributes
    ----------
    species : str
    air : float
        Wavelength in standard air, Angstrom.
    intensity : float
        Integral, relative to a typical calibration line.
    calibration : bool
        Whether the instrumental profile is measured on it (Liu et al. 2026, section 2.1).
    """

    species: str
    air: float
    intensity: float
    calibration: bool = False

    def __post_init__(self) -> None:
        if not (np.isfinite(self.air) and self.air > 0 and np.isfinite(self.intensity) and self.intensity >= 0):
            raise ValueError(f"a line needs a positive wavelength and an intensity of at least 0, got {self}")

    @property
    def vacuum(self) -> float:
        """Vacuum wavelength, Angstrom."""
        return float(air_to_vacuum(self.air))


# The calibration lines are those of LAMOST's low-resolution survey; the others are the lamps' own besides them (NIST
# Atomic Spectra Database, air). Intensities are typical of such lamps on a silicon detector.
_CALIBRATION = {
    "blue": (
        ("Hg I", 4046.565, 0.8), ("Hg I", 4358.335, 1.8), ("Cd I", 4678.149, 0.6), ("Cd I", 4799.912, 1.0),
        ("Cd I", 5085.822, 1.3), ("Hg I", 5460.750, 1.6), ("Hg I", 5790.670, 0.45),
    ),
    "red": (
        ("Ne I", 5944.834, 0.55), ("Ne I", 6096.163, 0.8), ("Ne I", 6143.063, 1.3), ("Ne I", 6266.495, 0.9),
        ("Ne I", 6334.428, 1.1), ("Ne I", 6402.248, 2.4), ("Ne I", 6506.528, 1.6), ("Ne I", 6598.953, 1.0),
        ("Ne I", 6678.276, 1.5), ("Ne I", 6929.467, 1.2), ("Ne I", 7173.938, 0.5), ("Ne I", 7245.167, 1.0),
        ("Ne I", 7438.898, 0.6), ("Ne I", 8377.6065, 1.0), ("Ne I", 8495.3598, 0.6),
    ),
}  # fmt: skip
_OTHER = {
    "blue": (
        ("Hg I", 4077.837, 0.08), ("Hg I", 4339.223, 0.01), ("Hg I", 4347.494, 0.02), ("Hg I", 4916.068, 0.012),
        ("Cd I", 4662.352, 0.015), ("Cd I", 5154.660, 0.02), ("Hg I", 5769.598, 0.40), ("Hg I", 3906.372, 0.01),
    ),
    "red": (
        ("Ne I", 5852.488, 0.9), ("Ne I", 5881.895, 0.6), ("Ne I", 5975.534, 0.15), ("Ne I", 6029.997, 0.2),
        ("Ne I", 6074.338, 0.6), ("Ne I", 6128.450, 0.02), ("Ne I", 6163.594, 0.5), ("Ne I", 6217.281, 0.4),
        ("Ne I", 6304.789, 0.3), ("Ne I", 6382.992, 0.9), ("Ne I", 6532.882, 0.6), ("Ne I", 6652.093, 0.02),
        ("Ne I", 6717.043, 0.8), ("Ar I", 6965.431, 0.35), ("Ne I", 7032.413, 1.8), ("Ar I", 7067.218, 0.20),
        ("Ar I", 7272.936, 0.06), ("Ar I", 7383.980, 0.25), ("Ne I", 7488.871, 0.25), ("Ar I", 7503.869, 0.45),
        ("Ar I", 7514.652, 0.25), ("Ne I", 7535.774, 0.25), ("Ne I", 7544.044, 0.10), ("Ar I", 7635.106, 0.70),
        ("Ar I", 7723.761, 0.20), ("Ar I", 7948.176, 0.18), ("Ar I", 8006.157, 0.15), ("Ar I", 8014.786, 0.30),
        ("Ar I", 8103.693, 0.25), ("Ar I", 8115.311, 0.80), ("Ne I", 8136.406, 0.10), ("Ar I", 8264.522, 0.15),
        ("Ne I", 8300.326, 0.25), ("Ne I", 8365.749, 0.02), ("Ar I", 8408.210, 0.25), ("Ne I", 8418.427, 0.20),
        ("Ar I", 8424.648, 0.40), ("Ar I", 8521.442, 0.20), ("Ne I", 8591.259, 0.25), ("Ne I", 8634.647, 0.30),
        ("Ne I", 8654.383, 0.65), ("Ar I", 8667.944, 0.06), ("Ne I", 8681.921, 0.15), ("Ne I", 8780.621, 0.60),
        ("Ne I", 8783.753, 0.40), ("Ne I", 8853.867, 0.30), ("Ne I", 8865.755, 0.12),
    ),
}  # fmt: skip

# Brightest lines of the night sky, air: [O I] and Na I from the laboratory, OH P branches and others from the atlas
# of Hanuschik (2003, A&A 407, 1157), fluxes relative to [O I] 5577.
_SKY = (
    ("[O I]", 5577.338, 1.0), ("Na I", 5889.951, 0.07), ("Na I", 5895.924, 0.045), ("[O I]", 6300.304, 0.82),
    ("[O I]", 6363.776, 0.27), ("OH", 6863.97, 0.06), ("OH", 7240.19, 0.04), ("OH", 7244.94, 0.045),
    ("OH", 7276.42, 0.11), ("OH", 7284.46, 0.03), ("OH", 7316.29, 0.084), ("OH", 7329.16, 0.03),
    ("OH", 7340.90, 0.08), ("OH", 7358.68, 0.04), ("OH", 7369.38, 0.06), ("OH", 7524.01, 0.06),
    ("OH", 7571.75, 0.04), ("OH", 7712.5, 0.09), ("OH", 7716.92, 0.065), ("OH", 7750.66, 0.14),
    ("OH", 7760.01, 0.045), ("OH", 7780.43, 0.03), ("OH", 7794.12, 0.10), ("OH", 7808.48, 0.045),
    ("OH", 7821.52, 0.09), ("OH", 7841.28, 0.045), ("OH", 7853.40, 0.10), ("OH", 7860.66, 0.045),
    ("OH", 7870.74, 0.06), ("OH", 7913.72, 0.16), ("OH", 7921.11, 0.04), ("OH", 7949.21, 0.04),
    ("OH", 7964.65, 0.12), ("OH", 7979.77, 0.045), ("OH", 7993.33, 0.08), ("OH", 8014.07, 0.04),
    ("OH", 8025.8, 0.08), ("OH", 8281.69, 0.05), ("OH", 8288.61, 0.09), ("OH", 8296.25, 0.04),
    ("OH", 8298.91, 0.11), ("OH", 8310.72, 0.04), ("OH", 8344.61, 0.27), ("OH", 8352.88, 0.05),
    ("OH", 8382.40, 0.06), ("OH", 8399.18, 0.21), ("OH", 8415.24, 0.085), ("OH", 8430.17, 0.15),
    ("OH", 8452.27, 0.07), ("OH", 8465.4, 0.11), ("OH", 8493.40, 0.045), ("OH", 8504.8, 0.08),
    ("OH", 8538.69, 0.04), ("OH", 8655.5, 0.10), ("OH", 8665.0, 0.09), ("OH", 8758.73, 0.045),
    ("OH", 8761.4, 0.12), ("OH", 8767.92, 0.15), ("OH", 8776.22, 0.065), ("OH", 8778.34, 0.16),
    ("OH", 8791.19, 0.06), ("OH", 8827.11, 0.38), ("OH", 8836.45, 0.09), ("OH", 8867.61, 0.09),
    ("OH", 8885.86, 0.28), ("OH", 8903.12, 0.12), ("OH", 8919.64, 0.20), ("OH", 8943.41, 0.11),
    ("OH", 8958.1, 0.22), ("OH", 8988.38, 0.065), ("OH", 9001.3, 0.14), ("OH", 9049.5, 0.07),
)  # fmt: skip
# City light: mercury and sodium lamps.
_CITY = (("Hg I", 4046.565, 0.03), ("Hg I", 4358.335, 0.09), ("Hg I", 5460.750, 0.12), ("Hg I", 5769.598, 0.02))


def arc_lines(arm: str, *, others: bool = True, blends: bool = False, seed: int = 0) -> tuple[EmissionLine, ...]:
    """Lines of LAMOST's lamps: Hg-Cd in the blue arm, Ne-Ar in the red.

    Parameters
    ----------
    arm : {"blue", "red"}
    others : bool
        Besides the 7 (blue) or 15 (red) calibration lines, those others of the lamp that are bright enough to be
        seen. None but
        weak ones lie within a calibration line's window.
    blends : bool
        Add contaminants, 3 to 8 A from about a third of the calibration lines and 2 to 10 % as strong.
    seed : int
        Of the contaminants.

    Returns
    -------
    tuple of EmissionLine
        By wavelength.

    Examples
    --------
    >>> [line.air for line in arc_lines("blue", others=False)][:2]
    [4046.565, 4358.335]
    """
    if arm not in _CALIBRATION:
        raise ValueError(f"arm must be 'blue' or 'red', got {arm!r}")
    lines = [EmissionLine(*line, calibration=True) for line in _CALIBRATION[arm]]
    if blends:
        index = np.arange(len(lines))
        order = np.argsort(deviate(seed, 71, index))
        for i in sorted(order[: max(1, len(lines) // 3)]):
            side = 1.0 if deviate(seed, 72, i) > 0 else -1.0
            distance = 3.0 + 5.0 * _unit(deviate(seed, 73, i))
            share = 0.02 + 0.08 * _unit(deviate(seed, 74, i))
            target = lines[i]
            contaminant = replace(target, species="blend", air=target.air + side * distance, calibration=False)
            lines.append(replace(contaminant, intensity=share * target.intensity))
    if others:
        lines += [EmissionLine(*line) for line in _OTHER[arm]]
    return tuple(sorted(lines, key=lambda line: line.air))


def _unit(normal: np.ndarray) -> float:
    """Uniform number in 0-1 from a standard normal one."""
    from scipy.special import ndtr

    return float(ndtr(normal))


def sky_lines(*, city: bool = True) -> tuple[EmissionLine, ...]:
    """Bright lines of the night sky, 4000-9100 A, by wavelength.

    Parameters
    ----------
    city : bool
        With the mercury lines of street lamps.

    Examples
    --------
    >>> max(sky_lines(), key=lambda line: line.intensity).air
    5577.338
    """
    lines = [EmissionLine(*line) for line in (*_SKY, *(_CITY if city else ()))]
    return tuple(sorted(lines, key=lambda line: line.air))
