"""Fills the state store from logs: what makes a fresh service know its users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import HISTORY_DAYS
from plpm_ray.core.storage import read_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.serving.engine import NavigationPolicy


def load_history(policy: NavigationPolicy, path: str | Path, *, all_days: bool = False) -> int:
    """Observes logged sessions; those that the store has already change nothing.

    Args:
        policy: whose store is filled.
        path: a warehouse, a folder of canonical Parquet files (read in the order of their names), or one file.
        all_days: of a warehouse, read every day; by default only the last ones that features can still see.

    Returns:
        Number of new sessions.

    Raises:
        DataError: nothing is there, a file is unreadable, or a row breaks a rule of the contract.
    """
    path = Path(path)
    if not (path / "manifest.json").exists():
        return sum(policy.observe(read_parquet(file)) for file in parquet_files(path))
    warehouse = Warehouse.open(path)
    if warehouse.info.pages.names != policy.pages.names:
        raise DataError(
            f"{path} has the pages {list(warehouse.info.pages.names)}, the bundle {list(policy.pages.names)}",
            hint="give the warehouse that the bundle was trained on",
        )
    return sum(policy.observe_stored(table).accepted for table in _buckets(warehouse, all_days))


def load_profiles(policy: NavigationPolicy, path: str | Path) -> int:
    """Stores users' profiles from a warehouse, a folder of Parquet files, or one file; returns the number of users."""
    path = Path(path)
    folder = path / "users" if (path / "manifest.json").exists() else path
    return sum(policy.load_users(read_parquet(file)) for file in parquet_files(folder))


def load_known_profiles(policy: NavigationPolicy, users: str | None, history: str | None) -> None:
    """Stores the profiles at `users`; by default, if the policy reads profiles, those of the history's warehouse."""
    if users is None and history is not None and policy.schema.profile:
        in_warehouse = (Path(history) / "manifest.json").exists() and (Path(history) / "users").exists()
        users = history if in_warehouse else None
    if users is not None:
        load_profiles(policy, users)


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a folder (searched in depth) by name, or the file itself.

    Raises:
        DataError: there is none.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith(("_", ".")))
    else:
        files = [path] if path.exists() else []
    if not files:
        raise DataError(
            f"{path} holds no Parquet file",
            hint="give a warehouse folder, a folder of *.parquet, or one file",
        )
    return files


def _buckets(warehouse: Warehouse, all_days: bool) -> Iterator[pa.Table]:
    days = warehouse.sessions.days()
    wanted = days if all_days or not days else [day for day in days if day >= days[-1] - HISTORY_DAYS - 1]
    for bucket in range(warehouse.info.n_buckets):
        table = warehouse.sessions.read(bucket, wanted)
        if table is not None:
            yield table
