"""Arc exposures and the line profiles that are cut out of them (Liu et al. 2026, section 2)."""

from lamost_lsf.arcs.exposure import ArcExposure
from lamost_lsf.arcs.extraction import extract_profiles
from lamost_lsf.arcs.longslit import measure_tilt
from lamost_lsf.arcs.profiles import ProfileSet
from lamost_lsf.arcs.quality import ProfileFlag

__all__ = ["ArcExposure", "ProfileFlag", "ProfileSet", "extract_profiles", "measure_tilt"]
