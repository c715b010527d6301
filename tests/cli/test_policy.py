"""``obhut policy check`` and ``obhut log``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from obhut.guard.policy import Quorum
from obhut.guard.release import Atom, Decision, Release
from obhut.host.ledger import FILE
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.grpc.guarding import open_ledger

from .conftest import Invoke

POLICY = """
[policy]
kind = "Quorum"
aggregators = ["hub"]
contributors = ["bob", "alice", "carol"]
requesters = ["me"]
"""


@pytest.fixture
def people() -> dict[str, Identity]:
    """Everybody's identity, by name."""
    return {name: Identity.create() for name in ("bob", "alice", "carol", "me", "hub")}


def configure(folder: Path, own: str, people: dict[str, Identity]) -> Path:
    """Write a worker's folder: identity, peers, configuration."""
    folder.mkdir(mode=0o700)
    people[own].save(folder)
    peers = PeerBook(folder / "peers")
    for name in sorted(people.keys() - {own}):
        peers.add(name, people[name].certificate)
    config = folder / "worker.toml"
    config.write_text(f'id = "{own}"\nlisten = "127.0.0.1:0"\n{POLICY}')
    return config


def test_a_policy_is_explained_and_its_names_are_looked_up(
    invoke: Invoke, tmp_path: Path, people: dict[str, Identity]
) -> None:
    """Each sentence on its line, then whose id each name is."""
    config = configure(tmp_path / "bob", "bob", people)
    result = invoke("policy", "check", config)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "What is computed here goes to hub, and to nobody else."
    for name, identity in people.items():
        assert f"{name} is {identity.id}." in lines


def test_names_wait_for_an_identity(invoke: Invoke, tmp_path: Path) -> None:
    """Before ``obhut init`` the policy can be read, and the names are not."""
    config = tmp_path / "worker.toml"
    config.write_text(f'id = "bob"\nlisten = "127.0.0.1:0"\n{POLICY}')
    result = invoke("policy", "check", config)
    assert result.exit_code == 0
    assert "names were not looked up" in result.stdout
    assert "obhut init" in result.stdout


def test_an_open_policy_is_a_warning(invoke: Invoke, tmp_path: Path) -> None:
    """It says that nothing is enforced."""
    config = tmp_path / "worker.toml"
    config.write_text(
        'id = "bob"\nlisten = "127.0.0.1:0"\n[policy]\nkind = "UnsafeOpen"\n'
    )
    result = invoke("policy", "check", config)
    assert result.exit_code == 0
    assert result.stdout.startswith("WARNING: the policy is UnsafeOpen")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["hub"]', '["hubb"]', 'nobody is known as "hubb"'),
        ('"carol"', '"carol", "hub"', "hub is an aggregator too"),
        ("[policy]", "[policies]", "did you mean policy?"),
    ],
)
def test_a_policy_that_does_not_hold_is_one_sentence(
    invoke: Invoke,
    tmp_path: Path,
    people: dict[str, Identity],
    old: str,
    new: str,
    words: str,
) -> None:
    """It exits with 1 and says what is wrong."""
    config = configure(tmp_path / "bob", "bob", people)
    config.write_text(config.read_text().replace(old, new))
    result = invoke("policy", "check", config)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("day", "code", "said"),
    [
        ("2001-01-01", 1, "WARNING: the policy has expired: since 2001-01-01"),
        ("9999-12-31", 0, "After 9999-12-31 nothing leaves."),
    ],
)
def test_an_expired_policy_is_said_first(
    invoke: Invoke,
    tmp_path: Path,
    people: dict[str, Identity],
    day: str,
    code: int,
    said: str,
) -> None:
    """``policy check`` exits with 1; ``--check`` does not, since such a worker starts.

    ``worker --check`` runs before a unit starts, and may not keep it down.
    """
    config = configure(tmp_path / "bob", "bob", people)
    config.write_text(f"{config.read_text()}expires = {day}\n")
    result = invoke("policy", "check", config)
    assert result.exit_code == code, result.output
    assert said in result.stdout
    assert result.stdout.startswith(said) is (code == 1)
    result = invoke("worker", "--config", config, "--check")
    assert result.exit_code == 0, result.output
    assert said in result.stdout


def test_an_owner_is_told_where_the_log_is(
    invoke: Invoke, tmp_path: Path, people: dict[str, Identity]
) -> None:
    """It is the aggregator's; and an open worker has none."""
    config = configure(tmp_path / "bob", "bob", people)
    result = invoke("log", "--config", config)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "no record of releases here: it is an owner's" in result.stderr
    assert "the aggregator, hub" in result.stderr
    text = config.read_text()
    config.write_text(text[: text.index("[policy]")] + '[policy]\nkind = "UnsafeOpen"')
    result = invoke("log", "--config", config)
    assert result.exit_code == 1
    assert "nothing is written down" in result.stderr


def test_an_aggregator_that_is_named_by_id_has_a_log(
    invoke: Invoke, tmp_path: Path, people: dict[str, Identity]
) -> None:
    """Who is meant counts, not how it is written."""
    config = configure(tmp_path / "hub", "hub", people)
    config.write_text(config.read_text().replace('["hub"]', f'["{people["hub"].id}"]'))
    result = invoke("log", "--config", config)
    assert result.exit_code == 0, result.stderr
    assert "nothing was decided yet" in result.stdout


def test_the_log_is_a_table_that_was_verified(
    invoke: Invoke, tmp_path: Path, people: dict[str, Identity]
) -> None:
    """Requester, what, decision and rule of each, by name; never a value."""
    config = configure(tmp_path / "hub", "hub", people)
    ids = {name: identity.id for name, identity in people.items()}
    owners = [ids[name] for name in ("alice", "bob", "carol")]
    policy = Quorum(aggregators=(ids["hub"],), contributors=tuple(owners))
    result = invoke("log", "--config", config)
    assert result.exit_code == 0
    assert "nothing was decided yet" in result.stdout
    ledger = open_ledger(config.parent, people["hub"])
    for key, decision in (
        ("s/1", Decision(True, "all", "")),
        ("s/2", Decision(False, "p-percent", "")),
    ):
        terms = {Atom(owner, key): Fraction(1, 3) for owner in owners}
        asked = Release(ids["me"], terms, dict.fromkeys(owners, policy))
        ledger.append(asked, decision, 1_800_000_000)
        ledger.append(asked, decision, 1_800_000_000)
    ledger.append(Release("x" * 52, {}, {}), Decision(False, "quorum", ""), 1)
    ledger.close()
    result = invoke("log", "--config", config)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    for words in ("Releases of hub", "1/3 alice", "released", "refused", "p-percent"):
        assert words in text
    assert "sum: again what entry 1 says" in text
    assert text.count("1/3 alice") == 3  # the refusals say all, each time
    assert "Verified: 5 entries" in text
    assert "2027-01-15" in text


def test_a_log_says_that_it_was_begun_anew(
    invoke: Invoke, tmp_path: Path, people: dict[str, Identity]
) -> None:
    """With when, and why; and a log that is missing was not just never begun."""
    config = configure(tmp_path / "hub", "hub", people)
    open_ledger(config.parent, people["hub"]).close()
    (config.parent / FILE).unlink()
    result = invoke("log", "--config", config)
    assert result.exit_code == 1
    assert "it is missing, and ledger.mark says that it had 0 entries" in result.stderr
    open_ledger(config.parent, people["hub"], begin_anew="all [b]agreed[/b]").close()
    result = invoke("log", "--config", config)
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "Note: the record of releases was begun anew at 2" in text
    assert "UTC: all [b]agreed[/b]; what left before" in text


def test_what_a_log_quotes_can_not_move_the_terminal(
    invoke: Invoke, tmp_path: Path, people: dict[str, Identity]
) -> None:
    """Whoever asked, and for what, is on its line and escaped."""
    config = configure(tmp_path / "hub", "hub", people)
    ledger = open_ledger(config.parent, people["hub"])
    asked = Release("me", {}, {}, "sum\x1b[2J\nVerified: 9 entries")
    ledger.append(asked, Decision(False, "quorum", ""), 1)
    ledger.close()
    result = invoke("log", "--config", config)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert r"sum\x1b[2J\nVerified" in result.stdout


def test_a_log_that_is_written_to_can_be_read(
    invoke: Invoke, tmp_path: Path, people: dict[str, Identity]
) -> None:
    """While an aggregator serves, which goes on."""
    config = configure(tmp_path / "hub", "hub", people)
    ledger = open_ledger(config.parent, people["hub"])
    for number in range(3):
        ledger.append(Release("me", {}, {}), Decision(False, "quorum", ""), number)
        result = invoke("log", "--config", config)
        assert f"Verified: {number + 1} entries" in result.stdout
    ledger.close()


def test_a_log_that_was_changed_is_refused(
    invoke: Invoke, tmp_path: Path, people: dict[str, Identity]
) -> None:
    """The command says so and prints no table."""
    config = configure(tmp_path / "hub", "hub", people)
    (config.parent / FILE).write_bytes(b"not a ledger at all")
    (config.parent / FILE).chmod(0o600)
    result = invoke("log", "--config", config)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "not a database" in result.stderr
