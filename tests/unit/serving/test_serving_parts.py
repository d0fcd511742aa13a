"""Parts of a composed navigator swapped alone, deltas of the scoring job, and parts that answer from elsewhere."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from plpm_ray.core.errors import BundleError, ConfigError, DataError, PartError
from plpm_ray.core.features import RawFeatures
from plpm_ray.navigators.bundle import save_bundle
from plpm_ray.serving.config import PartConfig, ServeArgs, ServeConfig, SwapConfig
from plpm_ray.serving.deltas import load_deltas, newest_day
from plpm_ray.serving.deployment import DEPLOYMENT, build_application, read_args
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.graph import PartServer, PartSource, RemoteParts, Rows, VersionGone, attached
from plpm_ray.serving.memory_store import MemoryStore
from plpm_ray.serving.replica import Replica, served_bundle, swap_config
from plpm_ray.serving.store import Users
from tests.unit.serving.serving_world import (
    batch_of,
    bundle_of,
    composed_bundle,
    profiles_table,
    sessions_table,
)
from tests.unit.serving.test_serving_api import SESSION, call

ENTRY = {"user_id": 1, "entry_time": 1_700_010_000_000, "context": {"push": 1, "device": "phone"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(composed_bundle(), tmp_path / "klan")
    save_bundle(bundle_of("klan.am", 77), tmp_path / "am")
    return tmp_path


def test_a_part_is_swapped_alone(folder: Path) -> None:
    replica = Replica(ServeArgs(bundle=str(folder / "klan")))
    replica.configure({})
    service = replica.service
    assert service is not None
    call(service, "POST", "/v1/sessions", SESSION)
    before = call(service, "POST", "/v1/navigate?explain=1", ENTRY)[1]
    thread = replica.configure({"parts": {"am": str(folder / "am")}})
    assert thread is not None
    thread.join()
    after = call(service, "POST", "/v1/navigate?explain=1", ENTRY)[1]
    versions = before["versions"] | {
        "navigator": after["versions"]["navigator"],
        "navigator_am": bundle_of("klan.am", 77).version,
    }
    assert after["versions"] == versions and versions["navigator"] != before["versions"]["navigator"]
    for page, parts in after["explanation"].items():
        same = {name: parts[name] == before["explanation"][page][name] for name in parts}
        assert same == {"delta": True, "p": True, "gamma": False, "sigma": False}
    thread = replica.configure({"parts": {"im": str(folder / "am")}})
    assert thread is not None
    thread.join()
    assert "'im'" in call(service, "GET", "/v1/info")[1]["swap_error"]
    replica.close()


def test_parts_that_do_not_fit_are_refused(folder: Path) -> None:
    other = bundle_of("klan.iit")
    other.pages = other.pages.model_validate(["a", "b", "c", "d"])
    save_bundle(other, folder / "other")
    args = ServeArgs(bundle=str(folder / "klan"), parts={"am": str(folder / "other")})
    with pytest.raises(BundleError, match="'am'"):
        served_bundle(args, SwapConfig())
    with pytest.raises(BundleError, match="absent"):
        served_bundle(args, SwapConfig(parts={"am": str(folder / "absent")}))


def test_a_watched_part_may_come_later(folder: Path) -> None:
    args = ServeArgs(bundle=str(folder / "klan"), parts={"am": str(folder / "later")}, refresh_s=60)
    replica = Replica(args)
    service = replica.start()
    inside = composed_bundle().parts["am"].version
    assert call(service, "POST", "/v1/navigate", ENTRY)[1]["versions"]["navigator_am"] == inside
    assert replica.refresh() is False
    save_bundle(bundle_of("klan.am", 78), folder / "later")
    assert replica.refresh() is True
    published = bundle_of("klan.am", 78).version
    assert call(service, "POST", "/v1/navigate", ENTRY)[1]["versions"]["navigator_am"] == published
    replica.close()
    wrong = ServeArgs(bundle=str(folder / "klan"), parts={"ma": str(folder / "absent")}, refresh_s=60)
    with pytest.raises(BundleError, match="absent"):
        served_bundle(wrong, SwapConfig())


def test_a_new_version_of_a_watched_part_is_taken_over_without_losing_requests(folder: Path) -> None:
    args = ServeArgs(bundle=str(folder / "klan"), parts={"am": str(folder / "am")}, refresh_s=0.02)
    replica = Replica(args)
    replica.configure({})
    service = replica.service
    assert service is not None
    wanted = {seed: bundle_of("klan.am", seed).version for seed in (78, 79)}
    for seed, version in wanted.items():
        save_bundle(bundle_of("klan.am", seed), folder / "am")
        statuses, served = [], ""
        for _ in range(500):
            status, answer = call(service, "POST", "/v1/navigate", ENTRY)
            statuses.append(status)
            served = answer["versions"]["navigator_am"]
            if served == version:
                break
            threading.Event().wait(0.01)
        assert served == version and set(statuses) == {200}
    (folder / "am" / "bundle.json").write_text("{")  # being written, or damaged
    assert replica.refresh() is False
    assert call(service, "POST", "/v1/navigate", ENTRY)[1]["versions"]["navigator_am"] == wanted[79]
    replica.close()


def write_day(folder: Path, day: int, values: np.ndarray, done: bool = True, width: int = 4) -> None:
    path = folder / f"day={day}"
    path.mkdir(parents=True)
    for bucket in range(2):
        ids = np.arange(bucket, len(values), 2)
        flat = pa.array(values[ids].astype(np.float32).reshape(-1))
        table = pa.table({"user_id": ids, "delta": pa.FixedSizeListArray.from_arrays(flat, values.shape[1])})
        pq.write_table(table, path / f"bucket={bucket:05d}.parquet")
    if done:
        info = {"version": "isp-1", "day": day, "width": width, "population": [1 / width] * width}
        (path / "manifest.json").write_text(json.dumps(info | {"rows": len(values)}))


def test_the_newest_complete_day_of_deltas_is_loaded(folder: Path) -> None:
    deltas, values = folder / "deltas", np.random.default_rng(0).dirichlet(np.ones(4), (3, 20))
    write_day(deltas, 20_000, values[0])
    write_day(deltas, 20_002, values[2], done=False)
    args = ServeArgs(bundle=str(folder / "klan"), deltas=str(deltas), refresh_s=1000)
    replica = Replica(args)
    replica.configure({})
    assert replica.service is not None
    answer = call(replica.service, "POST", "/v1/navigate", ENTRY)[1]
    assert answer["versions"]["delta_version"] == "isp-1@20000"
    store, users = replica.service.policy.store, Users.of([1, 18, 20])
    expected = np.concatenate([values[0][[1, 18]], np.full((1, 4), np.nan)]).astype(np.float32)
    np.testing.assert_array_equal(store.vectors("delta", users), expected)
    write_day(deltas, 20_001, values[1])
    assert replica.refresh() and not replica.refresh()
    np.testing.assert_array_equal(store.vectors("delta", Users.of([7])), values[1][[7]].astype(np.float32))
    manifest = deltas / "day=20001" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"inputs": "with late sessions"}))
    assert replica.refresh() and not replica.refresh()
    write_day(deltas, 20_003, values[1][:, :3], width=3)
    assert not replica.refresh()
    assert "3 pages" in call(replica.service, "GET", "/v1/info")[1]["deltas_error"]
    replica.close()


def test_deltas_that_lack_something_are_named(tmp_path: Path) -> None:
    assert newest_day(tmp_path) is None and not load_deltas(MemoryStore(), tmp_path, 4)
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1" / "manifest.json").write_text('{"version": "a", "day": 1}')
    with pytest.raises(DataError, match="width, population"):
        load_deltas(MemoryStore(), tmp_path, 4)


class Local:
    """Parts in this process, in the event loop that asks them; some may be lost or slow."""

    def __init__(self, servers: dict[str, PartServer]) -> None:
        self.servers = servers
        self.slow: set[str] = set()

    async def scores(self, role: str, source: PartSource, rows: Rows) -> np.ndarray:
        if role in self.slow:
            await asyncio.sleep(60)
        return await self.servers[role].scores(source, rows)

    async def prepare(self, role: str, source: PartSource) -> None:
        await self.servers[role].prepare(source)


def sources_of(folder: Path) -> dict[str, PartSource]:
    parts = composed_bundle().parts
    return {
        role: PartSource(part.version, str(folder / "klan" / "parts" / role)) for role, part in parts.items()
    }


def test_parts_elsewhere_score_as_those_inside(folder: Path, loop: asyncio.AbstractEventLoop) -> None:
    sources = sources_of(folder)
    local = Local({role: PartServer(source.path) for role, source in sources.items()})
    inside, outside = (load_policy(composed_bundle(), users=profiles_table()) for _ in range(2))
    remote = RemoteParts(local, sources, loop, timeout_s=5)
    attached(outside, remote)
    sessions = sessions_table(users=4)
    entries = pa.table({"user_id": list(range(4)), "entry_time": [ENTRY["entry_time"]] * 4})
    for policy in (inside, outside):
        policy.observe(sessions)
        policy.warm_up()
    assert inside.decide(entries).equals(outside.decide(entries))
    del local.servers["am"]
    assert outside.decide(entries)["fallback"].to_pylist() == ["part_failed"] * 4
    assert "'am'" in str(outside.chain.failure)
    local.servers["am"], local.slow = local.servers["iit"], {"am"}
    impatient = RemoteParts(local, sources, loop, timeout_s=0.05)
    with pytest.raises(PartError, match=r"within 0\.05 s"):
        impatient(batch_of(sessions, profiles_table()), ("iit", "am"))
    with pytest.raises(PartError, match="not composed"):
        attached(load_policy(bundle_of()), remote)


def test_a_part_keeps_the_versions_of_the_last_swaps(folder: Path, loop: asyncio.AbstractEventLoop) -> None:
    path = folder / "am"
    server, versions, gone = PartServer(str(path)), {77: bundle_of("klan.am", 77).version}, []
    local = Local({"am": server})

    def ask(seed: int) -> np.ndarray:
        source = PartSource(versions[seed], str(path))
        return RemoteParts(local, {"am": source}, loop, 5, lambda: gone.append(seed))(raw, ("am",))["am"]

    raw = batch_of(sessions_table(), profiles_table()).take(np.arange(3))
    expected = {77: bundle_of("klan.am", 77).navigator().scores(raw)}
    for seed in (78, 79):
        save_bundle(bundle_of("klan.am", seed), path)
        versions[seed] = bundle_of("klan.am", seed).version
        expected[seed] = bundle_of("klan.am", seed).navigator().scores(raw)
        for known in expected:
            np.testing.assert_array_equal(ask(known), expected[known])
    save_bundle(bundle_of("klan.am", 80), path)
    versions |= {80: bundle_of("klan.am", 80).version, 81: "klan.am-unknown"}
    ask(80)
    with pytest.raises(PartError) as caught:
        ask(77)  # forgotten, and its folder has another one
    assert isinstance(caught.value.__cause__, VersionGone) and gone == [77]
    ask(79)


def test_requests_at_one_moment_are_scored_together(folder: Path) -> None:
    server, sizes = PartServer(str(folder / "am")), []
    version = bundle_of("klan.am", 77).version
    navigator = server._loaded[version].navigator
    original = navigator.scores

    def scores(features: RawFeatures, state: np.ndarray | None = None) -> np.ndarray:
        sizes.append(len(features))
        return original(features)

    navigator.scores = scores  # type: ignore[method-assign]
    raw = batch_of(sessions_table(), profiles_table())

    async def many() -> list[np.ndarray]:
        parts = [raw.take(np.arange(at, at + 3)) for at in range(0, 60, 3)]
        calls: list[Any] = [
            server.scores(PartSource(version, ""), (p.numeric, p.categorical, p.sequences, p.vectors, p.days))
            for p in parts
        ]
        return await asyncio.gather(*calls)

    together = np.concatenate(asyncio.run(many()))
    assert sum(sizes) == 60 and len(sizes) <= 5
    np.testing.assert_allclose(together, original(raw.take(np.arange(60))), rtol=0, atol=1e-6)


def test_arguments_of_the_graph(folder: Path) -> None:
    bundle = str(folder / "klan")
    made = read_args({"bundle": bundle, "layout": "graph", "graph": {"am": {"num_replicas": 2}}})
    assert made.graph == {"am": PartConfig(num_replicas=2)}
    for wrong, said in (
        ({"bundle": bundle, "graph": {"am": {}}}, "layout"),
        ({"bundle": bundle, "layout": "graph", "graph": {"am": {"replicas": 2}}}, "replicas"),
        ({"bundle": bundle, "stream": {}}, "valkey"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_args(wrong)
    with pytest.raises(ConfigError, match="'aim'"):
        build_application(ServeArgs(bundle=bundle, layout="graph", graph={"aim": PartConfig()}))
    with pytest.raises(ConfigError, match="not composed"):
        build_application(ServeArgs(bundle=str(folder / "am"), layout="graph"))


def test_a_batch_is_decided_by_one_policy(folder: Path) -> None:
    """Also while decisions run in a thread of their own and a part is swapped."""
    replica = Replica(ServeArgs(bundle=str(folder / "klan")), in_thread=True)
    replica.configure({})
    service = replica.service
    assert service is not None
    seen: set[tuple[str, str]] = set()

    def load() -> None:
        for _ in range(40):
            versions = call(service, "POST", "/v1/navigate", ENTRY)[1]["versions"]
            seen.add((versions["navigator"], versions["navigator_am"]))

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        thread = replica.configure({"parts": {"am": str(folder / "am")}})
        assert thread is not None
        thread.join()
        loading.result()
    assert len(seen) <= 2 and len({am for _, am in seen}) == len(seen)
    replica.close()


def test_the_config_files_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLPM_STORE_HOST", "localhost")
    root = Path(__file__).parents[3] / "serve"
    for name in ("iit.yaml", "klan.yaml", "glan.yaml"):
        application = yaml.safe_load((root / name).read_text())["applications"][0]
        assert read_args(application["args"]).bundle.startswith("runs/")
        for deployment in application["deployments"]:
            assert deployment["name"] == DEPLOYMENT
            assert swap_config(deployment["user_config"]).bundle is not None
    for name in ("local.yaml", "local_klan.yaml", "local_glan.yaml"):
        assert ServeConfig.model_validate(yaml.safe_load((root / name).read_text())).port == 8000
