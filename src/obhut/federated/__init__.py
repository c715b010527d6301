"""Federated training, written with remote tensors and nothing below them."""

from obhut.client.remote_dataset import RemoteDataset

from . import metrics
from .averaging import average, federated_avg, scale, total, trimmed_mean
from .capping import capped
from .describing import Description, describe
from .evaluation import evaluate
from .local import LocalTraining
from .rounds import Round, train_round, train_rounds
from .splits import split
from .statistics import mean_and_std

__all__ = [
    "Description",
    "LocalTraining",
    "RemoteDataset",
    "Round",
    "average",
    "capped",
    "describe",
    "evaluate",
    "federated_avg",
    "mean_and_std",
    "metrics",
    "scale",
    "split",
    "total",
    "train_round",
    "train_rounds",
    "trimmed_mean",
]
