"""Somebody's own logs, from a folder of Parquet to a served decision, with nothing but YAML files.

Four pages of other names, string user ids, and two context columns that nobody has heard of: which page holds people
depends on them alone, so a navigator that does not read them cannot be any good.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import DAY_MS, TIMESTAMP, Warehouse
from plpm_ray.data.day_table import day_number
from plpm_ray.navigators.bundle import load_bundle
from tests.command_line import done, free_port, only, post, while_serving, write_yaml
from tests.unit.data import own_logs

PAGES = own_logs.PAGES
USERS, SESSIONS, DAYS = 60, 4000, 7
AFTER_MS = (day_number(own_logs.FIRST_DAY) + DAYS) * DAY_MS + 6 * 3_600_000
CONTEXTS = [(battery, device) for battery in (10, 90) for device in ("phone", "tablet")]
POLICY = {"kind": "epsilon", "epsilon": 0.3, "seed": 5}


def best_page(battery: int, device: str) -> str:
    return "clips" if device == "tablet" else "shop" if battery > 50 else "home"


def logs() -> pa.Table:
    """Evenly drawn landing pages; the right one for battery and device is stayed on ten times as long."""
    table = own_logs.sessions(SESSIONS, seed=3, days=DAYS, users=USERS)
    rows = table.select(["landing_page", "battery", "device", "dwell_s", "entry_time"]).to_pylist()
    dwell = [r["dwell_s"] for r in rows]
    for row, seconds in zip(rows, dwell, strict=True):
        seconds[0] *= 10 if row["landing_page"] == best_page(row["battery"], row["device"]) else 1
    entry_ms = table["entry_time"].cast(pa.int64()).to_numpy()
    changed = {
        "user_id": pa.array([f"user-{u:02d}" for u in table["user_id"].to_pylist()]),
        "exit_time": pa.array(entry_ms + [round(sum(d) * 1000) for d in dwell]).cast(TIMESTAMP),
        "dwell_s": pa.array(dwell, pa.list_(pa.float64())),
        "propensity": pa.array(np.full(SESSIONS, 1 / len(PAGES))),
    }
    for name, column in changed.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def entries() -> pa.Table:
    """Every user, and one that nobody knows, in all four contexts at one moment after the logs."""
    users = [*(f"user-{u:02d}" for u in range(USERS)), "stranger"]
    rows = [(user, *context) for user in users for context in CONTEXTS]
    return pa.table(
        {
            "entry_id": pa.array(np.arange(len(rows)) + 500),
            "user_id": pa.array([r[0] for r in rows]),
            "entry_time": pa.array(np.full(len(rows), AFTER_MS)).cast(TIMESTAMP),
            "battery": pa.array([r[1] for r in rows]),
            "device": pa.array([r[2] for r in rows]),
        }
    )


@dataclass(frozen=True)
class App:
    """The folder of an app after data, train, evaluate and decide; `printed` by command."""

    folder: Path
    printed: dict[str, str]

    @property
    def warehouse(self) -> Path:
        return self.folder / "warehouse"

    @property
    def run(self) -> Path:
        return only(self.folder / "runs", "my_iit-*")

    def decide(self, name: str, entries: pa.Table, history: Path, **settings: Any) -> pa.Table:
        """The decisions that `plpm decide` writes."""
        pq.write_table(entries, self.folder / f"{name}_entries.parquet")
        config = {
            "bundle": str(self.folder / "runs" / "my_iit"),
            "entries": str(self.folder / f"{name}_entries.parquet"),
            "history": str(history),
            "output": str(self.folder / name / "decisions.parquet"),
            "policy": POLICY,
            **settings,
        }
        self.printed[name] = done("decide", write_yaml(self.folder / f"{name}.yaml", config))
        return pq.read_table(config["output"])


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    folder = tmp_path_factory.mktemp("app")
    table = logs()
    for part, start in enumerate(range(0, SESSIONS, 1000)):  # in depth, as a logging system leaves them
        own_logs.write(folder / "logs" / f"part={part}", table.slice(start, 1000))
    shared = {
        "run_root": str(folder / "runs"),
        "tables": str(folder / "warehouse"),
        "split": {"valid_days": 1, "test_days": 2},
    }
    configs: dict[str, dict[str, Any]] = {
        "data": {
            "dataset": {**own_logs.DATASET, "title": "my_app", "path": str(folder / "logs")},
            "output": str(folder / "warehouse"),
            "n_buckets": 2,
        },
        "train": {
            "name": "my_iit",
            "learner": {"name": "klan.iit", "hidden": [64], "alpha": 0.1, "gamma": 0.0},
            "training": {"epochs": 25, "batch_size": 256, "lr": 3e-3, "device": "cpu"},
            **shared,
        },
        "evaluate": {
            "policies": [
                {"label": "IIT", "bundle": str(folder / "runs" / "my_iit")},
                {"navigator": "heuristic.popularity"},
            ],
            "judge": {"estimators": ["snips"]},
            **shared,
        },
    }
    printed = {name: done(name, write_yaml(folder / f"{name}.yaml", c)) for name, c in configs.items()}
    return App(folder, printed)


@pytest.fixture(scope="module")
def decided(app: App) -> pa.Table:
    return app.decide("decide", entries(), app.warehouse)


def by_context(table: pa.Table) -> np.ndarray:
    """(users, contexts, pages) scores."""
    return np.array(table["scores"].to_pylist()).reshape(-1, len(CONTEXTS), len(PAGES))


def test_the_tables_hold_every_row_and_both_columns(app: App) -> None:
    summary = read_json(app.warehouse / "summary.json")
    assert summary["rows_in"] == summary["sessions"] == summary["transitions"]["rows"] == SESSIONS
    assert list(summary["landing_shares"]) == list(PAGES) and not summary["quarantined"]
    info = Warehouse.open(app.warehouse).info
    assert (info.name, info.user_id, info.propensity_known) == ("my_app", "string", True)
    assert dict(info.context) == {"battery": "numeric", "device": "categorical"}


def test_the_bundle_carries_pages_and_context_columns(app: App) -> None:
    bundle = load_bundle(app.run / "bundle")
    assert bundle.pages.names == PAGES
    assert dict(bundle.spec.schema.context) == {"battery": "numeric", "device": "categorical"}
    assert bundle.data["dataset"] == "my_app"


def test_decisions_follow_the_context_columns(decided: pa.Table) -> None:
    known = by_context(decided)[:USERS]
    # the same user at the same moment: only the context differs, first the device, then the battery
    assert (np.abs(known[:, 0] - known[:, 1]).max(1) > 1e-3).all()
    assert (np.abs(known[:, 0] - known[:, 2]).max(1) > 1e-3).all()
    best = np.array([PAGES.index(best_page(*context)) for context in CONTEXTS])
    assert (known.argmax(2) == best).mean() > 0.7


def test_the_trained_policy_is_worth_more_than_the_logs(app: App) -> None:
    results = {
        r["policy"]: r for r in read_json(only(app.folder / "runs", "evaluate-*") / "summary.json")["results"]
    }
    logged, trained = (results[name]["estimates"]["snips"] for name in ("(the log itself)", "IIT"))
    assert trained["refused"] is None and trained["low"] > logged["high"]
    assert "IIT" in app.printed["evaluate"] and "propensities           logged" in app.printed["evaluate"]


def test_a_decision_is_a_row_with_page_scores_propensity_and_versions(app: App, decided: pa.Table) -> None:
    assert decided.num_rows == 4 * (USERS + 1)
    assert decided["entry_id"].to_pylist() == [500 + i for i in range(decided.num_rows)]
    rows = decided.to_pylist()
    for row in rows[:-4]:
        assert row["fallback"] is None
        assert row["propensity"] == pytest.approx(row["probabilities"][PAGES.index(row["page"])])
        assert max(row["probabilities"]) == pytest.approx(0.7 + 0.3 / 4)
    assert {row["fallback"] for row in rows[-4:]} == {"unknown_user"}
    assert {row["navigator_version"] for row in rows} == {load_bundle(app.run / "bundle").version}
    assert read_json(app.folder / "decide" / "summary.json")["rows"] == decided.num_rows
    assert "decide done" in app.printed["decide"]


@pytest.fixture(scope="module")
def served(app: App, ray_session: None) -> dict[str, Any]:
    """What a real `plpm serve` answered: to all entries, then after a new session of one user."""
    config = {
        "bundle": str(app.folder / "runs" / "my_iit"),
        "history": str(app.warehouse),
        "policy": POLICY,
        "port": free_port(),
        "decision_log": {"folder": str(app.folder / "log")},
    }
    answers: dict[str, Any] = {}
    answers["printed"] = while_serving(write_yaml(app.folder / "serve.yaml", config), asker(answers))
    return answers


def asker(answers: dict[str, Any]) -> Callable[[str], None]:
    def ask(url: str) -> None:
        answers["all"] = post(f"{url}/v1/navigate", [as_json(row) for row in entries().to_pylist()])
        entry = {**as_json(entries().slice(0, 1).to_pylist()[0]), "entry_time": AFTER_MS + 60_000}
        answers["one"] = post(f"{url}/v1/navigate", entry)
        page = answers["one"][1]["page"]
        seen = {
            "landing_page": page,
            "pages": [page, "friends"],
            "dwell_s": [4.5, 600.0],
            "video_views": [0, 7],
        }
        session = {**entry, **seen, "session_id": 10**9, "exit_time": AFTER_MS + 664_500}
        answers["observed"] = post(f"{url}/v1/sessions", session)
        answers["later"] = post(f"{url}/v1/navigate", [as_json(row) for row in later().to_pylist()])
        answers["typo"] = post(f"{url}/v1/navigate", {"user_id": "user-00", "context": {"batery": 3}})

    return ask


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    context = {name: row[name] for name in ("battery", "device")}
    return {"user_id": row["user_id"], "entry_time": row["entry_time"].isoformat(), "context": context}


def later() -> pa.Table:
    """The first two users an hour after that."""
    table = entries().slice(0, 8)
    time = pa.array(np.full(8, AFTER_MS + 3_600_000)).cast(TIMESTAMP)
    return table.set_column(table.column_names.index("entry_time"), "entry_time", time)


def assert_same(reply: tuple[int, list[dict[str, Any]]], offline: pa.Table) -> None:
    status, answers = reply
    assert status == 200 and len(answers) == offline.num_rows
    for answer, row in zip(answers, offline.to_pylist(), strict=True):
        assert list(answer["scores"]) == list(PAGES)
        np.testing.assert_allclose(list(answer["scores"].values()), row["scores"], rtol=0, atol=1e-6)
        assert (answer["page"], answer["fallback"]) == (row["page"], row["fallback"])
        assert answer["propensity"] == pytest.approx(row["propensity"], abs=1e-12)
        assert answer["versions"]["navigator"] == row["navigator_version"]
        assert answer["policy"] == row["policy"]


def test_served_decisions_equal_those_of_decide(served: dict[str, Any], decided: pa.Table) -> None:
    assert_same(served["all"], decided)


@pytest.fixture(scope="module")
def all_logs(app: App, served: dict[str, Any]) -> Path:
    """The logs, and beside them the sessions that the service wrote."""
    folder = app.folder / "all_logs"
    shutil.copytree(app.folder / "logs", folder)
    (folder / "served").mkdir()
    shutil.copy(only(app.folder / "log", "sessions-*.parquet"), folder / "served")
    return folder


def test_a_session_sent_to_the_service_counts_as_one_in_the_files(
    app: App, served: dict[str, Any], all_logs: Path
) -> None:
    assert served["observed"] == (200, {"accepted": 1, "duplicate": 0, "late": 0})
    offline = app.decide("decide_later", later(), all_logs)
    assert_same(served["later"], offline)
    before = app.decide("decide_without", later(), app.warehouse)
    scores, without = (np.array(table["scores"].to_pylist()) for table in (offline, before))
    changed = np.abs(scores - without).max(1) > 1e-4
    assert changed.tolist() == [True] * 4 + [False] * 4  # only the user who was seen again


def test_what_was_served_comes_back_as_log_rows(app: App, served: dict[str, Any], all_logs: Path) -> None:
    decisions = pq.read_table(only(app.folder / "log", "decisions-*.parquet"))
    assert decisions.num_rows == entries().num_rows + 1 + later().num_rows
    more = ["--set", f"dataset.path={all_logs}", "--set", f"output={app.folder / 'next_warehouse'}"]
    done("data", app.folder / "data.yaml", *more)
    sessions = own_logs.stored(app.folder / "next_warehouse")
    assert sessions.num_rows == SESSIONS + 1
    (row,) = sessions.filter(pc.equal(sessions["session_id"], 10**9)).to_pylist()
    answer = served["one"][1]
    assert (row["policy"], row["propensity"]) == (answer["policy"], answer["propensity"])
    assert PAGES[row["landing_page"]] == answer["page"] and row["battery"] == 10


def test_the_service_names_a_misspelt_context_column(served: dict[str, Any]) -> None:
    status, answer = served["typo"]
    assert (status, answer["field"]) == (422, "context.batery")
    assert "POST /v1/navigate" in served["printed"]
