"""The space of released rows, against plain elimination with fractions."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obhut.guard.certificates import _with_one, certified
from obhut.guard.distance import checkable, light
from obhut.guard.p_percent import Excess, excess, of_row
from obhut.guard.row_space import Block, RowSpace, elementary, primitive

from . import brute_force

NAMES = "abcdef"

ENTRY = st.sampled_from([0, 0, 1, 1, 1, 2, -1, 3])

ROWS = st.lists(
    st.lists(ENTRY, min_size=len(NAMES), max_size=len(NAMES)), min_size=1, max_size=6
)


def as_row(numbers):
    """Return a row by owner, without zeros."""
    return {name: x for name, x in zip(NAMES, numbers, strict=True) if x}


def as_list(row, names=NAMES):
    """Return a row with its zeros."""
    return [Fraction(row.get(name, 0)) for name in names]


def space_of(rows):
    """Return the space of rows."""
    space = RowSpace()
    for row in rows:
        space, _ = space.plus(row)
    return space


def block_of(*rows):
    """Return the one block of rows, columns named in order."""
    names = [f"{place:03}" for place in range(len(rows[0]))]
    made = [{name: x for name, x in zip(names, row, strict=True) if x} for row in rows]
    (block,) = space_of(made).blocks
    return block


def matrix(blocks, names=NAMES):
    """Return the rows of blocks."""
    return [as_list(row, names) for block in blocks for row in block.rows.values()]


def same(one, other):
    """Tell whether two lists of rows span the same space."""
    ranks = {brute_force.rank(rows) for rows in (one, other, [*one, *other])}
    return len(ranks) == 1


@settings(deadline=None)
@given(ROWS)
def test_a_space_is_what_its_rows_span(rows):
    """Row by row, it has the rank and the vectors that elimination finds."""
    space = RowSpace()
    for count, numbers in enumerate(rows, 1):
        before, (space, new) = space, space.plus(as_row(numbers))
        so_far = [list(map(Fraction, row)) for row in rows[:count]]
        grown = brute_force.rank(so_far) > before.rank
        assert (space is not before) == bool(new) == grown
        assert space.rank == brute_force.rank(so_far)
        assert same(matrix(space.blocks), so_far)
        assert not space.residual(as_row(numbers))


@settings(deadline=None)
@given(ROWS)
def test_blocks_are_reduced_primitive_and_apart(rows):
    """A pivot is in one row, entries share no factor, blocks no owner; none splits."""
    blocks = space_of(map(as_row, rows)).blocks
    owners = [owner for block in blocks for owner in block.owners]
    assert len(owners) == len(set(owners))
    for block in blocks:
        for pivot, row in block.rows.items():
            assert row[pivot] > 0
            assert primitive({o: Fraction(x) for o, x in row.items()}) in (
                row,
                {o: -x for o, x in row.items()},
            )
            assert all(pivot not in of for p, of in block.rows.items() if p != pivot)
        # Rows that share no owner with the rest would be a block of their own.
        reached = set(next(iter(block.rows.values())))
        for _ in block.rows:
            for row in block.rows.values():
                if reached & row.keys():
                    reached |= row.keys()
        assert sorted(reached) == block.owners
        assert block.free == [o for o in block.owners if o not in block.rows]


@settings(deadline=None)
@given(ROWS, st.sampled_from(NAMES))
def test_an_owner_is_taken_out(rows, owner):
    """``without`` drops a column, ``vanishing`` keeps the vectors that are 0 there."""
    for block in space_of(map(as_row, rows)).blocks:
        if owner not in block.owners:
            continue
        rest = NAMES.replace(owner, "")
        dropped = [as_list(row, rest) for row in block.rows.values()]
        assert same(matrix(block.without(owner), rest), dropped)
        zero = block.vanishing(owner)
        assert sum(len(one.rows) for one in zero) == len(block.rows) - 1
        assert all(owner not in one.owners for one in zero)
        assert same(matrix([*zero, block]), matrix([block]))


@settings(deadline=None)
@given(ROWS)
def test_elementary_vectors_are_the_corners(rows):
    """All vectors with a minimal set of owners are found, and nothing outside."""
    blocks = space_of(map(as_row, rows)).blocks
    found = {frozenset(row) for row in elementary(blocks)}
    corners = {
        frozenset(name for name, x in zip(NAMES, vector, strict=True) if x)
        for vector in brute_force.corners(matrix(blocks))
    }
    minimal = {one for one in corners if not any(other < one for other in corners)}
    assert minimal <= found
    assert same([as_list(row) for row in elementary(blocks)], matrix(blocks))


@settings(deadline=None)
@given(ROWS, st.integers(1, 5))
def test_light_vectors_are_found_exactly_if_there_are_any(rows, weight):
    """Whichever way it looks for them, by elementary vectors or subsets."""
    blocks = space_of(map(as_row, rows)).blocks
    assert all(checkable(block, weight) for block in blocks)
    few = light(blocks, weight)
    lightest = brute_force.lightest(matrix(blocks))
    assert (few is not None) == (lightest <= weight)
    if few is not None:
        assert len(few) <= weight
        outside = [
            as_list(row, set(NAMES) - few) for b in blocks for row in b.rows.values()
        ]
        assert brute_force.rank(outside) < brute_force.rank(matrix(blocks))


def test_light_vectors_of_large_blocks_are_found_by_leaving_owners_out():
    """Where elementary vectors are more than sets of owners, the sets are looked at."""
    count, rank = 16, 7
    rows = [[(j + 2) ** i for j in range(count)] for i in range(rank)]
    # Any rank - 1 zeros determine a vector: its weight is count - rank + 1 at least.
    block = block_of(*rows)
    assert light([block], 4) is None
    spoiled = block_of(*rows[:-1], [1, 5, 7, 2] + [0] * (count - 4))
    assert light([spoiled], 4) == {"000", "001", "002", "003"}
    assert light([spoiled], 3) is None


def test_what_is_too_much_to_look_at_is_known_beforehand():
    """Few rows or few owners are always looked at."""
    rows = [[(j + 2) ** i for j in range(60)] for i in range(5)]
    assert checkable(block_of(*rows), 2)
    assert checkable(block_of(*rows[:1]), 50)
    assert checkable(block_of(*rows[:2]), 50)
    assert not checkable(block_of(*rows), 6)


# --- the p%-rule ---


@settings(deadline=None)
@given(ROWS, st.integers(0, 2), st.sampled_from([10, 50, 100, 130]))
def test_the_rule_holds_exactly_if_it_holds_at_all_corners(rows, colluders, percent):
    """Of a space with few elementary vectors, the answer is exact."""
    blocks = space_of(map(as_row, rows)).blocks
    found = excess(blocks, colluders, percent)
    assert (found is not None) == brute_force.dominated(
        matrix(blocks), colluders, percent
    )
    if found is not None:
        assert of_row(found.row, colluders, percent) == found


@settings(deadline=None)
@given(ROWS, st.integers(0, 2), st.sampled_from([10, 50, 100, 130]))
def test_a_certificate_is_never_wrong(rows, colluders, percent):
    """What is certified holds at all corners. What holds may be left uncertified."""
    for block in space_of(map(as_row, rows)).blocks:
        if certified(block, colluders, percent):
            assert not brute_force.dominated(matrix([block]), colluders, percent)


@settings(deadline=None, max_examples=20)
@given(st.data(), st.integers(0, 2))
def test_linear_programs_agree(data, colluders):
    """A solver that knows nothing of corners or certificates finds as little left."""
    rows = data.draw(ROWS)
    blocks = space_of(map(as_row, rows)).blocks
    least = brute_force.least_rest(matrix(blocks), colluders)
    for percent in (30, 100):
        if abs(least - percent / 100) > 1e-6:
            found = excess(blocks, colluders, percent)
            assert (found is None) == (least > percent / 100)


@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_large_spaces_are_certified(colluders):
    """Twenty owners, eight sums of unlike weights: corners are too many to count."""
    rows = [
        [1 + (7 * i * i + 11 * i * j + 5 * j * j) % 17 for j in range(20)]
        for i in range(8)
    ]
    block = block_of(*rows)
    percent = 60 if colluders < 2 else 25
    assert certified(block, colluders, percent)
    assert excess([block], colluders, percent) is None
    # One owner more, who is alone with another in one of the rows.
    heavy = block_of(*([*row, 0] for row in rows), [0] * 17 + [1, 1, 1, 100])
    assert not certified(heavy, colluders, percent)
    found = excess([heavy], colluders, percent)
    assert found == Excess("000")


def test_where_certificates_fail_few_corners_are_counted():
    """Equal weights in threes that overlap are at the very bound, and hold."""
    triples = [[0] * 2 * i + [1, 1, 1] + [0] * (8 - 2 * i) for i in range(5)]
    block = block_of(*triples)
    assert not certified(block, 1, 100)
    assert excess([block], 1, 100) is None
    assert excess([block], 1, 101) is not None


def test_extreme_quotients_are_not_certified():
    """Floats that could overflow or lose everything prove nothing."""
    for large in (2**50, 10**400):
        block = block_of([1, 0, 1, 1, large], [0, 1, 1, large, 1])
        assert not certified(block, 1, 1)
        assert not certified(block, 0, 1)


def test_a_space_without_free_owners_is_not_certified():
    """Nothing is orthogonal to it: each owner stands alone."""
    alone = Block({"a": {"a": 1}})
    assert not certified(alone, 0, 1)
    assert excess([alone], 0, 1) == Excess("a", {"a": 1})


def test_a_colluder_who_is_not_bounded_is_not_certified():
    """Where rounding could be all there is of a vector, it proves nothing."""
    assert not _with_one(np.full((3, 3), 1e-18), np.full((3, 3), 1e-17), 0.01)


def test_too_many_colluders_to_take_out_are_not_certified():
    """Only so many spaces without some owners are looked at."""
    rows = [[1 + (7 * i * i + 3 * i * j) % 5 for j in range(40)] for i in range(4)]
    assert not certified(block_of(*rows), 4, 1)


def test_the_heaviest_and_the_next_decide_a_row():
    """Whoever is chosen, with whichever others taken out, no other choice is worse."""
    for weights in itertools.product((1, 2, 5), repeat=4):
        row = dict(zip("abcd", weights, strict=True))
        for colluders in (0, 1, 2):
            by_hand = brute_force.dominated(
                [list(map(Fraction, weights))], colluders, 100
            )
            assert (of_row(row, colluders, 100) is not None) == by_hand
