"""The split of a trial's users."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import bucket_of, user_hash
from plpm_ray.data.split import UserSplitConfig, trial_parts, user_parts

HASHES = user_hash(np.arange(40_000))


def shares(parts: np.ndarray) -> np.ndarray:
    return np.bincount(parts, minlength=3) / len(parts)


def test_shares_are_those_asked_for_in_every_bucket_and_share_of_one():
    parts = user_parts(HASHES, UserSplitConfig(valid_share=0.15, test_share=0.25))
    assert parts.dtype == np.int8
    np.testing.assert_allclose(shares(parts), [0.6, 0.15, 0.25], atol=0.01)
    for group in (bucket_of(HASHES, 8), HASHES % np.uint64(8)):
        for i in range(8):
            np.testing.assert_allclose(shares(parts[group == i]), [0.6, 0.15, 0.25], atol=0.03)


def test_a_user_stays_in_his_part_whoever_is_beside_him_and_another_seed_draws_anew():
    config = UserSplitConfig()
    parts = user_parts(HASHES, config)
    np.testing.assert_array_equal(user_parts(HASHES[::-7], config), parts[::-7])
    other = user_parts(HASHES, UserSplitConfig(seed=1))
    assert np.corrcoef(parts == 2, other == 2)[0, 1] == pytest.approx(0, abs=0.02)


def test_test_users_do_not_depend_on_the_share_of_validation():
    few, many = (user_parts(HASHES, UserSplitConfig(valid_share=v)) for v in (0, 0.5))
    np.testing.assert_array_equal(few == 2, many == 2)
    assert not (few == 1).any()


def test_shares_that_leave_nobody_are_refused():
    with pytest.raises(ValidationError, match="no users to learn from"):
        UserSplitConfig(valid_share=0.5, test_share=0.5)


def test_the_split_that_came_with_the_data():
    ids = np.arange(20_000)
    given = np.where(ids % 4 == 0, 2, 0).astype(np.int8)
    table = pa.table({"user_id": ids, "part": given})
    config = UserSplitConfig(valid_share=0.2, test_share=0.2, official=True)
    parts = trial_parts(table, config)
    np.testing.assert_array_equal(parts == 2, given == 2)
    assert np.mean(parts[given == 0] == 1) == pytest.approx(0.25, abs=0.01)
    np.testing.assert_array_equal(
        trial_parts(table, UserSplitConfig()), user_parts(user_hash(ids), UserSplitConfig())
    )
    with pytest.raises(DataError, match="without a split"):
        trial_parts(table.select(["user_id"]), config)
