"""One tensor at several workers, as ``x.send(bob, alice)`` makes it.

Rule: what mixes tensors of different workers is refused before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch.utils import _pytree as pytree

from obhut.client.registry import WORKERS, Place
from obhut.client.remote_tensor import RemoteTensor
from obhut.errors import LocationError

# Any below: what PyTorch's own functions take and return.


class MultiTensor:
    """Remote tensors at several workers; an operation is done at each.

    Methods and attributes are those of ``RemoteTensor``, asked of each part: a
    tensor each comes back as a ``MultiTensor``, how all parts look (``shape``,
    ``dim()``, ``requires_grad``) as one tensor's, anything else as a list. What is set
    is set on each part.

    Args:
        parts: one remote tensor a worker.

    Attributes:
        parts: the same.
    """

    def __init__(self, parts: Sequence[RemoteTensor]) -> None:
        self.parts = tuple(parts)

    @property
    def child(self) -> Mapping[str, RemoteTensor]:
        """The remote tensors by worker."""
        return {part.location.id: part for part in self.parts}

    @property
    def locations(self) -> list[Place]:
        """The workers."""
        return [part.location for part in self.parts]

    def __repr__(self) -> str:
        return f"MultiTensor({', '.join(map(repr, self.parts))})"

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[RemoteTensor]:
        return iter(self.parts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "parts":
            raise AttributeError(name)
        values = [getattr(part, name) for part in self.parts]
        if not callable(values[0]) or isinstance(values[0], torch.Tensor):
            return _as_one(name, _together(values))

        def method(*args: Any, **kwargs: Any) -> Any:
            return _as_one(name, _each(name, values, self, (args, kwargs)))

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "parts":
            super().__setattr__(name, value)
            return

        def assign(part: RemoteTensor, value: Any) -> None:
            setattr(part, name, value)

        _each(name, [assign] * len(self), self, ((self, value), {}))

    def get(self, sum_results: bool = False) -> Any:
        """Bring all parts here, as a list or summed.

        Leak: their values come to this process.
        """
        coming = [part.get(wait=False) for part in self.parts]
        values = [one.result() for one in coming]
        return sum(values[1:], values[0]) if sum_results else values

    def move(self, worker: Place | str, requires_grad: bool = False) -> Self:
        """Move all parts to one worker, in place; to this process is ``get()``."""
        if WORKERS.find(worker).here:
            return self.get()  # type: ignore[no-any-return] # as documented
        for part in self.parts:
            part.move(worker, requires_grad)
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do an operation at each worker."""
        given = (tuple(args), dict(kwargs or {}))
        first = next(leaf for leaf in _leaves(given) if isinstance(leaf, cls))
        name = getattr(func, "__name__", "an operation")
        return _each(name, [func] * len(first), first, given)


def _leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(tree)


def _each(
    name: str, funcs: Sequence[Callable[..., Any]], like: MultiTensor, given: Any
) -> Any:
    """Call one function a worker, with that worker's parts of what is given.

    Raises:
        LocationError: if not all of it is at the same workers.
    """
    sessions = [part._held.session for part in like.parts]
    places = [session.worker for session in sessions]
    for leaf in _leaves(given):
        if isinstance(leaf, MultiTensor):
            there = [part._held.session for part in leaf.parts]
        elif isinstance(leaf, RemoteTensor):
            there = [leaf._held.session]
        else:
            continue
        if there != sessions:
            raise LocationError(
                name,
                [", ".join(places), ", ".join(session.worker for session in there)],
                "send both to the same workers, in the same order",
            )
    results: list[Any] = []
    for position, func in enumerate(funcs):

        def part_of(leaf: Any, position: int = position) -> Any:
            return leaf.parts[position] if isinstance(leaf, MultiTensor) else leaf

        args, kwargs = pytree.tree_map(part_of, given)
        results.append(func(*args, **kwargs))
    return _together(results)


def _together(results: list[Any]) -> Any:
    """Return one tensor a worker as one object, nothing as None, else a list."""
    if all(isinstance(result, RemoteTensor) for result in results):
        return MultiTensor(results)
    return None if all(result is None for result in results) else results


_LOOKS = frozenset(
    (
        "device",
        "dim",
        "dtype",
        "gc",
        "garbage_collection",
        "is_complex",
        "is_floating_point",
        "is_leaf",
        "layout",
        "ndim",
        "ndimension",
        "nelement",
        "numel",
        "requires_grad",
        "shape",
        "size",
        "stride",
    )
)
"""What tells how a tensor looks, and no value."""


def _as_one(name: str, results: Any) -> Any:
    """Return how the parts look as one tensor's, where they all look the same."""
    if name not in _LOOKS or any(one != results[0] for one in results):
        return results
    return results[0]


def _operator(name: str) -> Callable[..., Any]:
    func = getattr(torch.Tensor, name)

    def method(self: MultiTensor, *args: Any) -> Any:
        return _each(name, [func] * len(self), self, ((self, *args), {}))

    method.__name__ = name
    method.__doc__ = f"Do ``{name}`` at each worker."
    return method


for _name in (
    "__add__",
    "__radd__",
    "__sub__",
    "__rsub__",
    "__mul__",
    "__rmul__",
    "__truediv__",
    "__rtruediv__",
    "__pow__",
    "__matmul__",
    "__neg__",
    "__getitem__",
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
):
    setattr(MultiTensor, _name, _operator(_name))
