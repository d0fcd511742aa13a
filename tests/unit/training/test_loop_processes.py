"""Two processes that hold different numbers of rows learn what one process learns from all of them."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from plpm_ray.navigators.glan.hrm import HRM, HRMConfig
from plpm_ray.training.comm import ProcessGroup
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.loop import fit_learner
from plpm_ray.training.table import TensorTable
from tests.training_tables import fitted, pages

ROWS = {0: slice(0, 90), 1: slice(90, 120)}  # the second one draws each of its rows three times


def make() -> tuple[HRM, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    spec, stats = fitted()
    small = HRMConfig(embedding_dim=4, experts=2, expert_hidden=4, expert_width=4, tower_hidden=())
    return HRM(small, spec, pages(), stats), HRM.example_batch(0, spec, pages(), 120)


def settings(batch_size: int) -> TrainingConfig:
    return TrainingConfig(epochs=3, batch_size=batch_size, lr=0.01, device="cpu")


def _process(rank: int, folder: str) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    learner, batch = make()
    own = TensorTable({name: values[ROWS[rank]].contiguous() for name, values in batch.items()})
    found = fit_learner(learner, own, None, settings(180), comm=ProcessGroup(torch.device("cpu")))
    torch.save((learner.state_dict(), found.history[-1]["train/loss"]), f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_every_row_counts_the_same_whichever_process_holds_it(tmp_path):
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    learner, batch = make()
    alone = fit_learner(learner, TensorTable(batch), None, settings(120))
    for rank in (0, 1):
        weights, loss = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert abs(loss - alone.history[-1]["train/loss"]) < 1e-5
        for name, value in learner.state_dict().items():
            assert torch.allclose(weights[name], value, atol=1e-4), name
