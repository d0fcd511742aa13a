"""Suggestions depend on seed, number and known trials alone; a refused estimate never counts as good."""

from __future__ import annotations

import pytest

from plpm_ray.tuning.halving import Halving, make_scheduler
from plpm_ray.tuning.ledger import EpochReport, Ledger, TrialRecord, close_record
from plpm_ray.tuning.space import Dimension, Space
from plpm_ray.tuning.suggest import Suggester

SPACE = Space(
    (
        Dimension("alpha", "learner", ("alpha",), 0.01, 10.0, log=True),
        Dimension("kind", "learner", ("kind",), choices=("a", "b")),
    )
)


def record_of(number, params, value):
    report = EpochReport(epoch=1, value=value, refused=None if value is not None else "too few")
    return close_record(number, params, (report,), 1)


def value_of(params):
    return -((params["alpha"] - 0.3) ** 2) - (0.5 if params["kind"] == "a" else 0.0)


def run(path, until, *, searcher="optuna", seed=3, ask_only=False):
    """Continues the sweep at `path` to `until` trials; returns numbers and parameters of all that were asked for."""
    suggester = Suggester(SPACE, Ledger(path), searcher=searcher, seed=seed, startup=4)
    asked = []
    while len(suggester.ledger.records) < until:
        number, params = suggester.ask()
        asked.append((number, params))
        suggester.tell(record_of(number, params, value_of(params)))
    if ask_only:
        asked.append(suggester.ask())
    return asked


@pytest.mark.parametrize("searcher", ["optuna", "random"])
def test_the_same_seed_gives_the_same_trials_and_an_interruption_changes_nothing(tmp_path, searcher):
    whole = run(tmp_path / "whole.jsonl", 12, searcher=searcher)
    first = run(tmp_path / "parts.jsonl", 5, searcher=searcher, ask_only=True)  # killed while number 5 runs
    second = run(tmp_path / "parts.jsonl", 12, searcher=searcher)
    assert first[:5] + second == whole
    assert first[5] == second[0]
    assert run(tmp_path / "other.jsonl", 12, searcher=searcher, seed=4) != whole


def test_unfinished_trials_come_first_under_their_numbers(tmp_path):
    ledger = Ledger(tmp_path / "trials.jsonl")
    for number in (0, 1):
        ledger.start(number, {"alpha": 1.0 + number, "kind": "a"})
    ledger.end(record_of(0, {"alpha": 1.0, "kind": "a"}, 1.0))
    suggester = Suggester(SPACE, Ledger(ledger.path), seed=0)
    assert suggester.ask() == (1, {"alpha": 2.0, "kind": "a"})
    assert suggester.ask()[0] == 2
    assert sum(line.count('"start"') for line in ledger.path.read_text().splitlines()) == 3


def test_given_points_are_tried_first_if_they_lie_in_the_space(tmp_path):
    points = [{"alpha": 99.0, "kind": "a"}, {"alpha": 1.0, "kind": "b"}]
    suggester = Suggester(SPACE, Ledger(tmp_path / "trials.jsonl"), first=points)
    assert suggester.ask() == (0, {"alpha": 1.0, "kind": "b"})
    assert suggester.ask()[1] != {"alpha": 1.0, "kind": "b"}


def test_optuna_finds_the_better_part_beside_a_refused_one(tmp_path):
    suggester = Suggester(SPACE, Ledger(tmp_path / "trials.jsonl"), seed=0, startup=8)
    for _ in range(30):
        number, params = suggester.ask()
        value = value_of(params) if params["alpha"] < 1 else None
        suggester.tell(record_of(number, params, value))
    records = suggester.ledger.records
    assert sum(r.status == "refused" for r in records.values()) < 15
    best = max((r for r in records.values() if r.value is not None), key=lambda r: r.value)
    assert best.params["kind"] == "b" and 0.1 < best.params["alpha"] < 0.6


def test_failed_trials_are_told_too(tmp_path):
    suggester = Suggester(SPACE, Ledger(tmp_path / "trials.jsonl"))
    number, params = suggester.ask()
    suggester.tell(TrialRecord(number, params, "failed", (), "boom"))
    assert suggester.running == ()
    assert suggester.ledger.records[0].error == "boom"


def reports(*values):
    return tuple(EpochReport(epoch=e, value=v) for e, v in enumerate(values, start=1))


def test_halving_stops_the_worse_and_the_refused_but_no_one_before_the_grace():
    halving = Halving(make_scheduler(2, 8, 2, []))
    for number, value in enumerate((3.0, 2.0, 5.0)):
        assert not halving.stops(number, EpochReport(epoch=1, value=value))
    verdicts = [halving.stops(n, EpochReport(epoch=2, value=v)) for n, v in ((0, 3.0), (1, 2.0), (2, 5.0))]
    assert verdicts == [False, True, False]
    assert halving.stops(3, EpochReport(epoch=2, value=None, refused="too few"))


def test_halving_remembers_earlier_runs():
    known = [
        TrialRecord(0, {}, "finished", reports(1.0, 3.0)),
        TrialRecord(1, {}, "finished", reports(1.0, 4.0)),
    ]
    fresh, resumed = Halving(make_scheduler(2, 8, 2, [])), Halving(make_scheduler(2, 8, 2, known))
    report = EpochReport(epoch=2, value=1.0)
    assert (fresh.stops(2, report), resumed.stops(2, report)) == (False, True)


def test_halving_may_be_off():
    assert not Halving(None).stops(0, EpochReport(epoch=9, value=-1.0))
