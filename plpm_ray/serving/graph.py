"""The graph layout: each part of a composed navigator in a deployment of its own, asked side by side.

The ingress keeps everything else: state, features, fusion, policy, log. It says which version of a part it wants, and a part
keeps the versions of the last swaps, so that no decision mixes the parts of two bundles. A part that fails or does not
answer in time raises PartError, and the fallback decides.

Letters: B rows, K pages.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from plpm_ray.core.errors import PartError
from plpm_ray.core.features import FeatureSchema, RawFeatures
from plpm_ray.navigators.base import Navigator
from plpm_ray.navigators.bundle import load_bundle
from plpm_ray.serving.batcher import Batcher
from plpm_ray.serving.engine import NavigationPolicy

_KEPT = 3  # versions of a part: the one in service, the next, and the last for decisions under way
_PREPARE_S = 120.0  # to start and load a part
Rows = tuple[np.ndarray, dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray | None]
"""Raw features at entries without their schema, which both ends know."""


class PartSource(NamedTuple):
    """A version of a part, the bundle folder that has it, and the plugins to read it with."""

    version: str
    path: str
    plugins: tuple[str, ...] = ()


class VersionGone(PartError):
    """The folder of a part holds another version by now."""


class Parts(Protocol):
    """How the ingress reaches the parts; everything happens in its event loop."""

    def scores(self, role: str, source: PartSource, rows: Rows) -> Awaitable[np.ndarray]:
        """(B, K) scores of that version."""
        ...

    def prepare(self, role: str, source: PartSource) -> Awaitable[Any]:
        """Returns once all replicas of the part have that version at hand."""
        ...


class PartServer:
    """One replica of a part. Requests that arrive while it computes are scored together. Needs no Ray.

    Args:
        source: folder to start from; whatever version it has.
        plugins: files or modules that register the part's learner.
        num_threads: threads of matrix products.
    """

    def __init__(self, source: str, plugins: tuple[str, ...] = (), num_threads: int = 1) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._loading = asyncio.Lock()
        self._batcher: Batcher[tuple[_Loaded, Rows], np.ndarray] = Batcher(
            _scored, ThreadPoolExecutor(1, "part"), key=lambda row: id(row[0])
        )
        first = _loaded(source, plugins)
        self._loaded[first.version] = first

    async def prepare(self, source: PartSource) -> None:
        """Loads a version beside those at hand.

        Raises:
            VersionGone: the folder holds another one.
            BundleError: it is missing or damaged.
        """
        await self._of(source)

    async def scores(self, source: PartSource, rows: Rows) -> np.ndarray:
        """(B, K) float32 scores of that version, which is loaded if need be."""
        return (await self._batcher([(await self._of(source), rows)]))[0]

    async def _of(self, source: PartSource) -> _Loaded:
        if source.version not in self._loaded:
            async with self._loading:
                if source.version not in self._loaded:
                    made = await asyncio.to_thread(_loaded, source.path, source.plugins)
                    self._loaded[made.version] = made
                    while len(self._loaded) > _KEPT:
                        self._loaded.popitem(last=False)
                    if made.version != source.version:
                        raise VersionGone(
                            f"{source.path} has version {made.version}, not {source.version}",
                            hint="the service takes over the new version by itself",
                        )
        self._loaded.move_to_end(source.version)
        return self._loaded[source.version]


class RemoteParts:
    """Stands in for a composed navigator's `part_scores`. Called in a thread beside the event loop that reaches the parts.

    Args:
        parts: how they are reached.
        sources: role -> version that is wanted.
        loop: the event loop.
        timeout_s: seconds for all parts together.
        on_gone: called when a part says that its version is gone.
    """

    def __init__(
        self,
        parts: Parts,
        sources: Mapping[str, PartSource],
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self._parts = parts
        self._sources = dict(sources)
        self._loop = loop
        self._timeout_s = timeout_s
        self._on_gone = on_gone

    def __call__(self, features: RawFeatures, roles: Sequence[str]) -> dict[str, np.ndarray]:
        """(B, K) scores of the parts asked for.

        Raises:
            PartError: a part failed, or the time is over.
        """
        rows = (
            features.numeric,
            features.categorical,
            features.sequences,
            features.vectors,
            features.days,
        )
        calls = [lambda role=role: self._parts.scores(role, self._sources[role], rows) for role in roles]
        return dict(zip(roles, self._all(roles, calls, self._timeout_s), strict=True))

    def prepare(self) -> None:
        """Returns once all parts have their version at hand.

        Raises:
            PartError: one of them has not.
        """
        roles = list(self._sources)
        calls = [lambda role=role: self._parts.prepare(role, self._sources[role]) for role in roles]
        self._all(roles, calls, _PREPARE_S)

    def _all(
        self, roles: Sequence[str], calls: Sequence[Callable[[], Awaitable[Any]]], timeout_s: float
    ) -> list[Any]:
        if not roles:
            return []
        return asyncio.run_coroutine_threadsafe(self._gathered(roles, calls, timeout_s), self._loop).result()

    async def _gathered(
        self, roles: Sequence[str], calls: Sequence[Callable[[], Awaitable[Any]]], timeout_s: float
    ) -> list[Any]:
        made = asyncio.gather(*(self._one(role, call) for role, call in zip(roles, calls, strict=True)))
        try:
            return await asyncio.wait_for(made, timeout_s)
        except TimeoutError:
            raise PartError(
                f"no answer from all of {', '.join(roles)} within {timeout_s:g} s",
                hint="is a replica being replaced? part_timeout_s and graph.<part>.num_replicas say what is allowed",
            ) from None

    async def _one(self, role: str, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except Exception as error:  # whatever it was, the decision must not fail with it
            if isinstance(error, VersionGone):
                self._on_gone()
            lines = str(getattr(error, "cause", None) or error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise PartError(
                f"part {role!r} failed: {reason}", hint="the log of its replica has more"
            ) from error


def attached(policy: NavigationPolicy, remote: RemoteParts) -> None:
    """Lets a policy ask its navigator's parts where they are, once all are ready.

    Raises:
        PartError: the navigator is not composed, or a part is not ready.
    """
    if not hasattr(policy.navigator, "part_scores"):
        raise PartError(
            f"{policy.navigator.name} is not composed of parts",
            hint="set layout: fused, or serve a composed bundle",
        )
    remote.prepare()
    policy.navigator.part_scores = remote  # type: ignore[attr-defined]


class _Loaded(NamedTuple):
    version: str
    navigator: Navigator
    schema: FeatureSchema


def _loaded(path: str, plugins: tuple[str, ...]) -> _Loaded:
    bundle = load_bundle(Path(path), plugins)
    return _Loaded(bundle.version, bundle.navigator(), bundle.spec.schema)


def _scored(requests: list[tuple[_Loaded, Rows]]) -> list[np.ndarray]:
    """Scores of requests for one version."""
    loaded = requests[0][0]
    scores = loaded.navigator.scores(_joined(loaded.schema, [rows for _, rows in requests]))
    ends = np.cumsum([len(rows[0]) for _, rows in requests])[:-1]
    return np.split(scores, ends)


def _joined(schema: FeatureSchema, parts: list[Rows]) -> RawFeatures:
    if len(parts) == 1:
        return RawFeatures(schema, *parts[0])
    numeric, categorical, sequences, vectors, days = zip(*parts, strict=True)
    named = [
        {name: _concat([part[name] for part in of]) for name in of[0] if all(name in part for part in of)}
        for of in (categorical, sequences, vectors)
    ]
    known = [part for part in days if part is not None]
    joined = np.concatenate(known) if known else None
    return RawFeatures(schema, np.concatenate(numeric), named[0], named[1], named[2], joined)


def _concat(values: list[Any]) -> Any:
    """One column of several; narrow ones get zeros at their end, as days with fewer sessions have."""
    if isinstance(values[0], pa.Array):
        return pa.concat_arrays(values)
    width = max(value.shape[1:] for value in values)
    if any(value.shape[1:] != width for value in values):
        values = [np.pad(value, ((0, 0), (0, width[0] - value.shape[1]))) for value in values]
    return np.concatenate(values)
