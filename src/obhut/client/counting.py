"""How many rows there are, counted where they are.

::

    rows = counted(session, DatasetRows("xray", ("target",)), look)     # a scalar there

Rule: it is a program, whose digest is the same at all owners, whether or not how many
rows they have is hidden.
"""

from __future__ import annotations

import torch

from obhut.programs.program import Input, Kind, Line, Program, Result, Size
from obhut.programs.text import digest, write
from obhut.protocol.messages import DatasetRows, Here, Ref, RunProgram, Split
from obhut.worker.shapes import Spec, dense
from obhut.worker.tensors import DTYPE_NAMES

from .defining import define
from .held import Held
from .remote_tensor import RemoteTensor
from .session import Session


def counted(
    session: Session,
    rows: tuple[int, ...] | DatasetRows,
    look: Spec,
    split: Split | None = None,
) -> torch.Tensor:
    """Return how many rows there are, at the worker: a scalar, float64.

    Args:
        session: with the worker.
        rows: a tensor of rows by its id, or of a data set.
        look: what a row looks like.
        split: which part of them is counted; None for all.
    """
    text = write(_program(look))
    key = digest(text)
    define(session, key, text)
    id = session.new_ids(2)
    session.post(RunProgram(key, (), rows, id, 2, split=split))
    _, below = (
        RemoteTensor._of(Held(session, one, dense((1,), torch.float64)))
        for one in (id, id + 1)
    )
    return below[0]


def _program(look: Spec) -> Program:
    """Return a program whose denominator is the number of rows."""
    row = Input("x", Kind.ROWS, DTYPE_NAMES[look.dtype], (Size(1), *look.shape))
    zero = Line("aten.zeros.default", ([],), (("device", Here()),), 2, 1)
    return Program((row,), (), (zero,), (Result("", Ref(2), Size(1)),))
