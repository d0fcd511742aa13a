"""Files that are either whole or absent: atomic writes, clear errors on full or forbidden disks."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from plpm_ray.core.errors import ConfigError, DataError, PlpmError, StorageError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turns OS errors of a block into StorageError that says what to do.

    Args:
        action: what was being done, as in "writing runs/a/summary.json".
    """
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "the disk is full; free space or point the run folder at another disk",
            errno.EDQUOT: "the quota is used up; free space or point the run folder at another disk",
            errno.EACCES: "no permission; choose a folder that you may write to",
            errno.EROFS: "the file system is read-only; choose another folder",
        }
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(f"{action} failed: {reason}", hint=hints.get(error.errno or 0)) from error


@contextlib.contextmanager
def exclusive_lock(path: Path, busy: PlpmError) -> Iterator[None]:
    """Holds a lock file while the block runs; its folder must exist.

    It is advisory, and the operating system lets it go when the process ends, however it ends. Systems and file
    systems without such locks go on without one.

    Raises:
        PlpmError: `busy`, where another process (or another call in this one) holds it.
        StorageError: the file cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with storage_errors(f"writing {path}"):
        path.touch()
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # a file system without locks
        yield


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Makes the folder of a run and keeps other processes of this machine out of it while the block runs.

    Raises:
        ConfigError: another process (or another call in this one) is at it.
        StorageError: it cannot be written.
    """
    with storage_errors(f"writing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(
        f"{folder} is in use by another process", hint="wait for it or stop it, or give another name"
    )
    with exclusive_lock(folder / ".lock", busy):
        yield


@contextlib.contextmanager
def atomic_writer(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` that takes its name only when the block ends well."""
    path = Path(path)
    with storage_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON atomically, with sorted structure kept as given and a final newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"
    with atomic_writer(path) as file:
        file.write(text.encode())


def read_json(path: str | Path) -> Any:
    """Reads JSON.

    Raises:
        StorageError: the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    with storage_errors(f"reading {path}"):
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise StorageError(
            f"{path} is not valid JSON: {error}", hint="it was damaged or edited; write it anew"
        ) from None


def newest_run(path: str | Path, files: Iterable[str]) -> Path | None:
    """The folder at `path`, or the newest of the run of that name, whose folders end with a hash; None without one.

    Where several runs have the name, the log says which one is meant; commands show that.

    Args:
        path: a run folder, or `runs/<name>`.
        files: a folder that holds none of these is no finished run.
    """
    path, files = Path(path), tuple(files)

    def written(folder: Path) -> float:
        return max((p.stat().st_mtime for p in map(folder.joinpath, files) if p.is_file()), default=-math.inf)

    if written(path) > -math.inf:
        return path
    runs = [run for run in runs_named(path) if written(run) > -math.inf]
    found = max(runs, key=written, default=None)
    if len(runs) > 1:
        _log.info("%s means %s, the latest of %d runs of that name", path, found, len(runs))
    return found


def renew(run_dir: str | Path, files: Iterable[str]) -> bool:
    """Makes a run the newest of its name, as if these of its files were written now; False where that is not allowed."""
    try:
        for path in map(Path(run_dir).joinpath, files):
            os.utime(path)
    except OSError:
        return False
    return True


def name_of_run(run_dir: str | Path) -> Path:
    """The name that `newest_run` knows a run by: its folder without the hashes at the end."""
    run_dir = Path(run_dir)
    return run_dir.with_name(re.sub(r"(-[0-9a-f]{10})+$", "", run_dir.name))


def runs_named(path: str | Path) -> list[Path]:
    """Folders `<path>-<hash>`; those of `<path>-<word>-<hash>` are runs of another name, as of a navigator's part."""
    path = Path(path)
    name = re.compile(rf"{re.escape(path.name)}(-[0-9a-f]{{10}})+")
    return [folder for folder in path.parent.glob(f"{path.name}-*") if name.fullmatch(folder.name)]


def _plain(value: Any) -> Any:
    for method in ("tolist", "isoformat", "as_posix"):
        convert: Callable[[], Any] | None = getattr(value, method, None)
        if convert is not None:
            return convert()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_parquet(
    path: str | Path, table: pa.Table, *, compression: str = "zstd", row_group_size: int = 1 << 20
) -> None:
    """Writes one Parquet file atomically."""
    dictionary, encodings = _encodings(table.schema)
    with atomic_writer(path) as file:
        pq.write_table(
            table,
            file,
            compression=compression,
            row_group_size=row_group_size,
            use_dictionary=dictionary,  # type: ignore[arg-type]  # a list of columns is allowed too
            column_encoding=encodings,
        )


def _encodings(schema: pa.Schema) -> tuple[list[str], dict[str, str]]:
    """Columns to write with a dictionary, and the encoding of others.

    Ids, times and lists of floats hardly repeat: a dictionary of them makes files larger and twice as slow to write.
    """
    dictionary, encodings = [], {}
    for field in schema:
        kind = field.type
        if pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            encodings[field.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            if not pa.types.is_floating(kind.value_type):
                dictionary.append(f"{field.name}.list.element")
        else:
            dictionary.append(field.name)
    return dictionary, encodings


def read_parquet(
    path: str | Path, columns: list[str] | None = None, row_groups: Sequence[int] | None = None
) -> pa.Table:
    """Reads one Parquet file, or some of its row groups, with this file's own schema (no partition columns added).

    Raises:
        DataError: the file is missing or damaged, or lacks a column; the message names it.
    """
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            if columns is not None:
                missing = [c for c in columns if c not in file.schema_arrow.names]
                if missing:
                    raise DataError(
                        f"{path} has no column {missing[0]!r}", hint=f"it holds {file.schema_arrow.names}"
                    )
            if row_groups is not None:
                return file.read_row_groups(list(row_groups), columns=columns, use_threads=False)
            return file.read(columns=columns, use_threads=False)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as Parquet: {first}",
            hint="copy the file again, or remove it from the input folder",
        ) from None
