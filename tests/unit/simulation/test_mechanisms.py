"""Every mechanism of the world: switched off it is not there at all, switched on it does what its parameters say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plpm_ray.simulation.choosers import FixedPage
from plpm_ray.simulation.population import make_users
from plpm_ray.simulation.simulation import Entries, Simulation, run_days
from plpm_ray.simulation.world import World
from tests.world_runs import LongestOrWorst, column, log_odds, plain_world, sessions_of

# sessions of a second leave the process of entries alone
MOMENTS = [{"name": f"page_{k}", "dwell_s": 0.5} for k in range(3)]
BRIEF = {"drop_off_s": 0.01, "drop_off": 1.0}


def entries_of(simulation: Simulation) -> Entries:
    entries = simulation.entries()
    assert entries is not None
    return entries


def at_second_entry(world: World, users: int, page: int = 0) -> tuple[Simulation, Entries]:
    """The users' second entries of the first day, after a first session that began on `page`."""
    simulation = Simulation(world, np.arange(users))
    simulation.begin_day()
    simulation.land(np.full(len(entries_of(simulation)), page))
    return simulation, entries_of(simulation)


def test_entries_are_a_poisson_process_along_the_tide() -> None:
    weights = np.concatenate([np.full(8, 1.0), np.full(8, 4.0), np.full(8, 10.0)])
    for tide, expected in (({"hours": tuple(weights)}, weights), ({"enabled": False}, np.ones(24))):
        world = plain_world(MOMENTS, tide=tide, entries={"per_day": 4.0}, landing=BRIEF)
        sessions = sessions_of(world, 3000, 3)
        hours = np.bincount(column(sessions, "hour"), minlength=24)
        assert stats.chisquare(hours, expected / expected.sum() * hours.sum()).pvalue > 1e-4
        step = column(sessions, "step")
        mean = len(step) / (step == 0).sum()
        # Poisson, given that there is at least one
        wanted = 4.0 / -np.expm1(-4.0)
        assert mean == pytest.approx(wanted, abs=4 * 2 / np.sqrt((step == 0).sum()))


def test_the_week_moves_entries_and_active_days() -> None:
    factors = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.5)
    on = plain_world(
        MOMENTS, week={"activity": factors}, entries={"per_day": 3.0, "active": 0.6}, landing=BRIEF
    )
    off = plain_world(MOMENTS, entries={"per_day": 3.0, "active": 0.6}, landing=BRIEF)
    assert (off.week == 1.0).all()
    sessions, users = sessions_of(on, 2000, 7), 2000
    weekday = (on.first_day + column(sessions, "day") + 3) % 7
    first = column(sessions, "step") == 0
    for w in range(7):
        factor = on.week[w]
        share, entries = (
            (weekday[first] == w).sum() / users,
            (weekday == w).sum() / (weekday[first] == w).sum(),
        )
        chance = 1 / (1 + (0.4 / 0.6) / factor)
        assert share == pytest.approx(chance, abs=4 * 0.5 / np.sqrt(users))
        rate = 3.0 * factor
        assert entries == pytest.approx(rate / -np.expm1(-rate), abs=4 * np.sqrt(rate / users / chance))


def test_weekends_and_hours_move_what_is_wanted() -> None:
    pages = [
        {"name": "plain"},
        {"name": "lunch", "peak_hour": 12.5, "hour_logit": 0.8},
        {"name": "weekend", "weekend_logit": 0.7},
    ]
    world = plain_world(pages, tide={}, week={})
    simulation = Simulation(world, np.arange(300))
    for day in range(7):
        simulation.begin_day()
        entries = entries_of(simulation)
        np.testing.assert_allclose(log_odds(entries, 2), 0.7 * (day >= 5), atol=1e-4)
        np.testing.assert_allclose(
            log_odds(entries, 1), 0.8 * np.cos((entries.hour - 12) / 12 * np.pi), atol=1e-4
        )
    off = Simulation(plain_world(pages), np.arange(300))
    off.begin_day()
    assert np.ptp(log_odds(entries_of(off), 1)) == 0.0


def test_dwell_falls_with_the_entries_of_the_day() -> None:
    for fatigue in (0.0, 0.5):
        world = plain_world(entries={"fatigue": fatigue, "per_day": 6.0})
        sessions = sessions_of(world, 50, 2)
        step = column(sessions, "step")
        dwell = np.concatenate([s.entries.situation.dwell_KB[1] for s in sessions])
        np.testing.assert_allclose(dwell, 70.0 * (step + 1.0) ** -fatigue)


def test_satiation_lowers_the_wish_for_a_page_and_fades() -> None:
    on = plain_world(satiation={"logit": 0.5, "decay_h": 4.0, "most": 3.0})
    simulation, entries = at_second_entry(on, 1500)
    off, plain = at_second_entry(plain_world(), 1500)
    np.testing.assert_array_equal(entries.entry_ms, plain.entry_ms)
    felt = simulation.state.felt_satiation(entries.rows, entries.entry_ms)
    change = log_odds(entries, 1) - log_odds(plain, 1)
    np.testing.assert_allclose(change, -0.5 * (felt[1] - felt[0]), atol=1e-4)
    assert (off.state.felt_satiation(entries.rows, entries.entry_ms) == 0.0).all()
    later = simulation.state.felt_satiation(entries.rows, entries.entry_ms + 4 * 3_600_000)
    np.testing.assert_allclose(later, felt / np.e)
    # a visit's worth of dwell on the page counts 1, up to `most`
    dwell_s = simulation.state.seconds_KU[0, entries.rows]
    exit_ms = simulation.state.last_exit_ms[entries.rows]
    at_exit = simulation.state.felt_satiation(entries.rows, exit_ms)
    np.testing.assert_allclose(at_exit[0], np.minimum(dwell_s / 60.0, 3.0), rtol=1e-6)


def test_what_was_wanted_and_missed_is_wanted_again_the_same_day() -> None:
    on = plain_world(unfinished={"logit": 1.2, "interrupted": 0.0}, landing={"leave": 1.0, "walk_on": 0.0})
    simulation = Simulation(on, np.arange(2000))
    simulation.begin_day()
    first = simulation.land(np.zeros(len(entries_of(simulation)), dtype=np.int64))
    entries = entries_of(simulation)
    missed = np.zeros((3, len(simulation)), dtype=bool)
    rows = first.entries.rows[~first.walk.reached]
    missed[first.walk.wanted[~first.walk.reached], rows] = True
    wished = log_odds(entries, 1) - 0.3
    np.testing.assert_allclose(
        wished, 1.2 * (missed[1, entries.rows].astype(float) - missed[0, entries.rows]), atol=1e-4
    )
    assert 0.1 < missed[1].mean() < 0.9
    simulation.begin_day()
    np.testing.assert_allclose(log_odds(entries_of(simulation), 1), 0.3, atol=1e-4)
    assert not at_second_entry(plain_world(), 500)[0].state.unfinished_KU.any()
    broken, _ = at_second_entry(plain_world(unfinished={"logit": 1.0, "interrupted": 1.0}), 500)
    assert broken.state.unfinished_KU.sum() > 300


def test_live_broadcasts_are_seen_and_felt() -> None:
    pages = [{"name": "a"}, {"name": "b", "live": True}, {"name": "c"}]
    on = Simulation(plain_world(pages, live={"logit": 0.8, "rate": 1.0}), np.arange(3000))
    on.begin_day()
    entries = entries_of(on)
    live = entries.live_followed
    np.testing.assert_allclose(log_odds(entries, 1), 0.8 * np.log1p(live), atol=1e-4)
    assert (log_odds(entries, 2) == 0.0).all()
    # the more a user follows the more broadcasts
    assert np.corrcoef(np.sqrt(on.users.follows[entries.rows]), live)[0, 1] > 0.3
    rate = on.users.live_rate[entries.rows]
    assert live.mean() == pytest.approx(rate.mean(), rel=0.1)
    off = Simulation(plain_world(pages), np.arange(500))
    off.begin_day()
    assert not entries_of(off).live_followed.any() and (log_odds(entries_of(off), 1) == 0.0).all()


def test_pushes_are_seen_and_felt() -> None:
    on = Simulation(plain_world(push={"share": 0.3, "logit": 2.0}), np.arange(4000))
    on.begin_day()
    entries = entries_of(on)
    n = len(entries)
    pushed = np.bincount(entries.push + 1, minlength=4)
    share = np.exp(0.3 * np.arange(3)) / np.exp(0.3 * np.arange(3)).sum()
    assert stats.chisquare(pushed, n * np.append(0.7, 0.3 * share)).pvalue > 1e-4
    shift = 2.0 * (entries.push == 1) - 2.0 * (entries.push == 0)
    np.testing.assert_allclose(log_odds(entries, 1), 0.3 + shift, atol=1e-4)
    off = Simulation(plain_world(), np.arange(500))
    off.begin_day()
    assert (entries_of(off).push == -1).all()


def test_the_intent_of_a_day_lasts_that_day() -> None:
    world = plain_world(day_intent={"sd": 1.0}, entries={"per_day": 5.0, "active": 0.99})
    simulation = Simulation(world, np.arange(3000))
    simulation.begin_day()
    first = entries_of(simulation)
    simulation.land(np.zeros(len(first), dtype=np.int64))
    second = entries_of(simulation)
    at = np.searchsorted(first.rows, second.rows)
    np.testing.assert_allclose(log_odds(second, 1), log_odds(first, 1)[at])
    simulation.begin_day()
    next_day = entries_of(simulation)
    both, i, j = np.intersect1d(first.rows, next_day.rows, return_indices=True)
    r = np.corrcoef(log_odds(first, 1)[i], log_odds(next_day, 1)[j])[0, 1]
    assert abs(r) < 4 / np.sqrt(len(both))
    assert log_odds(first, 1).std() == pytest.approx(np.sqrt(2), rel=0.1)
    off = Simulation(plain_world(), np.arange(200))
    off.begin_day()
    assert np.ptp(log_odds(entries_of(off), 1)) == 0.0


def test_page_types_their_sharpness_and_their_flips() -> None:
    population = {"multi_page": 0.4, "mode_flip": 0.1, "single_sharpness": 3.0, "preference_sd": 0.0}
    simulation = Simulation(plain_world(population=population), np.arange(4000))
    simulation.begin_day()
    users, today = simulation.users, simulation.state.multi_today
    assert users.multi.mean() == pytest.approx(0.4, abs=4 * 0.5 / np.sqrt(4000))
    assert (today != users.multi).mean() == pytest.approx(0.1, abs=4 * 0.3 / np.sqrt(4000))
    entries = entries_of(simulation)
    np.testing.assert_allclose(log_odds(entries, 1), np.where(today[entries.rows], 0.3, 0.9), atol=1e-4)
    off = Simulation(plain_world(), np.arange(300))
    off.begin_day()
    assert not off.state.multi_today.any() and not off.users.multi.any()
    np.testing.assert_allclose(log_odds(entries_of(off), 1), 0.3, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_profile_tells_its_share_of_the_preference(share: float) -> None:
    world = plain_world(population={"preference_sd": 1.5, "profile_share": share, "interests": 5})
    users = make_users(world, np.arange(8000))
    taste = users.preference_KU - world.popularity[:, None]
    # the interests are drawn evenly, and their centres have unit variance
    assert taste.std(axis=1) == pytest.approx(np.full(3, 1.5), rel=0.06)
    within = np.array([[taste[k, users.interest == i].var() for i in range(5)] for k in range(3)]).mean(
        axis=1
    )
    assert 1 - within / taste.var(axis=1) == pytest.approx(np.full(3, share), abs=0.05)
    assert set(users.profile()["interest"].to_pylist()) == {f"interest_{i}" for i in range(5)}
    alike = make_users(plain_world(), np.arange(100))
    np.testing.assert_array_equal(alike.preference_KU, np.tile(world.popularity[:, None], 100))
    np.testing.assert_array_equal(alike.dwell_KU, np.tile(world.dwell_s[:, None], 100))


def test_who_stays_long_also_comes_often_where_that_is_said() -> None:
    for correlation in (-0.6, 0.0, 0.6):
        entries = {"user_sd": 0.5, "dwell_correlation": correlation}
        world = plain_world(population={"dwell_sd": 0.7, "page_dwell_sd": 0.0}, entries=entries)
        users = make_users(world, np.arange(6000))
        rate, dwell = np.log(users.rate), np.log(users.dwell_KU[0])
        assert np.corrcoef(rate, dwell)[0, 1] == pytest.approx(correlation, abs=4 / np.sqrt(6000))
        assert rate.std() == pytest.approx(0.5, rel=0.05)
    world = plain_world(population={"dwell_sd": 0.6, "page_dwell_sd": 0.4})
    mean = make_users(world, np.arange(60_000)).dwell_KU.mean(axis=1)
    np.testing.assert_allclose(mean, world.dwell_s, rtol=0.02)


def test_browsing_adds_pages_by_type() -> None:
    world = plain_world(
        population={"multi_page": 0.5, "mode_flip": 0.0}, browsing={"multi": 0.5, "single": 0.1}
    )
    simulation = Simulation(world, np.arange(6000))
    simulation.begin_day()
    sessions = simulation.land(entries_of(simulation).situation.wanted_KB.argmax(axis=0))
    on_first = sessions.walk.reached & sessions.walk.matched
    multi = simulation.state.multi_today[sessions.entries.rows]
    for kind, chance in ((multi, 0.5), (~multi, 0.1)):
        among = on_first & kind
        assert (sessions.count[among] > 1).mean() == pytest.approx(chance, abs=4 * 0.5 / np.sqrt(among.sum()))
    follow = sessions.walk.pages_PB
    assert not ((follow[1:] == follow[:-1]) & (follow[1:] >= 0)).any()
    assert max(s.count.max() for s in sessions_of(plain_world(), 500, 2)) == 2


def test_pages_that_bring_users_back_do_so_in_the_evening_only() -> None:
    pages = [{"name": "a", "returning": 0.8}, {"name": "b"}]
    returning = {"evening_hour": 17.0, "most": 1.5}
    on = sessions_of(plain_world(pages, returning=returning), 3000, 1)
    off = sessions_of(plain_world(pages), 3000, 1)
    before = []
    for sessions in (on, off):
        early = column(sessions, "hour") < 17
        table = np.column_stack([column(sessions, "session_id"), column(sessions, "entry_ms")])[early]
        before.append(table[np.argsort(table[:, 0])])
    np.testing.assert_array_equal(*before)
    evening = [(column(sessions, "hour") >= 17).sum() for sessions in (on, off)]
    assert evening[0] > 1.2 * evening[1]
    simulation = Simulation(plain_world(pages, returning=returning), np.arange(300))
    run_days(simulation, 1, FixedPage(simulation.world, 0))
    assert 0 < simulation.state.boost.max() <= 1.5
    simulation.begin_day()
    assert not simulation.state.boost.any()


def test_satisfaction_moves_the_active_days_that_follow() -> None:
    active = {}
    for enabled in (True, False):
        world = plain_world(retention={"enabled": enabled, "logit": 3.0, "memory": 0.3})
        for worst in (False, True):
            days = np.zeros(1000, dtype=np.int64)
            for sessions in sessions_of(world, 1000, 12, LongestOrWorst(worst)):
                np.add.at(days, sessions.entries.rows, sessions.entries.step == 0)
            active[enabled, worst] = days
    np.testing.assert_array_equal(active[False, False], active[False, True])
    gain = active[True, False] - active[True, True]
    assert gain.mean() > 10 * gain.std() / np.sqrt(len(gain))


def test_coming_back_at_once_is_no_new_entry() -> None:
    busy = {"per_day": 20.0}
    for rest_min in (0.0, 30.0):
        sessions = sessions_of(plain_world(entries={**busy, "rest_min": rest_min}), 200, 4)
        table = np.column_stack([column(sessions, name) for name in ("user_id", "entry_ms", "exit_ms")])
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        same = table[1:, 0] == table[:-1, 0]
        gap_min = (table[1:, 1] - table[:-1, 2])[same] / 60_000
        assert gap_min.min() >= max(rest_min, 1 / 60)
        assert (gap_min < 30).any() == (rest_min == 0.0)


def test_on_light_days_users_only_look_in() -> None:
    light = plain_world(
        MOMENTS, entries={"per_day": 6.0, "light_days": 0.4, "light_rate": 0.05}, landing=BRIEF
    )
    once = []
    for world in (light, plain_world(MOMENTS, entries={"per_day": 6.0}, landing=BRIEF)):
        sessions = sessions_of(world, 2000, 2)
        step = column(sessions, "step")
        several = (step == 1).sum() / (step == 0).sum()
        once.append(1 - several)

    def alone(rate: float) -> float:
        return rate * np.exp(-rate) / -np.expm1(-rate)

    assert once[1] == pytest.approx(alone(6.0), abs=0.01)
    assert once[0] == pytest.approx(0.4 * alone(0.3) + 0.6 * alone(6.0), abs=0.035)
