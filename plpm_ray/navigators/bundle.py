"""A trained learner (or a heuristic) on disk: weights, config, encoder, totals, metrics. Loading runs no pickled code.

Folder: `bundle.json` (what it is), `spec.json` (the fitted encoder), `weights.safetensors` (absent for heuristics),
`parts/<role>/` (a bundle each, for navigators composed of others).
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from plpm_ray.core.config import ConfigSource, config_hash, nearest, validate
from plpm_ray.core.errors import BundleError, ConfigError, StorageError
from plpm_ray.core.features import FeatureSpec
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.core.stats import TableStats
from plpm_ray.core.storage import newest_run, read_json, storage_errors, write_json
from plpm_ray.navigators.base import FittedNavigator, Learner, LearnerNavigator, Navigator

FORMAT = 1
_BOILERPLATE = ("kind", "name", "config", "metrics", "data", "plugins")


@dataclass
class Bundle:
    """Everything needed to score with a model exactly as it was trained.

    Attributes:
        kind: "learner" (a trained module) or "navigator" (a heuristic, one composed of parts, or one fitted whole).
        name: registered name.
        config: resolved config of the learner or heuristic.
        pages, spec, stats: catalogue, fitted encoder, totals of the training window.
        weights: state dict, or the arrays of a `FittedNavigator`; empty for heuristics.
        metrics: held-out metrics, as reported by training.
        data: where it came from: dataset name, fingerprint, days.
        plugins: files or modules that register the name, if it is not a built-in one.
        parts: role -> bundle, of a navigator composed of others (`Heuristic.roles`).
    """

    kind: Literal["learner", "navigator"]
    name: str
    config: dict[str, Any]
    pages: PageCatalogue
    spec: FeatureSpec
    stats: TableStats
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    parts: dict[str, Bundle] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Name and a hash of config, pages, encoder, totals and weights: the same model has the same version everywhere."""
        pages = self.pages.model_dump(mode="json")
        digest = hashlib.sha256(
            config_hash([self.config, pages, self.spec.to_dict(), self.stats.to_dict()]).encode()
        )
        for key in sorted(self.weights):
            digest.update(key.encode())
            digest.update(
                self.weights[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        for role in sorted(self.parts):
            digest.update(f"{role}={self.parts[role].version}".encode())
        return f"{self.name}-{digest.hexdigest()[:10]}"

    @classmethod
    def of_learner(
        cls, learner: Learner, spec: FeatureSpec, pages: PageCatalogue, stats: TableStats, **extra: Any
    ) -> Bundle:
        """Bundle of a trained learner; `extra`: metrics, data, plugins."""
        weights = {k: v.detach().cpu().clone().contiguous() for k, v in learner.state_dict().items()}
        return cls(
            "learner",
            learner.name,
            learner.config.model_dump(mode="json"),
            pages,
            spec,
            stats,
            weights,
            **extra,
        )

    def learner(self) -> Learner:
        """The module with its weights, in evaluation mode.

        Raises:
            BundleError: the bundle is a heuristic, or its weights do not fit its config.
        """
        if self.kind != "learner":
            raise BundleError(
                f"bundle {self.name!r} is a heuristic and has no learner", hint="use navigator()"
            )
        load_plugins(self.plugins)
        cls: type[Learner] = lookup("learner", self.name)
        module = cls(_config(cls.Config, self), self.spec, self.pages, self.stats)
        try:
            module.load_state_dict(self.weights)
        except RuntimeError as error:
            raise BundleError(
                f"weights of {self.name!r} do not fit its config: {str(error).splitlines()[-1].strip()}",
                hint="the bundle was made by another version; train it again",
            ) from None
        return module.eval()

    def navigator(self) -> Navigator:
        """The navigator that scores pages with this model.

        Raises:
            BundleError: weights, config or parts do not fit the registered class.
        """
        if self.kind == "learner":
            return LearnerNavigator(self.learner(), self.spec, self.pages, self.version)
        load_plugins(self.plugins)
        cls = lookup("navigator", self.name)
        if self.parts.keys() != cls.roles.keys():
            raise BundleError(
                f"{self.name!r} is composed of {sorted(cls.roles)}, the bundle has {sorted(self.parts)}",
                hint="give one bundle for each role",
            )
        config = _config(cls.Config, self)
        if issubclass(cls, FittedNavigator):
            weights = {name: tensor.numpy() for name, tensor in self.weights.items()}
            return cls(config, self.pages, self.stats, self.version, self.spec, weights)
        parts = {role: part.navigator() for role, part in self.parts.items()}
        return cls(config, self.pages, self.stats, self.version, parts)

    def with_options(self, options: Mapping[str, Any]) -> Bundle:
        """The same parts under other settings of the navigator; itself if there are none.

        Raises:
            ConfigError: the bundle is a trained learner, whose settings are in its weights, or a setting is wrong.
        """
        if not options:
            return self
        if self.kind == "learner":
            raise ConfigError(
                f"options {sorted(options)} were given for the bundle of {self.name!r}, which is one trained learner",
                hint="its settings are trained into it; options are for composed navigators, such as klan",
            )
        load_plugins(self.plugins)
        model = lookup("navigator", self.name).Config
        source = ConfigSource({**self.config, **options}, f"options of {self.name!r}", {}, {})
        return replace(self, config=validate(model, source).model_dump(mode="json"))

    def with_parts(self, parts: Mapping[str, Bundle]) -> Bundle:
        """A composition with other bundles in some roles; itself if there are none.

        Raises:
            BundleError: an unknown role, a part of other pages or features, or one that learned from the rewards of another
                model than the one beside it.
        """
        if not parts:
            return self
        roles = lookup("navigator", self.name).roles if self.kind == "navigator" else {}
        for role, part in parts.items():
            if role not in roles:
                raise BundleError(
                    f"{self.name!r} has no part {role!r}",
                    hint=nearest(role, roles) or "it is not composed of others",
                )
            if part.pages.names != self.pages.names or part.spec.schema != self.spec.schema:
                raise BundleError(
                    f"part {role!r} ({part.version}) was made for other pages or columns than {self.version}",
                    hint="train it on tables of the same dataset",
                )
        made = replace(self, parts={**self.parts, **parts})
        for role, by in lookup("navigator", self.name).rewarded.items():
            learned, model = made.parts[role].data.get("rewards"), made.parts.get(by)
            if learned is not None and model is not None and model.version != learned:
                raise BundleError(
                    f"part {role!r} ({made.parts[role].version}) learned from the rewards of {learned}, "
                    f"and part {by!r} is {model.version}",
                    hint=f"give the reward model that it learned from, or train {role!r} on the rewards of this one",
                )
        return made


def _config(model: Any, bundle: Bundle) -> Any:
    try:
        return model.model_validate(bundle.config)
    except ValidationError as error:
        raise BundleError(
            f"config of bundle {bundle.name!r} is not valid here: {error}",
            hint="train it again with this version",
        ) from None


def save_bundle(bundle: Bundle, path: str | Path) -> Path:
    """Writes the bundle folder; it appears whole or not at all, and replaces an older one.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with storage_errors(f"writing bundle {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            record = {k: getattr(bundle, k) for k in _BOILERPLATE}
            record |= {"format": FORMAT, "version": bundle.version}
            record |= {"pages": bundle.pages.model_dump(mode="json"), "stats": bundle.stats.to_dict()}
            write_json(staging / "bundle.json", record)
            write_json(staging / "spec.json", bundle.spec.to_dict())
            if bundle.weights:
                save_file(
                    {k: v.contiguous() for k, v in bundle.weights.items()}, staging / "weights.safetensors"
                )
                (staging / "weights.safetensors").chmod(0o644)
            for role, part in bundle.parts.items():
                save_bundle(part, staging / "parts" / role)
            staging.chmod(0o755)
            if path.exists():
                shutil.rmtree(path)
            staging.rename(path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return path


def load_bundle(path: str | Path, plugins: tuple[str, ...] = ()) -> Bundle:
    """Reads a bundle folder. JSON and safetensors only: nothing in it is executed.

    Args:
        path: the folder.
        plugins: files or modules that register its learner, where the recorded ones do not lie on this machine.

    Raises:
        BundleError: it is no bundle, of a newer format, or damaged.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # all files of one version, also where the link moves on meanwhile
    if not (path / "bundle.json").is_file():
        raise BundleError(
            f"{path} is not a bundle (no bundle.json)", hint="give the `bundle` folder inside a run folder"
        )
    try:
        record: Mapping[str, Any] = read_json(path / "bundle.json")
        if record.get("format") != FORMAT:
            raise BundleError(
                f"{path} has bundle format {record.get('format')!r}, this version reads {FORMAT}",
                hint="train it again",
            )
        weights = load_file(path / "weights.safetensors") if (path / "weights.safetensors").exists() else {}
        bundle = Bundle(
            kind=record["kind"],
            name=record["name"],
            config=record["config"],
            pages=PageCatalogue.model_validate(record["pages"]),
            spec=FeatureSpec.from_dict(read_json(path / "spec.json")),
            stats=TableStats.from_dict(record["stats"]),
            weights=weights,
            metrics=record["metrics"],
            data=record["data"],
            parts={part.name: load_bundle(part, plugins) for part in sorted((path / "parts").glob("*"))},
            plugins=(*_recorded_plugins(record["plugins"], plugins), *plugins),
        )
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        SafetensorError,
        StorageError,
        ConfigError,
    ) as error:
        raise BundleError(
            f"bundle {path} is damaged: {error}", hint="copy it again or train it again"
        ) from None
    if bundle.version != record.get("version"):
        raise BundleError(
            f"bundle {path} does not match its recorded version",
            hint="a file in it was changed; copy it again",
        )
    return bundle


def _recorded_plugins(recorded: Sequence[str], given: Sequence[str]) -> list[str]:
    """The plugins a bundle was trained with; on another machine, those that are given stand for missing files."""
    return [p for p in recorded if not given or not p.endswith(".py") or Path(p).is_file()]


def find_bundle(path: str | Path) -> Path:
    """The bundle meant by a path: a bundle folder, a run folder, or a run's name without its hash (see `newest_run`).

    Raises:
        BundleError: none of these is there.
    """
    path = Path(path)
    if (path / "bundle.json").is_file():
        return path
    run = newest_run(path, ("bundle/bundle.json",))
    if run is None:
        raise BundleError(
            f"no bundle at {path}", hint="train one with `plpm train`, or give a bundle or run folder"
        )
    return run / "bundle"
