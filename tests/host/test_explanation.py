"""What a configuration says in plain sentences."""

from __future__ import annotations

from obhut.host.explanation import explain

from .conftest import HEAD
from .test_configuration import FULL, ID


def test_what_is_dangerous_comes_first(configure, tmp_path):
    """Open policy and missing walls are the first two lines, then all the rest."""
    lines = explain(configure(FULL)).splitlines()
    assert lines == [
        "WARNING: the policy is UnsafeOpen. Nothing is enforced: whoever may open a "
        "session can read every row of every data set.",
        "WARNING: sessions are not walled off. A fault in PyTorch is a way to this "
        "machine and its network.",
        "bob listens at 0.0.0.0:7000 and dials [::1]:7000 and is reached through it.",
        f"Its identity, peers and ledger are in {tmp_path / 'state'}.",
        f"{ID} may open sessions.",
        "aggregator may deliver tensors into them.",
        f"It knows aggregator at [::1]:7000, by the id {ID}.",
        "Up to 2 sessions of each requester, each with up to 1.5 GiB of memory and 3 "
        "threads on cuda:1; a session outlives its connection for 60 seconds.",
        "Each requester has 86,400 seconds of processor time in 24 hours; one message "
        "may take 3,600 seconds. Who has more than 10 sessions crash in an hour opens "
        "no new one for a while.",
        "All requesters together have up to 64 sessions.",
        "Each requester may leave up to 1 GiB on its disk between sessions: results "
        "that stay here. obhut state list shows them.",
        "Data sets that take more than 1.5 GiB, or say so, are kept on the disk of "
        f"{tmp_path / 'state'}, in files without a name. What they hold stays there "
        "until it is overwritten.",
        f"Data set diagnosis is {tmp_path / 'data.csv'}; it takes as features a and b "
        "and as target y. Empty cells become NaN. Who may open a session is told its "
        "name, its tags, its description, the names of its columns and the rounded "
        "number of rows.",
    ]


def test_a_small_configuration_is_explained(configure):
    """Nobody, nothing and one are said in words."""
    text = explain(configure(HEAD + "[limits]\nthreads = 1\nsession_seconds = 1"))
    assert "Nobody may open sessions." in text
    assert "It holds no data sets." in text
    assert "1 thread on cpu; a session outlives its connection for 1 second." in text


def test_quotas_are_explained(configure):
    """Memory of several sessions together, and single ones, are said in words."""
    text = explain(
        configure(
            HEAD
            + '[limits]\nrequester_memory = "3 GiB"\nall_memory = "9 GiB"\n'
            + "batch_seconds = 1\nrequester_crashes = 1\nrequester_seconds = 1"
        )
    )
    assert (
        "1 second of processor time in 24 hours, and 3 GiB of memory for all "
        "sessions; one message may take 1 second. Who has more than 1 session crash"
    ) in text
    assert "up to 64 sessions, with 9 GiB of memory." in text
    assert "the disk of" not in text


def test_a_place_to_spool_is_explained(configure, tmp_path):
    """Where large tensors wait is said, and that it is not wiped."""
    text = explain(configure(HEAD + '[limits]\nspool = "."'))
    assert f"wait on the disk of {tmp_path}, in files without a name." in text
    assert "stays there until it is overwritten" in text


def test_dialling_out_and_relaying_are_explained(configure):
    """Who opens no port, who may attach, and what that lets others do are said."""
    aggregator = f'[[peer]]\nname = "aggregator"\nid = "{ID}"\naddress = "a:1"\n'
    alice = f'[[peer]]\nname = "alice"\nid = "{"b" * 52}"\n'
    out = HEAD.replace('listen = "127.0.0.1:0"', 'attach = "a:1"')
    text = explain(configure(out + aggregator + alice))
    assert "bob dials a:1 and is reached through it.\nIt opens no port." in text
    assert "It knows alice through a:1, by" in text
    assert "attach" not in text
    text = explain(configure(HEAD + '[access]\nattach = ["alice"]\n' + alice))
    assert "It opens no port." not in text
    assert "alice may attach. Whoever may do something here" in text
    assert "It knows alice where it is attached, by" in text
    assert "It knows alice without an address, by" in explain(configure(HEAD + alice))


def test_hidden_rows_are_explained(configure):
    """Behind a policy they are hidden; elsewhere the number is not told, and shows."""
    data = '[[dataset]]\nname = "d"\npath = "d.csv"\nfeatures = "*"\n'
    quorum = 'kind = "Quorum"\naggregators = ["hub"]\ncontributors = ["bob", "a", "c"]'
    text = explain(configure(HEAD.replace('kind = "UnsafeOpen"', quorum) + data))
    assert "its description and the types and sizes of a row. How many rows" in text
    assert "there are is hidden: recorded programs go through them" in text
    assert "is hidden" not in explain(configure(HEAD + data))


def test_what_a_data_set_takes_is_explained(configure):
    """All columns, or every array."""
    text = explain(
        configure(
            HEAD
            + '[[dataset]]\nname = "d"\npath = "d.csv"\nfeatures = "*"\n'
            + 'public = { types = true }\n[[dataset]]\nname = "e"\npath = "e.npz"'
            + f'\n[[peer]]\nname = "p"\nid = "{ID}"'
        )
    )
    assert "d.csv; it takes as features every column but the target." in text
    assert "its tags, its description and their types." in text
    assert "e.npz; it takes every array." in text
    assert "It knows p without an address" in text


def test_who_may_use_a_data_set_is_explained(configure):
    """And that nobody else is told of it."""
    peer = f'[[peer]]\nname = "p"\nid = "{ID}"\n[access]\nsessions = ["p", "q"]\n'
    data = '[[dataset]]\nname = "d"\npath = "d.npy"\n'
    text = explain(
        configure(HEAD + peer + data + 'requesters = ["p"]\nkeep = "memory"')
    )
    assert (
        "Nobody but p may use it, or is told its name, its tags and its description."
    ) in text
    assert "the disk of" not in text
    text = explain(configure(HEAD + peer + data))
    assert "Who may open a session is told its name" in text
    assert (
        "Data sets that take more than 2 GiB, or say so, are kept on the disk" in text
    )
