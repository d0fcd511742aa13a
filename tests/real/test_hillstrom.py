"""Uplift metrics on a real trial: the MineThatData e-mail challenge, two mails against none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.csv as csv
import pytest

from plpm_ray.evaluation.uplift import UpliftReport, UpliftSettings, uplift_report

ARMS = ["No E-Mail", "Mens E-Mail", "Womens E-Mail"]


def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)


@pytest.fixture(scope="module")
def report(data_folder: Callable[[str], Path]) -> UpliftReport:
    """A ridge regression for each arm on one half of the customers, judged on the other half by their visits."""
    table = csv.read_csv(data_folder("hillstrom/hillstrom.csv"))
    categories = [table[name].to_numpy() for name in ("zip_code", "channel", "history_segment")]
    columns = [table[name].to_numpy() for name in ("recency", "mens", "womens", "newbie")]
    columns += [values == level for values in categories for level in np.unique(values)]
    x = np.column_stack([np.ones(len(table)), *columns]).astype(float)
    arm = np.array([ARMS.index(name) for name in table["segment"].to_pylist()])
    visit = table["visit"].to_numpy().astype(float)
    rng = np.random.default_rng(0)
    train = rng.random(len(table)) < 0.5
    test = ~train
    by_arm = np.column_stack([x @ ridge(x[train & (arm == k)], visit[train & (arm == k)]) for k in range(3)])
    effects = by_arm[:, 1:] - by_arm[:, :1]
    bought_womens = table["womens"].to_numpy().astype(float)
    models = {
        "random": rng.normal(size=effects.shape),
        "T-learner": effects,
        "reversed": -effects,
        "bought women's": np.column_stack([np.zeros_like(bought_womens), bought_womens]),
    }
    return uplift_report(
        {name: values[test] for name, values in models.items()},
        arm[test],
        visit[test],
        names=ARMS[1:],
        control=ARMS[0],
        predicted_responses={"T-learner": by_arm[test]},
        settings=UpliftSettings(repeats=100),
        data="hillstrom",
        unit="visits",
    )


def row(rows: list[dict], model: str | None, metric: str, arm: str | None = None) -> dict:
    return next(r for r in rows if (r.get("model"), r["metric"], r["arm"]) == (model, metric, arm))


def test_average_effects_are_the_published_ones(report: UpliftReport):
    """Visits: 10.6 % without a mail, 18.3 % with the men's, 15.1 % with the women's."""
    assert 31_000 < report.users < 33_000
    for arm, effect in (("Mens E-Mail", 0.077), ("Womens E-Mail", 0.045)):
        found = row(report.references, None, "average_effect", arm)
        assert found["low"] < effect < found["high"]
        assert found["high"] - found["low"] < 0.03


def test_random_scores_are_worth_nothing_and_reversed_ones_less(report: UpliftReport):
    for arm in ARMS[1:]:
        random = row(report.rows, "random", "qini", arm)
        assert random["low"] < 0 < random["high"]
        learned, reverse = (row(report.rows, model, "qini", arm) for model in ("T-learner", "reversed"))
        assert learned["value"] > 0 > reverse["value"]
        assert learned["value"] == pytest.approx(-reverse["value"], rel=0.2)


def test_who_bought_for_women_is_moved_by_the_womens_mail(report: UpliftReport):
    """The known finding of this challenge; both a learned score and the plain column show it."""
    for model in ("T-learner", "bought women's"):
        qini = row(report.rows, model, "qini", "Womens E-Mail")
        assert qini["low"] > 0
        top = row(report.rows, model, "uplift_at_30", "Womens E-Mail")
        assert top["value"] > row(report.references, None, "average_effect", "Womens E-Mail")["value"]
    difference = row(report.differences, "T-learner", "qini", "Womens E-Mail")
    assert difference["low"] > 0


def test_choosing_the_mail_is_worth_more_than_no_mail(report: UpliftReport):
    assert row(report.rows, "T-learner", "policy_gain")["low"] > 0
    value, robust = (row(report.rows, "T-learner", m) for m in ("policy_value", "policy_value_dr"))
    assert robust["value"] == pytest.approx(value["value"], abs=0.01)
    assert value["low"] < robust["value"] < value["high"]
