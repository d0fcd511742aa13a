"""Metrics, table and the Open Bandit reader on cases small enough to check by eye."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.data.open_bandit import read_open_bandit
from plpm_ray.evaluation import metrics
from plpm_ray.evaluation.estimators import DM, SNIPS
from plpm_ray.evaluation.logged import EpisodeGrid, LoggedData
from plpm_ray.evaluation.table import PolicyResult, format_table, number

PI = np.array([[0.6, 0.4], [0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
ACTION = np.array([0, 0, 0, 1])


def test_agreement_counts_argmax_and_probability():
    found = metrics.agreement(PI, ACTION, np.array(["a", "a", "b", "c"]))
    assert found.argmax_share.value == pytest.approx(2 / 4)
    assert found.mean_probability.value == pytest.approx((0.6 + 0.2 + 0.5 + 0) / 4)


def test_assignment_ratio():
    found = metrics.assignment_ratio(PI)
    assert found.argmax.tolist() == [0.75, 0.25]
    assert found.probability == pytest.approx([2.3 / 4, 1.7 / 4])


def test_one_endless_day_costs_no_memory_for_the_others():
    n = 20_000  # as a padded table this would be 3 GB
    episode = np.r_[np.zeros(n, dtype=np.int64), np.arange(1, n + 1)]
    step = np.r_[np.arange(n), np.zeros(n, dtype=np.int64)]
    returns = metrics.realised_return(np.ones(2 * n), episode, step, 1.0)
    assert returns[:3].tolist() == [n, n - 1, n - 2] and (returns[n:] == 1).all()
    assert EpisodeGrid.of(episode, step).next_index()[[0, n - 1, n]].tolist() == [1, -1, -1]


def test_realised_return_of_shuffled_rows():
    reward, episode, step = np.array([4.0, 1.0, 7.0, 2.0]), np.array([0, 0, 1, 0]), np.array([2, 0, 0, 1])
    assert metrics.realised_return(reward, episode, step, 0.5).tolist() == [
        4.0,
        1 + 0.5 * (2 + 2.0),
        7.0,
        4.0,
    ]


def test_overestimation_gap_in_seconds():
    q = np.array([[10.0, 30.0], [20.0, 0.0]])
    gap = metrics.overestimation_gap(q, np.array([0, 0]), np.array([5.0, 15.0]), np.array([1, 2]))
    assert gap.realised.value == 10
    assert gap.logged_action.value == pytest.approx(5)
    assert gap.best_action.value == pytest.approx(15)
    assert gap.logged_ratio == pytest.approx(1.5)
    assert gap.best_ratio == pytest.approx(2.5)


def test_page_drop_off_ratio():
    overall, by_page = metrics.page_drop_off_ratio(np.array([0, 0, 2]), np.array([1.0, 9.0, 2.0]), 3, 3.0)
    assert overall == pytest.approx(2 / 3)
    assert by_page[[0, 2]].tolist() == [0.5, 1.0]
    assert np.isnan(by_page[1])


def test_mean_of_nothing_is_refused():
    with pytest.raises(DataError):
        metrics.clustered_mean(np.array([]), np.array([]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (12.345, "12.35"),
        (0.0056566, "0.005657"),
        (0.0, "0"),
        (-3.0, "-3.000"),
        (None, "-"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.fixture
def results() -> list[PolicyResult]:
    rng = np.random.default_rng(0)
    n = 1000
    behaviour = np.tile([0.99, 0.01], (n, 1))
    data = LoggedData(
        (rng.random(n) < 0.01).astype(int), rng.random(n), np.arange(n), behaviour=behaviour, modelled=True
    )
    rare = np.tile([0.0, 1.0], (n, 1))
    q = np.ones((n, 2))
    return [
        PolicyResult(
            "main feed",
            [SNIPS().estimate(data, behaviour), DM().estimate(data, behaviour, q)],
            {
                "agreement": metrics.agreement(behaviour, data.action, data.cluster),
                "assigned": metrics.assignment_ratio(behaviour),
                "gap": float("nan"),
            },
        ),
        PolicyResult("rare", [SNIPS().estimate(data, rare)], {}),
    ]


def test_table_shows_values_refusals_and_what_is_modelled(results):
    text = format_table(results, pages=["main", "other"])
    assert "snips (s per decision)" in text
    assert "main:100% other:0%" in text
    assert "refused (1)" in text
    assert "(1) rare, snips refused: effective sample size" in text
    assert "modelled from the log" in text
    assert "* dm: the interval covers" in text
    markdown = format_table(results, style="markdown")
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_record_is_plain_json(results):
    record = json.loads(json.dumps([result.as_record() for result in results], allow_nan=False))
    assert record[0]["metrics"]["gap"] is None
    assert record[0]["estimates"]["snips"]["modelled"] is True
    assert record[1]["estimates"]["snips"]["value"] is None
    assert record[0]["metrics"]["assigned"]["argmax"] == [1.0, 0.0]


USER_COLUMNS = ",".join(f"user_feature_{i}" for i in range(4))
HEADER = f",timestamp,item_id,position,click,propensity_score,{USER_COLUMNS}"
ROWS = [
    "0,2019-11-24 00:00:01.5+00:00,2,3,0,0.25,a,b,c,d",
    "1,2019-11-24 00:00:02.0+00:00,0,1,1,0.5,z,b,c,d",
    "2,2019-11-24 00:00:02.5+00:00,1,1,0,0.5,a,b,c,d",
]


def write_log(root: Path, rows: list[str], header: str = HEADER) -> Path:
    path = root / "bts" / "men" / "men.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_open_bandit_layout(tmp_path):
    write_log(tmp_path, ROWS)
    log = read_open_bandit(tmp_path, "bts", "men")
    assert log.action.tolist() == [2, 0, 1]
    assert log.position.tolist() == [2, 0, 0]
    assert log.reward.tolist() == [0, 1, 0]
    assert log.propensity.tolist() == [0.25, 0.5, 0.5]
    assert np.diff(log.time_ms).tolist() == [500, 500]
    assert log.user_features[:, 0].tolist() == [0, 1, 0]
    assert log.n_items == 3
    assert log.item_shares().tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 1]]
    assert log.context().shape == (3, 3 + 2 + 1 + 1 + 1)


def test_open_bandit_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=r"men\.csv is missing"):
        read_open_bandit(tmp_path, "bts", "men")
    path = write_log(tmp_path, ROWS, HEADER.replace("propensity_score", "pscore"))
    with pytest.raises(DataError, match="propensity_score"):
        read_open_bandit(tmp_path, "bts", "men")
    path.write_text("\n".join([HEADER, ROWS[0].replace(",3,0,", ",4,0,")]) + "\n")
    with pytest.raises(DataError, match="position must be 1, 2 or 3; 1 rows are not, the first in line 2"):
        read_open_bandit(tmp_path, "bts", "men")
    path.write_text("\n".join([HEADER, ROWS[0].replace(",2,3,", ",two,3,")]) + "\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_open_bandit(tmp_path, "bts", "men")
    path.write_text("\n".join([HEADER, ROWS[0].replace("0.25", "")]) + "\n")
    with pytest.raises(DataError, match="empty"):
        read_open_bandit(tmp_path, "bts", "men")
    path.write_text(HEADER + "\n")
    with pytest.raises(DataError, match="no rows"):
        read_open_bandit(tmp_path, "bts", "men")
