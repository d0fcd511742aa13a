"""Worlds as YAML: what is shipped, what is refused and how, and that any number of pages lives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plpm_ray.core.errors import ConfigError
from plpm_ray.simulation.choosers import FixedPage, LoggingPolicy, MyopicOracle, RandomPage
from plpm_ray.simulation.config import WorldConfig, load_world, shipped_worlds
from plpm_ray.simulation.simulation import Simulation, run_days
from plpm_ray.simulation.world import World
from tests.world_runs import column, plain_world, sessions_of

MINIMAL = """name: mine
pages:
  - {name: home}
  - {name: friends, live: true}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_four_worlds_are_shipped() -> None:
    assert shipped_worlds() == ["five_pages", "hard", "kuaishou", "null"]
    for name in shipped_worlds():
        world = load_world(name)
        assert world.name == name and world.description
    assert len(load_world("five_pages").pages) == 5


def test_null_is_kuaishou_without_the_effect_of_landing() -> None:
    null, kuaishou = load_world("null"), load_world("kuaishou")
    changed = {name for name in WorldConfig.model_fields if getattr(null, name) != getattr(kuaishou, name)}
    assert changed == {"name", "description", "landing", "targets"}
    assert null.landing == kuaishou.landing.model_copy(update={"enabled": False})


def test_hard_is_harder_than_kuaishou() -> None:
    hard, kuaishou = load_world("hard"), load_world("kuaishou")
    assert (
        hard.logging.default_share > 2 * kuaishou.logging.default_share
        and 0.02 <= hard.logging.explore <= 0.05
    )
    for section in ("satiation", "unfinished", "retention"):
        assert getattr(hard, section).logit > 1.4 * getattr(kuaishou, section).logit
    assert hard.day_intent.sd / hard.population.preference_sd > 2
    assert max(p.returning for p in hard.pages) > max(p.returning for p in kuaishou.pages)


def test_a_world_of_ones_own_is_read_and_changed(tmp_path: Path) -> None:
    world = load_world(written(tmp_path, MINIMAL), ("satiation.enabled=false", "entries.per_day=9"))
    assert world.name == "mine" and not world.satiation.enabled and world.entries.per_day == 9
    assert load_world(world.model_dump(mode="json")) == world
    assert len(sessions_of(World(world), 50, 2)) > 1


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("satiaton: {logit: 1}", "mine.yaml:5: unknown key 'satiaton'", "did you mean 'satiation'?"),
        ("entries: {per_dya: 3}", "mine.yaml:5: unknown key 'per_dya' in entries", "did you mean 'per_day'?"),
        ("logging: {default_page: freinds}", "'freinds'] is not among the pages ['home', 'friends']", ""),
        ("targets: {page_share: {shop: 0.5}}", "targets.page_share: ['shop'] is not among the pages", ""),
        ("targets: {sources: {hourli: x}}", "'hourli' is no target", ""),
        ("targets: {weekday: [1, 1]}", "weekday is 7 positive numbers", ""),
        ("tide: {hours: [1, 2, 3]}", "mine.yaml:5: tide.hours: hours are 24 positive weights", ""),
        ("week: {activity: [1, 1, 1, 1, 1, 1, 0]}", "activity is 7 positive factors", ""),
        ("logging: {explore: 0.6, default_share: 0.6}", "add up to more than 1", ""),
        ("population: {multi_page: 1.2}", "population.multi_page", ""),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, line: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_world(written(tmp_path, MINIMAL + line + "\n"))
    assert message in error.value.message
    assert hint in (error.value.hint or "")


def test_a_wrong_name_brings_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown world 'kuaishuo'") as error:
        load_world("kuaishuo")
    assert "did you mean 'kuaishou'?" in str(error.value.hint) and "five_pages" in str(error.value.hint)
    assert str(error.value.hint).count("did you mean") == 1
    with pytest.raises(ConfigError, match="does not exist"):
        load_world("nowhere/world.yaml")


@pytest.mark.parametrize("k", [1, 33])
def test_a_world_has_two_to_thirty_two_pages(k: int) -> None:
    with pytest.raises(ConfigError, match="2 to 32 pages"):
        load_world({"name": "mine", "pages": [{"name": f"p{i}"} for i in range(k)]})


@pytest.mark.parametrize("k", [2, 3, 7, 32])
def test_any_number_of_pages_lives(k: int) -> None:
    pages = [{"name": f"p{i}", "popularity": i % 3 / 2, "live": i == 1, "returning": 0.1} for i in range(k)]
    world = World(load_world({"name": "mine", "pages": pages}))
    for chooser in (LoggingPolicy(), RandomPage(), MyopicOracle()):
        sessions = sessions_of(world, 300, 3, chooser)
        landing = column(sessions, "landing")
        assert set(np.unique(landing)) <= set(range(k)) and len(np.unique(landing)) > min(k, 10) / 2
        assert all(s.video_views(world).min() >= 0 for s in sessions)
        assert (column(sessions, "use_ms") > 0).all()


def test_watching_and_views_are_those_of_the_pages_lived() -> None:
    pages = [{"name": "slow", "view_s": 60.0, "watch_share": 0.2}, {"name": "fast", "view_s": 5.0}]
    world = plain_world(pages, landing={"enabled": False})
    watched = []
    for page in (0, 1):
        sessions = sessions_of(world, 300, 2, FixedPage(world, page))
        watched.append([(s.watch_ms(world).sum(), s.video_views(world).sum()) for s in sessions])
    assert watched[0] == watched[1], "the landing page changes nothing here, nor what is watched"
    real = plain_world(pages)
    session = sessions_of(real, 200, 1, FixedPage(real, 1))[0]
    on = session.walk.pages_PB == 1
    np.testing.assert_array_equal(session.watch_ms(real)[on], np.rint(session.walk.dwell_ms_PB[on] * 0.85))
    counted = session.walk.dwell_ms_PB[on] // 5000 + (session.walk.dwell_ms_PB[on] >= 1000)
    np.testing.assert_array_equal(session.video_views(real)[on], counted)


def test_a_replicate_is_another_luck_for_the_same_users() -> None:
    world, users = World(load_world("kuaishou")), np.arange(200)
    one, other = (Simulation(world, users, replicate=r) for r in (0, 1))
    np.testing.assert_array_equal(one.users.preference_KU, other.users.preference_KU)
    assert one.users.profile().equals(other.users.profile())
    for simulation in (one, other):
        run_days(simulation, 2, LoggingPolicy())
    assert (one.state.last_exit_ms != other.state.last_exit_ms).mean() > 0.9


def test_who_slept_through_a_day_in_the_app_does_not_enter_on_it() -> None:
    world = plain_world(entries={"active": 0.99})
    simulation = Simulation(world, np.arange(100))
    simulation.begin_day()
    midnight = world.day_start_ms(1, simulation.users.utc_offset_min)
    simulation.state.last_exit_ms[:50] = midnight[:50] + 86_400_000
    active = simulation.begin_day()
    assert not active[:50].any() and active[50:].mean() > 0.9
    entries = simulation.entries()
    assert entries is not None and (entries.rows >= 50).all()
