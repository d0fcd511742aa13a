"""Dual variables: they find the multipliers of problems whose solution is known, are saved, and are alike in all processes."""

from __future__ import annotations

import io
import os

import pytest
import torch
import torch.distributed as dist

from plpm_ray.navigators.glan.lrtg import LRTG, LRTGConfig
from plpm_ray.nn import DualVariables
from plpm_ray.training.callbacks import Callback, Record
from plpm_ray.training.comm import Comm, ProcessGroup
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.loop import Loop, fit_learner
from plpm_ray.training.table import TensorTable
from tests.training_tables import fitted, pages

SMALL = {"width": 8, "ff_width": 8, "experts": 2, "expert_hidden": 8, "expert_width": 4, "tower_hidden": ()}
BINDING = {"epsilon_se": 0.3}


def make(**config) -> LRTG:
    torch.manual_seed(0)
    spec, stats = fitted()
    return LRTG(LRTGConfig(**(SMALL | config)), spec, pages(), stats)


def rows_of(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Days whose sessions follow one feature and whose use another, so that no law holds between the two."""
    spec, stats = fitted()
    batch = LRTG.example_batch(seed, spec, pages(), rows)
    first, second = (batch["dense"][:, column].clamp(-1.5, 1.5) for column in spec.schema.daily_numeric[:2])
    batch["sessions"] = stats.mean_day_sessions * (1 + 0.5 * first)
    batch["use_s"] = stats.mean_day_use_s * (1 + 0.5 * second)
    return batch


def test_the_known_multiplier_of_a_known_problem():
    """(x - 2)^2 under x^2 <= 1 is least at x = 1, and there 2 (x - 2) + lambda 2 x = 0, so lambda = 1."""
    duals = DualVariables(("ball",), (1.0,), step=0.05, decay=0.5, largest=10.0)
    x = torch.tensor(0.0, requires_grad=True)
    for _ in range(800):
        loss = x.square().unsqueeze(0)
        ((x - 2).square() + duals.penalty(loss)).backward()
        with torch.no_grad():
            x -= 0.05 * x.grad
            x.grad.zero_()
        duals.update(loss)
    assert x.item() == pytest.approx(1.0, abs=1e-3)
    assert duals.value.item() == pytest.approx(1.0, abs=1e-2)
    assert duals.report()["ball"]["holds"]


def test_a_constraint_that_binds_nothing_has_no_multiplier():
    duals = DualVariables(("far",), (9.0,), step=0.05, decay=0.5, largest=10.0)
    for _ in range(20):
        duals.update(torch.tensor([4.0]))
    assert duals.value.item() == 0.0
    assert duals.report()["far"]["value"] == pytest.approx(4.0)


def test_before_the_first_loss_nothing_is_said():
    report = make().constraints()
    assert report["se"]["value"] is None and report["rel"]["holds"] is None
    assert report["se"]["bound"] > 0


def test_constraints_that_the_free_optimum_breaks_are_kept():
    table = TensorTable(rows_of(256))
    training = TrainingConfig(epochs=60, batch_size=64, lr=1e-2, device="cpu")
    settings = {"epsilon_se": 0.6, "epsilon_rel": 0.1, "eta": 0.5}
    free, bound = make(**settings, constrained=False), make(**settings)
    for learner in (free, bound):
        fit_learner(learner, table, None, training)
    broken, kept = free.constraints(), bound.constraints()
    for name in ("se", "rel"):
        assert not broken[name]["holds"] and broken[name]["lambda"] == 0
        assert kept[name]["value"] < 1.05 * kept[name]["bound"] < broken[name]["value"]
        assert 0 <= kept[name]["lambda"] <= bound.config.lambda_max


def test_multipliers_stay_within_their_range_where_a_bound_cannot_be_met():
    learner = make(epsilon_se=1e-6, lambda_max=0.5, eta=0.2)
    seen = []
    for _ in range(20):
        terms = learner(rows_of(64))
        learner.after_losses(terms)
        seen.append(terms["lambda_se"].item())
    assert seen[0] == 0 and max(seen) == 0.5 and seen == sorted(seen)
    assert not learner.constraints()["se"]["holds"]


def test_a_restored_run_goes_on_as_if_it_had_never_stopped():
    table, training = TensorTable(rows_of(256)), TrainingConfig(epochs=4, batch_size=64, device="cpu")
    whole = make(**BINDING)
    fit_learner(whole, table, None, training)
    kept: dict[int, bytes] = {}

    class Keep(Callback):
        def on_checkpoint(self, loop: Loop, record: Record) -> None:
            file = io.BytesIO()
            torch.save(loop.state(), file)
            kept[loop.epoch] = file.getvalue()

    fit_learner(make(**BINDING), table, None, training, [Keep()])
    again = make(**BINDING)
    loop = Loop(again, table, None, training, Comm())
    loop.load_state(torch.load(io.BytesIO(kept[2]), weights_only=False))
    assert again.duals.value.any() and not torch.equal(again.duals.value, whole.duals.value)
    loop.run()
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_patience_keeps_weights_under_which_the_constraints_hold():
    """Use alone would be forecast best by what ends early, before the multipliers have risen."""
    training = TrainingConfig(epochs=60, batch_size=64, lr=1e-2, device="cpu", patience=60)
    learner = make(epsilon_se=0.6, epsilon_rel=0.1, eta=0.5)
    found = fit_learner(learner, TensorTable(rows_of(256)), TensorTable(rows_of(256)), training)
    assert all(constraint["holds"] for constraint in learner.constraints().values())
    assert found.metrics["loss"] == found.metrics["wt"]
    least = min(found.history, key=lambda record: record["valid/wt"])
    assert least["valid/wt"] < found.metrics["wt"] < least["valid/loss"]


def _process(rank: int, folder: str) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = {name: values[rank * 128 : (rank + 1) * 128] for name, values in rows_of(256).items()}
    learner = make(**BINDING)
    training = TrainingConfig(epochs=5, batch_size=64, device="cpu")
    fit_learner(learner, TensorTable(half), None, training, comm=ProcessGroup(torch.device("cpu")))
    torch.save(learner.state_dict(), f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_with_different_rows_have_the_same_multipliers(tmp_path):
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["duals.value"].any()
    for name in first:
        assert torch.equal(first[name], second[name]), name
