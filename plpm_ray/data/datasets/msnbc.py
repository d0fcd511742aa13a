"""MSNBC anonymous web data (UCI): page categories seen by each visitor of msnbc.com on 28 September 1999.

The file has one line per visitor and nothing but the categories in order: **no users, no times, no durations**. So that
the sessions fit the tables, these are made up, and made up plainly:

- every line is a user of its own, with user_id = session_id = the line's number among the sequences (from 0);
- sessions begin equally spaced over `spread_days` local days from `first_day` on, in file order;
- every page view lasts 60 seconds.

Real are the pages, their order, the views on each (`video_views` counts page views here) and the landing page, the
first of the line. Consecutive equal categories are one page with several views.
"""

from __future__ import annotations

import datetime as dt
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.errors import DataError
from plpm_ray.core.pages import Page, PageCatalogue
from plpm_ray.core.registry import register
from plpm_ray.core.storage import storage_errors
from plpm_ray.data.contract import DAY_MS, MINUTE_MS, DatasetInfo
from plpm_ray.data.datasets.base import Adapter, Raw, Slice
from plpm_ray.data.day_table import day_number
from plpm_ray.data.validate import Reading

VIEW_MS = 60_000
_HEADER_MARK = b"% Different categories"
_ROWS_MARK = b"% Sequences:"


class MsnbcConfig(StrictConfig):
    """Settings of the MSNBC adapter."""

    path: Path = Field(description="msnbc990928.zip, the .seq file in it, or a folder with one of them")
    first_day: dt.date = Field(
        default=dt.date(1999, 9, 28), description="local day of the first session; the log's own by default"
    )
    spread_days: int = Field(
        default=1,
        ge=1,
        le=366,
        description="days over which the made-up times are spread; more than 1 only to try a split by time",
    )
    utc_offset_min: int = Field(
        default=-480, ge=-840, le=840, description="local time; the log's day is Pacific Standard Time"
    )


@register("dataset", "msnbc")
class Msnbc(Adapter):
    """Sequences of page categories as sessions, with made-up users, times and durations."""

    Config = MsnbcConfig
    config: MsnbcConfig
    unique_sessions = True

    def info(self, n_buckets: int) -> DatasetInfo:
        path = self._path()
        return DatasetInfo(name="msnbc", pages=_catalogue(_content(path, 1 << 16), path), n_buckets=n_buckets)

    def inputs(self) -> list[Slice]:
        return [Slice(str(self._path()))]

    def read(self, item: Slice) -> Raw:
        path = Path(item.path)
        content = _content(path)
        lines = content[_rows_start(content, path) :]
        pages, lengths = parse_sequences(lines, item.path)
        n = len(lengths)
        start_ms = day_number(self.config.first_day) * DAY_MS - self.config.utc_offset_min * MINUTE_MS
        entry = start_ms + (
            np.arange(n, dtype=np.float64) * (self.config.spread_days * DAY_MS / max(n, 1))
        ).astype(np.int64)
        first = np.zeros(len(pages), dtype=bool)
        starts = (np.cumsum(lengths) - lengths)[lengths > 0]
        first[1:] = pages[1:] != pages[:-1]
        first[starts] = True
        at = np.flatnonzero(first)
        views = np.diff(np.append(at, len(pages)))
        runs = np.bincount(np.repeat(np.arange(n), lengths)[at], minlength=n)
        landing = np.zeros(n, dtype=np.int64)
        landing[lengths > 0] = pages[starts]
        offsets = pa.array(np.concatenate([[0], np.cumsum(runs)]).astype(np.int32))
        number = pa.array(np.arange(n, dtype=np.int64))
        return Raw(
            pa.table(
                {
                    "user_id": number,
                    "session_id": number,
                    "entry_time": pa.array(entry),
                    "exit_time": pa.array(entry + lengths * VIEW_MS),
                    "landing_page": pa.array(landing),
                    "pages": pa.ListArray.from_arrays(offsets, pa.array(pages[at])),
                    "dwell_s": pa.ListArray.from_arrays(offsets, pa.array(views * (VIEW_MS / 1000))),
                    "video_views": pa.ListArray.from_arrays(offsets, pa.array(views)),
                }
            )
        )

    def reading(self, info: DatasetInfo) -> Reading:
        return Reading(info, utc_offset_min=self.config.utc_offset_min)

    def _path(self) -> Path:
        given = self.config.path.expanduser().absolute()
        found = sorted([*given.glob("*.seq"), *given.glob("msnbc*.zip")]) if given.is_dir() else [given]
        if not found or not found[0].is_file():
            raise DataError(
                f"{given} is not there, or holds no .seq or .zip file",
                hint="`path` is msnbc990928.zip or the .seq in it",
            )
        return found[0]


def _content(path: Path, size: int = -1) -> bytes:
    """The file's first `size` bytes (all by default), unpacked if it is a zip."""
    with storage_errors(f"reading {path}"):
        if path.suffix != ".zip":
            with open(path, "rb") as file:
                return file.read(size)
        try:
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if n.endswith(".seq") and "__MACOSX" not in n]
                if not names:
                    raise DataError(f"{path} holds no .seq file", hint="take msnbc990928.zip as published")
                with archive.open(names[0]) as file:
                    return file.read(size)
        except (zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{path} is damaged: {error}", hint="copy the file again") from None


def parse_sequences(lines: bytes, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Lines of category numbers, in one pass over the bytes.

    Args:
        lines: ASCII, numbers separated by blanks, one sequence a line.
        path: for messages.

    Returns:
        (m,) int64 numbers of all lines, one line after the other; (n,) int64 how many each line has.

    Raises:
        DataError: anything but digits, blanks and line ends; names the line.
    """
    raw = np.frombuffer(lines, dtype=np.uint8)
    digit = (raw >= ord("0")) & (raw <= ord("9"))
    newline = raw == ord("\n")
    strange = np.flatnonzero(~(digit | newline | (raw == ord(" ")) | (raw == ord("\r"))))
    if len(strange):
        line = int(np.count_nonzero(newline[: strange[0]]))
        raise DataError(
            f"{path}: sequence {line:,} holds {chr(raw[strange[0]])!r}",
            hint="sequences are category numbers only",
        )
    starts = digit.copy()
    starts[1:] &= ~digit[:-1]
    at = np.flatnonzero(starts)
    values = (raw[at] - np.uint8(ord("0"))).astype(np.int64)
    open_ = np.arange(len(at))
    while len(open_):
        at[open_] += 1
        open_ = open_[at[open_] < len(raw)]
        open_ = open_[digit[at[open_]]]
        values[open_] = values[open_] * 10 + raw[at[open_]] - ord("0")
    line_of = np.cumsum(newline)[np.flatnonzero(starts)]
    n = int(np.count_nonzero(newline)) + int(len(raw) > 0 and not newline[-1])
    return values, np.bincount(line_of, minlength=n)


def _catalogue(head: bytes, path: Path) -> PageCatalogue:
    """The categories named in the file's head, numbered from 1."""
    lines = [line.strip() for line in head.split(b"\n")]
    marks = [i for i, line in enumerate(lines) if line.startswith(_HEADER_MARK)]
    names = (
        next((line for line in lines[marks[0] + 1 :] if line), b"").decode("ascii", "replace").split()
        if marks
        else []
    )
    if len(names) < 2:
        raise DataError(
            f"{path} does not begin with the list of categories", hint="take msnbc990928.seq as published"
        )
    return PageCatalogue(pages=tuple(Page(name=name, values=(k,)) for k, name in enumerate(names, 1)))


def _rows_start(content: bytes, path: Path) -> int:
    mark = content.find(_ROWS_MARK)
    if mark < 0:
        raise DataError(
            f"{path} has no line {_ROWS_MARK.decode()!r}", hint="take msnbc990928.seq as published"
        )
    end = content.index(b"\n", mark) + 1
    while content[end : end + 1] in (b"\n", b"\r"):
        end += 1
    return end
