"""Logged sessions for RLlib: transitions of a warehouse in RLlib's columns, encoded as the environments' observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.offline.offline_data import OfflineData

from plpm_ray.core.storage import write_parquet
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.simulation.encoding import ObservationEncoder, WorldFeatures
from plpm_ray.training.data import Needs, Part, TableSource

_NEEDS = Needs("transition", ("dense", "cat"), ("action", "use_s", "step", "done"), "day")


_BATCH = (Columns.OBS, Columns.ACTIONS, Columns.VALUE_TARGETS)


class LoggedColumns(OfflineData):
    """Files written by `write_columns`, used as train batches as they are.

    RLlib's own pipeline makes an episode of every row, one by one, and takes its return from a value network; here the
    return of the whole day stands in the file, so that no row is touched before it reaches the learner.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        names = {name: f"{DEFAULT_MODULE_ID}/{name}" for name in _BATCH}
        self.data = self.data.select_columns(list(names)).rename_columns(names).materialize()
        self.data_is_mapped = True


@dataclass(frozen=True)
class Logged:
    """Files for RLlib.

    Attributes:
        files: Parquet, one a bucket.
        rows: sessions in them.
        return_variance: of the returns to the end of the day, in squared rewards.
    """

    files: list[Path]
    rows: int
    return_variance: float


def write_columns(
    warehouse: Path,
    days: Sequence[int],
    features: WorldFeatures,
    folder: Path,
    *,
    gamma: float,
    scale_s: float,
    seed: int,
) -> Logged:
    """Writes the sessions of some days as Parquet files, one a bucket, their rows in random order.

    Columns: `eps_id` (a user-day), `t`, `obs`, `actions`, `rewards` (seconds over `scale_s`), `terminateds`, `truncateds`,
    and `value_targets`, the sum of the rewards from here to the end of the user's day, discounted by `gamma`.

    Raises:
        DataError: the days hold no sessions.
    """
    source = TableSource(warehouse, tuple(days), features.spec, _NEEDS)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_Part(source, part, folder, gamma, scale_s, seed) for part in source.parts()]
    rows, total, square = np.sum(
        run_tasks(_write, parts, backend="ray", progress="encoding sessions"), axis=0
    )
    return Logged([part.path for part in parts], int(rows), float(square / rows - (total / rows) ** 2))


@dataclass(frozen=True)
class _Part:
    source: TableSource
    part: Part
    folder: Path
    gamma: float
    scale_s: float
    seed: int

    @property
    def path(self) -> Path:
        return self.folder / f"part-{self.part.bucket:05d}.parquet"


def _write(item: _Part) -> tuple[float, float, float]:
    """Writes a part; rows, and the sums of the returns and of their squares."""
    arrays = item.source.read(item.part)
    encoder = ObservationEncoder(item.source.spec)
    done = arrays["done"] > 0
    rewards = (arrays["use_s"] / item.scale_s).astype(np.float32)
    values = reward_to_go(rewards, arrays["step"], arrays["next_row"], item.gamma)
    order = np.random.default_rng([item.seed, item.part.bucket]).permutation(len(done))
    episodes = np.cumsum(done) - done + (item.part.bucket << 40)
    obs = encoder.join(arrays["dense"][order], arrays["cat"][order])
    columns = {
        Columns.EPS_ID: pa.array(episodes[order]),
        Columns.T: pa.array(arrays["step"][order].astype(np.int32)),
        Columns.OBS: pa.FixedSizeListArray.from_arrays(pa.array(obs.reshape(-1)), encoder.width),
        Columns.ACTIONS: pa.array(arrays["action"][order].astype(np.int64)),
        Columns.REWARDS: pa.array(rewards[order]),
        Columns.TERMINATEDS: pa.array(done[order]),
        Columns.TRUNCATEDS: pa.array(np.zeros(len(done), dtype=bool)),
        Columns.VALUE_TARGETS: pa.array(values[order]),
    }
    write_parquet(item.path, pa.table(columns))
    return len(done), float(values.sum(dtype=np.float64)), float(np.square(values, dtype=np.float64).sum())


def reward_to_go(rewards: np.ndarray, step: np.ndarray, next_row: np.ndarray, gamma: float) -> np.ndarray:
    """(n,) discounted sum of the rewards from each session to the end of its day.

    Args:
        rewards: (n,); step: (n,) entry number of the day; next_row: (n,) row of the same user's next session that day, or -1.
    """
    out = rewards.astype(np.float64)
    order = np.argsort(-step, kind="stable")
    order = order[next_row[order] >= 0]
    last = np.flatnonzero(np.diff(step[order], append=-1) != 0) + 1
    # from the last entries of the day backwards, all users' n-th ones at once
    for rows in np.split(order, last[:-1]):
        out[rows] += gamma * out[next_row[rows]]
    return out.astype(np.float32)
