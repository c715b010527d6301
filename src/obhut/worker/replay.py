"""A graph of operators as straight-line Python, which runs below autograd.

::

    make = compiled(graph, constants, kinds)
    run = make(*held, *steppers)                 # binds what stays the same
    values = run(x, y)                           # a batch

Rules:

- The code has literals only; functions and tensors are bound by name, and none comes
  from outside the graph.
- A result goes when it is read for the last time.
- Where PyTorch has a function of the same schema that takes less time to call, it is
  called: which ones is a table, and a test compares each.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from obhut.programs.program import Kind

from .graph_steps import STEPS, product

# Any below: what operators take and return.

_ATEN = torch.ops.aten


def compiled(
    graph: fx.Graph,
    constants: Mapping[str, torch.Tensor],
    kinds: Sequence[Kind],
) -> Callable[..., Callable[..., list[Any]]]:
    """Return a function that takes what is held, and the steppers, and binds them.

    Args:
        graph: of operators, ``getitem`` and steps.
        constants: tensors of the graph, by name.
        kinds: what its inputs are.
    """
    writer = _Writer(graph, constants, kinds)
    names: dict[str, Any] = {"torch": torch, "inf": math.inf, "nan": math.nan}
    code = compile(writer.text, "<program>", "exec")
    exec(code, names)  # noqa: S102 # made here, of a graph that was checked
    return functools.partial(names["make"], writer.constants)


class _Writer:
    """Writes a graph's code.

    Attributes:
        text: defines ``make``.
        constants: functions and tensors, in the order in which ``make`` takes them.
    """

    def __init__(
        self,
        graph: fx.Graph,
        constants: Mapping[str, torch.Tensor],
        kinds: Sequence[Kind],
    ) -> None:
        self._names: dict[fx.Node, str] = {}
        self._constants: dict[str, Any] = {}
        self._body: list[str] = []
        self._bound: list[str] = []
        self._stay: set[fx.Node] = set()
        self._last: dict[fx.Node, fx.Node] = {}
        nodes = list(graph.nodes)
        for node in nodes:
            for one in node.all_input_nodes:
                self._last[one] = node
        held: list[str] = []
        rows: list[str] = []
        inputs = [node for node in nodes if node.op == "placeholder"]
        for place, (node, kind) in enumerate(zip(inputs, kinds, strict=True)):
            self._names[node] = f"i{place}"
            (rows if kind is Kind.ROWS else held).append(f"i{place}")
            if kind is not Kind.ROWS and not is_reshaped(node):
                self._stay.add(node)
        returned = "[]"
        for node in nodes:
            match node.op:
                case "get_attr":
                    self._names[node] = self._constant(
                        f"k{len(self._constants)}", constants[node.target]
                    )
                case "call_function":
                    self._call(node)
                case "output":
                    returned = self._literal(list(node.args[0]))
                case _:
                    pass
        takes = ["constants", *held, "*steppers"]
        bound = ", ".join(self._constants)
        lines = [
            f"def make({', '.join(takes)}):",
            *([f"    ({bound},) = constants"] if bound else []),
            *(f"    {line}" for line in self._bound),
            f"    def run({', '.join(rows)}):",
            *(f"        {line}" for line in self._body),
            f"        return {returned}",
            "    return run",
        ]
        self.text = "\n".join(lines) + "\n"
        self.constants = tuple(self._constants.values())

    def _constant(self, name: str, value: Any) -> str:
        self._constants[name] = value
        return name

    def _call(self, node: fx.Node) -> None:
        target: Any = node.target
        name = self._names[node] = f"v{len(self._names)}"
        if target is operator.getitem:
            source, place = node.args
            self._body.append(f"{name} = {self._literal(source)}[{place}]")
        elif target in STEPS:
            self._bind_step(node, name)
        elif target in _VIEWS and self._bind_view(node, name):
            return
        elif not self._in_place(node, name):
            function, bare = function_of(target, node.kwargs)
            key = self._function(function, bare)
            given_ = [self._literal(one) for one in node.args]
            given_ += [f"{k}={self._literal(v)}" for k, v in node.kwargs.items()]
            self._body.append(f"{name} = {key}({', '.join(given_)})")
        gone = [
            self._names[one]
            for one in node.all_input_nodes
            if self._last[one] is node
            and one.op == "call_function"
            and one not in self._stay
        ]
        if node not in self._last and target not in STEPS:
            gone.append(name)
        if gone:
            self._body.append(f"del {', '.join(dict.fromkeys(gone))}")

    def _bind_step(self, node: fx.Node, name: str) -> None:
        """Write a step, by what a stepper has for it."""
        if node.target is product:
            one, other, _, number, place = node.args
            self._bound.append(f"{name} = steppers[{number}].product({place})")
            self._body.append(f"{name}({self._literal(one)}, {self._literal(other)})")
            return
        gradients, _, number, places = node.args
        self._bound.append(f"{name} = steppers[{number}].part({self._literal(places)})")
        self._body.append(f"{name}({self._literal(gradients)})")

    def _bind_view(self, node: fx.Node, name: str) -> bool:
        """Make a view of what stays the same once for all batches, if it is one."""
        if node.args[0] not in self._stay or is_reshaped(node):
            return False
        self._stay.add(node)
        given = ", ".join(self._literal(one) for one in node.args)
        function, bare = function_of(node.target, node.kwargs)
        self._bound.append(f"{name} = {self._function(function, bare)}({given})")
        return True

    def _function(self, function: Any, bare: str) -> str:
        """Return under which name a function is called."""
        key = f"{bare}_{len(self._constants)}"
        key = next((k for k, v in self._constants.items() if v is function), key)
        return self._constant(key, function)

    def _in_place(self, node: fx.Node, name: str) -> bool:
        """Write relu and its derivative into what nobody else reads, if that is so."""
        how = _IN_PLACE.get(node.target)
        first = node.args[0] if node.args else None
        if how is None or not isinstance(first, fx.Node) or len(first.users) > 1:
            return False
        origin = first
        if first.target is operator.getitem and first.args[1] == 0:
            origin = first.args[0]  # type: ignore[assignment] # a node
        if origin.target not in _FRESH:
            return False
        key, function, argument = how
        self._constant(key, function)
        given = [self._literal(one) for one in node.args]
        given += [f"{argument}={self._names[first]}"] if argument else []
        self._body.append(f"{name} = {key}({', '.join(given)})")
        return True

    def _literal(self, value: Any) -> str:
        match value:
            case fx.Node():
                return self._names[value]
            case list():
                return f"[{', '.join(map(self._literal, value))}]"
            case tuple():
                return f"({', '.join(map(self._literal, value))},)" if value else "()"
            case torch.dtype() | torch.layout() | torch.memory_format():
                return str(value)
            case torch.device():
                return f"torch.device({str(value)!r})"
            case None | bool() | int() | float() | complex() | str():
                return repr(value)
            case _:
                raise TypeError(f"a graph has a {type(value).__name__}")


def is_reshaped(node: fx.Node) -> bool:
    """Tell whether something gives a result other sizes later on."""
    return any(
        torch.Tag.inplace_view in getattr(user.target, "tags", ())
        or str(user.target).startswith(("aten.resize", "aten.set"))
        for user in node.users
    )


_VIEWS = (_ATEN.t.default, _ATEN.transpose.int, _ATEN.view.default)
"""Operators that give another name to memory, and look at no value."""

_FRESH = frozenset(
    (
        *(_ATEN.addmm.default, _ATEN.mm.default, _ATEN.convolution.default),
        *(_ATEN.convolution_backward.default, _ATEN.relu.default),
        *(_ATEN.max_pool2d_with_indices_backward.default,),
        *(_ATEN.native_batch_norm.default, _ATEN.threshold_backward.default),
    )
)
"""Operators whose first result is new memory, which nobody else has a name for."""

_IN_PLACE: dict[Any, tuple[str, Any, str]] = {
    _ATEN.relu.default: ("relu_", torch.relu_, ""),
    _ATEN.threshold_backward.default: (
        "threshold_backward_",
        _ATEN.threshold_backward.grad_input._op,
        "grad_input",
    ),
}
"""What may write into its first argument: a name, what does, and the argument's."""

QUICK = frozenset(
    (
        *("_log_softmax", "_log_softmax_backward_data", "_softmax"),
        *("_softmax_backward_data", "add", "addmm", "bmm", "cat", "clone"),
        *("convolution", "div", "embedding", "empty_like", "gelu"),
        *("max_pool2d_with_indices", "mean", "mkldnn_rnn_layer", "mm", "mul"),
        *("native_batch_norm", "native_dropout", "native_layer_norm", "neg"),
        *("ones_like", "permute", "pow", "relu", "select", "sigmoid", "split"),
        *("split_with_sizes", "squeeze", "stack", "sub", "sum", "t", "tanh"),
        *("transpose", "unbind", "unsqueeze", "zeros", "zeros_like"),
    )
)
"""Operators of which ``torch`` has a function with the same schema."""

QUICK_METHODS = frozenset(("add_", "bernoulli_", "div_", "expand", "mul_", "view"))
"""Operators of which tensors have a method with the same schema."""

_COPY = functools.partial(torch.Tensor.to, copy=True)
"""A copy of another dtype, in half the time of the operator's own way."""

_FUNCTIONS = torch._C._VariableFunctions


def function_of(target: Any, kwargs: Mapping[str, Any]) -> tuple[Any, str]:
    """Return what is called for an overload with such keywords, and a name for it."""
    name = target._schema.name.split("::")[1]
    found = None
    if target is _ATEN._to_copy.default and [*kwargs] == ["dtype"]:
        found = _COPY
    elif name in QUICK:
        found = getattr(_FUNCTIONS, name, None) or getattr(torch._C._nn, name, None)
    elif name in QUICK_METHODS:
        found = getattr(torch.Tensor, name)
    return (target._op if found is None else found), name
