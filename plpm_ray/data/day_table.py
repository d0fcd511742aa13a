"""A Parquet table partitioned by local day and user bucket, changed only by atomic commits.

Layout: `day=2022-04-25/gen=<id>/bucket=003.parquet`, and `_manifest.json` that says which generation of each day counts.
Writers fill a new generation in peace; one atomic replacement of the manifest makes it visible, all days together.
Readers go through the manifest, so that they never see half a day. What a commit replaces is written down under
`replaced` in the manifest and deleted by the commit after it: who has read the manifest keeps his files until then.
Writers of one table must keep off each other (`plpm_ray.data.staging.write_lock`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import StorageError
from plpm_ray.core.storage import read_json, read_parquet, write_json, write_parquet

EPOCH = dt.date(1970, 1, 1)


def day_name(day: int) -> str:
    """Days since 1970-01-01 -> `YYYY-MM-DD`."""
    return (EPOCH + dt.timedelta(days=int(day))).isoformat()


def day_number(name: str | dt.date) -> int:
    """`YYYY-MM-DD` -> days since 1970-01-01."""
    date = dt.date.fromisoformat(name) if isinstance(name, str) else name
    return (date - EPOCH).days


@dataclass(frozen=True)
class DayEntry:
    """One committed day: generation, rows per bucket, and a fingerprint of what it was made from."""

    gen: str
    rows: dict[int, int]
    inputs: str

    @property
    def total(self) -> int:
        return sum(self.rows.values())


class DayTable:
    """See the module's text. Days are integers (days since 1970-01-01)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def entries(self) -> dict[int, DayEntry]:
        """Committed days in order."""
        days = self._manifest()["days"]
        found = {
            day_number(name): DayEntry(e["gen"], {int(b): n for b, n in e["rows"].items()}, e["inputs"])
            for name, e in days.items()
        }
        return dict(sorted(found.items()))

    def _manifest(self) -> dict[str, Any]:
        path = self.root / "_manifest.json"
        return read_json(path) if path.exists() else {"days": {}}

    def days(self) -> list[int]:
        return list(self.entries())

    def fingerprint(self, days: Iterable[int] | None = None) -> str:
        """Hash of the generations of the given days (all by default); changes when any of them is replaced."""
        entries = self.entries()
        wanted = entries.keys() if days is None else sorted(days)
        return config_hash([[d, entries[d].gen] for d in wanted if d in entries])

    @staticmethod
    def new_generation() -> str:
        return uuid.uuid4().hex[:12]

    def path(self, day: int, gen: str, bucket: int) -> Path:
        return self.root / f"day={day_name(day)}" / f"gen={gen}" / f"bucket={bucket:03d}.parquet"

    def write(self, day: int, gen: str, bucket: int, table: pa.Table) -> int:
        """Writes one bucket of a not yet committed generation; returns its rows."""
        write_parquet(self.path(day, gen, bucket), table)
        return table.num_rows

    def commit(
        self,
        gen: str,
        days: Mapping[int, Mapping[int, int]],
        inputs: Mapping[int, str] | None = None,
        drop: Iterable[int] = (),
    ) -> None:
        """Makes a generation the valid one of the given days (day -> rows per bucket).

        Days not named stay as they are; days in `drop` disappear. Files of what this commit replaces or drops stay
        until the next one; those that the last one replaced are deleted.
        """
        before = self.entries()
        after = {d: e for d, e in before.items() if d not in set(drop)}
        for day, rows in days.items():
            after[day] = DayEntry(
                gen, {b: n for b, n in sorted(rows.items()) if n}, (inputs or {}).get(day, "")
            )
        record: dict[str, Any] = {
            day_name(d): {"gen": e.gen, "rows": {str(b): n for b, n in e.rows.items()}, "inputs": e.inputs}
            for d, e in sorted(after.items())
        }
        replaced = [
            [day_name(d), e.gen] for d, e in before.items() if d not in after or after[d].gen != e.gen
        ]
        write_json(self.root / "_manifest.json", {"format": 1, "days": record, "replaced": replaced})
        self.remove_uncommitted()

    def discard(self, gen: str) -> None:
        """Removes what a failed writer left of an uncommitted generation."""
        if any(e.gen == gen for e in self.entries().values()):
            raise StorageError(
                f"generation {gen} of {self.root} is committed", hint="commit another generation over it"
            )
        for folder in self.root.glob(f"day=*/gen={gen}"):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_uncommitted(self) -> None:
        """Removes every generation that the manifest does not name: what killed writers left, and what earlier
        commits replaced. Only for the one who holds the write lock: a writer at work would lose its files."""
        manifest = self._manifest()
        kept = {(name, entry["gen"]) for name, entry in manifest["days"].items()}
        kept |= {(name, gen) for name, gen in manifest.get("replaced", ())}
        for folder in self.root.glob("day=*/gen=*"):
            if (folder.parent.name.removeprefix("day="), folder.name.removeprefix("gen=")) not in kept:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()

    def files(self, bucket: int, days: Iterable[int] | None = None) -> list[tuple[int, Path]]:
        """(day, file) of one bucket in day order; days without rows in the bucket are left out."""
        entries = self.entries()
        wanted = entries.keys() if days is None else sorted(set(days) & entries.keys())
        return [(d, self.path(d, entries[d].gen, bucket)) for d in wanted if entries[d].rows.get(bucket)]

    def read(
        self, bucket: int, days: Iterable[int] | None = None, columns: list[str] | None = None
    ) -> pa.Table | None:
        """One bucket of the given days, in day order; None where there is nothing."""
        tables = [read_parquet(path, columns) for _, path in self.files(bucket, days)]
        return pa.concat_tables(tables).combine_chunks() if tables else None
