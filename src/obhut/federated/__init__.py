"""Federated training, written with remote tensors and nothing below them."""

from obhut.client.remote_dataset import RemoteDataset

from . import metrics
from .alignment import Comparison, Difference, compare
from .averaging import average, federated_avg, scale, total, trimmed_mean
from .callbacks import CSVLogger, MLflowLogger, StopTraining, TensorBoardLogger
from .capping import capped
from .checkpoints import Checkpoint
from .describing import Description, describe
from .evaluation import evaluate
from .federation import Federation
from .history import History, Round
from .local import LocalTraining
from .outer_optimizers import FedAdam, FedYogi
from .partitioning import Partitioner, by_class, by_column, dirichlet, iid
from .partitions import Partition
from .rounds import train_round, train_rounds
from .scaffold import Scaffold
from .splits import split
from .statistics import mean_and_std
from .strategies import FedAvg

__all__ = [
    "CSVLogger",
    "Checkpoint",
    "Comparison",
    "Description",
    "Difference",
    "FedAdam",
    "FedAvg",
    "FedYogi",
    "Federation",
    "History",
    "LocalTraining",
    "MLflowLogger",
    "Partition",
    "Partitioner",
    "RemoteDataset",
    "Round",
    "Scaffold",
    "StopTraining",
    "TensorBoardLogger",
    "average",
    "by_class",
    "by_column",
    "capped",
    "compare",
    "describe",
    "dirichlet",
    "evaluate",
    "federated_avg",
    "iid",
    "mean_and_std",
    "metrics",
    "scale",
    "split",
    "total",
    "train_round",
    "train_rounds",
    "trimmed_mean",
]
