"""Simulated arcs, skies and stars of a LAMOST-like instrument whose instrumental profile is known exactly."""

from lamost_lsf.simulation.detector import SimulatedExposure, detector_scale
from lamost_lsf.simulation.exposures import (
    published_wavelength,
    season_times,
    simulate_arc,
    simulate_season,
    simulate_sky,
)
from lamost_lsf.simulation.ip import EPOCH, SimulatedIP
from lamost_lsf.simulation.lines import EmissionLine, arc_lines, sky_lines
from lamost_lsf.simulation.observatory import Observatory
from lamost_lsf.simulation.splines import StretchedIP
from lamost_lsf.simulation.stars import lamost_axis, simulate_star
from lamost_lsf.simulation.templates import synthetic_template

__all__ = [
    "EPOCH",
    "EmissionLine",
    "Observatory",
    "SimulatedExposure",
    "SimulatedIP",
    "StretchedIP",
    "arc_lines",
    "detector_scale",
    "lamost_axis",
    "published_wavelength",
    "season_times",
    "simulate_arc",
    "simulate_season",
    "simulate_sky",
    "simulate_star",
    "sky_lines",
    "synthetic_template",
]
