"""The record of decisions: each entry holds the hash of the one before.

Rules:

- Every decision is an entry, either way, with what it was decided on: names,
  coefficients, digests of policies. Never a value.
- What left before in the same way is not said again: the entry has the number of the
  one that says it.
- An entry has one form in bytes; its hash covers all of it and the hash before.
- The first entry follows on the beginning: whose ledger it is, when and why it began,
  and a random text. So no other ledger's fits, and none that began twice is the same.
- The head, signed, says how many entries there are: what is cut off is missed. That
  the whole was not put back to an earlier state, with the head of that time, is for
  those to see who keep a later head: the mark beside the ledger (``host.mark``), and
  owners (``host.heads``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

import msgspec
from msgspec import UNSET, Struct, UnsetType

from . import policy as policies
from .policy import Policy
from .release import Atom, Decision, Release


class Term(Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A delivered tensor in a sum.

    Attributes:
        owner: who delivered it.
        key: which one it is.
        coefficient: its coefficient, such as ``1/3``.
    """

    owner: str
    key: str
    coefficient: str


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One decision.

    Attributes:
        number: from 1.
        time: when, in seconds since 1970.
        requester: who asked.
        kind: what was asked for: a ``sum``, a ``count``, a ``trimmed_mean:1``.
        terms: over what.
        policies: the digests of the policies that were obeyed, by whose they are.
        permits: whether it left.
        rule: the rule that refused it; ``all`` if none did.
        repeats: the number of an earlier entry that permits the same to the same
            requester, under the same policies; then terms and policies are there, and
            not here. Unset if there is none.
        made: digests of the computations that made the terms, in their order; one for
            all if they are alike. Unset if none is known.
        previous: the hash of the entry before.
        hash: this entry's, in hexadecimal.
    """

    number: int
    time: int
    requester: str
    kind: str
    terms: tuple[Term, ...]
    policies: dict[str, str]
    permits: bool
    rule: str
    previous: str
    repeats: int | UnsetType = UNSET
    made: tuple[str, ...] | UnsetType = UNSET
    hash: str = ""

    def release(self, known: Mapping[str, Policy]) -> Release:
        """Return what was asked for, of an entry that repeats none.

        Args:
            known: policies by digest, this entry's among them.
        """
        return Release(
            self.requester,
            {Atom(t.owner, t.key): Fraction(t.coefficient) for t in self.terms},
            {whose: known[digest] for whose, digest in self.policies.items()},
            self.kind,
            self._digests(),
        )

    def _digests(self) -> dict[Atom, bytes]:
        if self.made is UNSET:
            return {}
        made = self.made if len(self.made) != 1 else self.made * len(self.terms)
        return {
            Atom(term.owner, term.key): bytes.fromhex(one)
            for term, one in zip(self.terms, made, strict=True)
            if one
        }

    def decision(self) -> Decision:
        """Return what was decided."""
        return Decision(self.permits, self.rule, "")


class Beginning(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a ledger began.

    Attributes:
        ledger: whose it is.
        token: a random text.
        time: when, in seconds since 1970.
        reason: why it takes the place of another; empty if it is the first.
        entries: how many entries the other one had, as far as that is known.
    """

    ledger: str
    token: str
    time: int
    reason: str = ""
    entries: int | None = None


class Head(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a ledger ends.

    Attributes:
        ledger: whose it is.
        number: how many entries there are.
        hash: the last one's; if there is none, that of the beginning.
    """

    ledger: str
    number: int
    hash: str

    def signed_bytes(self) -> bytes:
        """Return what is signed: nothing else that anybody signs begins like it."""
        return b"obhut ledger head 1\0" + encode(self)


def start(beginning: Beginning) -> Head:
    """Return the head of a ledger that has no entries."""
    said = b"obhut ledger 2\0" + encode(beginning)
    return Head(beginning.ledger, 0, hashlib.sha256(said).hexdigest())


def follow(head: Head, release: Release, decision: Decision, time: int) -> Entry:
    """Return the entry of a decision.

    Args:
        head: where the ledger ends.
        release: what was asked for.
        decision: what was decided.
        time: the present, in seconds since 1970.
    """
    return placed(head, draft(release, decision, time))


def draft(release: Release, decision: Decision, time: int) -> Entry:
    """Return the entry of a decision, as it is wherever it will be ``placed``."""
    return Entry(
        number=0,
        time=time,
        requester=release.requester,
        kind=release.kind,
        terms=tuple(
            Term(atom.owner, atom.key, str(x))
            for atom, x in sorted(release.terms.items())
        ),
        policies={
            whose: policies.digest(one) for whose, one in release.policies.items()
        },
        permits=decision.permits,
        rule=decision.rule,
        previous="",
        made=_made(release),
    )


def _made(release: Release) -> tuple[str, ...] | UnsetType:
    """Return the digests of a release's terms, in short."""
    if not release.digests:
        return UNSET
    every = tuple(
        release.digests.get(atom, b"").hex() for atom in sorted(release.terms)
    )
    return every[:1] if len(set(every)) == 1 else every


def placed(head: Head, entry: Entry, repeats: int | None = None) -> Entry:
    """Return a drafted entry as the one that follows a head.

    Args:
        head: where the ledger ends.
        entry: what was drafted.
        repeats: the number of an entry with the same ``subject``, if there is one.
    """
    changed = msgspec.structs.replace(
        entry, number=head.number + 1, previous=head.hash, hash=""
    )
    if repeats is not None:
        changed = msgspec.structs.replace(
            changed, terms=(), policies={}, repeats=repeats, made=UNSET
        )
    return msgspec.structs.replace(changed, hash=_hash(changed))


def subject(entry: Entry) -> bytes:
    """Return what stands for all that an entry says, but where it is and when."""
    blank = msgspec.structs.replace(entry, number=0, time=0, previous="", hash="")
    return hashlib.sha256(b"obhut ledger subject 1\0" + encode(blank)).digest()


def advanced(head: Head, entry: Entry) -> Head:
    """Return the head after an entry."""
    return Head(head.ledger, entry.number, entry.hash)


def encode(one: Beginning | Entry | Head) -> bytes:
    """Return the one form of a beginning, an entry or a head in bytes."""
    return msgspec.json.encode(one, order="sorted")


def decode(data: bytes) -> Entry:
    """Return an entry.

    Raises:
        ValueError: if the bytes are not what ``encode`` returns for one.
    """
    entry = msgspec.json.decode(data, type=Entry)
    if encode(entry) != data:
        raise ValueError("an entry is written in another form than the canonical")
    return entry


def verified(
    beginning: Beginning, entries: Iterable[Entry], head: Head
) -> Iterator[Entry]:
    """Yield entries, as long as they are those that were written.

    Args:
        beginning: what the ledger says that it began with.
        entries: all of a ledger, in order.
        head: where it ends. Duty: the caller has checked its signature.

    Raises:
        ValueError: at the first that is missing, changed or out of place; and at the
            end, if there are fewer or more than the head says.
    """
    at = start(beginning)
    repeatable = bytearray(1)  # by number: whether it permits, in its own words
    for entry in entries:
        if entry.number != at.number + 1:
            raise ValueError(
                f"expected entry {at.number + 1:,}, and entry {entry.number:,} comes"
            )
        if entry.previous != at.hash:
            raise ValueError(f"entry {entry.number:,} does not follow the one before")
        if entry.hash != _hash(entry):
            raise ValueError(f"entry {entry.number:,} was changed")
        earlier = entry.repeats
        if earlier is not UNSET and (
            not 0 < earlier < entry.number
            or not repeatable[earlier]
            or not entry.permits
            or entry.terms
            or entry.policies
            or entry.made is not UNSET
        ):
            raise ValueError(f"entry {entry.number:,} repeats none that was permitted")
        repeatable.append(entry.permits and earlier is UNSET)
        at = advanced(at, entry)
        yield entry
    if at != head:
        raise ValueError(
            f"the signed head says that there are {head.number:,} entries, and there "
            f"are {at.number:,} that end otherwise"
        )


def _hash(entry: Entry) -> str:
    blank = msgspec.structs.replace(entry, hash="")
    return hashlib.sha256(b"obhut ledger entry 1\0" + encode(blank)).hexdigest()
