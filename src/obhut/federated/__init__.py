"""Federated training, written with remote tensors and nothing below them."""

from .averaging import average, federated_avg
from .datasets import RemoteDataset
from .local import LocalTraining
from .rounds import Round, train_round, train_rounds
from .splits import split
from .statistics import mean_and_std

__all__ = [
    "LocalTraining",
    "RemoteDataset",
    "Round",
    "average",
    "federated_avg",
    "mean_and_std",
    "split",
    "train_round",
    "train_rounds",
]
