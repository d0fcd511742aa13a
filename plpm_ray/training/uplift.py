"""Learners of trial users outside a run folder: a trial in memory as a table, one fit on it, and predicted responses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from plpm_ray.core.config import Named
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.feature_fitting import fitted_spec
from plpm_ray.core.features import FeatureSpec, RawFeatures
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import lookup
from plpm_ray.data.fit import no_stats
from plpm_ray.navigators.base import Learner
from plpm_ray.navigators.inputs import encoded_tensors
from plpm_ray.navigators.uplift import UpliftLearner
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.device import pick_device
from plpm_ray.training.job import build_learner, resolve_config
from plpm_ray.training.loop import fit_learner
from plpm_ray.training.table import TensorTable

_CALL = 16_384


@dataclass(frozen=True)
class TrialUsers:
    """Users of a trial in memory: features (n rows), arm (n,) with 0 the control, response (n,)."""

    raw: RawFeatures
    arm: np.ndarray
    response: np.ndarray

    def take(self, rows: np.ndarray) -> TrialUsers:
        """Some of them, by a mask or by positions."""
        return TrialUsers(self.raw.take(rows), self.arm[rows], self.response[rows])

    def table(self, spec: FeatureSpec) -> TensorTable:
        """As learners read them: every input, arms and responses."""
        tensors = encoded_tensors(spec.encode(self.raw, bins=True))
        tensors |= {"arm": torch.from_numpy(self.arm.astype(np.int64))}
        return TensorTable(tensors | {"response": torch.from_numpy(self.response.astype(np.float32))})


def fit_users(
    chosen: Named,
    pages: PageCatalogue,
    train: TrialUsers,
    valid: TrialUsers | None,
    training: TrainingConfig,
) -> tuple[UpliftLearner, FeatureSpec]:
    """A learner and the encoder, fitted on users of a trial in this process; nothing is written.

    Args:
        chosen: a learner of users and its options.
        pages: the K pages; arm k is the page at position k - 1.
        train: users to learn from.
        valid: users for early stopping; needed only where `training.patience` is set.
        training: how; `workers` is not read.

    Raises:
        ConfigError: it is no uplift learner, or a wrong setting.
        DataError: there is no control group among the users.
    """
    cls = uplift_class(chosen.name)
    arms = len(pages) + 1
    stats = replace(
        no_stats(len(pages)),
        arm_users=np.bincount(train.arm, minlength=arms).astype(np.float64),
        arm_response=np.bincount(train.arm, weights=train.response, minlength=arms),
    )
    spec, device = fitted_spec(train.raw), pick_device(training)
    options = resolve_config(cls, chosen.options)
    learner = build_learner(cls, options, spec, pages, stats, training.seed)
    held_out = None if valid is None else valid.table(spec).to(device)
    fit_learner(learner, train.table(spec).to(device), held_out, training)
    return learner, spec  # type: ignore[return-value]


@torch.inference_mode()
def predict_responses(learner: UpliftLearner, table: TensorTable) -> np.ndarray:
    """(n, K + 1) float32 responses of all arms, the control first, in natural units, of every row of a table."""
    device = next(learner.parameters()).device
    batches = table.to(device).ordered(_CALL)
    return torch.cat([learner.responses(batch).float().cpu() for batch in batches]).numpy()


def uplift_class(name: str) -> type[UpliftLearner]:
    """The registered learner of that name.

    Raises:
        ConfigError: unknown, or no uplift learner.
    """
    cls: type[Learner] = lookup("learner", name)
    if not issubclass(cls, UpliftLearner):
        raise ConfigError(
            f"learner {name!r} does not predict responses of the arms of a trial",
            hint="name an uplift learner: klan.isp, reference.s_learner, reference.t_learner, reference.tarnet or "
            "reference.efin",
        )
    return cls
