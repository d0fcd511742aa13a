from __future__ import annotations

import copy
import math

import pytest
import torch

from plpm_ray.core.errors import ConfigError, DataError, PlpmError
from plpm_ray.data.fit import fit_spec
from plpm_ray.navigators.reference.dqn import DQN, DQNConfig
from plpm_ray.training.callbacks import Callback
from plpm_ray.training.comm import Comm
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource
from plpm_ray.training.evaluate import evaluate
from plpm_ray.training.job import build_learner
from plpm_ray.training.loop import Loop, fit_learner
from plpm_ray.training.table import TensorTable
from tests.training_tables import make_warehouse


class World:
    def __init__(self, root) -> None:
        self.warehouse = make_warehouse(root)
        days = self.warehouse.transitions.days()
        self.spec, self.stats = fit_spec(self.warehouse, days[:4])
        needs = Needs.of(DQN, DQNConfig())
        self.table, self.valid = (
            TableSource(self.warehouse.root, tuple(d), self.spec, needs).load() for d in (days[:4], days[4:])
        )

    def learner(self, seed: int = 0, **config) -> DQN:
        made = build_learner(
            DQN, {"hidden": [16], **config}, self.spec, self.warehouse.info.pages, self.stats, seed
        )
        assert isinstance(made, DQN)
        return made


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("loop") / "warehouse")


def settings(**changes) -> TrainingConfig:
    return TrainingConfig(**({"epochs": 3, "batch_size": 64, "lr": 3e-3, "device": "cpu"} | changes))


class Keeper(Callback):
    """Keeps a deep copy of every checkpoint."""

    def __init__(self) -> None:
        self.states: list = []
        self.logs: list = []

    def on_log(self, record):
        self.logs.append(record)

    def on_checkpoint(self, loop, record):
        self.states.append(copy.deepcopy(loop.state()))


def weights(learner) -> list[torch.Tensor]:
    return [v.clone() for v in learner.state_dict().values()]


def numbers(history) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "samples_per_s"} for record in history]


def test_it_fits_and_reports(world):
    learner, keeper = world.learner(), Keeper()
    result = fit_learner(learner, world.table, world.valid, settings(epochs=8, log_every=5), [keeper])
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    assert result.epochs == 8 and result.steps == 8 * -(-world.table.rows // 64)
    assert result.samples == result.steps * 64 and not result.stopped
    assert result.metrics == evaluate(learner, world.valid)
    assert result.metrics["rows"] == world.valid.rows
    assert [record["step"] for record in keeper.logs] == list(range(5, result.steps + 1, 5))
    assert not learner.training


def test_the_same_seed_gives_the_same_weights(world):
    first, second = world.learner(), world.learner()
    fit_learner(first, world.table, None, settings())
    fit_learner(second, world.table, None, settings())
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    other = world.learner()
    fit_learner(other, world.table, None, settings(seed=1))
    assert not all(torch.equal(a, b) for a, b in zip(weights(first), weights(other), strict=True))


@pytest.mark.parametrize("config", [{}, {"target": "hard", "target_every": 4}])
def test_a_resumed_run_ends_bit_for_bit_like_an_undisturbed_one(world, config):
    training = settings(checkpoint_every_steps=2, log_every=3, weight_decay=1e-4)
    whole, keeper = world.learner(**config), Keeper()
    wanted = fit_learner(whole, world.table, world.valid, training, [keeper])
    assert len(keeper.states) > 6
    for state in keeper.states[1::3]:
        resumed = world.learner(seed=9, **config)
        found = fit_learner(resumed, world.table, world.valid, training, state=state)
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
        assert found.metrics == wanted.metrics
        assert numbers(found.history) == numbers(wanted.history)
        assert (found.steps, found.samples) == (wanted.steps, wanted.samples)


def test_a_finished_state_trains_no_further(world):
    learner, keeper = world.learner(), Keeper()
    wanted = fit_learner(learner, world.table, world.valid, settings(), [keeper])
    again = fit_learner(world.learner(seed=5), world.table, world.valid, settings(), state=keeper.states[-1])
    assert again.metrics == wanted.metrics and again.steps == wanted.steps


def test_early_stopping_keeps_the_best_weights(world):
    learner = world.learner()
    result = fit_learner(learner, world.table, world.valid, settings(epochs=60, lr=0.03, patience=3))
    losses = [record["valid/loss"] for record in result.history]
    assert result.stopped and result.epochs < 60
    assert losses.index(min(losses)) == len(losses) - 4
    assert result.metrics["loss"] == min(losses)
    assert evaluate(learner, world.valid)["loss"] == pytest.approx(min(losses), rel=1e-12)


def test_a_callback_may_stop_the_run(world):
    class Stop(Callback):
        def on_epoch(self, record):
            return record["epoch"] == 2

    result = fit_learner(
        world.learner(), world.table, world.valid, settings(epochs=5, eval_every=3), [Stop()]
    )
    assert result.epochs == 2 and result.stopped and result.metrics["rows"] == world.valid.rows


def test_evaluation_may_be_rarer_than_epochs(world):
    result = fit_learner(world.learner(), world.table, world.valid, settings(epochs=5, eval_every=2))
    assert ["valid/loss" in record for record in result.history] == [False, True, False, True, True]


def test_divergence_says_so(world):
    broken = TensorTable(dict(world.table.columns), world.table.next_row)
    broken.columns["use_s"] = torch.full_like(broken.columns["use_s"], float("nan"))
    with pytest.raises(PlpmError, match="diverged") as error:
        fit_learner(world.learner(), broken, None, settings())
    assert error.value.hint is not None and "lr" in error.value.hint


def test_patience_needs_validation_rows_and_a_known_metric(world):
    with pytest.raises(ConfigError, match="validation"):
        fit_learner(world.learner(), world.table, None, settings(patience=1))
    with pytest.raises(ConfigError, match="did you mean 'agreement'"):
        fit_learner(world.learner(), world.table, world.valid, settings(patience=1, monitor="agrement"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("config", [{}, {"target": "hard", "target_every": 4}])
def test_a_recorded_step_learns_like_the_plain_one(world, config):
    results = {}
    for recorded in (False, True):
        training = settings(device="cuda", cuda_graph=recorded)
        learner, table = world.learner(**config), world.table.to("cuda")
        results[recorded] = fit_learner(learner, table, world.valid.to("cuda"), training), weights(learner)
    (plain, a), (graph, b) = results[False], results[True]
    assert graph.metrics == pytest.approx(plain.metrics, rel=1e-4)
    for first, second in zip(a, b, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_recording_needs_a_gpu(world):
    with pytest.raises(ConfigError, match="cuda_graph needs a GPU"):
        fit_learner(world.learner(), world.table, None, settings(cuda_graph=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_says_so(world):
    with pytest.raises(ConfigError, match="no GPU"):
        fit_learner(world.learner(), world.table, None, settings(device="cuda"))


def test_no_rows_say_so(world):
    none = TensorTable(dict(world.table.columns), world.table.next_row, torch.empty(0, dtype=torch.int64))
    with pytest.raises(DataError, match="training days"):
        fit_learner(world.learner(), none, None, settings())

    class OfTwo(Comm):
        def max(self, value):
            return max(value, 5)

    with pytest.raises(DataError, match="a worker"):
        fit_learner(world.learner(), none, None, settings(), comm=OfTwo())
    with pytest.raises(DataError, match="validation days"):
        fit_learner(world.learner(), world.table, none, settings(epochs=1))


def test_a_process_without_validation_rows_takes_part(world):
    class OfTwo(Comm):
        def gather(self, value):
            return [value, ["loss"]]

        def sum(self, values):
            return [value + 2 for value in values]

    assert evaluate(world.learner(), TensorTable({"none": torch.empty(0)}), OfTwo()) == {"loss": 1, "rows": 2}


def test_a_learner_may_read_the_losses_of_all_processes(world):
    class Dual(DQN):
        seen = 0.0

        def after_losses(self, terms):
            self.seen += float(terms["loss"])

    class OfTwo(Comm):
        def mean(self, value):
            return value + 1

    learner = build_learner(
        Dual, {"hidden": [16]}, world.spec, world.warehouse.info.pages, world.stats, seed=0
    )
    result = fit_learner(learner, world.table, None, settings(epochs=1), comm=OfTwo())
    assert learner.seen == pytest.approx(result.steps * (result.history[0]["train/loss"] + 1), rel=1e-5)


def test_bf16_does_run(world):
    result = fit_learner(world.learner(), world.table, world.valid, settings(epochs=1, amp="bf16"))
    assert result.metrics["loss"] < 10


def test_a_group_of_another_size_goes_on_after_the_same_share(world):
    keeper = Keeper()
    fit_learner(world.learner(), world.table, None, settings(checkpoint_every_steps=2), [keeper])
    state = keeper.states[2]
    loop = Loop(world.learner(), world.table, None, settings(batch_size=32), _alone())
    loop.load_state(state)
    assert loop.step / loop.steps == pytest.approx(
        state["position"]["step"] / state["position"]["steps"], abs=0.05
    )
    assert loop.run().epochs == 3


def _alone():
    from plpm_ray.training.comm import Comm

    return Comm()


def test_the_learning_rate_falls_to_nothing_and_is_where_it_was_after_a_resumption(world):
    rates: list[float] = []

    class Watch(Callback):
        def on_log(self, record):
            rates.append(loop.optimiser.param_groups[0]["lr"])

    config = settings(epochs=2, log_every=1, lr=0.01, lr_schedule="cosine")
    loop = Loop(world.learner(), world.table, None, config, Comm())
    loop.run([Watch()])
    steps = len(rates)
    wanted = [0.01 * 0.5 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    assert rates == pytest.approx(wanted)
    half = Loop(world.learner(), world.table, None, config, Comm())
    half.epoch = 1
    half.train_step(next(iter(world.table.batches(0, 0, half.batch_size, 1))))
    assert half.optimiser.param_groups[0]["lr"] == pytest.approx(0.005)
