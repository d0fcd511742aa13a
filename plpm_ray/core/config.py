"""Strict configuration: YAML plus `--set key=value`, refused where it does not fit, with file and line."""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from plpm_ray.core.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]


class StrictConfig(BaseModel):
    """Base of all configs: frozen, unknown keys refused, defaults validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class Named(BaseModel):
    """A section `{name: registered name, ...its own options}`, or the name alone; the options are checked by the named class'
    Config."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


@dataclass(frozen=True)
class Tunable:
    """The range of a config field that a sweep may search; it stands in the field's annotation.

    Example::

        alpha: Annotated[float, Tunable(0.01, 10.0, log=True)] = Field(1.0, ge=0, description="...")
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None
    kind: Literal["float", "int"] = "float"


def tunables(model: type[BaseModel], prefix: str = "") -> dict[str, Tunable]:
    """Dotted name -> Tunable for every field of a config class that declares one, nested configs included."""
    found: dict[str, Tunable] = {}
    for name, info in model.model_fields.items():
        for item in info.metadata:
            if isinstance(item, Tunable):
                found[prefix + name] = item
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found.update(tunables(info.annotation, f"{prefix}{name}."))
    return found


def config_hash(value: Any, length: int = 10) -> str:
    """Stable hash of a config or any JSON-like value (key order does not matter)."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass
class ConfigSource:
    """A raw config with the place each key came from, so that errors can name it.

    `names` holds what stood where an override put a key: `glan` of `navigator: glan` under `--set navigator.rtg=mean7`.
    """

    data: dict[str, Any]
    name: str
    lines: dict[KeyPath, int]
    overrides: dict[KeyPath, str]
    names: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`file:line` of a key, or the `--set` it came from; the nearest parent when the key itself is absent."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.overrides:
                return f"--set {self.overrides[path[:end]]}"
            if path[:end] in self.lines:
                return f"{self.name}:{self.lines[path[:end]]}"
        return self.name


def read_config(path: str | Path | None, overrides: Sequence[str] = ()) -> ConfigSource:
    """Reads a YAML file (or nothing) and applies `key.path=value` overrides; values are YAML.

    An override within a section that is written as a name alone adds to it: `navigator: glan` and `navigator.rtg=mean7` are
    `navigator: {name: glan, rtg: mean7}`. Which sections may be written so, `validate` knows.

    Raises:
        ConfigError: the file is missing or is not a YAML mapping, or an override is malformed.
    """
    data: dict[str, Any] = {}
    lines: dict[KeyPath, int] = {}
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise ConfigError(
                f"config file {str(file)!r} does not exist", hint="give the path of a YAML file"
            )
        try:
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{file} is not valid YAML: {error}", hint="check indentation and quotes"
            ) from None
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(
                f"{file} holds a {type(loaded).__name__}, not a mapping", hint="write `key: value` lines"
            )
        data = loaded or {}
        if root is not None:
            _collect_lines(root, (), lines, str(file))
    source = ConfigSource(data, str(path) if path is not None else "config", lines, {})
    for override in overrides:
        _apply_override(source, override)
    return source


def validate(model: type[Model], source: ConfigSource, section: KeyPath = (), data: Any = None) -> Model:
    """Builds a config from a source (or from `data` standing at `section` of it).

    Raises:
        ConfigError: every problem at once, each with file and line, unknown keys with the nearest right name.
    """
    if data is None:
        _write_out_names(model, source)
    raw = source.data if data is None else data
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = [_describe(item, model, source, section) for item in error.errors()]
        raise ConfigError(
            "; ".join(p for p, _ in problems),
            hint="; ".join(dict.fromkeys(h for _, h in problems if h)) or None,
        ) from None


def load_config(model: type[Model], path: str | Path | None, overrides: Sequence[str] = ()) -> Model:
    """`read_config` and `validate` in one."""
    return validate(model, read_config(path, overrides))


def _collect_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise ConfigError(
                    f"{name}:{key.start_mark.line + 1}: key {key.value!r} is not a string for YAML",
                    hint=f'write "{key.value}" in quotes',
                )
            here = (*path, key.value)
            if here in lines:
                raise ConfigError(
                    f"{name}:{key.start_mark.line + 1}: key {key.value!r} stands twice (first on line {lines[here]})",
                    hint="keep one of the two",
                )
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _collect_lines(value, (*path, index), lines, name)


def _apply_override(source: ConfigSource, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r} is not key=value", hint="for example --set training.epochs=3")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(
            f"--set {text!r}: the value is not valid YAML", hint="quote it for the shell"
        ) from None
    path: list[str | int] = []
    target: Any = source.data  # a mapping or a list, whatever the file holds
    parts = key.strip().split(".")
    for depth, part in enumerate(parts):
        step: Any = part
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                raise ConfigError(
                    f"--set {text!r}: {'.'.join(parts[:depth])} is a list of {len(target)}",
                    hint="use an index in it",
                )
            step = int(part)
        path.append(step)
        if depth == len(parts) - 1:
            target[step] = parsed
            here = tuple(path)
            source.names = {at: name for at, name in source.names.items() if at[: len(here)] != here}
            break
        child = target.get(step) if isinstance(target, dict) else target[step]
        if not isinstance(child, dict | list):
            if isinstance(child, str):
                source.names[tuple(path)] = child
            child = {}
            target[step] = child
            source.overrides[tuple(path)] = text
        target = child
    source.overrides[tuple(path)] = text


def _write_out_names(model: type[BaseModel], source: ConfigSource) -> None:
    """Adds to sections that overrides reach into what their name alone meant, where the model takes a name alone."""
    for path, name in source.names.items():
        at: Any = source.data
        for step in path:
            at = at[step]
        for section in _models_at(model, path):
            for key, value in _named(section, name, source, path).items():
                at.setdefault(key, value)


def _named(section: type[BaseModel], name: str, source: ConfigSource, path: KeyPath) -> dict[str, Any]:
    """The section that a name alone stands for; empty where it stands for none."""
    try:
        return section.model_validate(name).model_dump(exclude_unset=True)
    except ValidationError as error:
        if error.errors()[0]["type"] != "model_type":  # a name may stand there, and not this one
            validate(section, source, path, name)
        return {}


def _models_at(model: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    """The configs that may stand at a path under a model; none within options that only a registered class knows."""
    found: list[Any] = [model]
    for step in path:
        following: list[Any] = []
        for candidate in found:
            if step in candidate.model_fields:
                following += _models_in(candidate.model_fields[step].annotation)
            elif candidate.model_config.get("extra") != "allow":
                following.append(candidate)  # a key or an index in a mapping or list of such sections
        found = following
    return found


def _describe(
    item: Mapping[str, Any], model: type[BaseModel], source: ConfigSource, section: KeyPath
) -> tuple[str, str | None]:
    location: KeyPath = tuple(item["loc"])
    path = (*section, *location)
    dotted = ".".join(map(str, path)) or "(top level)"
    where = source.where(path)
    if item["type"] == "extra_forbidden":
        names = known_keys(model, location[:-1])
        parent = ".".join(map(str, path[:-1])) or "the top level"
        return f"{where}: unknown key {path[-1]!r} in {parent}", nearest(str(path[-1]), names)
    if item["type"] == "missing":
        return f"{where}: key {dotted!r} is missing", None
    message = item["msg"].removeprefix("Value error, ")
    shown = repr(item.get("input"))
    return f"{where}: {dotted}: {message} (got {shown if len(shown) < 80 else shown[:77] + '...'})", None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """`did you mean ...?` for a misspelt name, or the list of what exists."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known names: {', '.join(names)}" if names else None


def known_keys(model: type[BaseModel], location: KeyPath) -> set[str]:
    """Field names of the (possibly nested) config that stands at `location` under `model`."""
    candidates: list[Any] = [model]
    for step in location:
        following: list[Any] = []
        for candidate in candidates:
            fields: Mapping[str, FieldInfo] = getattr(candidate, "model_fields", {})
            if isinstance(step, str) and step in fields:
                following += _models_in(fields[step].annotation)
            elif isinstance(step, int) or step not in fields:
                following.append(candidate)
        candidates = following or candidates
    return {name for candidate in candidates for name in getattr(candidate, "model_fields", {})}


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
