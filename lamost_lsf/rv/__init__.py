"""Radial velocities of stars, with the LSF of each spectrum."""

from lamost_lsf.rv.batch import measure_rvs
from lamost_lsf.rv.machine import RVMachine
from lamost_lsf.rv.measure import measure_rv
from lamost_lsf.rv.result import RVFlag, RVResult

__all__ = ["RVFlag", "RVMachine", "RVResult", "measure_rv", "measure_rvs"]
