"""The report of a streamed run: its curves, its pages, and files that are not as they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.core.storage import read_json
from plpm_ray.evaluation.report import write
from plpm_ray.evaluation.report.reading import read_run
from tests import stream_runs
from tests.report_runs import stream_run
from tests.training_tables import make_warehouse


def page(run: Path, folder: Path) -> str:
    return write([run], folder / "report.html").read_text(encoding="utf-8")


def test_curves_of_a_stream(tmp_path):
    text = page(stream_run(tmp_path / "am-0123456789"), tmp_path)
    for said in (
        "40,000 sessions, each scored before it was learned: AUC 0.740, log loss 0.450",
        "by window the AUC went from 0.580 to 0.760",
        "AUC over the stream",
        "log loss over the stream",
        "entries of 2024-03-05 to 2024-03-08 (UTC)",
        "AUC, featured",
        "AUC, explore",
        "2024-03-04 to 2024-03-10",
    ):
        assert said in text.replace("\u202f", " ").replace("\u2009", " "), said


def test_a_run_as_it_was_streamed(tmp_path):
    make_warehouse(tmp_path / "warehouse", users=250, n_buckets=2)
    stream_runs.run(tmp_path / "warehouse", tmp_path / "am", None, window_sessions=400)
    (folder,) = tmp_path.glob("am-*")
    run = read_run(folder)
    assert run.kind == "stream" and run.record.metrics == read_json(folder / "summary.json")["metrics"]
    text = page(folder, tmp_path)
    assert "AUC over the stream" in text and "By landing page" in text and "page_2" in text


def test_a_short_stream_has_no_curves(tmp_path):
    folder = stream_run(tmp_path / "am-0123456789")
    (folder / "metrics.jsonl").unlink()
    text = page(folder, tmp_path)
    assert "over the stream</" not in text and "Judged before they were learned" in text


def test_an_unfinished_last_line_is_left_out_and_a_damaged_one_named(tmp_path):
    folder = stream_run(tmp_path / "am-0123456789")
    whole = (folder / "metrics.jsonl").read_text()
    wanted = page(folder, tmp_path)
    (folder / "metrics.jsonl").write_text(whole + '{"step": 3')
    assert page(folder, tmp_path) == wanted
    (folder / "metrics.jsonl").write_text('{"step": 3\n' + whole)
    with pytest.raises(DataError, match=r"metrics.jsonl:1 is no record of a stream"):
        page(folder, tmp_path)
