"""What a start would refuse, found out without one.

Rules:

- Nothing is made or changed: no ledger, no identity, no process but a loader's.
- It looks with the code that a start uses, so that both say the same.
- It loads no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from obhut.errors import ConfigurationError, PeerNotFoundError
from obhut.guard.policy import Quorum
from obhut.host import files, ledger, mark
from obhut.host.configuration import WorkerConfiguration
from obhut.host.data import datasets, room
from obhut.host.data.datasets import Dataset
from obhut.host.heads import FOLDER, Heads
from obhut.identity.identity import KEY, Identity
from obhut.identity.peers import PeerBook
from obhut.transports.pipe.loading import loading

from .guarding import open_ledger, resolve


def check(
    configuration: WorkerConfiguration,
    loaded: Callable[[Dataset], None] = lambda dataset: None,
) -> Iterator[str]:
    """Yield what its owner should know of a start, one sentence each.

    Whether the port is free and the walls stand is not looked at: a worker that serves
    may hold them. A ledger is read as it is now, also while it serves.

    Leak: the sentences tell numbers of rows, and are the owner's alone.

    Args:
        configuration: what its owner decided.
        loaded: is handed each data set, when it has been read.

    Raises:
        ObhutError: if a worker would not start with this configuration.
    """
    check_device(configuration)
    check_folders(configuration)
    folder = Path(configuration.folder)
    if (folder / KEY).exists():
        identity, peers = Identity.load(folder), PeerBook.of(folder)
        check_peers(configuration, peers)
        resolved = resolve(configuration, identity, peers)
        if isinstance(resolved, Quorum) and identity.id in resolved.aggregators:
            check_ledger(folder, identity)
        elif isinstance(resolved, Quorum):
            check_heads(folder, resolved)
    else:
        yield (
            f"There is no identity in {folder} yet, so that names were not looked up; "
            f"make one with: obhut init --folder {folder}"
        )
    policy = configuration.policy
    guarded = isinstance(policy, Quorum)
    for declaration in configuration.datasets:
        # One at a time: all of them together may be large.
        least = policy.minimum_rows if isinstance(policy, Quorum) else 0
        found = datasets.load_each(
            declaration,
            least,
            guarded,
            space=configuration.space,
            run=loading(configuration),
        )
        for dataset in found:
            loaded(dataset)
            yield from _left_out(dataset)


def check_device(configuration: WorkerConfiguration) -> None:
    """Refuse a device on which nothing is served.

    Raises:
        ConfigurationError: naming it.
    """
    if str(configuration.device) != "cpu":
        raise ConfigurationError(
            str(configuration.folder),
            "device",
            f"{configuration.device} is not served yet",
            'write device = "cpu"',
        )


def check_reload(before: WorkerConfiguration, after: WorkerConfiguration) -> None:
    """Refuse a change that holds for the next start only.

    Raises:
        ConfigurationError: naming what changed besides the peers, the data sets, and
            who may open sessions and deliver.
    """
    for key in before.__struct_fields__:
        if key not in ("access", "peers", "datasets") and getattr(
            before, key
        ) != getattr(after, key):
            raise not_reloaded(after, _WORDS.get(key, key))
    if before.access.attach != after.access.attach:
        raise not_reloaded(after, "attach of [access]")


def not_reloaded(configuration: WorkerConfiguration, key: str) -> ConfigurationError:
    """Return the error for a change that is not taken over."""
    return ConfigurationError(
        str(configuration.folder),
        key,
        "changed, which holds from the next start on; nothing was taken over",
        "start the worker again, or change [[dataset]], [[peer]], and sessions and "
        "deliver of [access] only",
    )


_WORDS = {"policy": "[policy]", "limits": "[limits]"}
"""What an owner wrote, by the configuration's attribute."""


def check_folders(configuration: WorkerConfiguration) -> None:
    """Refuse folders into which others could put files, and a ledger they could change.

    The files in them are looked at by who reads them.

    Raises:
        UnsafeFileError: naming it.
    """
    folder = Path(configuration.folder)
    paths = (
        configuration.limits.spool,
        folder / room.FOLDER,
        folder / ledger.FILE,
        folder / mark.FILE,
    )
    for path in (folder, *paths):
        if path is not None:
            with contextlib.suppress(FileNotFoundError):  # who needs it says so
                files.check(path)


def check_ledger(folder: Path, identity: Identity) -> None:
    """Refuse a ledger that is not the last one; before the first start there is none.

    Raises:
        LedgerError: saying what is wrong, and what to do.
        UnsafeFileError: if others could read or change it.
    """
    if any((folder / name).exists() for name in (ledger.FILE, mark.FILE)):
        open_ledger(folder, identity, reading=True).close()


def check_heads(folder: Path, policy: Quorum) -> Heads:
    """Return what an owner saw of its aggregators' records, if it can be read.

    Args:
        folder: the owner's.
        policy: its policy, with ids in place of names.

    Raises:
        LedgerError: if a file is not what was written.
        UnsafeFileError: if others could change it.
    """
    heads = Heads(folder / FOLDER)
    for aggregator in policy.aggregators:
        heads.read(aggregator)
    return heads


def check_peers(configuration: WorkerConfiguration, pinned: PeerBook) -> None:
    """Refuse a configuration in which a name would stand for two keys.

    Raises:
        ConfigurationError: naming the peer.
    """
    for peer in configuration.peers:
        try:
            known = pinned.find(str(peer.name))
        except PeerNotFoundError:
            continue
        former = pinned.former.get(known.name)
        if str(peer.id) not in (known.id, former and former.id):
            raise ConfigurationError(
                str(configuration.folder),
                f"id of [[peer]] {peer.name}",
                f"another key is pinned under that name: {known.id}",
                "write that id if the peer changed to a new key, or remove the "
                "pinned one: obhut keys remove",
            )


def _left_out(dataset: Dataset) -> Iterator[str]:
    """Yield how many rows are not used because their number is told rounded."""
    if dataset.left_out:
        used = dataset.public.rows or 0
        yield (
            f"Of data set {dataset.name}, {used:,} of {used + dataset.left_out:,} rows "
            f'are used: rows = "rounded" leaves out the last {dataset.left_out:,}.'
        )
