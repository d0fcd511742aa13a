"""What every registered learner must keep; a new one is found here by its name alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError

from plpm_ray.core.features import SESSION_KEYS
from plpm_ray.core.registry import lookup, names
from plpm_ray.navigators.base import Learner
from plpm_ray.navigators.bundle import Bundle, load_bundle, save_bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.loop import fit_learner
from plpm_ray.training.table import TensorTable
from tests.training_tables import fitted, pages, raw_features, with_session

# tests of other folders register some of their own
LEARNERS = [n for n in names("learner") if lookup("learner", n).__module__.startswith("plpm_ray.")]
every_learner = pytest.mark.parametrize("name", LEARNERS)


def build(name: str, k: int = 3, seed: int = 0, **config) -> Learner:
    spec, stats = fitted(k)
    cls = lookup("learner", name)
    torch.manual_seed(seed)
    return cls(cls.Config(**config), spec, pages(k), stats)


def example(name: str, k: int = 3, seed: int = 0, rows: int = 32) -> dict[str, torch.Tensor]:
    return lookup("learner", name).example_batch(seed, fitted(k)[0], pages(k), rows)


@every_learner
def test_losses_are_finite_and_named(name):
    terms = build(name).forward(example(name))
    assert "loss" in terms
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())
    assert terms["loss"].requires_grad


@every_learner
def test_gradients_reach_all_trainable_parameters(name):
    learner = build(name)
    learner(example(name, rows=256))["loss"].backward()
    without = [
        n for n, p in learner.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not without


@every_learner
@pytest.mark.parametrize("k", [2, 3, 32])
def test_scores_have_the_shape_of_the_pages_or_of_what_is_said(name, k):
    learner = build(name, k).eval()
    width = k if learner.says is None else len(learner.says)
    with torch.no_grad():
        batch = example(name, k)
        scores, values = learner.scores(batch), learner.values(batch)
    assert scores.shape == (32, width) and torch.isfinite(scores).all()
    assert values is None or (values.shape == (32, k) and torch.isfinite(values).all())


@every_learner
def test_scores_are_deterministic_and_need_inputs_only(name):
    learner = build(name).eval()
    inputs = {"dense", "cat", "bins", "days"} | (set(SESSION_KEYS) if "session" in learner.inputs else set())
    batch = {n: t for n, t in example(name).items() if n in inputs or n.startswith("seq.")}
    with torch.no_grad():
        assert torch.equal(learner.scores(batch), learner.scores(batch))


@every_learner
def test_metrics_are_per_row(name):
    with torch.no_grad():
        found = build(name).eval().metrics(example(name))
    assert "loss" in found
    assert all(values.shape == (32,) and torch.isfinite(values).all() for values in found.values())


@every_learner
def test_example_batch_is_a_function_of_its_seed(name):
    first, again, other = example(name, seed=1), example(name, seed=1), example(name, seed=2)
    assert first.keys() == other.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    cls = lookup("learner", name)
    assert set(cls.columns) <= first.keys()
    assert ("next.dense" in first) == (cls.grain == "transition")


@every_learner
def test_state_dict_round_trip(name):
    first, second = build(name, seed=0).eval(), build(name, seed=1).eval()
    batch, noise = example(name), torch.Generator().manual_seed(2)
    with torch.no_grad():
        # some learners begin without any preference, whatever their seed
        for parameter in first.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
        assert not torch.equal(first.scores(batch), second.scores(batch))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.scores(batch), second.scores(batch))
        first.after_step(1), second.after_step(1)
        assert torch.equal(first.scores(batch), second.scores(batch))


@every_learner
def test_after_step_records_no_graph(name):
    learner = build(name)
    learner.after_step(1)
    assert all(t.grad_fn is None for t in (*learner.parameters(), *learner.buffers()))


@every_learner
def test_bundle_gives_the_same_scores_and_runs_no_pickle(name, tmp_path, monkeypatch):
    spec, stats = fitted(3)
    bundle = Bundle.of_learner(build(name), spec, pages(3), stats, metrics={"loss": 1.0})
    rng = np.random.default_rng(7)
    raw = with_session(raw_features(spec.schema, 50, rng), rng)
    save_bundle(bundle, tmp_path / "bundle")

    def refuse(*args, **kwargs):
        raise AssertionError("a bundle was unpickled")

    for module, function in (
        ("pickle", "load"),
        ("pickle", "loads"),
        ("pickle", "Unpickler"),
        ("torch", "load"),
    ):
        monkeypatch.setattr(f"{module}.{function}", refuse)
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.version == bundle.version
    assert np.array_equal(loaded.navigator().scores(raw), bundle.navigator().scores(raw))


@every_learner
def test_config_refuses_unknown_keys_and_bad_values(name):
    model = lookup("learner", name).Config
    with pytest.raises(ValidationError):
        model(no_such_setting=1)
    lower = {
        n: i
        for n, i in model.model_fields.items()
        if any(hasattr(m, "ge") or hasattr(m, "gt") for m in i.metadata)
    }
    for field in lower:
        with pytest.raises(ValidationError):
            model(**{field: -1e9})


@every_learner
def test_config_fields_are_described(name):
    fields = lookup("learner", name).Config.model_fields
    assert not [n for n, info in fields.items() if not info.description]
    unbounded = [n for n, info in fields.items() if info.annotation is float and not info.metadata]
    assert not unbounded, "a float without bounds"


@every_learner
def test_it_learns_something(name):
    """A few passes over one batch lower its loss."""
    batch = example(name, rows=64)
    learner = build(name)
    columns = {n: t for n, t in batch.items() if not n.startswith("next.")}
    following = torch.arange(64).roll(-1) if "next.dense" in batch else None
    before = learner(batch)["loss"].item()
    config = TrainingConfig(epochs=30, batch_size=64, lr=3e-3, device="cpu")
    fit_learner(learner, TensorTable(columns, following), None, config)
    assert learner(batch)["loss"].item() < before


def _gradients(learner: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        n.removeprefix("module."): p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None
    }


def _ddp_process(rank: int, folder: str) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name in LEARNERS:
        model = torch.nn.parallel.DistributedDataParallel(build(name), broadcast_buffers=False)
        half = {n: t[rank * 32 : (rank + 1) * 32] for n, t in example(name, rows=64).items()}
        model(half)["loss"].backward()
        found[name] = _gradients(model)
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ddp_gradients(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients of two gloo processes on the halves of a batch, for every learner, from one start of two processes."""
    folder: Path = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(_ddp_process, args=(str(folder),), nprocs=2)
    return torch.load(folder / "gradients.pt", weights_only=True)


@every_learner
def test_two_processes_give_the_gradient_of_the_joined_batch(name, ddp_gradients):
    learner = build(name)
    learner(example(name, rows=64))["loss"].backward()
    wanted = _gradients(learner)
    assert wanted.keys() == ddp_gradients[name].keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(ddp_gradients[name][key], gradient, rtol=1e-4, atol=1e-6)
