"""Does HRM's reward tell good landing decisions from bad ones better than the length of the session does? In the world.

    python benchmarks/hrm_worth.py --worlds kuaishou hard five_pages --users 4000 --out runs/hrm_worth

HRM learns from logs of some users under the world's logging policy, then judges the sessions of others. The world knows what each
landing decision was worth: the expected seconds of the session after landing on the chosen page, minus their mean over the pages
(and, as a second definition, minus those of the best page). The table has Spearman's rank correlation of each score of a session
with that worth, with its 95 % bootstrap interval over users, and how far each is above that of the duration (paired draws).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.registry import register
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.datasets.base import Raw, Slice
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.split import SplitConfig, split_days
from plpm_ray.data.tables import build_transitions
from plpm_ray.evaluation.assess import SESSION, HeldOut, held_out
from plpm_ray.evaluation.metrics import Mean
from plpm_ray.evaluation.rank_correlation import clustered_spearman, spearman_gain
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.simulation.dataset import WorldDataset, WorldLogsConfig
from plpm_ray.simulation.worth import Worths, decision_worths
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.run import train

TRAINING = {"epochs": 10, "batch_size": 4096, "lr": 3e-3, "num_threads": 1}


@register("dataset", "world_without_views")
class WithoutViews(WorldDataset):
    """The same logs from an app that counts no video views."""

    def read(self, item: Slice) -> Raw:
        sessions = super().read(item).table
        at = sessions.schema.get_field_index("video_views")
        hidden = pa.nulls(len(sessions), sessions.schema.field(at).type)
        return Raw(sessions.set_column(at, "video_views", hidden))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", default=["kuaishou", "hard", "five_pages"])
    parser.add_argument("--users", type=int, default=4000, help="whose logs HRM learns from")
    parser.add_argument("--held-out", type=int, default=1000, help="other users, whose sessions it judges")
    parser.add_argument("--days", type=int, default=14, help="logged")
    parser.add_argument("--seed", type=int, default=0, help="of the users and their luck")
    parser.add_argument("--training-seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/hrm_worth"))
    given = parser.parse_args()
    for world in given.worlds:
        print(world_table(world, given), flush=True)


def world_table(world: str, given: argparse.Namespace) -> str:
    """Markdown: a line a score."""
    scores: dict[str, np.ndarray] = {}
    for views in (True, False):
        scores |= judged(world, given, views)
    user, ids = scores.pop("user"), scores.pop("session_id")
    worth = decision_worths(logs_config(world, given, held=True), np.unique(users_of(given, held=True)))
    lines = [
        [world, "worth over the mean page", "above duration", "worth under the best page", "above duration"]
    ]
    for label, score in scores.items():
        lines.append([label, *cells(score, scores["duration"], worth.of(ids), user)])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    about = (
        f"{len(ids):,} sessions of {len(np.unique(user)):,} users; HRM learned from {given.users:,} others"
    )
    return "\n".join([rows[0], "|---|---|---|---|---|", *rows[1:], "", about, ""])


def cells(score: np.ndarray, duration: np.ndarray, worth: Worths, user: np.ndarray) -> list[str]:
    found: list[str] = []
    for truth in (worth.over_mean_s, worth.under_best_s):
        found.append(shown(clustered_spearman(score, truth, user)))
        found.append("-" if score is duration else shown(spearman_gain(score, duration, truth, user)))
    return found


def shown(mean: Mean) -> str:
    return f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"


def judged(world: str, given: argparse.Namespace, views: bool) -> dict[str, np.ndarray]:
    """Scores of the held-out users' sessions by name, (N,) each, with their "user" and "session_id"."""
    train_on, judge_on = (tables(world, given, views, held) for held in (False, True))
    split = split_days(train_on.transitions.days(), SplitConfig(valid_days=2, test_days=0))
    training = TrainingConfig.model_validate({**TRAINING, "seed": given.training_seed})
    folder = given.out / world / "runs"
    name = "hrm" if views else "hrm_without_views"
    run = train("glan.hrm", {}, training, train_on.root, split.train, split.valid, folder, name)
    bundle = load_bundle(run.bundle_path)
    days = judge_on.transitions.days()
    learner = bundle.learner()
    rows = held_out(learner, SESSION, judge_on, bundle.spec, days)
    if not views:
        return {"HRM, video views hidden": rows.of("reward")}
    learner.config = learner.config.model_copy(update={"calibrated": False})
    paper = held_out(learner, SESSION, judge_on, bundle.spec, days)
    found = {"duration": rows.columns["use_s"].astype(np.float64), "HRM": rows.of("reward")}
    found |= {
        "HRM, calibrated: false": paper.of("reward"),
        "its chance to stay alone": 1 - rows.of("drop_off"),
    }
    return {**found, "its seconds alone": seconds(rows), "user": rows.user, "session_id": ids(judge_on, days)}


def seconds(rows: HeldOut) -> np.ndarray:
    """(N,) foretold seconds of the sessions, without the discount by the risk of a drop-off."""
    assert rows.page_s is not None
    return rows.page_s.sum(axis=1)


def ids(warehouse: Warehouse, days: list[int]) -> np.ndarray:
    """(N,) session ids in the order of `held_out`."""
    parts = [warehouse.transitions.read(b, days, ["session_id"]) for b in range(warehouse.info.n_buckets)]
    return np.concatenate([part["session_id"].to_numpy() for part in parts if part is not None])


def tables(world: str, given: argparse.Namespace, views: bool, held: bool) -> Warehouse:
    """Logs of the users to learn from, or to judge, as tables; made once."""
    kind = "world" if views else "world_without_views"
    output = given.out / world / f"{kind}_{'held_out' if held else 'train'}"
    if not (output / "transitions" / "_manifest.json").exists():
        dataset = {"name": kind, **logs_config(world, given, held).model_dump(mode="json")}
        made: dict[str, Any] = {"dataset": dataset, "output": str(output), "n_buckets": 4}
        ingest(IngestConfig.model_validate(made))
        build_transitions(Warehouse.open(output))
    return Warehouse.open(output)


def logs_config(world: str, given: argparse.Namespace, held: bool) -> WorldLogsConfig:
    users = users_of(given, held)
    shared = {"world": world, "seed": given.seed, "days": given.days, "warmup_days": 7, "policy": "logging"}
    return WorldLogsConfig.model_validate({**shared, "users": len(users), "first_user": int(users[0])})


def users_of(given: argparse.Namespace, held: bool) -> np.ndarray:
    """(U,) ids: those to judge follow those to learn from."""
    return given.users + np.arange(given.held_out) if held else np.arange(given.users)


if __name__ == "__main__":
    main()
