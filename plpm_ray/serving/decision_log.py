"""Served decisions and the sessions after them, written back as log rows: what the next model is trained on.

`decisions-*.parquet` hold one row a decision (its `landing_page`, `policy` and `propensity` under their canonical names, the
`versions` of everything that took part as JSON, and of composed navigators the parts of the scores as lists of K),
`sessions-*.parquet` the received sessions in canonical form, ready for `plpm data`. A session that was sent without policy
or propensity takes them from its decision, if this replica took it and the user landed on the decided page.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.storage import atomic_writer, write_parquet
from plpm_ray.serving.config import DecisionLogConfig

_REMEMBERED = 200_000
_DECISION_TYPES: dict[str, pa.DataType] = {
    "entry_time": pa.timestamp("ms", tz="UTC"),
    "utc_offset_min": pa.int16(),
    "landing_page": pa.string(),
    "policy": pa.string(),
    "propensity": pa.float64(),
    "fallback": pa.string(),
    "scores": pa.list_(pa.float32()),
    "decision_id": pa.string(),
    "versions": pa.string(),
}


class DecisionLog:
    """Buffers rows and writes whole files; a thread does the writing. What still waits when a replica dies is lost.

    Args:
        config: see DecisionLogConfig.
        replica: part of the files' names, so that replicas do not share files.
        pages: page names in catalogue order.
    """

    def __init__(self, config: DecisionLogConfig, replica: str, pages: Sequence[str]) -> None:
        self.config = config
        self._replica = replica
        self._pages = pages
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._decisions: list[dict[str, Any]] = []
        self._sessions: list[pa.Table] = []
        self._session_rows = 0
        self._recent: OrderedDict[tuple[Any, int], tuple[str, str, float]] = OrderedDict()
        self._files = 0
        self._wake = threading.Event()
        self._closed = False
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def decided(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds decisions: `user_id`, `entry_ms`, the columns of the file, and context columns."""
        with self._lock:
            for row in rows:
                self._recent[row["user_id"], row["entry_ms"]] = (
                    row["landing_page"],
                    row["policy"],
                    row["propensity"],
                )
            while len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
            self._decisions += rows
            full = len(self._decisions) >= self.config.rows_per_file
        if full:
            self._wake.set()

    def ended(self, rows: Sequence[dict[str, Any]], stored: pa.Table) -> None:
        """Adds finished sessions: the request's rows, and the same as a stored table."""
        if not self.config.sessions:
            return
        with self._lock:
            found = [self._recent.get((row["user_id"], row["entry_time"])) for row in rows]
            table = self._named(
                stored, [self._credited(row, made) for row, made in zip(rows, found, strict=True)]
            )
            self._sessions.append(table)
            self._session_rows += table.num_rows
            full = self._session_rows >= self.config.rows_per_file
        if full:
            self._wake.set()

    def flush(self) -> None:
        """Writes what waits.

        Raises:
            StorageError: the disk is full or forbidden.
        """
        with self._writing:
            with self._lock:
                decisions, self._decisions = self._decisions, []
                sessions, self._sessions, self._session_rows = self._sessions, [], 0
            if decisions:
                self._write("decisions", _decision_table(decisions))
            for group in _by_schema(sessions):
                self._write("sessions", group)

    def close(self) -> None:
        """Writes what waits and stops the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        self.flush()

    def _credited(
        self, row: Mapping[str, Any], decision: tuple[str, str, float] | None
    ) -> tuple[str | None, float | None]:
        policy, propensity = row.get("policy"), row.get("propensity")
        if (
            policy is None
            and propensity is None
            and decision
            and decision[0] == self._pages[row["landing_page"]]
        ):
            return decision[1], decision[2]
        return policy, propensity

    def _named(self, stored: pa.Table, labels: Sequence[tuple[str | None, float | None]]) -> pa.Table:
        """Stored sessions -> canonical ones with page names, policy and propensity."""
        names = pa.array(self._pages)
        pages = stored["pages"].combine_chunks()
        columns = {name: stored[name] for name in stored.column_names}
        columns["landing_page"] = pc.take(names, stored["landing_page"])
        columns["pages"] = pa.ListArray.from_arrays(pages.offsets, names.take(pages.values))
        columns["policy"] = pa.array([policy for policy, _ in labels], pa.string())
        columns["propensity"] = pa.array([propensity for _, propensity in labels], pa.float64())
        return pa.table(columns)

    def _write(self, what: str, table: pa.Table) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self._files += 1
        path = (
            Path(self.config.folder)
            / f"{what}-{stamp}-{self._replica}-{self._files:05d}.{self.config.format}"
        )
        if self.config.format == "parquet":
            write_parquet(path, table)
            return
        with atomic_writer(path) as file:
            table.to_pandas().to_json(file, orient="records", lines=True, date_format="iso", date_unit="ms")

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self.config.interval_s)
            self._wake.clear()
            try:
                self.flush()
                self.error = None
            except Exception as error:  # serving goes on without its log; the error stands in /v1/info
                self.error = str(error)


def _decision_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    context = list(dict.fromkeys(name for row in rows for name in row["context"]))
    users = [row["user_id"] for row in rows]
    if len({type(user) for user in users}) > 1:
        users = [str(user) for user in users]
    rows = [{**row, "versions": json.dumps(row["versions"])} for row in rows]
    columns: dict[str, Any] = {"user_id": pa.array(users)}
    columns["entry_time"] = pa.array([row["entry_ms"] for row in rows], pa.int64()).cast(
        _DECISION_TYPES["entry_time"]
    )
    for name, kind in _DECISION_TYPES.items():
        if name not in columns:
            columns[name] = pa.array([row[name] for row in rows], type=kind)
    for name in dict.fromkeys(name for row in rows for name in row["details"] or ()):
        lists = [(row["details"] or {}).get(name) for row in rows]
        columns[name] = pa.array(lists, type=pa.list_(pa.float32()))
    for name in context:
        columns[name] = pa.array([row["context"].get(name) for row in rows])
    return pa.table(columns)


def _by_schema(tables: Sequence[pa.Table]) -> list[pa.Table]:
    groups: dict[str, list[pa.Table]] = {}
    for table in tables:
        groups.setdefault(str(table.schema), []).append(table)
    return [pa.concat_tables(group) for group in groups.values()]
