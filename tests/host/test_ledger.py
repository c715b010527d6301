"""The ledger on disk: what lasts, and what tampering is seen."""

from __future__ import annotations

import contextlib
import datetime
import hmac
import itertools
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from msgspec import UNSET
from msgspec.structs import replace as replace_clauses

from obhut.errors import FileError, LedgerError, UnsafeFileError
from obhut.guard.audit import Auditor
from obhut.guard.policy import Quorum, digest
from obhut.guard.release import Atom, Decision, Release
from obhut.host.ledger import Ledger, begin_anew
from obhut.host.mark import Signer

KEY = b"a key"
POLICY = Quorum(  # releases that are written down were computed by nobody
    aggregators=("hub",),
    contributors=("a", "b", "c"),
    requesters=("me",),
    programs="any",
)
PERMIT = Decision(True, "all", "")


def sign(data: bytes) -> bytes:
    """Sign as a worker does."""
    return hmac.digest(KEY, data, "sha256")


def verify(data: bytes, signature: bytes) -> bool:
    """Tell whether the worker signed."""
    return hmac.compare_digest(sign(data), signature)


SIGNER = Signer("hub", sign, verify)


def release(number: int, policy: Quorum = POLICY) -> Release:
    """Return a request of a fixed cohort."""
    terms = {Atom(owner, f"s/{number}"): Fraction(1, 3) for owner in "abc"}
    return Release("me", terms, dict.fromkeys("abc", policy))


def opened(path: Path, whose: str = "hub") -> Ledger:
    """Return the ledger of a file."""
    return Ledger(path, SIGNER._replace(id=whose))


def read(path: Path) -> Ledger:
    """Return it, only to be read."""
    return Ledger(path, SIGNER, reading=True)


def begun_anew(path: Path, reason: str = "the disk failed; all agreed") -> Ledger:
    """Return one that takes its place."""
    return begin_anew(path, SIGNER, reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger's file with three entries."""
    path = tmp_path / "ledger.sqlite"
    ledger = opened(path)
    for number in range(3):
        ledger.append(release(number), PERMIT, 1_800_000_000 + number)
    ledger.close()
    return path


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """It, open."""
    ledger = opened(path)
    yield ledger
    ledger.close()


def test_what_is_appended_is_there_after_a_restart(ledger):
    """In order, verified, with head, decisions and policies."""
    entries = list(ledger.entries())
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert ledger.head.number == 3
    assert ledger.head.hash == entries[-1].hash
    assert entries[1].release(dict.fromkeys(entries[1].policies.values(), POLICY)) == (
        release(1)
    )


@pytest.mark.parametrize("said", ["any", "same"])
def test_what_policies_said_of_programs_is_kept(tmp_path, said):
    """By their digests, whatever a policy says by default when it is read."""
    policy = replace_clauses(POLICY, programs=said)
    ledger = opened(tmp_path / "ledger.sqlite")
    ledger.append(release(1, policy), PERMIT, 1)
    ledger.close()
    with contextlib.closing(read(tmp_path / "ledger.sqlite")) as again:
        (entry,) = again.entries()
        assert set(entry.policies.values()) == {digest(policy)}
        assert entry.release({digest(policy): policy}) == release(1, policy)


def test_several_decisions_are_one_step(ledger):
    """All of them, in order, or none."""
    other = Quorum(aggregators=("hub",), contributors=("a", "b", "c", "d"))
    ledger.extend(
        [
            (release(3, other), PERMIT),
            (release(4, other), Decision(False, "atoms", "")),
        ],
        1_800_000_003,
    )
    assert [entry.permits for entry in ledger.entries()] == [True] * 4 + [False]


def test_what_can_not_be_signed_is_not_written(path):
    """If the head can't be made, no entry stays, and the next one fits."""
    broken = []

    def failing(data: bytes) -> bytes:
        if broken:
            raise ValueError("the key is gone")
        return sign(data)

    ledger = Ledger(path, SIGNER._replace(sign=failing))
    broken.append(True)
    with pytest.raises(LedgerError, match="the key is gone"):
        ledger.extend([(release(3), PERMIT), (release(4), PERMIT)], 1)
    broken.clear()
    assert len(list(ledger.entries())) == 3
    ledger.append(release(5), PERMIT, 1)
    assert len(list(ledger.entries())) == 4
    ledger.close()


def test_a_ledger_replays_into_an_auditor(ledger):
    """What was permitted counts: another combination of an atom is refused."""
    auditor = Auditor("hub", POLICY)
    ledger.replay(auditor)
    mixed = {Atom("a", "s/0"), Atom("b", "s/1"), Atom("c", "s/0")}
    asked = Release("me", dict.fromkeys(mixed, Fraction(1)), {})
    assert auditor.decide(asked, datetime.date(2027, 1, 1)).rule == "atoms"


def test_a_repeat_is_short_and_told_once(path):
    """Also after a restart; its size does not depend on how much is in the release.

    Another requester, policy, kind or coefficient is no repeat, and a refusal is none.
    """
    terms = {Atom("abc"[k % 3], f"s/{k}"): Fraction(1) for k in range(3_000)}
    large = Release("me", terms, dict.fromkeys("abc", POLICY))
    ledger = opened(path)
    ledger.extend([(large, PERMIT), (large, PERMIT)], 1)
    ledger.append(release(1), PERMIT, 1)  # of the first three
    ledger.close()
    ledger = opened(path)
    ledger.append(large, PERMIT, 2)
    other = Quorum(aggregators=("hub",), contributors=("a", "b", "c", "d"))
    fresh = [
        (replace(large, requester="you"), PERMIT),
        (replace(large, policies=dict.fromkeys("abc", other)), PERMIT),
        (replace(large, policies={"a": POLICY}), PERMIT),
        (replace(large, kind="count"), PERMIT),
        (replace(large, terms={**terms, Atom("a", "s/0"): Fraction(2)}), PERMIT),
        (large, Decision(False, "expired", "")),
        (large, Decision(False, "expired", "")),
    ]
    ledger.extend(fresh, 3)
    repeats = [entry.repeats for entry in ledger.entries()]
    assert repeats[:7] == [UNSET, UNSET, UNSET, UNSET, 4, 2, 4]
    assert repeats[7:] == [UNSET] * 7
    sizes = sqlite3.connect(path).execute("SELECT length(body) FROM entries")
    sizes = [size for (size,) in sizes]
    assert max(sizes[4:7]) < 500
    assert sizes[3] > 50_000
    auditor = Auditor("hub", POLICY)
    ledger.replay(auditor)
    mixed = {Atom("a", "s/0"), Atom("b", "s/1"), Atom("c", "s/5")}
    asked = Release("me", dict.fromkeys(mixed, Fraction(1)), {})
    assert auditor.decide(asked, datetime.date(2027, 1, 1)).rule == "atoms"
    ledger.close()


def test_repeats_of_what_was_long_ago_are_written_out(tmp_path, monkeypatch):
    """What is kept to recognise repeats does not grow for ever."""
    monkeypatch.setattr("obhut.host.ledger.REPEATABLE", 2)
    ledger = opened(tmp_path / "ledger.sqlite")
    for number in (0, 1, 2, 2, 0):
        ledger.append(release(number), PERMIT, 1)
    assert [e.repeats for e in ledger.entries()] == [UNSET, UNSET, UNSET, 3, UNSET]
    ledger.close()


def test_only_its_owner_may_read_it(path):
    """The file and what SQLite puts beside it have mode 0600."""
    ledger = opened(path)
    ledger.append(release(9), PERMIT, 1)
    files = list(path.parent.iterdir())
    assert {file.name for file in files} >= {"ledger.sqlite", "ledger.sqlite-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    ledger.close()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_ledger_that_others_may_touch_is_not_used(path, mode):
    """They could read who works with whom, or change it."""
    path.chmod(mode)
    with pytest.raises(UnsafeFileError, match="chmod 0600"):
        opened(path)


def test_a_link_or_folder_is_no_ledger(path, tmp_path):
    """It is not followed."""
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    with pytest.raises(UnsafeFileError, match="link"):
        opened(link)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnsafeFileError):
        opened(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UnsafeFileError, match="not a file of yours"):
        opened(tmp_path / "pipe")


def change(path: Path, *statements: str) -> None:
    """Change the file as somebody with an editor for databases would."""
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


BODY = "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), '{}', '{}') AS BLOB)"


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["DELETE FROM entries WHERE number = 3"], "3 entries, and there are 2"),
        (["DELETE FROM entries WHERE number = 1"], "expected entry 1"),
        (["DELETE FROM entries WHERE number = 2"], "expected entry 2"),
        (["DELETE FROM entries"], "there are 0"),
        ([BODY.format('"me"', '"ma"') + " WHERE number = 2"], "entry 2 was changed"),
        ([BODY.format("true", "false") + " WHERE number = 3"], "entry 3 was changed"),
        ([BODY.format('"me"', '"me" ') + " WHERE number = 2"], "canonical"),
        (
            [
                "UPDATE entries SET number = 9 WHERE number = 1",
                "UPDATE entries SET number = 1 WHERE number = 2",
                "UPDATE entries SET number = 2 WHERE number = 9",
            ],
            "expected entry 1, and entry 2 comes",
        ),
        (
            ["INSERT INTO entries SELECT 4, body FROM entries WHERE number = 3"],
            "expected entry 4, and entry 3 comes",
        ),
        (["UPDATE head SET signature = x'00'"], "not this worker's"),
        (["DELETE FROM head"], "head is missing"),
        (["UPDATE head SET body = x'00'"], "malformed|JSON"),
        (["DELETE FROM policies"], "a policy of entry 1 is missing"),
        (["UPDATE policies SET digest = 'x'"], "a policy was changed"),
        (["UPDATE policies SET body = x'00'"], "policy"),
        (["DROP TABLE entries"], "another form .*: table entries"),
        (
            ["DROP TABLE head", "CREATE TABLE head (body, signature)"],
            "another form .*: table head",
        ),
        (["DELETE FROM beginning"], "beginning is missing"),
        (["UPDATE beginning SET body = x'00'"], "malformed|JSON"),
        (
            [BODY.format('"token":"', '"token":"0').replace("entries", "beginning")],
            "entry 1 does not follow",
        ),
    ],
)
def test_what_was_changed_is_not_used(path, statements, words):
    """Cut, changed or reordered, by whatever statement: a clear error."""
    change(path, *statements)
    with pytest.raises(LedgerError, match=words) as caught:
        opened(path)
    assert isinstance(caught.value, FileError)
    assert str(path) in str(caught.value)
    assert "releases can not be audited without it" in str(caught.value)


def test_another_workers_ledger_is_not_used(path):
    """Nor is one that is signed by another key."""
    path.with_name("ledger.mark").unlink()  # it is another's, too
    with pytest.raises(LedgerError, match="another worker's"):
        opened(path, "bub")
    with pytest.raises(LedgerError, match="not this worker's"):
        Ledger(path, SIGNER._replace(verify=lambda data, signature: False))


def empty(path: Path) -> None:
    """Make it a file without content."""
    path.write_bytes(b"")


def drop(path: Path) -> None:
    """Make it a database without content."""
    change(path, *(f"DROP TABLE {name}" for name in TABLES))


def earlier(path: Path) -> None:
    """Put a copy back that was made one entry before."""
    copy = shutil.copy(path, path.with_name("copy"))
    with contextlib.closing(opened(path)) as ledger:
        ledger.append(release(3), PERMIT, 1)
    shutil.copy(copy, path)


def forked(path: Path) -> None:
    """Put such a copy back that went on otherwise, elsewhere."""
    folder = path.with_name("elsewhere")
    folder.mkdir(mode=0o700)
    for name in ("ledger.sqlite", "ledger.mark"):
        shutil.copy(path.with_name(name), folder)
    for at, number in ((path, 3), (folder / "ledger.sqlite", 9)):
        with contextlib.closing(opened(at)) as ledger:
            ledger.append(release(number), PERMIT, 1)
    shutil.copy(folder / "ledger.sqlite", path)


def begun_elsewhere(path: Path) -> None:
    """Put another one there of the same worker's, with as many entries."""
    folder = path.with_name("elsewhere")
    folder.mkdir(mode=0o700)
    with contextlib.closing(opened(folder / "ledger.sqlite")) as ledger:
        for number in range(3):
            ledger.append(release(number), PERMIT, 1_800_000_000 + number)
    shutil.copy(folder / "ledger.sqlite", path)


def unmarked(path: Path) -> None:
    """Remove its mark."""
    path.with_name("ledger.mark").unlink()


def marked_by_another(path: Path) -> None:
    """Put another worker's mark beside it."""
    folder = path.with_name("elsewhere")
    folder.mkdir(mode=0o700)
    opened(folder / "ledger.sqlite", "bub").close()
    shutil.copy(folder / "ledger.mark", path.with_name("ledger.mark"))


def content(folder: Path) -> dict[Path, bytes]:
    """Return all files of a folder."""
    return {at: at.read_bytes() for at in folder.rglob("*") if at.is_file()}


TABLES = ("entries", "beginning", "policies", "head")
STEAL = (
    "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries WHERE "
    "number < new.number; END"
)
FOREIGN = {
    "trigger t": STEAL,
    "view v": "CREATE VIEW v AS SELECT * FROM entries",
    "index i": "CREATE INDEX i ON entries (body)",
    "table x": "CREATE TABLE x (y)",
    "table sqlite_sequence": "CREATE TABLE x (y INTEGER PRIMARY KEY AUTOINCREMENT)",
}
SPOILT = [
    (Path.unlink, "it is missing, and ledger.mark says that it had 3 entries"),
    (empty, "it is empty, and ledger.mark says that it had 3 entries"),
    (drop, "it is empty, and ledger.mark says that it had 3 entries"),
    (earlier, "it ends at entry 3, and ledger.mark says that it had 4 entries"),
    (forked, "its entry 4 is not the one that ledger.mark says"),
    (begun_elsewhere, "its entry 3 is not the one that ledger.mark says"),
    (unmarked, "its ledger.mark is missing, and it has 3 entries"),
    (marked_by_another, "ledger.mark beside it is not what this worker wrote"),
]


@pytest.mark.parametrize("opening", [opened, read])
@pytest.mark.parametrize(("spoil", "words"), SPOILT)
def test_a_ledger_that_is_not_the_last_one_is_not_used(path, spoil, words, opening):
    """Whoever looks or starts is told what was expected, what came and what to do."""
    spoil(path)
    before = content(path.parent)
    with pytest.raises(LedgerError, match=words) as caught:
        opening(path)
    assert "put back the last one" in str(caught.value)
    assert "--begin-anew REASON" in str(caught.value)
    assert content(path.parent) == before


@pytest.mark.parametrize("opening", [opened, read])
@pytest.mark.parametrize("odd", FOREIGN)
def test_what_obhut_did_not_make_is_in_no_ledger(path, odd, opening):
    """A table, trigger, view or index of somebody else's is named, and not used."""
    change(path, FOREIGN[odd])
    with pytest.raises(LedgerError, match=f"another form .*: .*{odd}"):
        opening(path)


@pytest.mark.parametrize(("spoil", "words"), SPOILT)
def test_it_is_begun_anew_for_a_reason(path, spoil, words):
    """The reason is in it for good, and what was there is kept beside it."""
    spoil(path)
    there = path.read_bytes() if path.exists() else None
    with contextlib.closing(begun_anew(path)) as ledger:
        assert ledger.head.number == 0
        assert ledger.beginning.reason == "the disk failed; all agreed"
        expected = {unmarked: None, marked_by_another: None, earlier: 4, forked: 4}
        assert ledger.beginning.entries == expected.get(spoil, 3)
        ledger.append(release(0), PERMIT, 1)
    aside = path.with_name("ledger-before-1.sqlite")
    assert (aside.read_bytes() if aside.exists() else None) == there
    with contextlib.closing(opened(path)) as ledger:
        assert ledger.head.number == 1
        assert ledger.beginning.reason == "the disk failed; all agreed"
    reason = BODY.format("all agreed", "all knew").replace("entries", "beginning")
    change(path, reason)
    with pytest.raises(LedgerError):
        opened(path)


def test_a_whole_ledger_is_not_begun_anew(path):
    """The option may be left in a unit's file: it forgets nothing."""
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="it is whole, and goes on; start without"):
        begun_anew(path)
    assert path.read_bytes() == before
    path.unlink()
    begun_anew(path).close()
    with pytest.raises(LedgerError, match="it is whole"):
        begun_anew(path)


@pytest.mark.parametrize("reason", ["", " ", "x" * 501, "a\nb"])
def test_a_reason_is_one(path, reason):
    """Nothing, a book, or what would break a line of the log is none."""
    path.unlink()
    with pytest.raises(LedgerError, match="expected a reason"):
        begun_anew(path, reason)
    assert not path.exists()


def test_a_ledger_that_is_held_is_not_begun_anew(path, ledger):
    """Though it has a fault: it is stopped first."""
    unmarked(path)
    with pytest.raises(LedgerError, match="another process holds it"):
        begun_anew(path)
    assert path.exists()


def test_what_was_set_aside_is_not_replaced(path):
    """Each has a name of its own, its log with it, of which nothing comes back."""
    for number in (1, 2):
        wal = path.with_name("ledger.sqlite-wal")
        path.unlink()
        wal.write_bytes(b"left over")
        begun_anew(path).close()
        assert path.with_name(f"ledger-before-{number}.sqlite-wal").exists()
    with contextlib.closing(read(path)) as ledger:
        assert ledger.head.number == 0


def test_a_ledger_may_be_ahead_of_its_mark(path):
    """A kill between entry and mark told nobody; the next start catches up."""
    marked = path.with_name("ledger.mark")
    before = marked.read_bytes()
    with contextlib.closing(opened(path)) as ledger:
        ledger.append(release(3), PERMIT, 1)
    marked.write_bytes(before)
    with contextlib.closing(opened(path)) as ledger:
        assert ledger.head.number == 4
    assert marked.read_bytes() != before
    change(path, "DELETE FROM entries WHERE number = 4")
    with pytest.raises(LedgerError, match="there are 3"):
        opened(path)


def test_what_can_not_be_marked_is_not_told(path, ledger):
    """The entry stays, and the mark follows with the next one."""
    marked = path.with_name("ledger.mark")
    marked.unlink()
    marked.symlink_to("/dev/full")
    with pytest.raises(LedgerError):
        ledger.append(release(3), PERMIT, 1)
    marked.unlink()
    marked.write_bytes(bytes(1024))
    marked.chmod(0o600)
    ledger.append(release(4), PERMIT, 1)
    ledger.close()
    with contextlib.closing(opened(path)) as again:
        assert again.head.number == 5


def test_it_tells_what_it_was(path, ledger):
    """The hash with so many entries, as owners ask for; nothing where it has fewer."""
    entries = list(ledger.entries())
    assert ledger.recall(3) == (ledger.head, ledger.head.hash)
    assert ledger.recall(1) == (ledger.head, entries[0].hash)
    assert ledger.recall(0) == (ledger.head, entries[0].previous)
    for number in (4, -1, 2**64):
        assert ledger.recall(number) == (ledger.head, "")
    change(path, "DELETE FROM entries WHERE number = 2")
    with pytest.raises(LedgerError, match="entry 2 is missing"):
        ledger.recall(2)


def test_what_is_no_database_is_not_used(tmp_path):
    """A file of something else."""
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"something else\n" * 100)
    path.chmod(0o600)
    with pytest.raises(LedgerError, match="not a database"):
        opened(path)


def test_a_change_under_way_is_seen(path, ledger):
    """What was written past it meanwhile is not overwritten."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        before = database.execute("SELECT body, signature FROM head").fetchone()
        ledger.append(release(3), PERMIT, 1)
        database.execute("UPDATE head SET body = ?, signature = ?", before)
        database.commit()
    with pytest.raises(LedgerError, match="another process"):
        ledger.append(release(4), PERMIT, 1)


def test_one_process_holds_it(path, ledger):
    """A second aggregator on the folder is told so; to look at it is not to hold it."""
    with pytest.raises(
        LedgerError, match=r"another process holds it; .* stop the other"
    ):
        opened(path)
    ledger.append(release(3), PERMIT, 1)
    with contextlib.closing(read(path)) as other:
        ledger.append(release(4), PERMIT, 1)
        assert [entry.number for entry in other.entries()] == [1, 2, 3, 4]
    assert ledger.head.number == 5
    ledger.close()
    opened(path).close()


def test_nobody_without_the_key_can_make_an_earlier_head(path, tmp_path):
    """What is cut off is missed; only a whole old copy, with its head, is not."""
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(path, old / "ledger.sqlite")
    marked = shutil.copy(path.with_name("ledger.mark"), tmp_path / "marked")
    ledger = opened(path)
    ledger.append(release(3), PERMIT, 1)
    ledger.close()
    change(path, "DELETE FROM entries WHERE number = 4")
    with pytest.raises(LedgerError, match="4 entries, and there are 3"):
        opened(path)
    # A whole old copy, with its head and mark, only others' later heads disprove.
    shutil.copy(marked, old / "ledger.mark")
    again = opened(old / "ledger.sqlite")
    assert again.head.number == 3
    again.close()


PROGRAM = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_ledger import PERMIT, opened, release
ledger = opened(Path(sys.argv[1]))
number = 0
while True:
    ledger.append(release(number), PERMIT, number)
    number += 1
    print(number, flush=True)
"""


def test_what_was_told_survives_a_kill(tmp_path):
    """A process that is killed has lost no entry that ``append`` returned from."""
    path = tmp_path / "ledger.sqlite"
    command = [sys.executable, "-c", PROGRAM, str(path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    told = list(itertools.islice(process.stdout, 20))
    process.send_signal(signal.SIGKILL)
    told += process.communicate()[0].splitlines()
    ledger = opened(path)
    assert ledger.head.number >= len([line for line in told if line.strip()])
    assert len(list(ledger.entries())) == ledger.head.number
    ledger.close()


def test_no_value_is_in_the_file(path):
    """Names, coefficients and digests are all there is."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        columns = database.execute(
            "SELECT m.name || '.' || p.name FROM sqlite_schema m, "
            "pragma_table_info(m.name) p WHERE m.type = 'table'"
        ).fetchall()
    assert {name for (name,) in columns} == {
        "entries.number",
        "entries.body",
        "policies.digest",
        "policies.body",
        "beginning.one",
        "beginning.body",
        "head.one",
        "head.body",
        "head.signature",
    }
