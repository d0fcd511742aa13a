"""Qini, AUUC and the curves against causalml, which is not a dependency: a check for development.

    python -m venv /tmp/causal && /tmp/causal/bin/pip install causalml pytest pytest-timeout hypothesis pydantic pyarrow
    PYTHONPATH=. /tmp/causal/bin/python -m pytest tests/unit/evaluation/test_uplift_causalml.py

causalml takes the mean of N + 1 points of a curve where we take trapezoids; `as_causalml` turns one into the other
exactly. It leaves equal scores in the order of its sort, so scores here are distinct.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from plpm_ray.evaluation.uplift_curves import auuc, qini_coefficient, qini_curve, uplift_curve

metrics = pytest.importorskip(
    "causalml.metrics.visualize", reason="causalml is not installed; development only"
)

Data = tuple[np.ndarray, np.ndarray, np.ndarray]


def frame(score: np.ndarray, treated: np.ndarray, response: np.ndarray):
    return pd.DataFrame({"model": score, "w": treated.astype(int), "y": response})


def as_causalml(area: float, end: float, n: int) -> float:
    """Mean of the n + 1 points of a curve from 0 to `end` whose trapezoids have this area."""
    return (n * area + end / 2) / (n + 1)


def compare(data: Data) -> None:
    score, treated, _ = data
    n, n_treated = len(score), int(treated.sum())
    assert len(np.unique(score)) == n
    qini, gain = qini_curve(*data), uplift_curve(*data)
    theirs = metrics.get_qini(frame(*data))["model"].to_numpy()
    np.testing.assert_allclose(qini.gain * n_treated, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())
    theirs = metrics.get_cumgain(frame(*data))["model"].to_numpy()
    # before both groups are there, causalml interpolates the mean and not the gain
    so_far = np.cumsum(treated[np.argsort(-score)])
    both = int(np.argmax((so_far > 0) & (so_far < np.arange(1, n + 1)))) + 1
    np.testing.assert_allclose(
        gain.gain[both:] * n, theirs[both:], rtol=1e-9, atol=1e-9 * np.abs(theirs).max()
    )
    for scale, normalize in (("end", True), ("per_user", False)):
        end, users = (np.sign(qini.end), (1, 1)) if normalize else (qini.end, (n_treated, n))
        found = qini_coefficient(*data, scale=scale) * n / (n + 1) * users[0]
        wanted = metrics.qini_score(frame(*data), normalize=normalize)["model"]
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        found = as_causalml(auuc(*data, scale=scale), end, n) * users[1]
        at_the_start = both * np.abs(theirs[: both + 1]).max() / (n * (abs(gain.end) * n if normalize else 1))
        wanted = metrics.auuc_score(frame(*data), normalize=normalize)["model"]
        assert found == pytest.approx(wanted, rel=1e-9, abs=at_the_start + 1e-12)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.8])
@pytest.mark.parametrize("binary", [True, False])
def test_made_trials(share: float, binary: bool):
    rng = np.random.default_rng(3)
    n = 20_000
    effect, treated = rng.normal(size=n), rng.random(n) < share
    response = rng.normal(size=n) + treated * (0.2 + effect)
    response = (response > 0.5).astype(float) if binary else response
    for score in (effect + rng.normal(size=n), rng.normal(size=n), -effect):
        compare((score, treated, response))


def test_rows_of_one_group_first():
    """The first hundred users by score are all treated, or all in control."""
    rng = np.random.default_rng(0)
    for first in (True, False):
        score = np.arange(1000.0)[::-1].copy()
        treated = rng.random(1000) < 0.5
        treated[:100] = first
        compare((score, treated, rng.normal(size=1000) + treated))


@pytest.mark.parametrize("outcome", ["visit", "spend"])
@pytest.mark.parametrize("arm", ["Mens E-Mail", "Womens E-Mail"])
def test_hillstrom(data_folder: Callable[[str], Path], arm: str, outcome: str):
    table = pd.read_csv(data_folder("hillstrom/hillstrom.csv"))
    table = table[table["segment"].isin(["No E-Mail", arm])]
    # a jitter far below a cent makes the scores distinct
    score = table["history"].to_numpy() + 1e-6 * np.random.default_rng(0).random(len(table))
    compare((score, (table["segment"] == arm).to_numpy(), table[outcome].to_numpy(dtype=float)))
