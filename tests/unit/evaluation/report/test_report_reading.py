"""Run folders that are wrong: the error names the folder and the file, and says what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from plpm_ray.core.errors import PlpmError
from plpm_ray.core.storage import read_json, read_parquet, write_json, write_parquet
from plpm_ray.evaluation.report import read_run, render
from tests.report_experiments import ab_run
from tests.report_runs import aa_run, coverage_run, evaluate_run, uplift_run


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def put(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return change


def without(key: str, name: str = "ab.json") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = read_json(folder / name)
        del record[key]
        write_json(folder / name, record)

    return change


def changed(name: str = "ab.json", **values: object) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / name, {**read_json(folder / name), **values})


def stray_arm(folder: Path) -> None:
    table = read_parquet(folder / "daily.parquet")
    arm = pa.array(["someone else"] * table.num_rows)
    write_parquet(folder / "daily.parquet", table.set_column(0, "arm", arm))


def no_column(folder: Path) -> None:
    write_parquet(folder / "moves.parquet", read_parquet(folder / "moves.parquet").drop_columns(["users"]))


WRONG = {
    "no table": (ab_run, drop("moves.parquet"), r"is incomplete: moves\.parquet is missing", "plpm simulate ab"),
    "damaged table": (ab_run, put("pages.parquet", "x"), r"pages\.parquet cannot be read", "copy"),
    "no column": (ab_run, no_column, r"moves\.parquet has no column 'users'", "it holds"),
    "another arm": (ab_run, stray_arm, r"daily\.parquet holds the arm 'someone else'", "different experiments"),
    "damaged record": (ab_run, put("ab.json", "{"), r"ab\.json is not valid JSON", "anew"),
    "no object": (ab_run, put("ab.json", "[]"), r"ab\.json does not hold a JSON object", "again"),
    "no key": (ab_run, without("world"), r"ab\.json: world: field required", "another version"),
    "foreign control": (ab_run, changed(control="x"), r"ab\.json: the control 'x' is not among the arms", "run it again"),
    "wrong value": (aa_run, changed("aa.json", experiments="many"), r"aa\.json: experiments: ", "edited"),
    "lengths": (
        uplift_run,
        changed("uplift.json", curves=[{"model": "m", "share": [0, 1], "qini": [0]}]),
        r"uplift\.json: curves\.0: share, qini, low, high and random must have the same length",
        "run it again",
    ),
    "no result": (coverage_run, drop("coverage.json"), "is not a run folder: it holds none of", "folder of a run"),
    "other command": (evaluate_run, changed("summary.json", command="serve"), r"does not show: serve", "it shows runs of"),
    "unfinished": (evaluate_run, changed("summary.json", command="ab"), r"is incomplete: ab\.json is missing", "again"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_run_is_refused_by_name_with_a_way_out(case: str, tmp_path: Path) -> None:
    make, spoil, message, hint = WRONG[case]
    folder = make(tmp_path / "run-0123456789")
    spoil(folder)
    with pytest.raises(PlpmError, match=message) as caught:
        render([read_run(folder)])
    assert str(folder) in str(caught.value)
    assert hint in str(caught.value.hint)


def test_what_is_no_run_folder_is_refused_with_a_way_out(tmp_path: Path) -> None:
    run = ab_run(tmp_path / "runs" / "ab-0123456789")
    for path, hint in (
        (tmp_path / "nowhere", "give a run folder"),
        (run / "ab.json", f"give the run folder: {run}"),
        (tmp_path / "runs", f"name the runs: {run}"),
    ):
        with pytest.raises(PlpmError) as caught:
            read_run(path)
        assert str(path) in caught.value.message and hint in str(caught.value.hint)
    (tmp_path / "begun").mkdir()
    write_json(tmp_path / "begun" / "config.json", {})
    with pytest.raises(PlpmError, match=r"holds config\.json, but no result") as caught:
        read_run(tmp_path / "begun")
    assert "start its command again" in str(caught.value.hint)


def test_a_name_without_its_hash_means_the_newest_run(tmp_path: Path) -> None:
    old, new = (evaluate_run(tmp_path / f"evaluate-{i:010x}") for i in range(2))
    os.utime(old / "summary.json", (1, 1))
    assert read_run(tmp_path / "evaluate").folder == new
    assert read_run(old).folder == old


def test_further_keys_are_allowed(tmp_path: Path) -> None:
    folder = ab_run(tmp_path / "run")
    changed(something_new={"a": 1})(folder)
    assert read_run(folder).kind == "ab"
