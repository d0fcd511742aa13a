"""`plpm assess`: models that say numbers, such as GLAN's L-RTG and HRM, judged on held-out days."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plpm_ray.cli.summary import Clock, finish
from plpm_ray.core.config import config_hash, read_config, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins

if TYPE_CHECKING:
    from plpm_ray.cli.configs import AssessConfig, AssessedBundle
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.navigators.bundle import Bundle

Sets = list[str]


def assess(config: Path, sets: Sets) -> Path:
    """Judges every model; writes `summary.json`, `table.md` and drawings into the run folder, and returns the folder."""
    from plpm_ray.cli.configs import AssessConfig
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.data.fit import fit_spec
    from plpm_ray.data.split import split_days
    from plpm_ray.evaluation.assess_run import assess_model
    from plpm_ray.evaluation.assess_text import assess_text

    clock = Clock()
    settings = validate(AssessConfig, read_config(config, sets))
    load_plugins(settings.plugins)
    warehouse = Warehouse.open(settings.tables)
    split = split_days(warehouse.transitions.days(), settings.split)
    days = split.test if settings.part == "test" else split.valid
    bundles = _bundles(settings, warehouse, days)
    stats = fit_spec(warehouse, split.train)[1]
    models = [assess_model(label, bundle, warehouse, days, stats) for label, bundle in bundles.items()]
    record = {
        "data": warehouse.info.name,
        "part": settings.part,
        "pages": list(warehouse.info.pages.names),
        "split": split.to_dict(),
        "models": models,
    }
    shown = settings.model_dump(mode="json")
    versions = {label: bundle.version for label, bundle in bundles.items()}
    identity = [shown, warehouse.transitions.fingerprint(), versions]
    run_dir = Path(settings.run_root) / f"{settings.name}-{config_hash(identity)}"
    _write(run_dir, record)
    print(assess_text(record))
    short = {"run": run_dir, "part": settings.part, "models": len(models), "seconds": clock.seconds}
    finish("assess", run_dir, {**record, "config": shown, "seconds": clock.seconds}, short)
    return run_dir


def _write(run_dir: Path, record: Mapping[str, Any]) -> None:
    from plpm_ray.core.storage import atomic_writer, storage_errors
    from plpm_ray.evaluation.assess_plots import drawings
    from plpm_ray.evaluation.assess_text import assess_text

    with storage_errors(f"writing {run_dir}"):
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "table.md").write_text(assess_text(record, style="markdown") + "\n", encoding="utf-8")
    for name, content in drawings(record).items():
        with atomic_writer(run_dir / name) as file:
            file.write(content)


def _bundles(settings: AssessConfig, warehouse: Warehouse, days: list[int]) -> dict[str, Bundle]:
    """Label -> what is judged, in the order of the config.

    Raises:
        ConfigError: two of one label, or one that cannot be judged on these days.
    """
    found: dict[str, Bundle] = {}
    for entry in settings.bundles:
        for label, bundle in _entry(entry, settings, warehouse, days).items():
            if label in found:
                raise ConfigError(f"two models are called {label!r}", hint="give each a `label` of its own")
            found[label] = bundle
    return found


def _entry(
    entry: AssessedBundle, settings: AssessConfig, warehouse: Warehouse, days: list[int]
) -> dict[str, Bundle]:
    from plpm_ray.cli.commands import refuse_seen_days
    from plpm_ray.evaluation.assess import KINDS, judged_in
    from plpm_ray.navigators.bundle import find_bundle, load_bundle

    whole = load_bundle(find_bundle(entry.bundle), settings.plugins)
    inside = judged_in(whole)
    if not inside:
        known = "; ".join(f"rows of grain {k.grain!r} that say {', '.join(k.says)}" for k in KINDS)
        raise ConfigError(
            f"bundle {entry.bundle} ({whole.name}) holds no model that says numbers",
            hint=f"what is judged: {known}; navigators and page scorers are judged by `plpm evaluate`",
        )
    for bundle in inside.values():
        if bundle.spec.schema != warehouse.info.features:
            raise ConfigError(
                f"bundle {entry.bundle} was trained on other pages or columns than {warehouse.root}",
                hint="judge it on the tables of its own dataset",
            )
        refuse_seen_days(entry.bundle, bundle, days)
    if len(inside) == 1:
        ((_, only),) = inside.items()
        return {entry.label or only.name: only}
    return {f"{entry.label or whole.name} {role}": bundle for role, bundle in inside.items()}
