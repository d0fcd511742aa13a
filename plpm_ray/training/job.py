"""One training run as plain data: what is trained on what, how, and where it is written; workers receive it whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from plpm_ray.core.config import ConfigSource, config_hash, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.registry import load_plugins, lookup, plugin_digest
from plpm_ray.core.stats import TableStats
from plpm_ray.core.storage import read_json, write_json
from plpm_ray.data.contract import Warehouse
from plpm_ray.data.day_table import day_name
from plpm_ray.data.split import TRAIN, VALID, UserSplitConfig
from plpm_ray.navigators.base import Learner, LearnerConfig
from plpm_ray.navigators.bundle import Bundle
from plpm_ray.training.config import TrainingConfig
from plpm_ray.training.data import Needs, TableSource, UserPart


@dataclass(frozen=True)
class TrainJob:
    """A run, picklable.

    Attributes:
        learner: registered name.
        learner_config: resolved config of the learner, as JSON-like values.
        training: how.
        root: the warehouse folder (absolute).
        train_days, valid_days: local days, days since 1970-01-01; of a learner of users, the days on which trials begin,
            and none.
        spec, stats: fitted on the training days or users.
        run_dir: the run's folder (absolute).
        plugins: files (absolute) or modules to import first.
        identity: what decides the result; a run is resumed only by a job with the same.
        users: of a learner of users, how they are divided.
        rewards: of a learner of rewards, the table they are read from.
    """

    learner: str
    learner_config: dict[str, Any]
    training: TrainingConfig
    root: Path
    train_days: tuple[int, ...]
    valid_days: tuple[int, ...]
    spec: FeatureSpec
    stats: TableStats
    run_dir: Path
    plugins: tuple[str, ...]
    identity: dict[str, Any]
    users: UserSplitConfig | None = None
    rewards: str | None = None

    @property
    def hash(self) -> str:
        return config_hash(self.identity)

    def learner_class(self) -> type[Learner]:
        """The registered class; plugins are loaded first."""
        load_plugins(self.plugins)
        return lookup("learner", self.learner)

    def build_learner(self) -> Learner:
        """The learner with its first weights, which follow from the seed alone."""
        pages = Warehouse.open(self.root).info.pages
        return build_learner(
            self.learner_class(), self.learner_config, self.spec, pages, self.stats, self.training.seed
        )

    def train_source(self) -> TableSource:
        """The rows to learn from, as this learner reads them."""
        return self._source(self.train_days, TRAIN)

    def valid_source(self) -> TableSource | None:
        """The rows to validate on; None where there are none."""
        if self.users is None:
            return self._source(self.valid_days, VALID) if self.valid_days else None
        return self._source(self.train_days, VALID) if self.users.valid_share else None

    def _source(self, days: tuple[int, ...], part: int) -> TableSource:
        cls = self.learner_class()
        needs = Needs.of(cls, cls.Config.model_validate(self.learner_config))
        users = None if self.users is None else UserPart(self.users, part)
        return TableSource(self.root, days, self.spec, needs, users, self.rewards)

    def bundle(self, learner: Learner, metrics: dict[str, Any]) -> Bundle:
        """The trained learner with all that scoring needs."""
        pages = Warehouse.open(self.root).info.pages
        data = self.identity["data"]
        return Bundle.of_learner(
            learner, self.spec, pages, self.stats, metrics=metrics, data=data, plugins=self.plugins
        )

    def claim(self) -> bool:
        """Takes the run folder: writes `config.json` into a new one; True if the folder holds this very run already.

        Raises:
            ConfigError: the folder holds another run.
            StorageError: the folder cannot be written.
        """
        return claim_folder(
            self.run_dir, self.identity, {"training": self.training.model_dump(mode="json")}, "train"
        )


def claim_folder(
    run_dir: Path, identity: dict[str, Any], also: Mapping[str, Any], verb: str = "train"
) -> bool:
    """Writes `config.json` (identity, its hash, and `also`) into a new run folder; True if it holds this very run already.

    Raises:
        ConfigError: the folder holds another run; its hint is to `verb` anew.
        StorageError: the folder cannot be written.
    """
    path = run_dir / "config.json"
    if path.exists():
        known = read_json(path).get("identity", {})
        if config_hash(known) != config_hash(identity):
            differing = sorted(_differing(known, identity))
            raise ConfigError(
                f"{run_dir} holds a run of another config (differs in {', '.join(differing)})",
                hint=f"give another name or run folder, restore the config, or remove the folder to {verb} anew",
            )
        return True
    write_json(path, {"hash": config_hash(identity), "identity": identity, **also})
    return False


def build_learner(
    cls: type[Learner],
    config: Mapping[str, Any] | LearnerConfig,
    spec: FeatureSpec,
    pages: Any,
    stats: TableStats,
    seed: int,
) -> Learner:
    """A learner whose first weights follow from the seed alone; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(cls.Config.model_validate(config), spec, pages, stats)


def resolve_config(cls: type[Learner], config: Mapping[str, Any] | LearnerConfig) -> dict[str, Any]:
    """A learner's config with its defaults filled in, as JSON-like values.

    Raises:
        ConfigError: an unknown key or a bad value.
    """
    if isinstance(config, LearnerConfig):
        config = config.model_dump(mode="json")
    try:
        return cls.Config.model_validate(dict(config)).model_dump(mode="json")
    except ValidationError:
        validate(cls.Config, ConfigSource(dict(config), f"config of learner {cls.name!r}", {}, {}))
        raise


def make_job(
    learner: str,
    learner_config: Mapping[str, Any] | LearnerConfig,
    training: TrainingConfig,
    warehouse: Warehouse,
    train_days: tuple[int, ...],
    valid_days: tuple[int, ...],
    fitted: tuple[FeatureSpec, TableStats],
    folder: Path,
    plugins: tuple[str, ...],
    *,
    exact: bool,
    users: UserSplitConfig | None = None,
    rewards: str | None = None,
) -> TrainJob:
    """Resolves everything; the run's folder is `<folder>-<hash of the identity>`, or `folder` itself where it is `exact`.

    For a learner of users, `users` is how they are divided, `train_days` are the days on which trials begin, and there are
    no `valid_days`. For a learner of rewards, `rewards` names their table, and they are in the totals of `fitted`.
    """
    plugins = tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in plugins)
    load_plugins(plugins)
    resolved = resolve_config(lookup("learner", learner), learner_config)
    identity = {
        "learner": learner,
        "config": resolved,
        "training": training.identity(),
        "data": {
            "dataset": warehouse.info.name,
            "user_id": warehouse.info.user_id,
            "encoder": config_hash([fitted[0].to_dict(), fitted[1].to_dict()]),
            **_rows_identity(warehouse, train_days, valid_days, users),
            **({} if rewards is None else {"rewards": rewards}),
        },
        **plugins_identity(plugins),
    }
    if not exact:
        folder = folder.with_name(f"{folder.name}-{config_hash(identity)}")
    return TrainJob(
        learner=learner,
        learner_config=resolved,
        training=training,
        root=warehouse.root.resolve(),
        train_days=train_days,
        valid_days=valid_days,
        spec=fitted[0],
        stats=fitted[1],
        run_dir=folder.resolve(),
        plugins=plugins,
        identity=identity,
        users=users,
        rewards=rewards,
    )


def plugins_identity(plugins: Sequence[str]) -> dict[str, Any]:
    """What plugins add to the identity of a run: their content, so that an edited one is another run."""
    return {"plugins": [plugin_digest(plugin) for plugin in plugins]} if plugins else {}


def _rows_identity(
    warehouse: Warehouse,
    train_days: tuple[int, ...],
    valid_days: tuple[int, ...],
    users: UserSplitConfig | None,
) -> dict[str, Any]:
    if users is not None:
        return {
            "fingerprint": warehouse.trial.fingerprint(train_days),
            "trial_days": [day_name(d) for d in train_days],
            "users": users.model_dump(mode="json"),
        }
    return {
        "fingerprint": warehouse.transitions.fingerprint((*train_days, *valid_days)),
        "train_days": [day_name(d) for d in train_days],
        "valid_days": [day_name(d) for d in valid_days],
    }


def _differing(a: Any, b: Any, prefix: str = "") -> set[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return {name for key in {*a, *b} for name in _differing(a.get(key), b.get(key), f"{prefix}{key}.")}
    return set() if a == b else {prefix.rstrip(".") or "everything"}
