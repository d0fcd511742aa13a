"""The whole chain on the logs of the world: `plpm decide` and the service score as the transition table's features say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from plpm_ray.core.features import RawFeatures
from plpm_ray.core.registry import lookup
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.ingest import IngestConfig, ingest
from plpm_ray.data.tables import build_transitions, read_transitions
from plpm_ray.navigators.bundle import Bundle, save_bundle
from plpm_ray.policies.base import PolicyConfig
from plpm_ray.serving.config import DecideConfig
from plpm_ray.serving.decide import decide_file
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.history import load_history, load_profiles
from tests.world_logs import world_logs


def untrained(warehouse: Warehouse) -> Bundle:
    spec, stats = fit_spec(warehouse, warehouse.transitions.days())
    torch.manual_seed(0)
    cls = lookup("learner", "klan.iit")
    learner = cls(cls.Config(hidden=(16,)), spec, warehouse.info.pages, stats)
    return Bundle.of_learner(learner, spec, warehouse.info.pages, stats)


def test_decisions_equal_scores_of_the_transition_table(tmp_path: Path) -> None:
    root = tmp_path / "tables"
    ingest(IngestConfig(dataset=world_logs(60, 8), output=str(root), n_buckets=2))  # type: ignore[arg-type]
    warehouse = Warehouse.open(root)
    build_transitions(warehouse)
    bundle = untrained(warehouse)
    save_bundle(bundle, tmp_path / "bundle")
    rows = [t for b in range(2) if (t := read_transitions(warehouse, b)) is not None]
    sessions = [t for b in range(2) if (t := warehouse.sessions.read(b)) is not None]
    context = list(warehouse.info.context)
    joined, logged = pa.concat_tables(rows), pa.concat_tables(sessions)
    assert joined["session_id"].equals(logged["session_id"])  # the same rows in the same order
    for name in ("utc_offset_min", *context):
        joined = joined.append_column(name, logged[name])
    joined = joined.take(pa.array(np.random.default_rng(0).permutation(len(joined))))
    pq.write_table(
        joined.select(["user_id", "entry_time", "utc_offset_min", *context]), tmp_path / "entries.parquet"
    )
    summary = decide_file(
        DecideConfig(
            bundle=str(tmp_path / "bundle"),
            policy=PolicyConfig(kind="softmax"),
            entries=str(tmp_path / "entries.parquet"),
            history=str(root),
            output=str(tmp_path / "out.parquet"),
        )
    )
    made = pq.read_table(tmp_path / "out.parquet")
    offline = bundle.navigator().scores(RawFeatures.from_table(warehouse.info.features, joined))
    known = np.array(made["fallback"].is_null())
    scores = np.array(made["scores"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(scores[known], offline[known], rtol=0, atol=1e-6)
    assert known.sum() > 0.6 * len(joined) and summary["rows"] == len(joined) > 500
    _service_agrees(bundle, warehouse, tmp_path)


def _service_agrees(bundle: Bundle, warehouse: Warehouse, tmp_path: Path) -> None:
    """A service filled from the warehouse decides the day after like `plpm decide` from the same warehouse."""
    policy = load_policy(bundle, PolicyConfig(kind="epsilon", epsilon=0.1))
    load_profiles(policy, warehouse.root)
    assert load_history(policy, warehouse.root) > 500
    users = pa.concat_tables([t for b in range(2) if (t := warehouse.sessions.read(b)) is not None])[
        "user_id"
    ].unique()
    when = (warehouse.sessions.days()[-1] + 2) * 86_400_000
    entries = pa.table({"user_id": users, "entry_time": pa.array([when] * len(users))})
    pq.write_table(entries, tmp_path / "tomorrow.parquet")
    decide_file(
        DecideConfig(
            bundle=str(tmp_path / "bundle"),
            policy=PolicyConfig(kind="epsilon", epsilon=0.1),
            entries=str(tmp_path / "tomorrow.parquet"),
            history=str(warehouse.root),
            output=str(tmp_path / "tomorrow_out.parquet"),
        )
    )
    online, offline = policy.decide(entries), pq.read_table(tmp_path / "tomorrow_out.parquet")
    same = ["user_id", "page", "propensity", "fallback", "policy"]
    assert online.select(same).equals(offline.select(same))
    np.testing.assert_allclose(
        np.array(online["scores"].to_pylist()), np.array(offline["scores"].to_pylist()), atol=1e-6
    )
