"""What passes between a client and a worker, as lines that can be read.

Rules:

- One request is one line; a result's name is its id: ``%5 = aten.add.Tensor(%1, %2)``.
- A session's name is random and is never shown, so that a trace is the same each
  time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from obhut.programs.text import digest
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    NOWHERE,
    Aggregate,
    Alias,
    AnyMessage,
    AnyRequest,
    Backward,
    Batch,
    Clear,
    Complex,
    Count,
    DatasetRows,
    Define,
    Describe,
    Differentiate,
    Expect,
    Fetch,
    Find,
    Free,
    Here,
    Inline,
    Label,
    Leaf,
    ListState,
    Load,
    Move,
    Put,
    ReadData,
    ReadGrad,
    RecallState,
    Ref,
    Request,
    RetainGrad,
    Run,
    RunProgram,
    SetRequiresGrad,
    Split,
    StoreState,
    Symbol,
    Value,
    WriteData,
    WriteGrad,
)
from obhut.transports import Pending, Transport
from obhut.worker.tensors import from_frame

from .wrapping import WrappingTransport


class TracingTransport(WrappingTransport):
    """A transport that remembers what is sent through it.

    Args:
        inner: the transport that carries the messages.

    Attributes:
        messages: what was submitted so far, in order; clear it to begin anew.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.mends = False
        self.messages: list[AnyMessage] = []

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message and remember it."""
        self.messages.append(message)
        return super().submit(message, frames)

    @property
    def requests(self) -> list[AnyRequest]:
        """The requests of all remembered batches, in order."""
        return list(requests_of(self.messages))

    def render(self, *, frees: bool = True) -> str:
        """Return the requests as lines; without ``frees`` leave ``Free`` out."""
        return render(
            request
            for request in self.requests
            if frees or not isinstance(request, Free)
        )


def requests_of(messages: Iterable[AnyMessage]) -> Iterator[AnyRequest]:
    """Yield the requests of all batches among the messages."""
    for message in messages:
        if isinstance(message, Batch):
            yield from message.requests


def render(requests: Iterable[AnyRequest]) -> str:
    """Return requests as lines, one each, with a newline after the last."""
    return "".join(line(request) + "\n" for request in requests)


def line(request: Request) -> str:
    """Return one request as a line."""
    match request:
        case Run():
            return _run(request)
        case Put(out=out, data=data):
            shape = list(data.shape)
            grad = ", requires_grad" if data.requires_grad else ""
            return f"%{out} = put({data.dtype}{shape}{grad})" + _labels(
                request.tags, request.description
            )
        case Load(dataset=dataset, part=part, out=out, columns=columns):
            chosen = f"[{', '.join(columns)}]" if columns else ""
            made = "" if out == NOWHERE else f"%{out} = "
            return f"{made}load({dataset}, {part}{chosen}) ?"
        case Fetch(id=id):
            return f"fetch %{id}"
        case Describe(id=id):
            return f"describe %{id}"
        case Backward():
            wanted = [_names(request.roots)]
            if any(grad is not None for grad in request.grads):
                wanted.append(f"grads=[{_names(request.grads)}]")
            if request.inputs is not None:
                wanted.append(f"inputs=[{_names(request.inputs)}]")
            return f"backward({', '.join(wanted + _graph(request))})"
        case Differentiate():
            results = _names(range(request.out, request.out + len(request.inputs)))
            wanted = [f"[{_names(request.roots)}]", f"[{_names(request.inputs)}]"]
            if any(grad is not None for grad in request.grads):
                wanted.append(f"grads=[{_names(request.grads)}]")
            return f"{results} = grad({', '.join(wanted + _graph(request))})"
        case ReadGrad(id=id, out=out, describe=describe):
            return f"%{out} = %{id}.grad{_asked(describe)}"
        case WriteGrad(id=id, grad=grad):
            return f"%{id}.grad = {_names((grad,))}"
        case SetRequiresGrad(id=id, value=value):
            return f"%{id}.requires_grad = {value}"
        case RetainGrad(id=id):
            return f"retain_grad(%{id})"
        case ReadData(id=id, out=out):
            return f"%{out} = %{id}.data"
        case WriteData(id=id, data=written):
            return f"%{id}.data = %{written}"
        case Alias(id=id, out=out):
            return f"%{out} = %{id}"
        case Label(id=id):
            return f"label %{id}" + _labels(request.tags, request.description)
        case Find(tags=tags):
            return f"find({', '.join(tags)})"
        case Count():
            return "count()"
        case Clear():
            return "clear()"
        case Free(ids=ids, tagged=tagged):
            return f"free {_names(ids)}{', tagged too' if tagged else ''}"
        case Expect(ids=ids, sender=sender):
            return f"expect {_names(ids)} from {sender}"
        case Move(ids=ids, to=to, out=there):
            return f"move {_names(ids)} to {to} as {_names(there)}"
        case StoreState(name=name, version=version, ids=ids):
            return f"store {_names(ids)} as {name}@{version}"
        case RecallState(name=name, version=version, out=out):
            return f"%{out}… = recall({name}@{version}) ?"
        case ListState(name=name):
            return f"stored({name})"
        case Aggregate(kind="sum", ids=ids, weights=weights, divisor=divisor, out=out):
            by = f", weights={list(weights)}" if weights else ""
            return f"%{out} = sum({_names(ids)}{by}) / {divisor}"
        case Aggregate(kind=kind, ids=ids, trim=trim, out=out):
            return f"%{out} = {kind}({_names(ids)}, trim={trim})"
        case Define(text=text):
            return f"define {digest(text)[:8]}"
        case RunProgram(program=program, inputs=inputs, rows=rows):
            made = f"{_names(request.makes())} = " if request.count else ""
            given = f"program {program[:8]}([{_names(inputs)}], {_rows(rows)}"
            size = f", batch_size={request.batch_size}" if request.batch_size else ""
            times = "steps" if request.steps else "epochs"
            size += f", {times}={request.steps or request.epochs}"
            return f"{made}{given}{size}{_split(request.split)})"
        case _:
            return repr(request)  # as its class shows itself


def _run(run: Run) -> str:
    args = [_value(value) for value in run.args]
    args += [f"{name}={_value(value)}" for name, value in run.kwargs.items()]
    grad = "" if run.grad else "  # no_grad"
    call = f"{run.op}({', '.join(args)}){_asked(run.describe)}{grad}"
    if run.out == NOWHERE:
        return call
    if not run.count:
        return f"%{run.out}… = {call}"
    return f"{_names(range(run.out, run.out + run.count))} = {call}"


def _value(value: Value | Leaf) -> str:
    match value:
        case list():
            return f"[{', '.join(_value(leaf) for leaf in value)}]"
        case Ref(id=id):
            return f"%{id}"
        case Symbol(name=name):
            return name
        case Complex(real=real, imag=imag):
            return str(complex(real, imag))
        case Inline(dtype=dtype, shape=shape, data=data):
            return f"{dtype}:{from_frame(data, dtype, shape).tolist()}"
        case Here():
            return "here"
        case _:
            return repr(value)


def _rows(rows: Sequence[int] | DatasetRows) -> str:
    if isinstance(rows, DatasetRows):
        each = [
            part + (f"[{', '.join(columns)}]" if columns else "")
            for part, columns in rows.each()
        ]
        return f"{rows.dataset}[{', '.join(each)}]"
    return f"[{_names(rows)}]"


def _split(split: Split | None) -> str:
    if split is None:
        return ""
    which = "held out" if split.held_out else "all but"
    return f", {which} {split.share:g} by {split.seed}"


def _names(ids: Iterable[int | None]) -> str:
    return ", ".join("None" if id is None else f"%{id}" for id in ids)


def _graph(request: Backward | Differentiate) -> list[str]:
    return [
        name
        for name, wanted in (
            ("retain_graph", request.retain_graph),
            ("create_graph", request.create_graph),
        )
        if wanted
    ]


def _labels(tags: Sequence[str], description: str) -> str:
    said = f" {description!r}" if description else ""
    return "".join(f" #{tag}" for tag in tags) + said


def _asked(describe: bool) -> str:
    return " ?" if describe else ""
