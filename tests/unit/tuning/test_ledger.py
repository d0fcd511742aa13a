"""The ledger: every line counts once, a torn line never, and one process at a time."""

from __future__ import annotations

import json

import pytest

from plpm_ray.core.errors import ConfigError, StorageError
from plpm_ray.tuning.ledger import EpochReport, TrialRecord, close_record, open_ledger


def finished(number, value=1.0, epochs=2):
    reports = tuple(
        EpochReport(epoch=e + 1, value=value, low=value - 1, high=value + 1) for e in range(epochs)
    )
    return close_record(number, {"alpha": float(number)}, reports, 2)


def test_what_was_written_is_found_again(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.start(0, {"alpha": 0.0})
        ledger.end(finished(0, 5.0))
        ledger.start(1, {"alpha": 1.0})
    with open_ledger(tmp_path) as ledger:
        assert ledger.records == {0: finished(0, 5.0)}
        assert ledger.unfinished == {1: {"alpha": 1.0}}
        assert ledger.next_number == 2


def test_a_torn_last_line_is_dropped_and_does_not_spoil_the_next(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.start(0, {"alpha": 0.0})
        ledger.end(finished(0))
    path = tmp_path / "trials.jsonl"
    path.write_bytes(path.read_bytes() + b'{"event": "end", "numb')
    with open_ledger(tmp_path) as ledger:
        assert list(ledger.records) == [0]
        ledger.start(1, {"alpha": 1.0})
    with open_ledger(tmp_path) as ledger:
        assert ledger.unfinished == {1: {"alpha": 1.0}}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "trials.jsonl").write_text('{"event": "start", "number": 0, "params": {}}\n{"event": 1}\n')
    with pytest.raises(StorageError, match=r"trials.jsonl:2"), open_ledger(tmp_path):
        pass


def test_a_lost_trial_is_to_be_run_again(tmp_path):
    with open_ledger(tmp_path) as ledger:
        ledger.start(0, {"alpha": 0.0})
        ledger.end(TrialRecord(0, {"alpha": 0.0}, "lost", error="its worker was lost"))
    with open_ledger(tmp_path) as ledger:
        assert (ledger.records, ledger.unfinished) == ({}, {0: {"alpha": 0.0}})


def test_a_second_process_is_kept_out(tmp_path):
    with open_ledger(tmp_path), pytest.raises(ConfigError, match="in use"), open_ledger(tmp_path):
        pass


def test_the_status_follows_from_the_last_report():
    refused = EpochReport(epoch=2, value=None, refused="too few")
    good = EpochReport(epoch=1, value=3.0)
    assert close_record(0, {}, (good,), 2).status == "stopped"
    assert close_record(0, {}, (good, EpochReport(epoch=2, value=4.0)), 2).status == "finished"
    record = close_record(0, {}, (good, refused), 2)
    assert (record.status, record.value) == ("refused", None)


def test_the_goal_decides_where_there_is_one_and_a_value():
    assert EpochReport(epoch=1, value=3.0).score == 3.0
    assert EpochReport(epoch=1, value=3.0, goal=-1.0).score == -1.0
    assert EpochReport(epoch=1, value=None, goal=5.0, refused="too few").score is None


def test_numbers_that_are_not_finite_do_not_reach_the_file(tmp_path):
    report = EpochReport(epoch=1, value=1.0, standard_error=float("nan"), metrics={"loss": float("inf")})
    with open_ledger(tmp_path) as ledger:
        ledger.start(0, {})
        ledger.end(close_record(0, {}, (report,), 1))
    with open_ledger(tmp_path) as ledger:
        last = ledger.records[0].last
        assert last is not None and last.standard_error is None and last.metrics == {"loss": None}
