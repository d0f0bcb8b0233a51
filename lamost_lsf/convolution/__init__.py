"""Convolution of templates by a varying, asymmetric LSF."""

from lamost_lsf.convolution.api import convolve
from lamost_lsf.convolution.basis import BoundTemplate, Coefficients, IPBasis, TemplateBasis
from lamost_lsf.convolution.matrix import ResolutionMatrix

__all__ = ["BoundTemplate", "Coefficients", "IPBasis", "ResolutionMatrix", "TemplateBasis", "convolve"]
