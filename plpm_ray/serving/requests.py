"""JSON requests -> app entries and sessions. Plain Python, no models: it stands in the hot path.

Whatever does not fit raises FieldError, which the service answers with 422, the field's name and what it should be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import nearest
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import FeatureSchema
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.data.contract import DAY_MS, TIMESTAMP, IdType
from plpm_ray.serving.json_fields import (
    TIME,
    known_keys,
    one_type,
    read_flag,
    read_labels,
    read_list,
    read_moment,
    read_number,
    read_numbers,
    read_offset_min,
    refuse,
    required,
    shown,
)
from plpm_ray.serving.store import Users
from plpm_ray.serving.tables import Entries, FieldError

_ENTRY_KEYS = frozenset(("user_id", "entry_time", "utc_offset_min", "context", "explain"))
_SESSION_KEYS = frozenset(
    (
        "user_id session_id entry_time exit_time utc_offset_min landing_page pages dwell_s video_views watch_s "
        "policy propensity experiment_arm context"
    ).split()
)
_INT64 = 1 << 63
_MOST = (1 << 31) - 1  # of a session's views, and of its seconds
_SESSION_TYPES: dict[str, pa.DataType] = {
    "entry_time": TIMESTAMP,
    "exit_time": TIMESTAMP,
    "utc_offset_min": pa.int16(),
    "landing_page": pa.int16(),
    "pages": pa.list_(pa.int16()),
    "dwell_s": pa.list_(pa.float32()),
    "video_views": pa.list_(pa.int32()),
    "watch_s": pa.list_(pa.float32()),
    "policy": pa.string(),
    "propensity": pa.float64(),
    "experiment_arm": pa.string(),
}


class EntryRow(NamedTuple):
    """One app entry: user id, UTC milliseconds, minutes ahead of UTC, context columns, whether to explain the answer."""

    user: int | str
    entry_ms: int
    offset_min: int
    context: Mapping[str, Any]
    explain: bool = False


class RequestReader:
    """Reads the requests for one dataset.

    Args:
        pages: catalogue; requests use page names or their aliases.
        schema: which context columns there are.
        user_type: type of the dataset's user ids; None takes integers and strings.
        max_batch: most entries or sessions in one request.
    """

    def __init__(
        self,
        pages: PageCatalogue,
        schema: FeatureSchema,
        user_type: IdType | None = None,
        max_batch: int = 10_000,
    ) -> None:
        self.pages = pages
        self.context = dict(schema.context)
        self.user_type: IdType | None = user_type
        self.max_batch = max_batch

    def entry_rows(self, body: Any, now_ms: int, explain: bool = False) -> list[EntryRow]:
        """One entry, or a list of them: `{"user_id", "entry_time"?, "utc_offset_min"?, "context"?, "explain"?}`."""
        rows = self._rows(body)
        made = []
        for i, row in enumerate(rows):
            at = f"[{i}]." if len(rows) > 1 else ""
            known_keys(row, _ENTRY_KEYS, at)
            user = self._id(row, "user_id", at, self.user_type)
            given = row.get("entry_time")
            time = now_ms if given is None else read_moment(given, at + "entry_time")
            context = self._context(row.get("context"), at + "context")
            made.append(
                EntryRow(
                    user, time, read_offset_min(row, at), context, read_flag(row, "explain", at, explain)
                )
            )
        one_type([row.user for row in made], "user_id")
        return made

    def entries(self, rows: Sequence[EntryRow]) -> Entries:
        """Arrays of the rows, which may come from several requests.

        Raises:
            FieldError: integers and strings as user ids.
        """
        users, times, offsets, contexts, _ = zip(*rows, strict=True)
        columns: dict[str, Any] = {}
        for name, kind in self.context.items():
            values = [c.get(name) for c in contexts]
            columns[name] = (
                np.array(values, dtype=np.float32) if kind == "numeric" else pa.array(values, pa.string())
            )
        kind = pa.string() if isinstance(users[0], str) else pa.int64()
        return Entries(
            Users.of(pa.array(users, type=kind)),
            np.array(times, dtype=np.int64),
            np.array(offsets, dtype=np.int64),
            columns,
        )

    def session_rows(self, body: Any, now_ms: int) -> list[dict[str, Any]]:
        """One finished session, or a list of them, in canonical form -> columns in stored form (pages as positions).

        Context columns stand under `context` or, as in the canonical tables, beside the other columns. A session that
        ends more than a day after `now_ms` is refused: it would age all the user's history at once.
        """
        rows = self._rows(body)
        made = [self._session(row, f"[{i}]." if len(rows) > 1 else "") for i, row in enumerate(rows)]
        for i, row in enumerate(made):
            if row["exit_time"] > now_ms + DAY_MS:
                at = f"[{i}]." if len(rows) > 1 else ""
                refuse(at + "exit_time", rows[i]["exit_time"], "a time that has come: the session is over")
        for name in ("user_id", "session_id"):
            one_type([row[name] for row in made], name)
        return made

    def sessions(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        """The stored table of the rows, which may come from several requests with one type of ids."""
        ids = {
            name: pa.string() if isinstance(rows[0][name], str) else pa.int64()
            for name in ("user_id", "session_id")
        }
        context = {
            name: pa.float32() if kind == "numeric" else pa.string() for name, kind in self.context.items()
        }
        types: dict[str, pa.DataType] = {**ids, **_SESSION_TYPES, **context}
        return pa.table(
            {name: pa.array([row.get(name) for row in rows], type=kind) for name, kind in types.items()}
        )

    def _session(self, row: Mapping[str, Any], at: str) -> dict[str, Any]:
        known_keys(row, _SESSION_KEYS | self.context.keys(), at)
        made: dict[str, Any] = {
            "user_id": self._id(row, "user_id", at, self.user_type),
            "session_id": self._id(row, "session_id", at, None),
            "entry_time": read_moment(required(row, "entry_time", at, TIME), at + "entry_time"),
            "exit_time": read_moment(required(row, "exit_time", at, TIME), at + "exit_time"),
            "utc_offset_min": read_offset_min(row, at),
        }
        if made["exit_time"] < made["entry_time"]:
            raise FieldError(at + "exit_time", "it is before entry_time", "a time at or after entry_time")
        made["landing_page"] = self._page(
            required(row, "landing_page", at, "a page name"), at + "landing_page"
        )
        pages = read_list(
            required(row, "pages", at, "a list of page names"),
            at + "pages",
            "a list of page names, at least one",
        )
        if not pages:
            raise FieldError(at + "pages", "the list is empty", "a list of page names, at least one")
        codes = [self._page(page, f"{at}pages[{i}]") for i, page in enumerate(pages)]
        if codes[0] != made["landing_page"]:
            raise FieldError(
                at + "landing_page",
                f"it is {row['landing_page']!r}, pages begins with {pages[0]!r}",
                "the first of pages",
            )
        runs = [i for i, code in enumerate(codes) if not i or code != codes[i - 1]]
        made["pages"] = [codes[i] for i in runs]
        required(row, "dwell_s", at, "a list of seconds")
        for name in ("dwell_s", "video_views", "watch_s"):
            if row.get(name) is not None:
                values = read_numbers(row[name], at + name, len(pages), whole=name == "video_views")
                made[name] = [sum(values[a:b]) for a, b in zip(runs, [*runs[1:], len(codes)], strict=True)]
                if sum(values) > _MOST:
                    refuse(at + name, values, f"values of at most {_MOST} together")
        made |= read_labels(row, at)
        beside = {name: row[name] for name in self.context if name in row}
        return made | self._context(beside, at[:-1]) | self._context(row.get("context"), at + "context")

    def _rows(self, body: Any) -> list[Mapping[str, Any]]:
        rows = body if isinstance(body, list) else [body]
        if not rows or len(rows) > self.max_batch:
            raise FieldError("(body)", f"a list of {len(rows)}", f"1 to {self.max_batch} objects")
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise FieldError(
                    f"[{i}]" if isinstance(body, list) else "(body)",
                    f"{shown(row)} is not an object",
                    "a JSON object",
                )
        return rows

    def _id(self, row: Mapping[str, Any], name: str, at: str, wanted: IdType | None) -> int | str:
        expected = {"int64": "an integer", "string": "a string"}.get(wanted or "", "an integer or a string")
        value = required(row, name, at, expected)
        good = (
            isinstance(value, int)
            and not isinstance(value, bool)
            and wanted != "string"
            and -_INT64 <= value < _INT64
        )
        if not (good or (isinstance(value, str) and value and wanted != "int64")):
            refuse(at + name, value, expected + (", as in the training logs" if wanted else ""))
        return value

    def _page(self, value: Any, field: str) -> int:
        expected = f"one of {list(self.pages.names)}"
        if not isinstance(value, str):
            refuse(field, value, expected)
        try:
            return self.pages.index(value)
        except ConfigError:
            raise FieldError(field, f"unknown page {value!r}", expected) from None

    def _context(self, given: Any, field: str) -> dict[str, Any]:
        if given is None:
            return {}
        if not isinstance(given, dict):
            refuse(field, given, "an object of context columns")
        made: dict[str, Any] = {}
        for name, value in given.items():
            own = f"{field}.{name}" if field else name
            kind = self.context.get(name)
            if kind is None:
                raise FieldError(
                    own,
                    "unknown context column",
                    nearest(name, self.context) or "no context: the model uses none",
                )
            if value is None:
                continue
            if kind == "numeric":
                made[name] = read_number(value, own, "a number or null")
            elif isinstance(value, str):
                made[name] = value
            else:
                refuse(own, value, "a string or null")
        return made
