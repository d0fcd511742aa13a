"""The vectorised environment: the same episodes as single ones, side by side."""

from __future__ import annotations

import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from plpm_ray.simulation import episodes
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.env import ENV_ID, LandingPageEnv, register
from plpm_ray.simulation.vector_env import LandingPageVectorEnv

N = 4
OPTIONS = {"world": load_world("kuaishou"), "warmup_days": 1}


@pytest.fixture(scope="module")
def envs() -> LandingPageVectorEnv:
    return LandingPageVectorEnv(N, **OPTIONS)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("horizon_days", [1, 2])
def test_it_is_single_environments_side_by_side(horizon_days, monkeypatch):
    """Observations, rewards, ends and infos, through many episodes and several blocks of users."""
    monkeypatch.setattr(episodes, "BLOCK_USERS", 2)
    monkeypatch.setattr(episodes, "BLOCK_ROUNDS", 2)
    batch = LandingPageVectorEnv(N, horizon_days=horizon_days, **OPTIONS)
    singles = SyncVectorEnv([lambda: LandingPageEnv(horizon_days=horizon_days, **OPTIONS)] * N)
    rng = np.random.default_rng(0)
    for seed in ([7, 3, 11, 5], None):
        (first, info), (wanted, wanted_info) = batch.reset(seed=seed), singles.reset(seed=seed)
        assert np.array_equal(first, wanted) and equal(info, wanted_info)
        for _ in range(45):
            pages = rng.integers(3, size=N)
            *found, info = batch.step(pages)
            *wanted, wanted_info = singles.step(pages)
            assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
            assert equal(info, wanted_info)
    assert batch._episodes._blocks.min() >= 3


def test_int_seed_counts_up():
    batch, singles = LandingPageVectorEnv(N, **OPTIONS), [LandingPageEnv(**OPTIONS) for _ in range(N)]
    found = batch.reset(seed=20)[0]
    assert np.array_equal(found, np.stack([env.reset(seed=20 + i)[0] for i, env in enumerate(singles)]))


def test_an_ended_episode_is_followed_by_a_reset_in_the_next_step(envs):
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    envs.reset(seed=1)
    ended = np.zeros(N, dtype=bool)
    while not ended.any():
        last, _, ended, truncated, info = envs.step(np.zeros(N, dtype=np.int64))
        assert not truncated.any() and info["_seconds"].all()
    assert not last[ended].any()
    first, reward, again, _, info = envs.step(np.ones(N, dtype=np.int64))
    assert not again[ended].any() and not reward[ended].any() and first[ended].any(axis=1).all()
    assert np.array_equal(info["_user_id"], ended) and np.array_equal(info["_seconds"], ~ended)


def test_gymnasium_makes_it():
    register()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gymnasium.make_vec(ENV_ID, num_envs=3, warmup_days=1)
        observation, _ = envs.reset(seed=0)
        stepped = envs.step(envs.action_space.sample())[0]
    assert isinstance(envs.unwrapped, LandingPageVectorEnv)
    assert envs.observation_space.contains(observation) and envs.observation_space.contains(stepped)


def test_every_slot_has_users_of_its_own(envs):
    _, info = envs.reset(seed=2)
    users = set(info["user_id"])
    assert len(users) == N and users.isdisjoint(envs.reset()[1]["user_id"])


def test_a_copy_goes_on_like_the_original(envs):
    envs.reset(seed=5)
    other = pickle.loads(pickle.dumps(envs))
    for _ in range(20):
        found, wanted = other.step(np.ones(N, dtype=int)), envs.step(np.ones(N, dtype=int))
        assert all(np.array_equal(a, b) for a, b in zip(found[:4], wanted[:4], strict=True))


def test_refusals(envs):
    with pytest.raises(ValueError, match="after a reset"):
        LandingPageVectorEnv(2, **OPTIONS).step(np.zeros(2, dtype=int))
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="actions are 4 pages"):
        envs.step(np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="2 seeds"):
        envs.reset(seed=[1, 2])
