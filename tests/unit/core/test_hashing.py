"""Hashes are part of the format on disk: their values never change."""

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.core.hashing import bucket_of, splitmix64, user_draws, user_hash

MASK = (1 << 64) - 1


def reference_splitmix64(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_string_hash(text: str) -> int:
    data = text.encode()
    h = reference_splitmix64(len(data))
    for at in range(0, len(data), 8):
        h = reference_splitmix64(h ^ int.from_bytes(data[at : at + 8], "little"))
    return h


def test_splitmix64_gives_the_published_first_value():
    assert splitmix64(np.array([0]))[0] == 0xE220A8397B1DCDAF


def test_integers_across_chunk_borders_match_the_reference():
    values = np.concatenate([np.arange(-20_000, 20_000), [np.iinfo(np.int64).min, np.iinfo(np.int64).max]])
    expected = [reference_splitmix64(int(v) & MASK) for v in values]
    assert user_hash(values).tolist() == expected
    assert user_hash(pa.chunked_array([values[:5], values[5:]])).tolist() == expected


def test_strings_match_the_reference_at_every_length_and_offset():
    rng = np.random.default_rng(0)
    texts = ["".join(chr(c) for c in rng.integers(33, 500, n)) for n in [*range(40), 300, 0, 7]]
    expected = [reference_string_hash(t) for t in texts]
    assert user_hash(pa.array(texts)).tolist() == expected
    assert user_hash(pa.array(texts).slice(3, 20)).tolist() == expected[3:23]
    assert user_hash(pa.array(texts, pa.large_string())).tolist() == expected
    assert user_hash(pa.array(texts).dictionary_encode()).tolist() == expected
    assert user_hash(pa.array([], pa.string())).tolist() == []


def test_narrow_integers_hash_like_wide_ones():
    assert (
        user_hash(pa.array([1, 2], pa.int16())).tolist() == user_hash(pa.array([1, 2], pa.int64())).tolist()
    )
    assert user_hash(np.array([1, 2], np.uint32)).tolist() == user_hash(np.array([1, 2])).tolist()


@pytest.mark.parametrize("n_buckets", [1, 7, 16, 300, 65_536])
def test_buckets_are_even_and_in_range(n_buckets):
    buckets = bucket_of(user_hash(np.arange(200_000)), n_buckets)
    assert buckets.dtype == np.uint16
    counts = np.bincount(buckets, minlength=n_buckets)
    assert len(counts) == n_buckets
    expected = 200_000 / n_buckets
    assert counts.max() < expected + 6 * expected**0.5 + 6


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="null"):
        user_hash(pa.array([1, None]))
    with pytest.raises(DataError, match="double"):
        user_hash(pa.array([1.5]))
    with pytest.raises(ValueError, match="n_buckets"):
        bucket_of(np.zeros(1, np.uint64), 0)


def test_draws_of_users_are_even_and_each_users_own():
    ids = np.arange(20_000)
    draws = user_draws(ids, 3)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] / len(ids) - 0.1).max() < 0.01
    assert draws[7] == (reference_splitmix64((reference_splitmix64(7) + 3) & MASK) >> 11) / 2**53
    assert np.array_equal(user_draws(ids[5:9], 3), draws[5:9])
    assert not np.array_equal(user_draws(ids, 4), draws)
