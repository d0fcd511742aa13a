"""The ingest as a whole: nothing lost, whole days or nothing, the same rows however it is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plpm_ray.cli import commands
from plpm_ray.core.errors import ConfigError, DataError, StorageError
from plpm_ray.core.hashing import bucket_of, user_hash
from plpm_ray.core.storage import read_json
from plpm_ray.data import ingest_tasks
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name, day_number
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.ingest_tasks import local_days
from plpm_ray.data.quarantine import read_rows
from plpm_ray.data.staging import staging
from tests.unit.data.own_logs import changed, config, sessions, snapshot, stored, write


def leftovers(output: Path) -> list[str]:
    return [p.name for p in output.glob(".staging-*")]


def test_sessions_lie_in_their_day_and_bucket_sorted(tmp_path):
    logs = write(tmp_path / "logs", sessions(80, 0), sessions(70, 1))
    summary = ingest(config(logs, tmp_path / "w"))
    warehouse = Warehouse.open(tmp_path / "w")
    assert (summary["rows_in"], summary["sessions"], summary["quarantined_rows"]) == (150, 150, 0)
    assert summary["days"] == [day_name(d) for d in warehouse.sessions.days()]
    assert sum(summary["landing_shares"].values()) == pytest.approx(1, abs=1e-5)
    seen = 0
    for bucket in range(3):
        for day, path in warehouse.sessions.files(bucket):
            table = pq.read_table(path, partitioning=None)
            assert table.schema.equals(warehouse.info.sessions_schema)
            assert set(local_days(table)) == {day}
            assert (bucket_of(user_hash(table["user_id"]), 3) == bucket).all()
            keys = table.select(["user_id", "entry_time", "session_id"]).to_pylist()
            assert keys == sorted(keys, key=lambda k: tuple(k.values()))
            seen += table.num_rows
    assert seen == 150
    assert summary["users"] == len(set(stored(tmp_path / "w")["user_id"].to_pylist()))
    assert not leftovers(tmp_path / "w")


FAULTS = {
    "null_user": {"user_id": None},
    "unknown_page": {"landing_page": "nowhere"},
    "propensity_range": {"propensity": 1.5},
    "empty_pages": {"pages": [], "dwell_s": [], "video_views": []},
    "null_time": {"exit_time": None},
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(
        st.tuples(st.integers(0, 59), st.sampled_from(sorted(FAULTS))), max_size=8, unique_by=lambda f: f[0]
    ),
    copies=st.lists(st.integers(0, 59), max_size=6),
    cut=st.integers(1, 59),
    n_buckets=st.integers(1, 5),
)
def test_every_row_becomes_a_session_or_goes_to_quarantine(tmp_path_factory, faults, copies, cut, n_buckets):
    tmp_path = tmp_path_factory.mktemp("ingest")
    table = sessions(60)
    for row, fault in faults:
        table = changed(table, row, **FAULTS[fault])
    again = table.take(pa.array(copies, pa.int64()))
    logs = write(
        tmp_path / "logs", table.slice(0, cut), pa.concat_tables([table.slice(cut), again]), row_group_size=7
    )
    summary = ingest(config(logs, tmp_path / "w", max_bad_share=1.0, n_buckets=n_buckets))
    kept = stored(tmp_path / "w")
    bad = read_rows(tmp_path / "w", summary["ingest_id"])
    assert summary["rows_in"] == 60 + len(copies) == summary["sessions"] + summary["quarantined_rows"]
    assert kept.num_rows == summary["sessions"]
    assert bad.num_rows == summary["quarantined_rows"]
    faulty = {row for row, _ in faults}
    good = [i for i in table["session_id"].to_pylist() if i - 1000 not in faulty]
    assert sorted(kept["session_id"].to_pylist()) == good
    assert summary["quarantined"].get("duplicate_session_id", 0) == sum(row not in faulty for row in copies)
    # source_file and source_row lead back to the row
    for entry in bad.to_pylist():
        source = pq.read_table(entry["source_file"], partitioning=None)
        assert source["session_id"][entry["source_row"]].as_py() == entry["session_id"]


def test_quarantine_keeps_reason_source_and_original_values(tmp_path):
    table = changed(sessions(200), 150, dwell_s=[-3.0], pages=["shop"], landing_page="shop", video_views=[1])
    summary = ingest(config(write(tmp_path / "logs", table), tmp_path / "w"))
    assert summary["quarantined"] == {"negative_dwell": 1}
    row = read_rows(tmp_path / "w").to_pylist()[0]
    assert (row["reason"], row["source_row"]) == ("negative_dwell", 150)
    assert row["source_file"] == str(tmp_path / "logs" / "part-0.parquet")
    assert (row["pages"], row["dwell_s"]) == (["shop"], [-3.0])
    assert read_json(Path(summary["quarantine"]) / "summary.json")["sessions"] == 199


def test_the_first_of_rows_with_one_session_id_stays_across_users_and_files(tmp_path):
    first, second = sessions(40, 0), sessions(40, 1)
    taken = first["session_id"][5].as_py()
    second = changed(second, 3, session_id=taken, user_id=11)
    second = changed(second, 30, session_id=taken, user_id=2)
    summary = ingest(config(write(tmp_path / "logs", first, second), tmp_path / "w", max_bad_share=0.05))
    assert summary["quarantined"] == {"duplicate_session_id": 2}
    bad = read_rows(tmp_path / "w").sort_by("source_row").to_pylist()
    assert [(Path(r["source_file"]).name, r["source_row"]) for r in bad] == [
        ("part-1.parquet", 3),
        ("part-1.parquet", 30),
    ]
    assert bad[0]["pages"] == second["pages"][3].as_py()  # page names, not positions
    kept = stored(tmp_path / "w").filter(pa.compute.field("session_id") == taken)
    assert kept["user_id"].to_pylist() == [first["user_id"][5].as_py()]


def test_too_many_bad_rows_stop_the_run_and_nothing_is_committed(tmp_path):
    good, output = sessions(100, 0), tmp_path / "w"
    ingest(config(write(tmp_path / "logs", good), output))
    before = snapshot(output)
    bad = sessions(100, 1)
    for row in (10, 20):
        bad = changed(bad, row, landing_page="home", pages=["home"], dwell_s=[-1.0], video_views=[0])
    write(tmp_path / "logs", good, changed(bad, 30, user_id=None))
    with pytest.raises(DataError) as error:
        ingest(config(tmp_path / "logs", output))
    text = str(error.value)
    assert "3 of 200 rows (1.50%)" in text
    assert "negative_dwell 2, null_user 1" in text
    assert "part-1.parquet: negative_dwell in 2 rows, for example row 10:" in text
    assert "dwell_s=[-1.0]" in text
    assert snapshot(output) == before
    assert not leftovers(output)
    summaries = [read_json(p) for p in sorted((output / "quarantine").glob("*/summary.json"))]
    assert next(s for s in summaries if "refused" in s)["quarantined_rows"] == 3


def test_too_many_duplicates_stop_the_run_too(tmp_path):
    table = sessions(50)
    logs = write(tmp_path / "logs", table, table.slice(0, 1))
    with pytest.raises(DataError, match="duplicate_session_id in 1 rows, for example row 0: user_id="):
        ingest(config(logs, tmp_path / "w"))
    assert not (tmp_path / "w" / "manifest.json").exists()
    assert not list((tmp_path / "w").rglob("day=*"))


def test_running_again_changes_nothing_and_a_new_day_only_adds(tmp_path):
    table = sessions(120, days=4)
    day = (pa.compute.floor_temporal(table["entry_time"], unit="day")).cast(pa.date32()).to_pylist()
    last = np.array([d == max(day) for d in day])
    output = tmp_path / "w"
    logs = write(tmp_path / "logs", table.filter(pa.array(~last)))
    assert len(ingest(config(logs, output))["changed_days"]) == 3
    before = snapshot(output)
    assert ingest(config(logs, output))["changed_days"] == []
    assert snapshot(output) == before
    write(logs, table.filter(pa.array(~last)), table.filter(pa.array(last)))
    assert ingest(config(logs, output))["changed_days"] == [str(max(day))]
    after = snapshot(output)
    assert before.items() <= after.items()
    assert {Path(p).parts[1] for p in after.keys() - before.keys()} == {f"day={max(day)}"}


def test_one_day_is_replaced_and_nothing_else(tmp_path):
    table, output = sessions(120, days=4), tmp_path / "w"
    logs = write(tmp_path / "logs", table)
    ingest(config(logs, output))
    before, whole = snapshot(output), stored(output).sort_by("session_id")
    touched = pa.array([0.5] * 120)
    write(tmp_path / "logs", table.set_column(table.column_names.index("propensity"), "propensity", touched))
    summary = ingest(config(logs, output, days=["2024-05-02", "2024-05-02"]))
    assert summary["changed_days"] == summary["days"] == ["2024-05-02"]
    assert summary["rows_read"] == 120 == summary["rows_in"] + summary["rows_outside"]
    assert summary["rows_in"] == summary["sessions"]
    after = snapshot(output)
    assert {p for p in before if "day=2024-05-02" not in p} == {p for p in after if "day=2024-05-02" not in p}
    assert all(after[p] == before[p] for p in after if "day=2024-05-02" not in p)
    rows = stored(output).sort_by("session_id")
    inside = local_days(rows) == day_number("2024-05-02")
    assert rows["propensity"].to_pylist() == np.where(inside, 0.5, whole["propensity"].to_numpy()).tolist()


def test_an_id_of_an_earlier_day_is_taken(tmp_path):
    table, output = sessions(120, days=4), tmp_path / "w"
    days = np.array([str(t.as_py().date()) for t in table["entry_time"]])
    ingest(config(write(tmp_path / "a", table.filter(pa.array(days < "2024-05-04"))), output))
    new = changed(table.filter(pa.array(days == "2024-05-04")), 2, session_id=table["session_id"][0].as_py())
    summary = ingest(config(write(tmp_path / "b", new), output, max_bad_share=0.5))
    assert summary["quarantined"] == {"duplicate_session_id": 1}
    assert stored(output).num_rows == 119


def test_a_new_day_may_meet_buckets_without_users(tmp_path):
    table, output = sessions(12, days=2, users=1), tmp_path / "w"
    days = np.array([str(t.as_py().date()) for t in table["entry_time"]])
    for day in ("2024-05-01", "2024-05-02"):
        ingest(config(write(tmp_path / day, table.filter(pa.array(days == day))), output, n_buckets=8))
    assert stored(output).num_rows == 12


def test_later_files_may_lack_propensities(tmp_path):
    table, output = sessions(60), tmp_path / "w"
    days = np.array([str(t.as_py().date()) for t in table["entry_time"]])
    ingest(config(write(tmp_path / "a", table.filter(pa.array(days < "2024-05-04"))), output))
    last = table.filter(pa.array(days == "2024-05-04")).drop_columns(["propensity"])
    ingest(config(write(tmp_path / "b", last), output))
    assert stored(output)["propensity"].null_count == last.num_rows


def test_files_without_rows_name_the_folder(tmp_path):
    (tmp_path / "log_standard_1.csv").write_text("user_id,video_id,time_ms,is_click,play_time_ms,tab\n")
    dataset = {"name": "kuairand", "path": str(tmp_path), "profile": {}}
    empty = IngestConfig.model_validate({"dataset": dataset, "output": str(tmp_path / "w")})
    with pytest.raises(DataError, match=f"{tmp_path}: the files hold no rows"):
        ingest(empty)


def test_a_day_that_lost_its_sessions_disappears(tmp_path):
    table, output = sessions(120, days=4), tmp_path / "w"
    logs = write(tmp_path / "logs", table)
    ingest(config(logs, output))
    days = np.array([str(t.as_py().date()) for t in table["entry_time"]])
    write(logs, table.filter(pa.array(days != "2024-05-03")))
    summary = ingest(config(logs, output, days=["2024-05-02", "2024-05-03"]))
    assert summary["dropped_days"] == ["2024-05-03"]
    assert Warehouse.open(output).sessions.days() == [day_number(f"2024-05-0{d}") for d in (1, 2, 4)]
    with pytest.raises(DataError, match="no sessions enter on 2025-01-01"):
        ingest(config(logs, output, days=["2025-01-01", "2025-01-02"]))


def test_a_day_that_lost_part_of_its_sessions_is_named(tmp_path):
    table, output = sessions(120, days=3), tmp_path / "w"
    logs = write(tmp_path / "logs", table)
    assert ingest(config(logs, output))["shrunk_days"] == {}
    days = np.array([str(t.as_py().date()) for t in table["entry_time"]])
    (of_the_day,) = np.nonzero(days == "2024-05-02")
    write(logs, table.take(pa.array(of_the_day[:5])))
    summary = ingest(config(logs, output))
    assert summary["shrunk_days"] == {"2024-05-02": [len(of_the_day), 5]}
    assert read_json(Path(summary["quarantine"]) / "summary.json")["shrunk_days"] == summary["shrunk_days"]


def test_another_dataset_is_refused_before_any_work(tmp_path):
    logs = write(tmp_path / "logs", sessions(50))
    ingest(config(logs, tmp_path / "w"))
    with pytest.raises(StorageError, match="differs in context"):
        ingest(config(logs, tmp_path / "w", dataset={"context": {"battery": "numeric"}}))


def test_two_ingests_at_once_are_refused_and_what_a_killed_one_left_goes(tmp_path):
    logs, output = write(tmp_path / "logs", sessions(50)), tmp_path / "w"
    ingest(config(logs, output))
    table = Warehouse.open(output).sessions
    with staging(output, table), pytest.raises(StorageError, match="another ingest"):
        ingest(config(logs, output))
    before = snapshot(output)
    dead = table.new_generation()
    (output / f".staging-{dead}" / "rows").mkdir(parents=True)
    table.write(day_number("2024-05-02"), dead, 0, stored(output).slice(0, 1))
    table.write(day_number("2030-01-01"), dead, 0, stored(output).slice(0, 1))
    ingest(config(logs, output))
    assert snapshot(output) == before
    assert not leftovers(output)
    assert not (output / "sessions" / "day=2030-01-01").exists()


def test_a_failure_in_the_middle_leaves_the_table_as_it_was(tmp_path, monkeypatch):
    logs, output = write(tmp_path / "logs", sessions(50)), tmp_path / "w"
    ingest(config(logs, output))
    before = snapshot(output)
    write(logs, sessions(50), sessions(50, 1))
    genuine = ingest_tasks.reduce_sessions

    def full_disk(plan, duplicates, bucket):
        if bucket == 2:
            raise StorageError("writing failed: No space left on device", hint="free space")
        return genuine(plan, duplicates, bucket)

    monkeypatch.setattr(ingest_tasks, "reduce_sessions", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        ingest(config(logs, output))
    assert snapshot(output) == before
    assert not leftovers(output)


def test_damaged_and_unfitting_files_name_themselves_before_any_row_is_read(tmp_path):
    logs, output = write(tmp_path / "logs", sessions(50), sessions(50, 1)), tmp_path / "w"
    broken = logs / "part-1.parquet"
    content = broken.read_bytes()
    broken.write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"part-1\.parquet cannot be read as Parquet"):
        ingest(config(logs, output))
    assert not output.exists()
    other = sessions(50, 1)
    pq.write_table(other.set_column(0, "user_id", other["user_id"].cast(pa.string())), broken)
    with pytest.raises(DataError, match=r"part-1\.parquet: column 'user_id' is string, it must be int64"):
        ingest(config(logs, output))
    pq.write_table(other.drop_columns(["battery"]), broken)
    with pytest.raises(DataError, match=r"part-1\.parquet has no column 'battery'"):
        ingest(config(logs, output))


def test_damage_inside_a_file_names_it_and_commits_nothing(tmp_path):
    logs, output = (
        write(tmp_path / "logs", sessions(50), sessions(400, 1), row_group_size=400),
        tmp_path / "w",
    )
    broken = logs / "part-1.parquet"
    content = bytearray(broken.read_bytes())
    content[100:2000] = b"\xa5\x5a" * 950
    broken.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"part-1\.parquet cannot be read as Parquet"):
        ingest(config(logs, output))
    assert not (output / "manifest.json").exists()


def test_configs_are_strict(tmp_path):
    logs = write(tmp_path / "logs", sessions(5))
    with pytest.raises(ConfigError, match=r"unknown key 'pathh' in dataset.*\n.*did you mean 'path'"):
        ingest(config(logs, tmp_path / "w", dataset={"pathh": "x"}))
    with pytest.raises(ConfigError, match="unknown dataset 'canonicl'"):
        ingest(config(logs, tmp_path / "w", dataset={"name": "canonicl"}))
    with pytest.raises(ConfigError, match="'entery_time' is no canonical column"):
        ingest(config(logs, tmp_path / "w", dataset={"columns": {"entery_time": "t"}}))
    with pytest.raises(ConfigError, match="2 to 32 pages"):
        ingest(config(logs, tmp_path / "w", dataset={"pages": ["one"]}))
    with pytest.raises(ValueError, match="lies after"):
        config(logs, tmp_path / "w", days=["2024-05-03", "2024-05-02"])
    with pytest.raises(DataError, match="no Parquet files at"):
        ingest(config(tmp_path / "nothing", tmp_path / "w"))


def test_the_command_names_days_that_shrank(tmp_path, capsys):
    table, logs = sessions(60, days=1), tmp_path / "logs"
    run = config(write(logs, table), tmp_path / "w")
    path = tmp_path / "data.json"  # JSON is YAML
    path.write_text(run.model_dump_json(), encoding="utf-8")
    commands.data(path, [])
    assert "shrunk" not in capsys.readouterr().out
    write(logs, table.slice(0, 20))
    commands.data(path, [])
    assert "shrunk days            2024-05-01 60 -> 20\n" in capsys.readouterr().out
