"""The experiments of Liu et al. 2026 on centres and velocities, on simulated stars and on a user's own spectra."""

from lamost_lsf.experiments.bound import velocity_bound
from lamost_lsf.experiments.centers import CenterStability, center_stability, simulate_profiles
from lamost_lsf.experiments.epochs import CENTERS, EpochResult, rv_epochs
from lamost_lsf.experiments.manifest import ManifestError, read_manifest
from lamost_lsf.experiments.simulated import simulate_epochs
from lamost_lsf.experiments.visits import ArcBook, PixelVisit, PublishedVisit, Visit

__all__ = [
    "CENTERS",
    "ArcBook",
    "CenterStability",
    "EpochResult",
    "ManifestError",
    "PixelVisit",
    "PublishedVisit",
    "Visit",
    "center_stability",
    "read_manifest",
    "rv_epochs",
    "simulate_epochs",
    "simulate_profiles",
    "velocity_bound",
]
