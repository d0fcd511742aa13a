"""`plpm decide`: the service's decisions for a file of app entries, each from the history that had ended before it.

Users are replayed side by side: round n observes, of all users at once, what ended before their n-th entry, and decides it.
The code that decides and observes is the service's own.

Letters: B entries, M sessions, U users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import bucket_of
from plpm_ray.core.storage import read_parquet, write_parquet
from plpm_ray.data.contract import DAY_MS, Warehouse
from plpm_ray.data.features.sessions import SessionArrays
from plpm_ray.data.ray_exec import run_tasks
from plpm_ray.serving.config import DecideConfig
from plpm_ray.serving.decisions import Decisions
from plpm_ray.serving.engine import NavigationPolicy, load_policy
from plpm_ray.serving.history import load_known_profiles, parquet_files
from plpm_ray.serving.store import Users
from plpm_ray.serving.tables import Entries, FieldError, read_entries, read_sessions

_USERS = 8192  # users replayed at once: their states stay within some 100 MB
_ROWS = 4096  # decisions at once

__all__ = ["DecideConfig", "decide_file", "replay"]


def decide_file(config: DecideConfig) -> dict[str, Any]:
    """Decides every entry of a file and writes the decisions, in the order of the entries.

    Args:
        config: see DecideConfig. Entries have user_id, entry_time, and optionally utc_offset_min, context columns and an
            entry_id, which is copied to the output.

    Returns:
        Summary: output, rows, users, fallbacks by reason, shares by page, versions.

    Raises:
        DataError: a file is missing or unreadable, or a column does not fit.
        BundleError: the bundle does not fit the history.
    """
    policy = load_policy(config.bundle, config.policy, fallback=config.fallback, plugins=config.plugins)
    warehouse = _warehouse(config.history, policy)
    load_known_profiles(policy, config.users, config.history)
    table = _entries_table(Path(config.entries))
    entries = read_entries(table, policy.schema.context)
    if warehouse is not None and len(entries) and str(entries.users.ids.type) != warehouse.info.user_id:
        raise FieldError(
            "user_id",
            f"the entries have {entries.users.ids.type} ids",
            f"{warehouse.info.user_id}, as in the history",
        )
    parts = list(_parts(entries, config.history, warehouse, policy))

    def decide_part(part: tuple[np.ndarray, Callable[[], pa.Table | None]]) -> Decisions:
        return replay(policy, entries.take(part[0]), part[1]())

    made = run_tasks(decide_part, parts, progress="deciding")
    order = np.argsort(np.concatenate([rows for rows, _ in parts])) if parts else np.zeros(0, np.int64)
    decisions = Decisions.joined(made, order) if made else policy.decide_entries(entries)
    out = policy.decision_table(entries, decisions)
    if "entry_id" in table.column_names:
        out = out.add_column(0, "entry_id", table["entry_id"])
    write_parquet(config.output, out)
    return _summary(policy, entries, out, config.output)


def replay(policy: NavigationPolicy, entries: Entries, sessions: pa.Table | None) -> Decisions:
    """Decisions of B entries from the sessions that ended before each; the policy's store gives profiles alone.

    Args:
        policy: what decides.
        entries: B entries in any order.
        sessions: stored sessions of these and other users in any order; repeats count once.
    """
    users, of = entries.users.unique()
    decided: list[Decisions] = []
    order: list[np.ndarray] = []
    for start in range(0, len(users), _USERS):
        rows = np.flatnonzero((of >= start) & (of < start + _USERS))
        part = users.take(np.arange(start, min(start + _USERS, len(users))))
        ended, owner = _sessions_of(part, sessions)
        for index, decisions in _replay(
            policy, entries.take(rows), of[rows] - start, ended, owner, len(part)
        ):
            order.append(rows[index])
            decided.append(decisions)
    if not decided:
        return policy.decide_entries(entries)
    return Decisions.joined(decided, np.argsort(np.concatenate(order)))


def _replay(
    policy: NavigationPolicy,
    entries: Entries,
    of: np.ndarray,
    ended: pa.Table | None,
    owner: np.ndarray,
    n_users: int,
) -> Iterator[tuple[np.ndarray, Decisions]]:
    """(positions of entries, decisions) until all are decided; `of`, `owner`: user of each entry and session."""
    states = np.repeat(policy.layout.blank, n_users)
    everyone = np.arange(n_users)
    known = np.zeros(n_users, dtype=bool)
    arrays = SessionArrays.from_table(ended) if ended is not None else None
    exit_ms = arrays.exit_ms if arrays is not None else np.zeros(0, dtype=np.int64)
    entry_round, session_round = _rounds(of, entries.entry_ms, owner, exit_ms, n_users)
    for n in range(int(entry_round.max(initial=-1)) + 1):
        new = np.flatnonzero(session_round == n)
        if len(new) and arrays is not None and ended is not None:
            observation = policy.observation(arrays.take(new), owner[new], n_users)
            if policy.navigator.state_size:
                observation.remember_inputs(*policy.session_inputs(ended.take(pa.array(new))))
            observation.apply(states, everyone, everyone)
            known[owner[new]] = True
        now = np.flatnonzero(entry_round == n)
        for start in range(0, len(now), _ROWS):
            rows = now[start : start + _ROWS]
            yield rows, policy.decide_states(entries.take(rows), states[of[rows]], known[of[rows]])


def _rounds(
    of: np.ndarray, entry_ms: np.ndarray, owner: np.ndarray, exit_ms: np.ndarray, n_users: int
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) and (M,) round of each entry and of each session; a session that no entry needs gets -1.

    Entries of a user with the same sessions before them share a round; sessions between two rounds belong to the later one.
    """
    b, m = len(of), len(owner)
    user = np.concatenate([of, owner])
    time = np.concatenate([entry_ms, exit_ms])
    ended = np.repeat([False, True], [b, m])
    order = np.lexsort(
        (ended, time, user)
    )  # at equal times the entry comes first: a session counts if it ended before
    after = ended[order]
    first = np.ones(b + m, dtype=bool)
    first[1:] = user[order][1:] != user[order][:-1]
    # a round begins at a user's first event, and at a session that follows an entry
    begins = first.copy()
    begins[1:] |= after[1:] & ~after[:-1]
    count = np.cumsum(begins)
    start = np.repeat(count[first], np.diff(np.append(np.flatnonzero(first), b + m)))
    rounds = np.empty(b + m, dtype=np.int64)
    rounds[order] = count - start
    last = np.full(n_users, -1, dtype=np.int64)
    np.maximum.at(last, of, rounds[:b])
    session_round = rounds[b:]
    return rounds[:b], np.where(session_round <= last[owner], session_round, -1)


def _sessions_of(users: Users, sessions: pa.Table | None) -> tuple[pa.Table | None, np.ndarray]:
    """The sessions of the given users (distinct), and the position of each one's user."""
    if sessions is None or not sessions.num_rows:
        return None, np.zeros(0, dtype=np.int64)
    order = np.argsort(users.hash)
    hashes = users.hash[order]
    theirs = Users.of(sessions["user_id"]).hash
    at = np.minimum(np.searchsorted(hashes, theirs), len(hashes) - 1)
    keep = np.flatnonzero(hashes[at] == theirs)
    return sessions.take(pa.array(keep)), order[at[keep]]


def _warehouse(history: str | None, policy: NavigationPolicy) -> Warehouse | None:
    if history is None or not (Path(history) / "manifest.json").exists():
        return None
    warehouse = Warehouse.open(history)
    if warehouse.info.pages.names != policy.pages.names:
        raise DataError(
            f"{history} has the pages {list(warehouse.info.pages.names)}, the bundle {list(policy.pages.names)}",
            hint="give the warehouse that the bundle was trained on",
        )
    return warehouse


def _parts(
    entries: Entries, history: str | None, warehouse: Warehouse | None, policy: NavigationPolicy
) -> Iterator[tuple[np.ndarray, Callable[[], pa.Table | None]]]:
    """Positions of entries, and what reads the history of their users: a part for each bucket of a warehouse."""
    if not len(entries):
        return
    if warehouse is None:
        files = parquet_files(Path(history)) if history else []

        def read_all() -> pa.Table | None:
            tables = [
                read_sessions(read_parquet(file), policy.pages, policy.schema.context) for file in files
            ]
            return pa.concat_tables(tables) if tables else None

        yield np.arange(len(entries)), read_all
        return
    until = int(entries.entry_ms.max()) // DAY_MS + 1
    days = [day for day in warehouse.sessions.days() if day <= until]
    buckets = bucket_of(entries.users.hash, warehouse.info.n_buckets)
    for bucket in np.unique(buckets).tolist():
        yield np.flatnonzero(buckets == bucket), lambda bucket=bucket: warehouse.sessions.read(bucket, days)


def _entries_table(path: Path) -> pa.Table:
    """All entries; a column that some files lack is null there."""
    try:
        tables = [read_parquet(file) for file in parquet_files(path)]
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise DataError(
            f"the files of {path} differ: {str(error).splitlines()[0]}",
            hint="give a column the same type in all of them",
        ) from None


def _summary(policy: NavigationPolicy, entries: Entries, out: pa.Table, path: str) -> dict[str, Any]:
    pages = np.bincount(out["page_index"].to_numpy(), minlength=len(policy.pages)) / max(len(out), 1)
    reasons = {row["values"] or "none": row["counts"] for row in out["fallback"].value_counts().to_pylist()}
    return {
        "output": path,
        "rows": len(out),
        "users": len(entries.users.unique()[0]),
        "fallbacks": reasons,
        "page_share": {
            name: round(float(share), 4) for name, share in zip(policy.pages.names, pages, strict=True)
        },
        **policy.versions._asdict(),
    }
