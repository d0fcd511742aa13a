"""One finished session as bytes, for streams: the raw features at its entry, and what came of it. Vectorised both ways.

A row is a head of fixed width (format, schema hash, outcome, numeric features, integer categories, sequences, lengths of
the texts; little-endian, packed) and then the UTF-8 texts of the string categories, one after the other.

Letters: R rows, C string categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import config_hash
from plpm_ray.core.errors import DataError
from plpm_ray.core.features import RECENT_STEPS, FeatureSchema, RawFeatures

FIELD = "row"
"""The field of a stream entry that holds the bytes."""

FORMAT = 1
OUTCOME: Mapping[str, type[np.generic]] = {
    "action": np.int64,
    "use_s": np.float32,
    "landing_dwell_s": np.float32,
    "switches": np.int64,
    "entry_ms": np.int64,
    "key": np.uint64,
}
_NONE = 0xFFFFFFFF  # the length of a text that is missing


def pack_rows(features: RawFeatures, outcome: Mapping[str, np.ndarray]) -> list[bytes]:
    """R finished sessions as R records.

    Args:
        features: raw features at the entries; `vectors` are not kept.
        outcome: (R,) each: "action" page position, "use_s" and "landing_dwell_s" seconds, "switches", "entry_ms" since
            1970 UTC, "key" of the session (`plpm_ray.data.features.sessions.session_keys`, as uint64).

    Raises:
        DataError: an outcome is missing or of another length, or a string category holds no strings.
    """
    _check_outcome(outcome, len(features))
    schema = features.schema
    texts, head_type = _texts(schema), _head_type(_layout_key(schema))
    head = np.zeros(len(features), dtype=head_type)
    head["format"], head["schema"] = FORMAT, schema_hash(schema)
    for name, kind in OUTCOME.items():
        head[name] = np.asarray(outcome[name]).astype(kind, copy=False)
    head["numeric"] = features.numeric
    for i, name in enumerate(_codes(schema)):
        head["codes"][:, i] = np.asarray(features.categorical[name])
    for i, name in enumerate(schema.sequences):
        head["sequences"][:, i] = features.sequences[name]
    if not texts:
        whole, width = head.tobytes(), head_type.itemsize
        return [whole[at : at + width] for at in range(0, len(whole), width)]
    columns = [_Text.of(name, features.categorical[name]) for name in texts]
    for i, column in enumerate(columns):
        head["texts"][:, i] = np.where(column.missing, _NONE, column.lengths)
    return _interleave(head, columns)


def unpack_rows(schema: FeatureSchema, rows: Sequence[bytes]) -> tuple[RawFeatures, dict[str, np.ndarray]]:
    """Inverse of `pack_rows`: features, and outcome columns of the types of `OUTCOME`.

    Raises:
        DataError: a row is of another format or schema, or cut off; the message names the first such row.
    """
    head_type = _head_type(_layout_key(schema))
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    starts = np.cumsum(lengths) - lengths
    buffer = np.frombuffer(b"".join(rows), dtype=np.uint8)
    _check_kind(schema, buffer, starts, lengths)
    _first_bad(lengths < head_type.itemsize, "is cut off")
    width = head_type.itemsize
    if len(buffer) == width * len(rows):
        head = buffer.view(head_type)
    else:
        head = buffer[starts[:, None] + np.arange(width)].reshape(-1).view(head_type)
    text_lengths = np.where(head["texts"] == _NONE, 0, head["texts"]).astype(np.int64)
    _first_bad(lengths != width + text_lengths.sum(axis=1), "is cut off")
    categorical: dict[str, Any] = {}
    for i, name in enumerate(_codes(schema)):
        categorical[name] = head["codes"][:, i].astype(np.int32)
    at = starts + width
    for i, name in enumerate(_texts(schema)):
        categorical[name] = _strings(buffer, at, text_lengths[:, i], head["texts"][:, i] == _NONE)
        at = at + text_lengths[:, i]
    features = RawFeatures(
        schema,
        np.ascontiguousarray(head["numeric"]),
        {name: categorical[name] for name in schema.categorical},
        {name: np.ascontiguousarray(head["sequences"][:, i]) for i, name in enumerate(schema.sequences)},
    )
    return features, {name: np.ascontiguousarray(head[name]) for name in OUTCOME}


def schema_hash(schema: FeatureSchema) -> int:
    """64 bits of what a row's columns are: names, order and kinds."""
    return int(config_hash([FORMAT, schema.to_dict()], length=16), 16)


def _codes(schema: FeatureSchema) -> list[str]:
    """Categories kept as integers: hour, weekday and pages."""
    return [name for name in schema.categorical if "." not in name]


def _texts(schema: FeatureSchema) -> list[str]:
    """Categories kept as text: those of the context and the profile, `context.<column>` and `profile.<column>`."""
    return [name for name in schema.categorical if "." in name]


def _layout_key(schema: FeatureSchema) -> tuple[int, int, int, int]:
    return len(schema.numeric), len(_codes(schema)), len(schema.sequences), len(_texts(schema))


@lru_cache(maxsize=32)
def _head_type(key: tuple[int, int, int, int]) -> np.dtype:
    n_numeric, n_codes, n_sequences, n_texts = key
    fields: list[Any] = [("format", "<u2"), ("schema", "<u8")]
    fields += [(name, np.dtype(kind).newbyteorder("<")) for name, kind in OUTCOME.items()]
    fields += [("numeric", "<f4", (n_numeric,)), ("codes", "<i4", (n_codes,))]
    fields += [("sequences", "<f4", (n_sequences, RECENT_STEPS)), ("texts", "<u4", (n_texts,))]
    return np.dtype(fields)


class _Text:
    """A string column as UTF-8: bytes, (R,) start and length of each text in them, (R,) missing."""

    def __init__(
        self, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray, missing: np.ndarray
    ) -> None:
        self.data, self.starts, self.lengths, self.missing = data, starts, lengths, missing

    @classmethod
    def of(cls, name: str, values: Any) -> _Text:
        try:
            array = pa.array(values, type=pa.large_string()) if isinstance(values, np.ndarray) else values
            if isinstance(array, pa.ChunkedArray):
                array = array.combine_chunks()
            array = array.cast(pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"feature {name!r} holds no strings: {error}", hint="give strings or None"
            ) from None
        missing = np.asarray(array.is_null())
        _, offset_buffer, data_buffer = array.buffers()
        if not len(array) or offset_buffer is None:
            offsets = np.zeros(len(array) + 1, dtype=np.int64)
        else:
            offsets = np.frombuffer(offset_buffer, dtype=np.int64)[
                array.offset : array.offset + len(array) + 1
            ]
        data = (
            np.empty(0, dtype=np.uint8) if data_buffer is None else np.frombuffer(data_buffer, dtype=np.uint8)
        )
        return cls(data, offsets[:-1], np.where(missing, 0, np.diff(offsets)), missing)


def _interleave(head: np.ndarray, columns: Sequence[_Text]) -> list[bytes]:
    width = head.dtype.itemsize
    lengths = width + sum(column.lengths for column in columns)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    out = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    out[starts[:, None] + np.arange(width)] = head.view(np.uint8).reshape(len(head), width)
    at = starts + width
    for column in columns:
        out[_spans(at, column.lengths)] = column.data[_spans(column.starts, column.lengths)]
        at = at + column.lengths
    whole = out.tobytes()
    return [whole[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions start, start + 1, ... of every span, one span after the other."""
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


def _strings(buffer: np.ndarray, starts: np.ndarray, lengths: np.ndarray, missing: np.ndarray) -> pa.Array:
    data = buffer[_spans(starts, lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = pa.array(~missing).buffers()[1] if missing.any() else None
    return pa.StringArray.from_buffers(
        len(lengths), pa.py_buffer(offsets), pa.py_buffer(data), mask, int(missing.sum())
    )


def _check_outcome(outcome: Mapping[str, np.ndarray], rows: int) -> None:
    for name in OUTCOME:
        if name not in outcome or len(outcome[name]) != rows:
            found = f"{len(outcome[name])} values" if name in outcome else "nothing"
            raise DataError(
                f"outcome {name!r} holds {found} for {rows} sessions",
                hint=f"give all of {', '.join(OUTCOME)}",
            )


def _check_kind(schema: FeatureSchema, buffer: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
    """Format and schema of every row, before anything else of it is read."""
    _first_bad(lengths < 10, "is cut off")
    kind = buffer[starts[:, None] + np.arange(10)]
    _first_bad(np.ascontiguousarray(kind[:, :2]).view("<u2")[:, 0] != FORMAT, f"is not of format {FORMAT}")
    found = np.ascontiguousarray(kind[:, 2:]).view("<u8")[:, 0]
    _first_bad(
        found != np.uint64(schema_hash(schema)),
        "was written under another schema (pages, context or profile columns)",
    )


def _first_bad(bad: np.ndarray, what: str) -> None:
    if bad.any():
        raise DataError(
            f"row {int(np.argmax(bad))} of {len(bad)} of the stream {what}",
            hint="read the stream with the bundle or tables of the service that writes it, and the same version",
        )
