"""Radial velocities of surveys: millions of files, on one machine or a cluster, resumable at any moment."""

from lamost_lsf.batch.manifest import SpectrumList, find_spectra, read_manifest
from lamost_lsf.batch.output import read_survey
from lamost_lsf.batch.run import SurveySummary, measure_survey

__all__ = ["SpectrumList", "SurveySummary", "find_spectra", "measure_survey", "read_manifest", "read_survey"]
