"""Made-up run folders for tests of the report: the files that the commands write, with plausible numbers."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from plpm_ray.core.storage import write_json, write_parquet
from plpm_ray.evaluation.experiment_metrics import metric_catalogue

PAGES = ("featured", "explore", "following")
ARMS = ("last exit page", "IIT", "DQN", "BC", "random", "oracle")
_STATES = ("absent", "single", "multi")
NASTY = (
    '<script>document.title="taken"</script>"><img src=x onerror=alert(1)> & \u202eabc ' + "long-name-" * 12
)
_LEVELS = {
    "dau": 52.3,
    "lt": 4.87,
    "use_s": 1510.0,
    "watch_s": 1180.0,
    "video_views": 34.2,
    "sessions": 2.61,
    "pdr": 18.4,
}
_HOURS = [33, 20.1, 12.8, 9, 8.1, 11.5, 21.3, 30.9, 35.8, 40.2, 44.8, 47.9]
_HOURS += [52.8, 53.2, 48, 48.9, 51.5, 54.4, 58.5, 61.7, 66.1, 68.6, 67.8, 53.1]
TIDE = [h / sum(_HOURS) for h in _HOURS]


def ab_run(
    folder: Path,
    arms: Sequence[str] = ARMS,
    pages: Sequence[str] = PAGES,
    users: int = 120_000,
    aa_days: int = 7,
    ab_days: int = 21,
    sample_ratio_ok: bool = True,
    design: str = "split",
    seed: int = 0,
) -> Path:
    """An A/B run; the first arm is the control, arms called random and oracle are built in."""
    rng = np.random.default_rng(seed)
    effect = {arm: float(rng.normal(0.006, 0.006)) for arm in arms}
    effect |= {arms[0]: 0.0, "random": -0.055, "oracle": 0.064}
    each = users // len(arms)
    rows = [
        row for metric in metric_catalogue(pages) for row in _metric_rows(metric, arms, effect, each, rng)
    ]
    counts = {arm: each + int(rng.integers(-150, 150)) for arm in arms}
    if not sample_ratio_ok:
        counts[arms[1]] -= each // 10
    builtin = {"random": "random", "oracle": "far_sighted_oracle"}
    write_json(
        folder / "ab.json",
        {
            "kind": "ab",
            "world": "kuaishou",
            "pages": list(pages),
            "control": arms[0],
            "arms": list(arms),
            "versions": {arm: f"klan.iit-{abs(hash(i)) % 0xFFFFFF:06x}" for i, arm in enumerate(arms)},
            "design": design,
            "users": users,
            "warmup_days": 14,
            "aa_days": aa_days,
            "ab_days": ab_days,
            "seed": seed,
            "adjustment": "holm",
            "metrics": rows,
            "sample_ratio": {
                "p_value": 0.41 if sample_ratio_ok else 3e-9,
                "counts": counts,
                "expected": {arm: users / len(arms) for arm in arms},
                "ok": sample_ratio_ok,
                "message": "",
            },
            "latency": {arm: float(rng.uniform(2, 40)) for arm in arms[1:4]},
        },
    )
    listed = [{"label": arm, "builtin": builtin.get(arm), "navigator": None} for arm in arms]
    write_json(folder / "config.json", {"name": "ab", "arms": listed, "versions": ["x"] * len(arms)})
    _ab_tables(folder, arms, pages, effect, each, (aa_days, ab_days), rng)
    return folder


def _metric_rows(
    metric: Any, arms: Sequence[str], effect: dict[str, float], each: int, rng: Any
) -> list[dict[str, Any]]:
    base = _LEVELS.get(metric.key, 0.41 if metric.key.startswith("epef") else 33.0)
    strength = {"dau": 0.4, "lt": 0.5, "pdr": -4.0}.get(
        metric.key, 1.0 if metric.better != "neutral" else 6.0
    )
    error = 0.45 / np.sqrt(each)
    rows = []
    for arm in arms:
        relative = 0.0 if arm == arms[0] else effect[arm] * strength + float(rng.normal(0, error))
        p = None if arm == arms[0] else float(2 * stats.norm.sf(abs(relative) / error))
        share = (effect[arm] + 0.055) / 0.119
        ends = arm in ("random", "oracle") or metric.better == "neutral" or "oracle" not in arms
        gap = None if metric.better == "neutral" or "oracle" not in arms else share
        rows.append(
            {
                "metric": metric.key,
                "title": metric.title,
                "unit": metric.unit,
                "better": metric.better,
                "page": metric.page,
                "arm": arm,
                "value": base * (1 + relative),
                "control": base,
                "unadjusted": base * (1 + relative * 0.9),
                "difference": base * relative,
                "relative": relative,
                "low": None if p is None else relative - 1.96 * error,
                "high": None if p is None else relative + 1.96 * error,
                "p_value": p,
                "p_adjusted": None if p is None or not metric.main else min(1.0, p * 6 * (len(arms) - 1)),
                "variance_reduction": None if p is None else float(rng.uniform(0.3, 0.7)),
                "gap_share": gap,
                "gap_low": None if ends else share - 0.06,
                "gap_high": None if ends else share + 0.06,
            }
        )
    return rows


def _ab_tables(
    folder: Path,
    arms: Sequence[str],
    pages: Sequence[str],
    effect: dict[str, float],
    each: int,
    days: tuple[int, int],
    rng: Any,
) -> None:
    daily, moves, hourly, landed = [], [], [], []
    for arm in arms:
        lived, moved = _days(arm, effect[arm], each, days, rng)
        daily += lived
        moves += moved
        for period, length in zip(("aa", "ab"), days, strict=True):
            entries = each * length * 1.4
            tide = np.array(TIDE) * np.exp(rng.normal(0, 0.02, 24))
            sessions = entries * tide / tide.sum()
            hourly += [(arm, period, h, float(sessions[h]), float(sessions[h] * 500)) for h in range(24)]
            tilt = effect[arm] * 12 if period == "ab" else 0.0
            share = np.exp(np.linspace(0.4 + tilt, -0.4 - tilt, len(pages)))
            assigned = entries * share / share.sum()
            for page, n in zip(pages, assigned.tolist(), strict=True):
                landed.append(
                    (arm, period, page, n, 0.56 * n + 0.08 * entries, 0.1 * entries, 200.0 * entries)
                )
    _write(folder / "daily.parquet", "arm day period date users active_users lt use_s sessions", daily)
    _write(folder / "hourly.parquet", "arm period hour sessions use_s", hourly)
    _write(folder / "moves.parquet", "arm period day from to users", moves)
    _write(folder / "pages.parquet", "arm period page assigned entries_effective drop_offs dwell_s", landed)


def _days(arm: str, effect: float, each: int, days: tuple[int, int], rng: Any) -> tuple[list[Any], list[Any]]:
    """Rows of daily and of moves; the effect sets in over the first AB days."""
    daily, moves, level = [], [], 1.0
    for day in range(sum(days)):
        period = "ab" if day >= days[0] else "aa"
        level += 0.2 * (effect * 0.8 - (level - 1)) if period == "ab" else 0.0
        active = int(rng.binomial(each, min(1.0, 0.52 * level * (1 + 0.04 * np.sin(day * 2 * np.pi / 7)))))
        lt = 4.9 * min(day + 1, 7) / 7 * level * (1 + float(rng.normal(0, 0.0008)))
        date = dt.date(2024, 3, 18) + dt.timedelta(days=day)
        daily.append((arm, day, period, date, each, active, lt, active * 1500.0, active * 2.6))
        shift = 4.0 * effect if period == "ab" else 0.0
        stay = np.array([[70, 18, 12], [31, 42 - shift, 27 + shift], [20, 24 - shift, 56 + shift]]) / 100
        for i, before in enumerate(_STATES):
            # what users did before the first day is not known
            to = rng.multinomial(each // 3, stay[i]) if day else np.zeros(3)
            moves += [(arm, period, day, before, after, int(n)) for after, n in zip(_STATES, to, strict=True)]
    return daily, moves


def _write(path: Path, names: str, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = list(zip(*rows, strict=True))
    write_parquet(
        path, pa.table({name: list(column) for name, column in zip(names.split(), columns, strict=True)})
    )


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
    makers += (evaluate_run, sweep_run, train_run, stream_run)
    return [maker(folder / f"{maker.__name__}-0123456789") for maker in makers]
