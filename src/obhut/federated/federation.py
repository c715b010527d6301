"""Owners who train one model together, and the aggregator between them.

::

    data = {name: worker.dataset("digits") for name, worker in workers.items()}
    federation = obhut.Federation(data, secure_worker)
    history = federation.fit(model, training, rounds=30, held_out=0.2, seed=0,
                             validate={"accuracy": metrics.accuracy})
    federation.evaluate(model, {"accuracy": metrics.accuracy})
    federation.fit(model, training, rounds=60, resume="run")     # 30 more

Rules:

- Every call is to all owners: one who has no row for it delivers 0 of 0.
- What comes here are means and sums over all owners.
- All that is drawn follows from the seed and the round: a round that is run again comes
  to the same. Who calls draws nothing from it.
- Wrong use is told before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.registry import WORKERS, Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError
from obhut.host.printing import Table, Tabular

from .alignment import Comparison, compare, in_one_order, public_columns
from .clients import Clients
from .contributions import OnNonFinite
from .describing import Description, describe
from .evaluation import evaluate
from .fitting import Callback, Fit, check_metrics, chosen, divided
from .history import History, Round, plain
from .measuring import Metric
from .parameters import kept
from .reconnecting import Missing, lost, reconnected
from .rounds import Training
from .simulation import Simulation
from .staying import Staying
from .strategies import OuterOptimizer, Strategy

_LOOK_SECONDS = 2.0
"""How long a worker may take to say that it is there."""


class Federation(Tabular):
    """Owners and an aggregator, for training, evaluation and statistics.

    Args:
        owners: the rows of each, by the owner's name; or what ``obhut.simulate``
            returns.
        aggregator: where what they deliver is added, itself or by id. Simulated clients
            have one.
        columns: of the features of all owners, by their public names, in the order in
            which they are wanted. By default those that there are, in the first owner's
            order where all owners' names are public.

    Attributes:
        owners: as given, with columns in one order.
        aggregator: as given, or the simulation's.
        history: the rounds of the last ``fit`` or ``rounds``, also if it was
            interrupted.
        staying: what stays at owners from round to round.

    Raises:
        CallError: if that is none, with the line to write.
        DatasetNotFoundError: if an owner has no column of a name that is given.
    """

    def __init__(
        self,
        owners: Mapping[str, RemoteDataset],
        aggregator: Place | str | None = None,
        *,
        columns: Sequence[str] | None = None,
    ) -> None:
        self.owners = owners
        if isinstance(owners, Simulation):
            if columns is not None:
                raise CallError(
                    "expected no columns of simulated clients: take them from the "
                    "tensors, obhut.simulate((x[:, places], y), ...)"
                )
            aggregator = aggregator or owners.aggregator
        else:
            _check_owners(owners, aggregator)
            self.owners = in_one_order(owners, columns)
        self.aggregator: Place | str = aggregator  # type: ignore[assignment] # checked
        self.history = History()
        self.staying = Staying()

    def reconnect(
        self,
        *,
        tries: int = 1,
        wait: bool = False,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Open new sessions with workers that were lost, and load their data again.

        Args:
            tries: how often it is tried.
            wait: whether it is tried until it succeeds.
            say: takes why it did not.

        Raises:
            TransportError: if a worker can not be reached.
        """
        if isinstance(self.owners, Simulation):
            return
        self.owners = reconnected(
            self.owners, self.aggregator, tries=tries, wait=wait, say=say
        )
        if not isinstance(self.aggregator, str):
            self.aggregator = WORKERS.find(self.aggregator.id)
        self.staying = Staying()

    # --- who is there -----------------------------------------------------------------

    @property
    def members(self) -> Sequence[RemoteDataset]:
        """The rows of each owner, in order."""
        if isinstance(self.owners, Simulation):
            return Clients(self.owners)
        return list(self.owners.values())

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Return each member's name, data set, rows and state."""
        aggregator = WORKERS.find(self.aggregator)
        members = [*(data.location for data in self.owners.values()), aggregator]
        gone = lost(members, _LOOK_SECONDS)
        *states, last = ["down" if one.id in gone else "up" for one in members]
        rows = [
            (name, data.location.id, _count(data), state)
            for (name, data), state in zip(self.owners.items(), states, strict=True)
        ]
        return [*rows, ("aggregator", aggregator.id, "", last)]

    @property
    def _table(self) -> Table:
        if isinstance(self.owners, Simulation):
            return self.owners.table
        title = f"Federation of {len(self.owners)} owners"
        return Table(("", "worker", "rows", "state"), self._rows(), title=title)

    def align(self) -> Comparison:
        """Return how owners' data sets compare, column by column, if they agree.

        ``fit``, ``rounds``, ``evaluate`` and ``describe`` do it before they begin. It
        is made of what is public and asks nothing of an owner; what is not public is
        said to be unknown. See ``obhut.federated.compare``, which raises nothing.

        Returns:
            What was compared, which prints as a table.

        Raises:
            AlignmentError: if something differs, naming it. Columns in another order
                are put into one, where all owners' names are public.
        """
        owners = self.owners
        if isinstance(owners, Simulation):  # they were compared when it was made
            owners = {name: owners[name] for name in list(owners)[:1]}
        found = compare(owners)
        found.check()
        return found

    # --- training ---------------------------------------------------------------------

    def fit(
        self,
        model: nn.Module,
        training: Training,
        /,
        *,
        rounds: int,
        seed: int | None = None,
        held_out: float = 0.0,
        validate: Mapping[str, Metric] | None = None,
        callbacks: Sequence[Callback] = (),
        keep: Sequence[str] = (),
        wire_dtype: torch.dtype | None = None,
        outer_optimizer: OuterOptimizer | None = None,
        strategy: Callable[[], Strategy] | None = None,
        weights: Mapping[str, float] | None = None,
        resume: Path | str | None = None,
        retries: int = 0,
        on_missing: Missing = "stop",
        participants: float | None = None,
        exact: bool = True,
        on_non_finite: OnNonFinite = "raise",
        progress: bool = True,
    ) -> History:
        """Train a model on all owners' rows; it changes in place.

        Leak: after each round the mean of the owners' models, and sums of what their
        trainings and metrics return, come to this process; each owner's own goes to the
        aggregator.

        Args:
            model: here.
            training: what each owner does: ``LocalTraining``, or a function of the
                model and ``data`` that returns ratios by name.
            rounds: how many there are in all, also of a training that goes on.
            seed: of all that is drawn; by default drawn from torch's own.
            held_out: what share of each owner's rows is not trained on; each owner
                draws them by the seed, the same in all rounds.
            validate: metrics by name, of the held-out rows, else of all; also before
                the first round.
            callbacks: called with each round when it is over. ``Checkpoint`` writes it.
            keep: names of modules or tensors that never leave their owner, and are its
                own there: personal layers. Here they stay as they are.
            wire_dtype: ``torch.bfloat16`` lets models, and what owners deliver, travel
                in half the bytes. What rounding loses is sent with the next.
            outer_optimizer: makes the optimizer that takes a step from the mean, as
                ``partial(FedAdam, lr=0.01)``; by default the model becomes the mean.
            strategy: makes another ``Strategy`` than ``FedAvg``.
            weights: of each owner, by name; by default how many rows it has.
            resume: a checkpoint's folder, from which the training goes on.
            retries: how often a round's training, or its validation, is run again when
                a worker is lost: in a new session with it, and what was asked of others
                is given up. An owner under a policy does not tell that its process with
                the rows has ended, so that too little is delivered: then all owners'
                sessions end, and it is run again once.
            on_missing: whether a worker that is not there after a minute is an error
                then (``stop``) or waited for (``wait``).
            on_non_finite: if an owner delivers what is NaN or infinite, or failed,
                ``raise`` the error, or ``skip`` the round.
            participants: how many owners take part in each round, or a share of them
                below 1, drawn anew by the seed; by default all. For open workers only:
                under a policy what is released counts over all rounds, and would single
                owners out.
            exact: False lets simulated clients update a layer in the product that makes
                its gradient, which takes less time and is about 1e-8 off, or more where
                a row is at the kink of a ReLU; the history says it.
            progress: whether it says on standard error how it comes along.

        Returns:
            The rounds. After an error or Ctrl-C those that are over are
            ``federation.history``, and the model is as the last of them left it.

        Raises:
            CallError: if something is wrong with the call; nothing was sent then.
            NonFiniteError: if what an owner delivers is NaN or infinite, or failed.
            ObhutError: what went wrong at an owner or the aggregator.
        """
        reports = self.rounds(
            model,
            training,
            rounds=rounds,
            seed=seed,
            held_out=held_out,
            validate=validate,
            callbacks=callbacks,
            keep=keep,
            wire_dtype=wire_dtype,
            outer_optimizer=outer_optimizer,
            strategy=strategy,
            weights=weights,
            resume=resume,
            retries=retries,
            on_missing=on_missing,
            on_non_finite=on_non_finite,
            participants=participants,
            exact=exact,
            progress=progress,
        )
        for _ in reports:
            pass
        return self.history

    def rounds(
        self,
        model: nn.Module,
        training: Training,
        /,
        *,
        rounds: int,
        seed: int | None = None,
        held_out: float = 0.0,
        validate: Mapping[str, Metric] | None = None,
        callbacks: Sequence[Callback] = (),
        keep: Sequence[str] = (),
        wire_dtype: torch.dtype | None = None,
        outer_optimizer: OuterOptimizer | None = None,
        strategy: Callable[[], Strategy] | None = None,
        weights: Mapping[str, float] | None = None,
        resume: Path | str | None = None,
        retries: int = 0,
        on_missing: Missing = "stop",
        participants: float | None = None,
        exact: bool = True,
        on_non_finite: OnNonFinite = "raise",
        progress: bool = False,
    ) -> Iterator[Round]:
        """Train round by round: each takes place when its report is asked for.

        Takes, and raises, what ``fit`` does.

        Yields:
            A report of each round, after it.
        """
        if not isinstance(self.owners, Simulation):
            self.align()
        run = Fit(
            self,
            model,
            training,
            rounds=rounds,
            seed=seed,
            held_out=held_out,
            validate=validate,
            callbacks=callbacks,
            keep=keep,
            wire_dtype=wire_dtype,
            strategy=chosen(strategy, outer_optimizer),
            weights=weights,
            resume=resume,
            retries=retries,
            on_missing=on_missing,
            on_non_finite=on_non_finite,
            participants=participants,
            exact=exact,
        )
        return run.play(progress=progress)

    def evaluate(
        self,
        model: nn.Module,
        metrics: Mapping[str, Metric],
        /,
        *,
        batch_size: int | None = None,
        held_out: float = 0.0,
        seed: int = 0,
        keep: Sequence[str] = (),
    ) -> dict[str, float | torch.Tensor]:
        """Return metrics of a model over all owners' rows.

        Leak: sums over the owners come to this process; each owner's own go to the
        aggregator.

        Args:
            model: here. Copies of it are tried, in evaluation mode.
            metrics: by name, as of ``obhut.federated.metrics`` or of your own.
            batch_size: rows in a step; None for all of them.
            held_out: try the rows only that a ``fit`` of this share and seed holds out.
            seed: of that ``fit``.
            keep: try with the layers that the last ``fit`` left at each owner.

        Returns:
            A number for each, or a tensor of several.

        Raises:
            CallError: if something is wrong with the call; nothing was sent then.
            NonFiniteError: if what an owner delivers is NaN or infinite, or failed.
        """
        check_metrics("metrics", metrics)
        if not isinstance(self.owners, Simulation):
            self.align()
        owners = self.members
        if held_out:
            owners = divided(owners, held_out, seed)[1]
        return self.measured(model, owners, metrics, batch_size, keep)

    def describe(
        self,
        *,
        names: Sequence[str] | None = None,
        classes: int | None = None,
        bins: int = 50,
    ) -> Description:
        """Return statistics of the features' columns over all owners' rows.

        It prints as a table: count, missing, mean, deviation, quantiles. See
        ``obhut.federated.describe``.

        Args:
            names: of the columns; by default the public ones, else their numbers.
            classes: how many classes a target of whole numbers has.
            bins: of the histograms.

        Raises:
            AlignmentError: if owners' columns differ.
        """
        self.align()
        if names is None:
            names = public_columns(self.owners)
        return describe(
            self.members,
            self.aggregator,
            names=names,
            classes=classes,
            bins=bins,
        )

    def measured(
        self,
        model: nn.Module,
        owners: Sequence[RemoteDataset],
        metrics: Mapping[str, Metric],
        batch_size: int | None,
        keep: Sequence[str],
    ) -> dict[str, float | torch.Tensor]:
        """Return metrics of a model over rows of all owners; see ``evaluate``."""
        kept(model, keep)
        found = evaluate(
            model,
            owners,
            self.aggregator,
            metrics,
            batch_size=batch_size,
            staying=self.staying,
            keep=keep,
        )
        return {name: plain(value) for name, value in found.items()}


def _count(data: RemoteDataset) -> str:
    hidden = isinstance(data, HiddenDataset)
    return "hidden" if hidden else f"{len(data):,}"


def _check_owners(
    owners: Mapping[str, RemoteDataset], aggregator: Place | str | None
) -> None:
    line = 'obhut.Federation({"bob": bob.dataset("xray"), ...}, secure_worker)'
    if not isinstance(owners, Mapping):
        raise CallError(
            f"expected the owners' data sets by name, got a {type(owners).__name__}: "
            f"{line}"
        )
    if not owners:
        raise CallError(f"expected one owner or more: {line}")
    for name, data in owners.items():
        if not isinstance(name, str) or not isinstance(data, RemoteDataset):
            raise CallError(
                f"expected a data set of {name}, got a {type(data).__name__}: {line}"
            )
    if aggregator is None:
        raise CallError(f"expected an aggregator: {line}")
    place = WORKERS.find(aggregator)
    for name, data in owners.items():
        if data.location.session is place.session:
            raise CallError(
                f"{name}'s rows are at {place.id}, the aggregator, which would see "
                "what others deliver beside its own: take another worker to add them, "
                "obhut.Federation(owners, secure_worker)"
            )
