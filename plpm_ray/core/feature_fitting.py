"""Fits the feature encoder on the training window, bucket by bucket."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported, so a type checker does not know them

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plpm_ray.core.errors import DataError
from plpm_ray.core.features import FeatureSchema, FeatureSpec, RawFeatures, squash


def fitted_spec(raw: RawFeatures) -> FeatureSpec:
    """The spec fitted on some rows at once.

    Raises:
        DataError: there are none.
    """
    fitter = SpecFitter(raw.schema)
    fitter.update(raw)
    return fitter.finish()


class SpecFitter:
    """Collects what a FeatureSpec needs, bucket by bucket; mergeable, so that buckets are scanned in parallel."""

    def __init__(
        self,
        schema: FeatureSchema,
        *,
        max_bins: int = 16,
        max_vocabulary: int = 1000,
        sample_rows: int = 20_000,
    ):
        self.schema = schema
        self.max_bins = max_bins
        self.max_vocabulary = max_vocabulary
        self.sample_rows = sample_rows
        n = len(schema.numeric)
        self.count = np.zeros(n)
        self.total = np.zeros(n)
        self.square = np.zeros(n)
        self.samples: list[np.ndarray] = []
        self.counters: list[Counter[Any]] = [Counter() for _ in schema.categorical]

    def update(self, raw: RawFeatures) -> None:
        """Adds the rows of one bucket; at most `sample_rows` evenly spaced ones are kept for the quantiles."""
        if len(raw) == 0:
            return
        values = squash(raw.numeric)
        present = ~np.isnan(values)
        clean = np.where(present, values, 0.0).astype(np.float64)
        self.count += present.sum(0)
        self.total += clean.sum(0)
        self.square += (clean * clean).sum(0)
        stride = -(-len(raw) // self.sample_rows)
        self.samples.append(raw.numeric[::stride].copy())
        for counter, name in zip(self.counters, self.schema.categorical, strict=True):
            column = raw.categorical[name]
            counted = pc.value_counts(column if isinstance(column, pa.Array) else pa.array(column))
            for value, times in zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True):
                if value is not None and value != -1:
                    counter[value] += times

    def merge(self, other: SpecFitter) -> None:
        """Adds what another fitter saw."""
        self.count += other.count
        self.total += other.total
        self.square += other.square
        self.samples += other.samples
        for mine, theirs in zip(self.counters, other.counters, strict=True):
            mine.update(theirs)

    def finish(self) -> FeatureSpec:
        """The fitted spec.

        Raises:
            DataError: no row was seen.
        """
        if not self.samples:
            raise DataError(
                "the training window holds no sessions to fit the features on", hint="check the split's days"
            )
        n = np.maximum(self.count, 1)
        mean = self.total / n
        std = np.sqrt(np.maximum(self.square / n - mean**2, 0.0))
        sample = np.concatenate(self.samples)
        quantiles = np.linspace(0, 1, self.max_bins + 1)[1:-1]
        edges = []
        for j in range(sample.shape[1]):
            column = sample[~np.isnan(sample[:, j]), j]
            edges.append(
                np.unique(np.quantile(column, quantiles, method="lower")).astype(np.float32)
                if len(column)
                else np.empty(0, np.float32)
            )
        vocabularies = []
        for counter in self.counters:
            common = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[: self.max_vocabulary]
            vocabularies.append(tuple(sorted(value for value, _ in common)))
        return FeatureSpec(
            self.schema,
            mean.astype(np.float32),
            np.where(std > 1e-6, std, 1.0).astype(np.float32),
            tuple(edges),
            tuple(vocabularies),
        )
