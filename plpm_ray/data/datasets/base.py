"""What a dataset adapter is: it knows one layout of files and hands out raw rows; everything after that is common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import ConfigSource, Named, StrictConfig, validate
from plpm_ray.core.errors import ConfigError
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.data.contract import DatasetInfo
from plpm_ray.data.normalise import Origin
from plpm_ray.data.validate import Reading

Form = Literal["sessions", "events"]


@dataclass(frozen=True)
class Slice:
    """One work item: a part of a file. Items are read in the order in which `inputs` lists them.

    Attributes:
        path: absolute path.
        start, stop: what the adapter understands by them (row groups of Parquet, bytes of CSV).
        first_row: 0-based position of the slice's first row among the file's data rows.
    """

    path: str
    start: int = 0
    stop: int = 0
    first_row: int = 0


@dataclass(frozen=True)
class Raw:
    """Rows of one slice, columns under canonical names, values as the file has them.

    Attributes:
        table: (n,) rows that could be parsed.
        rows: (n,) positions within the slice where they are not simply 0..n-1.
        original: (n,) the rows as quarantine shall show them, where `table` is a conversion of them.
        rejected: rows that could not be parsed at all: columns `text` and `row` (position within the slice).
    """

    table: pa.Table
    rows: np.ndarray | None = None
    original: pa.Table | None = None
    rejected: pa.Table | None = None


class Adapter(ABC):
    """Base of all dataset adapters; subclasses are registered with `@register("dataset", name)`.

    Class attributes:
        Config: strict config class; its fields stand beside `name` in the YAML's `dataset:` section.
        unique_sessions: the adapter makes session ids that cannot clash, so they need no exchange.
    """

    name: ClassVar[str]
    Config: ClassVar[type[StrictConfig]]
    unique_sessions: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def form(self) -> Form:
        """Whether `read` gives sessions, or page events that are sessionised per bucket."""
        return "sessions"

    @property
    def gap_ms(self) -> int:
        """Longest pause inside a session, for events."""
        # asked of `form` "events" only, which must say it; sessions have no gap to give
        raise NotImplementedError(f"{self.name} gives sessions")

    @property
    def event_key(self) -> tuple[str, ...]:
        """Columns of events in which two rows must differ; empty switches the rule duplicate_event off."""
        return ()

    @abstractmethod
    def info(self, n_buckets: int) -> DatasetInfo:
        """Catalogue, columns and id types. Reads no more than headers and footers."""

    @abstractmethod
    def inputs(self) -> list[Slice]:
        """All work items in file order, after every file was found readable.

        Raises:
            DataError: no files, an unreadable one, or one with other columns or id types than the first.
        """

    @abstractmethod
    def read(self, item: Slice) -> Raw:
        """Rows of one item: sessions (`contract.SESSION_COLUMNS`) or events (`validate.EVENT_INPUT`), with context."""

    def profile_inputs(self) -> list[Slice]:
        """Work items of the users' profiles; none where the dataset has no profiles."""
        return []

    def read_profile(self, item: Slice) -> Raw:
        """Rows of one profile item: user_id and the profile columns."""
        # asked for the items of `profile_inputs` only, and here there are none
        raise NotImplementedError(f"{self.name} has no profiles")

    def assignment_inputs(self) -> list[Slice]:
        """Work items of the assignments to the arms of a trial; none where the dataset has none."""
        return []

    def read_assignments(self, item: Slice) -> Raw:
        """Rows of one such item: user_id, arm, start_day, end_day."""
        # asked for the items of `assignment_inputs` only, and here there are none
        raise NotImplementedError(f"{self.name} has no assignments")

    def assignment_origin(self, item: Slice) -> Origin:
        """File and column names of assignments, for messages."""
        return Origin(item.path)

    def reading(self, info: DatasetInfo) -> Reading:
        """Units of the raw values."""
        return Reading(info)

    def origin(self, item: Slice) -> Origin:
        """File and column names for messages."""
        return Origin(item.path)


def make_adapter(
    dataset: Named, plugins: tuple[str, ...] = (), source: ConfigSource | None = None
) -> Adapter:
    """Builds the adapter that a `dataset:` section describes.

    Args:
        dataset: `name` and the adapter's own settings.
        plugins: files or modules with adapters of one's own.
        source: where the section came from, so that errors can name file and line.

    Raises:
        ConfigError: unknown name or key, or a bad value.
    """
    load_plugins(plugins)
    source = source or ConfigSource({}, "config", {}, {})
    try:
        cls: type[Adapter] = lookup("dataset", dataset.name)
    except ConfigError as error:
        raise ConfigError(f"{source.where(('dataset', 'name'))}: {error.message}", hint=error.hint) from None
    return cls(validate(cls.Config, source, ("dataset",), dataset.options))
