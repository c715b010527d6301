"""``Optims``: one optimizer a worker, for a model that visits one after another.

An optimizer follows its parameters from worker to worker by itself, with its
momentum. ``Optims`` is for programs that want each worker to keep its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.optim import Optimizer

from obhut.errors import WorkerNotFoundError


class Optims:
    """Optimizers of the same parameters, one a worker, each with its own state.

    Args:
        workers: the workers' ids.
        optim: an optimizer to copy, with its parameters and settings.
    """

    def __init__(self, workers: Iterable[str], optim: Optimizer) -> None:
        self.workers = list(workers)
        self.optimizers = {worker: _fresh(optim) for worker in self.workers}

    def get_optim(self, worker: str) -> Optimizer:
        """Return a worker's optimizer.

        Raises:
            WorkerNotFoundError: if it has none.
        """
        found = self.optimizers.get(worker)
        if found is None:
            raise WorkerNotFoundError(worker, self.workers)
        return found


def _fresh(optim: Optimizer) -> Optimizer:
    """Return an optimizer of the same kind, parameters and settings, no state."""
    groups = [dict(group) for group in optim.param_groups]
    return type(optim)(groups, **optim.defaults)
