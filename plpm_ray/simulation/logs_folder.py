"""The folder of simulated logs: which files a part has, when it is whole, and what the folder as a whole holds.

sessions/part-00000.parquet   canonical sessions, pages by name        users/part-00000.parquet   profiles
potential_outcomes/part-00000.parquet, assignments.parquet, responses.parquet                     with a trial
parts/part-00000.json         written last: the part is whole          manifest.json              config and totals
world.yaml                    the world                                dataset.yaml               for `plpm data`
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import StorageError
from plpm_ray.core.storage import (
    atomic_writer,
    exclusive_lock,
    read_json,
    read_parquet,
    storage_errors,
    write_json,
    write_parquet,
)
from plpm_ray.simulation.logs import content_hash

_OWN = {".write.lock", "summary.json"}
_HANDED_OUT = ("sessions", "users", "potential_outcomes")  # responses become one file


@dataclass(frozen=True)
class Part:
    """What one task has written.

    Attributes:
        key: hash of the config it belongs to.
        rows, hashes, bytes: table -> rows, hash of the content, size of the file.
        landings: sessions by landing page.
    """

    key: str
    rows: dict[str, int]
    hashes: dict[str, str]
    bytes: dict[str, int]
    landings: dict[str, int]


class LogsFolder:
    """See the module's text.

    Args:
        root: the folder; `open_for_writing` makes it.
        identity: everything on which the content depends.
    """

    def __init__(self, root: str | Path, identity: Mapping[str, Any]) -> None:
        self.root, self.identity = Path(root), dict(identity)
        self.key = config_hash(self.identity, 16)

    @contextlib.contextmanager
    def open_for_writing(self) -> Iterator[None]:
        """Locks the folder and claims it for this config.

        Raises:
            StorageError: it holds something else, another run writes to it, or it cannot be made.
        """
        busy = StorageError(f"another run writes to {self.root}", hint="wait until it has ended")
        with storage_errors(f"creating {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.root / ".write.lock", busy):
            self._claim()
            for left in self.root.glob("*/.*.tmp"):  # of tasks that were killed
                with contextlib.suppress(OSError):
                    os.unlink(left)
            yield

    def _claim(self) -> None:
        manifest = self.root / "manifest.json"
        if manifest.exists():
            held = read_json(manifest)
            differing = sorted(_differing(held.get("identity"), self.identity))
            if differing:
                raise StorageError(
                    f"{self.root} holds the logs of another config; it differs in {', '.join(differing)}",
                    hint="give `output` a folder of its own, or remove this one",
                )
            return
        if any(item.name not in _OWN for item in self.root.iterdir()):
            raise StorageError(
                f"{self.root} is not empty and holds no simulated logs", hint="give `output` a new folder"
            )
        write_json(manifest, {"identity": self.identity, "complete": False})

    def file(self, table: str, number: int) -> Path:
        """File of a table of one part."""
        if table in _HANDED_OUT:
            return self.root / table / f"part-{number:05d}.parquet"
        return self.root / "parts" / f"{table}-{number:05d}.parquet"

    def _record(self, number: int) -> Path:
        return self.root / "parts" / f"part-{number:05d}.json"

    def part(self, number: int) -> Part | None:
        """A part of this config, None where it is not there or not whole."""
        if not self._record(number).is_file():
            return None
        part = Part(**read_json(self._record(number)))
        sizes = {name: self.file(name, number) for name in part.bytes}
        whole = all(
            path.is_file() and path.stat().st_size == part.bytes[name] for name, path in sizes.items()
        )
        return part if whole and part.key == self.key else None

    def write_part(self, number: int, tables: Mapping[str, pa.Table]) -> None:
        """Writes the tables of a part, then the record that it is whole."""
        for name, table in tables.items():
            write_parquet(self.file(name, number), table)
        counts = tables["sessions"]["landing_page"].value_counts()
        landings = dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))
        part = Part(
            self.key,
            {name: table.num_rows for name, table in tables.items()},
            {name: content_hash(table) for name, table in tables.items()},
            {name: self.file(name, number).stat().st_size for name in tables},
            landings,
        )
        write_json(self._record(number), asdict(part))

    def join(self, name: str, tables: Iterable[pa.Table]) -> None:
        """Writes tables one after the other into one file, a row group each."""
        with atomic_writer(self.root / f"{name}.parquet") as file:
            writer: pq.ParquetWriter | None = None
            for table in tables:
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
            if writer is not None:
                writer.close()

    def parts_of(self, table: str, parts: int) -> Iterator[pa.Table]:
        """A table part by part."""
        return (read_parquet(self.file(table, number)) for number in range(parts))

    def write_yaml(self, name: str, content: Any, comment: str = "") -> None:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        with atomic_writer(self.root / name) as file:
            file.write((f"# {comment}\n{text}" if comment else text).encode())

    def finish(self, totals: Mapping[str, Any]) -> None:
        """Marks the folder as complete."""
        write_json(self.root / "manifest.json", {"identity": self.identity, "complete": True, **totals})


def totals_of(parts: Iterable[Part]) -> dict[str, Any]:
    """Rows by table, bytes, landing shares and the hash of all content, parts in order."""
    rows: dict[str, int] = {}
    landings: dict[str, int] = {}
    size, digest = 0, hashlib.sha256()
    for number, part in enumerate(parts):
        for kept, added in ((rows, part.rows), (landings, part.landings)):
            for name, count in added.items():
                kept[name] = kept.get(name, 0) + count
        size += sum(part.bytes.values())
        digest.update(
            "".join(f"{number} {name} {part.hashes[name]}\n" for name in sorted(part.hashes)).encode()
        )
    shares = {page: round(count / max(rows["sessions"], 1), 6) for page, count in sorted(landings.items())}
    return {"rows": rows, "bytes": size, "landing_shares": shares, "hash": digest.hexdigest()[:32]}


def _differing(held: Any, wanted: Any, path: str = "") -> set[str]:
    """Dotted keys in which two JSON-like values differ."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        keys = held.keys() | wanted.keys()
        found = (_differing(held.get(k), wanted.get(k), f"{path}.{k}" if path else str(k)) for k in keys)
        return set().union(*found)
    return set() if held == wanted else {path or "its manifest"}
