"""Open Bandit Dataset (Saito et al. 2021, ZOZOTOWN): logged item recommendations with true propensities.

Official layout, small and full version: `<root>/{random,bts}/{all,men,women}/<campaign>.csv`. One row is
one shown item: position 1..3, click, and the propensity with which the policy showed this item at this
position: uniform (`random`) or Thompson sampling (`bts`, Monte Carlo, updated during the week). There are
no user ids; rows count as independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from plpm_ray.core.errors import DataError

N_POSITIONS = 3
_REQUIRED = {"timestamp": pa.string(), "item_id": pa.int64(), "position": pa.int64(), "click": pa.int64()}
_PROPENSITY = "propensity_score"
_USER_FEATURES = tuple(f"user_feature_{i}" for i in range(4))


@dataclass(frozen=True)
class OpenBanditLog:
    """One policy's log of one campaign, N rows in the file's order.

    Attributes:
        action: int64 [N], item_id, 0..n_items-1.
        position: int64 [N], 0..2 (the file counts from 1).
        reward: float64 [N], click, 0 or 1.
        propensity: float64 [N], chance of this item at this position under the logging policy at that moment.
        time_ms: int64 [N], UTC.
        cluster: int64 [N], the row number: there are no users.
        user_features: int64 [N, 4], codes in order of first appearance of the four hashed user features.
        n_items: items of the campaign.
    """

    action: np.ndarray
    position: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    time_ms: np.ndarray
    cluster: np.ndarray
    user_features: np.ndarray
    n_items: int

    def item_shares(self) -> np.ndarray:
        """Time-averaged policy, share of each item per position, float64 [3, n_items].

        These are frequencies. The mean of the logged propensities of an item's rows is no substitute where
        the policy changes over time: rows are shown more often while their propensity is high, so that the
        mean is too large (E[p | shown] = E[p^2] / E[p]).
        """
        counts = np.zeros((N_POSITIONS, self.n_items))
        np.add.at(counts, (self.position, self.action), 1.0)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)

    def context(self) -> np.ndarray:
        """Features known before the item is chosen: one-hot position and user features, float32 [N, D]."""
        columns = [self.position, *self.user_features.T]
        parts = [np.eye(int(column.max()) + 1, dtype=np.float32)[column] for column in columns]
        return np.concatenate(parts, axis=1)


def read_open_bandit(
    root: str | Path, policy: Literal["random", "bts"], campaign: Literal["all", "men", "women"]
) -> OpenBanditLog:
    """Read one log.

    Args:
        root: the folder that contains `random/` and `bts/`.

    Raises:
        DataError: the file is missing, unreadable, lacks a column, or holds values outside their range.
    """
    path = Path(root) / policy / campaign / f"{campaign}.csv"
    table = _read(path)
    action = table["item_id"].to_numpy()
    position = table["position"].to_numpy() - 1
    reward = table["click"].to_numpy().astype(np.float64)
    propensity = table[_PROPENSITY].to_numpy()
    _check(path, "position", (position < 0) | (position >= N_POSITIONS), "1, 2 or 3")
    _check(path, "item_id", action < 0, "0 or more")
    _check(path, "click", (reward != 0) & (reward != 1), "0 or 1")
    _check(path, _PROPENSITY, ~((propensity > 0) & (propensity <= 1)), "in (0, 1]")
    features = [
        table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in _USER_FEATURES
    ]
    return OpenBanditLog(
        action=action,
        position=position,
        reward=reward,
        propensity=propensity,
        time_ms=_time_ms(path, table["timestamp"]),
        cluster=np.arange(len(action)),
        user_features=np.stack(features, axis=1).astype(np.int64),
        n_items=int(action.max()) + 1,
    )


def _read(path: Path) -> pa.Table:
    types = {**_REQUIRED, _PROPENSITY: pa.float64(), **dict.fromkeys(_USER_FEATURES, pa.string())}
    hint = "expected the Open Bandit layout <root>/{random,bts}/<campaign>/<campaign>.csv"
    if not path.is_file():
        raise DataError(f"{path} is missing", hint=hint)
    try:
        table = pa_csv.read_csv(
            path,
            convert_options=pa_csv.ConvertOptions(column_types=types, include_columns=list(types)),
        )
    except KeyError as error:
        raise DataError(f"{path} lacks a column: {error.args[0]}", hint=hint) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint=hint) from error
    if table.num_rows == 0:
        raise DataError(f"{path} holds no rows")
    for name in types:
        if table[name].null_count:
            raise DataError(f"{path}: column {name} holds {table[name].null_count} empty values")
    return table


def _check(path: Path, column: str, wrong: np.ndarray, expected: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong)) + 2
        raise DataError(
            f"{path}: {column} must be {expected}; {int(wrong.sum())} rows are not, the first in line {row}"
        )


def _time_ms(path: Path, column: pa.ChunkedArray) -> np.ndarray:
    try:
        stamps = pc.cast(column, pa.timestamp("us", tz="UTC"))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: timestamp cannot be read: {error}") from error
    return pc.cast(stamps, pa.int64()).to_numpy() // 1000
