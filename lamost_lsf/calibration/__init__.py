"""Wavelength calibration: arcs to wavelength solutions, new solutions for science spectra, drifts, zero points."""

from lamost_lsf.calibration.blind import Identification, identify_lines
from lamost_lsf.calibration.calibrate import calibrate
from lamost_lsf.calibration.drift import Drift, measure_drift, sky_lines
from lamost_lsf.calibration.exposure import CalibrationFlag, ExposureCalibration
from lamost_lsf.calibration.peaks import ArcPeaks, find_arc_lines
from lamost_lsf.calibration.recalibrate import ArcSeries, recalibrate
from lamost_lsf.calibration.shift import center_difference, shift_center
from lamost_lsf.calibration.solutions import interpolate_solutions, shift_solution
from lamost_lsf.calibration.zero_points import ZeroPoints, leave_one_star_out, solve_zero_points

__all__ = [
    "ArcPeaks",
    "ArcSeries",
    "CalibrationFlag",
    "Drift",
    "ExposureCalibration",
    "Identification",
    "ZeroPoints",
    "calibrate",
    "center_difference",
    "find_arc_lines",
    "identify_lines",
    "interpolate_solutions",
    "leave_one_star_out",
    "measure_drift",
    "recalibrate",
    "shift_center",
    "shift_solution",
    "sky_lines",
    "solve_zero_points",
]
