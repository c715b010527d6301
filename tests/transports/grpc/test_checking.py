"""What is found out about a start without one, and how an aggregator begins."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from obhut.cli.main import app
from obhut.errors import (
    ConfigurationError,
    DatasetError,
    LedgerError,
    ObhutError,
    UnsafeFileError,
)
from obhut.guard.release import Decision, Release
from obhut.host import configuration as configurations
from obhut.host.configuration import WorkerConfiguration
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.grpc.checking import check
from obhut.transports.grpc.guarding import guard, open_ledger
from obhut.transports.serving import Served

PEOPLE = ("bob", "alice", "carol", "aggregator", "researcher")

HEAD = """\
id = "{own}"
listen = "127.0.0.1:0"
{more}
[policy]
kind = "Quorum"
aggregators = ["aggregator"]
contributors = ["bob", "alice", "carol"]
requesters = ["researcher"]
minimum_rows = 50
"""

DATA = """
[[dataset]]
name = "d"
path = "d.csv"
features = ["a"]
public = { rows = "rounded" }
"""


@pytest.fixture
def people() -> dict[str, Identity]:
    """Everybody's identity, by name."""
    return {name: Identity.create() for name in PEOPLE}


def settle(
    folder: Path,
    people: dict[str, Identity],
    own: str,
    *,
    more: str = "",
    data: str = "",
    rows: int = 58,
) -> WorkerConfiguration:
    """Make a worker's folder; return its configuration."""
    people[own].save(folder)
    book = PeerBook(folder / "peers")
    for name in sorted(people.keys() - {own}):
        book.add(name, people[name].certificate)
    (folder / "d.csv").write_text("a\n" + "1\n" * rows)
    file = folder / "worker.toml"
    file.write_text(HEAD.format(own=own, more=more) + data)
    return configurations.load(file)


def content(folder: Path) -> set[str]:
    """Return what is in a folder."""
    return {str(path) for path in folder.rglob("*")}


def test_rows_that_rounding_leaves_out_are_said(
    tmp_path: Path, people: dict[str, Identity]
) -> None:
    """Of 58 rows 50 are used, and of 60 all; that is the owner's to know."""
    configuration = settle(tmp_path / "bob", people, "bob", data=DATA)
    (said,) = check(configuration)
    assert said == (
        'Of data set d, 50 of 58 rows are used: rows = "rounded" leaves out the last 8.'
    )
    (tmp_path / "bob" / "d.csv").write_text("a\n" + "1\n" * 60)
    assert list(check(configuration)) == []


def test_a_check_runs_loaders(tmp_path: Path, people: dict[str, Identity]) -> None:
    """As a start does, behind walls that keep the worker's key; nothing is left."""
    data = DATA.replace('path = "d.csv"\nfeatures = ["a"]', 'loader = "clinic:load"')
    folder = tmp_path / "bob"
    configuration = settle(folder, people, "bob", data=data)
    module = folder / "clinic.py"
    module.write_text(
        "def load():\n"
        "    try:\n"
        "        open('identity.key')\n"
        "    except PermissionError:\n"
        "        yield from [[[1.0]] * 29] * 2\n"
    )
    before = content(tmp_path)
    (said,) = check(configuration)
    assert "50 of 58 rows are used" in said
    assert content(tmp_path) == before
    module.write_text("def load():\n    return 1 / 0\n")
    with pytest.raises(DatasetError, match=r"ZeroDivisionError in clinic.py, line 2"):
        list(check(configuration))


@pytest.mark.parametrize(
    ("own", "old", "new", "words"),
    [
        ("bob", '"carol"]', '"carl"]', 'nobody is known as "carl"'),
        ("bob", "minimum_rows = 50", "minimum_rows = 55", "minimum_rows of"),
        ("bob", "minimum_rows = 50", "minimum_rows = 59", "has 58 rows, and"),
        ("bob", '["a"]', '["b"]', "b"),
        ("bob", '"d.csv"', '"e.csv"', "there is no such file"),
        ("bob", "[policy]", 'device = "cuda"\n[policy]', "cuda is not served yet"),
        (
            "bob",
            "[policy]",
            f'[[peer]]\nname = "alice"\nid = "{"a" * 52}"\n[policy]',
            "another key is pinned under that name",
        ),
        ("aggregator", '"carol"]', '"carl"]', 'nobody is known as "carl"'),
    ],
)
def test_what_a_start_refuses_is_found_by_a_check(
    tmp_path: Path,
    people: dict[str, Identity],
    own: str,
    old: str,
    new: str,
    words: str,
) -> None:
    """Both say the same, and the check leaves everything as it was."""
    settle(tmp_path / own, people, own, data=DATA if own == "bob" else "")
    file = tmp_path / own / "worker.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    configuration = configurations.load(file)
    before = content(tmp_path)
    with pytest.raises(ObhutError, match=re.escape(words)) as found:
        list(check(configuration))
    assert content(tmp_path) == before
    with pytest.raises(ObhutError) as refused:
        Served(configuration)
    assert str(found.value) == str(refused.value)


def test_a_check_makes_no_ledger_and_disturbs_none(
    tmp_path: Path, people: dict[str, Identity]
) -> None:
    """An aggregator is checked before its first start, and while it serves."""
    configuration = settle(tmp_path / "aggregator", people, "aggregator")
    before = content(tmp_path)
    assert list(check(configuration)) == []
    assert content(tmp_path) == before
    ledger = open_ledger(tmp_path / "aggregator", people["aggregator"])
    try:
        assert list(check(configuration)) == []
        ledger.append(Release("r", {}, {}), Decision(False, "quorum", ""), 1)
    finally:
        ledger.close()


def emptied(folder: Path) -> None:
    """Leave an empty file in a ledger's place."""
    (folder / "ledger.sqlite").write_bytes(b"")


def put_back(folder: Path) -> None:
    """Put a copy in a ledger's place that was made before it had entries."""
    shutil.copy(folder.with_name("earlier"), folder / "ledger.sqlite")


def removed(folder: Path) -> None:
    """Remove a ledger."""
    (folder / "ledger.sqlite").unlink()


def bugged(folder: Path) -> None:
    """Add a trigger that forgets."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as database:
        database.execute(
            "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END"
        )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (emptied, "it is empty, and ledger.mark says that it had 1 entries"),
        (removed, "it is missing, and ledger.mark says that it had 1 entries"),
        (put_back, "it ends at entry 0, and ledger.mark says that it had 1 entries"),
        (bugged, "trigger t"),
    ],
)
def test_an_aggregator_begins_once(
    tmp_path: Path,
    people: dict[str, Identity],
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    words: str,
) -> None:
    """A ledger that is not the last one keeps it from starting, but for a reason.

    A check finds the same and changes nothing; the reason is said at each start.
    """
    folder, identity = tmp_path / "aggregator", people["aggregator"]
    configuration = settle(folder, people, "aggregator")
    open_ledger(folder, identity).close()
    shutil.copy(folder / "ledger.sqlite", tmp_path / "earlier")
    with contextlib.closing(open_ledger(folder, identity)) as ledger:
        ledger.append(Release("r", {}, {}), Decision(False, "quorum", ""), 1)
    assert list(check(configuration)) == []
    spoil(folder)
    before = content(tmp_path)
    with pytest.raises(LedgerError, match=words) as found:
        list(check(configuration))
    assert content(tmp_path) == before
    with pytest.raises(LedgerError, match=words) as refused:
        Served(configuration)
    assert str(found.value) == str(refused.value)
    peers = PeerBook(folder / "peers")
    guard(configuration, identity, peers, print, "all agreed").close()
    guard(configuration, identity, peers, print).close()
    said = [one.getMessage() for one in caplog.records if "anew" in one.getMessage()]
    assert len(said) == 2
    for line in said:
        assert line.startswith("aggregator: the record of releases was begun anew at 2")
        assert "all agreed; what left before, by the one of 1 entries" in line
    with pytest.raises(LedgerError, match="it is whole"):
        guard(configuration, identity, peers, print, "all agreed")
    assert list(check(configuration)) == []


def test_an_owner_who_can_not_read_what_it_saw_is_told(
    tmp_path: Path, people: dict[str, Identity]
) -> None:
    """By a check and by a start: it is not taken for nothing."""
    configuration = settle(tmp_path / "bob", people, "bob")
    seen = tmp_path / "bob" / "heads" / f"{people['aggregator'].id}.json"
    seen.parent.mkdir(mode=0o700)
    seen.write_text("{}")
    with pytest.raises(LedgerError, match="can not be read") as found:
        list(check(configuration))
    assert str(seen) in str(found.value)
    with pytest.raises(LedgerError) as refused:
        Served(configuration)
    assert str(found.value) == str(refused.value)


def test_only_an_aggregator_begins_anew(
    tmp_path: Path, people: dict[str, Identity]
) -> None:
    """An owner has no ledger, and makes none by it."""
    configuration = settle(tmp_path / "bob", people, "bob")
    before = content(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no aggregator .* keeps no ledger"):
        Served(configuration, begin_anew="all agreed")
    assert content(tmp_path) == before


def test_before_there_is_an_identity_the_data_is_checked(
    tmp_path: Path, people: dict[str, Identity]
) -> None:
    """Names wait for ``obhut init``; a key that others could read is refused."""
    configuration = settle(tmp_path / "bob", people, "bob", data=DATA)
    key = tmp_path / "bob" / "identity.key"
    os.chmod(key, 0o644)
    with pytest.raises(ObhutError, match=r"identity\.key"):
        list(check(configuration))
    key.unlink()
    said = list(check(configuration))
    assert "names were not looked up" in said[0]
    assert "50 of 58 rows" in said[1]


def test_an_empty_record_is_a_warning(
    tmp_path: Path, people: dict[str, Identity], caplog: pytest.LogCaptureFixture
) -> None:
    """An aggregator that begins anew says so; one with a record does not."""
    configuration = settle(tmp_path / "aggregator", people, "aggregator")
    identity, peers = people["aggregator"], PeerBook(tmp_path / "aggregator" / "peers")
    begun = guard(configuration, identity, peers, lambda _: None)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "aggregator begins an empty record of releases" in record.getMessage()
    assert begun.ledger is not None
    begun.ledger.append(Release("r", {}, {}), Decision(False, "quorum", ""), 1)
    begun.close()
    caplog.clear()
    guard(configuration, identity, peers, lambda _: None).close()
    assert not caplog.records


def test_an_owner_warns_of_no_record(
    tmp_path: Path, people: dict[str, Identity], caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps none, so that none is missing."""
    configuration = settle(tmp_path / "bob", people, "bob")
    peers = PeerBook(tmp_path / "bob" / "peers")
    guard(configuration, people["bob"], peers, lambda _: None).close()
    assert not caplog.records


def test_the_configurations_of_the_page_start(
    tmp_path: Path, people: dict[str, Identity]
) -> None:
    """The complete files in ``docs/serving.md`` pass the check, as they are."""
    page = Path(__file__).parents[3] / "docs" / "serving.md"
    blocks = re.findall(r"```toml\n# (\w+)/\w+\.toml\n(.*?)```", page.read_text(), re.S)
    assert [own for own, _ in blocks] == ["bob", "aggregator"]
    for own, block in blocks:
        text = block
        for name in PEOPLE:  # the page's ids are nobody's
            text = re.sub(
                rf'(name = "{name}"\nid = )"\w{{52}}"',
                rf'\1"{people[name].id}"',
                text,
            )
        folder = tmp_path / own
        people[own].save(folder)
        book = PeerBook(folder / "peers")
        pinned = {"bob": ("aggregator", "researcher")}.get(own, PEOPLE)
        for name in pinned:
            if name != own:
                book.add(name, people[name].certificate)
        (folder / "diagnosis.csv").write_text(
            "radius,texture,result\n" + "1,2,benign\n" * 58
        )
        file = folder / "worker.toml"
        file.write_text(text)
        said = list(check(configurations.load(file)))
        assert len(said) == (1 if own == "bob" else 0), said


@pytest.mark.parametrize(
    "name",
    [
        "bob",
        "bob/worker.toml",
        "bob/identity.key",
        "bob/identity.crt",
        "bob/peers",
        "bob/ledger.sqlite",
        "bob/d.csv",
        "spool",
        "bob/data",
        ".",
    ],
)
def test_what_others_may_change_is_not_served(
    tmp_path: Path, people: dict[str, Identity], name: str
) -> None:
    """Neither by a start nor by ``--check``; the text names it and what to run."""
    spool = f'[limits]\nspool = "{tmp_path / "spool"}"'
    (tmp_path / "spool").mkdir(mode=0o700)
    folder = tmp_path / "bob"
    configuration = settle(folder, people, "bob", data=spool + DATA)
    (folder / "data").mkdir(mode=0o700)
    file = folder / "worker.toml"
    (folder / "ledger.sqlite").touch(mode=0o600)
    tuple(check(configuration))
    path = tmp_path / name
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(UnsafeFileError, match="others may"):
        tuple(check(configurations.load(file)))
    with pytest.raises(UnsafeFileError, match="others may"):
        Served(configurations.load(file))
    told = CliRunner().invoke(app, ["worker", "--config", str(file), "--check"])
    assert told.exit_code == 1
    assert "run: chmod" in told.stderr
    assert str(path) in told.stderr.replace("\n", "")
