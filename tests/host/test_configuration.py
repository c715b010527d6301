"""Configurations: what is understood, and what is refused in which words."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obhut.errors import ConfigurationError
from obhut.host.configuration import load
from obhut.host.sizes import Size

from .conftest import HEAD

ID = "a" * 52
FULL = f"""
id = "bob"
listen = "0.0.0.0:7000"
attach = "[::1]:7000"
folder = "state"
sandbox = "none"
device = "cuda:1"

[limits]
memory = "1.5 GiB"
sessions = 2
session_seconds = 60
threads = 3

[access]
sessions = ["{ID}"]
deliver = ["aggregator"]

[[peer]]
name = "aggregator"
id = "{ID}"
address = "[::1]:7000"

[policy]
kind = "UnsafeOpen"

[[dataset]]
name = "diagnosis"
path = "data.csv"
features = ["a", "b"]
target = "y"
classes = ["M", "B"]
dtype = "float32"
missing = "nan"
tags = ["#cancer"]
description = "a sentence"
public = {{ names = true, rows = "rounded" }}
"""


def test_everything_is_understood(configure, tmp_path):
    """Each key arrives, and paths are relative to the file."""
    one = configure(FULL)
    assert (one.id, one.listen) == ("bob", "0.0.0.0:7000")
    assert one.attach == "[::1]:7000"
    assert one.folder == tmp_path / "state"
    assert (one.sandbox, one.device) == ("none", "cuda:1")
    assert (one.limits.memory, one.limits.sessions) == (3 * 2**29, 2)
    assert (one.limits.session_seconds, one.limits.threads) == (60, 3)
    assert one.access.sessions == (ID,)
    assert one.access.deliver == ("aggregator",)
    assert [(p.name, p.id, p.address) for p in one.peers] == [
        ("aggregator", ID, "[::1]:7000")
    ]
    (data,) = one.datasets
    assert (data.name, data.path) == ("diagnosis", tmp_path / "data.csv")
    assert (data.features, data.target) == (("a", "b"), "y")
    assert (data.classes, data.missing) == (("M", "B"), "nan")
    assert data.public.names
    assert not data.public.types
    assert data.public.rows == "rounded"


def test_defaults_admit_nobody_and_hide_everything(configure, tmp_path):
    """What is not said is refused, hidden, walled off and limited."""
    one = configure(HEAD + '[[dataset]]\nname="d"\npath="d.csv"\nfeatures="*"')
    assert one.access.sessions == one.access.deliver == ()
    assert one.sandbox == "auto"
    assert one.limits.memory == 2 * 2**30
    assert one.folder == tmp_path
    public = one.datasets[0].public
    assert (public.names, public.types, public.rows) == (False, False, "hidden")


def test_every_limit_is_documented(configure):
    """The page for owners has a row for each, with the default that holds."""
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*?)\|", page.read_text(), re.MULTILINE))
    limits = configure(HEAD).limits
    for name in limits.__struct_fields__:
        default = getattr(limits, name)
        shown = "" if default is None else str(default)
        assert rows[name].strip(' `"') == shown, name


def test_a_place_to_spool_must_be_a_folder(configure, tmp_path):
    """One that is missing, or a file, is refused at once; a path is the file's own."""
    (tmp_path / "disk").mkdir()
    assert (
        configure(HEAD + '[limits]\nspool = "disk"').limits.spool == tmp_path / "disk"
    )
    (tmp_path / "file").write_text("")
    for name in ("missing", "file"):
        with pytest.raises(ConfigurationError, match="no folder that this user") as e:
            configure(HEAD + f'[limits]\nspool = "{name}"')
        assert "spool" in str(e.value)


def test_the_documented_configuration_loads(configure):
    """The page for owners shows one that a worker takes."""
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    one = configure(blocks[0])
    assert one.id == "bob"
    assert [data.name for data in one.datasets] == ["diagnosis", "scans"]
    for lines in blocks[1:]:
        assert configure(HEAD + lines).datasets


def test_a_configuration_can_not_be_changed(configure):
    """It is what the owner wrote, as long as the worker runs."""
    with pytest.raises(AttributeError):
        configure(HEAD).id = "eve"


DATA = '[[dataset]]\nname = "d"\npath = "d.csv"\nfeatures = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "key", "problem", "advice"),
    [
        ('lisen = ":1"\n' + HEAD, "lisen", "not a known key", "did you mean listen?"),
        (HEAD + "[limit]\n", "[limit]", "not a known key", "did you mean limits?"),
        (HEAD + "[[peers]]\n", "peers", "not a known key", "did you mean peer?"),
        (
            HEAD + '[limits]\nsandbox = "none"\n',
            "sandbox of [limits]",
            "not a known key",
            "belongs at the top",
        ),
        (
            HEAD + DATA + "feature = 1\n",
            'feature of [[dataset]] "d"',
            "not a known key",
            "did you mean features?",
        ),
        (
            HEAD + DATA + "public = { row = true }\n",
            'row of [public] of [[dataset]] "d"',
            "not a known key",
            "did you mean rows?",
        ),
        (HEAD + "zzz = 1", "zzz of [policy]", "not a known key", "known here: kind"),
        ('id = "bob"', "policy", "is missing", "UnsafeOpen"),
        ('id = "bob"\n[policy]', "kind of [policy]", "is missing", "UnsafeOpen"),
        (
            HEAD.replace("UnsafeOpen", "Quorum") + "k = 3\n",
            "k of [policy]",
            "not a known key",
            "known here: kind, aggregators, contributors",
        ),
        (
            HEAD.replace("UnsafeOpen", "unsafe_open"),
            "kind of [policy]",
            'expected "UnsafeOpen" or "Quorum", got "unsafe_open"',
            'did you mean "UnsafeOpen"?',
        ),
        (
            HEAD.replace("UnsafeOpen", "strict"),
            "kind of [policy]",
            'got "strict"',
            'write "UnsafeOpen"',
        ),
        (
            HEAD.replace('"UnsafeOpen"', "3"),
            "kind of [policy]",
            "got 3",
            "write",
        ),
        (
            HEAD.replace("UnsafeOpen", "Quorum"),
            "aggregators of [policy]",
            "is missing",
            "add aggregators",
        ),
        (HEAD.replace('id = "bob"\n', ""), "id", "is missing", "add id"),
        (HEAD.replace('"bob"', '""'), "id", "not empty", "correct"),
        (HEAD.replace('"bob"', '"b b"'), "id", "expected a name", "correct"),
        (HEAD.replace('"bob"', "3"), "id", "expected text in quotes", "correct"),
        (
            HEAD.replace('listen = "127.0.0.1:0"', ""),
            "listen",
            "and so is attach",
            "add listen",
        ),
        (HEAD.replace(":0", ""), "listen", 'expected "host:port"', "correct"),
        (HEAD.replace(":0", ":70000"), "listen", 'expected "host:port"', "correct"),
        ('attach = "a:0"\n' + HEAD, "attach", "expected the port", "for listen only"),
        ('attach = "a:1"\n' + HEAD, "attach", "no [[peer]] has", "add a [[peer]]"),
        (
            HEAD + '[access]\nattach = ["*"]\n',
            "attach of [access]",
            'expected ids and names of peers, got "*"',
            "list each by itself",
        ),
        (
            HEAD + '[limits]\nrequester_memory = "1 GiB"',
            "requester_memory of [limits]",
            "at least as much as memory, which is 2 GiB, got 1 GiB",
            "larger",
        ),
        (
            HEAD + '[limits]\nall_memory = "1 GiB"',
            "all_memory of [limits]",
            "at least as much as memory, which is 2 GiB",
            "larger",
        ),
        (
            HEAD + '[limits]\nrequester_memory = "9 GiB"\nall_memory = "4 GiB"',
            "all_memory of [limits]",
            "at least as much as requester_memory, which is 9 GiB",
            "larger",
        ),
        (
            HEAD + "[limits]\nsessions = 100",
            "all_sessions of [limits]",
            "at least as much as sessions, which is 100, got 64",
            "larger",
        ),
        ('device = "gpu"\n' + HEAD, "device", 'expected "cpu"', "correct"),
        (
            'sandbox = "on"\n' + HEAD,
            "sandbox",
            'expected "auto" or "none", got "on"',
            "write",
        ),
        (
            HEAD + "[limits]\nmemory = 2",
            "memory of [limits]",
            'such as "2 GiB", got 2',
            "correct",
        ),
        (
            HEAD + "[limits]\nsessions = 0",
            "sessions of [limits]",
            "a whole number >= 1, got 0",
            "correct",
        ),
        (
            HEAD + "[limits]\nthreads = true",
            "threads of [limits]",
            "expected a whole number, got true or false",
            "correct",
        ),
        ("limits = 3\n" + HEAD, "limits", "expected a table, got", "correct"),
        (
            HEAD + '[access]\nsessions = ["*"]',
            "sessions of [access]",
            'got "*"',
            "no pattern",
        ),
        (
            HEAD + '[access]\ndeliver = ["a", "a"]',
            "deliver of [access]",
            "listed twice",
            "remove",
        ),
        (
            HEAD + '[access]\ndeliver = ["a", 1]',
            "entry 2 of deliver of [access]",
            "expected text in quotes, got a whole number",
            "correct",
        ),
        (
            HEAD + '[[peer]]\nname = "p"\nid = "abc"',
            'id of [[peer]] "p"',
            "an id of 52",
            "correct",
        ),
        (HEAD + '[[peer]]\nname = "p"', 'id of [[peer]] "p"', "is missing", "add id"),
        (
            HEAD + f'[[peer]]\nid = "{ID}"',
            "name of [[peer]] number 1",
            "is missing",
            "add name",
        ),
        (
            HEAD + f'[[peer]]\nname = "bob"\nid = "{ID}"',
            'name of [[peer]] "bob"',
            "own id",
            "another name",
        ),
        (
            HEAD + f'[[peer]]\nname = "p"\nid = "{ID}"\naddress = "h:0"',
            'address of [[peer]] "p"',
            "expected the port",
            "listen only",
        ),
        (
            HEAD + f'[[peer]]\nname = "p"\nid = "{ID}"\n' * 2,
            'name of [[peer]] "p"',
            "of two [[peer]]",
            "once",
        ),
        (
            HEAD + "".join(f'[[peer]]\nname = "{n}"\nid = "{ID}"\n' for n in "pq"),
            'id of [[peer]] "q"',
            "of two [[peer]]",
            "once",
        ),
        (HEAD + DATA * 2, 'name of [[dataset]] "d"', "of two [[dataset]]", "once"),
        *(
            (
                HEAD + f'[access]\nsessions = ["{ID}", "me"]\n' + DATA + given,
                'requesters of [[dataset]] "d"',
                problem,
                advice,
            )
            for given, problem, advice in (
                ("requesters = []", "expected names or ids, got none", "for all who"),
                ('requesters = ["me", "me"]', '"me" is listed twice', "remove one"),
                (
                    'requesters = ["me", "you"]',
                    '"you" is not among those who may open sessions',
                    "add it to sessions of [access]",
                ),
                ('requesters = ["*"]', '"*" is not among those', "leave it out here"),
            )
        ),
    ],
)
def test_what_is_wrong_is_named(configure, tmp_path, text, key, problem, advice):
    """The error has the file, the key in words, what came and what to write."""
    with pytest.raises(ConfigurationError) as caught:
        configure(text)
    error = caught.value
    assert error.key == key
    assert problem in error.problem
    assert advice in error.advice
    assert str(error).startswith(f"{tmp_path / 'worker.toml'}, {key}: ")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("lines", "key", "problem"),
    [
        ('path = "d.xls"\nfeatures = "*"', "path", "does not say what it is"),
        ('path = ""\nfeatures = "*"', "path", "not empty"),
        ('path = "d.csv"', "features", "only if they are named"),
        ('path = "d.csv"\nfeatures = []', "features", "got none"),
        ('path = "d.csv"\nfeatures = [""]', "features", "got none"),
        ('path = "d.csv"\nfeatures = ["a", "a"]', "features", "listed twice"),
        ('path = "d.csv"\nfeatures = ["a"]\ntarget = "a"', "features", "is both"),
        ('path = "d.csv"\nfeatures = 3', "features", "got a whole number"),
        ('path = "d.csv"\nfeatures = "*"\nclasses = ["M"]', "classes", "no"),
        (
            'path = "d.csv"\nfeatures = "*"\ntarget_dtype = "int8"',
            "target_dtype",
            "there is none",
        ),
        (
            'path = "d.csv"\ntarget = "y"\nclasses = ["M", "M"]',
            "classes",
            "listed twice",
        ),
        (
            'path = "d.csv"\ntarget = ["y", "z"]\nclasses = ["M"]',
            "classes",
            "expected one target column, got 2",
        ),
        (
            'path = "d.csv"\ntarget = "y"\nclasses = ["M"]\ntarget_dtype = "float32"',
            "target_dtype",
            "got float32",
        ),
        (
            f'path = "d.csv"\ntarget = "y"\nclasses = {list(range(129))}\n'
            'target_dtype = "int8"',
            "classes",
            "129 classes do not fit int8",
        ),
        ('path = "d.csv"\nfeatures = "*"\ndtype = "float3"', "dtype", "got"),
        ('path = "d.csv"\nfeatures = "*"\ndtype = "float8_e5m2"', "dtype", "expected"),
        (
            'path = "d.csv"\nfeatures = "*"\ndtype = "int8"\nmissing = "nan"',
            "missing",
            "int8 has none",
        ),
        ('path = "d.csv"\nfeatures = "*"\ndelimiter = ";;"', "delimiter", "one char"),
        ('path = "d.csv"\nfeatures = "*"\ndelimiter = "a"', "delimiter", "one char"),
        ('path = "d.csv"\nfeatures = "*"\ndecimal = ","', "decimal", "as well"),
        (
            'path = "d.parquet"\nfeatures = "*"\ndelimiter = ";"',
            "delimiter",
            "CSV files only",
        ),
        ('path = "d.pq"\nfeatures = "*"\ndecimal = ","', "decimal", "CSV files only"),
        ('path = "d.npy"\nfeatures = "x"', "features", "no meaning for npy"),
        ('path = "d.npy"\ntarget = "x"', "target", "no meaning for npy"),
        ('path = "d.npz"\nfeatures = ["x"]', "features", "got a list"),
        ('path = "d.npz"\ntarget = "y"\nclasses = ["M"]', "classes", "no meaning"),
        ('path = "d.npz"\ndelimiter = ";"', "delimiter", "no meaning"),
        ('path = "d.safetensors"\ndecimal = ","', "decimal", "no meaning"),
        ('path = "d.npz"\ntarget_dtype = "int8"', "target_dtype", "there is none"),
        (f'path = "d.npz"\ntags = {["t"] * 257}', "tags", "at most 256"),
        (f'path = "d.npz"\ndescription = "{"t" * 4097}"', "description", "4,096"),
    ],
)
def test_a_declaration_that_can_not_be_meant_is_refused(configure, lines, key, problem):
    """A data set is refused before its file is opened, by the key at fault."""
    with pytest.raises(ConfigurationError) as caught:
        configure(HEAD + '[[dataset]]\nname = "d"\n' + lines)
    assert caught.value.key.endswith(f'{key} of [[dataset]] "d"')
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"id = \n", "is not TOML: Invalid value (at line 1, column 6)"),
        (b'id = "a"\n\n# \xff', "line 3: is not UTF-8"),
        (b"x = " + b"[" * 100_000, "is not TOML"),
        (b"#" * (2**20 + 1), "at most 1,048,576 bytes"),
    ],
)
def test_what_is_no_toml_is_refused(tmp_path, data, words):
    """A file that can not be understood says where."""
    file = tmp_path / "worker.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert words in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    """Its path is in the error."""
    with pytest.raises(ConfigurationError, match=r"none\.toml: can not be read"):
        load(tmp_path / "none.toml")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    """Editors on Windows write one."""
    file = tmp_path / "worker.toml"
    file.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert load(str(file)).id == "bob"


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def keys():
    """Return every key of every table, by the header it stands under."""
    tables = {
        "": "id listen attach folder sandbox device policy limits access peer dataset",
        "[limits]": "memory sessions session_seconds batch_seconds threads "
        "requester_memory requester_seconds requester_crashes all_sessions all_memory "
        "spool",
        "[access]": "sessions deliver attach",
        "[[peer]]": "name id address",
        "[policy]": "kind",
        "[[dataset]]": "name path format features target dtype target_dtype classes "
        "delimiter decimal missing tags description public",
    }
    return [(head, key) for head, names in tables.items() for key in names.split()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(keys()), VALUES)
def test_any_value_of_any_key_loads_or_is_refused(configure, where, value):
    """No value of any type leads to another error than ``ConfigurationError``."""
    head, key = where
    written = msgspec.json.encode(value).decode()
    if head == "":
        text = f"{key} = {written}\n{HEAD}"
    else:
        text = f"{HEAD if head != '[policy]' else ''}{head}\n{key} = {written}\n"
    try:
        configure(text)
    except ConfigurationError as error:
        text = str(error)
    else:
        text = ""
    assert len(text) < 1_000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_are_refused(tmp_path, data):
    """Garbage is a ``ConfigurationError``."""
    file = tmp_path / "worker.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigurationError):
        load(file)


@pytest.mark.parametrize(
    ("text", "size", "printed"),
    [
        ("2 GiB", 2**31, "2 GiB"),
        ("500 MB", 500_000_000, "476.8 MiB"),
        ("1.5kib", 1536, "1.5 KiB"),
        (" 7 B ", 7, "7 bytes"),
        ("1 TiB", 2**40, "1 TiB"),
    ],
)
def test_sizes_are_as_people_write_them(text, size, printed):
    """Units of 1,000 and of 1,024, with or without a space, any case."""
    assert Size.parse(text) == size
    assert str(Size.parse(text)) == printed


@pytest.mark.parametrize(
    "text", ["2", "2 G", "GiB", "-1 GiB", "0 B", "0.5 B", "1e3 B", "9999999 TiB", "", 5]
)
def test_other_sizes_are_refused(text):
    """A number without its unit is nobody's size."""
    with pytest.raises(ValueError, match="expected"):
        Size.parse(text)


@pytest.mark.parametrize("entry", ["me", ID])
def test_who_may_use_a_data_set_may_open_sessions(configure, entry):
    """By name or by id, whichever of them the other list has."""
    peer = f'[[peer]]\nname = "me"\nid = "{ID}"\n'
    given = f'requesters = ["{entry}"]\n'
    for other in ("me", ID):
        text = HEAD + f'[access]\nsessions = ["{other}"]\n' + DATA + given + peer
        assert configure(text).datasets[0].requesters == (entry,)


def test_requesters_of_a_policy_may_be_those_of_a_data_set(configure):
    """Where the policy says who may open sessions."""
    quorum = (
        'kind = "Quorum"\naggregators = ["hub"]\ncontributors = ["bob", "a", "c"]\n'
        'requesters = ["me"]'
    )
    head = HEAD.replace('kind = "UnsafeOpen"', quorum)
    given = configure(head + DATA + 'requesters = ["me"]').datasets[0]
    assert given.requesters == ("me",)
    with pytest.raises(ConfigurationError, match='"you" is not among those'):
        configure(head + DATA + 'requesters = ["you"]')
