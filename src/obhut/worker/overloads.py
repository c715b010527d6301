"""What the schema and the op table say of an overload, read once.

::

    overload = Overload(torch.ops.aten.t_.default)
    overload.writes, overload.reshapes           # True, True

Rule: what the schema does not say stands in a table here, with its reason.
"""

from __future__ import annotations

from typing import Any

import torch

from obhut.ops.table import Flag, Kind, row

OFFSETS = frozenset(
    f"aten.{name}"
    for name in (
        *("as_strided.default", "as_strided_.default", "view.dtype"),
        *("view_as_real.default", "view_as_complex.default", "resize_.default"),
        *("resize_as_.default", "set_.source_Tensor", "set_.default"),
    )
)
"""Overloads that read where a tensor begins in its memory, or how much there is.

All others that make views move the beginning by as much wherever it is.
"""

NEEDS_VALUES = (
    "behind a guard what it returns must be known before it runs; that depends on "
    "values, or on a kernel that needs them"
)
"""Why an operator is refused that meta tensors do not answer for."""


class Overload:
    """What the schema of an overload says.

    Attributes:
        name: its name, as the op table has it.
        call: the overload itself.
        floats_matter: whether float arguments decide the results' shape.
        placed: whether it can be told on which device to make its results.
        offsets: whether it reads where its arguments lie in their memory.
        writes: whether it changes an argument.
        lists: positions of the lists of tensors that it changes without autograd's
            notice of it, though their versions count.
        silent: whether it returns nothing, and changes numbers only.
        out: whether it writes its results into ``out`` arguments.
        in_place: whether it returns the first argument, changed.
        reshapes: whether it may give an argument other sizes, strides or memory.
        tensorless: whether its results are no tensors.
        asked: whether its kernel may be asked what it says of a few zeros: neither does
            it draw random numbers, nor trust arguments that nobody has checked.
        written: positions and names of what it changes.
    """

    __slots__ = (
        "asked",
        "call",
        "floats_matter",
        "in_place",
        "lists",
        "name",
        "offsets",
        "out",
        "placed",
        "reshapes",
        "silent",
        "tensorless",
        "writes",
        "written",
    )

    def __init__(self, func: torch._ops.OpOverload[..., Any]) -> None:
        arguments = func._schema.arguments
        written = [a for a in arguments if a.alias_info and a.alias_info.is_write]
        name = str(func)
        known = row(name)
        unknown = known is None or known.kind is Kind.REFUSED
        random = torch.Tag.nondeterministic_seeded in func.tags
        self.name = name
        self.call = func._op
        # What only derivatives call has no row. Its floats hardly ever change.
        self.floats_matter = unknown or Flag.FLOAT_SHAPE in known.flags  # type: ignore[union-attr] # unknown or there
        self.placed = any(a.name == "device" for a in arguments)
        self.offsets = name in OFFSETS
        self.writes = bool(written)
        self.out = any(a.kwarg_only for a in written)
        returned = [r for r in func._schema.returns if r.alias_info]
        self.in_place = (
            len(returned) == 1
            and returned[0].alias_info is not None
            and returned[0].alias_info.is_write
            and arguments[0] in written
        )
        self.reshapes = self.offsets or torch.Tag.inplace_view in func.tags
        # Kernels of fused optimizers and of a scaler don't count what they write.
        counted = self.out or name.startswith("aten._foreach_")
        self.lists = tuple(
            (at, a.name)
            for at, a in enumerate(arguments)
            if counted and a in written and "List" in str(a.type)
        )
        self.silent = not func._schema.returns and not self.reshapes and not self.out
        self.tensorless = not any(
            "Tensor" in str(one.type) for one in func._schema.returns
        )
        self.asked = not (unknown or random or Flag.GUARD_REFUSED in known.flags)  # type: ignore[union-attr] # as above
        self.written = tuple(
            (at, a.name) for at, a in enumerate(arguments) if a in written
        )
