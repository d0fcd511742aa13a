"""One decision of GLAN late in a day: from the state that serving keeps, against the whole day computed anew.

    python benchmarks/decide_glan.py             # random weights of the default size, context 100; about two minutes

`model` is the Decision Transformer alone, from encoded features; `decision` is `NavigationPolicy.decide` with all of it: state
from the store in memory, features, encoder, model, draw, table. Without the cache the past is kept as encoded features, and the
transformer works on all sessions of the day; both ways give the same scores, which is checked. The foretold risk of a drop-off,
which costs the same in both, is left out. Times are CPU milliseconds of one thread, the two ways in turn: median [quartiles].
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from plpm_ray.core.feature_fitting import fitted_spec
from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.data.features.layout import empty_states, state_dtype
from plpm_ray.data.features.sessions import EntryArrays
from plpm_ray.data.features.state import features as features_of
from plpm_ray.navigators.bundle import Bundle
from plpm_ray.navigators.glan.glan import GLAN
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.engine import NavigationPolicy, load_policy

MORNING_MS = 19_700 * 86_400_000 + 6 * 3_600_000
EVERY_MS = 9 * 60_000
USERS = 256
STEPS = (5, 20, 100)


def random_bundle(context: int, pages: int = 6) -> Bundle:
    """GLAN of the default size with random weights: decisions cost what they cost after training."""
    catalogue = PageCatalogue.model_validate([f"page_{k}" for k in range(pages)])
    schema = FeatureSchema(catalogue.names, {"push": "numeric", "device": "categorical"}, {})
    at = EntryArrays(np.full(64, MORNING_MS), np.zeros(64, np.int64))
    spec = fitted_spec(features_of(empty_states(state_dtype(schema), 64), at, schema))
    ones = [np.ones(n) for n in (24, 64, pages, pages, pages)]
    stats = TableStats(1, 60.0, *ones)  # type: ignore[arg-type]
    stats.day_totals, stats.reward_s = TableStats.days(np.arange(1, 9), np.arange(1, 9) * 60.0), 48.0
    torch.manual_seed(0)
    parts = {}
    for role, name in GLAN.roles.items():
        cls = lookup("learner", name)
        config = cls.Config(**({"context": context, "risk_weight": 0.0} if role == "dt" else {}))
        learner = cls(config, spec, catalogue, stats)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        parts[role] = Bundle.of_learner(learner, spec, catalogue, stats)
    return Bundle("navigator", "glan", {}, catalogue, spec, stats, parts=parts)


class Past:
    """What was known at every session so far of all users, as the transformer reads it; noted while they are observed."""

    def __init__(self, navigator: GLAN) -> None:
        self.navigator, self.sessions = navigator, []
        self._observe = navigator.observe
        navigator.observe = self._noted  # type: ignore[method-assign]

    def _noted(
        self, state: np.ndarray, features: RawFeatures, outcome: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        day, inputs = self.navigator._day(features, state), self.navigator.parts["dt"].inputs(features)  # type: ignore[attr-defined]
        noted = {"dense": inputs["dense"], "cat": inputs["cat"]}
        noted["action"] = torch.from_numpy(outcome["action"].astype(np.int64))
        noted["rtg"] = torch.from_numpy(self.navigator._asked(day.rtg))
        # each user stays for another time, so this puts them in order
        users = torch.from_numpy(np.argsort(outcome["use_s"]))
        self.sessions.append({name: values[users] for name, values in noted.items()})
        return self._observe(state, features, outcome)

    def day(self, now: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole days of the first B users that end with the session that begins now, one after the other."""
        rows = len(now["rtg"])
        steps = [*self.sessions, {**now, "action": torch.zeros(rows, dtype=torch.int64)}]
        whole = {
            name: torch.stack([step[name][:rows] for step in steps], dim=1).flatten(0, 1) for name in now
        }
        whole["action"] = torch.stack([step["action"][:rows] for step in steps], dim=1).flatten()
        return whole | {"step": torch.arange(len(steps)).repeat(rows)}

    def scores(self, features: RawFeatures, roles: Sequence[str]) -> dict[str, np.ndarray]:
        """In the place of `GLAN.part_scores`: what the transformer says, without the cache."""
        encoded = self.navigator.parts["dt"].inputs(features)  # type: ignore[attr-defined]
        now = {"dense": encoded["dense"], "cat": encoded["cat"], "rtg": encoded["vec.glan.rtg"][:, 0]}
        with torch.inference_mode():
            chance = self.navigator.dt.scores(self.day(now)).numpy()[
                len(self.sessions) :: len(self.sessions) + 1
            ]
        return dict.fromkeys(roles, np.concatenate([chance, np.ones_like(chance)], axis=1))


def day_goes_on(policy: NavigationPolicy, steps: range) -> None:
    """A session of every user at each of the given steps."""
    names = np.array(policy.pages.names)
    for n in steps:
        entry, landing = np.full(USERS, MORNING_MS + n * EVERY_MS), names[(np.arange(USERS) + n) % len(names)]
        one = pa.array(np.arange(USERS + 1, dtype=np.int32))
        dwell = pa.array(60.0 + np.arange(USERS, dtype=np.float32))
        columns = {"user_id": np.arange(USERS), "session_id": np.arange(USERS) + n * USERS}
        columns |= {"entry_time": entry, "exit_time": entry + 200_000, "landing_page": landing}
        visits = {"pages": pa.ListArray.from_arrays(one, pa.array(landing))}
        visits["dwell_s"] = pa.ListArray.from_arrays(one, dwell)
        policy.observe(pa.table(columns | visits))


def milliseconds(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """(repeats,) CPU milliseconds of each way, taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 2):
        for name, work in ways.items():
            start = time.process_time()
            work()
            if repeat >= 2:
                found[name].append(1e3 * (time.process_time() - start))
    return {name: np.array(values) for name, values in found.items()}


def compare(policy: NavigationPolicy, past: Past, rows: int, step: int, repeats: int) -> str:
    """One line of the table."""
    navigator, entry_ms = past.navigator, MORNING_MS + step * EVERY_MS
    entries = pa.table({"user_id": np.arange(rows), "entry_time": np.full(rows, entry_ms)})
    kept: list[RawFeatures] = []
    own = navigator.part_scores

    def cached(features: RawFeatures, roles: Sequence[str]) -> dict[str, np.ndarray]:
        kept.append(features)
        return own(features, roles)

    def decide(part_scores: Any) -> np.ndarray:
        navigator.part_scores = part_scores
        try:
            return np.array(policy.decide(entries)["scores"].to_pylist())
        finally:
            del navigator.part_scores

    differ = np.abs(decide(cached) - decide(past.scores)).max()
    if not differ < 5e-3:
        raise SystemExit(f"the two ways differ by {differ:.2g} at step {step}")
    dt = navigator.parts["dt"]
    inputs = dt.inputs(kept[0])  # type: ignore[attr-defined]
    now = {"dense": inputs["dense"], "cat": inputs["cat"], "rtg": inputs["vec.glan.rtg"][:, 0]}
    whole = past.day(now)
    with torch.inference_mode():
        model = {"cached": lambda: navigator.dt.scores(inputs), "anew": lambda: navigator.dt.scores(whole)}
        times = milliseconds(model, repeats)
    both = milliseconds({"cached": lambda: decide(own), "anew": lambda: decide(past.scores)}, repeats)
    cells = [f"{step}", f"{rows}"]
    for found in (times, both):
        cells += [spread(found["cached"]), spread(found["anew"])]
        cells.append(f"{np.median(found['anew']) / np.median(found['cached']):.1f}")
    return "| " + " | ".join([*cells, f"{differ:.0e}"]) + " |"


def spread(values: np.ndarray) -> str:
    """Median [quartiles]."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--context", type=int, default=100, help="sessions of the day that are seen")
    parser.add_argument("--repeats", type=int, default=40, help="decisions that are timed, of one user")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(random_bundle(options.context), PolicyConfig(kind="proportional"))
    assert isinstance(policy.navigator, GLAN)
    past, done = Past(policy.navigator), 0
    state = policy.navigator.state_size * 4
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; state {state:,} bytes\n")
    heads = [
        f"{what}: {way}" for what in ("model", "decision") for way in ("cached, ms", "anew, ms", "ratio")
    ]
    print("| " + " | ".join(["step", "users", *heads, "scores differ by"]) + " |\n" + "|---" * 9 + "|")
    for step in STEPS:
        day_goes_on(policy, range(done, step))
        done = step
        for rows in (1, USERS):
            repeats = options.repeats if rows == 1 else max(3, options.repeats // 5)
            print(compare(policy, past, rows, step, repeats), flush=True)


if __name__ == "__main__":
    main()
