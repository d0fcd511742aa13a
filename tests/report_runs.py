"""Made-up run folders for tests of the report: the files that the commands write, with plausible numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from plpm_ray.core.storage import write_json
from plpm_ray.evaluation.experiment_metrics import metric_catalogue
from tests.report_assessed import assess_run
from tests.report_experiments import PAGES, TIDE, ab_run


def calibration_run(folder: Path) -> Path:
    """A calibration run of the same world as `ab_run`."""
    rng = np.random.default_rng(1)
    wanted = [
        ("Users", "share of multi-page users", "%", 42.0, 41.6, "KLAN fig. 2b"),
        ("Users", "users with more than one entry a day", "%", 70.0, 70.9, "KLAN fig. 2c"),
        ("Users", "sessions per user and day", "", 2.6, 2.58, "KuaiRand-27K"),
        ("Use", "R² of use on ln(1 + entries)", "", 0.93, 0.88, "GLAN fig. 3"),
        ("Use", "use per active user and day", "s", None, 2890.0, ""),
        ("Pages", "share of featured", "%", 71.2, 70.4, "KuaiRand-27K"),
        ("Pages", "share of explore", "%", 18.4, 19.0, "KuaiRand-27K"),
        ("Pages", "drop-off on explore", "%", 22.0, 25.1, "assumed"),
        ("Week", "Sunday over mean", "", 1.062, 1.058, "KuaiRand-27K"),
    ]
    rows = [
        {
            "group": group,
            "quantity": quantity,
            "unit": unit,
            "target": target,
            "reached": reached,
            "low": reached * 0.985,
            "high": reached * 1.015,
            "source": source,
        }
        for group, quantity, unit, target, reached, source in wanted
    ]
    reached = np.array(TIDE) * np.exp(rng.normal(0, 0.03, 24))
    hourly = {"target": TIDE, "reached": (reached / reached.sum()).tolist()}
    record = {"kind": "calibration", "world": "kuaishou", "users": 20_000, "days": 28, "seed": 0}
    write_json(folder / "calibration.json", {**record, "rows": rows, "hourly": hourly})
    return folder


def coverage_run(folder: Path, repetitions: int = 200) -> Path:
    """A coverage run: three policies, of which the last has no overlap with the log."""
    rng = np.random.default_rng(2)
    rows = []
    for policy, truth in (("close to the log", 171.0), ("IIT", 186.0), ("always the rarest page", 120.0)):
        for estimator in ("snips", "dr", "fqe"):
            refused = repetitions if policy.startswith("always") else int(rng.integers(0, 3))
            answered = repetitions - refused
            rate = 0.86 if (policy, estimator) == ("IIT", "fqe") else 0.95
            covered = int(rng.binomial(answered, rate))
            ends = stats.binomtest(covered, answered).proportion_ci(method="wilson") if answered else None
            bias = float(rng.normal(0, 0.4)) + (3.1 if rate < 0.9 else 0.0)
            rows.append(
                {
                    "estimator": estimator,
                    "policy": policy,
                    "truth": truth,
                    "mean": truth + bias if answered else None,
                    "bias": bias if answered else None,
                    "sd": float(rng.uniform(1.5, 3)) if answered else None,
                    "covered": covered,
                    "answered": answered,
                    "refused": refused,
                    "rate": covered / answered if answered else None,
                    "rate_low": ends.low if ends else None,
                    "rate_high": ends.high if ends else None,
                    "ok": bool(ends.low <= 0.95 <= ends.high) if ends else None,
                    "unit": "s",
                }
            )
    record = {"kind": "coverage", "world": "kuaishou", "repetitions": repetitions, "nominal": 0.95, "seed": 0}
    write_json(folder / "coverage.json", {**record, "rows": rows})
    return folder


def aa_run(folder: Path, experiments: int = 200) -> Path:
    """An A/A run in which one metric lies a little outside its own interval."""
    rng = np.random.default_rng(3)
    low, high = (int(x) / experiments for x in stats.binom.interval(0.95, experiments, 0.05))
    rows = []
    for metric in metric_catalogue(PAGES):
        rejections = 19 if metric.key == "watch_s" else int(np.clip(rng.binomial(experiments, 0.05), 6, 15))
        rate = rejections / experiments
        rows.append(
            {
                "metric": metric.key,
                "title": metric.title,
                "page": metric.page,
                "rejections": rejections,
                "experiments": experiments,
                "rate": rate,
                "expected_low": low,
                "expected_high": high,
                "ok": low <= rate <= high,
                "family_low": 0.01,
                "family_high": 0.105,
                "family_ok": 0.01 <= rate <= 0.105,
            }
        )
    record = {
        "kind": "aa",
        "world": "kuaishou",
        "experiments": experiments,
        "users": 2000,
        "seed": 0,
        "level": 0.05,
    }
    write_json(folder / "aa.json", {**record, "family_ok": True, "rows": rows})
    return folder


def uplift_run(
    folder: Path,
    models: Sequence[str] = ("ISP", "T-learner", "random forest"),
    arms: Sequence[str] = ("explore", "following"),
) -> Path:
    """An uplift run; curves bend less from model to model."""
    share = np.linspace(0, 1, 101)
    rows, curves = [], []
    for m, model in enumerate(models):
        for a, arm in enumerate(arms):
            bend = 0.5 / (m + 1)
            gain = 12.0 * (a + 1) * (share + bend * share * (1 - share) * 2)
            curves.append(
                {
                    "model": model,
                    "arm": arm,
                    "share": share.tolist(),
                    "qini": gain.tolist(),
                    "low": (gain - 1).tolist(),
                    "high": (gain + 1).tolist(),
                    "random": (12.0 * (a + 1) * share).tolist(),
                }
            )
            for metric, value in (
                ("qini", bend * 0.3),
                ("auuc", 6 + bend * 4),
                ("uplift_at_30", 14 + 5 * bend),
            ):
                ends = {"low": value * 0.8, "high": value * 1.25}
                rows.append(
                    {
                        "model": model,
                        "arm": arm,
                        "metric": metric,
                        "value": value,
                        **ends,
                        "unit": "s per day",
                    }
                )
    first, alone = (
        rows[0],
        [
            {
                "arm": arm,
                "metric": "average_effect",
                "value": 12.0,
                "low": 9.0,
                "high": 15.0,
                "unit": "s per day",
            }
            for arm in arms
        ],
    )
    others = [
        {**r, "against": first["model"], "value": -0.05, "low": -0.09, "high": 0.01}
        for r in rows
        if r["model"] != first["model"]
    ]
    record = {
        "kind": "uplift",
        "data": "trial of kuaishou",
        "users": 50_000,
        "seed": 0,
        "models": list(models),
    }
    write_json(
        folder / "uplift.json",
        {
            **record,
            "rows": rows,
            "differences": others,
            "references": alone,
            "curves": curves,
            "unit": "s per user and day",
        },
    )
    return folder


def evaluate_run(folder: Path) -> Path:
    """What `plpm evaluate` leaves, with one refused estimate."""

    def estimate(name: str, value: float | None, per: str = "decision") -> dict[str, Any]:
        low, high = (None, None) if value is None else (value - 3.4, value + 3.4)
        support = {
            "samples": 16311,
            "clusters": 3721,
            "effective_samples": 8170.1,
            "effective_clusters": 2311.0,
        }
        reason = "effective sample size 12 of 16311 is below 100" if value is None else None
        return {
            "estimator": name, "value": value, "low": low, "high": high, "standard_error": 1.7, "level": 0.95, "unit": "s",
            "per": per, "support": support, "modelled": False, "refused": reason, "note": None,
        }  # fmt: skip

    results = []
    for policy, value in (
        ("(the log itself)", 169.1),
        ("IIT", 187.0),
        ("DQN", 181.2),
        ("always explore", None),
    ):
        day = None if value is None else value * 2.5
        estimates = {"snips": estimate("snips", value), "fqe": estimate("fqe", day, "user-day")}
        mean = {"value": 0.62, "low": 0.6, "high": 0.64, "n": 16311}
        agreement: Any = (
            "100%" if policy.startswith("(") else {"argmax_share": mean, "mean_probability": mean}
        )
        pages: Any = (
            [0.32, 0.35, 0.33]
            if policy.startswith("(")
            else {"argmax": [0.5, 0.3, 0.2], "probability": [0.5, 0.3, 0.2]}
        )
        results.append(
            {"policy": policy, "estimates": estimates, "metrics": {"agreement": agreement, "pages": pages}}
        )
    diagnostics = {"rows": 16311, "users": 3721, "propensities": "logged"}
    split = {"train": ["2024-03-04"], "valid": ["2024-03-14"], "test": ["2024-03-16", "2024-03-17"]}
    summary = {
        "command": "evaluate",
        "part": "test",
        "split": split,
        "diagnostics": diagnostics,
        "results": results,
    }
    write_json(
        folder / "summary.json", {**summary, "config": {"name": "evaluate", "tables": "data/kuaishou"}}
    )
    return folder


def sweep_run(folder: Path) -> Path:
    """What `plpm sweep` leaves."""
    best = {"trial": 3, "params": {"alpha": 0.31, "beta": 1.2}, "value": 36.6, "low": 35.3, "high": 37.9}
    summary = {"command": "sweep", "name": "alpha_beta", "learner": "klan.iit", "searched": ["alpha", "beta"]}
    write_json(
        folder / "summary.json",
        {**summary, "objective": "dr", "trials": 2, "best": best, "unit": "s per session"},
    )
    lines = ["rank,trial,alpha,beta,status,epochs,score,value,low,high"]
    lines += ["1,3,0.31,1.2,finished,10,2.1,36.6,35.3,37.9", "2,1,4.0,0.2,refused,10,,,,"]
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def train_run(folder: Path) -> Path:
    """What `plpm train` leaves."""
    history = [
        {"epoch": e, "step": e * 80, "train/loss": 1.2 / e, "valid/loss": 1.3 / e + 0.1} for e in range(1, 9)
    ]
    metrics = {"loss": 0.27, "q_logged_s": 277.5, "agreement": 0.67}
    summary = {
        "status": "finished",
        "learner": "klan.iit",
        "version": "klan.iit-79febe285a",
        "metrics": metrics,
    }
    write_json(
        folder / "summary.json",
        {**summary, "history": history, "epochs": 8, "steps": 640, "samples": 655_360},
    )
    return folder


def stream_run(folder: Path) -> Path:
    """What `plpm stream` leaves."""
    pages = ["featured", "explore"]
    judged = {"auc": 0.74, "log_loss": 0.45, "brier": 0.14, "label_share": 0.8}
    metrics = judged | {f"page/{page}/{name}": value for page in pages for name, value in judged.items()}
    metrics |= {f"page/{page}/sessions": 20_000 for page in pages}
    windows = [
        {
            "step": 40 * (i + 1),
            "sessions": 5_000 * (i + 1),
            "to_ms": 1_709_600_000_000 + 40_000_000 * i,
            "auc": 0.55 + 0.03 * i if i else None,
            "log_loss": 0.6 - 0.02 * i,
            "overall/auc": 0.55 + 0.02 * i,
            "overall/log_loss": 0.6 - 0.01 * i,
            **{f"page/{page}/auc": 0.5 + 0.03 * i for page in pages},
        }
        for i in range(8)
    ]
    summary = {"command": "stream", "learner": "klan.am", "version": "klan.am-1b2e7b45d9", "dataset": "world"}
    summary |= {"pages": pages, "sessions": 40_000, "ended": "end of the source", "metrics": metrics}
    write_json(folder / "summary.json", {**summary, "days": ["2024-03-04", "2024-03-10"]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(window) + "\n" for window in windows))
    return folder


def every_kind(folder: Path) -> list[Path]:
    """One run folder of each kind."""
    makers = (ab_run, calibration_run, coverage_run, aa_run, uplift_run)
    makers += (evaluate_run, sweep_run, train_run, stream_run, assess_run)
    return [maker(folder / f"{maker.__name__}-0123456789") for maker in makers]
