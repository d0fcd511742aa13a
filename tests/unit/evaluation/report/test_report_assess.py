"""The report of models that say numbers: what its headline says, what is drawn, and records that are not as they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.core.errors import DataError
from tests.report_assessed import assess_run
from tests.report_pages import edited, page


def test_what_is_said_and_drawn(tmp_path: Path) -> None:
    found = page(assess_run(tmp_path / "assess-0123456789")).said
    for said in (
        "L-RTG misses a day's use by 4,015 s on average, the mean of the last seven days by 4,215 s (gain 200 s, 166 to 234).",
        "HRM tells drop-offs apart with AUC 0.940, calibration error 0.100.",
        "test days 2024-03-09 to 2024-03-10",
        "mean day for all",
        "furthest from 0 at Sat, 120 s",
        "✗ does not hold",
        "25.0 % left their landing page within 10.0 s",
        "the share for all",
    ):
        assert said in found, said


def test_a_run_of_one_kind_has_no_section_of_the_other(tmp_path: Path) -> None:
    def without(kind: str, name: str) -> str:
        run = assess_run(tmp_path / name)
        kept = edited(
            run, "summary.json", lambda r: r.update(models=[m for m in r["models"] if m["kind"] != kind])
        )
        return page(kept).said

    assert "Bias" not in without("day", "a") and "Drop-off" not in without("session", "b")


def test_a_model_without_intervals_is_shown(tmp_path: Path) -> None:
    """One user has no interval over users."""

    def blank(record: dict) -> None:
        for name in ("mae_s", "rmse_s", "spearman", "bias_s"):
            record["models"][0]["model"][name] |= {"low": None, "high": None}

    assert "4,015 s" in page(edited(assess_run(tmp_path / "a"), "summary.json", blank)).said


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    run = edited(assess_run(tmp_path / "a"), "summary.json", lambda r: r["models"][0].pop("mae_gain"))
    with pytest.raises(DataError, match="mae_gain"):
        page(run)
