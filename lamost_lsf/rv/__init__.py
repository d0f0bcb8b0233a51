"""Radial velocities of stars, with the LSF of each spectrum."""

from lamost_lsf.rv.measure import measure_rv
from lamost_lsf.rv.result import RVFlag, RVResult

__all__ = ["RVFlag", "RVResult", "measure_rv"]
