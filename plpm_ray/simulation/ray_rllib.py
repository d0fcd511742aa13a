"""RLlib on the world and on tables: `train_rllib`, from a config to a bundle that stands beside every other navigator.

<run_root>/<name>-<hash>/   config.json  metrics.jsonl  bundle/  rllib.json  summary.json
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plpm_ray.core.config import config_hash
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.storage import exclusive_folder, read_json, storage_errors, write_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.data.fit import fit_spec
from plpm_ray.data.ray_exec import ensure_ray
from plpm_ray.data.split import split_days
from plpm_ray.navigators.base import LearnerNavigator
from plpm_ray.navigators.bundle import Bundle, save_bundle
from plpm_ray.navigators.reference.rllib import RLlibNetwork
from plpm_ray.simulation.config import load_world
from plpm_ray.simulation.encoding import ObservationEncoder, WorldFeatures, read_features
from plpm_ray.simulation.env import observation_spaces
from plpm_ray.simulation.episodes import LandingTask
from plpm_ray.simulation.judge import Judge
from plpm_ray.simulation.ray_rllib_algorithms import Experience, build, fit_runners, quiet
from plpm_ray.simulation.ray_rllib_export import export
from plpm_ray.simulation.ray_rllib_offline import write_columns
from plpm_ray.simulation.rllib_config import RLlibConfig
from plpm_ray.simulation.world import World

_JUDGE_SEED = 1 << 40


@dataclass(frozen=True)
class _Job:
    """A run with everything looked up."""

    config: RLlibConfig
    features: WorldFeatures
    pages: PageCatalogue
    scale_s: float
    task: LandingTask | None
    root: Path | None
    days: tuple[int, ...]
    data: dict[str, Any]
    run_dir: Path


def train_rllib(config: RLlibConfig, notify: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Trains with RLlib, copies the network into a bundle, and judges it in the world, if there is one.

    A finished run is read again; one that was cut off begins anew.

    Args:
        notify: is told notices, such as fewer environment runners than asked for; by default they go to stderr.

    Returns:
        The content of `rllib.json`, with the run folder under "run": "kind", "algorithm", "version" of the bundle, "seed",
        "iterations", "sessions_logged" (None online), "training" (of the last iteration), "evaluation" (as `Judge.judge`;
        None without a world), "seconds", and "cpu_s" of this process, without environment runners of their own.

    Raises:
        ConfigError: unknown world, features of other pages or columns, or a folder that is being trained in right now.
        DataError: the tables hold no sessions on the training days.
        StorageError: the run folder cannot be written.
    """
    notify = notify or (lambda text: print(text, file=sys.stderr))
    job = _job(config)
    path = job.run_dir / "rllib.json"
    with exclusive_folder(job.run_dir):
        if path.exists():
            notify(f"{job.run_dir.name} finished before; its results are returned")
        else:
            result = _run(job, notify)
            write_json(job.run_dir / "summary.json", result)
            write_json(path, result)
        return {**read_json(path), "run": str(job.run_dir)}


def _job(config: RLlibConfig) -> _Job:
    environment = config.environment
    world = None if config.world is None else World(load_world(config.world))
    root, days, data = None, (), {}
    features: str | WorldFeatures | None = environment.features
    if config.offline:
        warehouse = Warehouse.open(str(config.tables))
        root, pages = warehouse.root.resolve(), warehouse.info.pages
        days = tuple(split_days(warehouse.transitions.days(), config.split).train)
        features = _table_features(warehouse, days, environment.features)
        data = {
            "dataset": warehouse.info.name,
            "fingerprint": warehouse.transitions.fingerprint(days),
            "train_days": [day_name(day) for day in days],
        }
    task = None
    if world is not None:
        pages = world.pages
        data["world"] = world.config.model_dump(mode="json")
        task = LandingTask.of(
            world.config,
            features,
            environment.horizon_days,
            environment.warmup_days,
            environment.reward_scale_s,
        )
        features = task.features
    assert isinstance(features, WorldFeatures)
    encoder = config_hash([features.spec.to_dict(), features.stats.to_dict()])
    identity = {"config": config.identity(), "data": data, "encoder": encoder}
    run_dir = Path(config.run_root) / f"{config.name}-{config_hash(identity)}"
    scale_s = environment.reward_scale_s or features.stats.mean_use_s
    return _Job(config, features, pages, scale_s, task, root, days, data, run_dir.resolve())


def _table_features(warehouse: Warehouse, days: tuple[int, ...], path: str | None) -> WorldFeatures:
    """The encoder of the training days, or that of a bundle made from the same tables."""
    if path is None:
        return WorldFeatures(*fit_spec(warehouse, days, backend="ray"))
    return read_features(path, warehouse.info.features, warehouse.info.name)


def _run(job: _Job, notify: Callable[[str], None]) -> dict[str, Any]:
    config, started, cpu = job.config, time.perf_counter(), time.process_time()
    write_json(job.run_dir / "config.json", {**config.model_dump(mode="json"), "data": job.data})
    ensure_ray()
    judge = None
    if job.task is not None and config.evaluation_users:
        judge = Judge(job.task, config.evaluation_users, _JUDGE_SEED + config.seed)
    with quiet():
        learner, history, sessions = _learn(job, judge, notify)
        gc.collect()  # what RLlib leaves of Ray Data's iterators would complain if it outlived the cluster
    spent = {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
    metrics = {
        k: v
        for k, v in history[-1].items()
        if k not in ("iteration", "seconds", "cpu_s", "evaluation_return_s")
    }
    judged = None if judge is None else judge.judge(_navigator(job, learner))
    bundle = Bundle.of_learner(
        learner,
        job.features.spec,
        job.pages,
        job.features.stats,
        metrics=judged or metrics,
        data=_origin(job),
    )
    save_bundle(bundle, job.run_dir / "bundle")
    return {
        "kind": "rllib",
        "algorithm": config.algorithm.name,
        "version": bundle.version,
        "seed": config.seed,
        "iterations": config.iterations,
        "sessions_logged": sessions,
        "training": metrics,
        "evaluation": judged,
        **{name: round(value, 2) for name, value in spent.items()},
    }


def _learn(
    job: _Job, judge: Judge | None, notify: Callable[[str], None]
) -> tuple[RLlibNetwork, list[dict[str, Any]], int | None]:
    """The trained network, a record an iteration, and the number of logged sessions it was trained on."""
    try:
        experience = _experience(job)
        algorithm = build(job.config, experience, fit_runners(job.config, notify))
        try:
            history = _train(job, algorithm, judge)
            learner = export(algorithm, job.config, job.features, job.pages, job.scale_s)
        finally:
            algorithm.stop()
    finally:
        shutil.rmtree(job.run_dir / "offline", ignore_errors=True)
    return learner, history, None if experience.logged is None else experience.logged.rows


def _origin(job: _Job) -> dict[str, Any]:
    """Where a bundle comes from, as bundles record it."""
    data = {key: value for key, value in job.data.items() if key != "world"}
    if "dataset" not in data:
        data = {
            "dataset": job.data["world"]["name"],
            "fingerprint": config_hash(job.data["world"]),
            "train_days": [],
        }
    return {**data, "algorithm": job.config.algorithm.name, "seed": job.config.seed}


def _experience(job: _Job) -> Experience:
    config = job.config
    if not config.offline:
        assert job.task is not None
        arguments = {
            "world": job.task.world.config,
            "features": job.features,
            "horizon_days": job.task.horizon_days,
            "warmup_days": job.task.warmup_days,
            "reward_scale_s": job.scale_s,
        }
        return Experience(env=arguments)
    assert job.root is not None
    logged = write_columns(
        job.root,
        job.days,
        job.features,
        job.run_dir / "offline",
        gamma=config.algorithm.gamma,
        scale_s=job.scale_s,
        seed=config.seed,
    )
    spaces = observation_spaces(ObservationEncoder(job.features.spec), len(job.pages))
    return Experience(logged=logged, spaces=spaces)


def _train(job: _Job, algorithm: Any, judge: Judge | None) -> list[dict[str, Any]]:
    """All iterations, a line of `metrics.jsonl` each."""
    history: list[dict[str, Any]] = []
    started, cpu = time.perf_counter(), time.process_time()
    with (
        storage_errors(f"writing {job.run_dir / 'metrics.jsonl'}"),
        open(job.run_dir / "metrics.jsonl", "w") as file,
    ):
        for iteration in range(1, job.config.iterations + 1):
            record = {"iteration": iteration, **_record(algorithm.train(), job.scale_s)}
            if judge is not None and job.config.evaluate_every and iteration % job.config.evaluate_every == 0:
                learner = export(algorithm, job.config, job.features, job.pages, job.scale_s)
                record["evaluation_return_s"] = judge.play(_navigator(job, learner)).mean_s
            record |= {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
            history.append({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})
            file.write(json.dumps(history[-1]) + "\n")
            file.flush()
    return history


def _record(result: dict[str, Any], scale_s: float) -> dict[str, Any]:
    """What is kept of RLlib's result: steps, mean return of the episodes while exploring, and the learner's losses."""
    record: dict[str, Any] = {}
    sampled = result.get("env_runners", {})
    if "episode_return_mean" in sampled:
        record["env_steps"] = int(sampled["num_env_steps_sampled_lifetime"])
        record["episodes"] = int(sampled["num_episodes_lifetime"])
        record["exploring_return_s"] = float(sampled["episode_return_mean"]) * scale_s
    learned = result.get("learners", {}).get("default_policy", {})
    if "num_module_steps_trained_lifetime" in learned:
        record["rows_trained"] = int(learned["num_module_steps_trained_lifetime"])
    names = (
        "total_loss",
        "policy_loss",
        "vf_loss",
        "vf_explained_var",
        "entropy",
        "qf_loss",
        "qf_mean",
        "td_error_mean",
    )
    return record | {name: float(learned[name]) for name in names if name in learned}


def _navigator(job: _Job, learner: RLlibNetwork) -> LearnerNavigator:
    return LearnerNavigator(learner, job.features.spec, job.pages, "")
