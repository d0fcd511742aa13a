"""`plpm stream`: a learner that learns finished sessions as they come."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from plpm_ray.cli.summary import show
from plpm_ray.core.config import ConfigSource, read_config, validate
from plpm_ray.core.errors import BundleError, ConfigError

_METRICS = ("auc", "log_loss", "brier", "label_share")


def stream(config: Path, sets: list[str]) -> dict[str, Any]:
    """Learns until the source ends, `training.stop_after`, or SIGTERM; prints a summary."""
    from plpm_ray.training.stream_config import StreamConfig
    from plpm_ray.training.stream_run import run_stream, stop_on_signals

    given = read_config(config, sets)
    settings = validate(StreamConfig, given)
    job = make_job(settings, given)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        source = _source(settings, job, stack)
        stack.callback(source.close)
        summary = run_stream(job, source, stop)
        run_dir = job.run_dir(source.identity)
    print("stream done" + (" (resumed)" if summary["resumed"] else ""))
    rows = {"run": run_dir, "bundle": run_dir / "bundle", "ended": summary["ended"]}
    rows |= {k: summary[k] for k in ("sessions", "learned", "position", "seconds", "sessions_per_s")}
    rows |= {f"prequential {k.replace('_', ' ')}": summary["metrics"][k] for k in _METRICS}
    for key, value in rows.items():
        print(f"  {key.replace('_', ' '):<22} {show(value)}")
    return summary


def make_job(settings: Any, given: ConfigSource) -> Any:
    """The `StreamJob` of a config: a new learner with an encoder fitted on the first days of the tables, or a bundle.

    Raises:
        ConfigError, BundleError, DataError: what the config names is wrong or not there.
    """
    from plpm_ray.core.registry import load_plugins, lookup
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.navigators.bundle import find_bundle, load_bundle
    from plpm_ray.training.stream_run import StreamJob

    plugins = tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in settings.plugins)
    load_plugins(plugins)
    training, folder = settings.training, Path(settings.run_root) / settings.name
    if settings.bundle is not None:
        bundle = learner_bundle(load_bundle(find_bundle(settings.bundle), plugins))
        what = bundle.learner(), bundle.spec, bundle.pages, bundle.stats
        dataset = str(bundle.data.get("dataset", "unknown"))
        return StreamJob(*what, training, folder, dataset, bundle.version, tuple(bundle.plugins))
    warehouse = Warehouse.open(settings.tables)
    days = warehouse.transitions.days()
    if not days:
        raise ConfigError(
            f"{given.where(('tables',))}: {settings.tables} holds no transitions", hint="run `plpm data`"
        )
    name, options = settings.learner.name, settings.learner.options
    validate(lookup("learner", name).Config, given, ("learner",), options)
    return StreamJob.untrained(name, options, warehouse, days[: settings.fit_days], training, folder, plugins)


def learner_bundle(bundle: Any) -> Any:
    """The bundle itself, or of a composed navigator its one part that learns from streams (KLAN's AM).

    Raises:
        BundleError: there is none, or more than one.
    """
    from plpm_ray.core.registry import load_plugins, lookup

    if bundle.kind == "learner":
        return bundle
    load_plugins(bundle.plugins)
    found = [p for p in bundle.parts.values() if p.kind == "learner" and lookup("learner", p.name).streamed]
    if len(found) != 1:
        raise BundleError(
            f"bundle {bundle.name!r} has {len(found)} parts that learn from streams, this run goes on with one",
            hint="give the bundle of a learner, or of a navigator with one such part, such as klan",
        )
    return found[0]


def _source(settings: Any, job: Any, stack: contextlib.ExitStack) -> Any:
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.data.day_table import day_number
    from plpm_ray.training.stream_sources import TableReplay
    from plpm_ray.training.stream_valkey import ValkeyStream, identity_of

    source = settings.source
    if source.kind == "table":
        first, last = (None if d is None else day_number(d) for d in (source.first_day, source.last_day))
        return TableReplay(Warehouse.open(source.tables or settings.tables), first, last)
    url = source.url
    if url is None:
        from plpm_ray.serving.local_valkey import LocalValkey

        folder = job.run_dir(identity_of(source.stream, source.group)) / "valkey"
        url = stack.enter_context(LocalValkey(source.port, str(folder), durable=True))
        print(f"waiting for sessions in stream {source.stream!r} at {url}", flush=True)
    return ValkeyStream(
        url,
        source.stream,
        source.group,
        job.spec.schema,
        follow=source.follow,
        timeout_s=source.timeout_s,
    )
