"""How to send each overload: its row of the op table joined with its schema."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from obhut.errors import OpNotAdmittedError
from obhut.ops.table import Flag, Kind, admitted
from obhut.worker.packed import PACKED, takes_sizes
from obhut.worker.tensors import DTYPES


class Route:
    """What the client must know of an overload before it sends it.

    Attributes:
        name: the name that travels.
        func: the overload.
        known: whether meta tensors can tell what the results look like.
        floats_matter: whether float arguments decide the results' shape.
        straight: whether they can only where all arguments are row-major.
        reshapes: whether the first argument may look different afterwards.
        written: positions or names of the arguments that are written and returned.
        written_all: likewise those that are written, returned or not.
        indexes: whether its second argument are indices, which may be masks.
        is_out: whether it writes its results into given tensors.
        is_view: whether the result may alias the first argument.
        returns_value: whether it yields no tensor.
        random: whether it may draw random numbers.
        single: whether it returns exactly one tensor.
        returns: for each return, whether it is a list.
    """

    __slots__ = (
        "_joining",
        "_leaves_out",
        "_sparse",
        "_still",
        "floats_matter",
        "func",
        "indexes",
        "is_out",
        "is_view",
        "known",
        "name",
        "random",
        "reshapes",
        "returns",
        "returns_value",
        "single",
        "straight",
        "written",
        "written_all",
    )

    # Any: an OpOverload, which has no usable type.
    def __init__(self, func: Any) -> None:
        name = f"{func._schema.name.replace('::', '.')}.{func._overloadname}"
        known = admitted(name)
        schema = func._schema
        self.name = name
        self.func = takes_sizes(name, func)
        unknown = known.flags & {Flag.DYNAMIC, Flag.NO_META}
        if packet(name) in _JOINING or name in PACKED:
            # Only masks, or sizes that are there, make the shape depend on values:
            # inference tells them apart.
            unknown = known.flags & {Flag.NO_META}
        self.known = known.kind is not Kind.VALUE and not unknown
        self.straight = Flag.STRIDES in known.flags
        self.indexes = packet(name) in _INDEXING
        self.random = Flag.RANDOM in known.flags
        self._still = tuple(
            (position, arg.name, getattr(arg, "default_value", None))
            for position, arg in enumerate(schema.arguments)
            if self.random and arg.name in _STILL
        )
        self.floats_matter = Flag.FLOAT_SHAPE in known.flags
        self.reshapes = Flag.RESHAPES in known.flags or known.kind is Kind.OUT
        written: list[int | str] = [
            arg.name if arg.kwarg_only else position
            for position, arg in enumerate(schema.arguments)
            if arg.alias_info is not None and arg.alias_info.is_write
            if (packet(name), arg.name) not in _ONLY_READ
        ]
        self.written_all = tuple(written)
        changes = known.kind in (Kind.INPLACE, Kind.OUT)
        self.written = tuple(written[: len(schema.returns)]) if changes else ()
        self.is_out = known.kind is Kind.OUT
        self.is_view = known.kind is Kind.VIEW and packet(name) != "aten.detach"
        self.returns_value = known.kind is Kind.VALUE
        self.returns = tuple(
            str(value.type).startswith("List") for value in schema.returns
        )
        self.single = self.returns == (False,)
        self._joining = _JOINING.get(packet(name), (0, frozenset()))
        self._leaves_out = packet(name) in _LEAVES_OUT
        names = [arg.name for arg in schema.arguments]
        self._sparse = names.index("sparse") if "sparse" in names else None

    def joins(self, place: int | str, dtype: torch.dtype) -> bool:
        """Tell whether a local tensor of that dtype may join at that argument."""
        at, dtypes = self._joining
        return place == at and dtype in dtypes

    def may_leave_out(self, args: Sequence[Any]) -> bool:
        """Tell whether with these arguments no gradient reaches the first."""
        if not self._leaves_out or len(args) < 2:
            return False
        value = args[1]
        return (value.numel() if isinstance(value, torch.Tensor) else value) == 0

    def draws(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether with these arguments it draws random numbers."""
        if not self.random:
            return False
        for place, name, default in self._still:
            given = args[place] if place < len(args) else kwargs.get(name, default)
            if given == _STILL[name]:
                return False
        return True

    def is_sparse(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether these arguments ask for a sparse gradient."""
        place = self._sparse
        if place is None:
            return False
        return bool(args[place] if len(args) > place else kwargs.get("sparse"))

    @property
    def changes(self) -> bool:
        """Whether it changes its arguments and makes nothing new."""
        return bool(self.written) or (not self.returns and bool(self.written_all))


_INDEX = frozenset({torch.int64, torch.int32, torch.bool, torch.uint8})

_INDEXING = frozenset(
    {
        "aten.index",
        "aten.index_put",
        "aten.index_put_",
        "aten._unsafe_index",
        "aten._unsafe_index_put",
        "aten._index_put_impl_",
    }
)

_JOINING: Mapping[str, tuple[int, frozenset[torch.dtype]]] = {
    **dict.fromkeys(_INDEXING, (1, _INDEX)),
    "aten.copy_": (1, frozenset(DTYPES.values())),
    "aten.index_select": (2, _INDEX),
    "aten.scatter_": (3, _INDEX),
}
"""Operators that take local tensors of these dtypes at that argument.

Most take them on the CPU where the first argument is on CUDA. The last two take what
``torch.nn.utils.rnn`` makes here: the order of sequences, and what counts them.
"""


_ONLY_READ = frozenset({("aten._fused_adagrad_", "state_steps")})
"""Arguments that schemas call written and no kernel writes."""

_STILL: Mapping[str, object] = {
    "dropout": 0,
    "dropout_p": 0,
    "num_layers": 1,  # between layers is where an RNN drops
    "train": False,
    "training": False,
}
"""Arguments of random operators, and with which value nothing is drawn."""

_LEAVES_OUT = frozenset(
    {
        "aten.linalg_householder_product",
        "aten.linalg_vector_norm",
        "aten.norm",
        "aten.ormqr",
    }
)
"""Operators that record themselves and pass no gradient on if their second argument
is 0 or empty."""


def packet(name: str) -> str:
    """Return an operator's name without its overload."""
    return name.rpartition(".")[0]


# Any: an OpOverload, which has no usable type.
@functools.cache
def route_of(func: Any) -> Route:
    """Return how to send an overload.

    Raises:
        OpNotAdmittedError: if the op table does not admit it.
    """
    return Route(func)


# Any: an OpOverload, which has no usable type.
def is_admitted(func: Any) -> bool:
    """Tell whether workers run an overload."""
    try:
        return route_of(func) is not None
    except OpNotAdmittedError:
        return False


# Any: an OpOverload, and what its schema says.
def is_composite(func: Any) -> bool:
    """Tell whether an overload is made of others and can be taken apart here."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)


# Any: likewise.
def decompose(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Carry out the operators that a composite is made of, as its C++ does.

    Not ``func.decompose``: that prefers what compilers take in its place.
    """
    return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


_COMPOSITE = "CompositeImplicitAutograd"


# Any: an overload or a packet, which have no usable type.
WHOLE: Mapping[Callable[..., Any], Any] = {
    torch._C._nn.linear: torch.ops.aten.linear.default,
    torch.matmul: torch.ops.aten.matmul.default,
    torch.Tensor.matmul: torch.ops.aten.matmul.default,
    torch.Tensor.__matmul__: torch.ops.aten.matmul.default,
    torch._C._nn.scaled_dot_product_attention: (
        torch.ops.aten.scaled_dot_product_attention.default
    ),
    torch.lstm_cell: torch.ops.aten.lstm_cell.default,
    torch.gru_cell: torch.ops.aten.gru_cell.default,
    torch.rnn_tanh_cell: torch.ops.aten.rnn_tanh_cell.default,
    torch.rnn_relu_cell: torch.ops.aten.rnn_relu_cell.default,
    torch.lstm: torch.ops.aten.lstm,
    torch.gru: torch.ops.aten.gru,
    torch.rnn_tanh: torch.ops.aten.rnn_tanh,
    torch.rnn_relu: torch.ops.aten.rnn_relu,
    torch.ctc_loss: torch.ops.aten.ctc_loss,
    torch.istft: torch.ops.aten.istft.default,
    torch.Tensor.istft: torch.ops.aten.istft.default,
}
"""Functions whose C++ looks at requires_grad or at the device before it decomposes.

They travel whole, so that the worker decides: the wrapper's flags say nothing.
A packet stands for its overloads, chosen by the arguments.
"""
