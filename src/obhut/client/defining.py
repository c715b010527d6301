"""Programs' texts, which a worker gets once in a session.

::

    define(session, digest, text)                # sent with the next requests
    define(session, digest, text)                # it is known there: nothing is
"""

from __future__ import annotations

import weakref

from obhut.protocol.messages import Define

from .session import Session

_defined: weakref.WeakKeyDictionary[Session, set[str]] = weakref.WeakKeyDictionary()


def define(session: Session, digest: str, text: str) -> None:
    """Let a worker have a program's text, once.

    Args:
        session: with the worker.
        digest: of the text.
        text: the program.
    """
    known = _defined.setdefault(session, set())
    if digest not in known:
        session.post(Define(text), carried=len(text))
        known.add(digest)
