"""A policy named in a config: what scores the pages, and how they are drawn from its scores."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from plpm_ray.core.config import Named, StrictConfig
from plpm_ray.policies.base import PolicyConfig


class PolicyEntry(StrictConfig):
    """Exactly one of the keys in `ways`; subclasses add keys and ways."""

    ways: ClassVar[tuple[str, ...]] = ("bundle", "navigator")

    label: str | None = Field(
        default=None, min_length=1, description="name in tables; default: that of what chooses"
    )
    bundle: str | None = Field(
        default=None,
        description="bundle folder, run folder, or `runs/<name>` for the newest run of that name",
    )
    navigator: Named | None = Field(
        default=None, description="registered navigator without training, and its options"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of a composed bundle's navigator that differ from the bundle's, as fusion: isp",
    )
    policy: PolicyConfig = Field(
        default=PolicyConfig(), description="how pages are drawn from the scores of what scores them"
    )

    @model_validator(mode="after")
    def _one_of_all(self) -> PolicyEntry:
        given = [way for way in self.ways if getattr(self, way) is not None]
        if len(given) != 1:
            names = f"{', '.join(self.ways[:-1])} and {self.ways[-1]}"
            raise ValueError(f"give exactly one of {names}, not {given or 'none'}")
        if self.options and self.bundle is None:
            raise ValueError("options belong to a bundle; a navigator's own stand beside its name")
        return self

    @property
    def title(self) -> str:
        """The label, or the name of what chooses."""
        way = next(way for way in self.ways if getattr(self, way) is not None)
        value = getattr(self, way)
        named = value.name if way == "navigator" else f"always {value}" if way == "page" else value
        return self.label or str(named)
