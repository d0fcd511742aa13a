"""GLAN's closed loop (eq. 29, 30) against the transformer on whole days, and the settings that bend it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from plpm_ray.core.errors import BundleError
from plpm_ray.core.features import RawFeatures
from plpm_ray.core.registry import lookup
from plpm_ray.navigators.bundle import Bundle
from plpm_ray.navigators.glan.glan import GLAN
from plpm_ray.navigators.inputs import input_tensors
from tests.training_tables import fitted, pages, raw_features, with_session

K, CONTEXT = 3, 6
LENGTHS = [1, 5, 11, 3, 8]  # sessions of five days; two are longer than what the transformer sees
Outcome = dict[str, np.ndarray]


def part(name: str, seed: int, **config: Any) -> Bundle:
    """A learner whose weights are large enough for every input to matter."""
    spec, stats = fitted(K)
    cls = lookup("learner", name)
    torch.manual_seed(seed)
    learner = cls(cls.Config(**config), spec, pages(K), stats)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    return Bundle.of_learner(learner, spec, pages(K), stats)


def glan(reward: str = "hrm", **config: Any) -> GLAN:
    spec, stats = fitted(K)
    parts = {"lrtg": part("glan.lrtg", 1), "hrm": part("glan.hrm", 2)}
    parts["dt"] = part("glan.dt", 3, width=16, context=CONTEXT, reward=reward)
    navigator = Bundle("navigator", "glan", config, pages(K), spec, stats, parts=parts).navigator()
    assert isinstance(navigator, GLAN)
    return navigator


def sessions(rows: int = sum(LENGTHS), seed: int = 4) -> tuple[RawFeatures, RawFeatures, Outcome]:
    """Random entries, the same with what came of them, and that as `observe` is told of it."""
    rng = np.random.default_rng(seed)
    schema = fitted(K)[0].schema
    ended = with_session(raw_features(schema, rows, rng), rng)
    use_s = rng.gamma(1.0, 120.0, rows).astype(np.float32)
    outcome = ended.session | {
        "use_s": use_s,
        "landing_dwell_s": use_s / 2,
        "views": np.zeros(rows, np.int64),
    }
    entry = ended.take(np.arange(rows))
    entry.session = {}
    return entry, ended, outcome


def lived(navigator: GLAN, entry: RawFeatures, outcome: Outcome) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(S, K) p and (S,) R_t of the days of `LENGTHS` lived side by side, and the (days, state_size) state at their ends."""
    starts = np.cumsum([0, *LENGTHS[:-1]])
    state = np.zeros((len(LENGTHS), navigator.state_size), dtype=np.float32)
    scores, rtg = np.zeros((len(entry), K), np.float32), np.zeros(len(entry), np.float32)
    for n in range(max(LENGTHS)):
        days = np.flatnonzero(np.array(LENGTHS) > n)
        rows = starts[days] + n
        now, before = entry.take(rows), state[days].copy()
        given, told = navigator.explained(now, state[days])
        scores[rows], rtg[rows] = told["p"], told["rtg"][:, 0]
        wary = told["p"] * told["stay"] ** navigator.config.caution
        np.testing.assert_allclose(given, wary / wary.sum(axis=1, keepdims=True), rtol=1e-5)
        assert np.ptp(told["rtg"], axis=1).max() == 0
        state[days] = navigator.observe(state[days], now, {name: v[rows] for name, v in outcome.items()})
        assert np.array_equal(before[:, 0] + 1, state[days, 0])
    return scores, rtg, state


def said(navigator: GLAN, role: str, features: RawFeatures) -> np.ndarray:
    return navigator.parts[role].scores(features)[:, 0]


def whole_days(navigator: GLAN, entry: RawFeatures, action: np.ndarray, rtg: np.ndarray) -> np.ndarray:
    """(S, K) pi(. | s_t, R_t, the day before t), eq. 29, from whole days and without a cache."""
    inputs = input_tensors(entry, fitted(K)[0], ("dense", "cat"))
    inputs["step"] = torch.cat([torch.arange(n) for n in LENGTHS])
    inputs["action"], inputs["rtg"] = torch.from_numpy(action), torch.from_numpy(rtg)
    with torch.inference_mode():
        return navigator.dt.logits(inputs).softmax(1).numpy()


def returns(first: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """(S,) R_t: R_1 of each day, then R_{t+1} = R_t - r_t (eq. 30)."""
    starts, rtg = np.cumsum([0, *LENGTHS[:-1]]), np.zeros(len(reward), np.float32)
    for start, n in zip(starts, LENGTHS, strict=True):
        rtg[start] = first[start]
        for t in range(start + 1, start + n):
            rtg[t] = rtg[t - 1] - reward[t - 1]
    return rtg


@pytest.mark.parametrize("reward", ["hrm", "duration"])
@pytest.mark.parametrize("rtg", ["lrtg", "mean7"])
def test_eq_29_30_step_by_step_equal_the_transformer_on_whole_days(reward, rtg):
    navigator = glan(reward, rtg=rtg, rtg_multiplier=1.5)
    entry, ended, outcome = sessions()
    entry.numeric, ended.numeric = np.nan_to_num(entry.numeric), np.nan_to_num(ended.numeric)
    scores, told, _ = lived(navigator, entry, outcome)
    ratio = navigator.dt.reward_ratio
    assert (ratio == pytest.approx(0.8)) if reward == "hrm" else ratio == 1.0
    if rtg == "lrtg":
        first = said(navigator, "lrtg", entry)
    else:
        days = entry.column("active_days_7d")
        first = entry.column("use_s_7d") / np.maximum(days, 1)
    worth = said(navigator, "hrm", ended) if reward == "hrm" else outcome["use_s"]
    wanted = returns(first * np.float32(1.5 * ratio), worth)
    np.testing.assert_allclose(told, wanted, rtol=1e-5, atol=1e-2)
    assert wanted.min() < 0 < wanted.max()
    expected = whole_days(
        navigator, entry, outcome["action"], np.maximum(wanted, float(navigator.dt.session_value_s))
    )
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5)
    # the past counts: days without one are scored otherwise
    assert np.abs(navigator.explained(entry)[1]["p"] - scores).max() > 1e-3


def test_the_floor_bounds_what_is_asked_and_not_what_is_remembered():
    low, high = glan("duration", rtg_floor=0.0), glan("duration", rtg_floor=2.0)
    entry, _, outcome = sessions()
    _, rtg, state = lived(low, entry, outcome)
    bounded, same, _ = lived(high, entry, outcome)
    assert np.array_equal(rtg, same) and rtg.min() < 0
    # R_t in the floored day is asked at no less than two mean sessions
    asked = np.maximum(rtg, np.float32(2.0 * float(low.dt.session_value_s)))
    assert (asked > rtg).any()
    np.testing.assert_allclose(bounded, whole_days(low, entry, outcome["action"], asked), rtol=0, atol=2e-5)
    assert np.isfinite(lived(glan(rtg_multiplier=1e-3), entry, outcome)[0]).all()
    assert state[0, 1] == rtg[0] - outcome["use_s"][0]


def test_r_1_of_users_without_history():
    entry, _, _ = sessions(4)
    entry.days = np.zeros_like(entry.days)
    names = entry.schema.numeric
    for name in ("active_days_7d", "use_s_7d"):
        entry.numeric[:, names.index(name)] = 0.0
    mean_day = float(glan().dt.day_value_s)
    assert glan(rtg="mean7", rtg_multiplier=2.0).first_rtg(entry) == pytest.approx(
        [2 * mean_day] * 4, rel=1e-6
    )
    assert glan("duration", rtg="mean7").first_rtg(entry) == pytest.approx([mean_day / 0.8] * 4, rel=1e-5)
    found = glan().first_rtg(entry)
    assert np.isfinite(found).all() and (found >= 0).all()


def test_the_days_before_are_read_only_where_they_are_needed():
    assert glan().reads_days and not glan(rtg="mean7").reads_days
    entry, _, _ = sessions(5)
    entry.days = None
    assert np.isfinite(glan(rtg="mean7").scores(entry)).all()


def test_the_state_is_a_header_and_384_bytes_a_session():
    """At the default size; the bits of half-precision numbers lie in float32 ones, some of which are no numbers."""
    spec, stats = fitted(K)
    parts = {"lrtg": part("glan.lrtg", 1), "hrm": part("glan.hrm", 2), "dt": part("glan.dt", 3)}
    navigator = Bundle("navigator", "glan", {}, pages(K), spec, stats, parts=parts).navigator()
    assert navigator.state_size * 4 == 12 + 32 * 384 == 12_300
    entry, _, outcome = sessions(2)
    state = np.zeros((2, navigator.state_size), dtype=np.float32)
    for n in range(1, 4):
        state = navigator.observe(state, entry, outcome)
        used = np.flatnonzero(state[0].view(np.uint32)) * 4
        assert used.max() < 12 + 384 * n and used.max() >= 12 + 384 * (n - 1)


def test_a_part_that_keeps_no_past_is_refused():
    spec, stats = fitted(K)
    parts = {role: part("glan.lrtg", 1) for role in ("lrtg", "hrm", "dt")}
    with pytest.raises(BundleError, match="keeps no past"):
        Bundle("navigator", "glan", {}, pages(K), spec, stats, parts=parts).navigator()


def test_a_transformer_that_learned_from_another_reward_model_is_refused():
    spec, stats = fitted(K)
    parts = {"lrtg": part("glan.lrtg", 1), "hrm": part("glan.hrm", 2)}
    dt = part("glan.dt", 3)
    parts["dt"] = replace(dt, data={"rewards": parts["hrm"].version})
    made = Bundle("navigator", "glan", {}, pages(K), spec, stats).with_parts(parts)
    other = part("glan.hrm", 5)
    with pytest.raises(
        BundleError, match=rf"learned from the rewards of {parts['hrm'].version}.*{other.version}"
    ):
        made.with_parts({"hrm": other})
    together = {"hrm": other, "dt": replace(dt, data={"rewards": other.version})}
    assert made.with_parts(together).parts["hrm"] is other
    # one that was trained on durations belongs to any
    assert made.with_parts({"hrm": other, "dt": dt}).parts["dt"] is dt
