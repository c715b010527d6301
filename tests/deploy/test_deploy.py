"""The files for administrators: what they say exists, and starts a worker."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from obhut.cli.main import app
from obhut.cli.serve import FILES
from obhut.identity.identity import Identity
from obhut.transports.pipe.seccomp import CALLS

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "obhut-worker.service"
CONTAINER = ROOT / "deploy" / "Containerfile"
PAGE = ROOT / "docs" / "deployment.md"

CONFIGURATION = """\
id = "bob"
listen = "0.0.0.0:7000"
[policy]
kind = "UnsafeOpen"
"""


def settings() -> list[tuple[str, str]]:
    """Return what the unit sets, in order."""
    lines = UNIT.read_text().splitlines()
    return [
        (key, value)
        for key, _, value in (line.partition("=") for line in lines)
        if not line_is_empty(key)
    ]


def line_is_empty(key: str) -> bool:
    """Tell whether it is a comment, a head or nothing."""
    return not key or key[0] in "#["


def calls() -> set[str]:
    """Return the system calls, and groups of them, that the unit allows."""
    return {
        word
        for key, value in settings()
        if key == "SystemCallFilter"
        for word in value.split()
    }


def commands() -> list[list[str]]:
    """Return the commands that unit and container run, program first."""
    found = [
        shlex.split(value) for key, value in settings() if key.startswith("ExecStart")
    ]
    text = CONTAINER.read_text()
    parts = [
        json.loads(re.search(rf"^{word} (\[.*\])$", text, re.MULTILINE)[1])  # type: ignore[index]
        for word in ("ENTRYPOINT", "CMD")
    ]
    return [*found, [*parts[0], *parts[1]]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_exist(command: list[str], tmp_path: Path) -> None:
    """Each says ``obhut`` with options that it has, of a configuration that loads."""
    program, *arguments = command
    assert Path(program).name == "obhut"
    place = arguments.index("/var/lib/obhut/worker.toml")
    file = tmp_path / "worker.toml"
    file.write_text(CONFIGURATION)
    arguments[place] = str(file)
    if "--check" not in arguments:
        arguments.append("--check")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "bob listens at 0.0.0.0:7000" in result.stdout


def test_an_aggregator_takes_the_same_options(tmp_path: Path) -> None:
    """As the unit's first lines say."""
    file = tmp_path / "worker.toml"
    file.write_text(CONFIGURATION)
    arguments = ["aggregator", "--config", str(file), "--check"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_the_unit_leaves_the_walls_what_they_need() -> None:
    """Nothing is set that takes namespaces, filters or kernels from the children."""
    set_ = dict(settings())
    assert set(set_["RestrictNamespaces"].split()) == {"user", "net", "pid"}
    assert not [word for word in calls() if word.startswith("~")]
    assert {"@system-service", "unshare", "landlock_restrict_self"} <= calls()
    for key in ("MemoryDenyWriteExecute", "ProcSubset", "PrivateNetwork"):
        assert key not in set_
        assert key in UNIT.read_text()  # and it is said why
    assert set_["NoNewPrivileges"] == "yes"
    assert set_["CapabilityBoundingSet"] == ""
    assert set_["KillMode"] == "mixed"
    assert int(set_["LimitNOFILE"]) == FILES


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd here"
)
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """It knows every setting and every value."""
    program = tmp_path / "obhut"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/obhut/bin/obhut", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    about = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert about == []
    assert done.returncode == 0, done.stderr


def test_the_container_copies_what_there_is() -> None:
    """And all that the package is built from."""
    text = CONTAINER.read_text()
    copied = {
        name
        for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
        for name in line.split()
    }
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "src", *project["license-files"]} <= copied
    assert project.get("readme", "README.md") in copied
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)


def test_the_page_names_commands_that_exist() -> None:
    """Each ``obhut …`` in a block of the page takes the options that it is given."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [
        line.split("#")[0].strip() for block in blocks for line in block.split("\n")
    ]
    said = [line for line in lines if re.match(r"(sudo -u obhut )?\S*obhut ", line)]
    assert len(said) > 5
    for line in said:
        words = shlex.split(line.removeprefix("sudo -u obhut "))[1:]
        depth = 2 if words[0] == "keys" else 1
        told = CliRunner().invoke(
            app, [*words[:depth], "--help"], env={"COLUMNS": "200"}
        )
        assert told.exit_code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in told.stdout, line


def test_what_must_be_secret_is(tmp_path: Path) -> None:
    """The modes that the page names are those of the files."""
    folder = tmp_path / "obhut"
    Identity.create().save(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "identity.key").stat().st_mode & 0o777 == 0o600
    assert "`identity.key` | 0600" in PAGE.read_text()


def expanded(names: set[str]) -> set[str]:
    """Return the system calls that groups of them stand for, as systemd says."""
    found: set[str] = set()
    for name in names:
        if not name.startswith("@"):
            found.add(name)
            continue
        done = subprocess.run(
            ["systemd-analyze", "syscall-filter", name],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        lines = [line.strip() for line in done.stdout.splitlines()]
        inner = {line for line in lines if line and not line.startswith("#")} - {name}
        found |= expanded({one for one in inner if " " not in one})
    return found


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd here"
)
def test_the_units_filter_lets_the_walls_be_built() -> None:
    """What a child may call, and what it builds its walls with, are in the filter."""
    allowed = expanded(calls())
    walls = {
        "capset",
        "prctl",
        "unshare",
        "prlimit64",
        "clone",
        "wait4",
        "memfd_create",
        "pidfd_open",
        "pidfd_send_signal",
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
    }
    assert (walls | set(CALLS)) - allowed == set()
