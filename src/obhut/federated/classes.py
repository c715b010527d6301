"""Which class each row is of, where a target says so.

::

    classes = classes_of(y)
    classes.names              # ("0", "1", ..., "9")
    classes.of_rows            # (rows,) int64: the place of each row's name
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Classes in ascending order, and the rows of each.

    Attributes:
        names: what each is called in the target.
        of_rows: (rows,) int64, the place of each row's class among them.
    """

    names: tuple[str, ...]
    of_rows: torch.Tensor

    @property
    def counts(self) -> torch.Tensor:
        """The number of rows of each class, (classes,) int64."""
        return torch.bincount(self.of_rows, minlength=len(self.names))


def classes_of(target: torch.Tensor) -> Classes | None:
    """Return the classes of a target; None if it has none.

    Args:
        target: (rows,) or (rows, 1), any dtype. It has classes if all that is in it are
            whole numbers, as also in a float32 target of zeros and ones.
    """
    if target.dim() == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.dim() != 1 or target.is_complex():
        return None
    if target.is_floating_point() and not bool((target == target.round()).all()):
        return None  # NaN is none either
    values, of_rows = torch.unique(target, return_inverse=True)
    form = ".16g" if target.is_floating_point() else "d"
    return Classes(tuple(format(one, form) for one in values.tolist()), of_rows)
