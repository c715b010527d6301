"""Whether a program is one that workers run.

Rule: whoever gets a program checks it before anything of it is run, and trusts neither
its sender nor whoever recorded it. Shapes and dtypes are checked where it is lowered.
"""

from __future__ import annotations

from obhut.errors import OpNotAdmittedError, ProgramError
from obhut.ops.table import Kind, admitted
from obhut.protocol import limits
from obhut.protocol.dtypes import ITEM_BYTES
from obhut.protocol.messages import Ref

from .loops import check_loops
from .program import STEP, WORDS, WRITE_DATA, Line, Program, Size, Tally
from .program import Kind as InputKind

OPTIMIZERS = (
    *("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"),
    *("RMSprop", "Rprop", "SGD"),
)
"""The classes of ``torch.optim`` whose steps a program may take."""

_NO_STEPS = {
    "Adafactor": "it has no form that PyTorch's own tests hold to one result",
    "LBFGS": "it computes the loss as often as values ask for",
    "Muon": "it has no form that PyTorch's own tests hold to one result",
    "SparseAdam": "its gradients are sparse, which programs have none of",
}


def check(program: Program) -> None:
    """Check all of a program but for shapes and dtypes of what it computes.

    Raises:
        ProgramError: if it is none that workers run; it names the line.
        OpNotAdmittedError: if they don't run one of its operators, or not behind a
            guard.
    """
    _check_inputs(program)
    own = {
        id for id, one in enumerate(program.inputs, 1) if one.kind is not InputKind.ROWS
    }
    for optimizer in program.optimizers:
        check_optimizer(optimizer.kind)
        stepped = [id for group in optimizer.groups for id in group]
        if len({*stepped}) < len(stepped) or not own.issuperset(stepped):
            raise ProgramError(
                f"{optimizer.kind} steps inputs that are no rows, each once"
            )
    lines = program.lines
    if len(lines) > limits.REQUESTS_PER_BATCH:
        raise ProgramError(f"a program has at most {limits.REQUESTS_PER_BATCH:,} lines")
    if program.loops:
        check_loops(program)
    elif any(isinstance(one, Tally) for line in lines for one in line.atoms):
        raise ProgramError("a number counts what no loop goes through")
    for number, line in enumerate(lines, 1):
        try:
            _check_line(program, line)
        except OpNotAdmittedError:
            raise
        except ProgramError as error:
            raise ProgramError(f"step {number} of the program: {error}") from None
    if not program.loops and any(
        isinstance(one.denominator, Tally) for one in program.results
    ):
        raise ProgramError("a number counts what no loop goes through")
    if not program.results and not program.loops:
        raise ProgramError("a program returns something: a loss, or a Ratio")
    names = [one.name for one in program.results]
    if len({*names}) < len(names) or ("" in names and len(names) > 1):
        raise ProgramError("what a program returns has a name each, or is one alone")


def check_optimizer(kind: str) -> None:
    """Check that a program may take an optimizer's steps.

    Raises:
        ProgramError: if not, and why.
    """
    if kind not in OPTIMIZERS:
        why = _NO_STEPS.get(kind, "it is none of PyTorch's")
        raise ProgramError(
            f"a program takes no steps of {kind}: {why}; use one of "
            f"{', '.join(OPTIMIZERS)}"
        )


def _check_inputs(program: Program) -> None:
    for one in program.inputs:
        if one.dtype not in ITEM_BYTES:
            raise ProgramError(f"no tensor has dtype {one.dtype[:80]!r}")
        rows = one.kind is InputKind.ROWS
        whole = one.shape[1:] if rows else one.shape
        if any(isinstance(size, Size) or size < 0 for size in whole):
            raise ProgramError(f"{one.name} has sizes that are no numbers")
        if rows and one.shape[:1] != (Size(1),):
            raise ProgramError(f"{one.name} is rows, and its first size is $B")
    if not program.rows:
        raise ProgramError("a program goes through rows, and this one has no input")


def _check_line(program: Program, line: Line) -> None:
    if len(line.args) + len(line.kwargs) > limits.ARGUMENTS_PER_REQUEST:
        raise ProgramError(f"{line.name} has too many arguments")
    if "." in line.name:
        row = admitted(line.name, guarded=True)
        if row.kind is Kind.VALUE:
            raise ProgramError(f"{line.name} reads values")
        if line.count and row.kind in (Kind.INPLACE, Kind.OUT):
            raise ProgramError(f"{line.name} makes no result of its own")
        return
    if line.name not in WORDS:
        raise ProgramError(f"nothing is called {line.name[:80]!r}")
    results, arguments = WORDS[line.name]
    if len(line.args) != arguments or line.kwargs:
        raise ProgramError(f"{line.name} takes {arguments} arguments")
    if results is not None and line.count != results:
        raise ProgramError(f"{line.name} makes {results} results")
    if line.name == STEP:
        number = line.args[0]
        if type(number) is not int or not 0 <= number < len(program.optimizers):
            raise ProgramError("a step names one of the program's optimizers")
    elif line.name == WRITE_DATA and next(line.reads, 0) <= len(program.inputs):
        raise ProgramError(
            "an input keeps its memory: write p.data.copy_(x) instead of p.data = x"
        )
    elif line.name not in ("backward", "differentiate") and not isinstance(
        line.args[0], Ref
    ):
        raise ProgramError(f"{line.name} takes a tensor first")
