"""The rule of release, by trying everything: slow, and nothing of the guard's in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from scipy.optimize import linprog

Vector = list[Fraction]


def reduced(rows: Sequence[Sequence[Fraction]]) -> list[Vector]:
    """Return the rows in echelon form, without zero rows."""
    left = [list(map(Fraction, row)) for row in rows]
    done: list[Vector] = []
    width = len(left[0]) if left else 0
    for column in range(width):
        pivot = next((row for row in left if row[column]), None)
        if pivot is None:
            continue
        left.remove(pivot)
        pivot = [x / pivot[column] for x in pivot]
        for group in (left, done):
            for place, row in enumerate(group):
                group[place] = [
                    x - row[column] * y for x, y in zip(row, pivot, strict=True)
                ]
        done.append(pivot)
    return done


def rank(rows: Sequence[Sequence[Fraction]]) -> int:
    """Return how many rows are independent."""
    return len(reduced(rows))


def lightest(rows: Sequence[Sequence[Fraction]]) -> int:
    """Return the least number of owners in a non-zero vector; of none, a large one.

    A vector with nothing outside some columns is there if the columns outside have a
    lower rank than all.
    """
    if not (full := rank(rows)):
        return 10**6
    width = len(rows[0])
    for weight in range(1, width + 1):
        for kept in itertools.combinations(range(width), weight):
            outside = [
                [x for place, x in enumerate(row) if place not in kept] for row in rows
            ]
            if rank(outside) < full:
                return weight
    raise AssertionError("all columns together have a vector")


def corners(rows: Sequence[Sequence[Fraction]]) -> Iterator[Vector]:
    """Yield the vectors that are left, up to a factor, when columns are set to zero."""
    basis = reduced(rows)
    width = len(basis[0]) if basis else 0
    for zeros in itertools.combinations(range(width), len(basis) - 1 if basis else 0):
        # Combinations of the basis that vanish there.
        system = [[row[zero] for row in basis] for zero in zeros]
        solution = kernel(system, len(basis))
        if len(solution) == 1:
            weights = solution[0]
            yield [
                sum((w * row[c] for w, row in zip(weights, basis, strict=True)), 0 * x)
                for c, x in enumerate(basis[0])
            ]


def kernel(rows: Sequence[Sequence[Fraction]], width: int) -> list[Vector]:
    """Return a basis of what a system sends to zero."""
    system = reduced(rows)
    pivots = [next(c for c, x in enumerate(row) if x) for row in system]
    found = []
    for free in (c for c in range(width) if c not in pivots):
        vector = [Fraction(0)] * width
        vector[free] = Fraction(1)
        for pivot, row in zip(pivots, system, strict=True):
            vector[pivot] = -row[free]
        found.append(vector)
    return found


def dominated(rows: Sequence[Sequence[Fraction]], colluders: int, percent: int) -> bool:
    """Tell whether an owner outweighs the others in some vector: at its corners."""
    share = Fraction(percent, 100)
    for vector in corners(rows):
        sizes = [abs(x) for x in vector]
        for j, size in enumerate(sizes):
            others = sorted(sizes[:j] + sizes[j + 1 :], reverse=True)
            if sum(others[colluders:]) < share * size:
                return True
    return False


def least_rest(rows: Sequence[Sequence[Fraction]], colluders: int) -> float:
    """Return the least that remains beside an owner of weight 1, by linear programs.

    For each owner and each set of colluders: the least sum of absolute values of the
    others, over all vectors in which the owner has 1.
    """
    basis = np.array(reduced(rows), dtype=float)
    least = float("inf")
    if basis.size == 0:
        return least
    count, width = basis.shape
    for j in range(width):
        if not basis[:, j].any():
            continue
        others = [i for i in range(width) if i != j]
        for taken in itertools.combinations(others, min(colluders, len(others))):
            rest = [i for i in others if i not in taken]
            cost = np.concatenate((np.zeros(count), np.ones(len(rest))))
            eye = np.eye(len(rest))
            columns = basis[:, rest].T
            solved = (
                linprog(
                    cost,
                    A_ub=np.block([[columns, -eye], [-columns, -eye]]),
                    b_ub=np.zeros(2 * len(rest)),
                    A_eq=np.concatenate((basis[:, j], np.zeros(len(rest))))[None],
                    b_eq=[1.0],
                    bounds=[(None, None)] * count + [(0, None)] * len(rest),
                )
                if rest
                else None
            )
            least = min(least, solved.fun if solved is not None else 0.0)
    return least
