"""A configuration in plain sentences, for its owner to read before starting.

Rule: what is dangerous comes first.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from obhut.guard import policy as policies

from .configuration import Limits, WorkerConfiguration
from .data.declaration import DatasetDeclaration
from .wording import enumerate_names


def explain(
    configuration: WorkerConfiguration, today: datetime.date | None = None
) -> str:
    """Return what the worker will do, one sentence a line.

    Args:
        configuration: the worker's.
        today: the present day in UTC, to tell whether its policy has expired.
    """
    one = configuration
    limits = one.limits
    said = policies.explain(one.policy, own=str(one.id), today=today)
    lines = [line for line in said if line.startswith("WARNING")]
    if one.sandbox == "none":
        lines.append(
            "WARNING: sessions are not walled off. A fault in PyTorch is a way to "
            "this machine and its network."
        )
    lines += [line for line in said if not line.startswith("WARNING")]
    where = []
    if one.listen is not None:
        where.append(f"listens at {one.listen}")
    if one.attach is not None:
        where.append(f"dials {one.attach} and is reached through it")
    lines.append(f"{one.id} {' and '.join(where)}.")
    if one.listen is None:
        lines.append("It opens no port.")
    lines.append(f"Its identity, peers and ledger are in {one.folder}.")
    lines.append(f"{_people(one.access.sessions)} may open sessions.")
    lines.append(f"{_people(one.access.deliver)} may deliver tensors into them.")
    if one.access.attach:
        lines.append(
            f"{_people(one.access.attach)} may attach. Whoever may do something here, "
            "and each of them, can reach those who are attached through it; what they "
            "say to each other can not be read here."
        )
    elsewhere = "without an address"
    if one.attach is not None:
        elsewhere = f"through {one.attach}"
    elif one.access.attach:
        elsewhere = "where it is attached"
    for peer in one.peers:
        at = f"at {peer.address}" if peer.address else elsewhere
        lines.append(f"It knows {peer.name} {at}, by the id {peer.id}.")
    lines.append(
        f"Up to {_count(limits.sessions, 'session')} of each requester, each with up "
        f"to {limits.memory} of memory and {_count(limits.threads, 'thread')} on "
        f"{one.device}; a session outlives its connection for "
        f"{_count(limits.session_seconds, 'second')}."
    )
    lines.extend(_quotas(limits))
    if not isinstance(one.policy, policies.Quorum) or (
        one.id not in one.policy.aggregators
    ):
        lines.append(
            f"Each requester may leave up to {limits.requester_state} on its disk "
            "between sessions: results that stay here. obhut state list shows them."
        )
    if not one.datasets:
        lines.append("It holds no data sets.")
    elif any(one.keep != "memory" for one in one.datasets):
        lines.append(
            f"Data sets that take more than {limits.memory}, or say so, are kept on "
            f"the disk of {one.folder}, in files without a name. What they hold stays "
            "there until it is overwritten."
        )
    guarded = isinstance(one.policy, policies.Quorum)
    lines.extend(_dataset(declaration, guarded) for declaration in one.datasets)
    return "\n".join(lines)


def _quotas(limits: Limits) -> Iterator[str]:
    """Yield what a requester, and all of them together, may use, and where."""
    more = ""
    if limits.requester_memory is not None:
        more = f", and {limits.requester_memory} of memory for all sessions"
    yield (
        "Each requester has "
        f"{_count(limits.requester_seconds, 'second')} of processor time in 24 hours"
        f"{more}; one message may take {_count(limits.batch_seconds, 'second')}. Who "
        f"has more than {_count(limits.requester_crashes, 'session')} crash in an hour "
        "opens no new one for a while."
    )
    more = "" if limits.all_memory is None else f", with {limits.all_memory} of memory"
    yield (
        f"All requesters together have up to {_count(limits.all_sessions, 'session')}"
        f"{more}."
    )
    if limits.spool is not None:
        yield (
            f"Large tensors that come wait on the disk of {limits.spool}, in files "
            "without a name. What they held stays there until it is overwritten."
        )


def _people(names: tuple[str, ...]) -> str:
    return enumerate_names(names) or "Nobody"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _dataset(one: DatasetDeclaration, guarded: bool) -> str:
    used = []
    for name, chosen in (("features", one.features), ("target", one.target)):
        if chosen == "*":
            used.append("as features every column but the target")
        elif isinstance(chosen, str):
            used.append(f"as {name} {chosen}")
        elif isinstance(chosen, dict):
            used.append(f"as tensors {enumerate_names(tuple(chosen))}")
        elif chosen:
            used.append(f"as {name} {enumerate_names(chosen)}")
    every = "every image" if one.kind == "images" else "every array"
    what = enumerate_names(used) or every
    known = ["its name", "its tags", "its description"]
    if one.public.names:
        known.append("the names of its columns")
    if one.public.classes:
        known.append("the texts of its classes")
    if one.public.units:
        known.append("the units of its columns")
    hidden = guarded and one.public.rows == "hidden"
    if hidden:
        known.append("the types and sizes of a row")
    elif one.public.types:
        known.append("their types")
    if one.public.rows != "hidden":
        known.append(f"the {one.public.rows} number of rows")
    missing = " Empty cells become NaN." if one.missing == "nan" else ""
    people = "Who may open a session"
    if one.requesters is not None:
        people = f"Nobody but {_people(one.requesters)} may use it, or"
    said = (
        f"Data set {one.name} is {one.path}; it takes {what}.{missing} {people} "
        f"is told {enumerate_names(known)}."
    )
    if hidden:
        said += (
            " How many rows there are is hidden: recorded programs go through them, "
            "and nobody holds a tensor of them."
        )
    return said
