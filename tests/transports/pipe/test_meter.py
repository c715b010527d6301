"""How much processor time a child has used, whoever it was used for."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from obhut.errors import SessionLostError
from obhut.transports.pipe import meter
from obhut.transports.pipe.meter import Meter
from obhut.transports.pipe.parent import Child

Start = Callable[[str], Child]
Ask = Callable[..., str]


def test_this_system_measures() -> None:
    """Else no worker starts here."""
    assert meter.available()


def test_what_a_child_computes_is_measured(start: Start, ask: Ask) -> None:
    """Seconds of arithmetic are seconds; waiting costs none."""
    child = start("walled")
    ask(child, "burn", "0.3")
    burnt = child.used()
    assert 0.3 <= burnt < 3
    ask(child, "echo", "x")
    assert child.used() - burnt < 0.1


def test_what_a_child_computes_unasked_is_measured(start: Start, ask: Ask) -> None:
    """A thread that goes on after the answer is seen from outside."""
    child = start("walled")
    ask(child, "burn_on")
    before = child.used()
    while child.used() < before + 0.1:
        pass


def test_the_last_reading_stays(start: Start, ask: Ask) -> None:
    """After its end, by whatever cause, a child has used what it has used."""
    for source, probe in (("walled", ""), ("walled", "segfault")):
        child = start(source)
        ask(child, "burn", "0.2")
        if probe:
            with pytest.raises(SessionLostError):
                ask(child, probe)
        else:
            child.close()
        last = child.used()
        assert last >= 0.2
        assert child.used() == last


def test_a_message_that_never_ends_is_measured_to_its_end(
    start: Start, ask: Ask
) -> None:
    """One that is ended in the middle has used what it took until then."""
    child = start("walled")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, child, "burn", "1000")
        while child.used() < 0.2:
            pass
        child.close()
        with pytest.raises(SessionLostError):
            waiting.result(15)
    assert child.used() >= 0.2


def test_a_process_that_is_not_there_has_used_nothing() -> None:
    """A number that is nobody's is no error."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    one = Meter(pid)
    assert one.read() == 0.0
    one.stop()
    assert one.read() == 0.0
