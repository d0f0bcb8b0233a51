"""Training models of the instrumental profile; needs torch (``pip install lamost-lsf[train]``)."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("training needs torch: pip install 'lamost-lsf[train]'") from error

from lamost_lsf.training.api import split_by_exposure, train
from lamost_lsf.training.campaign import train_all
from lamost_lsf.training.evaluation import Evaluation, evaluate
from lamost_lsf.training.expanded import ExpandedSettings
from lamost_lsf.training.loop import History, TrainingDivergedError
from lamost_lsf.training.payne import PayneSettings

__all__ = [
    "Evaluation",
    "ExpandedSettings",
    "History",
    "PayneSettings",
    "TrainingDivergedError",
    "evaluate",
    "split_by_exposure",
    "train",
    "train_all",
]
