"""Runs attacks that may end their process, each in one of its own.

They are forked from a server that was started before there were threads, and has
PyTorch loaded.
"""

from __future__ import annotations

import faulthandler
import functools
import multiprocessing
import os
import pickle
import signal
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

from . import running
from .catalogue import ATTACKS
from .private_data import Values
from .stage import Evidence


def run(name: str, off: frozenset[str], world: Values) -> Evidence:
    """Run an attack once and return all that judges look at.

    Args:
        name: the attack's.
        off: the rules that are off.
        world: which private data there are.
    """
    context = _context()
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(writing, name, off, world))
    process.start()
    writing.close()
    try:
        sent = reading.recv_bytes()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        return Evidence(died=signal.Signals(-code).name if code < 0 else f"{code}")
    finally:
        reading.close()
    process.join()
    evidence: Evidence = pickle.loads(sent)
    return evidence


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _in_child(
    writing: Connection, name: str, off: frozenset[str], world: Values
) -> None:
    """Run an attack and send what came of it; what a crash prints goes nowhere."""
    faulthandler.disable()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    # Not send(): PyTorch would share tensors with a process that ends.
    writing.send_bytes(pickle.dumps(running.run(ATTACKS[name], off, world)))
