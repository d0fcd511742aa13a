"""How values are printed, and the summary file beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.cli.summary import Clock, finish, refuse_foreign, show
from plpm_ray.core.errors import ConfigError, StorageError
from plpm_ray.core.storage import read_json


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        (None, "-"),
        (3.14159265, "3.142"),
        (0.000012345, "1.234e-05"),
        (9876.54, "9,877"),
        (123456.7, "123,457"),
        (float("nan"), "nan"),
        ("a run", "a run"),
        ({}, "none"),
        ([], "none"),
        ({"home": 0.25, "shop": 3}, "home 0.25, shop 3"),
        ((1, 2500), "1, 2,500"),
        ({"user": {"rows": 1000}}, "user rows 1,000"),
        (Path.cwd() / "runs" / "a", "runs/a"),
        (Path("/shared/runs"), "/shared/runs"),
    ],
)
def test_values_as_people_read_them(value, text) -> None:
    assert show(value) == text


def test_finish_prints_what_is_shown_and_writes_everything(tmp_path, capsys) -> None:
    finish("data", tmp_path / "run", {"rows": 1200, "detail": {"a": 1}}, {"rows_in": 1200})
    assert read_json(tmp_path / "run" / "summary.json") == {
        "command": "data",
        "rows": 1200,
        "detail": {"a": 1},
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data done" and lines[1].split() == ["rows", "in", "1,200"]
    assert lines[2].split() == ["summary", str(tmp_path / "run" / "summary.json")]


def test_without_a_choice_the_plain_values_are_shown(tmp_path, capsys) -> None:
    finish("decide", tmp_path, {"rows": 3, "pages": ["a"], "share": 0.5, "policy": None})
    printed = capsys.readouterr().out
    assert "rows" in printed and "share" in printed and "policy" in printed and "pages" not in printed


def test_a_summary_that_cannot_be_written_is_not_called_done(tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        finish("data", tmp_path / "file" / "run", {})
    assert not capsys.readouterr().out


def test_the_clock_counts_seconds() -> None:
    clock = Clock()
    assert 0 <= clock.seconds < 5


def test_a_summary_of_another_command_is_not_replaced(tmp_path: Path) -> None:
    refuse_foreign("decide", tmp_path)
    finish("decide", tmp_path, {}, {})
    refuse_foreign("decide", tmp_path)
    finish("evaluate", tmp_path, {}, {})
    with pytest.raises(ConfigError, match="another command"):
        refuse_foreign("decide", tmp_path)
