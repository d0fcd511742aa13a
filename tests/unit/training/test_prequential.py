"""Prequential sums against the same numbers from all pairs, and their additivity."""

from __future__ import annotations

import numpy as np
import pytest

from plpm_ray.training.prequential import Prequential, binned_auc


def outcomes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    chance = rng.beta(3, 1, n).astype(np.float32)
    label = (rng.random(n) < chance**2).astype(np.float32)
    return chance, label, rng.integers(0, 2, n)


def exact_auc(chance: np.ndarray, label: np.ndarray) -> float:
    ones, zeros = chance[label == 1][:, None], chance[label == 0][None, :]
    return float(((ones > zeros) + 0.5 * (ones == zeros)).mean())


def test_against_all_pairs():
    chance, label, action = outcomes(4000)
    judged = Prequential(("a", "b", "c"))
    judged.add(chance, label, action)
    found = judged.record()
    assert found["auc"] == pytest.approx(exact_auc(chance, label), abs=2e-4)
    p = chance.astype(np.float64)
    assert found["log_loss"] == pytest.approx(-np.log(np.where(label == 1, p, 1 - p)).mean(), rel=1e-9)
    assert found["brier"] == pytest.approx(((p - label) ** 2).mean(), rel=1e-9)
    assert found["label_share"] == pytest.approx(label.mean())
    for k, page in enumerate("ab"):
        mine = action == k
        assert found[f"page/{page}/sessions"] == mine.sum()
        assert found[f"page/{page}/auc"] == pytest.approx(exact_auc(chance[mine], label[mine]), abs=5e-4)
    assert found["page/c/sessions"] == 0 and found["page/c/auc"] is None


def test_parts_add_up_and_state_goes_around():
    chance, label, action = outcomes(1000)
    whole, parts = Prequential("ab"), Prequential("ab")
    whole.add(chance, label, action)
    for rows in np.array_split(np.arange(1000), 7):
        parts.add(chance[rows], label[rows], action[rows])
        again = Prequential("ab")
        again.load_state(parts.state())
        parts = again
    assert np.array_equal(whole.counts, parts.counts) and parts.rows == 1000
    assert whole.record() == pytest.approx(parts.record())


def test_auc_of_edges():
    def counts(*at: int) -> np.ndarray:
        return np.bincount(at, minlength=4)

    assert binned_auc(counts(0, 1), counts(2, 3)) == 1.0
    assert binned_auc(counts(3), counts(0)) == 0.0
    assert binned_auc(counts(2, 2), counts(2)) == 0.5
    assert binned_auc(counts(), counts(1)) is None


def test_a_certain_chance_that_was_wrong_is_judged_finitely():
    judged = Prequential(("a",))
    judged.add(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0, 0]))
    found = judged.record()
    assert found["log_loss"] == pytest.approx(-np.log(1e-7), rel=1e-6) and found["brier"] == 1.0
