"""GLAN behind the API: answers that explain themselves, feedback that moves R_t, parts that are elsewhere or lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import ConfigError
from plpm_ray.navigators.bundle import save_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.api import Service
from plpm_ray.serving.config import PartConfig, ServeArgs
from plpm_ray.serving.deployment import build_application
from plpm_ray.serving.engine import NavigationPolicy, load_policy
from plpm_ray.serving.graph import PartServer, PartSource, RemoteParts, Rows, attached
from plpm_ray.serving.replica import Replica
from plpm_ray.serving.store import Users
from tests.unit.serving.glan_world import day_of, glan_bundle
from tests.unit.serving.serving_world import PAGES
from tests.unit.serving.test_serving_api import call
from tests.unit.serving.test_serving_glan import HOUR, NOON
from tests.unit.serving.test_serving_parts import Local

POLICY = PolicyConfig(kind="proportional")


def navigated(service: Service, user: int, at: int) -> dict[str, Any]:
    status, answer = call(service, "POST", "/v1/navigate?explain=1", {"user_id": user, "entry_time": at})
    assert status == 200, answer
    return answer


def rtg(answer: dict[str, Any]) -> float:
    found = {parts["rtg"] for parts in answer["explanation"].values()}
    assert len(found) == 1
    return found.pop()


def test_answers_explain_themselves_and_feedback_moves_the_return_to_go() -> None:
    service = Service(load_policy(glan_bundle(), POLICY))
    first = navigated(service, 1, NOON)
    assert first["fallback"] is None and first["policy"].startswith("glan-")
    for page in PAGES.names:
        assert list(first["explanation"][page]) == ["p", "stay", "rtg"]
    assert sum(first["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    assert {"navigator_lrtg", "navigator_hrm", "navigator_dt"} <= set(first["versions"])
    sent = call(service, "POST", "/v1/sessions", day_of(1, [NOON]).to_pylist())
    assert sent == (200, {"accepted": 1, "duplicate": 0, "late": 0})
    then = navigated(service, 1, NOON + HOUR)
    assert rtg(then) < rtg(first) and then["scores"] != first["scores"]
    assert rtg(navigated(service, 2, NOON + HOUR)) > 0


class Counted(Local):
    """Parts in this process that count what they were asked for, and how wide the past was."""

    def __init__(self, servers: dict[str, PartServer]) -> None:
        super().__init__(servers)
        self.asked: list[str] = []
        self.widths: list[int] = []
        self.rows: list[Rows] = []

    async def scores(self, role: str, source: PartSource, rows: Rows) -> np.ndarray:
        self.asked.append(role)
        if role == "dt":
            self.widths.append(rows[3]["glan.past"].shape[1])
            self.rows.append(rows)
        return await super().scores(role, source, rows)


@pytest.fixture
def elsewhere(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> tuple[NavigationPolicy, Counted]:
    """GLAN with lrtg and dt in servers of their own."""
    bundle = glan_bundle()
    save_bundle(bundle, tmp_path / "glan")
    sources = {
        role: PartSource(bundle.parts[role].version, str(tmp_path / "glan" / "parts" / role))
        for role in ("lrtg", "dt")
    }
    parts = Counted({role: PartServer(source.path) for role, source in sources.items()})
    policy = load_policy(glan_bundle(), POLICY)
    attached(policy, RemoteParts(parts, sources, loop, timeout_s=5))
    return policy, parts


def test_parts_elsewhere_decide_as_those_inside(elsewhere: tuple[NavigationPolicy, Counted]) -> None:
    policy, parts = elsewhere
    inside = load_policy(glan_bundle(), POLICY)
    for n in range(8):
        # user 3 comes half as often as the others, user 4 never before the last time
        users = [user for user in range(5) if (user, n % 2) != (3, 1) and (user < 4 or n == 7)]
        entries = pa.table({"user_id": users, "entry_time": [NOON + n * HOUR] * len(users)})
        one, other = inside.decide(entries), policy.decide(entries)
        assert one.equals(other) and other["fallback"].null_count == len(users)
        asked = list(parts.asked)
        ended = pa.concat_tables([day_of(user, [NOON + n * HOUR], first_id=n) for user in users])
        assert inside.observe(ended) == policy.observe(ended) == len(users)
        assert parts.asked == asked  # feedback asks nobody
    assert set(parts.widths) == {96 * n for n in range(7)}  # what there is of the day, and no more
    # L-RTG is asked until a session of the day is known: in round 0, and in round 7 for user 4
    assert parts.asked == ["lrtg", "dt", *["dt"] * 6, "lrtg", "dt"]


def test_days_of_different_length_are_scored_together(elsewhere: tuple[NavigationPolicy, Counted]) -> None:
    """Requests of one moment are joined; a day with fewer sessions is given empty ones at its end."""
    policy, parts = elsewhere
    for n in range(4):
        policy.decide(pa.table({"user_id": [n], "entry_time": [NOON + n * HOUR]}))
        policy.observe(pa.concat_tables([day_of(u, [NOON + n * HOUR], first_id=n) for u in range(n, 4)]))
    assert parts.widths == [0, 96, 192, 288]
    server = parts.servers["dt"]
    source = PartSource(policy.bundle.parts["dt"].version, "")

    async def together() -> list[np.ndarray]:
        return await asyncio.gather(*(server.scores(source, rows) for rows in parts.rows))

    alone = [asyncio.run(server.scores(source, rows)) for rows in parts.rows]
    for one, other in zip(alone, asyncio.run(together()), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-4)


def test_a_part_that_fails_leaves_the_decision_to_the_fallback(
    elsewhere: tuple[NavigationPolicy, Counted],
) -> None:
    policy, parts = elsewhere
    service = Service(policy, in_thread=True)
    before = navigated(service, 1, NOON)
    lost = parts.servers.pop("lrtg")
    failed = navigated(service, 1, NOON)
    assert failed["fallback"] == "part_failed" and failed["explanation"] is None
    # feedback is counted all the same, and once a session is known nothing asks L-RTG any more
    assert call(service, "POST", "/v1/sessions", day_of(1, [NOON]).to_pylist())[1]["accepted"] == 1
    then = navigated(service, 1, NOON + HOUR)
    assert then["fallback"] is None and rtg(then) < rtg(before)
    parts.servers["lrtg"] = lost
    del parts.servers["dt"]
    assert navigated(service, 1, NOON + HOUR)["fallback"] == "part_failed"
    assert call(service, "GET", "/v1/info")[1]["part_error"].startswith("part 'dt' failed")


def test_a_swap_under_way_begins_the_day_anew(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_bundle(glan_bundle(seed), tmp_path / str(seed))
    replica = Replica(ServeArgs(bundle=str(tmp_path / "0"), policy=POLICY))
    replica.configure({})
    service = replica.service
    assert service is not None
    call(service, "POST", "/v1/sessions", day_of(1, [NOON, NOON + HOUR]).to_pylist())
    thread = replica.configure({"bundle": str(tmp_path / "1")})
    assert thread is not None
    thread.join()
    first = navigated(service, 1, NOON + 2 * HOUR)
    assert first["versions"]["navigator"] == glan_bundle(1).version and first["fallback"] is None
    call(service, "POST", "/v1/sessions", day_of(1, [NOON + 2 * HOUR], first_id=5).to_pylist())
    state = service.policy.store.load(Users.of([1]))[0]["nav"][0]
    assert state[0] == 1 and state[2] == rtg(first)  # one session, and R_1 of the new version
    replica.close()


def test_nothing_is_deployed_for_what_no_decision_asks(tmp_path: Path) -> None:
    bundle = str(save_bundle(glan_bundle(), tmp_path / "glan"))
    with pytest.raises(ConfigError, match=r"graph\.hrm"):
        build_application(ServeArgs(bundle=bundle, layout="graph", graph={"hrm": PartConfig()}))
    with pytest.raises(ConfigError, match="'drtg'"):
        build_application(ServeArgs(bundle=bundle, layout="graph", graph={"drtg": PartConfig()}))
