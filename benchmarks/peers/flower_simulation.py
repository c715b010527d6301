"""Flower's simulation of a case, as its user writes it.

It is a side of ``bench_sim.py``, run with the folder in which Flower is installed
first in its path; each round begins when it is told to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from sim_cases import Case, Rows, train
from sim_sides import ROUNDS, arguments, arrays
from torch import nn

# Any below: as Flower has it.


class FlowerClient(NumPyClient):
    """A client with its rows."""

    def __init__(
        self, model: nn.Module, rows: tuple[torch.Tensor, torch.Tensor], batch: int
    ) -> None:
        self.model, self.rows, self.batch = model, rows, batch

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """Train the model on the rows."""
        names = self.model.state_dict()
        given = {
            name: torch.tensor(value)
            for name, value in zip(names, parameters, strict=True)
        }
        self.model.load_state_dict(given, strict=True)
        train(self.model, *self.rows, self.batch)
        values = [value.numpy() for value in self.model.state_dict().values()]
        return values, len(self.rows[0]), {}


def client_app(case: Case, read: Callable[[], Rows]) -> ClientApp:
    """Return what runs at a client."""

    def client_fn(context: Context) -> Any:
        torch.set_num_threads(1)
        rows = read()[int(context.node_config["partition-id"])]
        return FlowerClient(case.make(), rows, case.batch).to_client()

    return ClientApp(client_fn=client_fn)


class Paced(FedAvg):
    """Averages; begins each round when it is told, and says how long it took."""

    def __init__(self, pipe: Connection, began: float, **options: Any) -> None:
        super().__init__(**options)
        self._pipe = pipe
        self._began = began

    def configure_fit(self, server_round: int, *args: Any, **options: Any) -> Any:
        """Wait until the round is to begin; the first begins at once."""
        if server_round > 1:
            while self._pipe.recv()[0] == "model":
                self._pipe.send(self._model)
            self._began = time.perf_counter()
        return super().configure_fit(server_round, *args, **options)

    def evaluate(self, server_round: int, parameters: Any) -> None:
        """Say that a round is over; this is called right after it."""
        if server_round:
            self._pipe.send((time.perf_counter() - self._began, []))
            self._model = parameters_to_ndarrays(parameters)


def server_app(case: Case, pipe: Connection, began: float) -> ServerApp:
    """Return what samples and averages."""

    def server_fn(context: Context) -> ServerAppComponents:
        strategy = Paced(
            pipe,
            began,
            fraction_fit=case.participants / case.clients,
            fraction_evaluate=0.0,
            min_fit_clients=case.participants,
            min_available_clients=case.clients,
            initial_parameters=ndarrays_to_parameters(arrays(case.model())),
        )
        return ServerAppComponents(
            strategy=strategy, config=ServerConfig(num_rounds=ROUNDS)
        )

    return ServerApp(server_fn=server_fn)


def main() -> None:
    """Be a side."""
    _, case, file, pipe = arguments(["flower"])
    pipe.send("ready")
    pipe.recv()
    began = time.perf_counter()
    run_simulation(
        server_app=server_app(case, pipe, began),
        client_app=client_app(case, lambda: case.read(file)),
        num_supernodes=case.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2},
        },
    )


if __name__ == "__main__":
    main()
