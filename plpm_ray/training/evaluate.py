"""Metrics of a learner on held-out rows."""

from __future__ import annotations

import torch

from plpm_ray.navigators.base import Learner
from plpm_ray.training.comm import Comm, shared
from plpm_ray.training.table import no_rows
from plpm_ray.training.trajectories import Rows, rows_of

EVAL_ROWS = 16_384


@torch.inference_mode()
def evaluate(learner: Learner, valid: Rows, comm: Comm | None = None) -> dict[str, float]:
    """Means of `Learner.metrics` over the rows of all processes, what follows from them, and "rows"; a process may hold none.

    Of trajectories the rows are their sessions.

    Raises:
        DataError: no process holds any.
    """
    valid = rows_of(learner.grain, valid)
    was_training = learner.training
    learner.eval()
    totals: dict[str, float] = {}
    for batch in valid.ordered(EVAL_ROWS):
        for name, values in learner.metrics(batch).items():
            totals[name] = totals.get(name, 0.0) + float(values.sum(dtype=torch.float64))
    learner.train(was_training)
    comm = comm or Comm()
    names = max(comm.gather(list(totals)), key=len)
    *sums, rows = comm.sum([*(totals.get(name, 0.0) for name in names), valid.values])
    if not rows:
        raise shared(no_rows("the validation days hold"))
    means = {name: total / rows for name, total in zip(names, sums, strict=True)}
    return {**means, **learner.of_means(means), "rows": int(rows)}
