"""`plpm train` of a navigator: its parts from the same tables, side by side where there is room, into one bundle."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from plpm_ray.cli.configs import PartConfig, TrainRunConfig
from plpm_ray.core.config import ConfigSource, nearest, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.split import Split, UserSplitConfig, split_days
from plpm_ray.training.stream_config import StreamTraining


def train_navigator(settings: TrainRunConfig, source: ConfigSource) -> Any:
    """Trains, composes and saves; a finished run is read again.

    Raises:
        ConfigError: an unknown navigator, role or learner, or a wrong setting, with file and line.
    """
    from plpm_ray.navigators.base import FittedNavigator
    from plpm_ray.training.compose import compose, fit_whole

    assert settings.navigator is not None
    name, options = settings.navigator.name, settings.navigator.options
    cls = checked_navigator(settings, source)
    warehouse = Warehouse.open(settings.tables)
    split = split_days(warehouse.transitions.days(), settings.split)
    kept: dict[str, Any] = {
        "run_root": settings.run_root,
        "run_name": settings.name,
        "plugins": settings.plugins,
    }
    if issubclass(cls, FittedNavigator):
        seed = settings.training.seed
        return fit_whole(name, options, settings.tables, split.train, split.valid, seed=seed, **kept)
    if not cls.roles:
        raise ConfigError(
            f"{source.where(('navigator',))}: {name!r} is a rule and has nothing to train",
            hint=f"evaluate or simulate it as `navigator: {name}`",
        )
    jobs = [part_job(role, settings, split) for role in cls.roles]
    return compose(name, options, jobs, settings.tables, split.train, backend=settings.backend, **kept)


def checked_navigator(settings: TrainRunConfig, source: ConfigSource) -> Any:
    """The class of the run's navigator, after its settings and those of all its parts were found right."""
    assert settings.navigator is not None
    load_plugins(settings.plugins)
    cls = lookup("navigator", settings.navigator.name)
    validate(cls.Config, source, ("navigator",), settings.navigator.options)
    for role, part in settings.parts.items():
        if role not in cls.roles:
            raise ConfigError(
                f"{source.where(('parts', role))}: {settings.navigator.name!r} has no part {role!r}",
                hint=nearest(role, cls.roles) or "it has no parts",
            )
        if part.learner is not None:
            learner = lookup("learner", part.learner.name)
            validate(learner.Config, source, ("parts", role, "learner"), part.learner.options)
    return cls


def part_job(role: str, settings: TrainRunConfig, split: Split) -> Any:
    """What makes the part of a role."""
    from plpm_ray.training.compose import PartJob

    assert settings.navigator is not None
    part = settings.parts.get(role, PartConfig())
    if part.bundle is not None:
        return PartJob(role, bundle=part.bundle)
    usual = lookup("navigator", settings.navigator.name).roles[role]
    learner = part.learner.name if part.learner else usual
    options = part.learner.options if part.learner else {}
    tables = str(Path(settings.tables).absolute())
    where = str(Path(settings.run_root).absolute()), f"{settings.parts_name or settings.name}-{role}"
    if part.stream is not None or (part.training is None and lookup("learner", learner).streamed):
        stream = part.stream or StreamTraining.model_validate({})
        return PartJob(
            role,
            run=partial(
                _stream_part, learner, options, stream, tables, tuple(split.train), where, settings.plugins
            ),
        )
    training = part.training or settings.training
    days = tuple(split.train), tuple(split.valid)
    run = partial(
        _train_part, learner, options, training, tables, days, where, settings.plugins, settings.users
    )
    by = lookup("navigator", settings.navigator.name).rewarded.get(role)
    return PartJob(role, run=run, on_ray=training.workers != 0, rewarded_by=by)


def _train_part(
    learner: str,
    options: dict[str, Any],
    training: Any,
    tables: str,
    days: tuple[tuple[int, ...], tuple[int, ...]],
    where: tuple[str, str],
    plugins: tuple[str, ...],
    users: UserSplitConfig,
    rewards: Path | None = None,
) -> Path:
    from plpm_ray.training.run import train

    kept = {"users": users, "rewards": rewards}
    return train(learner, options, training, tables, *days, *where, plugins, **kept).bundle_path


def _stream_part(
    learner: str,
    options: dict[str, Any],
    training: StreamTraining,
    tables: str,
    days: tuple[int, ...],
    where: tuple[str, str],
    plugins: tuple[str, ...],
) -> Path:
    """The training days in time order; a run that was cut goes on where it was."""
    from plpm_ray.training.stream_run import StreamJob, run_stream
    from plpm_ray.training.stream_sources import TableReplay

    warehouse = Warehouse.open(tables)
    # another content of the same days is another stream
    folder = Path(where[0]) / f"{where[1]}-{warehouse.transitions.fingerprint(days)}"
    job = StreamJob.untrained(learner, options, warehouse, days, training, folder, plugins)
    source = TableReplay(warehouse, days[0], days[-1])
    run_stream(job, source)
    return job.run_dir(source.identity) / "bundle"
