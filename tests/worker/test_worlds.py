"""Every operator behind a guard, in worlds that differ in values only.

``OBHUT_CONFORMANCE=full`` runs all of them; else a fixed sample is run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from obhut.ops.table import ROWS, Flag, Kind
from obhut.testing.worlds import answers, record, worlds

FULL = os.environ.get("OBHUT_CONFORMANCE") == "full"

IMPORTANT = {
    "cholesky",
    "gather",
    "index_add",
    "index_select",
    "linalg.eig",
    "linalg.lu_solve",
    "linalg.ldl_solve",
    "linalg.solve",
    "multinomial",
    "nn.functional.embedding",
    "nn.functional.linear",
    "nn.functional.nll_loss",
    "scatter",
    "take",
}
"""Entries of ``op_db`` that a sample always has."""

pytestmark = pytest.mark.filterwarnings("ignore")

# A call that ends the process must not end the tests: a child runs the calls, and
# says which one it begins.
CHILD = """
import json, resource, sys, warnings
warnings.simplefilter("ignore")
import torch
from obhut.testing.worlds import answers, record, worlds
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
torch.set_num_threads(1)
names, skipped, each, guarded = json.loads(sys.argv[1])
for op, calls in record(names, samples=4, each=each).items():
    for call in calls if op not in skipped else ():
        for grad in (False, True):
            first = None
            for world, twin in worlds(call):
                print("begin", op, world, flush=True)
                told = repr(answers(twin, grad=grad, guarded=guarded))
                first = first or told
                if told != first:
                    print("differs", op, world, grad, first[:300], "and", told[:300])
print("done")
"""


def _names() -> list[str]:
    from torch.testing._internal.common_methods_invocations import op_db

    every = sorted({op.full_name for op in op_db})
    return every if FULL else sorted({*every[::90], *IMPORTANT})


def _run(
    names: list[str], *, guarded: bool, skipped: list[str], each: int
) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([names, skipped, each, guarded])],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()


REFUSED = [
    r.name
    for r in ROWS.values()
    if r.kind is Kind.REFUSED or Flag.GUARD_REFUSED in r.flags
]


@pytest.mark.slow
@pytest.mark.timeout(1800 if FULL else 120)
def test_no_answer_depends_on_values() -> None:
    """Errors, looks of results, graphs and gradients are the same in all worlds."""
    lines = _run(_names(), guarded=True, skipped=REFUSED, each=2 if FULL else 1)
    assert [line for line in lines if line.startswith("differs")] == []
    # The last line is the call that ended the process, if one did.
    assert lines[-1] == "done"
    assert len(lines) > 300


@pytest.mark.slow
def test_without_a_guard_answers_depend_on_values() -> None:
    """The same comparison finds the worlds apart on an open worker."""
    names = ["gather", "cholesky"]
    lines = _run(names, guarded=False, skipped=REFUSED, each=1)
    differ = {line.split()[1] for line in lines if line.startswith("differs")}
    assert {"aten.gather.default", "aten.cholesky.default"} <= differ


def test_a_world_changes_values_only() -> None:
    """Twins of a call have its sizes, strides and dtypes, and not all its values."""
    calls = record(["gather"], samples=2, each=2)["aten.gather.default"]
    assert calls
    for call in calls:
        twins = [twin for _, twin in worlds(call)]
        assert len(twins) > 8
        for twin in twins:
            for one, other in zip(call.tensors(), twin.tensors(), strict=True):
                assert one.shape == other.shape
                assert one.stride() == other.stride()
                assert one.dtype is other.dtype
        assert len({str(twin) for twin in twins}) > 4


def test_a_call_is_answered_with_what_can_be_learned() -> None:
    """An answer has a result's look, and an error where there was one."""
    (call, *_) = record(["gather"], samples=2, each=2)["aten.gather.default"]
    told = answers(call, grad=False)
    assert told is not None
    assert "torch.float32" in repr(told)
