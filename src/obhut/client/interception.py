"""The few functions of PyTorch's that must not be decomposed at the client.

``RemoteTensor.__torch_function__`` looks here for each function that it is given; what
is not in ``HANDLERS`` runs as PyTorch wrote it, down to single operators.

A function is here if autograd runs with it, if its C++ looks at the wrapper's flags or
device, or if it would make or read a tensor in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from obhut.errors import LocationError, OpNotAdmittedError, UnsupportedError

from . import gradients
from .autocast import WRITTEN, as_written
from .bodies import MAKERS, UNDIVIDED, inside, undivided
from .data import new, new_tensor
from .dispatch import dispatch, wrap
from .grad_scaler import UNSCALE, unscale
from .held import Held
from .packing import pack_padded, pad_packed
from .routes import WHOLE
from .transfer import put

# Any below: what PyTorch's own functions take and return.

Handler: TypeAlias = Callable[..., Any]
"""Takes the class of remote tensors, then what the function was called with."""

without_override = torch._C._disabled_torch_function_impl
"""Runs a function as PyTorch wrote it."""


def backward(
    cls: type[torch.Tensor],
    tensors: torch.Tensor | Sequence[torch.Tensor],
    grad_tensors: torch.Tensor | Sequence[torch.Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
) -> None:
    """Stand in for ``torch.autograd.backward`` where a tensor is remote."""
    roots = _all_remote(cls, "backward", tensors)
    gradients.backward(
        roots,
        _optional(cls, "backward", grad_tensors, len(roots)),
        None if inputs is None else _all_remote(cls, "backward", inputs),
        retain_graph,
        create_graph,
    )


def grad(
    cls: type[torch.Tensor],
    outputs: torch.Tensor | Sequence[torch.Tensor],
    inputs: torch.Tensor | Sequence[torch.Tensor],
    grad_outputs: torch.Tensor | Sequence[torch.Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """Stand in for ``torch.autograd.grad`` where a tensor is remote."""
    if is_grads_batched:
        raise UnsupportedError("is_grads_batched", "call grad once for each row")
    roots = _all_remote(cls, "grad", outputs)
    results = gradients.differentiate(
        cls,
        roots,
        _optional(cls, "grad", grad_outputs, len(roots)),
        _all_remote(cls, "grad", inputs),
        retain_graph,
        create_graph,
        bool(allow_unused) or materialize_grads,
    )
    if not materialize_grads:
        return results
    sources = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
    return tuple(
        torch.zeros_like(source) if result is None else result
        for source, result in zip(sources, results, strict=True)
    )


def _all_remote(
    cls: type[torch.Tensor], op: str, tensors: torch.Tensor | Sequence[torch.Tensor]
) -> list[Held]:
    several = (tensors,) if isinstance(tensors, torch.Tensor) else tensors
    helds: list[Held] = []
    for tensor in several:
        if not isinstance(tensor, cls):
            remote = [_held(t).session.worker for t in several if isinstance(t, cls)]
            if isinstance(tensor, torch.Tensor):
                raise LocationError(
                    op, [*remote, "this process"], "send the local one first"
                )
            raise UnsupportedError(
                f"{op} from a {type(tensor).__name__}", "name remote tensors"
            )
        helds.append(_held(tensor))
    return helds


def _optional(
    cls: type[torch.Tensor],
    op: str,
    tensors: torch.Tensor | Sequence[torch.Tensor | None] | None,
    count: int,
) -> list[Held | None]:
    if tensors is None:
        return [None] * count
    several = (tensors,) if isinstance(tensors, torch.Tensor) else tensors
    return [None if t is None else _all_remote(cls, op, t)[0] for t in several]


def _held(tensor: torch.Tensor) -> Held:
    held: Held = tensor._held  # type: ignore[attr-defined] # of the class
    return held


def _number(function: Callable[..., Any]) -> Handler:
    """Return what asks for a tensor's number, also from where C++ makes a tensor.

    ``torch.tensor([x, y])`` does it for each element, as it does on CUDA, with what
    would bring it to the remote tensor's own dispatch switched off.
    """

    def call(cls: type[torch.Tensor], x: torch.Tensor) -> Any:
        by_cpp = torch._C._dispatch_tls_is_dispatch_key_excluded(_PYTHON)
        unfit = function is torch.Tensor.__index__ and x.is_floating_point()
        if not by_cpp or x.numel() != 1 or unfit:
            return without_override(function, (), (x,), {})
        try:
            return dispatch(cls, torch.ops.aten._local_scalar_dense.default, (x,), {})
        except OpNotAdmittedError as refused:
            raise UnsupportedError(
                "torch.tensor([x, y]) behind a policy",
                "put them together there: torch.stack([x, y])",
            ) from refused

    return call


_PYTHON = torch._C.DispatchKey.Python


def _like_remote(function: Callable[..., Any]) -> Handler:
    """Return ``x.to(y)`` or ``x.type_as(y)``, which send ``x`` to where ``y`` is."""

    def call(
        cls: type[torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if isinstance(x, cls):
            return without_override(function, (), (x, *args), kwargs)
        other = next(y for y in (*args, *kwargs.values()) if isinstance(y, cls))
        session = _held(other).session
        if x.requires_grad and torch.is_grad_enabled():
            raise LocationError(
                function.__name__,
                ["this process", session.worker],
                "the local tensor requires a gradient that the worker could not give "
                "it; send it first",
            )
        return wrap(cls, put(session, x.detach().to(other.dtype)))

    return call


def _type(
    cls: type[torch.Tensor], x: torch.Tensor, dtype: Any = None, *args: Any, **_: object
) -> Any:
    """Stand in for ``x.type(t)``, which could name another device."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__module__", "")
    if "cuda" in name:
        raise UnsupportedError(
            "device cuda",
            "a worker chooses the device that it computes on; use x.to(dtype)",
        )
    return without_override(torch.Tensor.type, (), (x, dtype), {})


_CASTS: Mapping[Callable[..., Any], Handler] = {
    torch.Tensor.type: _type,
    **{f: _like_remote(f) for f in (torch.Tensor.to, torch.Tensor.type_as)},
}
"""What stands in for some of them."""


# Any: a function of torch's, and its overload or packet in aten.
def _whole(function: Any, packet: Any) -> Handler:
    """Return a function that sends a composite undecomposed."""
    overloads = (
        [packet]
        if isinstance(packet, torch._ops.OpOverload)
        else [getattr(packet, name) for name in packet.overloads()]
    )

    def call(cls: type[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu") or kwargs.get("out") is not None:
            # Autocast decides by operator, below the function: let it see each.
            # With out= a composite is another overload, which is taken apart.
            return without_override(function, (), args, kwargs)
        func = overloads[0] if len(overloads) == 1 else _choose(overloads, args)
        if func in _PACKED and type(args[1]) is torch.Tensor:
            args = (args[0], args[1].tolist(), *args[2:])
        return dispatch(cls, func, args, kwargs)

    return call


_PACKED = frozenset(
    packet.data
    for packet in (
        torch.ops.aten.gru,
        torch.ops.aten.lstm,
        torch.ops.aten.rnn_relu,
        torch.ops.aten.rnn_tanh,
    )
)
"""What takes the batch sizes of packed sequences; those that are here are written."""


def _maker(function: Callable[..., Any]) -> Handler:
    """Return a function that runs one of PyTorch's with what it makes at the worker."""

    def call(cls: type[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("out") is not None:
            raise UnsupportedError(
                f"{function.__name__} with out=", "use what it returns"
            )
        leaves = pytree.tree_leaves((args, kwargs))
        first = next(leaf for leaf in leaves if isinstance(leaf, cls))
        with inside(function, cls, _held(first).session):
            return without_override(function, (), args, kwargs)

    return call


def _undivided(function: Callable[..., Any]) -> Handler:
    """Return a function whose composites travel whole."""

    def call(cls: type[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        return undivided(function, *args, **kwargs)

    return call


def _cast(function: Callable[..., Any]) -> Handler:
    """Return one of PyTorch's casts, which autocast is not to take for its own."""
    stand_in = _CASTS.get(function)

    def call(cls: type[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        with as_written():
            if stand_in is not None:
                return stand_in(cls, *args, **kwargs)
            return without_override(function, (), args, kwargs)

    return call


def _not_nested(*_: object) -> bool:
    """Stand in for the question whether a mask lets a tensor be nested.

    PyTorch nests no tensor of a subclass, whatever the mask; without gradients a
    plain one it may, and then pads what is masked with zeros. ``masks`` sees to that,
    but not where a ``forward`` that is not PyTorch's is around it.
    """
    if not torch.is_grad_enabled():
        raise UnsupportedError(
            "the nested fast path of an nn.TransformerEncoder with another forward",
            "switch it off: torch.backends.mha.set_fastpath_enabled(False)",
        )
    return False


def _linear_cross_entropy(
    cls: type[torch.Tensor],
    x: torch.Tensor,
    *args: Any,
    options: object = None,
    **kwargs: Any,
) -> Any:
    """Stand in for ``F.linear_cross_entropy``, whose options save memory.

    They name a kernel that is written in Python. Where they decide precision too
    they are refused.
    """
    if options is not None and x.dtype not in (torch.float32, torch.float64):
        raise UnsupportedError(
            f"F.linear_cross_entropy with options on {x.dtype}",
            "leave the options out, or compute in float32",
        )
    return without_override(F.linear_cross_entropy, (), (x, *args), kwargs)


def _rmatmul(
    cls: type[torch.Tensor], right: torch.Tensor, left: torch.Tensor
) -> torch.Tensor:
    """Stand in for ``x.__rmatmul__``, so that it travels whole as ``matmul`` does."""
    return torch.matmul(left, right)


def _tensor_split(function: Callable[..., Any]) -> Handler:
    """Return ``tensor_split`` but where the indices would have to be read here."""

    def call(cls: type[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        indices = (*args[1:], *kwargs.values())
        if any(isinstance(one, cls) for one in indices):
            raise UnsupportedError(
                "tensor_split at remote indices",
                "they decide the shapes: fetch them first: indices.get()",
            )
        return without_override(function, (), args, kwargs)

    return call


def _choose(overloads: Sequence[Any], args: Sequence[Any]) -> Any:
    """Return the overload whose list arguments are where the call's are."""

    def fits(func: Any) -> bool:
        return all(
            str(argument.type).startswith("List") == isinstance(value, list | tuple)
            for argument, value in zip(func._schema.arguments, args, strict=False)
        )

    return next((func for func in overloads if fits(func)), overloads[0])


_NUMBERS: Sequence[Callable[..., Any]] = (
    torch.Tensor.__bool__,
    torch.Tensor.__complex__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.__int__,
    torch.Tensor.item,
)

HANDLERS: Mapping[Callable[..., Any], Handler] = {
    torch.autograd.backward: backward,
    torch.autograd.grad: grad,
    torch.Tensor.backward: backward,
    torch.Tensor.new: new,
    torch.Tensor.new_tensor: new_tensor,
    torch.Tensor.__rmatmul__: _rmatmul,
    torch._nested_tensor_from_mask_left_aligned: _not_nested,
    UNSCALE: unscale,
    F.linear_cross_entropy: _linear_cross_entropy,
    torch._VF._pack_padded_sequence: pack_padded,
    torch._VF._pad_packed_sequence: pad_packed,
    **{f: _number(f) for f in _NUMBERS},
    **{func: _maker(func) for func in MAKERS},
    **{func: _undivided(func) for func in UNDIVIDED},
    **{func: _cast(func) for func in WRITTEN},
    **{f: _tensor_split(f) for f in (torch.tensor_split, torch.Tensor.tensor_split)},
    **{func: _whole(func, packet) for func, packet in WHOLE.items()},
}
"""What stands in for a function, by the function."""
