"""The Ray Serve application: one deployment with navigator, policy and online state inside.

A replica loads its bundle when it starts. When `user_config` changes, the new bundle is loaded in a thread beside the one in
service and then a reference is flipped, so no request waits or is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plpm_ray.core.config import ConfigSource, read_config, validate
from plpm_ray.core.errors import ConfigError, PlpmError, StateError
from plpm_ray.navigators.bundle import find_bundle, load_bundle
from plpm_ray.serving.api import Service
from plpm_ray.serving.config import ServeArgs, SwapConfig
from plpm_ray.serving.decision_log import DecisionLog
from plpm_ray.serving.engine import NavigationPolicy
from plpm_ray.serving.history import load_history, load_known_profiles
from plpm_ray.serving.store import StateStore, open_store

DEPLOYMENT = "Navigator"


def read_args(args: Mapping[str, Any] | ServeArgs, name: str = "args") -> ServeArgs:
    """Arguments from `serve run` (strings, dotted names), from a Serve config file (nested), or as they are.

    Raises:
        ConfigError: unknown or wrong arguments, with the nearest right names.
    """
    if isinstance(args, ServeArgs):
        return args
    nested = {key: value for key, value in args.items() if not isinstance(value, str)}
    source = ConfigSource(nested, name, {}, {})
    typed = read_config(None, [f"{key}={value}" for key, value in args.items() if isinstance(value, str)])
    _merge(source.data, typed.data)
    made = validate(ServeArgs, source)
    if made.num_replicas > 1 and made.store.kind == "memory":
        raise ConfigError(
            f"num_replicas is {made.num_replicas} with store.kind=memory: each replica would know only its own sessions",
            hint="set store.kind=valkey and store.url, or num_replicas=1",
        )
    if made.store.kind == "valkey" and not made.store.url:
        raise ConfigError(
            "store.kind is valkey without store.url",
            hint="set store.url=valkey://host:6379/0, or use `plpm serve`",
        )
    return made


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


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


class Replica:
    """One process of the service: store, policy, and the swap of bundles. Needs no Ray, and is tested without.

    Args:
        args: the application's arguments.
        name: this replica in metrics and log files.
    """

    def __init__(self, args: ServeArgs, name: str = "0") -> None:
        self.args = args
        self.name = name
        self.service: Service | None = None
        self._store: StateStore = open_store(args.store)
        self._swapping = threading.Lock()
        self._wanted = SwapConfig()

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
        """Loads bundle, profiles and history; the service that answers from now on."""
        import torch

        torch.set_num_threads(self.args.num_threads)
        policy = self._policy(self._wanted)
        policy.warm_up()
        load_known_profiles(policy, self.args.users, self.args.history)
        if self.args.history:
            load_history(policy, self.args.history)
        log = (
            DecisionLog(self.args.decision_log, self.name, policy.pages.names)
            if self.args.decision_log
            else None
        )
        self.service = Service(policy, log=log, replica=self.name, max_batch=self.args.max_batch)
        return self.service

    def _policy(self, wanted: SwapConfig) -> NavigationPolicy:
        args = self.args
        plugins = args.plugins if wanted.plugins is None else wanted.plugins
        bundle = load_bundle(find_bundle(wanted.bundle or args.bundle), plugins)
        return NavigationPolicy(
            bundle, wanted.policy or args.policy, self._store, wanted.fallback or args.fallback
        )

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


def build_application(args: ServeArgs) -> Any:
    """The Serve application of the given arguments; relative paths are those of this process."""
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(
        name=DEPLOYMENT,
        num_replicas=args.num_replicas,
        ray_actor_options={"num_cpus": args.num_cpus},
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        user_config={},
        logging_config={"enable_access_log": False},
        graceful_shutdown_timeout_s=10,
    )
    class Navigator:
        """Holds the Replica; every request is one call."""

        def __init__(self, args: ServeArgs) -> None:
            context = serve.get_replica_context()
            if context.world_size > 1 and args.store.kind == "memory":
                raise StateError(
                    f"{context.world_size} replicas with store.kind=memory: each would know only its own sessions",
                    hint="set store.kind=valkey and store.url, or num_replicas: 1",
                )
            self.replica = Replica(args, context.replica_tag)

        def reconfigure(self, user_config: dict[str, Any]) -> None:
            self.replica.configure(user_config)

        async def __call__(self, request: Request) -> Response:
            service = self.replica.service or self.replica.start()
            path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
            reply = await service.handle(request.method, path, await request.body(), request.url.query)
            return Response(reply.body, reply.status, media_type=reply.content_type)

        async def check_health(self) -> None:
            if self.replica.service is not None and not self.replica.service.policy.store.remote:
                self.replica.service.policy.store.ping()

        def __del__(self) -> None:
            replica = getattr(self, "replica", None)
            if replica is not None and replica.service is not None:
                replica.service.close()

    return Navigator.bind(_absolute(args))


def _absolute(args: ServeArgs) -> ServeArgs:
    """Replicas may have another working directory."""

    def whole(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    changes: dict[str, Any] = {
        name: whole(value)
        for name in ("bundle", "users", "history")
        if (value := getattr(args, name)) is not None
    }
    changes["plugins"] = tuple(whole(p) if p.endswith(".py") else p for p in args.plugins)
    if args.store.snapshot is not None:
        changes["store"] = args.store.model_copy(update={"snapshot": whole(args.store.snapshot)})
    if args.decision_log is not None:
        changes["decision_log"] = args.decision_log.model_copy(
            update={"folder": whole(args.decision_log.folder)}
        )
    return args.model_copy(update=changes)


def build(args: dict[str, Any]) -> Any:
    """The application builder of `serve run` and of Serve config files; `args` are fields of ServeArgs, nested or dotted.

    Raises:
        ConfigError: unknown or wrong arguments, with the nearest right names.
    """
    return build_application(read_args(args))
