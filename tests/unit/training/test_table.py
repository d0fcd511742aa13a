from __future__ import annotations

from itertools import chain

import pytest
import torch

from plpm_ray.training.table import TensorTable, assemble, steps_per_epoch


def table(
    rows: int = 10, following: list[int] | None = None, sampled: list[int] | None = None
) -> TensorTable:
    columns = {
        "dense": torch.arange(rows, dtype=torch.float32)[:, None].repeat(1, 2),
        "action": torch.arange(rows, dtype=torch.int32),
    }
    return TensorTable(
        columns,
        None if following is None else torch.tensor(following),
        None if sampled is None else torch.tensor(sampled),
    )


def drawn(source: TensorTable, epoch: int, batch_size: int, start: int = 0, seed: int = 0) -> list[list[int]]:
    steps = steps_per_epoch(source.rows, batch_size)
    return [b["action"].tolist() for b in source.batches(epoch, seed, batch_size, steps, start)]


def test_an_epoch_draws_every_row_and_wraps_around_to_fill_its_last_batch():
    batches = drawn(table(), 0, 4)
    assert [len(b) for b in batches] == [4, 4, 4]
    flat = list(chain(*batches))
    assert sorted(flat[:10]) == list(range(10)) and flat[10:] == flat[:2]


def test_order_follows_from_seed_and_epoch_alone():
    assert drawn(table(), 1, 4) == drawn(table(), 1, 4)
    assert drawn(table(), 1, 4) != drawn(table(), 2, 4)
    assert drawn(table(), 1, 4) != drawn(table(), 1, 4, seed=1)


def test_an_epoch_can_start_anywhere():
    assert drawn(table(), 3, 3, start=2) == drawn(table(), 3, 3)[2:]


def test_next_state_comes_from_the_next_row():
    source = table(4, following=[1, -1, 3, -1])
    batch = source.gather(torch.tensor([2, 0, 1]))
    assert batch["next.dense"][:, 0].tolist() == [3.0, 1.0, 1.0]
    assert "next.action" not in batch
    assert batch["action"].dtype == torch.int64


def test_rows_that_are_not_sampled_are_next_states_only():
    source = table(4, following=[1, 2, 3, -1], sampled=[0, 1, 2])
    assert source.rows == 3 and source.stored == 4
    assert sorted(chain(*drawn(source, 0, 1))) == [0, 1, 2]
    assert [b["action"].tolist() for b in source.ordered(2)] == [[0, 1], [2]]
    assert source.gather(torch.tensor([2]))["next.dense"][0, 0] == 3.0


def test_two_loops_may_draw_from_one_table():
    source = table()
    first, second = source.batches(0, 0, 4, 3), source.batches(0, 1, 4, 3)
    a, b = next(first), next(second)
    kept = a["dense"].clone()
    next(second)
    assert torch.equal(a["dense"], kept) and not torch.equal(a["action"], b["action"])


def test_assemble_shifts_next_rows_and_keeps_the_order():
    whole = assemble([table(3, [1, -1, -1]), table(2, [1, -1], sampled=[0])], 5)
    assert whole.columns["action"].tolist() == [0, 1, 2, 0, 1]
    assert whole.next_row is not None and whole.next_row.tolist() == [1, -1, -1, 4, -1]
    assert whole.sampled is not None and whole.sampled.tolist() == [0, 1, 2, 3]


def test_assemble_copies_nothing_for_a_single_table():
    only = table(3)
    assert assemble([only], 3) is only


def test_assemble_refuses_other_row_counts():
    with pytest.raises(ValueError, match="3 rows, not 4"):
        assemble([table(3)], 4)


def test_a_batch_larger_than_the_table_repeats_rows():
    (batch,) = drawn(table(3), 0, 7)
    assert len(batch) == 7 and set(batch) == {0, 1, 2}
