"""The order of rows, of which not all may be in memory at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from obhut.protocol.messages import Split
from obhut.worker import orders
from obhut.worker.batches import Batches
from obhut.worker.held_out import SplitRows
from obhut.worker.orders import Order, in_batches

ROWS = 1_000


def drawn(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a window have 64 rows of 8 bytes, and a block 8 of them."""
    monkeypatch.setattr(orders, "WINDOW", 64 * 8)
    monkeypatch.setattr(orders, "BLOCK", 8 * 8)
    monkeypatch.setattr(orders, "_STEP", 16 * 8)


@pytest.fixture
def rows() -> list[torch.Tensor]:
    """Return features and targets: 8 bytes a row, which say which row it is."""
    counted = torch.arange(ROWS, dtype=torch.float32)
    return [counted[:, None].clone(), counted.clone()]


def test_what_fills_no_window_is_shuffled_as_a_whole(rows: list[torch.Tensor]) -> None:
    """As ``torch.randperm`` draws it, each time anew."""
    generator, expected = drawn(), drawn()
    for _ in range(2):
        (window,) = Order(rows).windows(generator)
        assert torch.equal(window, torch.randperm(ROWS, generator=expected))


@pytest.mark.usefixtures("blocks")
def test_what_is_larger_is_drawn_block_by_block(rows: list[torch.Tensor]) -> None:
    """Each row once; a window has whole blocks, of everywhere, and mixes them."""
    windows = list(Order(rows).windows(drawn()))
    assert torch.cat(windows).sort().values.tolist() == list(range(ROWS))
    assert [len(one) for one in windows[:-1]] == [64] * (len(windows) - 1)
    for window in windows:
        begun = {int(place) // 8 for place in window}
        assert len(window) == sum(min(8, ROWS - 8 * one) for one in begun)
    first = windows[0]
    assert int(first.max() - first.min()) > ROWS / 2
    assert len({int(place) // 8 for place in first[:32]}) == 8  # mixed, not in turn
    again = torch.cat(list(Order(rows).windows(drawn())))
    assert torch.equal(again, torch.cat(windows))
    assert not torch.equal(torch.cat(list(Order(rows).windows(drawn(1)))), again)


@pytest.mark.usefixtures("blocks")
def test_the_order_says_nothing_of_where_rows_are(rows: list[torch.Tensor]) -> None:
    """Of as many rows of as many bytes it is the same."""
    others = [torch.zeros(ROWS, 2, dtype=torch.float16), torch.zeros(ROWS)]
    mine, theirs = (
        torch.cat(list(Order(one).windows(drawn()))) for one in (rows, others)
    )
    assert torch.equal(mine, theirs)


def taken(batches: Batches) -> Iterator[tuple[list[float], list[float]]]:
    """Yield which rows each batch has, by features and by targets."""
    for features, targets in batches.epoch(drawn()):
        yield features.flatten().tolist(), targets.tolist()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [7, 64, 100, 0])
def test_batches_go_over_the_ends_of_windows(
    rows: list[torch.Tensor], size: int, drop_last: bool, shuffle: bool
) -> None:
    """All of one size but the last, and each row is in one of them at most."""
    batches = Batches(rows, size, shuffle=shuffle, drop_last=drop_last, least=1)
    found = list(taken(batches))
    assert all(features == targets for features, targets in found)
    sizes = [len(features) for features, _ in found]
    each = size or ROWS
    rest = [] if drop_last or not ROWS % each else [ROWS % each]
    assert sizes == [each] * (ROWS // each) + rest
    seen = [row for features, _ in found for row in features]
    assert len({*seen}) == len(seen) == sum(sizes)
    assert (seen == sorted(seen)) is not shuffle


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_part_of_the_rows_keeps_to_itself(
    rows: list[torch.Tensor], shuffle: bool
) -> None:
    """What is held out is in no batch of the rest, however they are drawn."""
    left = SplitRows(Split(0.2, 0, False), "bob", ROWS)
    batches = Batches(rows, 32, shuffle=shuffle, drop_last=False, least=1, only=left)
    seen = [row for features, _ in taken(batches) for row in features]
    assert sorted(seen) == left.places().tolist()
    assert (seen == sorted(seen)) is not shuffle


def test_batches_of_windows() -> None:
    """Also where a window has less than a batch, or nothing is left."""
    windows = [torch.arange(3), torch.arange(3, 4), torch.arange(4, 10)]
    found = [one.tolist() for one in in_batches(windows, 4)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(one) for one in in_batches([torch.arange(8)], 4)] == [4, 4]
