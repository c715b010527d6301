"""Attacks: each is stopped, and gets through when what stops it is off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.attacks import catalogue, owner_sequences, sequences, solver
from tests.attacks.attack import Attack, Family, Level
from tests.attacks.canaries import Canaries
from tests.attacks.private_data import Values
from tests.attacks.queries import FEW, sums
from tests.attacks.report import proofs
from tests.attacks.rules import RULES, Need
from tests.attacks.running import differing
from tests.attacks.stage import SW, Exchange, Stage
from tests.attacks.suite import Judgement, found, judge, run

import obhut
from obhut.client.workers import RemoteWorker
from obhut.errors import CallError, RemoteExecutionError
from obhut.ops.table import ROWS, Flag, Kind
from obhut.protocol.messages import AnyRequest, Batch, Counted, Results
from obhut.testing import recording, transcripts
from obhut.testing.transcripts import Transcript
from obhut.transports.local import ME
from obhut.worker.core import Worker
from obhut.worker.effects import Effect, Parcel
from obhut.worker.high import High
from obhut.worker.owners import OwnersWorker
from obhut.worker.packed import PACKED

pytestmark = pytest.mark.unrecorded(
    "rules are off on purpose, and judges look at transcripts of their own"
)

_verdicts: dict[str, Judgement] = {}


def verdict(name: str) -> Judgement:
    """Return what became of an attack, which is run once."""
    if name not in _verdicts:
        _verdicts[name] = judge(catalogue.ATTACKS[name])
    return _verdicts[name]


@pytest.mark.parametrize("name", catalogue.ATTACKS)
def test_attack(name: str) -> None:
    """It is stopped, and gets through without the rules it names or above L0."""
    assert not verdict(name).problem


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [name for name, rule in RULES.items() if rule.proof is not Need.NONE]
)
def test_rule_is_needed(name: str) -> None:
    """Some attack gets through when the rule is off, with those that imply it."""
    rule = RULES[name]
    near = [a for a in catalogue.ATTACKS.values() if name in a.rules]
    near.sort(key=lambda attack: len(attack.rules))
    assert any(proofs(rule, {one.name: verdict(one.name)}) for one in near)


def test_names_are_unique() -> None:
    """No attack hides another of its name."""
    assert len(catalogue.ATTACKS) == catalogue.COUNT


def test_attacks_name_known_rules() -> None:
    """A rule that an attack names is one that is enforced somewhere."""
    for attack in catalogue.ATTACKS.values():
        assert set(attack.rules) <= RULES.keys(), attack.name


def test_flags_without_a_proof_leave_nothing_dynamic() -> None:
    """Behind a guard no size depends on values, but masks and lengths are refused."""
    free = {
        row.name
        for row in ROWS.values()
        if Flag.DYNAMIC in row.flags
        and row.kind is not Kind.REFUSED
        and Flag.GUARD_REFUSED not in row.flags
    }
    assert free == {"aten.index.Tensor", *PACKED}


def test_the_suite_notices_an_attack_that_gets_through() -> None:
    """An attack that nothing stops is a problem, and so is one that never works."""
    program = catalogue.ATTACKS["alice * 0"].program
    through = Attack("through", "", Family.PROGRAMS, program, FEW)
    assert judge(through).problem.startswith("it gets through")
    idle = Attack("idle", "", Family.PROGRAMS, lambda stage: None, FEW)
    assert judge(idle).problem.startswith("it does not get through")
    higher = Attack("higher", "", Family.PROGRAMS, lambda s: None, level=Level.L1)
    assert judge(higher).problem


def test_honest_sums_alarm_no_judge() -> None:
    """Sums that all rules allow pass all judges, in all worlds."""
    three = {"alice": 1, "bob": 1, "carol": 1}
    honest = Attack("honest", "", Family.QUERIES, sums(three, three), opposite=True)
    assert not run(honest, frozenset()).refused
    assert not list(found(honest, frozenset()))


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.25])
def test_canaries_find_what_was_scaled(scale: float) -> None:
    """A private value is found with another sign, or times a power of two."""
    stage = Stage()
    values = stage.evidence.private["bob"][0] * scale
    stage.show(values[:3])
    assert bool(list(Canaries(stage.evidence).alarms(stage.evidence))) == (
        abs(scale) == 1
    )
    stage.evidence.exchanges.append(Exchange("me", b"", values=(values,)))
    assert list(Canaries(stage.evidence).alarms(stage.evidence))
    stage.close()


def test_the_solver_finds_a_difference() -> None:
    """Two sums whose difference is of two owners are found, and one of three not."""
    stage = Stage()
    a, b, c, d = (
        stage.evidence.private[o][0] for o in ("alice", "bob", "carol", "dave")
    )
    last = Exchange("me", b"", values=(a + b + c,))
    stage.evidence.exchanges.append(last)
    assert not list(solver.alarms(stage.evidence))
    last.values = (a + b + c, a + 2 * b + c + d)
    assert list(solver.alarms(stage.evidence))
    stage.close()


def test_worlds_differ_as_they_say() -> None:
    """In the opposite world bob has more by what alice has less, exactly."""
    first, other = (
        run(Attack("", "", Family.EGRESS, lambda s: None), frozenset(), world)
        for world in (Values.FIRST, Values.OPPOSITE)
    )
    for one, two in zip(first.private["bob"], other.private["bob"], strict=True):
        assert one.dtype == two.dtype
    total = [e.private["alice"][0] + e.private["bob"][0] for e in (first, other)]
    assert torch.equal(*total)
    assert not torch.equal(first.private["bob"][0], other.private["bob"][0])


@pytest.mark.slow
def test_random_sequences() -> None:
    """A thousand random sequences of requests leak nothing that judges find."""
    assert sequences.search(1_000) is None


@pytest.mark.timeout(600)
def test_low_alone_answers_random_sequences() -> None:
    """What an owner's worker says of random operators, one without data says too."""
    assert owner_sequences.search(250) is None


def test_low_alone_answers_attacks_in_another_process(tmp_path: Path) -> None:
    """A process that never had the data says to all attacks what owners' workers do."""
    seen: list[Transcript] = []
    for attack in catalogue.ATTACKS.values():
        seen += run(attack, frozenset(), Values.ODD).transcripts
    transcripts.write(seen, tmp_path / "seen")
    path = str(tmp_path / "seen")
    asked = [sys.executable, "-m", "obhut.testing.transcripts", path]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert len(seen) > len(catalogue.ATTACKS)


def test_an_answer_of_values_is_found() -> None:
    """Where who answers has values, a sequence shows that low alone has none."""
    assert owner_sequences.search(500, frozenset(("owner: low",))) is not None


@pytest.mark.parametrize("name", ["index_select fails", "backward fails"])
def test_a_failure_on_values_that_shows_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One word of high's in a reply, and low alone answers otherwise."""
    attack = catalogue.ATTACKS[name]
    worlds = (Values.FIRST, Values.OTHER, Values.ODD)
    assert not differing(*(run(attack, frozenset(), one) for one in worlds))

    def fail(high: High, request: AnyRequest, error: Exception) -> None:
        raise CallError(str(error))

    monkeypatch.setattr(High, "_fail", fail)
    assert differing(*(run(attack, frozenset(), one) for one in worlds))


def test_a_size_that_depends_on_values_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One size that high has told low, and low alone answers otherwise."""

    def told(
        worker: OwnersWorker, sender: str, parcel: Parcel, now: float
    ) -> tuple[Parcel, tuple[Effect, ...]]:
        reply, effects = Worker.handle(worker, sender, parcel, now)
        message = parcel.message
        if isinstance(message, Batch) and isinstance(reply.message, Results):
            high = worker._highs.get(message.session)
            for tensor in [] if high is None else high._store.held():
                counted = Counted(0, int((tensor > 0).sum()))
                reply = reply._replace(message=Results(message.number, (counted,)))
        return reply, effects

    with monkeypatch.context() as inside:
        inside.setattr(OwnersWorker, "handle", told, raising=False)
        seen = run(catalogue.ATTACKS["copy_"], frozenset())
    assert differing(seen)


def test_a_transport_keeps_what_passes() -> None:
    """Kept at the requester's, what a worker says is what low alone says."""
    stage = Stage()
    (core,) = (c for c in (stage._shells["bob"]._core,) if isinstance(c, OwnersWorker))
    kept = recording.transcript_of(core)
    way = recording.RecordingTransport(stage.way("bob", ME), kept, ME)
    worker = RemoteWorker(way)
    rows = worker.load("rows")
    obhut.move((rows * 2).sum(0), stage.at[SW])
    worker.wait()
    worker.close()
    stage.close()
    assert len(kept.exchanges) > 3
    assert not list(transcripts.differences(kept))
    kept.exchanges[1].received = b"something else"
    assert list(transcripts.differences(kept))


def test_dtypes_that_do_not_match_are_told() -> None:
    """A float64 data set on a float32 layer is an error, in PyTorch's words."""
    layer = torch.nn.Linear(64, 1)
    stage = Stage()
    try:
        with pytest.raises(RuntimeError) as plain:
            layer(torch.zeros(64, dtype=torch.float64))
        remote = obhut.send(layer, stage.at["bob"])
        remote(stage.vector("bob"))
        with pytest.raises(RemoteExecutionError) as told:
            stage.at["bob"].wait()
        assert str(plain.value) in str(told.value)
    finally:
        stage.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "off",
    [FEW, ("audit: atoms",), ("owner: fetch", "gate: reply"), ("sums: only",)],
    ids=lambda off: off[0],
)
def test_random_sequences_find_leaks(off: tuple[str, ...]) -> None:
    """With rules off, sequences that leak are found."""
    assert sequences.search(1_000, frozenset(off)) is not None
