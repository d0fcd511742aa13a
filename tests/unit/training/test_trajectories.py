"""Tables of whole days: what is drawn, in memory and from a stream, and how a learner of them is trained and judged."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plpm_ray.core.errors import ConfigError
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.glan.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.evaluate import evaluate
from plpm_ray.training.job import build_learner
from plpm_ray.training.loop import fit_learner
from plpm_ray.training.run import TrainResult, train
from plpm_ray.training.stream import LocalReader, StreamTable
from plpm_ray.training.table import TensorTable, steps_per_epoch
from plpm_ray.training.trajectories import TrajectoryTable, rows_of
from tests.training_tables import make_warehouse

LENGTHS = [3, 1, 4, 1, 5, 9, 2, 6]
SMALL = {"reward": "duration", "width": 16, "layers": 1, "state_hidden": [8]}


def table(lengths: list[int] = LENGTHS) -> TrajectoryTable:
    """Sessions numbered through, of days of the given lengths."""
    step = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
    return TrajectoryTable.of(
        TensorTable({"step": step, "row": torch.arange(sum(lengths)), "dense": torch.randn(sum(lengths), 2)})
    )


def days_of(batch: dict[str, Tensor]) -> list[list[int]]:
    """The sessions of each day of a batch."""
    found: list[list[int]] = []
    for row, step in zip(batch["row"].tolist(), batch["step"].tolist(), strict=True):
        if step == 0:
            found.append([])
        found[-1].append(row)
    return found


def whole(lengths: list[int] = LENGTHS) -> list[list[int]]:
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [list(range(end - n, end)) for end, n in zip(ends, lengths, strict=True)]


def test_rows_are_days_and_values_are_sessions():
    assert table().rows == 8 and table().values == 31


def test_a_batch_holds_whole_days_the_shortest_first():
    batch = table().gather(torch.tensor([5, 1, 0, 3]))
    assert days_of(batch) == [whole()[i] for i in (1, 3, 0, 5)]
    assert batch["step"].dtype == torch.int64


def test_an_epoch_draws_every_day_and_wraps_around():
    source = table()
    batches = list(source.batches(0, 0, 3, steps_per_epoch(source.rows, 3)))
    assert [len(days_of(batch)) for batch in batches] == [3, 3, 3]
    drawn = list(chain.from_iterable(days_of(batch) for batch in batches))
    assert sorted(map(tuple, drawn))[:1] == [tuple(whole()[0])]
    assert {tuple(day) for day in drawn} == {tuple(day) for day in whole()}


def test_an_epoch_can_start_anywhere_and_differs_from_others():
    def rows(epoch: int, start: int = 0) -> list[list[int]]:
        return [batch["row"].tolist() for batch in table().batches(epoch, 0, 3, 3, start)]

    assert rows(1, start=2) == rows(1)[2:]
    assert rows(1) != rows(2)


@pytest.mark.parametrize("bound", [1, 5, 9, 10, 1000])
def test_in_order_every_session_comes_once_in_whole_days(bound):
    batches = list(table().ordered(bound))
    assert torch.cat([batch["row"] for batch in batches]).tolist() == list(range(31))
    assert all(batch["step"][0] == 0 for batch in batches)
    assert all(len(batch["step"]) <= bound or len(days_of(batch)) == 1 for batch in batches)


def test_numbers_that_do_not_follow_begin_a_day():
    """A day whose first sessions lie before the table begins, and a day without its first session."""
    source = TrajectoryTable.of(TensorTable({"step": torch.tensor([4, 5, 0, 1, 3, 4])}))
    assert source.trajectories.columns["length"].tolist() == [2, 2, 2]


def test_nothing_has_no_days():
    for columns in ({"none": torch.empty(0)}, {"step": torch.empty(0, dtype=torch.int32)}):
        source = TrajectoryTable.of(TensorTable(columns))
        assert source.rows == source.values == 0 and list(source.ordered(8)) == []


def test_a_table_is_read_as_the_learner_wants_it():
    sessions = table().sessions
    assert rows_of("session", sessions) is sessions
    assert isinstance(rows_of("trajectory", sessions), TrajectoryTable)
    known = table()
    assert rows_of("trajectory", known) is known


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory) -> Warehouse:
    return make_warehouse(tmp_path_factory.mktemp("trajectories") / "warehouse", users=80)


@pytest.fixture(scope="module")
def source(warehouse) -> TableSource:
    days = tuple(warehouse.transitions.days())
    needs = Needs.of(DecisionTransformer, DecisionTransformerConfig(reward="duration"))
    return TableSource(warehouse.root, days, fit_spec(warehouse, days)[0], needs)


def tallied(batches) -> list[tuple[float, ...]]:
    """The days of some batches by the seconds of their sessions."""
    found: list[list[float]] = []
    for batch in batches:
        for seconds, step in zip(batch["use_s"].tolist(), batch["step"].tolist(), strict=True):
            if step == 0:
                found.append([])
            found[-1].append(seconds)
    return sorted(map(tuple, found))


def test_parts_count_the_days_that_are_drawn(source):
    for parts in (source.parts(), source.parts(min_parts=11), source.parts(max_rows=60)):
        tables = [TrajectoryTable.of(source.load([part])) for part in parts]
        assert [t.rows for t in tables] == [part.sampled for part in parts]
        assert [t.values for t in tables] == [part.rows for part in parts]
    assert sum(t.rows for t in tables) == 80 * 5


def test_columns_follow_from_the_reward(source):
    assert set(source.load().columns) == {"dense", "cat", "action", "step", "use_s", "propensity"}
    assert "reward" in Needs.of(DecisionTransformer, DecisionTransformerConfig()).columns


def test_a_stream_draws_the_days_that_the_table_holds(source):
    held = TrajectoryTable.of(source.load())
    parts = source.parts(max_rows=100)
    stream = StreamTable(parts, LocalReader(source), 150, torch.device("cpu"), "trajectory")
    assert stream.rows == held.rows
    batches = list(stream.batches(1, 0, 16, held.rows // 16))
    assert tallied(batches) == tallied(held.ordered(50))
    assert all(len(tallied([batch])) == 16 for batch in batches)
    again = list(stream.batches(1, 0, 16, held.rows // 16, start=20))
    assert torch.equal(again[0]["use_s"], batches[20]["use_s"])


def go(warehouse: Warehouse, folder: Path, **training) -> TrainResult:
    days = warehouse.transitions.days()
    config = TrainingConfig(**{"epochs": 8, "batch_size": 32, "lr": 1e-2, "device": "cpu", **training})
    return train(
        "glan.dt", SMALL, config, warehouse.root, days[:4], days[4:], folder, notify=lambda text: None
    )


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_learner_of_days_is_trained_and_judged_by_sessions(warehouse, tmp_path, mode):
    result = go(warehouse, tmp_path, data={"mode": mode, "window_rows": 200})
    held_out = warehouse.transitions.entries()[warehouse.transitions.days()[4]].rows
    assert result.metrics["rows"] == sum(held_out.values())
    # half of the landings are on the page of the last exit, the others anywhere
    assert result.metrics["agreement"] > 0.5
    assert result.samples == result.steps * 32 and result.steps == 8 * 10


def test_metrics_are_means_over_sessions_however_they_are_dealt(source):
    learner = build_learner(DecisionTransformer, SMALL, source.spec, *_world(source), 0).eval()
    table = source.load()
    with torch.no_grad():
        values = learner.metrics(table.gather(torch.arange(table.rows)))["loss"]
    found = evaluate(learner, table)
    assert found["loss"] == pytest.approx(values.mean().item(), rel=1e-5)
    assert found["rows"] == table.rows


def _world(source: TableSource):
    warehouse = Warehouse.open(source.root)
    return warehouse.info.pages, fit_spec(warehouse, source.days)[1]


@pytest.mark.parametrize("setting", ["cuda_graph", "torch_compile"])
def test_recording_is_refused(source, setting):
    learner = build_learner(DecisionTransformer, SMALL, source.spec, *_world(source), 0)
    config = TrainingConfig(**{"device": "cpu", setting: True})
    with pytest.raises(ConfigError, match=f"{setting} cannot record a learner of trajectories"):
        fit_learner(learner, source.load(), None, config)
