"""``[policy]``: what an owner may write, and what each fault is called."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from obhut.errors import ConfigurationError, DatasetError
from obhut.guard.policy import Quorum
from obhut.host.data.datasets import load_one
from obhut.host.data.declaration import DatasetDeclaration, Public
from obhut.host.explanation import explain
from obhut.host.principals import resolve

ID = {name: name[0] * 52 for name in ("bob", "alice", "carol", "hub", "researcher")}

TOP = 'id = "bob"\nlisten = "127.0.0.1:0"\n'

POLICY = """
[policy]
kind = "Quorum"
aggregators = ["hub"]
contributors = ["bob", "alice", "carol"]
requesters = ["researcher"]
"""

PEERS = "".join(
    f'[[peer]]\nname = "{name}"\nid = "{ID[name]}"\n' for name in ("hub", "alice")
)

DATA = '[[dataset]]\nname = "d"\npath = "d.csv"\nfeatures = ["a"]\n'


@dataclass(frozen=True)
class Known:
    """Somebody who is pinned."""

    name: str
    id: str


PINNED = {
    key: Known(name, ID[name])
    for name in ("carol", "researcher")
    for key in (name, ID[name])
}


def test_every_clause_arrives(configure):
    """Each key of the table is a clause of the policy."""
    text = POLICY + (
        "honest = 2\ncolluders = 1\np_percent = 90\nclip_norm = 10\nminimum_rows = 50\n"
        'expires = 2027-12-31\nrefusals = 7\nprograms = "any"\n'
    )
    assert configure(TOP + text).policy == Quorum(
        aggregators=("hub",),
        contributors=("bob", "alice", "carol"),
        requesters=("researcher",),
        p_percent=90,
        clip_norm=10.0,
        minimum_rows=50,
        expires=datetime.date(2027, 12, 31),
        refusals=7,
        programs="any",
    )


def test_a_table_without_programs_compares_them(configure):
    """Nothing said is "same", and what is said is what holds."""
    assert configure(TOP + POLICY).policy.programs == "same"
    for said in ("same", "any"):
        text = TOP + POLICY + f'programs = "{said}"\n'
        assert configure(text).policy.programs == said


@pytest.mark.parametrize(
    ("old", "new", "key", "problem", "advice"),
    [
        ('["hub"]', "[]", "aggregators", "names nobody", "list at least one"),
        ('["hub"]', '"hub"', "aggregators", "expected a list", "correct"),
        ('["hub"]', '["*"]', "aggregators", 'got "*"', "no pattern"),
        ('["hub"]', '["hub", "hub"]', "aggregators", "listed twice", "remove"),
        ('["hub"]', '["alice"]', "contributors", "is an aggregator too", "once"),
        ('["hub"]', '["hub"]\nhonest = 0', "honest", "from 1", "default"),
        ('["hub"]', '["hub"]\nhonest = 9', "contributors", "10 owners", "list more"),
        ('["hub"]', '["hub"]\np_percent = "x"', "p_percent", "whole number", "correct"),
        ('["hub"]', '["hub"]\nclip_norm = 0', "clip_norm", "above 0", "leave the key"),
        ('["hub"]', '["hub"]\nclip_norm = nan', "clip_norm", "above 0", "leave"),
        ('["hub"]', '["hub"]\nexpires = 2027', "expires", "expected", "correct"),
        ('["hub"]', '["hub"]\nexpire = 2027-01-01', "expire", "known", "did you mean"),
        ('["hub"]', '["hub"]\nsandbox = "none"', "sandbox", "known", "at the top"),
        ('aggregators = ["hub"]\n', "", "aggregators", "is missing", "add aggregators"),
        ('kind = "Quorum"', "", "kind", "is missing", "Quorum"),
        ('kind = "Quorum"', 'kind = "Quorums"', "kind", "expected", '"Quorum"?'),
        (
            'kind = "Quorum"',
            'kind = "UnsafeOpen"',
            "aggregators",
            "not a known",
            "kind",
        ),
    ],
)
def test_a_fault_is_named(configure, tmp_path, old, new, key, problem, advice):
    """The error has the file, the key, what is wrong with it and what to write."""
    assert old in POLICY
    with pytest.raises(ConfigurationError) as caught:
        configure(TOP + POLICY.replace(old, new))
    error = caught.value
    assert error.key == f"{key} of [policy]"
    assert problem in error.problem
    assert advice in error.advice
    assert str(error).startswith(f"{tmp_path / 'worker.toml'}, {key} of [policy]: ")


def test_an_aggregator_has_no_data(configure):
    """Who is an aggregator by the policy serves no data sets."""
    with pytest.raises(ConfigurationError, match="is an aggregator by it"):
        configure(TOP.replace("bob", "hub") + POLICY + DATA)
    assert configure(TOP.replace("bob", "hub") + POLICY).datasets == ()


# --- who may open sessions ---


def test_requesters_may_open_sessions(configure):
    """Without a list of its own, ``[access]`` follows the policy."""
    assert configure(TOP + POLICY).access.sessions == ("researcher",)
    one = configure(TOP + POLICY + '[access]\ndeliver = ["alice"]')
    assert one.access.sessions == ("researcher",)
    assert one.access.deliver == ("alice",)


@pytest.mark.parametrize("entry", ["researcher", "r" * 52])
def test_sessions_may_repeat_the_requesters(configure, entry):
    """By name or id; and they may be fewer."""
    peer = f'[[peer]]\nname = "researcher"\nid = "{"r" * 52}"\n'
    text = TOP + POLICY + f'[access]\nsessions = ["{entry}"]\n' + peer
    assert configure(text).access.sessions == (entry,)
    none = configure(TOP + POLICY + "[access]\nsessions = []")
    assert none.access.sessions == ()


def test_sessions_must_not_contradict_the_requesters(configure):
    """Whom the policy does not name may not open sessions."""
    with pytest.raises(ConfigurationError) as caught:
        configure(TOP + POLICY + '[access]\nsessions = ["alice"]')
    assert caught.value.key == "sessions of [access]"
    assert '"alice" is not among the requesters' in caught.value.problem


# --- names ---


def test_names_become_ids(configure):
    """This worker's own, peers of the file, pinned ones; ids stay."""
    text = POLICY.replace('"researcher"', f'"researcher", "{"x" * 52}"')
    one = configure(TOP + text + PEERS)
    policy = resolve(one, ID["bob"], PINNED.get)
    assert policy.aggregators == (ID["hub"],)
    assert policy.contributors == (ID["bob"], ID["alice"], ID["carol"])
    assert policy.requesters == (ID["researcher"], "x" * 52)
    assert policy.quorum == one.policy.quorum


def test_an_open_policy_has_no_names(configure):
    """It is what it is."""
    one = configure(TOP + '[policy]\nkind = "UnsafeOpen"')
    assert resolve(one, ID["bob"], PINNED.get) is one.policy


@pytest.mark.parametrize(
    ("change", "clause", "problem"),
    [
        (('"carol"', '"caroll"'), "contributors", 'nobody is known as "caroll"'),
        (('"carol"', f'"{ID["hub"]}"'), "contributors", "is an aggregator too"),
        (('"carol"', f'"{ID["alice"]}"'), "contributors", "is listed twice"),
        (('["bob", "alice", "carol"]', '["bob", "alice"]'), "contributors", "3 owners"),
    ],
)
def test_a_name_that_misleads_is_refused(configure, change, clause, problem):
    """One that stands for nobody, or for somebody who is listed already."""
    assert change[0] in POLICY
    one = configure(TOP + POLICY.replace(*change) + PEERS)
    with pytest.raises(ConfigurationError) as caught:
        resolve(one, ID["bob"], PINNED.get)
    assert caught.value.key == f"{clause} of [policy]"
    assert problem in caught.value.problem


@pytest.mark.parametrize("first", ["carol", "other"])
def test_the_two_keys_of_one_peer_are_one_person(configure, first):
    """While a peer changes its key, both ids stand for it: listed twice it is refused.

    Beside one more owner it would be two of three, and alone in a difference.
    """
    former = "z" * 52
    known = {**PINNED, former: Known("carol", former)}
    other = f'[[peer]]\nname = "other"\nid = "{former}"\n'
    listed = f'"{first}", "{former if first == "carol" else "carol"}"'
    text = POLICY.replace('"alice", "carol"', listed)
    with pytest.raises(ConfigurationError, match="one person") as caught:
        resolve(configure(TOP + text + PEERS + other), ID["bob"], known.get)
    assert caught.value.key == "contributors of [policy]"
    text = POLICY.replace('["hub"]', f'["{former}"]')
    with pytest.raises(ConfigurationError, match="one person"):
        resolve(configure(TOP + text + PEERS), ID["bob"], known.get)
    # Of requesters nobody counts how many there are.
    text = POLICY.replace('"researcher"]', f'"researcher", "carol", "{former}"]')
    policy = resolve(configure(TOP + text + PEERS), ID["bob"], known.get)
    assert policy.requesters[1:] == (ID["carol"], former)


def test_an_aggregator_by_id_has_no_data(configure):
    """Also where the policy names it by id."""
    text = POLICY.replace('["hub"]', f'["{ID["bob"]}"]').replace('"bob", ', "")
    text = text.replace('["alice", "carol"]', '["alice", "carol", "researcher"]')
    one = configure(TOP + text + PEERS + DATA)
    with pytest.raises(ConfigurationError, match="is an aggregator by it"):
        resolve(one, ID["bob"], PINNED.get)


# --- rows ---


@pytest.mark.parametrize(("rows", "loads"), [(3, True), (4, False)])
def test_a_small_data_set_is_not_used(tmp_path, rows, loads):
    """With fewer rows than the policy asks for, the worker does not start."""
    (tmp_path / "d.csv").write_text("a\n1\n2\n3\n")
    declared = DatasetDeclaration(name="d", path=tmp_path / "d.csv", features=("a",))
    if loads:
        assert load_one(declared, rows).tensors["features"].shape == (3, 1)
        return
    with pytest.raises(DatasetError, match=r"has 3 rows, and minimum_rows of .* is 4"):
        load_one(declared, rows)


# --- words ---


def test_the_policy_is_explained_with_the_configuration(configure):
    """``--check`` says what leaves; warnings stay first."""
    lines = explain(configure(TOP + 'sandbox = "none"\n' + POLICY)).splitlines()
    assert lines[0].startswith("WARNING: sessions are not walled off")
    assert lines[1] == "What is computed here goes to hub, and to nobody else."
    assert "researcher may open sessions and ask for releases." in lines
    assert any(line.startswith("bob listens at") for line in lines)


def test_the_rows_that_are_used_are_counted(tmp_path):
    """Nineteen rows of which ten are used do not make a minimum of fifteen."""
    rows = "".join(f"{k}\n" for k in range(19))
    (tmp_path / "d.csv").write_text("a\n" + rows)
    declared = DatasetDeclaration(
        name="d",
        path=tmp_path / "d.csv",
        features=("a",),
        public=Public(rows="rounded"),
    )
    assert load_one(declared, 10, guarded=True).tensors["features"].shape == (10, 1)
    with pytest.raises(DatasetError, match="10 rows left by rounding"):
        load_one(declared, 15, guarded=True)


def test_the_page_for_owners_shows_policies_that_load(configure):
    """Each policy on it is one that a worker takes."""
    page = Path(__file__).parents[2] / "docs" / "policies.md"
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert isinstance(configure(TOP + block).policy, Quorum)
