"""The luck of the world: uniform draws that have nothing to do with each other."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import stats

from plpm_ray.simulation import luck

N = 100_000
USERS = luck.user_keys(0, np.arange(N), 1)


def uncorrelated(*columns: np.ndarray) -> bool:
    """No pair of columns is correlated, neither themselves nor their squares around the middle."""
    bound = 4.5 / np.sqrt(len(columns[0]))
    return all(
        abs(np.corrcoef(f(a), f(b))[0, 1]) < bound
        for a, b in itertools.combinations(columns, 2)
        for f in (lambda u: u, lambda u: (u - 0.5) ** 2)
    )


def test_draws_are_uniform_and_inside() -> None:
    day = luck.child_keys(USERS, 3)
    for keys in (USERS, day, luck.child_keys(day, 1)):
        for stream in (0, 8, 64):
            for u in luck.pair(keys, stream):
                assert u.min() > 0 and u.max() < 1
                assert stats.kstest(u, "uniform").pvalue > 1e-4
                counts = np.bincount((u * 256).astype(int), minlength=256)
                assert stats.chisquare(counts).pvalue > 1e-4


def test_normals_are_normal() -> None:
    assert stats.kstest(luck.normals(USERS, 1), "norm").pvalue > 1e-4
    by_page = luck.normals_by_page(USERS, 64, 3)
    np.testing.assert_allclose(by_page[2], luck.normals(USERS, 66))
    assert np.abs(np.corrcoef(by_page) - np.eye(3)).max() < 4.5 / np.sqrt(N)


def test_streams_halves_days_and_entries_are_independent() -> None:
    assert uncorrelated(*luck.pair(USERS, 0), *luck.pair(USERS, 1), luck.uniforms(USERS, 2))
    days = [luck.child_keys(USERS, d) for d in (0, 1, 2, 100)]
    assert uncorrelated(*(luck.uniforms(keys, 0) for keys in days))
    entries = [luck.child_keys(days[0], e) for e in (0, 1, 2)]
    # the first entry of the first day against its day and its user too: their keys are children of one another
    assert uncorrelated(*(luck.uniforms(keys, 0) for keys in (*entries, days[0], USERS)))
    # entry 1 of day 0 is not entry 0 of day 1
    assert len(np.intersect1d(luck.child_keys(days[0], 1), luck.child_keys(days[1], 0))) == 0


def test_users_seeds_and_replicates_are_independent() -> None:
    u = luck.uniforms(USERS, 0)
    assert uncorrelated(u[:-1], u[1:]) and uncorrelated(u[: N // 2], u[N // 2 :])
    others = [luck.user_keys(seed, np.arange(N), replicate) for seed, replicate in ((0, 2), (1, 1), (2, 0))]
    assert uncorrelated(u, *(luck.uniforms(keys, 0) for keys in others))
    assert len(np.unique(np.concatenate([USERS, *others]))) == 4 * N
    # far apart ids are as good as neighbours
    far = luck.uniforms(luck.user_keys(0, np.arange(N) * (1 << 40), 1), 0)
    assert stats.kstest(far, "uniform").pvalue > 1e-4


def test_runs_along_a_users_days_are_as_long_as_chance_has_it() -> None:
    keys = luck.user_keys(0, np.arange(200), 1)
    above = np.array([luck.uniforms(luck.child_keys(keys, d), 0) > 0.5 for d in range(500)])
    turns = (above[1:] != above[:-1]).sum()
    assert abs(turns - 499 * 100) < 4.5 * np.sqrt(499 * 200 / 4)


def test_numbers_given_one_by_one_or_as_an_array_are_the_same() -> None:
    keys = USERS[:50]
    for number in (0, 1, 4000):
        np.testing.assert_array_equal(
            luck.child_keys(keys, number), luck.child_keys(keys, np.full(50, number))
        )
