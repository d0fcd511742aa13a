"""Rows of a stream: what is packed is unpacked, exactly; other schemas are refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.data.stream import OUTCOME, pack_rows, unpack_rows

TEXTS = np.array(["", "a", None, "ü€𝄞", "long " * 40], dtype=object)
PLAIN = FeatureSchema(("a", "b", "c"))
FULL = FeatureSchema(("a", "b"), {"live": "numeric", "push": "categorical"}, {"city": "categorical"})


def example(schema: FeatureSchema, rows: int, seed: int = 0) -> tuple[RawFeatures, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(rows, len(schema.numeric))).astype(np.float32)
    numeric[rng.random(numeric.shape) < 0.2] = np.nan
    numeric[rng.random(numeric.shape) < 0.05] = -np.inf
    categorical = {
        name: rng.choice(TEXTS, rows) if "." in name else rng.integers(-1, 24, rows).astype(np.int32)
        for name in schema.categorical
    }
    sequences = {name: rng.normal(size=(rows, 8)).astype(np.float32) for name in schema.sequences}
    for values in sequences.values():
        values[rng.random(values.shape) < 0.5] = np.nan
    outcome = {
        "action": rng.integers(0, len(schema.pages), rows),
        "use_s": rng.gamma(1.0, 100.0, rows).astype(np.float32),
        "landing_dwell_s": np.full(rows, np.nan, dtype=np.float32),
        "switches": rng.integers(0, 1 << 40, rows),
        "entry_ms": rng.integers(-1, 1 << 45, rows),
        "key": rng.integers(0, 1 << 64, rows, dtype=np.uint64),
    }
    return RawFeatures(schema, numeric, categorical, sequences), outcome


def same(a: RawFeatures, b: RawFeatures) -> None:
    assert a.schema == b.schema
    assert a.numeric.tobytes() == b.numeric.tobytes()
    assert a.categorical.keys() == b.categorical.keys() and a.sequences.keys() == b.sequences.keys()
    for name, values in a.categorical.items():
        assert list(pa.array(values).to_pylist()) == list(pa.array(b.categorical[name]).to_pylist()), name
    for name, values in a.sequences.items():
        assert values.tobytes() == b.sequences[name].tobytes()


@pytest.mark.parametrize(
    "schema", [PLAIN, FULL, FeatureSchema(("a",), {}, {"x": "categorical"}, history=False)]
)
@pytest.mark.parametrize("rows", [0, 1, 257])
def test_round_trip_is_exact(schema: FeatureSchema, rows: int):
    features, outcome = example(schema, rows)
    packed = pack_rows(features, outcome)
    assert len(packed) == rows and all(isinstance(row, bytes) for row in packed)
    again, found = unpack_rows(schema, packed)
    same(features, again)
    assert list(found) == list(OUTCOME)
    for name, kind in OUTCOME.items():
        assert found[name].dtype == kind and found[name].tobytes() == outcome[name].astype(kind).tobytes()


def test_rows_stand_alone():
    features, outcome = example(FULL, 50)
    packed = pack_rows(features, outcome)
    order = np.random.default_rng(1).permutation(50)
    again, found = unpack_rows(FULL, [packed[i] for i in order])
    same(features.take(order), again)
    assert np.array_equal(found["key"], outcome["key"][order])
    assert pack_rows(features.take(order), {k: v[order] for k, v in outcome.items()}) == [
        packed[i] for i in order
    ]


def test_arrow_strings_and_slices_of_them():
    features, outcome = example(FULL, 20)
    as_arrow = {
        name: pa.array(["before", *values.tolist()], type=pa.string())[1:] if "." in name else values
        for name, values in features.categorical.items()
    }
    arrow = RawFeatures(FULL, features.numeric, as_arrow, features.sequences)
    assert pack_rows(arrow, outcome) == pack_rows(features, outcome)


def test_a_row_is_small():
    schema = FeatureSchema(
        ("a", "b", "c"), {"live": "numeric", "push": "categorical"}, {"age": "categorical"}
    )
    features, outcome = example(schema, 10)
    features.categorical.update({"context.push": np.full(10, "b"), "profile.age": np.full(10, "25-34")})
    assert all(250 <= len(row) <= 400 for row in pack_rows(features, outcome))


def test_another_schema_is_refused_by_name():
    features, outcome = example(FULL, 3)
    packed = pack_rows(features, outcome)
    renamed = FeatureSchema(("a", "other"), FULL.context, FULL.profile)
    with pytest.raises(DataError, match=r"row 0 of 3 of the stream was written under another schema"):
        unpack_rows(renamed, packed)
    mixed = [*packed, pack_rows(*example(PLAIN, 1))[0]]
    with pytest.raises(DataError, match=r"row 3 of 4 .* another schema"):
        unpack_rows(FULL, mixed)


@pytest.mark.parametrize(
    "damage", [lambda row: row[:5], lambda row: row[:-1], lambda row: row + b"x", lambda row: b""]
)
def test_damaged_rows_are_refused(damage):
    features, outcome = example(FULL, 3)
    packed = pack_rows(features, outcome)
    with pytest.raises(DataError, match="row 1 of 3 of the stream is cut off"):
        unpack_rows(FULL, [packed[0], damage(packed[1]), packed[2]])
    with pytest.raises(DataError, match="not of format 1"):
        unpack_rows(FULL, [b"\x09\x00" + packed[0][2:]])


def test_a_missing_outcome_is_named():
    features, outcome = example(PLAIN, 3)
    del outcome["key"]
    with pytest.raises(DataError, match="outcome 'key' holds nothing for 3 sessions"):
        pack_rows(features, outcome)
