"""One tensor at several workers, as ``x.send(bob, alice)`` makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch

from obhut.client.registry import Place
from obhut.client.remote_tensor import RemoteTensor
from obhut.errors import LocationError

# Any below: what PyTorch's own functions take and return.


class MultiTensor:
    """Remote tensors at several workers; an operation is done at each.

    Args:
        parts: one remote tensor a worker.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
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

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def get(self, sum_results: bool = False) -> Any:
        """Bring all parts here, as a list or summed."""
        values = [part.get() for part in self.parts]
        return sum(values[1:], values[0]) if sum_results else values

    def move(self, worker: Place | str) -> Self:
        """Move all parts to one worker."""
        for part in self.parts:
            part.move(worker)
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
        return _each(func, args, kwargs or {})


def _each(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Call a function once a worker, with that worker's parts."""
    several = [value for value in args if isinstance(value, MultiTensor)]
    count = len(several[0])
    if any(len(other) != count for other in several):
        raise LocationError(
            getattr(func, "__name__", "an operation"),
            [" and ".join(p.id for p in one.locations) for one in several],
            "send them to the same workers",
        )
    results = [
        func(
            *(v.parts[i] if isinstance(v, MultiTensor) else v for v in args), **kwargs
        )
        for i in range(count)
    ]
    if all(isinstance(result, torch.Tensor) for result in results):
        return MultiTensor(results)
    return results


def _operator(name: str) -> Callable[..., Any]:
    func = getattr(torch.Tensor, name)

    def method(self: MultiTensor, *args: Any, **kwargs: Any) -> Any:
        return _each(func, (self, *args), kwargs)

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
    "__pow__",
    "__matmul__",
    "__neg__",
    "__getitem__",
    "sum",
    "mean",
    "backward",
    "t",
    "mm",
    "matmul",
):
    setattr(MultiTensor, _name, _operator(_name))
