"""A/A experiments: the false-positive rates of the real pipeline on the null and on a real world, at small size."""

from __future__ import annotations

from pathlib import Path

from plpm_ray.core.storage import read_json
from plpm_ray.simulation.aa import AAConfig, run_aa


def test_aa_counts_every_metric_of_every_experiment(tmp_path: Path) -> None:
    config = AAConfig(experiments=12, users=150, warmup_days=2, aa_days=2, ab_days=2, run_root=str(tmp_path))
    result = run_aa(config)
    assert {row["experiments"] for row in result["rows"]} == {12}
    assert {"dau", "lt", "use_s", "pdr", "epef_explore"} <= {row["metric"] for row in result["rows"]}
    for row in result["rows"]:
        p_values = result["p_values"][row["metric"]]
        assert row["rejections"] == sum(p < 0.05 for p in p_values)
        assert len(set(p_values)) == 12
    assert result["family_ok"]
    again = run_aa(config.model_copy(update={"run_root": str(tmp_path / "again"), "workers": 3}))
    assert (
        read_json(Path(again["run"]) / "aa.json")["rows"]
        == read_json(Path(result["run"]) / "aa.json")["rows"]
    )
