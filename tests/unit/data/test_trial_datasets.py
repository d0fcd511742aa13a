"""Datasets that are a table of a trial's users: what is read, what goes to quarantine, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest

from plpm_ray.core.errors import ConfigError, DataError, StorageError
from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.core.storage import write_parquet
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.quarantine import read_rows

HILLSTROM = (
    "recency,history_segment,history,mens,womens,zip_code,newbie,channel,segment,visit,conversion,spend"
)


def run(folder: Path, dataset: dict[str, Any], **settings: Any) -> dict[str, Any]:
    config = {"dataset": dataset, "output": str(folder / "w"), "n_buckets": 3, **settings}
    return ingest(IngestConfig.model_validate(config))


def rows_of(folder: Path) -> tuple[Warehouse, pa.Table]:
    warehouse = Warehouse.open(folder / "w")
    tables = [warehouse.trial.read(bucket) for bucket in range(warehouse.info.n_buckets)]
    return warehouse, pa.concat_tables([t for t in tables if t is not None]).sort_by("user_id")


def hillstrom(folder: Path) -> Path:
    lines = [
        "10,2) $100 - $200,142.44,1,0,Surburban,0,Phone,Womens E-Mail,0,0,0",
        "6,3) $200 - $350,329.08,1,1,Rural,1,Web,No E-Mail,1,1,29.5",
        "7,3) $200 - $350,,1,1,Rural,1,Web,Mens E-Mail,1,0,0",
        "7,3) $200 - $350,5,1,1,Rural,1,Web,Mens,1,0,0",
        "7,3) $200 - $350,5,1,1,Rural,1,Web,No E-Mail,often,0,",
        "7,too few",
        "2,2) $100 - $200,5.5,0,1,Urban,0,Multichannel,Mens E-Mail,1,0,7.25",
    ]
    path = folder / "hillstrom.csv"
    path.write_text("\n".join([HILLSTROM, *lines]) + "\n")
    return path


def test_hillstrom_rows_keep_their_numbers_and_bad_ones_go_to_quarantine(tmp_path: Path):
    summary = run(tmp_path, {"name": "hillstrom", "path": str(hillstrom(tmp_path))}, max_bad_share=0.5)
    warehouse, rows = rows_of(tmp_path)
    assert rows["user_id"].to_pylist() == [0, 1, 2, 6]
    assert rows["arm"].to_pylist() == [2, 0, 1, 1]
    assert rows["response"].to_pylist() == [0.0, 1.0, 1.0, 1.0]
    assert set(rows["days"].to_pylist()) == {14}
    raw = RawFeatures.from_table(warehouse.info.features, rows)
    np.testing.assert_array_equal(
        raw.column("profile.history"), np.array([142.44, 329.08, np.nan, 5.5], np.float32)
    )
    assert raw.categorical["profile.womens"].to_pylist() == ["0", "1", "1", "1"]
    assert raw.sequences == {} and warehouse.sessions.days() == []
    assert [day_name(d) for d in warehouse.trial.days()] == ["2008-03-20"]
    assert summary["rows_in"] == summary["users"] + summary["quarantined_rows"] == 7
    assert summary["quarantined"] == {"unknown_arm": 1, "null_response": 1, "malformed_row": 1}
    assert summary["trial"]["arm_users"] == {"control": 1, "Mens E-Mail": 2, "Womens E-Mail": 1}
    bad = {r["reason"]: r for r in read_rows(tmp_path / "w").to_pylist()}
    assert bad["unknown_arm"]["segment"] == "Mens" and bad["unknown_arm"]["source_row"] == 3
    assert bad["null_response"]["visit"] == "often"


def test_the_response_is_chosen_and_too_many_bad_rows_change_nothing(tmp_path: Path):
    dataset = {"name": "hillstrom", "path": str(hillstrom(tmp_path)), "response": "spend"}
    run(tmp_path, dataset, max_bad_share=0.5)
    assert rows_of(tmp_path)[1]["response"].to_pylist() == [0.0, 29.5, 0.0, 7.25]
    with pytest.raises(DataError, match="max_bad_share"):
        run(tmp_path, {**dataset, "response": "visit"}, max_bad_share=0.1)
    assert rows_of(tmp_path)[1]["response"].to_pylist() == [0.0, 29.5, 0.0, 7.25]


def lbcf(folder: Path) -> Path:
    header = ",".join([*(f"c{i}" for i in range(14)), "label", "exp_group"])
    for name, groups in (("rct_training.csv", (5, 0, 3)), ("rct_test.csv", (0, 7))):
        lines = [",".join([*(str(i + g) for i in range(14)), f"{100.5 * g}", str(g)]) for g in groups]
        (folder / name).write_text("\n".join([header, *lines]))
    return folder


def test_lbcf_reads_both_files_and_keeps_their_split(tmp_path: Path):
    run(tmp_path, {"name": "lbcf", "path": str(lbcf(tmp_path))})
    warehouse, rows = rows_of(tmp_path)
    assert rows["user_id"].to_pylist() == [0, 1, 2, 3, 4]
    assert rows["arm"].to_pylist() == [5, 0, 3, 0, 7]
    assert rows["part"].to_pylist() == [0, 0, 0, 2, 2]
    assert rows["response"].to_pylist() == [502.5, 0.0, 301.5, 0.0, 703.5]
    assert warehouse.info.pages.names[:2] == ("group_1", "group_2")


def test_another_control_leaves_the_other_groups_as_pages(tmp_path: Path):
    run(tmp_path, {"name": "lbcf", "path": str(lbcf(tmp_path)), "control": 3})
    warehouse, rows = rows_of(tmp_path)
    assert warehouse.info.pages.names == tuple(f"group_{g}" for g in (0, 1, 2, 4, 5, 6, 7))
    assert rows["arm"].to_pylist() == [5, 1, 0, 1, 7]
    with pytest.raises(StorageError, match="already holds another dataset"):
        run(tmp_path, {"name": "lbcf", "path": str(lbcf(tmp_path))})


OWN = {
    "name": "trial",
    "pages": [{"name": "home", "values": ["B"]}, {"name": "shop", "values": ["C"]}],
    "features": {"age": "numeric", "country": "categorical"},
    "user_id": "uid",
    "arm": "group",
    "response": "use",
    "control": "A",
}


def own_trial() -> pa.Table:
    return pa.table(
        {
            "uid": pa.array(["u1", "u2", "u3", "u2", None, "u5", "u6"]),
            "group": pa.array(["A", "B", "shop", "C", "A", None, "home"]),
            "use": pa.array([1.0, -2.5, 3.0, 4.0, 5.0, 6.0, np.inf]),
            "age": pa.array([30, None, 20, 1, 2, 3, 4]),
            "country": pa.array(["x", "y", None, "x", "x", "x", "x"]),
        }
    )


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_trial_of_your_own_in_parquet_or_csv(tmp_path: Path, form: str):
    path = tmp_path / f"trial.{form}"
    if form == "csv":
        csv.write_csv(own_trial(), path)
    else:
        write_parquet(path, own_trial())
    dataset = {**OWN, "path": str(path), "csv_user_id": "string", "start_day": "2024-05-01", "days": 7}
    summary = run(tmp_path, dataset, max_bad_share=0.7)
    warehouse, rows = rows_of(tmp_path)
    assert rows["user_id"].to_pylist() == ["u1", "u2", "u3"]
    assert rows["arm"].to_pylist() == [0, 1, 2] and rows["response"].to_pylist() == [1.0, -2.5, 3.0]
    assert summary["quarantined"] == {"null_user": 1, "null_arm": 1, "duplicate_user": 1, "non_finite": 1}
    assert warehouse.info.features == FeatureSchema(
        ("home", "shop"), {}, {"age": "numeric", "country": "categorical"}, history=False
    )
    assert Warehouse.open(tmp_path / "w").info.history is False


def test_rows_without_ids_are_numbered_through_all_files(tmp_path: Path):
    for part in range(2):
        write_parquet(tmp_path / "trial" / f"part{part}.parquet", own_trial().slice(3 * part, 3).drop("uid"))
    run(
        tmp_path,
        {**OWN, "path": str(tmp_path / "trial"), "user_id": None, "control": None},
        max_bad_share=0.7,
    )
    _, rows = rows_of(tmp_path)
    assert rows["user_id"].to_pylist() == [1, 2, 3, 5] and rows["arm"].to_pylist() == [1, 2, 2, 0]


def test_the_same_trial_again_changes_nothing_and_another_replaces_it(tmp_path: Path):
    path = tmp_path / "trial.parquet"
    write_parquet(path, own_trial().slice(0, 3))
    first = run(tmp_path, {**OWN, "path": str(path)})
    fingerprint = Warehouse.open(tmp_path / "w").trial.fingerprint()
    again = run(tmp_path, {**OWN, "path": str(path)})
    assert first["trial"]["rows"] == 3 and again["trial"]["rows"] == 0
    assert Warehouse.open(tmp_path / "w").trial.fingerprint() == fingerprint
    run(tmp_path, {**OWN, "path": str(path), "start_day": "2024-05-01"})
    assert [day_name(d) for d in Warehouse.open(tmp_path / "w").trial.days()] == ["2024-05-01"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features": {"country": "categorical"}}, "at least one feature must be numeric"),
        ({"features": {"group": "numeric"}}, "no column has two roles"),
        ({"control": "B"}, "one of the pages too"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, {**OWN, "path": "trial.parquet", **changes})


def test_missing_columns_and_days_are_refused(tmp_path: Path):
    path = tmp_path / "trial.parquet"
    write_parquet(path, own_trial())
    with pytest.raises(DataError, match="no column 'grp'"):
        run(tmp_path, {**OWN, "path": str(path), "arm": "grp"})
    with pytest.raises(ConfigError, match="have no days"):
        run(tmp_path, {**OWN, "path": str(path)}, days=("2024-05-01", "2024-05-01"))
    assert not (tmp_path / "w" / "manifest.json").exists()
