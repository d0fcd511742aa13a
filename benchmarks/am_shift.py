"""KLAN-AM on a stream whose users change half-way: learning on, against the same model frozen at the change.

    python benchmarks/am_shift.py
    python benchmarks/am_shift.py --users 500 --days 4 --seeds 1      # a quick look

Users of the world live `days` days; then the world is another one, in which the same people behave differently, for as many
days more. All sessions are replayed in order of entry: every micro-batch is first scored, then learned from. At the change
the model is copied; the copy only scores. Shifts:

    busier    multi- and single-page users walk on to further pages more often
    reversed  single-page users walk on, multi-page users stay: what was learned of users is wrong
    swapped   the two most wanted pages change places
    none      nothing changes

Tables: AUC and log loss by day; and over the seeds, on the last two days before the change, and on all days after it but the
first. "Half" and "nine tenths": sessions after the change until what learning on gains over the frozen model (its log loss minus
the streamed one's, by windows of 1,000 sessions) first reaches that share of what it gains on the last two days; "-" where that
is less than 0.005.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.config import Named
from plpm_ray.core.storage import write_parquet
from plpm_ray.data.contract import DAY_MS, MINUTE_MS, Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.tables import build_transitions
from plpm_ray.navigators.klan.am import AM, AMConfig
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.dataset import WorldLogs, WorldLogsConfig
from plpm_ray.simulation.world import CONTEXT, PROFILE
from plpm_ray.training.job import build_learner
from plpm_ray.training.prequential import Prequential
from plpm_ray.training.stream_config import StreamTraining
from plpm_ray.training.stream_sources import TableReplay
from plpm_ray.training.streaming import StreamLearner

WINDOW, LEAST = 1_000, 0.005
SHIFTS: dict[str, dict[str, dict[str, Any]]] = {
    "busier": {"browsing": {"multi": 0.5, "single": 0.15}},
    "reversed": {"browsing": {"multi": 0.02, "single": 0.25}},
    "swapped": {},
    "none": {},
}


@dataclass
class Outcome:
    """What a stream came to: judgements by day of the streamed and of the frozen model, and by window after the change
    what the streamed one gains."""

    streamed: list[Prequential]
    frozen: list[Prequential]
    gains: list[tuple[int, float]]

    def recovered(self, share: float) -> int | None:
        """Sessions after the change until this share of the last two days' gain is reached."""
        first = len(self.streamed) - 2
        gain = self.after(self.frozen, first)["log_loss"] - self.after(self.streamed, first)["log_loss"]
        return None if gain < LEAST else next((n for n, found in self.gains if found >= share * gain), None)

    def after(self, judged: list[Prequential], first: int) -> dict[str, Any]:
        whole = Prequential(judged[0].pages)
        for day in judged[first:]:
            whole.counts, whole.sums = whole.counts + day.counts, whole.sums + day.sums
        return whole.record()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1500)
    parser.add_argument("--days", type=int, default=7, help="before the change, and after it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shift", nargs="+", default=list(SHIFTS), choices=list(SHIFTS))
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    print(
        "| shift | AUC before | AUC after, streamed | frozen | log loss before | after, streamed | frozen | half | nine tenths |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    shown = {}
    for shift in args.shift:
        found = [one(shift, seed, args) for seed in range(args.seeds)]
        shown[shift] = found[0]
        print(row(shift, found, args.days), flush=True)
    print(f"\nmean ± standard deviation over {args.seeds} seeds of world and model\n")
    for shift, outcome in shown.items():
        by_day(shift, outcome, args.days)


def row(shift: str, found: list[Outcome], days: int) -> str:
    cells = []
    for metric in ("auc", "log_loss"):
        parts = [
            [o.after(o.streamed[:days], days - 2)[metric] for o in found],
            [o.after(o.streamed, days + 1)[metric] for o in found],
            [o.after(o.frozen, days + 1)[metric] for o in found],
        ]
        cells += [f"{np.mean(p):.4f} ± {np.std(p):.4f}" for p in parts]
    for share in (0.5, 0.9):
        cells.append(", ".join("-" if r is None else f"{r:,}" for r in (o.recovered(share) for o in found)))
    return f"| {shift} | {' | '.join(cells)} |"


def by_day(shift: str, outcome: Outcome, days: int) -> None:
    print(
        f"{shift}, seed 0:\n\n| day | sessions | static | AUC streamed | AUC frozen | log loss streamed | log loss frozen |"
    )
    print("|---|---|---|---|---|---|---|")
    for day, (streamed, frozen) in enumerate(zip(outcome.streamed, outcome.frozen, strict=True)):
        a, b = streamed.record(), frozen.record()
        values = [a["auc"], b["auc"], a["log_loss"], b["log_loss"]]
        cells = [f"{day + 1}{' *' if day == days else ''}", f"{streamed.rows:,}", f"{a['label_share']:.3f}"]
        cells += ["" if v is None else f"{v:.4f}" for v in values]
        print(f"| {' | '.join(cells)} |")
    print("\n* the change\n", flush=True)


def one(shift: str, seed: int, args: argparse.Namespace) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        warehouse = changing_world(Path(scratch), shift, seed, args.users, args.days)
        days = warehouse.transitions.days()
        change = (days[args.days]) * DAY_MS
        pages = warehouse.info.pages
        spec, stats = fit_spec(warehouse, days[: args.days])
        training = StreamTraining(batch_sessions=args.batch, lr=args.lr, seed=seed)
        learner = build_learner(AM, AMConfig(), spec, pages, stats, seed)
        streamed, frozen = StreamLearner(learner, spec, pages, training), None
        by_day = {name: [Prequential(pages.names) for _ in days] for name in ("streamed", "frozen")}
        gains: list[tuple[int, float]] = []
        window, seen = {name: Prequential(pages.names) for name in by_day}, 0
        source, position = TableReplay(warehouse), None
        while (rows := source.read(position, args.batch)) is not None:
            position = rows.position
            local = rows.outcome["entry_ms"] + 480 * MINUTE_MS
            scored = {}
            if local[0] >= change:
                frozen = frozen or StreamLearner(copy.deepcopy(learner), spec, pages, training)
                scored["frozen"] = frozen.judge(rows)
            scored["streamed"], _ = streamed.step(rows)
            for name, result in scored.items():
                for day in np.unique(local // DAY_MS):
                    mine = local // DAY_MS == day
                    if day in days:
                        by_day[name][days.index(day)].add(
                            result.chance[mine], result.label[mine], rows.outcome["action"][mine]
                        )
            if frozen is not None:
                for name, result in scored.items():
                    window[name].add(result.chance, result.label, rows.outcome["action"])
                seen += len(rows)
                if window["frozen"].rows >= WINDOW:
                    losses = {name: float(w.record()["log_loss"] or 0.0) for name, w in window.items()}
                    gains.append((seen, losses["frozen"] - losses["streamed"]))
                    window = {name: Prequential(pages.names) for name in by_day}
        return Outcome(by_day["streamed"], by_day["frozen"], gains)


def changing_world(scratch: Path, shift: str, seed: int, users: int, days: int) -> Warehouse:
    """Tables of `days` days of the world and as many of the changed one, of the same users."""
    before = load_world("kuaishou").model_dump(mode="json")
    after = copy.deepcopy(before)
    for section, values in SHIFTS[shift].items():
        after[section] |= values
    if shift == "swapped":
        first, second = after["pages"][0], after["pages"][1]
        first["popularity"], second["popularity"] = second["popularity"], first["popularity"]
    people = np.arange(users)
    tables = []
    for i, world in enumerate((before, after)):
        config = WorldLogsConfig.model_validate(
            {
                "world": world,
                "users": users,
                "days": 2 * days,
                "seed": seed,
                "policy": {"builtin": "logging", "explore": 0.3},
            }
        )
        logs = WorldLogs(config)
        sessions = logs.run(people).sessions
        local = (
            pc.add(
                sessions["entry_time"].cast(pa.int64()),
                pc.multiply(sessions["utc_offset_min"].cast(pa.int64()), MINUTE_MS),
            ).to_numpy()
            // DAY_MS
        )
        change = logs.world.first_day + config.warmup_days + days
        tables.append(sessions.filter(pa.array((local < change) if i == 0 else (local >= change))))
        if i == 0:
            write_parquet(scratch / "users" / "users.parquet", logs.profiles(people))
            pages = list(logs.world.pages.names)
    write_parquet(scratch / "sessions" / "sessions.parquet", pa.concat_tables(tables))
    dataset = {
        "name": "canonical",
        "title": f"kuaishou, {shift}",
        "path": str(scratch / "sessions"),
        "pages": pages,
        "context": dict(CONTEXT),
        "profile": {"path": str(scratch / "users"), "columns": dict(PROFILE)},
    }
    output = str(scratch / "tables")
    ingest(IngestConfig(dataset=Named.model_validate(dataset), output=output, n_buckets=2))
    warehouse = Warehouse.open(output)
    build_transitions(warehouse)
    return warehouse


if __name__ == "__main__":
    main()
