"""A bundle made into a policy that decides and observes: the one code under the service, `plpm decide` and simulators.

State of a user -> features -> scores (navigator, or its fallback) -> page and propensity. Everything works on many users at
once; a decision depends on the user's state, the entry, and the policy's seed alone, so it is the same in any batch.

Letters: B entries, M sessions, K pages, U distinct users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plpm_ray.core.config import config_hash
from plpm_ray.core.features import FeatureSchema
from plpm_ray.core.pages import PageCatalogue
from plpm_ray.core.registry import lookup
from plpm_ray.data.contract import IdType
from plpm_ray.data.features.sessions import EntryArrays, SessionArrays
from plpm_ray.data.features.state import features
from plpm_ray.navigators.base import Navigator
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle
from plpm_ray.navigators.page_scores import page_scorer
from plpm_ray.policies.base import Policy, PolicyConfig
from plpm_ray.policies.fallback import FallbackChain
from plpm_ray.serving.config import StreamConfig
from plpm_ray.serving.decisions import Decisions, Versions
from plpm_ray.serving.memory_store import MemoryStore
from plpm_ray.serving.records import Observation, Observed, day_state, state_day, state_layout, tag_of
from plpm_ray.serving.store import Outbox, Profiles, StateStore, Stored, Users
from plpm_ray.serving.tables import Entries, FieldError, read_columns, read_entries, read_sessions, read_users

_CHUNK = 1024  # entries whose states stay in the second-level cache


class NavigationPolicy:
    """Decides landing pages and learns what happened after them. Made by `load_policy`.

    Attributes:
        bundle: what was trained.
        pages, schema: catalogue and feature schema of the bundle.
        user_type: type of the dataset's user ids, None where the bundle does not say.
        versions: what every decision records.
        store, layout: the per-user state, and what its records are.
        chain: the navigator and its fallback.
    """

    def __init__(self, bundle: Bundle, policy: PolicyConfig, store: StateStore, fallback: str) -> None:
        self.bundle = bundle
        self.pages: PageCatalogue = bundle.pages
        self.schema: FeatureSchema = bundle.spec.schema
        self.navigator: Navigator = page_scorer(bundle.navigator())
        cls = lookup("navigator", fallback)
        self.chain = FallbackChain(self.navigator, cls(cls.Config(), bundle.pages, bundle.stats))
        self._policy = Policy(policy)
        self.versions = Versions(bundle.version, f"{policy.kind}-{config_hash(policy, 6)}", fallback)
        self.user_type: IdType | None = (
            bundle.data.get("user_id") if bundle.data.get("user_id") in ("int64", "string") else None
        )
        self.store = store
        self.layout = state_layout(self.schema, self.navigator.state_size)
        store.bind(self.layout)
        self._tag = tag_of(bundle.version)

    def decide(self, entries: pa.Table) -> pa.Table:
        """Chooses a page for every app entry. Sessions count that were observed and ended before the entry.

        Args:
            entries: user_id, entry_time, and optionally utc_offset_min (default 0) and context columns (default missing);
                other columns are ignored.

        Returns:
            A row per entry, in order: user_id, entry_time, page (name), page_index (int16), propensity, scores and
            probabilities (lists of K in page order), fallback (reason, null where the navigator answered), policy (label for
            log rows), navigator_version; of composed navigators also the parts of the scores (lists of K, null where the
            fallback answered), and `<name>_version` of the stored vectors that were read.

        Raises:
            FieldError: a column is missing or does not fit; the message names it.
            StateError: the state store failed.
        """
        read = read_entries(entries, self.schema.context)
        return self.decision_table(read, self.decide_entries(read))

    def decide_entries(self, entries: Entries) -> Decisions:
        """`decide` on arrays."""
        reads = self.navigator.reads
        if len(entries) <= _CHUNK:
            states, known, stored = self.store.read(entries.users, reads)
            return self.decide_states(entries, states, known, stored)
        # read once, so that all rows are decided from one run of the job that wrote them
        stored = self.store.read(entries.users, reads).vectors if reads else {}
        parts = []
        for start in range(0, len(entries), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(entries)))
            part = entries.take(rows)
            theirs = {name: Stored(found.values[rows], found.info) for name, found in stored.items()}
            parts.append(self.decide_states(part, *self.store.load(part.users), theirs))
        return Decisions.joined(parts)

    def decide_states(
        self,
        entries: Entries,
        states: np.ndarray,
        known: np.ndarray,
        stored: Mapping[str, Stored] | None = None,
    ) -> Decisions:
        """Decisions from given states instead of those of the store.

        Args:
            entries: B entries.
            states: (B,) records.
            known: (B,) bool = the user has a history.
            stored: vectors of the B users by name; what is not given, the navigator finds by itself.
        """
        if not len(entries):
            return Decisions.none(len(self.pages))
        at = EntryArrays(entries.entry_ms, entries.offset_min)
        profiles = self.store.profiles(entries.users) if self.schema.profile else None
        asked = self.navigator.reads_days
        raw = features(states, at, self.schema, entries.context, profiles, days=asked)
        raw.vectors = {name: _filled(found) for name, found in (stored or {}).items()}
        size = self.navigator.state_size
        day = day_state(states, state_day(states, at, self._tag), size, self._tag) if size else None
        scored = self.chain.scores(raw, known, day)
        choice = self._policy.draw(scored.scores, entries.users.hash, entries.entry_ms)
        return Decisions(
            choice.page,
            choice.propensity,
            scored.scores,
            choice.probabilities,
            scored.reason,
            scored.details,
            {f"{name}_version": vector_version(found.info) for name, found in (stored or {}).items()},
        )

    def decision_table(self, entries: Entries, decisions: Decisions) -> pa.Table:
        """Decisions as the table that `decide` returns."""
        return decisions.table(entries, self.pages.names, self.versions)

    def observe(self, sessions: pa.Table) -> int:
        """Adds finished sessions to the state of their users, in any order.

        Args:
            sessions: canonical columns: user_id, session_id, entry_time, exit_time, landing_page, pages, dwell_s, and
                optionally utc_offset_min (default 0), video_views, watch_s and context columns. Pages are names, aliases or
                int16 positions.

        Returns:
            How many were new. A session seen before (same session_id) changes nothing; nor does one that ended before the
            oldest of the user's last 12, which can no longer be told from a repeat.

        Raises:
            FieldError: a column is missing or a row breaks a rule of the contract; nothing was added then.
            StateError: the state store failed.
        """
        return self.observe_stored(read_sessions(sessions, self.pages, self.schema.context)).accepted

    def observe_stored(self, sessions: pa.Table) -> Observed:
        """`observe` for sessions in stored form, with the number of repeats and of sessions that came too late."""
        return Observed(*np.bincount(self.observe_status(sessions), minlength=3).tolist())

    def observe_status(self, sessions: pa.Table, stream: StreamConfig | None = None) -> np.ndarray:
        """`observe_stored`, and what became of each session.

        Args:
            sessions: M sessions in stored form.
            stream: where new ones are appended, with the features at their entry (`plpm_ray.data.stream`).

        Returns:
            (M,) positions in the fields of Observed.
        """
        if not sessions.num_rows:
            return np.zeros(0, dtype=np.int8)
        users, of = Users.of(sessions["user_id"]).unique()
        arrays, keep = SessionArrays.from_table(sessions), stream is not None
        observation = Observation(self.navigator, self.schema, self._tag, arrays, of, len(users), keep)
        if self.navigator.state_size or keep:
            observation.remember_inputs(*self.session_inputs(sessions))
        outbox = Outbox(stream.name, stream.maxlen, observation.rows) if stream is not None else None
        self.store.update(users, observation.apply, outbox)
        return observation.status

    def session_inputs(self, sessions: pa.Table) -> tuple[Profiles, Profiles]:
        """Context and profile columns of stored sessions."""
        profiles = self.store.profiles(Users.of(sessions["user_id"])) if self.schema.profile else {}
        return read_columns(sessions, self.schema.context), profiles

    def observation(self, sessions: SessionArrays, of: np.ndarray, n_users: int) -> Observation:
        """M sessions on their way into the records of users 0 to n_users - 1; `of` (M,) says whose they are."""
        return Observation(self.navigator, self.schema, self._tag, sessions, of, n_users)

    def load_users(self, users: pa.Table) -> int:
        """Stores users' profiles (user_id and the profile columns); returns their number.

        Raises:
            FieldError: a column does not fit, or a user occurs twice.
        """
        who = read_users(users)
        distinct, _ = who.unique()
        if len(distinct) != len(who):
            raise FieldError(
                "user_id", f"{len(who) - len(distinct)} rows repeat a user", "one row for each user"
            )
        if self.schema.profile and len(who):
            self.store.save_profiles(who, read_columns(users, self.schema.profile))
        return len(who)

    def stored(self) -> dict[str, str]:
        """`<name>_version` of the stored vectors that the navigator reads and that are published now."""
        infos = {name: self.store.vector_info(name) for name in self.navigator.reads}
        return {f"{name}_version": vector_version(info) for name, info in infos.items() if info is not None}

    def warm_up(self) -> None:
        """Asks the navigator once, about nobody: what cannot work fails now, and the first real decision is not the slow one.

        Raises:
            DataError: the policy cannot draw from this navigator's scores.
            PartError: a part of it does not answer.
        """
        ids = ["nobody"] if self.user_type == "string" else [0]
        nobody = read_entries(
            pa.table({"user_id": ids, "entry_time": [1_600_000_000_000]}), self.schema.context
        )
        self.chain.failure = None
        self.decide_states(nobody, self.layout.blank.copy(), np.ones(1, dtype=bool))
        if self.chain.failure is not None:
            raise self.chain.failure

    def with_bundle(
        self, bundle: Bundle, policy: PolicyConfig | None = None, fallback: str | None = None
    ) -> NavigationPolicy:
        """Another policy over the same state: what a hot swap flips to. This one stays usable.

        Raises:
            BundleError: the bundle is a model that chooses no pages.
            StateError: the bundle has other pages.
        """
        return NavigationPolicy(
            bundle, policy or self._policy.config, self.store, fallback or self.versions.fallback
        )


def vector_version(info: Mapping[str, Any]) -> str:
    """Of stored vectors: version of the model that made them, and their day."""
    return f"{info.get('version')}@{info.get('day')}"


def _filled(found: Stored) -> np.ndarray:
    """(B, W) vectors, those of the population for users without one."""
    population = found.info.get("population")
    if population is None:
        return found.values
    missing = np.isnan(found.values).any(axis=1, keepdims=True)
    return np.where(missing, np.array(population, dtype=np.float32), found.values)


def load_policy(
    bundle: str | Path | Bundle,
    policy: PolicyConfig | None = None,
    *,
    store: StateStore | None = None,
    fallback: str = "heuristic.popularity",
    users: pa.Table | None = None,
    plugins: Sequence[str] = (),
) -> NavigationPolicy:
    """Loads a bundle into a policy.

    Example::

        policy = load_policy("runs/iit-3f2a/bundle", PolicyConfig(kind="epsilon", epsilon=0.05))
        policy.observe(sessions)
        decisions = policy.decide(entries)

    Args:
        bundle: bundle folder, run folder, or a bundle in memory.
        policy: how pages are drawn from scores; greedy by default.
        store: where the state lives; a new MemoryStore by default.
        fallback: heuristic that answers for users without history.
        users: profiles to load, see `NavigationPolicy.load_users`.
        plugins: files or modules that register the bundle's learner, if it is not a built-in one.

    Raises:
        BundleError: the bundle is missing, damaged, does not fit, or is a model that chooses no pages.
        ConfigError: unknown fallback.
        StateError: the store is unreachable or holds another layout.
    """
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(find_bundle(bundle), tuple(plugins))
    made = NavigationPolicy(
        bundle, policy or PolicyConfig(), store if store is not None else MemoryStore(), fallback
    )
    if users is not None:
        made.load_users(users)
    return made
