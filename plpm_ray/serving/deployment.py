"""The Ray Serve application: one deployment with navigator, policy and online state inside, or, in the graph layout, one in
front of a deployment for each part of the navigator.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plpm_ray.core.config import ConfigSource, nearest, read_config, validate
from plpm_ray.core.errors import ConfigError, StateError
from plpm_ray.core.registry import load_plugins, lookup
from plpm_ray.navigators.bundle import find_bundle
from plpm_ray.serving.config import PartConfig, ServeArgs, SwapConfig
from plpm_ray.serving.engine import NavigationPolicy
from plpm_ray.serving.graph import PartServer, PartSource, RemoteParts, Rows, attached
from plpm_ray.serving.replica import Replica, part_folders, recorded

DEPLOYMENT = "Navigator"
PART = "Part"
"""First word of the names of the parts' deployments: `Part_am`."""


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
    if made.stream is not None and made.store.kind != "valkey":
        raise ConfigError(
            "stream is set with store.kind=memory: sessions are appended to a stream of a Valkey server",
            hint="set store.kind=valkey and store.url, or leave stream out",
        )
    if made.graph and made.layout != "graph":
        raise ConfigError(
            f"graph is set with layout={made.layout}", hint="set layout: graph, or leave graph out"
        )
    return made


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def build_application(args: ServeArgs) -> Any:
    """The Serve application of the given arguments; relative paths are those of this process.

    Raises:
        ConfigError: the graph layout for a bundle that is not composed, or for roles that it does not have.
    """
    args = _absolute(args)
    ingress = _ingress(args)
    return ingress.bind(args, _part_applications(args) if args.layout == "graph" else {})


def _ingress(args: ServeArgs) -> Any:
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

        def __init__(self, args: ServeArgs, parts: Mapping[str, Any]) -> None:
            context = serve.get_replica_context()
            if context.world_size > 1 and args.store.kind == "memory":
                raise StateError(
                    f"{context.world_size} replicas with store.kind=memory: each would know only its own sessions",
                    hint="set store.kind=valkey and store.url, or num_replicas: 1",
                )
            self.parts = HandleParts(parts)
            self.replica = Replica(
                args, context.replica_tag, self.attach if parts else None, in_thread=bool(parts)
            )
            self.loop: asyncio.AbstractEventLoop | None = None

        def attach(self, policy: NavigationPolicy, folders: Mapping[str, Path]) -> None:
            assert self.loop is not None
            versions = {role: part.version for role, part in policy.bundle.parts.items()}
            plugins = {role: tuple(part.plugins) for role, part in policy.bundle.parts.items()}
            unasked = getattr(policy.navigator, "unasked", ())
            sources = {
                role: PartSource(versions[role], str(path), plugins[role])
                for role, path in folders.items()
                if role not in unasked
            }
            timeout_s = self.replica.args.part_timeout_s
            attached(policy, RemoteParts(self.parts, sources, self.loop, timeout_s, self.reload))

        def reload(self) -> None:
            """A part found another version in its folder, as after a restart; the ingress takes it over."""
            threading.Thread(target=self.replica.refresh, args=(True,), daemon=True).start()

        async def reconfigure(self, user_config: dict[str, Any]) -> None:
            self.loop = asyncio.get_running_loop()
            # in a thread, because what is loaded may wait for answers that come through this event loop
            await asyncio.to_thread(self.replica.configure, user_config)

        async def __call__(self, request: Request) -> Response:
            self.loop = asyncio.get_running_loop()
            service = self.replica.service or await asyncio.to_thread(self.replica.start)
            path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
            reply = await service.handle(request.method, path, await request.body(), request.url.query)
            return Response(reply.body, reply.status, media_type=reply.content_type)

        async def check_health(self) -> None:
            if self.replica.service is not None and not self.replica.service.policy.store.remote:
                self.replica.service.policy.store.ping()

        def __del__(self) -> None:
            replica = getattr(self, "replica", None)
            if replica is not None:
                replica.close()

    return Navigator


def _part_applications(args: ServeArgs) -> dict[str, Any]:
    """Role -> deployment of that part, with its arguments bound; none for parts that no decision asks."""
    from ray import serve

    bundle = find_bundle(args.bundle)
    folders = {folder.name: folder for folder in (bundle / "parts").glob("*")}
    for role in (*args.graph, *args.parts):
        if role not in folders:
            raise ConfigError(
                f"bundle {args.bundle} has no part {role!r}",
                hint=nearest(role, folders) or "it is not composed of others",
            )
    if not folders:
        raise ConfigError(
            f"layout is graph, and bundle {args.bundle} is not composed of parts", hint="set layout: fused"
        )
    given = part_folders(args, SwapConfig(), folders)
    made: dict[str, Any] = {}
    load_plugins(args.plugins)
    unasked = lookup("navigator", recorded(bundle)["name"]).unasked
    for role in unasked:
        if role in args.graph:
            raise ConfigError(
                f"graph.{role} is set, and no decision asks that part", hint=f"leave graph.{role} out"
            )
    for role in sorted(folders.keys() - set(unasked)):
        config = args.graph.get(role, PartConfig())
        options = {
            "name": f"{PART}_{role}",
            "num_replicas": config.num_replicas,
            "ray_actor_options": {"num_cpus": config.num_cpus},
            "max_ongoing_requests": config.max_ongoing_requests,
            "logging_config": {"enable_access_log": False},
        }
        path = str(given.get(role, folders[role]))
        made[role] = serve.deployment(PartServer, **options).bind(path, args.plugins, config.num_threads)
    return made


class HandleParts:
    """Parts behind Serve handles, which are used in the event loop alone: in throughput mode they work nowhere else.

    Args:
        handles: role -> handle of the part's deployment.
    """

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = handles

    async def scores(self, role: str, source: PartSource, rows: Rows) -> Any:
        """See `Parts`."""
        return await self._handles[role].scores.remote(source, rows)

    async def prepare(self, role: str, source: PartSource) -> None:
        """See `Parts`."""
        handle = self._handles[role]
        await handle.prepare.remote(source)  # waits for the first replica
        await handle.broadcast("prepare", source).results_async()


def _absolute(args: ServeArgs) -> ServeArgs:
    """Replicas may have another working directory."""

    def whole(path: str) -> str:
        return path if "://" in path else str(Path(path).expanduser().absolute())

    changes: dict[str, Any] = {
        name: whole(value)
        for name in ("bundle", "users", "history", "deltas")
        if (value := getattr(args, name)) is not None
    }
    changes["parts"] = {role: whole(path) for role, path in args.parts.items()}
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
