"""FedAdam and FedYogi: optimizers of the step that follows a round.

::

    outer = partial(FedAdam, lr=0.01)
    federation.fit(model, training, rounds=50, outer_optimizer=outer)

Rules:

- ``torch.optim.Adam`` corrects the bias of its averages, and these do not: so it is
  another algorithm.
- What squares are averaged in begins with ``tau**2``.

Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import nn
from torch.optim import Optimizer

from obhut.errors import CallError


class Adaptive(Optimizer):
    """A step along an average of gradients, shorter where they were large.

    Args:
        params: parameters, or groups of them.
        lr: how far a step goes.
        betas: how much the averages of gradients and of their squares keep.
        tau: what is added to the root of squares; more is less adaptive.

    Raises:
        CallError: if one is out of its range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        tau: float = 1e-3,
    ) -> None:
        if not (lr >= 0 and tau > 0 and all(0 <= beta < 1 for beta in betas)):
            raise CallError(
                "expected lr from 0, betas from 0 and below 1, and tau above 0, got "
                f"lr={lr}, betas={betas}, tau={tau}"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "tau": tau})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step, from the gradients that parameters have."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta, _ = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(parameter)
                    state["squares"] = torch.full_like(parameter, group["tau"] ** 2)
                average, squares = state["average"], state["squares"]
                average.lerp_(gradient, 1 - beta)
                self._take_in(squares, gradient.square(), group["betas"][1])
                divisor = squares.sqrt().add_(group["tau"])
                parameter.addcdiv_(average, divisor, value=-group["lr"])
        return loss

    def _take_in(
        self, squares: torch.Tensor, square: torch.Tensor, beta: float
    ) -> None:
        """Let squares take in one more, in place."""
        raise NotImplementedError


class FedAdam(Adaptive):
    """An average of squares that forgets by a factor, as Adam's."""

    def _take_in(
        self, squares: torch.Tensor, square: torch.Tensor, beta: float
    ) -> None:
        squares.lerp_(square, 1 - beta)


class FedYogi(Adaptive):
    """An average of squares that moves by what it takes in, as Yogi's."""

    def _take_in(
        self, squares: torch.Tensor, square: torch.Tensor, beta: float
    ) -> None:
        squares.addcmul_(square, (squares - square).sign(), value=beta - 1)
