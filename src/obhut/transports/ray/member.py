"""The driver's hold on one actor: whether it is there, and how long it has been silent.

::

    member = Member.begun(source, device, gpus)      # at once; it starts meanwhile
    member.listen()                                  # what came, between two waits
    if member.lost: member.end()                     # and begin another one

Rules:

- Nothing waits for an actor's answer but by ``ray.wait``, for a while.
- An actor is lost when Ray says so, or when it has answered nothing for the deadline:
  Ray takes 65 s to notice that a node stands still.
- Silence is counted while somebody listens, so that a driver that was stopped takes
  nobody for lost.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .actor import GROUPS, NAMESPACE, Actor, Pulse

PULSE_SECONDS = 1.0
"""How often an actor is asked how it goes."""

START_SECONDS = 90.0
"""How long an actor may take to load torch and to get its data."""


_OPTIONS: dict[str, Any] = {"concurrency_groups": GROUPS}
_REMOTE: Any = ray.remote(**_OPTIONS)(Actor)
# Any: Ray makes the class, and knows its options.


class Member:
    """One actor of a crew, or none any more.

    Args:
        handle: Ray's handle of it. Any: Ray makes its class.
        name: its own.
        deadline: seconds of silence after which it is lost.
        node: where it has to be; None for anywhere.

    Attributes:
        handle, name: as given.
        pulse: what it said last; None before it is ready.
        lost: why it is lost; empty if it is not.
        silent: whether that is because it said nothing, as if its node stood still.
        answers: how often it has said how it goes.
    """

    def __init__(
        self, handle: Any, name: str, deadline: float, node: str | None = None
    ) -> None:
        self.handle = handle
        self.name = name
        self.pulse: Pulse | None = None
        self.lost = ""
        self.silent = False
        self._wanted = node or ""
        self._deadline = deadline
        self._silent = 0.0
        self._heard = self._next = time.monotonic()
        self.answers = 0
        self._lock = threading.Lock()
        self._asked: ray.ObjectRef[Any] | None = handle.ping.remote()

    @classmethod
    def begun(
        cls,
        source: ray.ObjectRef[Any],
        *,
        device: str,
        cpus: float,
        gpus: float,
        deadline: float,
        node: str | None = None,
    ) -> Member:
        """Begin an actor.

        Args:
            source: the clients' data, in the object store.
            device: where it computes.
            cpus: how many processors of a node are its own; 0 if others may have them.
            gpus: its share of devices.
            deadline: seconds of silence after which it is lost.
            node: where it has to be, by Ray's id; None for anywhere.
        """
        name = f"obhut-{secrets.token_hex(8)}"
        options: dict[str, Any] = {}  # Any: Ray's own
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                node, soft=False
            )
        made = _REMOTE.options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            **options,
        )
        return cls(made.remote(name, source, device), name, deadline, node)

    @property
    def node(self) -> str:
        """Where it is, or shall be, by Ray's id of the node; empty if that is open."""
        return self.pulse.node if self.pulse is not None else self._wanted

    @property
    def ready(self) -> bool:
        """Whether it has said that it is there."""
        return self.pulse is not None and not self.lost

    @property
    def asked(self) -> list[ray.ObjectRef[Any]]:
        """The question that is under way, to be waited for."""
        return [] if self._asked is None else [self._asked]

    def begin(self) -> None:
        """Ask how it goes; what was before is no silence."""
        with self._lock:
            self._silent, self._heard = 0.0, time.monotonic()
            if self._asked is None and not self.lost:
                self._asked = self.handle.ping.remote()

    def listen(self) -> None:
        """Take in what it says, and ask again when it is time. It does not wait."""
        with self._lock:
            if not self.lost:
                now = time.monotonic()
                # A driver that was stopped for long has heard nothing from anybody.
                self._silent += min(now - self._heard, 2 * PULSE_SECONDS)
                self._heard = now
                self._listen(now)

    def _listen(self, now: float) -> None:
        if self._asked is None:
            self._silent = 0.0
            if now >= self._next:
                self._asked, self._next = self.handle.ping.remote(), now + PULSE_SECONDS
            return
        came, _ = ray.wait([self._asked], timeout=0)
        if came:
            self._asked, self._silent = None, 0.0
            try:
                self.pulse = ray.get(came[0], timeout=PULSE_SECONDS)
                self.answers += 1
            except (ray.exceptions.RayError, TimeoutError) as error:
                self.lost = reason(error)
            return
        allowed = self._deadline
        if self.pulse is None:
            allowed = max(START_SECONDS, allowed)
        if self._silent > allowed:
            self.silent = True
            self.lost = f"it has not answered for {allowed:.0f} s"

    def end(self) -> None:
        """Let it go, whether it hears that or not."""
        self.lost = self.lost or "it was ended"
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self.handle, no_restart=True)
        if self.silent and self.pulse is not None and self.pulse.node == here():
            # It hears nothing, and keeps its place in Ray's books.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pulse.process, signal.SIGKILL)


def here() -> str:
    """Return Ray's id of the node that the driver is on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def reason(error: Exception) -> str:
    """Return why an actor is lost, in words."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its machine had no memory left"
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"it could not start: {error.cause!r}"
    if "OOM" in str(error) or "memory pressure" in str(error):
        return "its process was killed, as it is where the machine has no memory left"
    return "its process ended"
