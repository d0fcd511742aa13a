"""Luck as a function: every draw is a hash of seed, user, day, entry and purpose.

So a user meets the same luck whatever else is simulated, in which order, on how many workers, and under which policy:
logs are reproducible, and two policies can be compared on the same users' same luck (potential outcomes).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from plpm_ray.core.hashing import splitmix64

_DAY = np.uint64(0xD1342543DE82EF95)
_STREAM = np.uint64(0x9E6C63D0876A9A99)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def user_keys(seed: int, users: np.ndarray, replicate: int = 0) -> np.ndarray:
    """(U,) uint64 keys of user ids; `replicate` gives the same users another luck."""
    root = splitmix64(splitmix64(np.array([seed], dtype=np.uint64)) + np.uint64(replicate))
    return splitmix64(splitmix64(users.astype(np.int64, copy=False)) ^ root)


def child_keys(keys: np.ndarray, number: np.ndarray | int) -> np.ndarray:
    """(n,) uint64 keys of the `number`-th day of a user, or of the `number`-th entry of a day."""
    if isinstance(number, int):
        step = np.array(number, dtype=np.int64).view(np.uint64)
    else:
        step = number.astype(np.int64, copy=False).view(np.uint64)
    return splitmix64(keys + step * _DAY)


def pair(keys: np.ndarray, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Two (n,) uniform draws in (0, 1) for a purpose, 32 bits each."""
    with np.errstate(over="ignore"):
        bits = splitmix64(keys + np.uint64(stream) * _STREAM)
    return _unit(bits >> _HALF), _unit(bits & _LOW)


def uniforms(keys: np.ndarray, stream: int) -> np.ndarray:
    """(n,) uniform draws in (0, 1) for a purpose."""
    return pair(keys, stream)[0]


def normals(keys: np.ndarray, stream: int) -> np.ndarray:
    """(n,) standard normal draws for a purpose."""
    return ndtri(uniforms(keys, stream))


def normals_by_page(keys: np.ndarray, stream: int, k: int) -> np.ndarray:
    """(K, n) standard normal draws for a purpose, streams `stream` to `stream + K - 1`."""
    steps = (np.arange(stream, stream + k, dtype=np.uint64) * _STREAM)[:, None]
    bits = splitmix64((keys[None, :] + steps).ravel()).reshape(k, len(keys))
    return ndtri(_unit(bits >> _HALF))


def _unit(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.float64) + 0.5) * 2.0**-32
