"""Writes `src/obhut/ops/aten.py`, the operators a worker may run.

Rules this tool keeps:

- an overload's kind follows from its schema, its flags from its tags, from the
  curated tables below and from running PyTorch's own samples on meta tensors;
- a private operator (`aten._name`) is admitted only if one of PyTorch's samples was
  seen to reach it, or a table below names it;
- what is refused stays in the file, with the reason;
- two runs write the same file.

Usage: `python tools/generate_ops.py [--report FILE]`. It takes a few minutes.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import pathlib
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_optimizers import optim_db
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

TARGET = pathlib.Path(__file__).parents[1] / "src/obhut/ops/aten.py"

# Each reason is a sentence's tail: "aten.x is refused: <reason>".
# The pattern is searched in "packet.overload"; the first that matches counts.
REFUSED: Sequence[tuple[str, str]] = (
    (
        r"backward|_jvp\.|_grad\.|^linalg_\w*_vjp",
        "autograd runs where the data is; a derivative kernel trusts its arguments",
    ),
    (r"^from_file|^_?pin_memory|is_pinned", "it reaches files or memory of the host"),
    (r"storage|^_lazy_clone|^_copy_from", "it reaches memory behind a tensor"),
    (
        r"sparse|coalesce|^_nnz|^_?(crow_|ccol_|col_|row_)?indices(_copy)?\.|"
        r"^_?values(_copy)?\.|_dim[IV]\.|^dense_dim|spmm|sspaddmm|^_spdiags|^_spsolve|"
        r"^_?to_dense|^_convert_indices",
        "sparse layouts are not carried",
    ),
    (r"nested|jagged|^to_padded_tensor", "nested layouts are not carried"),
    (
        r"^(?!_?fake_)\w*(quant|int4|int8)|^q_|^qscheme|^int_repr|_fq_helper|"
        r"^_scaled_(grouped_)?mm",
        "quantized tensors are not carried",
    ),
    (r"mkldnn|onednn", "mkldnn layouts and kernels are specific to one device"),
    (
        r"cudnn|miopen|_mps|^mps_|xpu|vulkan|metal|triton|_cslt|nnpack|fbgemm|"
        r"^_mixed_dtypes|_overrideable",
        "its kernel is specific to one device",
    ),
    (
        r"_fw_primal|_make_dual|_unpack_dual|batch_dim\b|functorch|"
        r"_new_zeros_with_same_feature_meta|_make_dep_token|^slice_inverse",
        "it is an internal of forward mode, batching or functionalization",
    ),
    (r"^_test_|^_foobar", "it exists for PyTorch's own tests"),
    (r"^record_stream", "streams are the worker's own"),
    (r"assert|^_?(functional_)?sym_|^_print\.", "it serves tracing, not arithmetic"),
    (
        r"^_reshape_alias\.",
        "it makes a view without checking that it stays inside the tensor's memory",
    ),
    (
        r"^_unsafe_(masked_)?index|^_index_put_impl",
        "it does not check its indices",
    ),
)

# The same, by a type that an argument has.
REFUSED_TYPES: Sequence[tuple[str, str]] = (
    ("Dimname", "named tensors are not carried"),
    ("Storage", "it reaches memory behind a tensor"),
    ("Stream", "streams are the worker's own"),
    ("__torch__", "script objects are not carried"),
    ("Any", "its arguments are not typed"),
)
NO_KERNEL = "it has no kernel on the CPU, only one specific to another device or layout"
GENERATED = "it is made for functionalization; no Python call reaches it"
UNREACHED = "it is an internal that none of PyTorch's samples reaches"

# Private operators that samples don't reach, though users' code does.
REACHED = (
    r"^_foreach_|^_amp_(foreach_non_finite_check_and_unscale|update_scale)_\.|"
    r"^_fused_(sgd|adam|adamw|adagrad)_\.|^_(local_scalar_dense|to_copy)\.|"
    r"^_euclidean_dist\.|"
    r"^_is_(all|any)_true\.|^_neg_view\.|^_upsample_\w+_aa\.default|"
    r"^_weight_norm_interface\.|^_embedding_bag(_forward_only)?\."
)

# Composites that travel whole. Most ask whether an argument requires grad, or choose a
# kernel, so that the client's decomposition would differ from the worker's; the norms
# check what their kernels don't; istft is made of a derivative kernel.
WHOLE: Sequence[str] = (
    "batch_norm.default",
    "conv1d.default",
    "conv1d.padding",
    "conv2d.default",
    "conv2d.padding",
    "conv3d.default",
    "conv3d.padding",
    "ctc_loss.IntList",
    "ctc_loss.Tensor",
    "dropout.default",
    "einsum.default",
    "embedding_bag.default",
    "embedding_bag.padding_idx",
    "gru.data",
    "gru.input",
    "gru_cell.default",
    "instance_norm.default",
    "istft.default",
    "layer_norm.default",
    "linear.default",
    "lstm.data",
    "lstm.input",
    "lstm_cell.default",
    "matmul.default",
    "rnn_relu.data",
    "rnn_relu.input",
    "rnn_relu_cell.default",
    "rnn_tanh.data",
    "rnn_tanh.input",
    "rnn_tanh_cell.default",
    "scaled_dot_product_attention.default",
)

# What does not check what it is given: with forged arguments of public types each of
# these ended the process or read beyond a tensor. Behind a guard they run after a check
# of `worker/argument_checks.py`, or not at all; the note says what to check.
UNCHECKED: Sequence[tuple[str, str]] = (
    (r"^_?ctc_loss\.", "targets"),
    (r"^_fused_(sgd|adam|adamw|adagrad)_\.", "sizes of gradients and states"),
    (r"^_weight_norm_interface\.", "size of g"),
    (r"^(lstm|gru|lstm_cell|gru_cell)\.", "sizes of weights"),
    (r"^(lstm|gru|rnn_tanh|rnn_relu)\.data", "batch sizes"),
    (
        r"^(native_batch_norm|_native_batch_norm_legit(_no_training)?|"
        r"_?batch_norm_(with|no)_update|batch_norm_update_stats)\.",
        "sizes of weight, bias and running statistics",
    ),
    (r"^(batch|instance)_norm\.", "dtypes of weight, bias and running statistics"),
    (r"^_scaled_dot_product_flash_attention_for_cpu\.", "batch and heads of k, v"),
    (r"^grid_sampler_[23]d\.", "interpolation_mode and padding_mode, each 0 to 2"),
    (r"^_upsample_\w+_aa\.", "scales"),
    (r"^segment_reduce\.", "offsets; lengths if unsafe"),
    (r"^repeat_interleave\.Tensor", "output_size"),
    (r"^linalg_ldl_solve\.", "pivots"),
    (r"^index\.Tensor", "boolean indices"),
    (r"^view\.dtype", "indices seen as floating-point numbers"),
)

# What is not admitted behind a guard though an open worker runs it, and what to write
# instead. Each reason is a sentence's tail; the first that matches counts. What returns
# a value, has a shape that depends on values, or can not be tried on meta tensors is
# refused there in any case, if not for a reason below then for a general one.
GUARD_REFUSED: Sequence[tuple[str, str]] = (
    (
        r"^(_local_scalar_dense|equal|allclose)\.",
        "it tells a value of private data; keep it a tensor and average it over "
        "owners; a model's forward can ask torch.compiler.is_compiling() before it "
        "reads one",
    ),
    (r"^nonzero\.", "its shape tells values; use torch.nonzero_static"),
    (r"^masked_select\.", "its shape tells values; multiply by the mask"),
    (r"unique", "its shape tells values; declare the categories beforehand"),
    (
        r"^bincount\.",
        "its shape tells values; sum comparisons with torch.arange(classes)",
    ),
    (r"^repeat_interleave\.", "its shape tells values; repeat by a number"),
    (r"^linalg_lstsq\.", "a shape tells the rank; use torch.linalg.pinv(a) @ b"),
    (
        r"^_pack_padded_sequence\.",
        "its shape tells lengths; keep the sequences padded and mask the loss",
    ),
    (
        r"^_?ctc_loss\.",
        "its kernel trusts targets and lengths, which are values",
    ),
    (
        r"^_fused_adagrad_\.",
        "it is said to write step counts, which are numbers that stay; leave out "
        "fused=True",
    ),
    (r"^segment_reduce\.", "its kernel trusts offsets and lengths, which are values"),
    (r"^linalg_ldl_solve\.", "its kernel trusts pivots; use torch.linalg.solve"),
    (
        r"embedding_bag",
        "its kernel trusts offsets, which are values; use "
        "torch.nn.functional.embedding and a sum",
    ),
    (
        r"^_native_multi_head_attention\.",
        "meta tensors can not try it; torch.backends.mha.set_fastpath_enabled(False)",
    ),
    (
        r"^(native_batch_norm|_native_batch_norm_legit)\.(default|out|no_stats_out)$",
        "meta tensors answer wrongly; use torch.nn.functional.batch_norm",
    ),
    (
        r"^_amp_update_scale_\.",
        "it changes integers of which autograd is not told; scale the loss by a number",
    ),
    (
        r"^(resize_|resize_as_|_resize_output_)\.",
        "what it adds is uninitialised memory, and a sum of that is no result",
    ),
    (r"^set_\.", "it gives a tensor another one's memory; use copy_"),
    (r"^addbmm_\.", "it may give its target another size; use torch.addbmm"),
)
GUARD_VALUE = "its result is a value, which is a release"
GUARD_DYNAMIC = "its shape depends on values"
GUARD_NO_META = "its sizes can not be checked before it runs"

# The one that returns nothing: behind a guard nothing comes of it.
GUARD_ADMITTED = r"^_linalg_check_errors\."

# Flags that no tag tells. Patterns are searched in "packet.overload".
FLAGS: Sequence[tuple[str, str]] = (
    (r"^(new_)?empty(_like|_strided|_permuted)?\.", "zeroed"),
    (r"^(a?range|dropout)\.", "float_shape"),
    (r"^_pack_padded_sequence\.|^(lstm|gru|rnn_tanh|rnn_relu)\.data", "dynamic"),
    (r"^(resize_as_|_resize_output_|set_data|addbmm_)\.", "reshapes"),
    (r"^batch_norm\.default", "strides"),
    (r"^(dropout|lstm|gru|rnn_tanh|rnn_relu|scaled_dot_product_attention)\.", "random"),
)
# Tags and samples that say too much.
NOT_FLAGS: Sequence[tuple[str, str]] = (
    (r"^detach_\.", "reshapes"),
    (r"^_?ctc_loss\.", "dynamic"),
)
NOTES: Sequence[tuple[str, str]] = (
    (r"^index\.Tensor", "dynamic only with a bool or uint8 index"),
    (
        r"^(lstm|gru|rnn_tanh|rnn_relu)\.data",
        "dynamic only with batch sizes that are a tensor",
    ),
    (r"^linalg_lstsq\.", "the shape of the residuals depends on the rank"),
    (r"^native_batch_norm\.", "changes: running_mean, running_var"),
    (r"^batch_norm\.default", "changes: running_mean, running_var"),
    (r"^_linalg_check_errors\.", "fails on values"),
    (r"^linalg_eigvals\.out", "ends the process on values that are not finite"),
    (r"^div\w*\.\w*mode", "ends the process on the least integer divided by -1"),
    (r"^native_batch_norm\.|^_native_batch_norm_legit", "checked twin: batch_norm"),
    (
        r"^_scaled_dot_product_flash_attention_for_cpu\.",
        "cpu kernel; twin: aten.scaled_dot_product_attention.default",
    ),
)


@dataclass
class Seen:
    """What samples showed of one overload.

    Attributes:
        calls: Calls with distinct argument metadata.
        failed: Of these, how many meta tensors could not repeat, by exception.
        wrong: How many gave other shapes or dtypes on meta tensors.
        strides: How many gave other strides.
        relaid: How many failed or gave other strides on meta tensors, of the calls
            with arguments that are not row-major.
        by: Names of samples that reached it, a few.
    """

    calls: int = 0
    failed: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: int = 0
    strides: int = 0
    contiguity: int = 0
    relaid: int = 0
    by: list[str] = field(default_factory=list)


def _name(func: torch._ops.OpOverload) -> str:
    return f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}"


class Recorder(TorchDispatchMode):
    """Records overloads that samples reach, and repeats each on meta tensors."""

    def __init__(self) -> None:
        """Starts with nothing seen."""
        super().__init__()
        self.seen: dict[str, Seen] = {}
        self.keys: set[str] = set()
        self.trace: list[str] = []
        self.sample = ""
        self.repeat = True
        self.relaid = False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if func.namespace != "aten":
            name = f"{func.namespace}::{name}"
        if name not in ("detach.default", "alias.default"):
            switches = [x for x in tree_leaves((args, kwargs)) if isinstance(x, bool)]
            self.trace.append(f"{name}{switches or ''}")
        seen = self.seen.setdefault(name, Seen())
        if self.sample not in seen.by and len(seen.by) < 4:
            seen.by.append(self.sample)
        key = f"{name}{tree_map(_describe, (args, kwargs))}"
        if not self.repeat or key in self.keys:
            return func(*args, **kwargs)
        self.keys.add(key)
        leaves = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        if any(x.layout != torch.strided or x.is_quantized for x in leaves):
            return func(*args, **kwargs)
        known: dict[int, torch.Tensor] = {}
        meta_args, meta_kwargs = tree_map(lambda x: _meta(x, known), (args, kwargs))
        if any(a.name == "device" for a in func._schema.arguments):
            meta_kwargs["device"] = torch.device("meta")
        result = func(*args, **kwargs)
        seen.calls += 1
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = func(*meta_args, **meta_kwargs)
        except Exception as error:  # whatever meta kernels raise is the finding
            if self.relaid:
                seen.relaid += 1
            else:
                seen.failed[type(error).__name__] += 1
            return result
        real = [x for x in tree_leaves((result, args, kwargs)) if torch.is_tensor(x)]
        meta = [
            x
            for x in tree_leaves((answer, meta_args, meta_kwargs))
            if torch.is_tensor(x)
        ]
        if any(x.layout != torch.strided for x in real):
            return result
        if self.relaid:
            seen.relaid += [_strides(x) for x in real] != [_strides(x) for x in meta]
        elif [(x.shape, x.dtype) for x in real] != [(x.shape, x.dtype) for x in meta]:
            seen.wrong += 1
        elif [_strides(x) for x in real] != [_strides(x) for x in meta]:
            seen.strides += 1
            seen.contiguity += [x.is_contiguous() for x in real] != [
                x.is_contiguous() for x in meta
            ]
        return result


def _strides(x: torch.Tensor) -> list[int]:
    # Strides of sizes 0 and 1 mean nothing.
    if x.numel() == 0:
        return []
    return [s for n, s in zip(x.shape, x.stride(), strict=True) if n > 1]


def _describe(x: object) -> str:
    if not isinstance(x, torch.Tensor):
        return repr(x)
    if x.layout != torch.strided:
        return f"T{x.layout}"
    return f"T{tuple(x.shape)}{x.stride()}{x.dtype}{x.is_conj()}{x.is_neg()}"


def _meta(x: Any, known: dict[int, torch.Tensor]) -> Any:
    if isinstance(x, torch.device):
        return torch.device("meta")
    if not isinstance(x, torch.Tensor):
        return x
    if id(x) not in known:
        with torch.no_grad():
            extent = 1 + sum(
                (n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)
            )
            size = x.storage_offset() + (extent if x.numel() else 0)
            base = torch.empty(size, dtype=x.dtype, device="meta")
            made = base.as_strided(x.shape, x.stride(), x.storage_offset())
            made = torch._conj(made) if x.is_conj() else made
            known[id(x)] = torch._neg_view(made) if x.is_neg() else made
    return known[id(x)]


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        yield


def _take(make: Callable[[], Any], limit: int) -> list[Any]:
    samples: list[Any] = []
    with _quiet():
        for sample in make():
            samples.append(sample)
            if len(samples) == limit:
                break
    return samples


def observe_operators(recorder: Recorder, limits: dict[torch.dtype, int]) -> list[Any]:
    """Runs samples of `op_db`; returns which decompose differently under grad."""
    differ = []
    for op in op_db:
        for dtype, limit in limits.items():
            if not op.supports_dtype(dtype, "cpu"):
                continue
            recorder.sample = f"{op.full_name}"
            traces: dict[bool, list[list[str]]] = {}
            for grad in (False, True):
                if grad and not (op.supports_autograd and dtype.is_floating_point):
                    continue
                _seed()
                samples = _take(
                    lambda op=op, dtype=dtype, grad=grad: op.sample_inputs(
                        "cpu", dtype, requires_grad=grad
                    ),
                    limit,
                )
                traces[grad] = []
                for sample in samples:
                    _seed()
                    recorder.trace = []
                    with _quiet(), recorder:
                        op(sample.input, *sample.args, **sample.kwargs)
                    traces[grad].append(recorder.trace)
                    recorder.trace = []
                    if grad:
                        continue
                    variants = (op.method_variant, op.inplace_variant)
                    for variant in filter(None, variants):
                        with _quiet():
                            clone = tree_map(
                                lambda x: x.clone() if torch.is_tensor(x) else x,
                                sample.input,
                            )
                            with recorder:
                                variant(clone, *sample.args, **sample.kwargs)
                    if op.supports_out:
                        with _quiet():
                            expected = op(sample.input, *sample.args, **sample.kwargs)
                            out = tree_map(torch.empty_like, expected)
                            with recorder:
                                op(sample.input, *sample.args, **sample.kwargs, out=out)
            if len(traces) == 2 and dtype == torch.float32:
                for no, (plain, under) in enumerate(
                    zip(traces[False], traces[True], strict=False)
                ):
                    if plain != under:
                        differ.append((op.full_name, no, plain, under))
                        break
    return differ


def observe_layouts(recorder: Recorder, limit: int) -> None:
    """Runs samples of `op_db` with elements in other orders than row-major."""

    def transposed(x: Any) -> Any:
        if not torch.is_tensor(x) or x.layout != torch.strided or x.dim() < 2:
            return x
        return x.transpose(0, -1).contiguous().transpose(0, -1)

    def channels_last(x: Any) -> Any:
        if not torch.is_tensor(x) or x.layout != torch.strided or x.dim() < 4:
            return x
        return x.movedim(1, -1).contiguous().movedim(-1, 1)

    orders: Sequence[Callable[[Any, Any], Any]] = (
        lambda first, rest: (tree_map(transposed, first), tree_map(transposed, rest)),
        lambda first, rest: (tree_map(transposed, first), rest),
        lambda first, rest: (first, tree_map(transposed, rest)),
        lambda first, rest: (
            tree_map(channels_last, first),
            tree_map(channels_last, rest),
        ),
    )
    recorder.relaid = True
    for op in op_db:
        if not op.supports_dtype(torch.float32, "cpu"):
            continue
        recorder.sample = f"{op.full_name}"
        _seed()
        samples = _take(lambda op=op: op.sample_inputs("cpu", torch.float32), limit)
        for sample in samples:
            for order in orders:
                _seed()
                with _quiet():
                    first, (args, kwargs) = order(
                        sample.input, (sample.args, sample.kwargs)
                    )
                    with recorder:
                        op(first, *args, **kwargs)
    recorder.relaid = False


def observe_modules(recorder: Recorder) -> list[Any]:
    """Runs forward passes of `module_db`, training and not."""
    differ = []
    for info in module_db:
        for training in (True, False):
            traces = []
            for grad in (False, True):
                _seed()
                with _quiet():
                    inputs = info.module_inputs_func(
                        info,
                        device="cpu",
                        dtype=torch.float32,
                        requires_grad=grad,
                        training=training,
                    )
                    for given in inputs[:8]:
                        made, call = given.constructor_input, given.forward_input
                        recorder.sample = f"{info.name}"
                        with _quiet():
                            module = info.module_cls(*made.args, **made.kwargs)
                            module.train(training).requires_grad_(grad)
                            recorder.trace = []
                            with recorder:
                                module(*call.args, **call.kwargs)
                            traces.append((grad, recorder.trace))
                            recorder.trace = []
            plain = [t for g, t in traces if not g]
            under = [t for g, t in traces if g]
            if plain != under:
                pair = next(
                    ((a, b) for a, b in zip(plain, under, strict=False) if a != b),
                    ([], []),
                )
                differ.append((info.name, training, *pair))
    return differ


def observe_optimizers(recorder: Recorder) -> None:
    """Runs two steps of each optimizer in `optim_db`, as written and by lists."""
    for info in optim_db:
        for given in info.optim_inputs_func(device="cpu", dtype=torch.float32):
            for implementation in ("", *info.supported_impls):
                _seed()
                recorder.sample = f"{info.optim_cls.__name__}({implementation})"
                with _quiet():
                    weights = [
                        torch.nn.Parameter(torch.randn(3, 4)),
                        torch.nn.Parameter(torch.randn(3)),
                    ]
                    kwargs = dict(given.kwargs)
                    if implementation:
                        kwargs[implementation] = True
                    optimizer = info.optim_cls(weights, **kwargs)
                    for _ in range(2):
                        _step(optimizer, weights, recorder)


def _step(
    optimizer: Any, weights: list[torch.nn.Parameter], recorder: Recorder
) -> None:
    def closure() -> torch.Tensor:
        # Backward kernels run at the worker, so they are not recorded.
        with torch.utils._python_dispatch._disable_current_modes():
            loss = sum((w * w).sum() for w in weights)
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = torch.stack([(w * w).sum() for w in weights]).sum()
                loss.backward()
        return loss

    closure()
    with recorder:
        optimizer.zero_grad(set_to_none=False)
    closure()
    with recorder:
        optimizer.step(closure)


def observe_idioms(recorder: Recorder) -> None:
    """Runs what users write and no database of samples holds."""
    idioms: Sequence[Callable[[torch.Tensor], object]] = (
        lambda x: x.item() if x.numel() == 1 else x[0, 0].item(),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
        lambda x: torch.allclose(x, x),
        lambda x: bool((x > 0).any()),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: torch.randn(2, generator=None),
        lambda x: torch.rand(2, generator=None),
        lambda x: torch.randint(3, (2,), generator=None),
        lambda x: torch.randint(1, 3, (2,), generator=None),
        lambda x: torch.randperm(4, generator=None),
        lambda x: torch.randn_like(x, generator=None),
        lambda x: torch.rand_like(x, generator=None),
        lambda x: torch.randint_like(x, 3, generator=None),
        lambda x: torch.randint_like(x, 1, 3, generator=None),
        lambda x: x.clone().resize_(2, 2),
        lambda x: x.clone().resize_as_(x),
        lambda x: x.clone().t_(),
        lambda x: x.clone().transpose_(0, 1),
        lambda x: x.clone().squeeze_(),
        lambda x: x.clone().squeeze_(0),
        lambda x: x.clone().unsqueeze_(0),
        lambda x: x.clone().as_strided_((2,), (1,)),
        lambda x: x.clone().detach_(),
        lambda x: setattr(x.clone(), "data", x),
        lambda x: x.data,
        lambda x: x.detach(),
        lambda x: x.half().float(),
        lambda x: x.to(torch.float64),
        lambda x: x.clone().normal_(),
        lambda x: x.clone().uniform_(),
        lambda x: x.clone().copy_(x),
        lambda x: x.clone().__setitem__((slice(0, 2), 0), 1.0),
        lambda x: x.clone().__setitem__(x > 0, 1.0),
        lambda x: torch.nn.utils.clip_grad_norm_(_graded(x), 1.0),
        lambda x: torch.nn.utils.clip_grad_value_(_graded(x), 1.0),
        lambda x: torch.nn.utils.parameters_to_vector([x, x]),
        lambda x: [torch.nn.init.kaiming_uniform_(x.clone()), torch.nn.init.eye_(x)],
        lambda x: torch.nn.init.orthogonal_(x.clone()),
        lambda x: torch.nn.init.trunc_normal_(x.clone()),
        lambda x: torch.nn.init.sparse_(x.clone(), 0.5),
        lambda x: torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 4))(
            x[:, :3]
        ),
        lambda x: torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 4))(
            x[:, :3]
        ),
        lambda x: torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(3, 3))(
            x[:, :3]
        ),
        lambda x: torch.distributions.Normal(x, 1.0).sample(),
        lambda x: torch.distributions.Categorical(logits=x).sample(),
        lambda x: torch.distributions.Bernoulli(logits=x).sample(),
        lambda x: torch.distributions.Gamma(x.abs() + 1, 1.0).sample(),
        lambda x: torch.distributions.Dirichlet(x.abs() + 1).sample(),
        lambda x: torch.distributions.Poisson(x.abs()).sample(),
        lambda x: torch.nn.utils.rnn.pack_padded_sequence(
            x[:, :, None], [4, 3, 1], batch_first=False, enforce_sorted=False
        ),
        *(
            lambda x, made=made: made(1, 2)(
                torch.nn.utils.rnn.pack_padded_sequence(x[:, :, None], [4, 3, 1])
            )
            for made in (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)
        ),
        lambda x: torch.nn.RNN(3, 2, nonlinearity="relu")(
            torch.nn.utils.rnn.pack_sequence([x, x[:2]])
        ),
        torch.nn.RNN(3, 2),
        lambda x: torch.embedding_bag(
            x, torch.tensor([1, 2]), torch.tensor([0, 1]), False, 0, False, None, False
        ),
        lambda x: torch.stft(x.flatten(), 4, return_complex=True),
        lambda x: torch.istft(
            torch.stft(x.flatten(), 4, return_complex=True, window=torch.ones(4)),
            4,
            window=torch.ones(4),
        ),
        lambda x: torch.view_as_complex(x[:, :2].contiguous()).conj().imag,
        lambda x: torch.nn.utils.rnn.pad_sequence([x, x[:2]]),
        lambda x: torch.amp.GradScaler("cpu").scale(x),
        repr,
    )
    x = torch.randn(4, 3)
    for no, idiom in enumerate(idioms):
        _seed()
        recorder.sample = f"idiom {no}"
        with _quiet(), recorder:
            idiom(x)


def _graded(x: torch.Tensor) -> torch.Tensor:
    made = torch.nn.Parameter(x.clone())
    made.grad = x.clone()
    return made


def _schemas() -> Iterator[tuple[str, torch._ops.OpOverload]]:
    for full in sorted(torch._C._dispatch_get_all_op_names()):
        if full.startswith("aten::"):
            packet, _, overload = full.removeprefix("aten::").partition(".")
            func = getattr(getattr(torch.ops.aten, packet), overload or "default")
            yield full, func


def _kind(schema: Any) -> tuple[str, str]:
    """Returns the kind, and a note where the kind alone would mislead."""
    changed = [a for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    results = [str(r.type) for r in schema.returns]
    aliases = {s for a in changed for s in a.alias_info.before_set}
    fresh = [
        r
        for r in schema.returns
        if not (r.alias_info and r.alias_info.before_set & aliases)
    ]
    if any(a.is_out for a in changed):
        return "out", ""
    if changed and fresh:
        return "function", f"changes: {', '.join(a.name for a in changed)}"
    if changed:
        return "inplace", ""
    if not any("Tensor" in r for r in results):
        return "value", ""
    if any(a.alias_info for a in schema.arguments):
        return "view", ""
    if not any("Tensor" in str(a.type) for a in schema.arguments):
        return "factory", ""
    return "function", ""


def _refusal(name: str, func: torch._ops.OpOverload, reached: bool) -> str:
    """Returns why an overload is refused, or nothing."""
    for pattern, reason in REFUSED:
        if re.search(pattern, name):
            return reason
    types = " ".join(str(a.type) for a in func._schema.arguments)
    for pattern, reason in REFUSED_TYPES:
        if pattern in types:
            return reason
    if reached:
        return ""
    if torch.Tag.generated in func.tags:
        return GENERATED
    has = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    if not has(func._schema.name + _suffix(func), "CPU"):
        return NO_KERNEL
    if re.search(r"^_(?!_)", name) and not re.search(REACHED, name):
        return UNREACHED
    return ""


def _suffix(func: torch._ops.OpOverload) -> str:
    return f".{func._schema.overload_name}" if func._schema.overload_name else ""


def _flags(
    name: str, kind: str, func: torch._ops.OpOverload, seen: Seen | None
) -> set[str]:
    tags, schema = func.tags, func._schema
    has = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    flags = {flag for pattern, flag in FLAGS if re.search(pattern, name)}
    if torch.Tag.dynamic_output_shape in tags:
        flags.add("dynamic")
    if torch.Tag.nondeterministic_seeded in tags or any(
        "Generator" in str(a.type) for a in schema.arguments
    ):
        flags.add("random")
    if torch.Tag.inplace_view in tags:
        flags.add("reshapes")
    if any(a.name == "scale_factors" for a in schema.arguments):
        flags.add("float_shape")
    if name in WHOLE:
        flags.add("whole")
    fails = seen and (seen.failed or seen.wrong or seen.contiguity)
    if fails or not has(schema.name + _suffix(func), "Meta"):
        flags.add("no_meta")
    elif seen and seen.relaid and kind in ("function", "view"):
        flags.add("strides")
    flags -= {flag for pattern, flag in NOT_FLAGS if re.search(pattern, name)}
    if kind == "value" or "dynamic" in flags or not schema.returns:
        # These ask the worker in any case, or have nothing to ask for.
        flags.discard("no_meta")
    return flags


def _guard_reason(name: str, kind: str, flags: set[str], seen: Seen | None) -> str:
    """Returns why an admitted overload is not admitted behind a guard, or nothing."""
    if re.search(GUARD_ADMITTED, name):
        return ""
    for pattern, reason in GUARD_REFUSED:
        if re.search(pattern, name):
            return reason
    if kind == "value":
        return GUARD_VALUE
    if "dynamic" in flags and not re.search(r"^index\.|\.data$", name):
        return GUARD_DYNAMIC
    # Other strides than meta tensors get tell nothing of sizes.
    if "no_meta" in flags and (not seen or seen.failed or seen.wrong):
        return GUARD_NO_META
    return ""


def rows(seen: dict[str, Seen]) -> list[tuple[str, str, str, str]]:
    """Returns a row for each overload, sorted by name."""
    made = []
    for full, func in _schemas():
        name = _name(func)
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(
            full, "CompositeImplicitAutograd"
        )
        if composite and name not in WHOLE and name not in seen:
            continue
        refusal = _refusal(name, func, name in seen or name in WHOLE)
        if refusal:
            made.append((f"aten.{name}", "refused", "", refusal))
            continue
        kind, note = _kind(func._schema)
        flags = _flags(name, kind, func, seen.get(name))
        reason = _guard_reason(name, kind, flags, seen.get(name))
        if reason:
            flags.add("guard_refused")
        elif any(re.search(pattern, name) for pattern, _ in UNCHECKED):
            flags.add("guard_checked")
        notes = [note] if note else []
        notes += [text for pattern, text in NOTES if re.search(pattern, name)]
        notes += [
            f"unchecked: {what}"
            for pattern, what in UNCHECKED
            if re.search(pattern, name)
        ]
        if "no_meta" in flags and name in seen and seen[name].contiguity:
            notes.append("meta tensors get other strides")
        if any(
            "Generator" in str(a.type) and not a.has_default_value()
            for a in func._schema.arguments
        ):
            notes.append("generator must be None")
        if reason:
            notes.append(f"guard: {reason}")
        made.append((f"aten.{name}", kind, " ".join(sorted(flags)), "; ".join(notes)))
    missing = sorted({f"aten.{name}" for name in WHOLE} - {row[0] for row in made})
    if missing:
        raise SystemExit(f"WHOLE names overloads that torch lacks: {missing}")
    return sorted(made)


HEADER = '''"""Overloads of torch {version}, written by `tools/generate_ops.py`.

Each is a name, a kind, flags and a note, as `obhut.ops.table` explains them.
Composites that a client decomposes have no row.
"""

# fmt: off
# ruff: noqa: E501
OVERLOADS: tuple[tuple[str, str, str, str], ...] = (
'''


def render(made: list[tuple[str, str, str, str]]) -> str:
    """Returns the text of the module."""
    lines = [f"    ({', '.join(json.dumps(cell) for cell in row)}),\n" for row in made]
    version = torch.__version__.partition("+")[0]
    return HEADER.format(version=version) + "".join(lines) + ")\n"


def main(arguments: Sequence[str]) -> None:
    """Observes, classifies and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--report", type=pathlib.Path, help="what samples reached, as JSON"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recorder = Recorder()
    differ = observe_operators(recorder, {torch.float32: 25})
    differ += observe_modules(recorder)
    observe_optimizers(recorder)
    observe_idioms(recorder)
    observe_layouts(recorder, 25)
    # In inference mode composites reach the recorder undecomposed.
    whole = Recorder()
    with torch.inference_mode():
        observe_operators(whole, {torch.float32: 25})
        observe_modules(whole)
        observe_idioms(whole)
    for name in WHOLE:
        recorder.seen[name] = whole.seen.get(name, Seen())
    recorder.repeat = False
    observe_operators(
        recorder,
        {torch.complex64: 2, torch.int64: 2, torch.bool: 2, torch.bfloat16: 2},
    )
    made = rows(recorder.seen)
    TARGET.write_text(render(made))
    if options.report:
        report = {
            "differ": differ,
            "seen": {name: vars(seen) for name, seen in sorted(recorder.seen.items())},
        }
        options.report.write_text(json.dumps(report, indent=1, default=str))


if __name__ == "__main__":
    main(sys.argv[1:])
