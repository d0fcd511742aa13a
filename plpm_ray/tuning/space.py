"""The search space of a sweep, derived from the ranges that config classes declare (`Tunable`).

A parameter is named by its place: `alpha` or `learner.alpha` is a field of the learner's config, `training.lr` one
of the training config, `policy.temperature` one of the policy's. Other sweeps have other sections (`iit.training`).
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from plpm_ray.core.config import StrictConfig, Tunable, nearest, tunables
from plpm_ray.core.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Section = str


class SearchRange(StrictConfig):
    """What a sweep may try of a parameter; what is left out is as its config class declares."""

    low: float | None = Field(default=None, description="least value, in the parameter's unit")
    high: float | None = Field(default=None, description="largest value, in the parameter's unit")
    log: bool | None = Field(default=None, description="search on a logarithmic scale")
    choices: tuple[Any, ...] | None = Field(
        default=None, min_length=1, description="values to choose among, instead of a range"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> SearchRange:
        if self.choices is not None and (self.low, self.high, self.log) != (None, None, None):
            raise ValueError("give either `choices` or `low`, `high` and `log`")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError("a logarithmic range must start above 0")
        return self


@dataclass(frozen=True)
class Dimension:
    """One searched parameter.

    Attributes:
        name: as in the table, for example `alpha` or `training.lr`.
        section: the config it belongs to.
        path: keys that lead to it inside that config.
        low, high, log, integer: of a range; unused where there are choices.
        choices: of a categorical parameter.
    """

    name: str
    section: Section
    path: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] | None = None

    def distribution(self) -> BaseDistribution:
        """Optuna's form of it; choices are searched by their position, so that lists may be choices."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(tuple(range(len(self.choices))))
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def decode(self, raw: Any) -> Any:
        """Optuna's value -> the parameter's."""
        return self.choices[raw] if self.choices is not None else raw

    def encode(self, value: Any) -> Any:
        """The parameter's value -> Optuna's; None where it lies outside the range."""
        if self.choices is not None:
            plain = [_plain(choice) for choice in self.choices]
            return plain.index(_plain(value)) if _plain(value) in plain else None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.low <= value <= self.high
        ):
            return None
        return int(value) if self.integer else float(value)

    def ends(self) -> tuple[Any, ...]:
        """The values that must be valid for the whole dimension to be."""
        if self.choices is not None:
            return self.choices
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """All searched parameters, in the order of the config."""

    dimensions: tuple[Dimension, ...]

    def __iter__(self):
        return iter(self.dimensions)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.dimensions)

    def distributions(self) -> dict[str, BaseDistribution]:
        return {d.name: d.distribution() for d in self.dimensions}

    def decode(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        return {d.name: d.decode(raw[d.name]) for d in self.dimensions}

    def encode(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Optuna's form of a point; None where the point lacks a parameter or lies outside the space."""
        raw = {d.name: d.encode(params.get(d.name)) for d in self.dimensions}
        return None if any(value is None for value in raw.values()) else raw

    def apply(self, params: Mapping[str, Any], section: Section, base: Mapping[str, Any]) -> dict[str, Any]:
        """`base`, the settings of a section, with the section's share of a point put in."""
        merged = dict(base)
        for dimension in self.dimensions:
            if dimension.section == section:
                _put(merged, dimension.path, params[dimension.name])
        return merged

    def point(self, sections: Mapping[Section, BaseModel]) -> dict[str, Any]:
        """The point at which given configs stand."""
        found = {}
        for dimension in self.dimensions:
            value: Any = sections[dimension.section]
            for key in dimension.path:
                value = getattr(value, key)
            found[dimension.name] = _plain(value)
        return found


def build_space(search: Mapping[str, SearchRange | None], models: Mapping[Section, type[BaseModel]]) -> Space:
    """The space that a sweep's `search` section describes; all ranges that a learner declares where it is empty.

    Args:
        search: parameter -> range; None takes the declared one.
        models: config class of each section.

    Raises:
        ConfigError: a parameter does not exist, is named twice, or has no range.
    """
    learner = models.get("learner")
    wanted = dict(search) or dict.fromkeys(tunables(learner) if learner else ())
    if not wanted:
        told = (
            f", and {learner.__module__}.{learner.__qualname__} declares no range to search"
            if learner
            else ""
        )
        raise ConfigError(
            f"search is empty{told}",
            hint="name parameters under `search` with low and high, or give a field of the config a Tunable",
        )
    dimensions = [_dimension(name, given, models) for name, given in wanted.items()]
    for first, second in itertools.combinations(dimensions, 2):
        if first.name == second.name:
            raise ConfigError(
                f"search.{first.name}: named twice", hint=f"`learner.{first.name}` is the same parameter"
            )
    return Space(tuple(dimensions))


def check_space(
    space: Space, models: Mapping[Section, type[BaseModel]], base: Mapping[Section, Mapping[str, Any]]
) -> None:
    """Builds the configs at the ends of every range, so that no trial fails on a bound later.

    Raises:
        ConfigError: an end of a range or a choice is not a valid value.
    """
    for dimension in space:
        for value in dimension.ends():
            data = dict(base[dimension.section])
            _put(data, dimension.path, value)
            try:
                models[dimension.section].model_validate(data)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise ConfigError(
                    f"search.{dimension.name}: {value!r} is not valid: {place}: {first['msg']}",
                    hint="narrow the range"
                    if tuple(first["loc"]) == dimension.path
                    else "correct the fixed settings",
                ) from None


def _dimension(name: str, given: SearchRange | None, models: Mapping[Section, type[BaseModel]]) -> Dimension:
    section, path = _place(name, models)
    dotted = ".".join(path)
    shown = dotted if section == "learner" else f"{section}.{dotted}"
    declared = tunables(models[section]).get(dotted) or Tunable()
    given = given or SearchRange()
    ranged = (given.low, given.high) != (None, None)
    choices = given.choices if given.choices is not None else (None if ranged else declared.choices)
    if choices is not None:
        return Dimension(shown, section, path, choices=tuple(_frozen(c) for c in choices))
    low = declared.low if given.low is None else given.low
    high = declared.high if given.high is None else given.high
    if low is None or high is None:
        raise ConfigError(
            f"search.{name}: there is no range, and its config declares none",
            hint=f"write `{name}: {{low: ..., high: ...}}`",
        )
    log = declared.log if given.log is None else given.log
    integer = declared.kind == "int" or _is_integer(models[section], path)
    _check_range(name, low, high, log, integer)
    return Dimension(shown, section, path, float(low), float(high), log, integer)


def _check_range(name: str, low: float, high: float, log: bool, integer: bool) -> None:
    problem, hint = None, None
    if low >= high:
        problem, hint = (
            f"low ({low:g}) must be below high ({high:g})",
            "an end that is not given is the declared one",
        )
    elif log and low <= 0:
        problem, hint = "a logarithmic range must start above 0", "set `log: false` or raise `low`"
    elif integer and (low != int(low) or high != int(high)):
        problem, hint = (
            f"the parameter is an integer, the range {low:g} to {high:g} is not",
            "give whole numbers",
        )
    if problem is not None:
        raise ConfigError(f"search.{name}: {problem}", hint=hint)


def _place(name: str, models: Mapping[Section, type[BaseModel]]) -> tuple[Section, tuple[str, ...]]:
    fields: dict[Section, list[str]] = {section: _field_names(model) for section, model in models.items()}
    plain = fields.get("learner", [])
    if name in plain:
        return "learner", tuple(name.split("."))
    for section, names in fields.items():
        rest = name.removeprefix(f"{section}.")
        if rest != name and rest in names:
            return section, tuple(rest.split("."))
    known = [*plain, *(f"{s}.{f}" for s, names in fields.items() for f in names if s != "learner")]
    if name.startswith("learner."):
        known = [f"learner.{f}" for f in plain]
    raise ConfigError(f"search.{name}: unknown parameter {name!r}", hint=nearest(name, known))


def _field_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all fields that are not themselves configs."""
    found: list[str] = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += _field_names(info.annotation, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def _is_integer(model: type[BaseModel], path: Sequence[str]) -> bool:
    annotation: Any = model
    for key in path:
        annotation = annotation.model_fields[key].annotation
    members: Iterable[Any] = typing.get_args(annotation) or (annotation,)
    return int in members and float not in members


def _put(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        target[key] = dict(target.get(key) or {})
        target = target[key]
    target[path[-1]] = _plain(value)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a value is the same before and after JSON."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
