"""The Gymnasium environment: its contract, its episodes, and that they are those of the world."""

from __future__ import annotations

import copy
import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from plpm_ray.core.errors import ConfigError
from plpm_ray.navigators.bundle import Bundle, save_bundle
from plpm_ray.navigators.reference.rllib import RLlibNetwork, RLlibNetworkConfig
from plpm_ray.simulation.choosers import LoggingPolicy, RandomPage
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.encoding import ObservationEncoder, fit_features
from plpm_ray.simulation.env import ENV_ID, LandingPageEnv, register
from plpm_ray.simulation.episodes import Cohort, LandingTask
from plpm_ray.simulation.judge import Judge
from plpm_ray.simulation.simulation import Simulation, run_days
from plpm_ray.simulation.world import World

WORLD = load_world("kuaishou")
NO_EFFECT = WORLD.model_copy(update={"landing": WORLD.landing.model_copy(update={"enabled": False})})


def made(**options) -> LandingPageEnv:
    return LandingPageEnv(**{"world": WORLD, "warmup_days": 2, **options})


def rollout(env: LandingPageEnv, steps: int, seed: int | None, pages: int = 0) -> list[tuple]:
    """Observations, rewards and ends; the actions are drawn from `pages`."""
    rng, out = np.random.default_rng(pages), [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, reward, ended, _, _ = env.step(rng.integers(env.action_space.n))
        out.append((observation, reward, ended))
        if ended:
            out.append(env.reset()[0])
    return out


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        all(np.array_equal(x, y) for x, y in zip(p, q, strict=True))
        if isinstance(p, tuple)
        else np.array_equal(p, q)
        for p, q in zip(a, b, strict=True)
    )


def test_gymnasium_makes_it_and_its_checker_has_nothing_to_say():
    register()
    register()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ENV_ID, world="kuaishou", warmup_days=1)
        check_env(env.unwrapped)
    assert isinstance(env.unwrapped, LandingPageEnv)
    assert env.observation_space.shape == env.reset(seed=1)[0].shape


def test_same_seed_same_episodes():
    first = rollout(made(), 30, seed=3)
    assert same(first, rollout(made(), 30, seed=3))
    assert not same(first, rollout(made(), 30, seed=4))


def test_a_copy_goes_on_like_the_original():
    env = made()
    rollout(env, 5, seed=0)
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    going_on = rollout(env, 20, seed=None)
    assert all(same(rollout(other, 20, seed=None), going_on) for other in copies)


def test_reset_brings_the_next_user_and_a_seed_the_first_one_again():
    env = made()
    seeds = [5, None, None, None, 5, None]
    users = [env.reset(seed=seed)[1]["user_id"] for seed in seeds]
    assert len(set(users[:4])) == 4 and users[4:] == users[:2]
    assert all(1 << 42 <= user < 1 << 43 for user in users)


def test_reward_is_the_session_in_seconds():
    """The features of the next entry tell of the session independently of the environment."""
    env = made(reward_scale_s=60.0)
    env.reset(seed=0)
    checked = 0
    while checked < 20:
        _, reward, ended, _, info = env.step(0)
        assert reward == pytest.approx(info["seconds"] / 60)
        entries = env._episodes.entries()
        assert (entries is None) == ended
        if entries is not None:
            seen = env._episodes.online.features(entries)
            assert seen.column("last_use_s")[0] == pytest.approx(info["seconds"], rel=1e-6)
            checked += 1
        else:
            env.reset()


def test_observation_is_what_a_learner_reads():
    env = made()
    observation, _ = env.reset(seed=1)
    spec, stats = env.task.features.spec, env.task.features.stats
    bundle = Bundle.of_learner(
        RLlibNetwork(RLlibNetworkConfig.model_validate({}), spec, WORLD.catalogue, stats),
        spec,
        WORLD.catalogue,
        stats,
    )
    navigator = bundle.navigator()
    raw = env._episodes.online.features(env._episodes.entries())
    made_in_torch = navigator.learner.observations(navigator.inputs(raw))
    assert np.array_equal(made_in_torch.numpy()[0], observation)
    assert observation[: spec.n_dense].any() and observation[spec.n_dense :].sum() == len(spec.cat_sizes)


def test_episode_is_one_day_or_several():
    one, three = made(), made(horizon_days=3)
    for env, days in ((one, 1), (three, 3)):
        last = []
        for seed in range(6):
            first = env.reset(seed=seed)[1]["day"]
            ended = False
            while not ended:
                _, _, ended, _, _ = env.step(1)
            last.append(int(env._episodes.simulation.day[0]) - first)
        assert max(last) == days - 1


def test_where_pages_change_nothing_actions_change_nothing():
    env = made(world=NO_EFFECT, features=fit_features(WORLD))

    def outcomes(env: LandingPageEnv, pages: int) -> list[tuple[float, bool]]:
        out = rollout(env, 40, seed=2, pages=pages)
        return [(item[1], item[2]) for item in out if isinstance(item, tuple)]

    assert outcomes(env, 1) == outcomes(env, 2)
    assert outcomes(made(), 1) != outcomes(made(), 2)


def test_random_pages_bring_what_they_bring_in_the_simulation():
    """Mean seconds of a user-day, of users drawn in another way, day by day over a week."""
    warmup, users = 2, 250
    cohort = Cohort(LandingTask.of(WORLD, warmup_days=warmup), 7 * users, seed=1)
    policy = RandomPage()
    played = cohort.play(lambda simulation, entries, _: policy.choose(simulation, entries).page)
    totals = []
    for weekday in range(7):
        simulation = Simulation(World(WORLD), np.arange(users) + weekday * users)
        run_days(simulation, warmup + weekday, LoggingPolicy())
        use_s = np.zeros(users)

        def add(sessions, use_s=use_s):
            use_s[sessions.entries.rows] += sessions.use_ms / 1000

        run_days(simulation, 1, policy, add)
        totals.append(use_s[use_s > 0])
    use_s = np.concatenate(totals)
    error = np.hypot(played.use_s.std() / len(played.use_s) ** 0.5, use_s.std() / len(use_s) ** 0.5)
    assert abs(played.mean_s - use_s.mean()) < 3.5 * error
    assert len(played.use_s) == pytest.approx(len(use_s), rel=0.1)


def test_cohort_plays_the_same_again_and_the_oracle_does_better():
    strict = WORLD.landing.model_copy(update={"leave": 0.9, "drop_off": 1.0})
    judge = Judge(
        LandingTask.of(WORLD.model_copy(update={"landing": strict}), fit_features(WORLD), warmup_days=2),
        300,
        seed=3,
    )
    random = judge.yardsticks["random"]
    again = judge._chooser(RandomPage())
    assert np.array_equal(random.use_s, again.use_s) and np.array_equal(random.sessions, again.sessions)
    assert judge.yardsticks["oracle (myopic)"].mean_s > 1.2 * random.mean_s


def test_features_come_from_a_bundle(tmp_path):
    features = fit_features(WORLD)
    spec, stats = features.spec, features.stats
    learner = RLlibNetwork(RLlibNetworkConfig.model_validate({"hidden": [4]}), spec, WORLD.catalogue, stats)
    save_bundle(Bundle.of_learner(learner, spec, WORLD.catalogue, stats), tmp_path / "run" / "bundle")
    env = made(features=str(tmp_path / "run"))
    assert env.task.features.spec.to_dict() == spec.to_dict() and env.task.reward_scale_s == stats.mean_use_s
    other = WORLD.model_copy(update={"pages": WORLD.pages[:2]})
    with pytest.raises(ConfigError, match="other pages"):
        LandingPageEnv(other, features=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="no fitted features"):
        made(features=str(tmp_path))


def test_bounds_hold_for_the_largest_numbers():
    env = made()
    env.reset(seed=0)
    raw = env._episodes.online.features(env._episodes.entries())
    raw.numeric[:] = np.finfo(np.float32).max
    row = ObservationEncoder(env.task.features.spec).encode(raw)[0]
    assert env.observation_space.contains(row)
    raw.numeric[:] = -np.finfo(np.float32).max
    assert env.observation_space.contains(ObservationEncoder(env.task.features.spec).encode(raw)[0])


def test_refusals():
    with pytest.raises(ValueError, match="horizon_days"):
        made(horizon_days=0)
    env = made()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="pages lie between 0 and 2"):
        env.step(3)
    while not env.step(0)[2]:
        pass
    with pytest.raises(ValueError, match="0 entries wait"):
        env.step(0)
