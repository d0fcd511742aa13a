"""The work of benchmarks/data_plane.py as one would write it with pyarrow and with polars."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

GAP_MS = 30 * 60_000


def run_pyarrow(files: list[Path], out: Path, n_buckets: int) -> None:
    """Table.sort_by, then group_by runs of equal pages, then group_by sessions.

    Arrow sorts stably and the files are in time order, so the user is the only key.
    """
    table = pa.concat_tables([pq.read_table(file, use_threads=False) for file in files])
    table = table.sort_by("user_id").combine_chunks()
    time_ms = table["time_ms"].cast(pa.int64())
    end = pc.add(time_ms, table["duration_ms"].cast(pa.int64()))

    def differs(column: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))

    def count(flags: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.cumulative_sum(pa.chunked_array([pa.array([0]), *flags.cast(pa.int64()).chunks]))

    pause = pc.greater(pc.subtract(time_ms.slice(1), end.slice(0, len(end) - 1)), GAP_MS)
    new_session = pc.or_(differs(table["user_id"]), pause)
    table = table.append_column("end", end).append_column("session", count(new_session))
    table = table.append_column("run", count(pc.or_(new_session, differs(table["page"]))))
    first = [(c, "first") for c in ("session", "user_id", "time_ms", "page")]
    runs = table.group_by("run", use_threads=False).aggregate(
        [*first, ("end", "last"), ("duration_ms", "sum")]
    )
    dwell = pc.divide(runs["duration_ms_sum"].cast(pa.float64()), 1000.0).cast(pa.float32())
    wanted = [
        ("user_id_first", "first"),
        ("time_ms_first", "first"),
        ("end_last", "last"),
        ("page_first", "first"),
    ]
    wanted += [("page_first", "list"), ("dwell_s", "list")]
    grouped = (
        runs.append_column("dwell_s", dwell).group_by("session_first", use_threads=False).aggregate(wanted)
    )
    names = ["user_id", "entry_time", "exit_time", "landing_page", "pages", "dwell_s"]
    sessions = grouped.drop_columns(["session_first"]).rename_columns(names)
    exits = sessions["exit_time"].cast(pa.timestamp("ms", "UTC"))
    sessions = sessions.set_column(2, "exit_time", exits)
    pq.write_table(sessions, out / "sessions.parquet", compression="zstd")


def run_polars(files: list[Path], out: Path, n_buckets: int, tuned: bool = False) -> None:
    """The lazy engine: sort, flags by shift, and group_by runs and then sessions.

    Tuned by hand: a stable sort by user alone (the files are in time order), dwell from cumulative sums, one group_by.
    """
    import polars as pl

    user, at, page, end, dwell = (pl.col(c) for c in ("user_id", "time_ms", "page", "end", "duration_ms"))
    pause = (at - end.shift(1)).dt.total_milliseconds() > GAP_MS
    events = pl.scan_parquet(files)
    events = events.sort("user_id", maintain_order=True) if tuned else events.sort("user_id", "time_ms")
    events = (
        events.with_columns(
            end=at + pl.duration(milliseconds=dwell, time_unit="ms"), dwell=dwell.cast(pl.Int64)
        )
        .with_columns(new_session=((user != user.shift(1)) | pause).fill_null(True))
        .with_columns(
            session=pl.col("new_session").cum_sum(),
            new_run=(pl.col("new_session") | (page != page.shift(1))).fill_null(True),
        )
    )
    if tuned:
        events = events.with_columns(
            before=pl.col("dwell").cum_sum() - pl.col("dwell"), total=pl.col("dwell").sum()
        )
        last = events.filter(pl.col("new_session").shift(-1).fill_null(True)).select(exit_time="end")
        runs = events.filter(pl.col("new_run"))
        spent = pl.col("before").shift(-1).fill_null(pl.col("total")) - pl.col("before")
        runs = runs.with_columns(dwell_s=(spent / 1000).cast(pl.Float32))
        exits = []
    else:
        runs = events.with_columns(run=pl.col("new_run").cum_sum()).group_by("run", maintain_order=True)
        spent = (pl.col("dwell").sum() / 1000).cast(pl.Float32)
        runs = runs.agg(pl.col("session", "user_id", "time_ms", "page").first(), end.last(), dwell_s=spent)
        exits, last = [end.last().alias("exit_time")], None
    firsts = [user.first(), at.first().alias("entry_time"), *exits, page.first().alias("landing_page")]
    sessions = runs.group_by("session", maintain_order=True).agg(
        *firsts, page.alias("pages"), pl.col("dwell_s")
    )
    if last is not None:
        sessions = pl.concat([sessions, last], how="horizontal")
    sessions.collect().write_parquet(out / "sessions.parquet", compression="zstd", compression_level=1)
