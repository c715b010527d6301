"""Arguments that a kernel trusts are checked before it runs behind a guard."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from obhut.errors import CallError
from obhut.ops.table import ROWS, Flag
from obhut.worker.argument_checks import CHECKS
from obhut.worker.guarded import guarded


def test_what_the_table_wants_checked_is_checked():
    """Each row that is admitted after a check has one, and no other row has."""
    wanted = {r.name for r in ROWS.values() if Flag.GUARD_CHECKED in r.flags}
    assert wanted == set(CHECKS)
    assert wanted


# Each is an expression over ``t``, a function that makes ones of a shape.
FORGED = {
    "lstm": "lstm.input(t(2, 3, 4), [t(1, 3, 5)] * 2, [t(20, 4), t(20, 9), t(20), "
    "t(20)], True, 1, 0.0, False, False, False)",
    "gru": "gru.input(t(2, 3, 4), t(1, 3, 5), [t(15, 4), t(15, 5), t(2), t(15)], "
    "True, 1, 0.0, False, False, False)",
    "lstm cell": "lstm_cell.default(t(3, 4), [t(3, 5), t(3, 5)], t(20, 4), t(20, 5), "
    "t(20), None)",
    "gru cell": "gru_cell.default(t(3, 4), t(3, 5), t(15, 4), t(15, 5), t(2), t(15))",
    "batch norm": "_native_batch_norm_legit.no_stats(t(2, 900000, 3), t(1), t(1), "
    "True, 0.1, 1e-5)",
    "attention": "_scaled_dot_product_flash_attention_for_cpu.default("
    "t(64, 64, 64, 64), t(1, 1, 64, 64), t(1, 1, 64, 64))",
    "weight norm": "_weight_norm_interface.default(t(90000000, 1), t(1, 1), 0)",
    "grid sampler": "grid_sampler_2d.default(t(1, 1, 4, 4), t(1, 2, 2, 2), 3, 0, "
    "False)",
    "padding mode": "grid_sampler_3d.default(t(1, 1, 4, 4, 4), t(1, 2, 2, 2, 3), 0, 7, "
    "False)",
    "antialiased": "_upsample_bilinear2d_aa.default(t(1, 1, 40, 40), [4, 4], False, "
    "1e-9, -1e-9)",
    "mask": "index.Tensor(t(3), [t(3) > 0])",
    "batch sizes that are values": "lstm.data(t(3, 4), t(2), [t(1, 2, 5)] * 2, "
    "[t(20, 4), t(20, 5)], False, 1, 0.0, False, False)",
    "values among batch sizes": "rnn_tanh.data(t(3, 4), [t(1), 1], t(1, 2, 5), "
    "[t(5, 4), t(5, 5)], False, 1, 0.0, False, False)",
    "no batch sizes": "gru.data(t(0, 4), [], t(1, 2, 5), [t(15, 4), t(15, 5)], False, "
    "1, 0.0, False, False)",
    "batch sizes that grow": "rnn_relu.data(t(3, 4), [1, 2], t(1, 1, 5), "
    "[t(5, 4), t(5, 5)], False, 1, 0.0, False, False)",
    "batch sizes of other rows": "gru.data(t(3, 4), [2, 2], t(1, 2, 5), "
    "[t(15, 4), t(15, 5)], False, 1, 0.0, False, False)",
    "packed weights": "gru.data(t(3, 4), [2, 1], t(1, 2, 5), [t(15, 4), t(15, 9)], "
    "False, 1, 0.0, False, False)",
    "fused state": "_fused_adam_.default([t(900000)], [t(900000)], [t(1)], "
    "[t(900000)], [], [t(())], 0.1, 0.9, 0.9, 0.0, 1e-8, False, False)",
    "fused states": "_fused_adamw_.default([t(3)] * 9, [t(3)] * 9, [t(3)] * 9, "
    "[t(3)] * 9, [], [t(())], 0.1, 0.9, 0.9, 0.0, 1e-8, False, False)",
    "fused maxima": "_fused_adam_.default([t(3)], [t(3)], [t(3)], [t(3)], [], "
    "[t(())], 0.1, 0.9, 0.9, 0.0, 1e-8, True, False)",
    "fused momentum": "_fused_sgd_.default([t(3)], [t(3)], [], 0.0, 0.9, 0.1, 0.0, "
    "False, False, False)",
    "fused dtypes": "_fused_sgd_.default([t(3).double()], [t(3)], [], 0.0, 0.0, 0.1, "
    "0.0, False, False, False)",
    "fused strides": "_fused_sgd_.default([t(3, 900).t()], [t(900, 3)], [], 0.0, 0.0, "
    "0.1, 0.0, False, False, False)",
    "fused steps": "_fused_adam_.default([t(3)], [t(3)], [t(3)], [t(3)], [], [t(0)], "
    "0.1, 0.9, 0.9, 0.0, 1e-8, False, False)",
    "fused scale": "_fused_sgd_.default([t(3)], [t(3)], [], 0.0, 0.0, 0.1, 0.0, False, "
    "False, False, t(0), None)",
    "fused rate": "_fused_sgd_.tensor_lr([t(3)], [t(3)], [], 0.0, 0.0, t(0), 0.0, "
    "False, False, False)",
    "fused nothing": "_fused_sgd_.default([], [], [], 0.0, 0.0, 0.1, 0.0, False, "
    "False, False)",
    "weights of another dtype": "lstm_cell.default(t(3, 4), [t(3, 5), t(3, 5)], "
    "t(20, 4).double(), t(20, 5), None, None)",
}


@pytest.mark.parametrize("call", FORGED.values(), ids=FORGED)
def test_a_forged_call_is_refused(call):
    """The check says what it expected before the kernel runs."""
    name, _, arguments = call.partition("(")
    how = guarded(f"aten.{name}")
    args = eval(f"[{arguments[:-1]}]", {"t": torch.ones})
    with pytest.raises(CallError, match="behind a guard expected"):
        how.check_arguments(args, {})


GENUINE = {
    "lstm": torch.nn.LSTM(4, 5, 2, bidirectional=True),
    "projected": torch.nn.LSTM(4, 5, 2, proj_size=3),
    "batch first": torch.nn.LSTM(4, 5, batch_first=True),
    "gru": torch.nn.GRU(4, 5, 2, bias=False),
    "lstm cell": lambda x: torch.nn.LSTMCell(4, 5)(x[0]),
    "gru cell": lambda x: torch.nn.GRUCell(4, 5, bias=False)(x[0]),
    "grid": lambda x: torch.nn.functional.grid_sample(
        torch.ones(1, 2, 4, 4), torch.zeros(1, 3, 3, 2), align_corners=False
    ),
    "antialias": lambda x: torch.nn.functional.interpolate(
        torch.ones(1, 2, 9, 7), scale_factor=0.5, mode="bicubic", antialias=True
    ),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(
        *[torch.ones(2, 3, 4, 5)] * 3
    ),
    "weight norm": torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3)),
    "index": lambda x: x[torch.tensor([0, 1])],
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("call", GENUINE.values(), ids=GENUINE)
def test_what_modules_pass_is_accepted(call):
    """The checks let PyTorch's own modules through."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Checked(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = f"{func._schema.name.replace('::', '.')}.{func._overloadname}"
            if name in CHECKS:
                CHECKS[name](guarded(name).bind(args, kwargs or {}))
                seen.append(name)
            return func(*args, **(kwargs or {}))

    # In inference mode composites reach a mode undecomposed.
    for whole in (False, True):
        with torch.inference_mode(whole), torch.no_grad(), Checked():
            call(torch.ones(2, 3, 4))
    assert seen


# The others of ``FORGED`` are not shown to end a process. PyTorch refuses some of them
# itself. What only values make end a process is not checked: that process is the one
# that has the rows, which begins anew.
CRASHES = {
    "weight norm": f"aten.{FORGED['weight norm']}",
    "attention": f"aten.{FORGED['attention']}",
    "lstm of narrow weights": "aten.lstm.input(t(2, 3, 4), [t(1, 3, 500)] * 2, "
    "[t(20, 4), t(20, 500), t(20), t(20)], True, 1, 0.0, False, False, False)",
    "lstm of a small state": "aten.lstm.input(t(200, 300, 400), [t(1, 1, 5)] * 2, "
    "[t(20, 400), t(20, 5), t(20), t(20)], True, 1, 0.0, False, False, False)",
    "batch norm": "aten._batch_norm_with_update.default(t(2, 9000000, 3), "
    "*[t(1)] * 4, 0.1, 1e-5)",
    "statistics": "aten.batch_norm_update_stats.default(t(2, 90000000, 1), t(1), t(1), "
    "0.1)",
    "antialiased": "aten._upsample_lanczos2d_aa.default(t(1, 1, 40, 40), [4, 4], "
    "False, 1e-9, -1e-9)",
}


FORKING = """
import json, os, resource, sys
import torch

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
torch.set_num_threads(1)
t = torch.ones
ends = []
for code in sys.argv[1:]:
    child = os.fork()
    if not child:
        eval(f"torch.ops.{code}")
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def ends() -> dict[str, int]:
    """How a process ends that runs a forged call, by the call's name."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING, *CRASHES.values()],
        capture_output=True,
        check=True,
    )
    return dict(zip(CRASHES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", CRASHES)
def test_why_there_are_checks(name: str, ends: dict[str, int]) -> None:
    """Without its check a forged call ends the process that runs it, by a signal."""
    assert ends[name] < 0


@pytest.mark.parametrize("name", CRASHES)
def test_what_crashes_is_refused(name: str) -> None:
    """The check of each operator that ends a process lets its forged call not run."""
    name, _, arguments = CRASHES[name].partition("(")
    given = eval(
        f"[{arguments[:-1]}]", {"t": lambda *sizes: torch.ones(1).expand(sizes)}
    )
    with pytest.raises(CallError, match="behind a guard expected"):
        guarded(name).check_arguments(given, {})


def test_a_mode_that_does_not_exist_shows_what_nobody_wrote() -> None:
    """Without its check a sampler leaves its result as memory that was there before."""
    args = (torch.zeros(1, 1, 4, 4), torch.zeros(1, 60, 60, 2), 3, 0, False)

    def shows() -> bool:
        before = [torch.full((1, 1, 60, 60), 7.5) for _ in range(8)]
        del before
        seen = [torch.ops.aten.grid_sampler_2d.default(*args) for _ in range(8)]
        return any(bool((one == 7.5).any()) for one in seen)

    assert any(shows() for _ in range(50))


def test_arguments_that_can_not_be_checked_are_refused() -> None:
    """Too few of them, or of another kind, are a call that is refused in words."""
    how = guarded("aten.lstm.input")
    for args in ([], [torch.ones(2, 3, 4), 3, 4, True, 1, 0.0, False, False, False]):
        with pytest.raises(CallError, match="behind a guard expected other arguments"):
            how.check_arguments(args, {})


def test_what_is_known_of_an_operator() -> None:
    """What it writes, whether its results are new, its arguments by name."""
    how = guarded("aten.add.out")
    assert (how.written, how.holds) == (("out",), False)
    assert how.bind([1, 2], {"out": 3}) == {"self": 1, "other": 2, "out": 3}
    assert guarded("aten.add.out") is how
    assert guarded("aten._foreach_add_.Scalar").written == ("self",)
    assert guarded("aten.add.Tensor").holds
