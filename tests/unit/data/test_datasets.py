"""Adapters on small files in the official layouts."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.config import Named
from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.registry import names
from plpm_ray.data.contract import DAY_MS, Warehouse
from plpm_ray.data.datasets.base import make_adapter
from plpm_ray.data.datasets.files import csv_slices, parquet_files, parquet_slices, read_csv_slice
from plpm_ray.data.datasets.msnbc import parse_sequences
from plpm_ray.data.day_table import day_number
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.quarantine import read_rows
from tests.unit.data.own_logs import PAGES, sessions, stored, write

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
MIDNIGHT = day_number("2022-04-26") * DAY_MS - 8 * 3_600_000  # local midnight in UTC ms
HOUR = 3_600_000


def impression(user: int, video: int, hour: float, tab: int, play_ms: int, click: int = 1) -> str:
    return f"{user},{video},20220426,0,{MIDNIGHT + round(hour * HOUR)},{click},0,0,0,0,0,0,{play_ms},9000,0,0,0,0,{tab}"


def kuairand(folder: Path, **logs: list[str]) -> Path:
    """A download in the official layout: log name -> lines."""
    data = folder / "KuaiRand-Pure" / "data"
    data.mkdir(parents=True)
    for name, lines in logs.items():
        (data / f"{name}.csv").write_text("\n".join([LOG_HEADER, *lines]) + "\n")
    features = [f"onehot_feat{i}" for i in range(18)]
    names_ = [
        "user_active_degree",
        "is_lowactive_period",
        "is_live_streamer",
        "is_video_author",
        "follow_user_num",
    ]
    names_ += ["follow_user_num_range", "fans_user_num", "friend_user_num", "register_days", *features]
    row = ["full_active", "0", "-124", "1", "5", '"(0,10]"', "150", "34", "799", *["1.0"] * 17, ""]
    lines = [",".join(["user_id", *names_]), *(",".join([str(u), *row]) for u in range(4))]
    (data / "user_features_pure.csv").write_text("\n".join(lines))
    return data.parent


def run(tmp_path: Path, dataset: dict, **settings) -> dict:
    return ingest(
        IngestConfig.model_validate(
            {"dataset": dataset, "output": str(tmp_path / "w"), "n_buckets": 2, **settings}
        )
    )


EARLY, LATE = "log_standard_4_08_to_4_21_pure", "log_standard_4_22_to_5_08_pure"


def test_kuairand_impressions_become_visits(tmp_path):
    folder = kuairand(
        tmp_path,
        **{
            LATE: [
                impression(1, 10, 1, 1, 2000),
                impression(1, 11, 1.1, 1, 0, click=0),  # shown, not watched
                impression(1, 12, 6.9, 4, 3000),
                impression(1, 13, 13, 9, 500),  # more than 6 h later; a small tab
                impression(2, 10, -0.5, 0, 1000),
            ],
            EARLY: [impression(2, 50, -24 * 7 - 1, 1, 100)],
        },
    )
    summary = run(tmp_path, {"name": "kuairand", "path": str(folder)})
    assert (summary["dataset"], summary["rows_in"], summary["sessions"]) == ("kuairand_pure", 6, 4)
    rows = stored(tmp_path / "w").sort_by([("user_id", "ascending"), ("entry_time", "ascending")]).to_pylist()
    first, second = rows[:2]
    assert (first["pages"], first["dwell_s"], first["video_views"], first["watch_s"]) == (
        [0, 2],
        [2, 3],
        [1, 1],
        [2, 3],
    )
    assert (first["exit_time"].timestamp() - first["entry_time"].timestamp()) == pytest.approx(5.9 * 3600 + 3)
    assert second["pages"] == [5]
    assert all(r["utc_offset_min"] == 480 and r["propensity"] is None for r in rows)
    assert summary["days"] == ["2022-04-18", "2022-04-25", "2022-04-26"]


def test_kuairand_duplicates_bad_cells_and_broken_lines_go_to_quarantine(tmp_path):
    good = [impression(u, v, v / 100, 1, 1000) for u in (1, 2) for v in range(10)]
    twice = good[3].replace(",20220426,0,", ",20220426,100,")  # the same impression, another hourmin
    broken = "1,2,3"
    odd = impression(1, 77, 1, 1, 5).replace(",5,9000,", ",soon,9000,")
    lines = [*good, twice, broken, odd, impression(3, 99, 2, 1, -4)]
    folder = kuairand(tmp_path, **{LATE: lines})
    dataset = {"name": "kuairand", "path": str(folder / "data"), "block_mb": 0.0005}
    summary = run(tmp_path, dataset, max_bad_share=0.5)
    assert summary["quarantined"] == {
        "duplicate_event": 1,
        "malformed_row": 1,
        "null_dwell": 1,
        "negative_dwell": 1,
    } | {
        "null_watch": 1,
        "negative_watch": 1,
    }
    assert summary["rows_in"] == 24
    assert summary["quarantined_rows"] == 4
    bad = {row["reason"]: row for row in read_rows(tmp_path / "w").to_pylist()}
    assert {reason: row["source_row"] for reason, row in bad.items()} == {
        "duplicate_event": 20,
        "malformed_row": 21,
        "null_dwell; null_watch": 22,
        "negative_dwell; negative_watch": 23,
    }
    assert bad["malformed_row"]["text"] == broken
    assert bad["null_dwell; null_watch"]["play_time_ms"] == "soon"
    assert bad["duplicate_event"]["page"] == "tab_1"
    with pytest.raises(DataError, match=r"3 of 24 rows .* max_bad_share .*for example row 22: .*'soon'"):
        run(tmp_path, dataset)


def test_kuairand_reads_parts_in_order_and_the_random_log_where_present(tmp_path):
    folder = kuairand(tmp_path, **{f"log_standard_4_22_to_5_08_27k_part{i}": [] for i in (1, 2, 10)})
    (folder / "data" / "log_random_4_22_to_5_08_27k.csv").write_text(
        f"{LOG_HEADER}\n{impression(1, 2, 3, 1, 5)}\n"
    )
    for part in (1, 2, 10):
        path = folder / "data" / f"log_standard_4_22_to_5_08_27k_part{part}.csv"
        path.write_text(f"{LOG_HEADER}\n{impression(1, part, 1, 1, 5)}")
    adapter = make_adapter(Named(name="kuairand", path=str(folder), random=True))
    assert [Path(i.path).stem.rsplit("_", 1)[-1] for i in adapter.inputs()] == [
        "part1",
        "part2",
        "part10",
        "27k",
    ]
    assert adapter.info(2).name == "kuairand_27k"
    assert len(make_adapter(Named(name="kuairand", path=str(folder), random=False)).inputs()) == 3
    with pytest.raises(DataError, match=r"holds no log_standard_\*\.csv"):
        make_adapter(Named(name="kuairand", path=str(tmp_path))).inputs()


def test_kuairand_profiles(tmp_path):
    folder = kuairand(tmp_path, **{LATE: [impression(1, 10, 1, 1, 2000)]})
    summary = run(tmp_path, {"name": "kuairand", "path": str(folder)})
    assert summary["profile_users"] == 4
    warehouse = Warehouse.open(tmp_path / "w")
    table = pa.concat_tables([pq.read_table(warehouse.users_file(b)) for b in range(2)])
    row = table.to_pylist()[0]
    assert (row["register_days"], row["is_live_streamer"], row["onehot_feat0"], row["onehot_feat17"]) == (
        799.0,
        "-124",
        "1.0",
        None,
    )


HEAD = "% Different categories found in input file:\n\nfrontpage news tech on-air\n\n\n% Sequences:\n\n"


@pytest.mark.parametrize("packed", [True, False])
def test_msnbc_sequences(tmp_path, packed):
    text = HEAD + "1 1 \n2 \n3 2 2 4 2 2 2 3 3 \n4 4\n"
    if packed:
        path = tmp_path / "msnbc990928.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__MACOSX/._msnbc990928.seq", b"\x00\x05")
            archive.writestr("msnbc990928.seq", text)
    else:
        path = tmp_path / "msnbc990928.seq"
        path.write_text(text)
    summary = run(tmp_path, {"name": "msnbc", "path": str(path if packed else tmp_path), "spread_days": 2})
    assert (summary["rows_in"], summary["sessions"], summary["users"]) == (4, 4, 4)
    assert summary["landing_shares"] == {"frontpage": 0.25, "news": 0.25, "tech": 0.25, "on-air": 0.25}
    rows = stored(tmp_path / "w").sort_by("session_id").to_pylist()
    assert [row["pages"] for row in rows] == [[0], [1], [2, 1, 3, 1, 2], [3]]
    assert [row["video_views"] for row in rows] == [[2], [1], [1, 2, 1, 3, 2], [2]]
    assert rows[2]["dwell_s"] == [60, 120, 60, 180, 120]
    assert (rows[2]["exit_time"] - rows[2]["entry_time"]).total_seconds() == 540
    assert summary["days"] == ["1999-09-28", "1999-09-29"]


def test_msnbc_lines_that_are_empty_or_strange(tmp_path):
    path = tmp_path / "a.seq"
    path.write_text(HEAD + "1 1 \n\n9 1\n4 4")
    summary = run(tmp_path, {"name": "msnbc", "path": str(path)}, max_bad_share=0.5)
    assert summary["quarantined"] == {
        "unknown_page": 2,
        "empty_pages": 1,
    }  # an empty line has no landing page either
    assert sorted(read_rows(tmp_path / "w")["source_row"].to_pylist()) == [1, 2]
    with pytest.raises(DataError, match="sequence 1 holds 'x'"):
        parse_sequences(b"1 2\n3 x\n", "f")
    path.write_text("1 2\n")
    with pytest.raises(DataError, match="list of categories"):
        run(tmp_path, {"name": "msnbc", "path": str(path)})
    (tmp_path / "b.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"b\.zip is damaged"):
        run(tmp_path, {"name": "msnbc", "path": str(tmp_path / "b.zip")})


def test_parse_sequences_against_plain_python():
    rng = np.random.default_rng(0)
    lines = [rng.integers(1, 130, rng.integers(1, 9)).tolist() for _ in range(200)]
    text = "".join(" ".join(map(str, line)) + " \n" for line in lines).encode()
    values, lengths = parse_sequences(text, "f")
    assert values.tolist() == [v for line in lines for v in line]
    assert lengths.tolist() == [len(line) for line in lines]


def test_own_logs_with_other_names_units_strings_and_32_pages(tmp_path):
    pages = [f"p{i}" for i in range(32)]
    raw = pa.table(
        {
            "uid": ["a", "b"],
            "sid": ["s1", "s2"],
            "start": pa.array([1_714_600_000, 1_714_600_500]),
            "end": pa.array([1_714_600_060, 1_714_600_560]),
            "land": ["P31", "p0"],
            "walk": [["P31", "p7"], ["p0"]],
            "ms": pa.array([[1500, 500], [250]], pa.list_(pa.int32())),
            "lives": pa.array([1, None], pa.int8()),
            "net": pa.array(["wifi", None]).dictionary_encode(),
            "unused": [0, 0],
        }
    )
    dataset = {
        "name": "canonical",
        "path": str(write(tmp_path / "logs" / "day=2024-05-01", raw).parent / "*" / "*.parquet"),
        "title": "shop",
        "pages": [*pages[:31], {"name": "p31", "values": ["P31"]}],
        "columns": {"user_id": "uid", "session_id": "sid", "entry_time": "start", "exit_time": "end"}
        | {"landing_page": "land", "pages": "walk", "dwell_s": "ms", "live_followed": "lives"},
        "context": {"live_followed": "numeric", "net": "categorical"},
        "time_unit": "s",
        "duration_unit": "ms",
        "utc_offset_min": -300,
    }
    summary = run(tmp_path, dataset)
    info = Warehouse.open(tmp_path / "w").info
    assert (info.name, info.user_id, info.session_id, info.propensity_known) == (
        "shop",
        "string",
        "string",
        False,
    )
    rows = stored(tmp_path / "w").sort_by("user_id").to_pylist()
    assert rows[0]["pages"] == [31, 7]
    assert rows[0]["dwell_s"] == [1.5, 0.5]
    assert (rows[0]["live_followed"], rows[0]["net"], rows[0]["utc_offset_min"]) == (1.0, "wifi", -300)
    assert (rows[1]["live_followed"], rows[1]["net"]) == (None, None)
    assert summary["days"] == ["2024-05-01"]
    assert len(summary["landing_shares"]) == 32


def test_parquet_files_are_cut_at_row_groups(tmp_path):
    folder = write(tmp_path / "logs", sessions(50), sessions(7, 1), row_group_size=10)
    (folder / "_metadata.parquet").write_bytes(b"no data")
    slices, schemas = parquet_slices(parquet_files(str(folder)), rows_per_slice=20)
    assert [(s.start, s.stop, s.first_row) for s in slices] == [(0, 2, 0), (2, 4, 20), (4, 5, 40), (0, 1, 0)]
    assert len(schemas) == 2


def test_csv_slices_cover_every_line_once(tmp_path):
    path = tmp_path / "a.csv"
    lines = [f"{i},{'x' * (i % 37)}" for i in range(300)]
    path.write_bytes("\n".join(["a,b", *lines]).encode())
    for size in (1, 50, 1000, 10**6):
        found = []
        for item in csv_slices(path, size, ["a"]):
            raw = read_csv_slice(item, {"a": pa.int64(), "b": pa.string()})
            values = raw.table["a"].to_pylist()
            assert values[0] == item.first_row
            found += values
        assert found == list(range(300))
    with pytest.raises(DataError, match=r"a\.csv has no column 'c'"):
        csv_slices(path, 10, ["c"])


def test_adapters_are_found_by_name():
    assert {"kuairand", "msnbc", "canonical", "world"} <= set(names("dataset"))
    with pytest.raises(ConfigError, match="unknown key 'gap'"):
        make_adapter(Named(name="kuairand", path="x", gap=1))
    assert len(PAGES) == 4
