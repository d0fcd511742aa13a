"""What the features are (schema), how raw ones are held, and the fitted encoder that turns them into model input.

The *values* are computed in `plpm_ray.data.features` (batch and online, bit for bit the same); here stands only what
they are called, and the spec fitted on the training window that travels in every bundle.

Shapes: B rows, N numeric features, F categorical features, S sequences of T steps (newest first).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported, so a type checker does not know them

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.errors import BundleError, DataError
from plpm_ray.core.feature_columns import category_column, joined, packed, unpack

RECENT_STEPS = 8
WINDOW_DAYS = (7, 30)
PAGE_WINDOW_DAYS = (7, 14)
HISTORY_DAYS = 30
DAYS_COLUMN = "x_days"
SESSION_KEYS = ("action", "switches", "page_views", "page_visits")
"""What is known of a session that has ended, beside its durations: landing page (B,), page switches (B,), video views (B, K) on
each page (NaN = unknown) and visits (B, K) to each page. Durations are what is learnt from it, so they are not among these."""
ColumnKind = Literal["numeric", "categorical"]

_TODAY = ("today_entries", "today_use_s", "today_switches", "today_views")
_LAST = ("since_exit_s", "last_use_s", "last_landing_dwell_s")
_GENERAL = ("entries", "active_days", "use_s", "views")
_CALENDAR = ("hour", "weekday", "last_exit_page", "last_landing_page")
_SEQUENCES = ("recent_landing", "recent_use_s")
_DAILY_STEMS = tuple(f"page_{what}_{days}d" for days in PAGE_WINDOW_DAYS for what in ("dwell_s", "entries"))


@dataclass(frozen=True)
class FeatureSchema:
    """Names and order of every raw feature of a dataset.

    Attributes:
        pages: page names; per-page features are called `<stem>.<page>`.
        context: context column -> kind; its feature is `context.<column>`, known at entry.
        profile: profile column -> kind; its feature is `profile.<column>`.
        history: whether there are features of past sessions; False for trials that come as a table of users.
    """

    pages: tuple[str, ...]
    context: Mapping[str, ColumnKind] = field(default_factory=dict)
    profile: Mapping[str, ColumnKind] = field(default_factory=dict)
    history: bool = True

    @property
    def numeric(self) -> tuple[str, ...]:
        """(N,) numeric feature names, in column order of `RawFeatures.numeric`."""
        if not self.history:
            return tuple(self._extra("numeric"))
        general = [f"{stem}_{days}d" for days in WINDOW_DAYS for stem in _GENERAL]
        per_page = [f"{stem}.{page}" for stem in self.page_stems for page in self.pages]
        return (*_TODAY, *_LAST, *general, *per_page, *self._extra("numeric"))

    @property
    def page_stems(self) -> tuple[str, ...]:
        """Stems of the per-page numeric features, each followed by K columns in page order."""
        return ("today_page_dwell_s", "today_page_entries", "today_landings", *_DAILY_STEMS)

    @property
    def categorical(self) -> tuple[str, ...]:
        """(F,) categorical feature names."""
        return (*(_CALENDAR if self.history else ()), *self._extra("categorical"))

    @property
    def daily_numeric(self) -> tuple[int, ...]:
        """Positions in `numeric` of what does not change within a user's local day: windows that end the day before, and
        the profile (KLAN 5.1.1)."""
        windows = [f"{stem}_{days}d" for days in WINDOW_DAYS for stem in _GENERAL]
        windows += [
            f"{stem}.{page}" for stem in self.page_stems if stem in _DAILY_STEMS for page in self.pages
        ]
        kept = {*windows, *(f"profile.{name}" for name in self.profile)}
        return tuple(i for i, name in enumerate(self.numeric) if name in kept)

    @property
    def daily_categorical(self) -> tuple[int, ...]:
        """Positions in `categorical` of what does not change within a local day: the profile."""
        kept = {f"profile.{name}" for name in self.profile}
        return tuple(i for i, name in enumerate(self.categorical) if name in kept)

    @property
    def sequences(self) -> tuple[str, ...]:
        """(S,) sequence names, each RECENT_STEPS long, newest first."""
        return _SEQUENCES if self.history else ()

    def _extra(self, kind: ColumnKind) -> list[str]:
        pairs = [("context", self.context), ("profile", self.profile)]
        return [f"{source}.{name}" for source, columns in pairs for name, k in columns.items() if k == kind]

    def page_columns(self, stem: str) -> slice:
        """Columns of `RawFeatures.numeric` that hold a per-page stem for all K pages."""
        start = self.numeric.index(f"{stem}.{self.pages[0]}")
        return slice(start, start + len(self.pages))

    def to_dict(self) -> dict[str, Any]:
        found = {"pages": list(self.pages), "context": dict(self.context), "profile": dict(self.profile)}
        return found if self.history else {**found, "history": False}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureSchema:
        return cls(
            tuple(data["pages"]), dict(data["context"]), dict(data["profile"]), data.get("history", True)
        )


@dataclass
class RawFeatures:
    """Raw features of B rows, in natural units.

    Attributes:
        schema: what the columns are.
        numeric: (B, N) float32; NaN = missing.
        categorical: name -> (B,) integers (-1 = missing) or strings (object array or Arrow string array; None = missing).
        sequences: name -> (B, T) float32, newest first; NaN = no such session.
        vectors: name -> (B, width) float32 that jobs stored for the users (`Navigator.reads`); NaN where nothing is stored.
        days: (B, HISTORY_DAYS, 2) float32 seconds of use and sessions of each of the last local days, yesterday first; zeros
            where there was no session. None where nobody asked for it (`Navigator.reads_days`).
        session: what came of the session, for learners that judge it after it has ended: name -> (B, ...), the names being
            those of `SESSION_KEYS`. Empty at an entry.
    """

    schema: FeatureSchema
    numeric: np.ndarray
    categorical: dict[str, Any]
    sequences: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    days: np.ndarray | None = None
    session: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numeric)

    def column(self, name: str) -> np.ndarray:
        """(B,) one numeric feature by name."""
        return self.numeric[:, self.schema.numeric.index(name)]

    def per_page(self, stem: str) -> np.ndarray:
        """(B, K) a per-page stem, for example `page_entries_14d`."""
        return self.numeric[:, self.schema.page_columns(stem)]

    def take(self, rows: np.ndarray) -> RawFeatures:
        """The rows at the given positions (or a boolean mask)."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        cats, sequences, vectors, session = (
            {k: v.take(pa.array(index)) if isinstance(v, pa.Array) else v[index] for k, v in kept.items()}
            for kept in (self.categorical, self.sequences, self.vectors, self.session)
        )
        days = None if self.days is None else self.days[index]
        return RawFeatures(self.schema, self.numeric[index], cats, sequences, vectors, days, session)

    @classmethod
    def concat(cls, parts: Sequence[RawFeatures]) -> RawFeatures:
        """The rows of one or more parts, one part after another; all have the schema and the vectors of the first."""
        cats, sequences, vectors, session = (
            {name: joined([getattr(part, kind)[name] for part in parts]) for name in getattr(parts[0], kind)}
            for kind in ("categorical", "sequences", "vectors", "session")
        )
        numeric = np.concatenate([part.numeric for part in parts])
        days = [part.days for part in parts if part.days is not None]
        all_days = np.concatenate(days) if days else None
        return cls(parts[0].schema, numeric, cats, sequences, vectors, all_days, session)

    def to_columns(self) -> dict[str, pa.Array]:
        """Arrow columns for storage: `x_numeric` (FixedSizeList<float>), `cat:<name>`, `seq:<name>`, and `x_days` if there."""
        columns: dict[str, pa.Array] = {"x_numeric": packed(self.numeric)}
        for name, values in self.categorical.items():
            columns[f"cat:{name}"] = category_column(values)
        for name, values in self.sequences.items():
            columns[f"seq:{name}"] = packed(values)
        if self.days is not None:
            columns[DAYS_COLUMN] = packed(self.days.reshape(len(self), -1))
        return columns

    @classmethod
    def from_table(cls, schema: FeatureSchema, table: pa.Table) -> RawFeatures:
        """Inverse of `to_columns`.

        Raises:
            DataError: the table was written under another schema.
        """
        extra = [*(f"cat:{c}" for c in schema.categorical), *(f"seq:{s}" for s in schema.sequences)]
        lacking = [name for name in ("x_numeric", *extra) if name not in table.column_names]
        if lacking:
            raise DataError(
                f"the table lacks feature column {lacking[0]!r}",
                hint="build the features again with this schema",
            )
        numeric = unpack(table["x_numeric"])
        if numeric.shape[1] != len(schema.numeric):
            raise DataError(
                f"x_numeric is {numeric.shape[1]} wide, the schema has {len(schema.numeric)} numeric features",
                hint="build the features again with this schema",
            )
        cats: dict[str, Any] = {}
        for name in schema.categorical:
            column = table[f"cat:{name}"].combine_chunks()
            cats[name] = column if pa.types.is_string(column.type) else column.to_numpy(zero_copy_only=False)
        sequences = {s: unpack(table[f"seq:{s}"]) for s in schema.sequences}
        found = cls(schema, numeric, cats, sequences)
        if DAYS_COLUMN in table.column_names:
            found.days = unpack(table[DAYS_COLUMN]).reshape(len(numeric), HISTORY_DAYS, 2)
        return found


@dataclass
class Encoded:
    """Model input of B rows: dense (B, N) float32, cat (B, F) int32, and what was asked for besides.

    `bins` (B, N) int32: bin of each numeric feature, 0 = missing. `sequences` name -> (B, T) float32, scaled, 0 = none;
    `recent_landing` keeps page positions + 1 (0 = none).
    """

    dense: np.ndarray
    cat: np.ndarray
    bins: np.ndarray | None = None
    sequences: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class FeatureSpec:
    """The fitted encoder: vocabularies, bins and scales found on the training window only.

    numeric: z = (sign(x) log(1 + |x|) - mean) / std, missing -> 0. categorical: position in the vocabulary + 1, unknown
    or missing -> 0. bins: position among quantile edges + 1, missing -> 0.
    """

    schema: FeatureSchema
    mean: np.ndarray
    std: np.ndarray
    edges: tuple[np.ndarray, ...]
    vocabularies: tuple[tuple[Any, ...], ...]

    @property
    def n_dense(self) -> int:
        return len(self.mean)

    @property
    def cat_sizes(self) -> tuple[int, ...]:
        """(F,) number of codes of each categorical feature, the unknown code 0 included."""
        return tuple(len(v) + 1 for v in self.vocabularies)

    @property
    def bin_sizes(self) -> tuple[int, ...]:
        """(N,) number of bins of each numeric feature, the missing bin 0 included."""
        return tuple(len(e) + 2 for e in self.edges)

    def encode(self, raw: RawFeatures, *, bins: bool = False, sequences: bool = False) -> Encoded:
        """Raw features -> model input.

        Raises:
            BundleError: the features belong to another schema than the one fitted.
        """
        if raw.schema.numeric != self.schema.numeric or raw.schema.categorical != self.schema.categorical:
            raise BundleError(
                "the features do not fit the bundle: other pages, context or profile columns",
                hint="use tables and entries of the dataset that the bundle was trained on",
            )
        dense = squash(raw.numeric)
        dense -= self.mean
        dense /= self.std
        np.nan_to_num(dense, copy=False, nan=0.0)
        cat = np.empty((len(raw), len(self.vocabularies)), dtype=np.int32)
        for j, name in enumerate(self.schema.categorical):
            cat[:, j] = _codes(raw.categorical[name], self.vocabularies[j])
        return Encoded(
            dense, cat, self._bins(raw.numeric) if bins else None, self._sequences(raw) if sequences else None
        )

    def _bins(self, numeric: np.ndarray) -> np.ndarray:
        out = np.empty(numeric.shape, dtype=np.int32)
        for j, edges in enumerate(self.edges):
            out[:, j] = np.searchsorted(edges, numeric[:, j], side="right") + 1
        out[np.isnan(numeric)] = 0
        return out

    def _sequences(self, raw: RawFeatures) -> dict[str, np.ndarray]:
        if not self.schema.history:
            return {}
        landing = np.nan_to_num(raw.sequences["recent_landing"] + 1, nan=0.0)
        use = raw.sequences["recent_use_s"]
        j = self.schema.numeric.index("last_use_s")
        return {
            "recent_landing": landing.astype(np.float32),
            "recent_use_s": np.nan_to_num((squash(use) - self.mean[j]) / self.std[j], nan=0.0),
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; `from_dict` gives an equal spec."""
        return {
            "schema": self.schema.to_dict(),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "edges": [e.tolist() for e in self.edges],
            "vocabularies": [list(v) for v in self.vocabularies],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureSpec:
        return cls(
            FeatureSchema.from_dict(data["schema"]),
            np.asarray(data["mean"], dtype=np.float32),
            np.asarray(data["std"], dtype=np.float32),
            tuple(np.asarray(e, dtype=np.float32) for e in data["edges"]),
            tuple(tuple(v) for v in data["vocabularies"]),
        )


def squash(values: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|) as float32; a new array. NaN stays NaN."""
    out = (
        np.abs(values, dtype=np.float32) if values.dtype == np.float32 else np.abs(values).astype(np.float32)
    )
    np.log1p(out, out=out)
    return np.copysign(out, values, out=out)


def _codes(values: Any, vocabulary: Sequence[Any]) -> np.ndarray:
    if not vocabulary:
        return np.zeros(len(values), dtype=np.int32)
    if isinstance(vocabulary[0], str):
        array = values if isinstance(values, pa.Array) else pa.array(values, type=pa.string())
        found = pc.index_in(array, value_set=pa.array(vocabulary, type=pa.string()))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32) + 1
    keys = np.asarray(vocabulary)
    values = np.asarray(values)
    order = np.argsort(keys)
    position = np.searchsorted(keys[order], values).clip(max=len(keys) - 1)
    hit = keys[order][position] == values
    return np.where(hit, order[position] + 1, 0).astype(np.int32)
