"""A made-up run folder of `plpm assess`, for tests of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plpm_ray.core.storage import write_json


def assess_run(folder: Path) -> Path:
    """What `plpm assess` leaves of a model of days and of a reward model; the held-out days are a weekend."""

    def interval(value: float, half: float) -> dict[str, float]:
        return {"value": value, "low": value - half, "high": value + half, "n": 700}

    def errors(mae: float) -> dict[str, Any]:
        tenths = [interval(900.0 - 200 * i, 80.0) for i in range(10)]
        week = [None] * 5 + [interval(120.0, 60.0), interval(-40.0, 70.0)]
        by = {"use": tenths, "prediction": tenths, "weekday": week}
        rates = {"rmse_s": interval(1.7 * mae, 90.0), "spearman": interval(0.56, 0.02)}
        return {"mae_s": interval(mae, 60.0), **rates, "bias_s": interval(-49.0, 50.0), "bias_by": by}

    judged = {"rows": 7000, "users": 3900}
    constraint = {**interval(0.93, 0.04), "bound": 0.78, "lambda": 0.16, "holds": False, "held": True}
    day = {"label": "L-RTG", "kind": "day", **judged, "model": errors(4015.0), "reference": errors(4215.0)}
    day |= {"constant": errors(5100.0), "mae_gain": interval(200.0, 34.0), "constraints": {"se": constraint}}
    bins = [[0.02, 0.01, 3000], [0.35, 0.28, 800], [0.65, 0.88, 400]]
    drop = {
        "share": 0.25,
        "mean_chance": 0.24,
        "auc": 0.94,
        "pr_auc": 0.79,
        "calibration_error": 0.1,
        "bins": bins,
    }
    drop |= {"brier": 0.1, "brier_interval": [0.09, 0.11], "constant_brier": 0.19}
    drop |= {"log_loss": 0.32, "log_loss_interval": [0.31, 0.33], "constant_log_loss": 0.57}
    page = {"page": "featured", "mean_s": 746.0, "mae_s": 73.0, "constant_mae_s": 910.0, "bias_s": 32.0}
    session = {"label": "HRM", "kind": "session", **judged, "tau_s": 10.0, "drop_off": drop, "pages": [page]}
    split = {"train": ["2024-03-04"], "valid": ["2024-03-08"], "test": ["2024-03-09", "2024-03-10"]}
    record = {"command": "assess", "data": "kuaishou", "part": "test", "split": split}
    write_json(folder / "summary.json", {**record, "models": [day, session]})
    return folder
