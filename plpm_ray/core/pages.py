"""The page catalogue: which landing pages exist, in which order, and what the logs call them."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported, so a type checker does not know them

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from plpm_ray.core.config import StrictConfig
from plpm_ray.core.errors import ConfigError, DataError

MAX_PAGES = 32


class Page(StrictConfig):
    """One page and the raw values that stand for it in the logs."""

    name: str = Field(min_length=1, description="the page's name, as decisions and reports show it")
    values: tuple[str | int, ...] = Field(
        default=(), description="raw log values that mean this page, beside the name itself"
    )


class PageCatalogue(StrictConfig):
    """The candidate landing pages, in a fixed order; position k in it is the action k of every model.

    Example::

        PageCatalogue(pages=[{"name": "featured", "values": [1]}, {"name": "following", "values": [0]}])
    """

    pages: tuple[Page, ...] = Field(description="2 to 32 pages, in the order of the models' outputs")
    other: str | None = Field(
        default=None, description="name of the page that takes every raw value not listed; null refuses them"
    )

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, data: Any) -> Any:
        if isinstance(data, list | tuple):
            data = {"pages": data}
        if isinstance(data, dict) and isinstance(data.get("pages"), list | tuple):
            data = {**data, "pages": [{"name": p} if isinstance(p, str) else p for p in data["pages"]]}
        return data

    @model_validator(mode="after")
    def _distinct(self) -> PageCatalogue:
        if not 2 <= len(self.pages) <= MAX_PAGES:
            raise ValueError(f"a catalogue has 2 to {MAX_PAGES} pages, this one has {len(self.pages)}")
        seen: dict[str, str] = {}
        for page in self.pages:
            for raw in {page.name, *map(str, page.values)}:
                if raw in seen:
                    raise ValueError(f"value {raw!r} stands for two pages: {seen[raw]!r} and {page.name!r}")
                seen[raw] = page.name
        if self.other is not None and self.other not in self.names:
            raise ValueError(f"other: {self.other!r} is not one of the pages {list(self.names)}")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(page.name for page in self.pages)

    def __len__(self) -> int:
        return len(self.pages)

    def index(self, name: str) -> int:
        """Position of a page by name or raw value.

        Raises:
            ConfigError: the name is unknown; the message names the nearest page.
        """
        position = self._lookup.get(str(name))
        if position is None:
            near = difflib.get_close_matches(str(name), self.names, n=1)
            raise ConfigError(
                f"unknown page {name!r}",
                hint=f"pages are {list(self.names)}" + (f"; did you mean {near[0]!r}?" if near else ""),
            )
        return position

    @cached_property
    def _lookup(self) -> dict[str, int]:
        return {raw: k for k, page in enumerate(self.pages) for raw in (page.name, *map(str, page.values))}

    def encode(self, values: pa.Array | pa.ChunkedArray | Sequence[Any]) -> np.ndarray:
        """Raw page values -> positions.

        Args:
            values: (n,) strings, integers or a dictionary array; null allowed.

        Returns:
            (n,) int16; -1 where the value is unknown (and no `other` page is set) or null.

        Raises:
            DataError: the values are neither strings nor integers.
        """
        array: Any = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        if pa.types.is_integer(array.type) or pa.types.is_null(array.type):
            known = [(int(raw), k) for raw, k in self._lookup.items() if raw.lstrip("-").isdigit()]
            value_set = pa.array([raw for raw, _ in known], type=pa.int64())
            array = array.cast(pa.int64())
        elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            known = list(self._lookup.items())
            value_set = pa.array([raw for raw, _ in known], type=array.type)
        else:
            raise DataError(
                f"page values are {array.type}",
                hint="pages must be strings or integers; cast the column or map another",
            )
        positions = np.array([k for _, k in known] + [-1], dtype=np.int16)
        if self.other is not None:
            positions[-1] = self.names.index(self.other)
        found = pc.index_in(array, value_set=value_set).fill_null(len(known)).to_numpy(zero_copy_only=False)
        codes = positions[found]
        if array.null_count:
            codes[array.is_null().to_numpy(zero_copy_only=False)] = -1
        return codes
