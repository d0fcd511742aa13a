"""What learners read, as tensors: encodings of raw features, the days before, and what came of a session.

Letters: B batch, K pages, N dense inputs, F categorical fields, T steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import HISTORY_DAYS, SESSION_KEYS, Encoded, FeatureSpec, RawFeatures


def example_inputs(
    inputs: tuple[str, ...], spec: FeatureSpec, k: int, rows: int, gen: torch.Generator
) -> dict[str, Tensor]:
    """Random tensors of the right keys, shapes and types for a learner's `inputs`, of so many rows and K pages."""
    made: dict[str, Tensor] = {}
    if "dense" in inputs:
        made["dense"] = torch.randn(rows, spec.n_dense, generator=gen)
    for key, sizes in (("cat", spec.cat_sizes), ("bins", spec.bin_sizes)):
        if key in inputs:
            codes = [torch.randint(size, (rows, 1), generator=gen) for size in sizes]
            made[key] = torch.cat(codes, dim=1) if codes else torch.empty(rows, 0, dtype=torch.int64)
    if "sequences" in inputs and spec.schema.history:
        made["seq.recent_landing"] = torch.randint(k + 1, (rows, 8), generator=gen).float()
        made["seq.recent_use_s"] = torch.randn(rows, 8, generator=gen)
    if "days" in inputs:
        sessions = torch.randint(0, 6, (rows, HISTORY_DAYS), generator=gen).float()
        made["days"] = torch.stack(
            [sessions * 300 * torch.rand(rows, HISTORY_DAYS, generator=gen), sessions], dim=2
        )
    if "session" in inputs:
        visits = torch.randint(0, 3, (rows, k), generator=gen).float()
        made["page_visits"] = visits
        made["page_views"] = visits * torch.randint(0, 9, (rows, k), generator=gen)
        made["switches"] = visits.sum(1).long()
        made["action"] = torch.randint(k, (rows,), generator=gen)
    return made


def input_tensors(
    features: RawFeatures, spec: FeatureSpec, inputs: tuple[str, ...], prefix: str = ""
) -> dict[str, Tensor]:
    """The tensors of a learner's `inputs` from raw features.

    Raises:
        DataError: the features lack the days before, or what came of the session.
    """
    tensors = encoded_tensors(
        spec.encode(features, bins="bins" in inputs, sequences="sequences" in inputs), prefix
    )
    if "days" in inputs:
        if features.days is None:
            raise DataError(
                "the features hold no days before",
                hint="compute them with `days=True`, as navigators that read them do",
            )
        tensors["days"] = torch.from_numpy(np.require(features.days, requirements="W"))
    if "session" in inputs:
        lacking = [key for key in SESSION_KEYS if key not in features.session]
        if lacking:
            raise DataError(
                f"the features do not say what came of the session: {lacking[0]!r} is missing",
                hint="a reward model judges sessions that have ended; it chooses no pages",
            )
        for key in SESSION_KEYS:
            values = torch.from_numpy(np.require(features.session[key], requirements=("C", "W")))
            tensors[key] = values.long() if key in ("action", "switches") else values.float()
    return tensors


def encoded_tensors(encoded: Encoded, prefix: str = "") -> dict[str, Tensor]:
    """Encoder output as the tensors that learners read (categorical codes as int64)."""
    tensors = {
        f"{prefix}dense": torch.from_numpy(encoded.dense),
        f"{prefix}cat": torch.from_numpy(encoded.cat).long(),
    }
    if encoded.bins is not None:
        tensors[f"{prefix}bins"] = torch.from_numpy(encoded.bins).long()
    for name, values in (encoded.sequences or {}).items():
        tensors[f"{prefix}seq.{name}"] = torch.from_numpy(values)
    return tensors
