"""The fitted encoder: values by hand, unknowns, storage, merging."""

import numpy as np
import pyarrow as pa
import pytest

from plpm_ray.core.errors import BundleError, DataError
from plpm_ray.core.feature_fitting import SpecFitter, fitted_spec
from plpm_ray.core.features import FeatureSchema, FeatureSpec, RawFeatures
from plpm_ray.core.stats import TableStats

SCHEMA = FeatureSchema(("a", "b"), {"live": "numeric", "device": "categorical"}, {"age": "categorical"})


def raw(rows, seed=0):
    rng = np.random.default_rng(seed)
    numeric = rng.exponential(50, (rows, len(SCHEMA.numeric))).astype(np.float32)
    numeric[rng.random(numeric.shape) < 0.1] = np.nan
    cats = {
        "hour": rng.integers(0, 24, rows),
        "weekday": rng.integers(0, 7, rows),
        "last_exit_page": rng.integers(-1, 2, rows),
        "last_landing_page": rng.integers(-1, 2, rows),
        "context.device": np.array(rng.choice(["ios", "android", None], rows), dtype=object),
        "profile.age": np.array(rng.choice(["18-23", "24-30"], rows), dtype=object),
    }
    seqs = {name: rng.integers(0, 2, (rows, 8)).astype(np.float32) for name in SCHEMA.sequences}
    seqs["recent_use_s"][:, 5:] = np.nan
    return RawFeatures(SCHEMA, numeric, cats, seqs)


def fitted(*parts):
    fitter = SpecFitter(SCHEMA)
    for part in parts:
        fitter.update(part)
    return fitter.finish()


def test_dense_is_standardised_log1p_and_missing_is_zero():
    features = raw(500)
    dense = fitted(features).encode(features).dense
    column = np.log1p(features.numeric[:, 0].astype(np.float64))
    expected = (column - np.nanmean(column)) / np.nanstd(column)
    np.testing.assert_allclose(dense[:, 0], np.nan_to_num(expected), atol=1e-5)
    assert np.isfinite(dense).all() and dense.dtype == np.float32


def test_codes_start_at_one_and_unknown_is_zero():
    spec = fitted(raw(500))
    other = raw(4, seed=1)
    other.categorical["context.device"] = np.array(["ios", "windows", None, "android"], dtype=object)
    other.categorical["hour"] = np.array([0, 23, 99, 5])
    cat = spec.encode(other).cat
    device = SCHEMA.categorical.index("context.device")
    assert cat[:, device].tolist() == [2, 0, 0, 1]
    assert cat[:, 0].tolist() == [1, 24, 0, 6]
    assert spec.cat_sizes[device] == 3
    assert all(cat[:, j].max() < size for j, size in enumerate(spec.cat_sizes))


def test_bins_and_sequences():
    features = raw(500)
    spec = fitted(features)
    encoded = spec.encode(features, bins=True, sequences=True)
    assert encoded.bins is not None and encoded.sequences is not None
    assert (encoded.bins[np.isnan(features.numeric)] == 0).all()
    assert (encoded.bins[~np.isnan(features.numeric)] >= 1).all()
    assert all(encoded.bins[:, j].max() < size for j, size in enumerate(spec.bin_sizes))
    assert (encoded.sequences["recent_use_s"][:, 5:] == 0).all()


def test_round_trips_and_merging():
    features = raw(300)
    whole = fitted(features)
    again = FeatureSpec.from_dict(whole.to_dict())
    np.testing.assert_array_equal(again.encode(features).dense, whole.encode(features).dense)
    table = pa.table(features.to_columns())
    back = RawFeatures.from_table(SCHEMA, table)
    np.testing.assert_array_equal(back.numeric, features.numeric)
    np.testing.assert_array_equal(whole.encode(back).cat, whole.encode(features).cat)
    left, right = SpecFitter(SCHEMA), SpecFitter(SCHEMA)
    left.update(features.take(np.arange(100)))
    right.update(features.take(np.arange(100, 300)))
    left.merge(right)
    np.testing.assert_allclose(left.finish().mean, whole.mean, rtol=1e-5)
    assert left.finish().vocabularies == whole.vocabularies


def test_parts_are_joined_in_order():
    features = raw(30)
    features.vectors["delta"] = np.arange(60, dtype=np.float32).reshape(30, 2)
    strings = pa.array(features.categorical["profile.age"].tolist(), pa.string())
    parts = [
        features.take(np.arange(0, 12)),
        features.take(np.arange(12, 12)),
        features.take(np.arange(12, 30)),
    ]
    parts[2].categorical["profile.age"] = strings[12:]
    joined = RawFeatures.concat(parts)
    np.testing.assert_array_equal(joined.numeric, features.numeric)
    np.testing.assert_array_equal(joined.vectors["delta"], features.vectors["delta"])
    np.testing.assert_array_equal(joined.sequences["recent_use_s"], features.sequences["recent_use_s"])
    assert joined.categorical["profile.age"].equals(strings)
    spec = fitted_spec(features)
    np.testing.assert_array_equal(spec.encode(joined).cat, fitted(features).encode(features).cat)


def test_another_schema_is_refused():
    spec = fitted(raw(50))
    stranger = FeatureSchema(("a", "b", "c"))
    features = RawFeatures(stranger, np.zeros((1, len(stranger.numeric)), np.float32), {}, {})
    with pytest.raises(BundleError, match="do not fit"):
        spec.encode(features)
    with pytest.raises(DataError, match="x_numeric"):
        RawFeatures.from_table(SCHEMA, pa.table({"user_id": [1]}))


def test_nothing_to_fit_is_an_error():
    with pytest.raises(DataError, match="training window"):
        SpecFitter(SCHEMA).finish()


def test_page_columns():
    features = raw(3)
    block = features.per_page("page_entries_14d")
    assert block.shape == (3, 2)
    np.testing.assert_array_equal(block[:, 1], features.column("page_entries_14d.b"))


def test_stats_by_hand():
    stats = TableStats.of(
        2,
        landing=np.array([0, 1, 1]),
        use_s=np.array([10.0, 20.0, 30.0]),
        landing_dwell_s=np.array([1.0, 2.0, 3.0]),
        hour=np.array([0, 0, 12]),
        step=np.array([0, 1, 500]),
    )
    assert stats.mean_use_s == 20
    assert stats.hour_activity[0] == 12 and stats.hour_activity[12] == 12 and stats.hour_activity.mean() == 1
    assert stats.step_activity(4).tolist() == pytest.approx([1, 1, 0, 1])
    double = stats + TableStats.from_dict(stats.to_dict())
    assert double.sessions == 6 and double.landings.tolist() == [2, 4]
