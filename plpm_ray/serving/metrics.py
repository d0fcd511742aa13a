"""Counters of one replica in the Prometheus text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_HELP = {
    "plpm_requests_total": ("counter", "Requests answered, by route and status"),
    "plpm_decisions_total": ("counter", "Pages decided, by page"),
    "plpm_fallbacks_total": ("counter", "Decisions taken by the fallback, by reason"),
    "plpm_sessions_total": ("counter", "Finished sessions received, by what became of them"),
    "plpm_errors_total": ("counter", "Requests that failed here (not those that were wrong), by kind"),
    "plpm_swaps_total": ("counter", "Bundles swapped in while serving, by result"),
    "plpm_request_latency_seconds": ("histogram", "Time from reading a request to its answer, by route"),
    "plpm_users": ("gauge", "Users with a state in this replica's memory"),
    "plpm_info": ("gauge", "Versions in service"),
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts and latencies.

    Args:
        replica: value of the `replica` label on every sample.
    """

    def __init__(self, replica: str = "0") -> None:
        self._replica = replica
        self._counts: dict[tuple[str, Labels], float] = defaultdict(float)
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = defaultdict(float)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        self._counts[name, tuple(labels.items())] += by

    def latency(self, route: str, seconds: float) -> None:
        """Adds one request to the latency histogram."""
        buckets = self._buckets.setdefault(route, [0] * (len(LATENCY_BUCKETS_S) + 1))
        buckets[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._sums[route] += seconds

    def value(self, name: str, **labels: str) -> float:
        """A counter's value."""
        return self._counts.get((name, tuple(labels.items())), 0)

    def text(self, gauges: Iterable[tuple[str, dict[str, str], float]] = ()) -> str:
        """Everything in Prometheus text format; `gauges` (name, labels, value) are added as they are now."""
        samples: dict[str, list[str]] = defaultdict(list)
        for (name, labels), value in list(self._counts.items()):
            samples[name].append(self._line(name, labels, value))
        for route, buckets in self._buckets.items():
            samples["plpm_request_latency_seconds"] += self._histogram(route, buckets)
        for name, labels, value in gauges:
            samples[name].append(self._line(name, tuple(labels.items()), value))
        lines: list[str] = []
        for name, rows in samples.items():
            kind, text = _HELP.get(name, ("untyped", name))
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *rows]
        return "\n".join(lines) + "\n"

    def _histogram(self, route: str, buckets: list[int]) -> list[str]:
        name, total, rows = "plpm_request_latency_seconds", 0, []
        for bound, number in zip((*map(str, LATENCY_BUCKETS_S), "+Inf"), buckets, strict=True):
            total += number
            rows.append(self._line(f"{name}_bucket", (("route", route), ("le", bound)), total))
        rows.append(self._line(f"{name}_sum", (("route", route),), self._sums[route]))
        return [*rows, self._line(f"{name}_count", (("route", route),), total)]

    def _line(self, name: str, labels: Labels, value: float) -> str:
        pairs = (*labels, ("replica", self._replica))
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in pairs)
        return f"{name}{{{inside}}} {value:.10g}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
