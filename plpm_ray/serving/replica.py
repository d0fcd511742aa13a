"""One process of the service: store, policy, and the swap of bundles. Needs no Ray, and is tested without.

A replica loads its bundle when it starts. When its configuration changes, or a bundle it watches, the new one is loaded in a
thread beside the one in service and then a reference is flipped, so no request waits or is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from plpm_ray.core.config import ConfigSource, validate
from plpm_ray.core.errors import BundleError, ConfigError, PlpmError
from plpm_ray.core.storage import read_json
from plpm_ray.navigators.bundle import Bundle, find_bundle, load_bundle
from plpm_ray.serving.api import Service
from plpm_ray.serving.config import ServeArgs, SwapConfig
from plpm_ray.serving.decision_log import DecisionLog
from plpm_ray.serving.deltas import load_deltas
from plpm_ray.serving.engine import NavigationPolicy
from plpm_ray.serving.history import load_history, load_known_profiles
from plpm_ray.serving.store import StateStore, open_store

_log = logging.getLogger(__name__)
Attach = Callable[[NavigationPolicy, Mapping[str, Path]], None]
"""`attach(policy, folders)` prepares a policy before it serves; `folders`: role -> bundle folder of each part."""


def swap_config(raw: Any) -> SwapConfig:
    """A deployment's `user_config`.

    Raises:
        ConfigError: unknown or wrong keys.
    """
    if raw is not None and not isinstance(raw, dict):
        raise ConfigError(
            f"user_config is {raw!r}, not a mapping", hint="for example user_config: {bundle: runs/a/bundle}"
        )
    return validate(SwapConfig, ConfigSource(dict(raw or {}), "user_config", {}, {}))


def served_bundle(args: ServeArgs, wanted: SwapConfig) -> tuple[Bundle, dict[str, Path]]:
    """The bundle of a configuration with its overridden parts, and role -> folder of each part.

    Raises:
        BundleError: one is missing or damaged, has no such part, or a part does not fit.
    """
    plugins = args.plugins if wanted.plugins is None else wanted.plugins
    folder = find_bundle(wanted.bundle or args.bundle).resolve()  # a link may move on meanwhile
    bundle = load_bundle(folder, plugins)
    given = {role: path.resolve() for role, path in part_folders(args, wanted, bundle.parts).items()}
    bundle = bundle.with_parts({role: load_bundle(path, plugins) for role, path in given.items()})
    return bundle, {role: given.get(role, folder / "parts" / role) for role in bundle.parts}


def part_folders(args: ServeArgs, wanted: SwapConfig, roles: Collection[str]) -> dict[str, Path]:
    """Role -> bundle folder of the parts that stand in for those inside the composed bundle.

    While folders are watched, one may lack: its learner has published nothing yet, and the bundle's own part serves.

    Args:
        args, wanted: the configuration.
        roles: of the composed bundle.

    Raises:
        BundleError: one is missing, and nobody waits for it.
    """
    found: dict[str, Path] = {}
    for role, path in overridden(args, wanted).items():
        try:
            found[role] = find_bundle(path)
        except BundleError:
            if args.refresh_s is None or role not in roles:
                raise
    return found


def overridden(args: ServeArgs, wanted: SwapConfig) -> dict[str, str]:
    """Role -> bundle of the parts that stand in for those inside the composed bundle."""
    return {**args.parts, **(wanted.parts or {})}


class Replica:
    """What one replica does.

    Args:
        args: the application's arguments.
        name: this replica in metrics and log files.
        attach: see `Attach`; None leaves policies as they are.
        in_thread: decide in a thread of its own, because `attach` lets policies wait for others.
    """

    def __init__(
        self, args: ServeArgs, name: str = "0", attach: Attach | None = None, in_thread: bool = False
    ) -> None:
        self.args = args
        self.name = name
        self.service: Service | None = None
        self._attach = attach
        self._in_thread = in_thread
        self._store: StateStore = open_store(args.store)
        self._starting = threading.Lock()
        self._swapping = threading.Lock()
        self._refreshing = threading.Lock()
        self._wanted = SwapConfig()
        self._closed = threading.Event()

    def configure(self, raw: Any) -> threading.Thread | None:
        """Takes a `user_config`: loads the bundle at once the first time, in the returned thread later."""
        wanted = swap_config(raw)
        if self.service is None:
            self._wanted = wanted
            self.start()
            return None
        if wanted == self._wanted:
            return None
        self._wanted = wanted
        thread = threading.Thread(target=self._swap, args=(wanted,), name="bundle-swap", daemon=True)
        thread.start()
        return thread

    def start(self) -> Service:
        """Loads bundle, profiles, history and deltas; the service that answers from now on."""
        import torch

        with self._starting:
            if self.service is not None:
                return self.service
            args = self.args
            torch.set_num_threads(args.num_threads)
            policy = self._policy(self._wanted)
            policy.warm_up()
            load_known_profiles(policy, args.users, args.history)
            if args.history:
                load_history(policy, args.history)
            if args.deltas:
                load_deltas(self._store, args.deltas, len(policy.pages))
            log = DecisionLog(args.decision_log, self.name, policy.pages.names) if args.decision_log else None
            self.service = Service(
                policy,
                log=log,
                replica=self.name,
                max_batch=args.max_batch,
                in_thread=self._in_thread,
                stream=args.stream,
            )
            if args.refresh_s is not None:
                threading.Thread(
                    target=self._watch, args=(args.refresh_s,), name="bundle-watch", daemon=True
                ).start()
            return self.service

    def refresh(self, everything: bool = False) -> bool:
        """Swaps in what is new in the folders of overridden parts, and of deltas; whether there was something.

        Args:
            everything: also look at the bundle itself.
        """
        service, wanted = self.service, self._wanted
        if service is None or not self._refreshing.acquire(blocking=False):
            return False  # not started, or another call is at it
        try:
            deltas = self._refresh_deltas(service)
            try:
                changed = self._changed(service.policy.bundle, wanted, everything)
            except PlpmError:  # it is being written at this moment, and there is a next time
                return deltas
            if changed:
                self._swap(wanted)
            return changed or deltas
        finally:
            self._refreshing.release()

    def close(self) -> None:
        """Writes log and snapshot."""
        self._closed.set()
        if self.service is not None:
            self.service.close()

    def _policy(self, wanted: SwapConfig) -> NavigationPolicy:
        args = self.args
        bundle, folders = served_bundle(args, wanted)
        policy = NavigationPolicy(
            bundle, wanted.policy or args.policy, self._store, wanted.fallback or args.fallback
        )
        if self._attach is not None:
            self._attach(policy, folders)
        return policy

    def _swap(self, wanted: SwapConfig) -> None:
        service = self.service
        assert service is not None
        with self._swapping:
            if wanted is not self._wanted:
                return  # a newer configuration came while this one waited
            try:
                policy = self._policy(wanted)
                policy.warm_up()
                service.swap(policy)
                service.metrics.count("plpm_swaps_total", result="done")
                service.notes.pop("swap_error", None)
            except PlpmError as error:  # the old bundle goes on serving
                service.metrics.count("plpm_swaps_total", result="failed")
                service.notes["swap_error"] = str(error)

    def _changed(self, bundle: Bundle, wanted: SwapConfig, everything: bool) -> bool:
        given = part_folders(self.args, wanted, bundle.parts)
        watched = {str(path): bundle.parts[role].version for role, path in given.items()}
        if everything:
            folder = find_bundle(wanted.bundle or self.args.bundle)
            watched |= {
                str(folder / "parts" / role): part.version
                for role, part in bundle.parts.items()
                if role not in overridden(self.args, wanted)
            }
        return any(recorded_version(path) != version for path, version in watched.items())

    def _refresh_deltas(self, service: Service) -> bool:
        if self.args.deltas is None or self._store.remote:
            return False
        try:
            new = load_deltas(self._store, self.args.deltas, len(service.policy.pages))
            service.notes.pop("deltas_error", None)
            return new
        except PlpmError as error:  # those of the day before go on serving
            service.notes["deltas_error"] = str(error)
            return False

    def _watch(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            try:
                self.refresh()
            except Exception:
                _log.exception("looking for new bundles failed")


def recorded(path: str | Path) -> dict[str, Any]:
    """What a bundle says of itself, without its weights.

    Raises:
        BundleError: it is no bundle.
        StorageError: it cannot be read.
    """
    return read_json(find_bundle(path) / "bundle.json")


def recorded_version(path: str | Path) -> str:
    """The version that a bundle says it has.

    Raises:
        BundleError: it is no bundle.
        StorageError: it cannot be read.
    """
    version = recorded(path).get("version")
    if not isinstance(version, str):
        raise BundleError(f"{path} records no version", hint="copy it again or train it again")
    return version
