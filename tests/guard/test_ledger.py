"""The chain of entries: what is kept, and what can't be changed."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import pytest

from obhut.guard import ledger
from obhut.guard.policy import digest
from obhut.guard.release import Atom, Decision, Release

from .conftest import OWNERS, quorum

POLICY = quorum()


def release(number):
    """Return a request."""
    return Release(
        "me",
        {
            Atom("bob", f"s/{number}"): Fraction(1, 3),
            Atom("alice", "s/0"): Fraction(-2),
        },
        dict.fromkeys(OWNERS[:2], POLICY),
        "sum" if number % 2 else "count",
    )


def begun(whose="hub", **changes):
    """Return how somebody's ledger began."""
    before = ledger.Beginning(ledger=whose, token="t", time=1_800_000_000)
    return msgspec.structs.replace(before, **changes)


def verified(entries, head):
    """Return what is verified of a ledger that began so."""
    return list(ledger.verified(begun(), entries, head))


def written(count, whose="hub"):
    """Return the entries of so many decisions, and the head."""
    head = ledger.start(begun(whose))
    entries = []
    for number in range(1, count + 1):
        decision = Decision(number != 2, "quorum", "words")
        entry = ledger.follow(head, release(number), decision, 1_800_000_000 + number)
        head = ledger.advanced(head, entry)
        entries.append(entry)
    return entries, head


def test_an_entry_holds_what_was_decided_on():
    """Names, coefficients, digests, decision and rule; and gives them back."""
    entries, head = written(2)
    assert verified(entries, head) == entries
    entry = entries[1]
    assert (entry.number, entry.time, entry.kind) == (2, 1_800_000_002, "count")
    assert entry.terms == (
        ledger.Term("alice", "s/0", "-2"),
        ledger.Term("bob", "s/2", "1/3"),
    )
    assert entry.previous == entries[0].hash
    assert entry.release({digest(POLICY): POLICY}) == release(2)
    assert entry.decision() == Decision(False, "quorum", "")
    assert ledger.decode(ledger.encode(entry)) == entry


def test_an_empty_ledger_is_verified():
    """Its head says so, and whose it is."""
    assert not verified([], ledger.start(begun("hub")))
    assert ledger.start(begun("hub")).hash != ledger.start(begun("bub")).hash


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(
    "changes", [{"token": "u"}, {"time": 1}, {"reason": "lost"}, {"entries": 3}]
)
def test_a_ledger_has_one_beginning(changes, count):
    """Nothing of it can be changed later, with or without entries."""
    entries, head = written(count)
    with pytest.raises(ValueError, match=r"does not follow|end otherwise"):
        list(ledger.verified(begun(**changes), entries, head))


def test_every_part_of_a_beginning_is_tried():
    """No field of it is left out of the hash of what follows."""
    fields = {"ledger", "token", "time", "reason", "entries"}
    assert set(ledger.Beginning.__struct_fields__) == fields


CHANGES = {
    "number": 7,
    "time": 5,
    "requester": "you",
    "kind": "trimmed_mean:1",
    "terms": (),
    "policies": {},
    "permits": False,  # entry 2, which is, is not tried
    "rule": "owners",
    "previous": "0" * 64,
    "repeats": 1,
    "made": ("00" * 32,),
    "hash": "0" * 64,
}


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_any_change_is_seen(field, place):
    """Of any field of any entry, with the hash left or made to fit."""
    entries, head = written(4)
    before, entry, after = entries[:place], entries[place], entries[place + 1 :]
    changed = msgspec.structs.replace(entry, **{field: CHANGES[field]})
    with pytest.raises(ValueError, match=r"entry|entries"):
        verified([*before, changed, *after], head)
    if field != "hash":
        fitting = msgspec.structs.replace(changed, hash=ledger._hash(changed))
        with pytest.raises(ValueError, match=r"entry|entries"):
            verified([*before, fitting, *after], head)


def test_every_field_is_tried():
    """No field of an entry is left out of the hash."""
    assert set(CHANGES) == set(ledger.Entry.__struct_fields__)


def repeating(place, of):
    """Return four entries, of which one says that it repeats another, and the head."""
    head, entries = ledger.start(begun()), []
    for number in range(1, 5):
        draft = ledger.draft(release(number), Decision(number != 2, "all", ""), 1)
        entry = ledger.placed(head, draft, of if number == place else None)
        head = ledger.advanced(head, entry)
        entries.append(entry)
    return entries, head


def test_a_repeat_refers_to_what_was_permitted():
    """It holds neither terms nor policies, however many there are."""
    entries, head = repeating(4, 3)
    assert verified(entries, head) == entries
    assert (entries[3].terms, entries[3].policies, entries[3].repeats) == ((), {}, 3)
    assert ledger.decode(ledger.encode(entries[3])) == entries[3]


@pytest.mark.parametrize(
    ("place", "of"), [(4, 2), (4, 4), (4, 5), (4, 0), (4, -1), (2, 1)]
)
def test_a_repeat_of_nothing_is_seen(place, of):
    """Not of a refusal, of itself, of what comes later or is not there; nor by one."""
    with pytest.raises(ValueError, match="repeats none that was permitted"):
        verified(*repeating(place, of))


def test_a_repeat_of_a_repeat_is_seen():
    """What was permitted is one step away."""
    entries, head = repeating(4, 3)
    draft = ledger.draft(release(4), Decision(True, "all", ""), 1)
    entry = ledger.placed(head, draft, 4)
    with pytest.raises(ValueError, match="repeats none that was permitted"):
        verified([*entries, entry], ledger.advanced(head, entry))


@pytest.mark.parametrize("field", CHANGES)
def test_what_an_entry_is_about_is_all_but_place_and_time(field):
    """Any other difference makes another subject."""
    entries, _ = written(3)
    changed = msgspec.structs.replace(entries[0], **{field: CHANGES[field]})
    same = ledger.subject(changed) == ledger.subject(entries[0])
    assert same is (field in {"number", "time", "previous", "hash"})


def test_an_entry_without_a_repeat_is_written_as_it_always_was():
    """So that ledgers from before there were repeats are read."""
    entries, _ = written(1)
    assert b"repeats" not in ledger.encode(entries[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entries: entries[:-1], "4 entries, and there are 3"),
        (lambda entries: entries[1:], "expected entry 1, and entry 2"),
        (lambda entries: [*entries[:2], *entries[3:]], "expected entry 3"),
        (lambda entries: [entries[1], entries[0], *entries[2:]], "expected entry 1"),
        (lambda entries: [*entries, entries[-1]], "expected entry 5"),
        (lambda entries: [], "there are 0"),
        (lambda entries: written(4, "bub")[0], "does not follow"),
        (lambda entries: [*entries[:3], written(4, "bub")[0][3]], "does not follow"),
    ],
)
def test_what_is_cut_or_reordered_is_seen(change, words):
    """At any place, also somebody else's entries."""
    entries, head = written(4)
    with pytest.raises(ValueError, match=words):
        verified(change(entries), head)


def test_what_is_signed_is_nothing_else():
    """The head's bytes begin with what they are, and name all of it."""
    _, head = written(1)
    data = head.signed_bytes()
    assert data.startswith(b"obhut ledger head 1\0")
    others = [
        msgspec.structs.replace(head, ledger="bub"),
        msgspec.structs.replace(head, number=2),
        msgspec.structs.replace(head, hash="0"),
    ]
    assert len({data, *(other.signed_bytes() for other in others)}) == 4


@pytest.mark.parametrize(
    "change", [lambda d: d + b" ", lambda d: d[:-1], lambda d: b'{"x":1,' + d[1:]]
)
def test_an_entry_has_one_form(change):
    """Other bytes are none."""
    entries, _ = written(1)
    with pytest.raises(ValueError):  # noqa: PT011 # msgspec's words are its own
        ledger.decode(change(ledger.encode(entries[0])))
