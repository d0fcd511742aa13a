"""Transition or trial files -> encoded tensors, in an order that depends on nothing but the tables.

The unit of work is a part: one user bucket (or a share of its users) over all days of the split, so that a row and its
next state always lie in one part. Parts are read and encoded alike here, by Ray Data tasks, and in a stream. Learners of a
trial's users read the trial table instead, and of it the users of one part of the user split; learners of days read the
table of user-days. Rewards stand beside the transitions, row for row (`plpm_ray.training.rewards`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch

from plpm_ray.core.config import nearest
from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.feature_columns import unpack
from plpm_ray.core.features import SESSION_KEYS, FeatureSpec, RawFeatures
from plpm_ray.core.hashing import user_hash
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import DayTable
from plpm_ray.data.split import UserSplitConfig
from plpm_ray.data.tables import next_rows
from plpm_ray.data.trials import read_part
from plpm_ray.navigators.base import Grain, Learner, LearnerConfig
from plpm_ray.nn.packing import begins
from plpm_ray.training.table import TensorTable, assemble

REWARD_COLUMNS = ("reward", "dropped")
"""Columns that are read from a reward table."""
_COLUMN_TYPES = {
    "action": np.int32,
    "use_s": np.float32,
    "landing_dwell_s": np.float32,
    "switches": np.int32,
    "hour": np.int32,
    "step": np.int32,
    "propensity": np.float32,
    "arm": np.int32,
    "response": np.float32,
    "sessions": np.float32,
}


@dataclass(frozen=True)
class Needs:
    """What of the table a learner reads."""

    grain: Grain
    inputs: tuple[str, ...]
    columns: tuple[str, ...]
    horizon: Literal["day", "continuing"] = "day"

    @classmethod
    def of(cls, learner: type[Learner], config: LearnerConfig) -> Needs:
        """`horizon` is the config's field of that name, where it has one."""
        return cls(
            learner.grain,
            tuple(learner.inputs),
            tuple(learner.needed_columns(config)),
            getattr(config, "horizon", "day"),
        )

    @property
    def stored(self) -> tuple[str, ...]:
        """Columns of the table, those of the input "session" included."""
        session = SESSION_KEYS if "session" in self.inputs else ()
        return tuple(dict.fromkeys((*self.columns, *session)))


@dataclass(frozen=True)
class Part:
    """Share `index` of `of` of the users of a bucket.

    Attributes:
        rows: sessions in it.
        sampled: of these, how many are drawn; a session whose successor lies beyond the split is a next state only. Of
            trajectories, how many the sessions make, since those are drawn whole.
    """

    bucket: int
    index: int
    of: int
    rows: int
    sampled: int


@dataclass(frozen=True)
class UserPart:
    """The users of a trial that a source reads: part 0 (train), 1 (valid) or 2 (test) of a split."""

    split: UserSplitConfig
    part: int


@dataclass(frozen=True)
class TableSource:
    """Where the rows of a split come from; small and picklable, so that tasks can carry it.

    Attributes:
        root: the warehouse folder.
        days: local days of the split (days since 1970-01-01); of a trial, the days on which it begins.
        spec: the fitted encoder.
        needs: what is read.
        users: of a learner of users, which of them.
        rewards: name of the reward table that the column "reward" is read from.
    """

    root: Path
    days: tuple[int, ...]
    spec: FeatureSpec
    needs: Needs
    users: UserPart | None = None
    rewards: str | None = None

    @property
    def table(self) -> DayTable:
        """The table that the learner reads.

        Raises:
            DataError: an older version built its days.
        """
        warehouse = Warehouse.open(self.root)
        if self.needs.grain == "user":
            return warehouse.trial
        table = warehouse.user_days if self.needs.grain == "day" else warehouse.transitions
        return table.checked(self.days)

    def parts(self, min_parts: int = 1, max_rows: int | None = None) -> list[Part]:
        """The split's parts in table order: one a bucket, or more where `min_parts` or `max_rows` ask for it.

        There may be fewer than `min_parts`, since the sessions of a user stay together.

        Raises:
            DataError: the days hold no sessions, or the part of a trial no users.
        """
        table = self.table
        rows: dict[int, int] = {}
        for day, entry in table.entries().items():
            if day in set(self.days):
                for bucket, count in entry.rows.items():
                    rows[bucket] = rows.get(bucket, 0) + count
        if self.users is not None:
            rows = {bucket: len(self._hashes(bucket)) for bucket in rows}
        rows = {bucket: count for bucket, count in sorted(rows.items()) if count}
        if not rows and self.users is not None:
            raise DataError(
                f"{table.root} holds no users of the part {('train', 'valid', 'test')[self.users.part]!r}",
                hint="set `users.valid_share` otherwise (0 trains without validation), or give more users",
            )
        if not rows:
            raise DataError(
                f"{table.root} holds no sessions on those {len(self.days)} days",
                hint="check the split's days, or build the tables",
            )
        shares = -(-min_parts // len(rows))
        found: list[Part] = []
        for bucket, count in rows.items():
            of = max(shares, -(-count // max_rows) if max_rows else 1)
            found += self._shares(bucket, count, of)
        return found

    def _shares(self, bucket: int, rows: int, of: int) -> list[Part]:
        if self.needs.grain == "trajectory":
            return self._trajectory_shares(bucket, of)
        truncates = self.needs.grain == "transition" and self.needs.horizon == "continuing"
        if of == 1 and not truncates:
            return [Part(bucket, 0, 1, rows, rows)]
        users = np.sort(self._hashes(bucket))
        share = _share(users, of)
        last = np.append(users[1:] != users[:-1], True) if truncates else np.zeros(len(users), dtype=bool)
        counts, dropped = np.bincount(share, minlength=of), np.bincount(share[last], minlength=of)
        return [
            Part(bucket, i, of, int(counts[i]), int(counts[i] - dropped[i])) for i in range(of) if counts[i]
        ]

    def _trajectory_shares(self, bucket: int, of: int) -> list[Part]:
        table = self._rows(bucket, ["user_id", "step"])
        share = _share(user_hash(table["user_id"]), of)
        step = torch.from_numpy(table["step"].to_numpy().astype(np.int64))
        found: list[Part] = []
        for index in range(of):
            own = step[torch.from_numpy(share == index)]
            if len(own):
                found.append(Part(bucket, index, of, len(own), int(begins(own).sum())))
        return found

    def _rows(self, bucket: int, columns: list[str] | None = None) -> pa.Table:
        if self.users is None:
            found = self.table.read(bucket, self.days, columns)
        else:
            users = self.users
            found = read_part(Warehouse.open(self.root), bucket, users.split, users.part, self.days, columns)
        assert found is not None
        return found

    def _hashes(self, bucket: int) -> np.ndarray:
        """(n,) uint64, the user of each row of a bucket."""
        return user_hash(self._rows(bucket, ["user_id"])["user_id"])

    def read(self, part: Part) -> dict[str, np.ndarray]:
        """Encoded arrays of a part in (day, user, entry) order; `next_row` and `sampled` if the learner needs them."""
        table = self._rows(part.bucket)
        said = [name for name in self.needs.columns if name in REWARD_COLUMNS]
        if said:
            table = with_rewards(table, Warehouse.open(self.root), self.rewards, part.bucket, self.days, said)
        if part.of > 1:
            table = table.filter(
                pa.array(_share(user_hash(table["user_id"]), part.of) == part.index)
            ).combine_chunks()
        raw = RawFeatures.from_table(self.spec.schema, table)
        encoded = self.spec.encode(
            raw,
            bins="bins" in self.needs.inputs,
            sequences="sequences" in self.needs.inputs,
        )
        arrays: dict[str, np.ndarray] = {"dense": encoded.dense, "cat": encoded.cat}
        arrays = {name: arrays[name] for name in arrays if name in self.needs.inputs}
        if encoded.bins is not None:
            arrays["bins"] = encoded.bins
        for name, values in (encoded.sequences or {}).items():
            arrays[f"seq.{name}"] = values
        if "days" in self.needs.inputs:
            assert raw.days is not None
            arrays["days"] = raw.days.copy()
        return arrays | self._labels(table)

    def _labels(self, table: pa.Table) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in self.needs.stored:
            if name != "done":
                arrays[name] = label(table, name)
        if self.needs.grain in ("user", "day"):
            return arrays
        daily = self.needs.horizon == "day"
        ends = table["done"].to_numpy() if daily else np.zeros(table.num_rows, dtype=bool)
        if "done" in self.needs.columns:
            arrays["done"] = ends.astype(np.float32)
        if self.needs.grain == "transition":
            arrays["next_row"] = next_rows(table["user_id"], table["done"].to_numpy(), self.needs.horizon)
            known = ends | (arrays["next_row"] >= 0)
            arrays["sampled"] = known
        return arrays

    def load(self, parts: Sequence[Part] | None = None) -> TensorTable:
        """Parts as one table, in the order given (all by default)."""
        parts = self.parts() if parts is None else parts
        return assemble((to_table(self.read(part)) for part in parts), sum(part.rows for part in parts))


def with_rewards(
    table: pa.Table,
    warehouse: Warehouse,
    name: str | None,
    bucket: int,
    days: Sequence[int],
    columns: Sequence[str] = ("reward",),
) -> pa.Table:
    """Rows of the transition table, of one bucket and whole days, with what a reward model says of them.

    Raises:
        ConfigError: no reward table is named.
        DataError: it lacks some of the days, or was made from others of their sessions.
    """
    if name is None:
        raise ConfigError(
            "the learner reads rewards, and no reward model is named",
            hint="set `rewards` to the bundle of a reward model (glan.hrm), or the learner's reward to duration",
        )
    found = warehouse.rewards(name).read(bucket, days, ["session_id", *columns])
    if found is None or not found["session_id"].equals(table["session_id"]):
        raise DataError(
            f"{warehouse.rewards(name).root} does not hold the rewards of these sessions",
            hint="run `plpm reward` after the tables have changed",
        )
    for column in columns:
        table = table.append_column(column, found[column])
    return table


def label(table: pa.Table, name: str) -> np.ndarray:
    """A column as learners read it: (R,), or (R, width) of a FixedSizeList; integers stay so, a null is NaN.

    Raises:
        ConfigError: the table has no such column, or it holds no numbers.
    """
    stored = "landing_page" if name == "action" else name
    if stored not in table.column_names:
        raise ConfigError(
            f"the learner reads column {name!r}, which its table does not have",
            hint=nearest(name, [*_COLUMN_TYPES, *table.column_names]) or "write it when the table is built",
        )
    column = table[stored]
    if pa.types.is_fixed_size_list(column.type):
        return unpack(column).copy()
    values = column.to_numpy()
    if values.dtype.kind not in "iufb":
        raise ConfigError(
            f"the learner reads column {name!r}, which is {column.type}", hint="labels are numbers"
        )
    return values.astype(_COLUMN_TYPES.get(name, np.float32 if values.dtype.kind == "f" else np.int64))


def _share(hashes: np.ndarray, of: int) -> np.ndarray:
    # buckets are made from the upper half of the hash; the lower half divides a bucket evenly
    return ((hashes & np.uint64(0xFFFFFFFF)) % np.uint64(of)).astype(np.int64)


def to_table(arrays: dict[str, Any]) -> TensorTable:
    """Arrays of a part (`TableSource.read`) as tensors that share their memory."""
    known = arrays.get("sampled")
    sampled = None if known is None or known.all() else torch.from_numpy(np.flatnonzero(known))
    following = arrays.get("next_row")
    columns = {
        name: torch.from_numpy(values)
        for name, values in arrays.items()
        if name not in ("next_row", "sampled")
    }
    return TensorTable(columns, None if following is None else torch.from_numpy(following), sampled)


class PartReader(Protocol):
    """Reads parts in the order given; an implementation reads ahead."""

    def __call__(self, parts: Sequence[Part]) -> Iterator[TensorTable]: ...
