"""`plpm uplift`: trained uplift models judged on held-out users of a randomised trial."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plpm_ray.cli.summary import Clock, finish
from plpm_ray.core.config import config_hash, read_config, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins

if TYPE_CHECKING:
    import numpy as np

    from plpm_ray.cli.configs import JudgedBundle, UpliftConfig
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.evaluation.uplift import UpliftReport
    from plpm_ray.navigators.bundle import Bundle

Sets = list[str]


def uplift(config: Path, sets: Sets) -> Path:
    """Judges every bundle, writes `uplift.json` and `table.txt` into the run folder, and returns the folder."""
    from plpm_ray.cli.configs import UpliftConfig
    from plpm_ray.core.storage import storage_errors
    from plpm_ray.data.contract import Warehouse
    from plpm_ray.data.fit_trial import need_trial

    clock = Clock()
    settings = validate(UpliftConfig, read_config(config, sets))
    load_plugins(settings.plugins)
    warehouse = Warehouse.open(settings.tables)
    need_trial(warehouse)
    bundles = _bundles(settings, warehouse)
    report = _report(settings, warehouse, bundles)
    shown = settings.model_dump(mode="json")
    versions = {label: bundle.version for label, bundle in bundles.items()}
    identity = [shown, warehouse.trial.fingerprint(), versions]
    run_dir = Path(settings.run_root) / f"{settings.name}-{config_hash(identity)}"
    report.write(run_dir)
    text = report.as_text()
    with storage_errors(f"writing {run_dir}"):
        (run_dir / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    print()
    summary = {"part": settings.part, "users": report.users, "arms": report.arms, "bundles": versions}
    short = {"run": run_dir, "part": settings.part, "users": report.users, "seconds": clock.seconds}
    finish("uplift", run_dir, {**summary, "config": shown, "seconds": clock.seconds}, short)
    return run_dir


def _report(settings: UpliftConfig, warehouse: Warehouse, bundles: Mapping[str, Bundle]) -> UpliftReport:
    """Predicts the responses of the held-out users under all arms, and judges them."""
    import numpy as np

    from plpm_ray.data.split import TEST, VALID
    from plpm_ray.evaluation.uplift import UpliftSettings, uplift_report

    part = TEST if settings.part == "test" else VALID
    predicted: dict[str, np.ndarray] = {}
    arm = response = np.empty(0)
    for label, bundle in bundles.items():
        predicted[label], arm, response = _predicted(settings, warehouse, bundle, part)
    return uplift_report(
        {label: y[:, 1:] - y[:, :1] for label, y in predicted.items()},
        arm,
        response,
        names=warehouse.info.pages.names,
        predicted_responses=predicted,
        settings=UpliftSettings(
            shares=settings.shares,
            control_is_choice=settings.control_is_choice,
            repeats=settings.draws,
            level=settings.level,
            seed=settings.seed,
        ),
        data=f"{warehouse.info.name}, {settings.part} users",
        unit=settings.unit,
    )


def _predicted(
    settings: UpliftConfig, warehouse: Warehouse, bundle: Bundle, part: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responses (n, K + 1) of all arms, the arm given (n,) and its response (n,), in the order of the trial table."""
    import numpy as np

    from plpm_ray.training.data import Needs, TableSource, UserPart
    from plpm_ray.training.uplift import predict_responses, uplift_class

    cls = uplift_class(bundle.name)
    needs = Needs.of(cls, cls.Config.model_validate(bundle.config))
    days = tuple(warehouse.trial.days())
    table = TableSource(warehouse.root, days, bundle.spec, needs, UserPart(settings.users, part)).load()
    y = predict_responses(bundle.learner(), table)  # type: ignore[arg-type]
    return y.astype(np.float64), table.columns["arm"].numpy(), table.columns["response"].numpy()


def _bundles(settings: UpliftConfig, warehouse: Warehouse) -> dict[str, Bundle]:
    """Label -> bundle of an uplift learner, in the order of the config.

    Raises:
        ConfigError: two of one label, or one that cannot be judged on these users.
    """
    found: dict[str, Bundle] = {}
    for entry in settings.bundles:
        bundle = _bundle(entry, settings, warehouse)
        label = entry.label or bundle.name
        if label in found:
            raise ConfigError(f"two bundles are called {label!r}", hint="give each a `label` of its own")
        found[label] = bundle
    return found


def _bundle(entry: JudgedBundle, settings: UpliftConfig, warehouse: Warehouse) -> Bundle:
    from plpm_ray.navigators.bundle import find_bundle, load_bundle
    from plpm_ray.training.uplift import uplift_class

    bundle = load_bundle(find_bundle(entry.bundle), settings.plugins)
    # of a navigator, the part that learnt from a trial; only such parts say how its users were divided
    inside = [part for part in bundle.parts.values() if part.data.get("users") is not None]
    bundle = inside[0] if len(inside) == 1 else bundle
    load_plugins(bundle.plugins)
    if bundle.kind != "learner":
        raise ConfigError(
            f"bundle {entry.bundle} ({bundle.name}) holds no uplift learner",
            hint="give the bundle of an uplift learner, such as klan.isp",
        )
    uplift_class(bundle.name)
    if bundle.spec.schema != warehouse.info.features:
        raise ConfigError(
            f"bundle {entry.bundle} was trained on other pages or columns than {warehouse.root}",
            hint="judge it on the trial of its own dataset",
        )
    recorded, asked = bundle.data.get("users"), settings.users.model_dump(mode="json")
    if recorded != asked:
        differs = ", ".join(
            f"{k} {(recorded or {}).get(k)} in training, {v} here"
            for k, v in asked.items()
            if (recorded or {}).get(k) != v
        )
        raise ConfigError(
            f"bundle {entry.bundle} was trained under another division of the users ({differs}), so it may have learnt from "
            "those it is to be judged on",
            hint="use the same `users` for training and for `plpm uplift`",
        )
    return bundle
