"""What was asked of owners, kept to say where they were asked for something else.

::

    asked = Computations()
    asked.note(request, site)                    # of each request
    first_difference({"alice": asked, "bob": other})

An aggregator that compares what owners computed can name who computed something else,
and nothing more: it knows digests. The program that asked knows the rest.

Rules:

- Only the last requests are kept, and of each what decides a computation: no ids and no
  bytes.
- It is for the one who reads an error; nothing is decided by it.
"""

from __future__ import annotations

import collections
import difflib
import itertools
from collections.abc import Mapping

from obhut.protocol.messages import (
    AnyRequest,
    Backward,
    Differentiate,
    Load,
    Move,
    Put,
    RecallState,
    Ref,
    Run,
    RunProgram,
    SetRequiresGrad,
    Value,
    WriteData,
    WriteGrad,
)

from .call_site import CallSite

_KEPT = 4_096
_COMPARED = 512
"""So many requests, the last ones, are held against each other."""


class Computations:
    """The last requests of a session.

    Attributes:
        went: the sessions into which the owner was asked to deliver, by name.
    """

    def __init__(self) -> None:
        self.went: set[str] = set()
        self._asked: collections.deque[tuple[AnyRequest, CallSite | None]] = (
            collections.deque(maxlen=_KEPT)
        )

    def note(self, request: AnyRequest, site: CallSite | None) -> None:
        """Take in that something was asked for."""
        self._asked.append((request, site))
        if isinstance(request, Move):
            self.went.add(request.session)

    def said(self) -> list[tuple[str, CallSite | None]]:
        """Return what was computed, in words, with the user's lines."""
        told = ((_words(request), site) for request, site in self._asked)
        return [(words, site) for words, site in told if words][-_COMPARED:]


def first_difference(asked: Mapping[str, Computations]) -> str:
    """Return where owners were first asked for something else; empty if nowhere.

    Args:
        asked: by owner, what was asked of it.
    """
    said = {owner: one.said() for owner, one in asked.items()}
    for (one, ours), (other, theirs) in itertools.pairwise(said.items()):
        mine, others = [words for words, _ in ours], [words for words, _ in theirs]
        matcher = difflib.SequenceMatcher(None, mine, others, autojunk=False)
        for tag, start, _, began, _ in matcher.get_opcodes():
            if tag != "equal":
                return (
                    f"first asked for something else: of {one} {_at(ours, start)}, of "
                    f"{other} {_at(theirs, began)}"
                )
    return ""


def _at(said: list[tuple[str, CallSite | None]], place: int) -> str:
    if place >= len(said):
        return "nothing more"
    words, site = said[place]
    return f"{words} ({site})" if site else words


def _words(request: AnyRequest) -> str:
    """Return what a request computes; empty if nothing."""
    match request:
        case Run(op=op, args=args, kwargs=kwargs, seed=seed):
            given = [_value(one) for one in args]
            given += [f"{name}={_value(one)}" for name, one in kwargs.items()]
            seeded = "" if seed is None else f" seed {seed}"
            return f"{op}({', '.join(given)}){seeded}"
        case RunProgram(program=program, seed=seed):
            options = [one.options for one in request.optimizers]
            return (
                f"program {program[:16]}(batch_size={request.batch_size}, "
                f"epochs={request.epochs}, shuffle={request.shuffle}, "
                f"drop_last={request.drop_last}, seed={seed}, {options})"
            )
        case Put(data=data):
            return f"send({data.dtype}{list(data.shape)})"
        case Load(dataset=dataset, part=part, columns=columns):
            return f"load({', '.join((dataset, part, *columns))})"
        case RecallState(name=name, version=version):
            return f"recall({name!r}, {version})"
        case SetRequiresGrad(value=value):
            return f"requires_grad_({value})"
        case Backward() | Differentiate() | WriteGrad() | WriteData():
            return type(request).__name__.lower()
        case _:
            return ""


def _value(value: Value) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return "x" if isinstance(value, Ref) else str(value)
