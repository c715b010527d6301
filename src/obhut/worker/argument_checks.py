"""Checks of arguments that kernels trust, one row per operator.

Behind a guard these run before the operator does.

Rules:

- A check looks at sizes, dtypes and numbers, never at values: what it says is told to a
  client, by who holds no values.
- A check accepts what PyTorch's own modules pass, and need accept nothing else.

The kernels' faults are listed in ``tools/generate_ops.py``, with each operator that is
not checked but refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from obhut.errors import CallError

# Any below: arguments are whatever the operator's schema says.
Arguments = Mapping[str, Any]
"""An operator's arguments by name; those that were left out are missing."""


def _expect(holds: bool, what: str, came: object) -> None:
    if not holds:
        raise CallError(f"behind a guard expected {what}, got {came}")


def _shape(name: str, tensor: torch.Tensor, *sizes: int) -> None:
    _expect(tuple(tensor.shape) == sizes, f"{name} of shape {sizes}", _sizes(tensor))


def _sizes(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _same_dtype(first: torch.Tensor, others: Sequence[torch.Tensor | None]) -> None:
    _expect(first.is_floating_point(), "floating-point numbers", first.dtype)
    for other in others:
        if other is not None:
            _expect(other.dtype is first.dtype, f"{first.dtype}", other.dtype)


def _written(given: Arguments) -> None:
    """Check batch sizes of packed sequences: what is no number is a value."""
    sizes = given["batch_sizes"]
    _expect(
        isinstance(sizes, list) and all(type(size) is int for size in sizes),
        "lengths that are here, as numbers",
        "lengths that are at the worker, where shapes would tell them; keep the "
        "sequences padded and mask the loss",
    )
    falls = all(a >= b >= 1 for a, b in zip(sizes, [*sizes[1:], 1], strict=True))
    _expect(bool(sizes) and falls, "batch sizes that do not grow", "others")
    _expect(sum(sizes) == given["data"].shape[0], "as many rows as they say", "others")


def _recurrent(gates: int, packed: bool = False) -> Callable[[Arguments], None]:
    """Return the check of a stack of recurrent layers with so many gates.

    Args:
        gates: 4 for an LSTM, 3 for a GRU.
        packed: whether it runs on packed sequences.
    """

    def check(given: Arguments) -> None:
        if packed:
            _written(given)
        data, params = given["data" if packed else "input"], list(given["params"])
        states = list(given["hx"]) if gates == 4 else [given["hx"]]
        layers, ways = given["num_layers"], 2 if given["bidirectional"] else 1
        _expect(len(states) == (2 if gates == 4 else 1), "h and c", len(states))
        for tensor, dims in ((data, 3 - packed), *((state, 3) for state in states)):
            _expect(tensor.dim() == dims, f"{dims} dimensions", tensor.dim())
        _same_dtype(data, [*states, *params])
        if packed:
            batch = given["batch_sizes"][0]
        else:
            batch = data.shape[0 if given["batch_first"] else 1]
        hidden, out = states[-1].shape[2], states[0].shape[2]
        for state in states:
            size = state.shape[2]
            _shape("a state", state, layers * ways, batch, size)
        projected = out != hidden
        each = 2 + 2 * bool(given["has_biases"]) + projected
        _expect(layers >= 1, "a layer or more", layers)
        _expect(len(params) == each * layers * ways, "another number of weights", "it")
        for layer in range(layers):
            width = data.shape[-1] if layer == 0 else out * ways
            for way in range(ways):
                start = (layer * ways + way) * each
                mine = params[start : start + each]
                _shape("w_ih", mine[0], gates * hidden, width)
                _shape("w_hh", mine[1], gates * hidden, out)
                for bias in mine[2:4] if given["has_biases"] else ():
                    _shape("a bias", bias, gates * hidden)
                if projected:
                    _shape("w_hr", mine[-1], out, hidden)

    return check


def _cell(gates: int) -> Callable[[Arguments], None]:
    """Return the check of one recurrent cell with so many gates."""

    def check(given: Arguments) -> None:
        data = given["input"]
        states = list(given["hx"]) if gates == 4 else [given["hx"]]
        weights = [given["w_ih"], given["w_hh"]]
        biases = [b for b in (given.get("b_ih"), given.get("b_hh")) if b is not None]
        _expect(len(states) == (2 if gates == 4 else 1), "h and c", len(states))
        _expect(len(biases) != 1, "both biases or none", "one")
        for tensor in (data, *states):
            _expect(tensor.dim() == 2, "2 dimensions", tensor.dim())
        _same_dtype(data, [*states, *weights, *biases])
        batch, hidden = data.shape[0], states[0].shape[1]
        for state in states:
            _shape("a state", state, batch, hidden)
        _shape("w_ih", weights[0], gates * hidden, data.shape[1])
        _shape("w_hh", weights[1], gates * hidden, hidden)
        for bias in biases:
            _shape("a bias", bias, gates * hidden)

    return check


def _batch_norm(given: Arguments) -> None:
    data = given["input"]
    _expect(data.is_floating_point(), "floating-point numbers", data.dtype)
    _expect(data.dim() >= 2, "2 dimensions or more", data.dim())
    names = ("weight", "bias", "running_mean", "running_var")
    dtypes = set()
    for name in names:
        tensor = given.get(name)
        if tensor is not None:
            _shape(name, tensor, data.shape[1])
            dtypes.add(tensor.dtype)
    reduced = data.dtype in (torch.bfloat16, torch.float16)
    fits = dtypes <= {data.dtype} or (reduced and dtypes == {torch.float32})
    _expect(fits, f"{data.dtype}", dtypes)


def _attention(given: Arguments) -> None:
    query, key, value = given["query"], given["key"], given["value"]
    mask = given.get("attn_mask")
    _same_dtype(query, [key, value])
    for tensor in (query, key, value):
        _expect(tensor.dim() == 4, "4 dimensions", tensor.dim())
        _expect(tensor.numel() > 0, "elements", _sizes(tensor))
    batch, heads, rows, width = query.shape
    columns = key.shape[2]
    _shape("key", key, batch, heads, columns, width)
    _shape("value", value, batch, heads, columns, width)
    if mask is not None:
        _expect(mask.dtype is query.dtype, f"a mask of {query.dtype}", mask.dtype)
        wanted = (batch, heads, rows, columns)[4 - mask.dim() :]
        _expect(mask.dim() in (2, 4), "a mask of 2 or 4 dimensions", mask.dim())
        fits = all(n in (1, m) for n, m in zip(mask.shape, wanted, strict=True))
        _expect(fits, f"a mask that broadcasts to {wanted}", _sizes(mask))


def _weight_norm(given: Arguments) -> None:
    v, g, dim = given["v"], given["g"], given.get("dim", 0)
    _same_dtype(v, [g])
    _expect(v.dim() >= 1 and dim in (0, v.dim() - 1), "the first or last dim", dim)
    _shape("g", g, *(n if at == dim else 1 for at, n in enumerate(v.shape)))


def _grid_sampler(spatial: int) -> Callable[[Arguments], None]:
    """Return the check of sampling in so many dimensions."""

    def check(given: Arguments) -> None:
        data, grid = given["input"], given["grid"]
        modes = 2 if spatial == 2 else 1
        mode, padding = given["interpolation_mode"], given["padding_mode"]
        _expect(0 <= mode <= modes, f"interpolation_mode of 0 to {modes}", mode)
        _expect(0 <= padding <= 2, "padding_mode of 0 to 2", padding)
        _same_dtype(data, [grid])
        _expect(data.dim() == spatial + 2, f"{spatial + 2} dimensions", data.dim())
        _expect(all(n > 0 for n in data.shape[1:]), "elements", _sizes(data))
        inner = grid.shape[1:-1]
        _shape("grid", grid, data.shape[0], *inner, spatial)
        _expect(len(inner) == spatial, f"{spatial + 2} dimensions", grid.dim())

    return check


def _antialiased(given: Arguments) -> None:
    data, sizes = given["self"], given["output_size"]
    _expect(data.dim() == 4 and len(sizes) == 2, "images", _sizes(data))
    _expect(all(n > 0 for n in (*data.shape[1:], *sizes)), "elements", _sizes(data))
    for at, name in enumerate(("scales_h", "scales_w")):
        scale = given.get(name)
        if scale is not None:
            fits = math.isfinite(scale) and scale > 0
            fits = fits and abs(data.shape[2 + at] * scale - sizes[at]) <= 1.0
            _expect(fits, f"{name} that leads to the output size", scale)


def _same_kind(given: Arguments) -> None:
    """Let no memory that may hold indices be written as if it were other numbers.

    ``.data`` of floating-point numbers tells autograd of no write, and a derivative
    kernel trusts the indices that a graph keeps.
    """
    before, after = given["self"].dtype, given["dtype"]
    real = before.is_floating_point or before.is_complex
    kind = "floating-point or complex" if real else "integer or bool"
    fits = (after.is_floating_point or after.is_complex) is real
    _expect(fits, f"a view of {before} as a {kind} dtype", after)


def _indices(given: Arguments) -> None:
    for index in given["indices"]:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            raise CallError(
                "behind a guard expected indices that are integers, got a mask; how "
                "many it lets through is a value: multiply by the mask, or use "
                "torch.where(mask, x, 0)"
            )


def _fused(*states: str, unless: tuple[str, str]) -> Callable[[Arguments], None]:
    """Return the check of an optimizer's step on lists of parameters.

    Args:
        states: the lists that go with the parameters, beside gradients.
        unless: which of them may be empty, and the number that is 0 then.
    """

    def check(given: Arguments) -> None:
        params = list(given["self"])
        _expect(bool(params), "parameters", "none")
        for name in ("grads", *states):
            mine = list(given[name])
            if name == unless[0] and not mine and not given[unless[1]]:
                continue
            _expect(len(mine) == len(params), f"as many {name}", len(mine))
            for param, one in zip(params, mine, strict=True):
                _shape(name, one, *param.shape)
                _same_dtype(param, [one])
                packed = param.is_contiguous() and one.is_contiguous()
                _expect(packed, "row-major tensors", "others; leave out fused=True")
        if "state_steps" in given:
            steps = list(given["state_steps"])
            _expect(len(steps) == len(params), "as many steps", len(steps))
            for step in steps:
                _expect(step.dtype is torch.float32, "torch.float32", step.dtype)
                _shape("a step", step)
        rate = given["lr"]
        if isinstance(rate, torch.Tensor):
            _shape("lr", rate)
        for name in ("grad_scale", "found_inf"):
            _expect(given.get(name) is None, f"no {name}", "one; leave out fused=True")

    return check


_MOMENTUM = _fused("momentum_buffer_list", unless=("momentum_buffer_list", "momentum"))
_ADAM = _fused(
    "exp_avgs",
    "exp_avg_sqs",
    "max_exp_avg_sqs",
    unless=("max_exp_avg_sqs", "amsgrad"),
)
_STEPS = {"adam": _ADAM, "adamw": _ADAM, "sgd": _MOMENTUM}

_NORMS = (
    "_batch_norm_with_update.default",
    "_native_batch_norm_legit.no_stats",
    "batch_norm.default",
    "batch_norm_update_stats.default",
    "instance_norm.default",
)

CHECKS: Mapping[str, Callable[[Arguments], None]] = {
    "aten.lstm.input": _recurrent(4),
    "aten.gru.input": _recurrent(3),
    "aten.lstm.data": _recurrent(4, packed=True),
    "aten.gru.data": _recurrent(3, packed=True),
    "aten.rnn_relu.data": _written,
    "aten.rnn_tanh.data": _written,
    "aten.lstm_cell.default": _cell(4),
    "aten.gru_cell.default": _cell(3),
    **{f"aten.{name}": _batch_norm for name in _NORMS},
    **{f"aten._fused_{name}_.default": check for name, check in _STEPS.items()},
    **{f"aten._fused_{name}_.tensor_lr": check for name, check in _STEPS.items()},
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _attention,
    "aten._weight_norm_interface.default": _weight_norm,
    "aten.grid_sampler_2d.default": _grid_sampler(2),
    "aten.grid_sampler_3d.default": _grid_sampler(3),
    "aten._upsample_bicubic2d_aa.default": _antialiased,
    "aten._upsample_bilinear2d_aa.default": _antialiased,
    "aten._upsample_lanczos2d_aa.default": _antialiased,
    "aten.index.Tensor": _indices,
    "aten.index.Tensor_out": _indices,
    "aten.view.dtype": _same_kind,
}
"""What must hold of arguments; a check raises a CallError that says what does not."""
