"""Held-out decisions with what judging a policy needs: behaviour probabilities and a reward model, fitted once.

Both models are fitted on the *training* days and applied to the held-out ones, so that no held-out reward has a part in
them. They share nothing with the learners that are judged. N rows (decisions), K pages, D features.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import DataError, StorageError
from plpm_ray.core.features import FeatureSpec, RawFeatures
from plpm_ray.core.hashing import splitmix64, user_hash
from plpm_ray.core.storage import atomic_writer, read_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import DayTable
from plpm_ray.evaluation.logged import LoggedData
from plpm_ray.evaluation.propensity import (
    PropensityConfig,
    PropensityModel,
    calibration_error,
    clip_from_below,
)
from plpm_ray.evaluation.reward_model import RewardConfig, fit_reward_model

ONE_HOT_LIMIT = 64


@dataclass(frozen=True)
class Decisions:
    """Logged decisions of some days, with what was known before each.

    Attributes:
        features: raw features at entry.
        action: (N,) int64 landing page.
        use_s: (N,) float64 seconds of app use of the session.
        user: (N,) int64 hash of the user id.
        episode: (N,) int64, the same for all sessions of a user's local day.
        step: (N,) int64 entry number of the day from 0.
        propensity: (N,) float64, NaN where the logs do not hold it.
    """

    features: RawFeatures
    action: np.ndarray
    use_s: np.ndarray
    user: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    propensity: np.ndarray

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class HeldOutLog:
    """Held-out decisions as the estimators read them.

    Attributes:
        x: (N, D) float32 features of the evaluation's own models.
        data: the log, in seconds, with behaviour probabilities of all pages.
        q_hat: (N, K) float64 seconds that the reward model expects.
        diagnostics: how good the two models are on these rows, ready for JSON.
    """

    x: np.ndarray
    data: LoggedData
    q_hat: np.ndarray
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)


def model_features(spec: FeatureSpec, features: RawFeatures) -> np.ndarray:
    """(N, D) float32: the dense encoding, and the categorical ones as indicators (fields of at most 64 codes)."""
    encoded = spec.encode(features)
    parts = [encoded.dense]
    for j, size in enumerate(spec.cat_sizes):
        if 1 < size <= ONE_HOT_LIMIT:
            parts.append(np.eye(size, dtype=np.float32)[encoded.cat[:, j]])
    return np.concatenate(parts, axis=1)


def read_decisions(warehouse: Warehouse, days: Sequence[int], max_rows: int | None = None) -> Decisions:
    """Logged decisions of the given days, in the order bucket, day, user, entry.

    Args:
        max_rows: about as many rows are read if there are more; whole users are left out, by their hash.

    Raises:
        DataError: the days hold no sessions.
    """
    parts, users, episodes, count = [], [], [], 0
    for part, hashes in held_out_tables(warehouse, warehouse.transitions, days, max_rows):
        _, codes = np.unique(hashes, return_inverse=True)
        parts.append(part)
        users.append(hashes.view(np.int64))
        episodes.append(codes + count)
        count += int(codes.max(initial=-1)) + 1
    if not parts or not sum(part.num_rows for part in parts):
        raise DataError(
            f"{warehouse.transitions.root} holds no sessions on the {len(days)} days asked for",
            hint="check the split's days",
        )
    whole = pa.concat_tables(parts).combine_chunks()
    return Decisions(
        features=RawFeatures.from_table(warehouse.info.features, whole),
        action=whole["landing_page"].to_numpy().astype(np.int64),
        use_s=whole["use_s"].to_numpy().astype(np.float64),
        user=np.concatenate(users),
        episode=np.concatenate(episodes).astype(np.int64),
        step=whole["step"].to_numpy().astype(np.int64),
        propensity=whole["propensity"].to_numpy().astype(np.float64),
    )


def held_out_tables(
    warehouse: Warehouse,
    table: DayTable,
    days: Sequence[int],
    max_rows: int | None = None,
    columns: list[str] | None = None,
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Rows of a table of sessions or of user-days, of the users and in the order of `read_decisions`, with their hashes.

    Args:
        table: of the warehouse.
        max_rows: as of `read_decisions`, in sessions.
        columns: to read; "user_id" is among them. All by default.
    """
    wanted = set(days)
    total = sum(entry.total for day, entry in warehouse.transitions.entries().items() if day in wanted)
    share = 1.0 if max_rows is None or total <= max_rows else max_rows / total
    for bucket in range(warehouse.info.n_buckets):
        for _, path in table.files(bucket, days):
            part = read_parquet(path, columns)
            hashes = user_hash(part["user_id"])
            if share < 1.0:
                keep = _fraction(hashes) < share
                part, hashes = part.filter(pa.array(keep)), hashes[keep]
            yield part, hashes


def held_out_log(
    warehouse: Warehouse,
    spec: FeatureSpec,
    train_days: Sequence[int],
    held_out: Decisions,
    held_out_days: Sequence[int],
    *,
    propensity: PropensityConfig | None = None,
    reward: RewardConfig | None = None,
    fit_rows: int = 500_000,
) -> HeldOutLog:
    """`prepare_log` on a warehouse's days; the models' predictions are kept in its `fitted/` folder and found again.

    Args:
        held_out: what `read_decisions` gave for `held_out_days`.
        fit_rows: the models are fitted on about so many sessions at most.
    """
    propensity, reward = propensity or PropensityConfig(), reward or RewardConfig()
    table = warehouse.transitions
    key = config_hash(
        [
            *(table.fingerprint(days) for days in (train_days, held_out_days)),
            *(asdict(part) for part in (propensity, reward)),
            *(spec.to_dict(), fit_rows, len(held_out)),
        ]
    )
    path = warehouse.root / "fitted" / f"held-out-{key}.npz"
    found = _load(path, len(held_out))
    if found is None:
        train = read_decisions(warehouse, train_days, fit_rows)
        found = predict(train, held_out, spec, propensity, reward)
        with contextlib.suppress(StorageError):  # a read-only warehouse costs the fit again, nothing else
            _save(path, found)
    return assemble(held_out, spec, found)


def prepare_log(
    train: Decisions,
    held_out: Decisions,
    spec: FeatureSpec,
    propensity: PropensityConfig | None = None,
    reward: RewardConfig | None = None,
) -> HeldOutLog:
    """Fits both models on the training decisions and applies them to the held-out ones.

    The rows' own propensities are used where every held-out row has one; else all are modelled, and said to be. The
    probabilities of the other pages, which serve only the refusal, are always modelled.
    """
    return assemble(
        held_out,
        spec,
        predict(train, held_out, spec, propensity or PropensityConfig(), reward or RewardConfig()),
    )


def predict(
    train: Decisions,
    held_out: Decisions,
    spec: FeatureSpec,
    propensity: PropensityConfig,
    reward: RewardConfig,
) -> dict[str, np.ndarray]:
    """What both models say of the held-out rows: "behaviour" and "q_hat" (N, K), and totals of the training rows."""
    k = len(spec.schema.pages)
    x_train, x = model_features(spec, train.features), model_features(spec, held_out.features)
    model = PropensityModel(x_train, train.action, train.user, k, propensity)
    behaviour, clipped = clip_from_below(model.predict(x), propensity.clip_floor)
    count = np.bincount(train.action, minlength=k)
    return {
        "behaviour": behaviour,
        "q_hat": fit_reward_model(x_train, train.action, train.use_s, train.user, k, reward).predict(x),
        "clipped": np.array(clipped),
        "temperature": np.array(model.temperature),
        "page_share": (count + 1) / (len(train) + k),
        "page_mean_s": np.bincount(train.action, weights=train.use_s, minlength=k) / np.maximum(count, 1),
    }


def assemble(held_out: Decisions, spec: FeatureSpec, predictions: Mapping[str, np.ndarray]) -> HeldOutLog:
    """The log that estimators read, from held-out rows and the models' predictions for them."""
    modelled = bool(np.isnan(held_out.propensity).any())
    data = LoggedData(
        action=held_out.action,
        reward=held_out.use_s,
        cluster=held_out.user,
        propensity=None if modelled else held_out.propensity,
        behaviour=predictions["behaviour"],
        episode=held_out.episode,
        step=held_out.step,
        modelled=modelled,
        unit="s",
    )
    return HeldOutLog(
        model_features(spec, held_out.features), data, predictions["q_hat"], _diagnostics(data, predictions)
    )


def _diagnostics(data: LoggedData, found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    rows, behaviour = np.arange(len(data)), found["behaviour"]
    error = float(np.mean((data.reward - found["q_hat"][rows, data.action]) ** 2))
    baseline = float(np.mean((data.reward - found["page_mean_s"][data.action]) ** 2))
    return {
        "rows": len(data),
        "users": len(np.unique(data.cluster)),
        "logged_mean_s": float(data.reward.mean()),
        "propensities": "modelled" if data.modelled else "logged",
        "behaviour_log_loss": float(-np.log(behaviour[rows, data.action]).mean()),
        "behaviour_marginal_log_loss": float(-np.log(found["page_share"][data.action]).mean()),
        "behaviour_calibration_error": calibration_error(behaviour, data.action),
        "behaviour_temperature": float(found["temperature"]),
        "behaviour_clipped_share": float(found["clipped"]),
        "reward_r2": 1 - error / baseline if baseline > 0 else 0.0,
    }


def _fraction(hashes: np.ndarray) -> np.ndarray:
    """(N,) float64 in [0, 1) by user, independent of the bucket."""
    return (splitmix64(hashes) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with atomic_writer(path) as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # names are ours


def _load(path: Path, rows: int) -> dict[str, np.ndarray] | None:
    """Kept predictions; None where there are none, or what is kept cannot be read."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return found if {"behaviour", "q_hat"} <= found.keys() and len(found["behaviour"]) == rows else None
