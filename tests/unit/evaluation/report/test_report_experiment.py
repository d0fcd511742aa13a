"""What the report says of an A/B experiment: headline, arms, growth, moves, each with the numbers of its tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from plpm_ray.core.storage import write_json
from plpm_ray.evaluation import report
from plpm_ray.evaluation.report.behaviour import _before_after
from plpm_ray.evaluation.report.experiment import headline
from plpm_ray.evaluation.report.growth import _dau, _lt
from plpm_ray.evaluation.report.view import Experiment
from tests.report_experiments import ab_run
from tests.report_pages import outcome, page, words


def test_the_headline_names_the_winner_only_where_there_is_one(tmp_path: Path) -> None:
    folder = ab_run(tmp_path / "run", arms=("base", "IIT", "BC", "random", "oracle"))
    nothing = {
        "relative": 0.001,
        "difference": 0.005,
        "low": -0.01,
        "high": 0.012,
        "p_value": 0.6,
        "p_adjusted": 1.0,
    }
    for arm in ("IIT", "BC"):
        for metric in ("lt", "dau", "use_s"):
            outcome(folder, metric, arm, **nothing)

    def said() -> str:
        return words(headline(Experiment.of(report.read_run(folder))))

    assert said() == (
        "No candidate is reliably better by Lifetime (LT) than base: at best IIT, +0.1 % "
        "(95 % interval −1.0 to +1.2 %, p = 0.600)."
    )
    won = {
        "relative": 0.0123,
        "difference": 0.06,
        "low": 0.008,
        "high": 0.0166,
        "p_value": 1e-6,
        "p_adjusted": 1e-4,
    }
    outcome(folder, "use_s", "BC", **won, gap_share=0.4)
    assert said().startswith(
        "No candidate is reliably better by Lifetime (LT), but BC raises App use time by 1.23 %"
    )
    outcome(folder, "lt", "BC", **{**won, "p_value": 0.03, "p_adjusted": 0.3})
    assert "No candidate is reliably better by Lifetime (LT)" in said(), "what an adjustment undoes is no win"
    outcome(folder, "lt", "BC", **won, gap_share=0.4)
    assert said() == (
        "BC raises Lifetime (LT) by 1.23 % (95 % interval +0.80 to +1.66 %, p < 0.001) against base "
        "(best of 2 candidates), 40 % of the way from the random policy to the oracle."
    )
    for arm in ("IIT", "BC"):
        outcome(folder, "lt", arm, relative=-0.02, difference=-0.1, p_value=1e-6, p_adjusted=1e-5)
    assert said().startswith("By Lifetime (LT), all 2 candidates are worse than base; at best −2.0")


def test_references_are_known_by_the_config_else_by_their_names(tmp_path: Path) -> None:
    arms = ("base", "Random Forest", "luck", "oracle")
    folder = ab_run(tmp_path / "run", arms=arms)
    listed: list[dict[str, str | None]] = [
        {"label": "base"},
        {"label": "Random Forest"},
        {"label": "luck", "builtin": "random"},
    ]
    listed.append({"label": None, "builtin": "far_sighted_oracle"})
    write_json(folder / "config.json", {"arms": listed})
    assert Experiment.of(report.read_run(folder)).candidates == ["Random Forest", "oracle"], (
        "no arm is called far_sighted_oracle"
    )
    (folder / "config.json").unlink()
    assert Experiment.of(report.read_run(folder)).candidates == ["Random Forest", "luck"]


def test_growth_is_relative_to_the_control_of_the_same_day(tmp_path: Path) -> None:
    experiment = Experiment.of(report.read_run(ab_run(tmp_path / "run")))
    rows = list(
        zip(
            *(experiment.daily[k].tolist() for k in ("arm", "day", "active_users", "users", "lt")),
            strict=True,
        )
    )
    at = {(arm, day): (active / users, lt) for arm, day, active, users, lt in rows}
    dau, lt = _dau(experiment, "IIT"), _lt(experiment, "IIT")
    assert dau.day == list(range(28))
    for day in (0, 6, 27):
        (p, own), (p0, base) = at["IIT", day], at[experiment.control, day]
        assert dau.value[day] == pytest.approx(100 * (p / p0 - 1))
        assert lt.value[day] == pytest.approx(100 * (own / base - 1))
    assert dau.low is not None and dau.high is not None
    inside = sum(
        low < 0 < high
        for low, high in zip(dau.low[:7], dau.high[:7], strict=True)
        if low is not None and high is not None
    )
    assert inside >= 5, "on AA days most bands hold zero"
    assert dau.mean(7, 28) == pytest.approx(sum(v for v in dau.value[7:] if v is not None) / 21)


def test_twins_have_no_bands_and_no_sample_ratio(tmp_path: Path) -> None:
    folder = ab_run(tmp_path / "run", design="twins")
    assert _dau(Experiment.of(report.read_run(folder)), "IIT").low is None
    said = page(folder).said
    assert (
        "the same users in every arm (twins)" in said
        and "sample ratio check" not in said
        and "Bands:" not in said
    )


def test_moves_landings_and_entries_are_those_of_the_tables(tmp_path: Path) -> None:
    experiment = Experiment.of(report.read_run(folder := ab_run(tmp_path / "run")))
    moved = experiment.moves

    def users(period: str, **where: str) -> float:
        rows = (moved["arm"] == "IIT") & (moved["period"] == period)
        for name, value in where.items():
            rows &= moved[name.rstrip("_")] == value
        return float(moved["users"][rows].sum())

    rate = [100 * users(p, from_="single", to="multi") / users(p, from_="single") for p in ("aa", "ab")]
    said = page(folder).said
    assert f"IIT: {rate[0]:.1f} → {rate[1]:.1f} %" in said
    landed = experiment.pages
    rows = (landed["arm"] == "IIT") & (landed["period"] == "ab")
    share = landed["assigned"][rows & (landed["page"] == "explore")].sum() / landed["assigned"][rows].sum()
    assert f"explore {100 * share:.0f} %" in said
    user_days = experiment.daily["users"][
        (experiment.daily["arm"] == "IIT") & (experiment.daily["period"] == "ab")
    ].sum()
    entries = landed["entries_effective"][rows & (landed["page"] == "explore")].sum() / user_days
    assert f"→ {entries:.3f}" in said
    hollow = [dot.open_ for dot in _before_after(experiment, "IIT", [0.1, 0.2], 3).dots]
    assert hollow == [True, False], "AA hollow, AB filled"
