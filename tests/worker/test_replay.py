"""Functions that a graph's code calls in place of operators do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from obhut.worker.replay import QUICK, QUICK_METHODS, function_of

_ATEN = torch.ops.aten


def _x(*sizes: int) -> torch.Tensor:
    count = torch.Size(sizes).numel()
    return torch.linspace(-1, 2, count).reshape(sizes)


_PLACES = torch.tensor([0, 3, 1])
_LSTM = [_x(5, 3, 4), _x(24, 4), _x(24, 6), _x(24), _x(24), _x(3, 6), _x(3, 6)]

CALLS: dict[Any, tuple[Any, ...]] = {
    _ATEN._log_softmax.default: (_x(3, 4), 1, False),
    _ATEN._log_softmax_backward_data.default: (_x(3, 4), _x(3, 4), 1, torch.float32),
    _ATEN._softmax.default: (_x(3, 4), -1, False),
    _ATEN._softmax_backward_data.default: (_x(3, 4), _x(3, 4), 1, torch.float32),
    _ATEN.add.Tensor: (_x(3, 4), _x(4)),
    _ATEN.add_.Tensor: (_x(3, 4), _x(4)),
    _ATEN.addmm.default: (_x(4), _x(2, 3), _x(3, 4)),
    _ATEN.bernoulli_.float: (_x(3, 4), 0.5),
    _ATEN.bmm.default: (_x(2, 3, 4), _x(2, 4, 3)),
    _ATEN.cat.default: ([_x(3, 4), _x(2, 4)], 0),
    _ATEN.clone.default: (_x(3, 4).t(),),
    _ATEN.convolution.default: (
        *(_x(2, 3, 8, 8), _x(6, 3, 3, 3), _x(6)),
        *([1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    _ATEN.div.Tensor: (_x(3, 4), _x(4)),
    _ATEN.div.Tensor_mode: (_x(3, 4), _x(4)),
    _ATEN.div_.Tensor: (_x(3, 4), _x(4)),
    _ATEN.embedding.default: (_x(5, 4), _PLACES, 3, True),
    _ATEN.empty_like.default: (_x(3, 4),),
    _ATEN.expand.default: (_x(3, 1), [3, 4]),
    _ATEN.gelu.default: (_x(3, 4),),
    _ATEN.max_pool2d_with_indices.default: (_x(2, 3, 8, 8), [2, 2], [2, 2]),
    _ATEN.mean.dim: (_x(3, 4), [1], True),
    _ATEN.mean.default: (_x(3, 4),),
    _ATEN.mkldnn_rnn_layer.default: (
        *_LSTM,
        *(False, [], 2, 6, 1, True, False, False, True),
    ),
    _ATEN.mm.default: (_x(3, 4), _x(4, 2)),
    _ATEN.mul.Tensor: (_x(3, 4), 2),
    _ATEN.mul_.Tensor: (_x(3, 4), _x(4)),
    _ATEN.native_batch_norm.default: (
        *(_x(3, 4), _x(4), _x(4), torch.zeros(4), torch.ones(4), True, 0.1, 1e-5),
    ),
    _ATEN.native_dropout.default: (_x(3, 4), 0.5, True),
    _ATEN.native_layer_norm.default: (_x(3, 4), [4], _x(4), _x(4), 1e-5),
    _ATEN.neg.default: (_x(3, 4),),
    _ATEN.ones_like.default: (_x(3, 4),),
    _ATEN.permute.default: (_x(3, 4, 2), [2, 0, 1]),
    _ATEN.pow.Tensor_Scalar: (_x(3, 4), 2),
    _ATEN.relu.default: (_x(3, 4),),
    _ATEN.select.int: (_x(3, 4), 1, -1),
    _ATEN.sigmoid.default: (_x(3, 4),),
    _ATEN.split.Tensor: (_x(5, 4), 2, 0),
    _ATEN.split_with_sizes.default: (_x(5, 4), [2, 3], 0),
    _ATEN.squeeze.dim: (_x(3, 1), 1),
    _ATEN.stack.default: ([_x(3, 4), _x(3, 4)], 1),
    _ATEN.sub.Tensor: (_x(3, 4), _x(4)),
    _ATEN.sum.dim_IntList: (_x(3, 4), [0], True),
    _ATEN.sum.default: (_x(3, 4),),
    _ATEN.t.default: (_x(3, 4),),
    _ATEN.tanh.default: (_x(3, 4),),
    _ATEN.transpose.int: (_x(3, 4), 0, 1),
    _ATEN.unbind.int: (_x(3, 4), 1),
    _ATEN.unsqueeze.default: (_x(3, 4), 1),
    _ATEN.view.default: (_x(3, 4), [4, 3]),
    _ATEN.zeros.default: ([3, 4],),
    _ATEN.zeros_like.default: (_x(3, 4),),
    _ATEN._to_copy.default: (_x(3, 4).t(),),
}
KEYWORDS: dict[Any, dict[str, Any]] = {
    _ATEN.add.Tensor: {"alpha": 2},
    _ATEN.add_.Tensor: {"alpha": -0.1},
    _ATEN.sub.Tensor: {"alpha": 3},
    _ATEN.clone.default: {"memory_format": torch.contiguous_format},
    _ATEN.div.Tensor_mode: {"rounding_mode": "floor"},
    _ATEN.gelu.default: {"approximate": "tanh"},
    _ATEN.sum.default: {"dtype": torch.float64},
    _ATEN.ones_like.default: {"memory_format": torch.preserve_format},
    _ATEN.zeros.default: {"dtype": torch.float64, "device": torch.device("cpu")},
    _ATEN._to_copy.default: {"dtype": torch.float64},
}


def _called(
    function: Callable[..., Any], target: Any
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return results and arguments after a call on copies."""
    args = [x.clone() if isinstance(x, torch.Tensor) else x for x in CALLS[target]]
    torch.manual_seed(0)
    with torch._C._AutoDispatchBelowAutograd():
        result = function(*args, **KEYWORDS.get(target, {}))
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    return results, [x for x in args if isinstance(x, torch.Tensor)]


def _is_any(target: Any, result: torch.Tensor) -> bool:
    """Tell whether nobody sets a result's values, or not all: of a kernel's own use."""
    return target is _ATEN.empty_like.default or result.dtype is torch.uint8


@pytest.mark.parametrize("target", CALLS, ids=str)
def test_a_function_does_what_its_operator_does(target):
    """The same values, strides and dtypes, and the same changes in arguments."""
    function, _ = function_of(target, KEYWORDS.get(target, {}))
    assert function is not target._op
    for ours, theirs in zip(
        _called(function, target), _called(target, target), strict=True
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.dtype, one.stride()) == (other.dtype, other.stride())
            if not _is_any(target, one):
                assert torch.equal(one, other)


def test_each_function_is_compared():
    """Whoever adds one adds a call."""
    names = {target._schema.name.split("::")[1] for target in CALLS}
    assert names == QUICK | QUICK_METHODS | {"_to_copy"}
