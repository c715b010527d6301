"""One training of a federation: its rounds, and what goes with each.

::

    run = Fit(federation, model, training, rounds=30, ...)   # checks, and sends nothing
    for report in run.play(progress=True):
        ...

Rules:

- A round is its training and its validation. If one fails, nothing was done.
- It is written before anybody is told of it: so a training that ends at any point goes
  on from the last round that was told of, or the next.
- A round that is run again draws what it drew before.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeAlias, TypeVar, cast, get_args

import torch
from torch import nn

from obhut.client.cancelling import interruptible
from obhut.client.modules import location_of
from obhut.client.registry import WORKERS
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import (
    CallError,
    LocationError,
    NonFiniteError,
    ObhutError,
    TransportError,
)
from obhut.host.printing import several

from .callbacks import StopTraining
from .checkpoints import Checkpoint, State
from .clients import Clients
from .contributions import OnNonFinite, check_choice
from .data_parts import whole
from .dealing import derived
from .history import History, Round, plain
from .measuring import Metric
from .parameters import (
    frozen,
    kept,
    named_tensors,
    snapshot,
    taken_back,
    taking_part,
)
from .reconnecting import TRIES, Missing, end, give_up, hides_a_loss, lost
from .reporting import Reporter, reporting
from .rounds import Running, Training, loss_of, play
from .sampling import Sample
from .staying import Apart, Names, Own, Staying, recalled, store
from .strategies import FedAvg, OuterOptimizer, Strategy
from .together import How
from .wire import Wire

if TYPE_CHECKING:
    from .federation import Federation

# Any below: callables of the caller's, which are checked.

Callback: TypeAlias = Callable[[Round], object] | Checkpoint
"""Called with each round when it is over, or written with it."""

_Result = TypeVar("_Result")


class Fit:
    """One training of a federation, from its first round to its last."""

    def __init__(
        self,
        federation: Federation,
        model: nn.Module,
        training: Training,
        *,
        rounds: int,
        callbacks: Sequence[Callback],
        seed: int | None,
        held_out: float,
        validate: Mapping[str, Metric] | None,
        keep: Sequence[str],
        wire_dtype: torch.dtype | None,
        strategy: Strategy,
        weights: Mapping[str, float] | None,
        resume: Path | str | None,
        retries: int,
        on_missing: Missing,
        on_non_finite: OnNonFinite,
        participants: float | None,
        exact: bool,
    ) -> None:
        check_choice(on_non_finite)
        _check_model(model)
        _check_training(training)
        _check_numbers(rounds, retries, held_out, on_missing, seed)
        kept(model, keep)
        check_metrics("validate", validate)
        strategy.check(training)
        if strategy.trim and (weights or wire_dtype):
            raise CallError(
                "expected no weights and no wire_dtype: in a trimmed mean all owners "
                "are alike, and their changes are not rounded"
            )
        for one in callbacks:
            if isinstance(one, type) or not (
                callable(one) or isinstance(one, Checkpoint)
            ):
                raise CallError(
                    f"expected callbacks that take a Round, got {type(one).__name__}"
                )
        self._federation, self._model, self._training = federation, model, training
        self._rounds = rounds
        self._wire = None if wire_dtype is None else Wire(wire_dtype)
        self._validate, self._keep = validate or {}, list(keep)
        self._strategy = strategy
        self._weights = _weights(weights, federation.owners)
        self._retries, self._on_missing = retries, on_missing
        self._on_non_finite = on_non_finite
        members = federation.members
        self._simulated = isinstance(members, Clients)
        if not exact and not self._simulated:
            raise CallError("exact=False is for simulated clients: obhut.simulate(...)")
        self._how = How(exact, retries)
        self._sample = Sample(participants, members)
        if 2 * strategy.trim >= self._sample.size:
            raise CallError(
                f"expected a trim below half of {self._sample.size} owners, got "
                f"{strategy.trim}"
            )
        self._checkpoints = [one for one in callbacks if isinstance(one, Checkpoint)]
        self._callbacks = [one for one in callbacks if not isinstance(one, Checkpoint)]
        self._settings: dict[str, Any] = {}
        self._stores = (
            bool(keep or strategy.keeps)
            and bool(retries or self._checkpoints)
            and not self._simulated
        )
        self._stored: tuple[str, int] | None = None
        self._names: Names = ([], [])
        federation.staying = Staying()
        history = self._resumed(resume, seed, held_out)
        if history is None:
            for one in self._checkpoints:
                one.check_empty()
            drawn = int(torch.randint(2**62, ())) if seed is None else seed
            self._settings = {
                "seed": drawn,
                "held_out": held_out,
                "keep": list(keep),
                "participants": participants,
                "run": f"run {secrets.token_hex(8)}",
            }
            history = History()
        history.exact = exact
        federation.history = self._history = history
        self._split()

    def _resumed(
        self, resume: Path | str | None, seed: int | None, held_out: float
    ) -> History | None:
        """Go on from a checkpoint, if that is asked for; return its rounds.

        Raises:
            CallError: if there is none, or it is of another training.
        """
        if resume is None:
            return None
        checkpoint = Checkpoint(resume)
        numbers = checkpoint.numbers()
        if not numbers:
            folders = [one.folder.resolve() for one in self._checkpoints]
            if checkpoint.folder.resolve() in folders:
                return None  # it was ended before its first
            raise CallError(
                f"no checkpoint is in {checkpoint.folder}; write some: "
                f'callbacks=[Checkpoint("{checkpoint.folder}")]'
            )
        last = numbers[-1]
        state = checkpoint.state(last)
        own = {"held_out": held_out, "keep": self._keep}
        own |= {} if seed is None else {"seed": seed}
        own["participants"] = self._sample.participants
        different = [
            name for name, one in own.items() if state.settings.get(name) != one
        ]
        if different:
            raise CallError(
                "the training in "
                f"{checkpoint.folder} has other settings: "
                + ", ".join(f"{one}={state.settings.get(one)!r}" for one in different)
            )
        checkpoint.read_model(self._model, last)
        self._strategy.load_state_dict(state.strategy)
        self._settings = state.settings
        stored, names = (self._settings.pop(name) for name in ("stored", "names"))
        self._stored, self._names = stored, names
        apart = self._settings.pop("apart", {})
        places = {name: place for place, name in enumerate(self._federation.owners)}
        self._federation.staying.apart = {
            places[name]: Apart.of(*one)
            for name, one in apart.items()
            if name in places
        }
        torch.set_rng_state(state.random)
        return state.history

    def _split(self) -> None:
        """Divide each owner's rows, if some are held out."""
        owners = self._federation.members
        share, seed = self._settings["held_out"], self._settings["seed"]
        self._train = self._held_out = owners
        if share:
            self._train, self._held_out = divided(owners, share, seed)

    def play(self, *, progress: bool) -> Iterator[Round]:
        """Yield a report of each round, after it."""
        places = [] if self._simulated else [data.location for data in self._train]
        done = self._history[-1].number if self._history else 0
        first = 0 if self._validate and not self._history else done + 1
        with reporting(
            self._rounds,
            self._sample.size,
            places,
            self._history,
            progress=progress,
        ) as reporter:
            self._say_what_travels(reporter)
            self._recall()
            for number in range(first, self._rounds + 1):
                reporter.begins(number)
                report = self._round(number, reporter)
                goes_on = self._take_in(report, reporter)
                yield report
                if not goes_on:
                    return

    def _take_in(self, report: Round, reporter: Reporter) -> bool:
        """Write a round that is over, tell of it, and return whether others follow."""
        for one in self._checkpoints:
            if report.number % one.every == 0 or report.number == self._rounds:
                self._save(one, report.number, reporter)
        reporter.over(report)
        try:
            for callback in self._callbacks:
                callback(report)
        except StopTraining:
            for one in self._checkpoints:
                if report.number not in one.numbers():
                    self._save(one, report.number, reporter)
            return False
        return True

    def _save(self, checkpoint: Checkpoint, number: int, reporter: Reporter) -> None:
        """Write a checkpoint, after what goes with it at owners."""
        stored = self._stored
        if stored is not None and checkpoint.every > 1:
            # Rounds after it leave the last two of their own.
            stored = (f"{self._settings['run']} checkpoints", number)
            own = self._federation.staying.own
            self._surely(number, reporter, lambda: self._store(own, *stored))
        settings = self._settings | {"stored": stored, "names": self._names}
        apart = self._federation.staying.apart
        if self._simulated and self._federation.staying.own:
            raise CallError(
                "what clients keep is at their workers, since the training could not "
                "be recorded, and no checkpoint has it: train without Checkpoint"
            )
        names = [*self._federation.owners]
        settings["apart"] = {
            names[place]: one.tensors() for place, one in apart.items()
        }
        strategy, random = self._strategy.state_dict(), torch.get_rng_state()
        checkpoint.save(self._model, State(self._history, strategy, settings, random))

    def _store(self, own: Mapping[int, Own], name: str, version: int) -> None:
        """Let owners keep on their disks what is theirs."""
        places = sorted(own)
        owners = [self._train[place] for place in places]
        store(owners, [own[place] for place in places], name, version)

    def _recall(self) -> None:
        """Let owners go on with what they stored last."""
        if self._stored is None:
            return
        places = self._settings.get("keepers") or range(len(self._train))
        owners = [self._train[place] for place in places]
        own = recalled(owners, *self._stored, self._names)
        self._federation.staying.own = dict(zip(places, own.values(), strict=True))

    @interruptible
    def _round(self, number: int, reporter: Reporter) -> Round:
        """Play a round, and try the model after it; if that fails, nothing was done."""
        begin = time.monotonic()
        seed = derived(f"{self._settings['seed']} {number}", 62)
        values: Mapping[str, torch.Tensor] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(seed)
            if number:
                before = stack.enter_context(self._taken_back())
                share = self._sample.share
                running = Running(self._training, seed, number, self._keep, share)
                try:
                    values = self._surely(
                        number, reporter, lambda: self._play(running, before)
                    )
                except NonFiniteError as error:
                    if self._on_non_finite == "raise":
                        raise
                    seconds = time.monotonic() - begin
                    report = Round(number, math.nan, {}, seconds, error.owners)
                    self._history.append(report)
                    return report
            metrics: dict[str, float | torch.Tensor] = {
                name: plain(value) for name, value in values.items() if name != "loss"
            }
            both = sorted(metrics.keys() & self._validate.keys())
            if both:
                raise CallError(
                    f"the training and validate= both call something {both[0]!r}: "
                    "give them different names"
                )
            if self._validate:
                metrics |= self._surely(number, reporter, self._tried)
            seconds = time.monotonic() - begin
            report = Round(number, loss_of(values), metrics, seconds)
            self._history.append(report)
        return report

    def _play(self, running: Running, before: nn.Module) -> dict[str, torch.Tensor]:
        staying, places = self._federation.staying, self._chosen(running.number)
        weights = self._weights
        return play(
            self._model,
            _some(self._train, places),
            self._federation.aggregator,
            running,
            self._strategy,
            weights=None if weights is None else [weights[one] for one in places],
            staying=staying,
            keep=self._keep,
            wire=self._wire,
            store=self._storing(running.number) if self._stores else None,
            as_it_was=before,
            places=places,
            how=self._how,
        )

    def _chosen(self, number: int) -> list[int]:
        """Return the places of who takes part in a round."""
        return self._sample.drawn(self._settings["seed"], number)

    def _storing(self, number: int) -> Callable[[Mapping[int, Own]], None]:
        """Return what lets owners keep on their disks what is theirs after a round."""

        def keep(own: Mapping[int, Own]) -> None:
            stored = (f"{self._settings['run']} rounds", number)
            self._store(own, *stored)
            self._stored, self._names = stored, Staying(dict(own)).names
            self._settings["keepers"] = sorted(own)

        return keep

    def _tried(self) -> dict[str, float | torch.Tensor]:
        size = getattr(self._training, "batch_size", None)
        found = self._federation.measured(
            self._model, self._held_out, self._validate, size, self._keep
        )
        share = self._settings["held_out"]
        if (
            share
            and not self._history
            and all(
                isinstance(one, float) and math.isnan(one) for one in found.values()
            )
        ):
            warnings.warn(
                f"{several([*found])} of the held-out rows: NaN, as where no owner has "
                f"one; held_out={share} of an owner's rows is rounded to whole rows",
                UserWarning,
                stacklevel=2,
            )
        return found

    @contextlib.contextmanager
    def _taken_back(self) -> Iterator[nn.Module]:
        """Let the model, the rounds and what is kept be as they were if this fails.

        Yields:
            The model as it was.
        """
        before = snapshot(self._model)
        staying, rounds = self._federation.staying, len(self._history)
        own, apart = dict(staying.own), dict(staying.apart)
        try:
            with taken_back(named_tensors(self._model), named_tensors(before)):
                yield before
        except BaseException:
            self._federation.staying.own = own
            self._federation.staying.apart = apart
            self._history.cut(rounds)
            raise

    def _surely(
        self, number: int, reporter: Reporter, function: Callable[[], _Result]
    ) -> _Result:
        """Return what a function returns, with new sessions if some were lost."""
        tried, state, anew = 0, torch.get_rng_state(), False
        while True:
            try:
                return function()
            except ObhutError as error:
                if self._simulated:  # clients were asked again already
                    raise
                owners = [data.location for data in self._train]
                members = [*owners, WORKERS.find(self._federation.aggregator)]
                tried += 1
                if tried > self._retries:
                    raise
                give_up(members)
                gone = lost(members)
                if not gone and not isinstance(error, TransportError):
                    if anew or not hides_a_loss(error) or not end(self._train):
                        raise
                    anew, gone = True, ["all owners"]
                with_whom = f" with {', '.join(gone)}" if gone else ""
                reporter.says(
                    f"round {number}: {error}; it is run again{with_whom} ({tried} of "
                    f"{self._retries})"
                )
                self._federation.reconnect(
                    tries=TRIES, wait=self._on_missing == "wait", say=reporter.says
                )
                self._split()
                self._recall()
                if self._wire is not None:
                    self._wire.forget()
                torch.set_rng_state(state)

    def _say_what_travels(self, reporter: Reporter) -> None:
        """Say once if not all of a model takes part."""
        still, own = frozen(self._model), kept(self._model, self._keep)
        named = taking_part(self._model, self._keep)
        if still or own:
            size = sum(one.numel() for one in named.values())
            reporter.says(
                f"{len(named)} tensors of {size:,} numbers are trained together; "
                f"{len(still)} are frozen, and {len(own)} stay with their owners"
            )


def divided(
    owners: Sequence[RemoteDataset], held_out: float, seed: int
) -> tuple[Sequence[RemoteDataset], Sequence[RemoteDataset]]:
    """Return what of each owner's rows is trained on, and what is held out."""
    if isinstance(owners, Clients):
        return owners.split(held_out, seed)
    pairs = [data.split(held_out, seed=seed) for data in owners]
    return [train for train, _ in pairs], [test for _, test in pairs]


def _some(
    owners: Sequence[RemoteDataset], places: Sequence[int]
) -> Sequence[RemoteDataset]:
    """Return the owners at some places."""
    if isinstance(owners, Clients):
        return owners.chosen(places)
    return [owners[place] for place in places]


def chosen(strategy: Any, outer_optimizer: OuterOptimizer | None) -> Strategy:
    """Return the strategy that was asked for.

    Raises:
        CallError: if that is none.
    """
    if strategy is not None and outer_optimizer is not None:
        raise CallError(
            "expected strategy or outer_optimizer, got both: "
            "strategy=partial(FedAvg, outer_optimizer=...)"
        )
    if isinstance(outer_optimizer, torch.optim.Optimizer):
        raise CallError(
            "expected outer_optimizer to make an optimizer of parameters: "
            "outer_optimizer=partial(torch.optim.SGD, lr=1.0)"
        )
    if strategy is None:
        return FedAvg(outer_optimizer)
    if not callable(strategy):
        kind = type(strategy).__name__
        raise CallError(
            f"expected strategy to make one, got one of {kind}: strategy={kind}"
        )
    try:
        made = strategy()
    except TypeError as error:
        raise CallError(f"{_STRATEGY}, got {error}") from error
    if not callable(getattr(made, "local", None)):
        raise CallError(f"{_STRATEGY}, got one that makes a {type(made).__name__}")
    return cast(Strategy, made)  # whose class need not be one of ours


_STRATEGY = (
    "expected a strategy that can be made, strategy=Scaffold or strategy=partial("
    "FedAvg, trim=1); an optimizer is an outer_optimizer=partial(FedAdam, lr=0.1)"
)


def _weights(
    weights: Mapping[str, float] | None, owners: Mapping[str, RemoteDataset]
) -> list[float] | None:
    if weights is None:
        return None
    if not isinstance(weights, Mapping) or weights.keys() != owners.keys():
        raise CallError(f"expected a weight for each of {several([*owners])}, by name")
    for name, one in weights.items():
        if not isinstance(one, SupportsFloat) or not 0 <= float(one) < math.inf:
            raise CallError(f"expected weights of 0 or more, got {one!r} for {name}")
    return [float(weights[name]) for name in owners]


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise CallError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    place = location_of(model)
    if place is not None:
        raise LocationError("fit", [place.id], "the model must be here: obhut.get(it)")


def check_metrics(what: str, given: object) -> None:
    """Check that metrics are given by name.

    Args:
        what: the argument's name.
        given: what was passed.

    Raises:
        CallError: if not.
    """
    if given is not None and not isinstance(given, Mapping):
        raise CallError(
            f"expected {what} to be metrics by name, got a {type(given).__name__}: "
            '{"accuracy": metrics.accuracy}'
        )


def _check_training(training: object) -> None:
    if isinstance(training, type) or not callable(training):
        got = (
            training.__name__
            if isinstance(training, type)
            else f"a {type(training).__name__}"
        )
        raise CallError(
            f"expected a training, got {got}: "
            "LocalTraining(partial(torch.optim.SGD, lr=0.1), F.cross_entropy), or a "
            'function of model and data that returns {"loss": obhut.Ratio(total, rows)}'
        )


def _check_numbers(
    rounds: int,
    retries: int,
    held_out: float,
    on_missing: Missing,
    seed: int | None,
) -> None:
    if seed is not None and whole(seed) is None:
        raise CallError(f"expected a seed that is a whole number, got {seed!r}")
    if not isinstance(rounds, int) or rounds < 1:
        raise CallError(f"expected rounds of 1 or more, got {rounds}")
    if not isinstance(retries, int) or retries < 0:
        raise CallError(f"expected retries of 0 or more, got {retries}")
    if not 0 <= held_out < 1:
        raise CallError(f"expected held_out from 0 and below 1, got {held_out}")
    if on_missing not in get_args(Missing):
        raise CallError(f"expected on_missing to be stop or wait, got {on_missing!r}")
