"""What stays at an owner between sessions: whose it is, how much, and for how long."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from obhut.errors import CallError, InternalError, LimitError
from obhut.host.state_files import StatesOnDisk
from obhut.host.states import States, StatesInMemory, Told
from obhut.protocol.messages import State, StateQuestion, TensorData
from obhut.worker.effects import Seeking

Make = Callable[..., States]


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A function that makes either kind; on disk always in the same folder."""
    if request.param == "memory":
        return StatesInMemory
    return lambda *args, **named: StatesOnDisk(tmp_path / "state", *args, **named)


def state(name: str = "n", version: int = 1, size: int = 4, **fields: object) -> State:
    """Return what a session says of a tensor of bytes."""
    one = State(name, version, (TensorData("uint8", (size,), 0),))
    return structs.replace(one, **fields)


def keep(states: States, who: str, one: State, values: bytes | None = None) -> None:
    """Store something."""
    (size,) = one.sizes
    states.reserve(who, one)
    states.write(who, one, (values or bytes([one.version]) * size,))


def recall(states: States, who: str, name: str, version: int | None) -> Told:
    """Return what a session is told."""
    return states.answer(who, "s", Seeking(StateQuestion(name, version), 7))


def versions(states: States, who: str = "me", name: str = "n") -> tuple[int, ...]:
    """Return which versions there are."""
    return recall(states, who, name, None).message.versions


def test_what_is_stored_comes_back(make: Make) -> None:
    """Look, digests and bytes, with the place of the request that asked."""
    states = make()
    keep(states, "me", state(digests=(b"d" * 32,)), b"abcd")
    told = recall(states, "me", "n", 1)
    assert (told.message.session, told.message.index) == ("s", 7)
    assert told.message.tensors == (TensorData("uint8", (4,), 0),)
    assert told.message.digests == (b"d" * 32,)
    assert (list(map(bytes, told.frames)), told.spoilt) == ([b"abcd"], False)


def test_what_is_spoilt_comes_back_so(make: Make) -> None:
    """Who asks what is there is told the same of it as of any other."""
    states = make()
    states.reserve("me", state())
    states.write("me", state(spoilt=True), (bytes(4),))
    keep(states, "me", state(version=2))
    spoilt, sound = (recall(states, "me", "n", version) for version in (1, 2))
    assert (spoilt.spoilt, sound.spoilt) == (True, False)
    assert spoilt.message == sound.message
    assert versions(states) == (1, 2)


def test_nobody_sees_what_is_anothers(make: Make) -> None:
    """Under one name each requester has their own, or nothing."""
    states = make()
    keep(states, "me", state(), b"mine")
    assert versions(states, "you") == ()
    with pytest.raises(CallError, match="no version 1 of 'n' here; there is: none"):
        recall(states, "you", "n", 1)
    keep(states, "you", state(), b"your")
    assert bytes(recall(states, "me", "n", 1).frames[0]) == b"mine"


def test_two_versions_of_a_name_stay(make: Make) -> None:
    """Those that were stored last, whatever their numbers; other names are apart."""
    states = make()
    for version in (99, 100, 1):
        keep(states, "me", state(version=version))
    keep(states, "me", state("other"))
    assert versions(states) == (100, 1)
    keep(states, "me", state(version=100), b"anew")
    assert versions(states) == (1, 100)
    assert bytes(recall(states, "me", "n", 100).frames[0]) == b"anew"
    assert versions(states, name="other") == (1,)
    with pytest.raises(CallError, match="version 99 of 'n' here; there is: 1, 100"):
        recall(states, "me", "n", 99)


@pytest.mark.parametrize("written", [True, False])
def test_how_fast_values_come_decides_nothing(make: Make, written: bool) -> None:
    """A quota counts what was accepted: older versions go, whether or not written."""
    states = make(2 * 4096 + 4095)
    accepted = []
    for version in range(1, 6):
        one = state(version=version)
        states.reserve("me", one)
        accepted.append(one)
        if written:
            states.write("me", one, (bytes(4),))
    with pytest.raises(LimitError, match="at most 12,287 may; store less"):
        states.reserve("me", state("other"))
    states.reserve("you", state("other"))
    for one in accepted if not written else ():
        states.write("me", one, (bytes(4),))
    assert versions(states) == (4, 5)


def test_a_quota_is_refused_before_anything_is_written(
    make: Make, tmp_path: Path
) -> None:
    """One version that is too large, or small ones without end."""
    states = make(10 * 4096)
    with pytest.raises(LimitError):
        states.reserve("me", state(size=10 * 4096))
    assert not (tmp_path / "state").exists()
    for number in range(10):
        keep(states, "me", state(f"{number}", size=1))
    with pytest.raises(LimitError):
        states.reserve("me", state("10", size=1))


def test_what_was_stored_behind_a_guard_stays_behind_one(
    tmp_path: Path,
) -> None:
    """An owner who opens their worker opens not what was computed before."""
    guarded = StatesOnDisk(tmp_path / "state", guarded=True)
    opened = StatesOnDisk(tmp_path / "state")
    keep(guarded, "me", state())
    keep(opened, "me", state("open"))
    with pytest.raises(CallError, match="comes back behind one only"):
        recall(opened, "me", "n", 1)
    assert recall(guarded, "me", "open", 1).frames


def test_who_asks_waits_for_what_is_under_way(make: Make) -> None:
    """Until it is written, or given up; and not for what is others'."""
    states = make()
    asked = []

    def until(done: bool) -> Callable[[], bool]:
        return lambda: bool(asked.append(done)) or done

    states.wait("me", until(False))
    assert not asked
    states.reserve("me", state())
    states.wait("you", until(False))
    states.wait("me", until(True))
    assert asked == [True]
    states.write("me", state(), (bytes(4),))
    states.wait("me", until(False))
    states.reserve("me", state())
    states.finish(0.01)
    states.release("me", state())
    states.wait("me", until(False))
    states.finish(10)
    assert asked == [True]


def test_only_what_was_announced_is_written(make: Make) -> None:
    """Neither what was not reserved, nor bytes of another length; both are logged."""
    states = make()
    with pytest.raises(InternalError, match="nothing of that kind"):
        states.write("me", state(), (bytes(4),))
    states.reserve("me", state())
    refused = states.bring("me", state(), (bytes(5),))
    assert refused is not None
    assert refused.kind == "InternalError"
    assert "5" not in refused.text
    assert versions(states) == ()
    states.wait("me", lambda: False, 1.0)  # it is given up


# --- files ----------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> StatesOnDisk:
    """What is stored on a disk."""
    return StatesOnDisk(tmp_path / "state")


def there(folder: Path) -> list[Path]:
    """Return all files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\0b", "x" * 200, ".", "ä/é"])
def test_a_name_is_no_path(disk: StatesOnDisk, tmp_path: Path, name: str) -> None:
    """Whatever it is, the file is in its requester's folder, under a hash."""
    keep(disk, "me", state(name))
    (path,) = there(tmp_path)
    assert path.parent == tmp_path / "state" / "me"
    assert len(path.name) == 32 + 1 + 16 + 2
    assert bytes(recall(disk, "me", name, 1).frames[0]) == b"\1" * 4


@pytest.mark.parametrize("who", ["../me", "a/b", "", "me~2"])
def test_a_requester_is_no_path(disk: StatesOnDisk, who: str) -> None:
    """What is no id is refused; one can't be, and if so nothing is written."""
    with pytest.raises(InternalError, match="no requester"):
        disk.reserve(who, state())


def test_nobody_else_reads_the_files(disk: StatesOnDisk, tmp_path: Path) -> None:
    """They and their folders are the user's alone, whatever the umask says."""
    before = os.umask(0)
    try:
        keep(disk, "me", state())
    finally:
        os.umask(before)
    (path,) = there(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    with pytest.raises(InternalError, match="can not be read"):
        recall(disk, "me", "n", 1)


@pytest.mark.parametrize("spoil", [b"", b"x", b"obhutst1\xff\xff\xff\xff", None])
def test_a_file_that_is_none_is_told_to_its_owner(
    disk: StatesOnDisk,
    tmp_path: Path,
    spoil: bytes | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Empty, cut off or something else: the requester learns that it can't be read."""
    keep(disk, "me", state())
    (path,) = there(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] if spoil is None else spoil)
    with (
        caplog.at_level(logging.ERROR, "obhut.worker"),
        pytest.raises(InternalError, match="learns why from its log") as told,
    ):
        recall(disk, "me", "n", 1)
    assert str(path) not in str(told.value)
    assert "can not be read:" in caplog.text


def test_a_file_that_was_put_elsewhere_is_not_used(
    disk: StatesOnDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder under another requester's id gives them nothing."""
    keep(disk, "me", state())
    (tmp_path / "state" / "me").rename(tmp_path / "state" / "you")
    with pytest.raises(InternalError, match="can not be read"):
        recall(disk, "you", "n", 1)
    assert "is another one's" in caplog.text


def test_a_folder_that_is_none_is_told_to_its_owner(
    disk: StatesOnDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither is anything stored, nor is it said to be empty."""
    (tmp_path / "state").write_text("no folder")
    for act in (
        lambda: disk.reserve("me", state()),
        lambda: recall(disk, "me", "n", None),
    ):
        with pytest.raises(InternalError, match="learns why from its log") as told:
            act()
        assert str(tmp_path) not in str(told.value)
    assert str(tmp_path) in caplog.text


def test_what_is_deleted_is_gone(disk: StatesOnDisk) -> None:
    """Also for a worker that serves meanwhile; what was begun is read to the end."""
    keep(disk, "me", state("a"), b"aaaa")
    keep(disk, "me", state("b"))
    keep(disk, "you", state("a"))
    told = recall(disk, "me", "a", 1)
    listed = disk.listed()
    assert [(o.stored.requester, o.stored.state.name) for o in listed] == [
        ("me", "a"),
        ("me", "b"),
        ("you", "a"),
    ]
    disk.delete(listed[:1])
    disk.delete(listed[:1])
    assert bytes(told.frames[0]) == b"aaaa"
    with pytest.raises(CallError):
        recall(disk, "me", "a", 1)
    assert versions(disk, "you", "a") == (1,)
    keep(disk, "me", state("a", 2))
    assert versions(disk, "me", "a") == (2,)


def test_it_outlives_the_process(disk: StatesOnDisk, tmp_path: Path) -> None:
    """Another one finds the same, and counts on from there."""
    for version in (5, 6):
        keep(disk, "me", state(version=version))
    again = StatesOnDisk(tmp_path / "state", 2 * 4096)
    assert versions(again) == (5, 6)
    keep(again, "me", state(version=1))
    assert versions(again) == (6, 1)
    with pytest.raises(LimitError):
        again.reserve("me", state("other"))


def test_a_version_is_complete_or_not_there(tmp_path: Path) -> None:
    """Killed at each call while it is written: the one before stays in any case."""
    command = [sys.executable, "-m", __name__, str(tmp_path / "state")]
    ended = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 40


def _kill_at(point: int, folder: Path) -> bool:
    """Store a version in a process that ends at its n-th call; tell if it ended so."""
    child = os.fork()
    if not child:
        try:
            left = [point]

            def called(frame: object, event: str, argument: object) -> None:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), 9)

            states = StatesOnDisk(folder)
            states.reserve("me", state(version=2))
            sys.setprofile(called)
            states.write("me", state(version=2), (b"2222",))
            sys.setprofile(None)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


def _kill_at_each(folder: Path) -> int:
    """Kill at each call, in a process without threads; return how many there are."""
    point, found, killed = 0, set(), True
    while killed:
        point += 1
        for path in there(folder):
            path.unlink()
        states = StatesOnDisk(folder)
        keep(states, "me", state(version=1), b"1111")
        killed = _kill_at(point, folder)
        left = versions(states)
        found.add(left)
        assert left in {(1,), (1, 2)}
        assert bytes(recall(states, "me", "n", 1).frames[0]) == b"1111"
        if 2 in left:
            assert bytes(recall(states, "me", "n", 2).frames[0]) == b"2222"
        keep(states, "me", state(version=3))  # a draft that was left is no hindrance
        assert len(there(folder)) == 2
    assert found == {(1,), (1, 2)}
    return point


if __name__ == "__main__":
    print(_kill_at_each(Path(sys.argv[1])))  # noqa: T201 # for who started it
