"""`plpm serve`: the service on this machine (or on the cluster of RAY_ADDRESS), until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plpm_ray.core.errors import ConfigError, DataError, PlpmError
from plpm_ray.data.ray_exec import ensure_ray
from plpm_ray.serving.config import ServeArgs, ServeConfig, SwapConfig
from plpm_ray.serving.deployment import build_application, read_args
from plpm_ray.serving.engine import load_policy
from plpm_ray.serving.local_valkey import LocalValkey
from plpm_ray.serving.replica import served_bundle
from plpm_ray.serving.store import open_store

APPLICATION = "plpm"


def serve(config: ServeConfig) -> None:
    """Serves until SIGINT or SIGTERM; what was buffered is written before it returns.

    Raises:
        ConfigError: the arguments contradict one another.
        BundleError: the bundle cannot be loaded.
    """
    stop = threading.Event()
    with running(config) as url:
        print(
            f"serving {config.bundle} at {url} (POST /v1/navigate, POST /v1/sessions, GET /v1/info); stop with Ctrl-C",
            flush=True,
        )
        before = {
            name: signal.signal(name, lambda *_: stop.set()) for name in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            stop.wait()
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


@contextlib.contextmanager
def running(config: ServeConfig) -> Iterator[str]:
    """The service while the block runs; gives its URL. Joins the Ray of this process or RAY_ADDRESS, else starts one."""
    with contextlib.ExitStack() as stack:
        args = _with_store(config, stack)
        _check(args)
        _set_environment(config.haproxy)
        import ray
        from ray import serve as ray_serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            ensure_ray()
        options: dict[str, Any] = {
            "host": config.host,
            "port": config.port,
            "request_timeout_s": config.request_timeout_s,
        }
        shared = bool(ray_serve.status().proxies)
        if not shared:
            stack.callback(ray_serve.shutdown)
        ray_serve.start(
            http_options=options, logging_config={"log_level": "WARNING", "enable_access_log": False}
        )
        try:
            ray_serve.run(build_application(args), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise PlpmError(_reason(ray_serve.status(), error)) from error
        # replicas end in good order, with their logs written; other applications of a shared cluster stay
        stack.callback(ray_serve.delete, APPLICATION)
        url = f"http://{'127.0.0.1' if config.host == '0.0.0.0' else config.host}:{config.port}"
        if shared:
            _check_address(url)
        yield url


def _with_store(config: ServeConfig, stack: contextlib.ExitStack) -> ServeArgs:
    args = config.args
    if args.store.kind == "valkey" and not args.store.url:
        url = stack.enter_context(LocalValkey(folder=config.valkey_folder, durable=args.stream is not None))
        print(f"state{' and stream' if args.stream else ''} at {url}", flush=True)
        args = args.model_copy(update={"store": args.store.model_copy(update={"url": url})})
    return read_args(args.model_dump())


def _check(args: ServeArgs) -> None:
    """Finds out here, in a second, what would fail in every replica after many."""
    store = open_store(args.store) if args.store.kind == "valkey" else None
    bundle, _ = served_bundle(args, SwapConfig())
    policy = load_policy(bundle, args.policy, store=store, fallback=args.fallback)
    policy.warm_up()
    policy.store.close()
    for name in ("users", "history", "deltas"):
        path = getattr(args, name)
        if path is not None and not Path(path).exists():
            raise DataError(f"{name}: {path} does not exist", hint="give a warehouse folder, or Parquet")


def _check_address(url: str) -> None:
    """A Serve that ran before keeps its own host and port, whatever it is asked for.

    Raises:
        ConfigError: the service is not at the address of the config.
    """
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            return
    except OSError as error:
        raise ConfigError(
            f"Ray Serve runs on this cluster already, and not at {url} ({error})",
            hint="set `host` and `port` to those it was started with, or end it with `serve shutdown`",
        ) from None


def _reason(status: Any, error: Exception) -> str:
    """The error that a replica ended with."""
    application = status.applications.get(APPLICATION)
    texts = [d.message for d in application.deployments.values()] if application else []
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    last = max((i for i, line in enumerate(lines) if re.match(r"[\w.]*Error\b", line)), default=None)
    return f"the service does not start: {error if last is None else ' '.join(lines[last : last + 2])}"


def _set_environment(haproxy: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if haproxy:  # Serve reads them when it is imported, in every process of the cluster
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
