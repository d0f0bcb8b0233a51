"""Models of the instrumental profile: anything with ``.profile(...)`` and ``.at(...)``."""

from lamost_lsf.models.archive import IPArchive
from lamost_lsf.models.base import IPModel
from lamost_lsf.models.gauss_hermite import GaussHermiteIP, HermiteComponent
from lamost_lsf.models.gaussian import GaussianIP
from lamost_lsf.models.neural import NeuralIP

__all__ = ["GaussHermiteIP", "GaussianIP", "HermiteComponent", "IPArchive", "IPModel", "NeuralIP"]
