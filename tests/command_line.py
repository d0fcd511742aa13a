"""The `plpm` command in this process, as its console script runs it, and a few things that end-to-end tests share."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml

from plpm_ray.cli import main

REPO = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a command ended: exit status, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


def plpm(*arguments: str | Path) -> Ended:
    """Runs a command from the checkout's root; environment, arguments and folder of this process stay as they were."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", ["plpm", *map(str, arguments)]),
        contextlib.chdir(REPO),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())


def plpm_process(*arguments: str | Path, **environment: str) -> Ended:
    """The same in a process of its own, in which nothing was imported or registered before."""
    code = "import sys; sys.argv[0] = 'plpm'; from plpm_ray.cli import main; main()"
    made = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPO,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(made.returncode, made.stdout, made.stderr)


def done(*arguments: str | Path) -> str:
    """Runs a command that must succeed; what it printed."""
    ended = plpm(*arguments)
    assert ended.code == 0, f"{ended.out}\n{ended.err}"
    return ended.out


def write_yaml(path: Path, content: dict[str, Any]) -> Path:
    """A config file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def only(folder: Path, pattern: str) -> Path:
    """The one path in a folder that fits a pattern."""
    found = sorted(folder.glob(pattern))
    assert len(found) == 1, f"{pattern} in {folder}: {found}"
    return found[0]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(url: str, value: Any) -> tuple[int, Any]:
    """Status and JSON answer of a POST."""
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def while_serving(config: Path, ask: Callable[[str], None]) -> str:
    """Runs `plpm serve` here, calls `ask` with its URL from another thread, then interrupts it; what it printed.

    The command waits for SIGINT, which only the main thread receives: so the asking is what moves to a thread.
    """
    port = yaml.safe_load(config.read_text())["port"]
    failed, over = [], threading.Event()

    def serving() -> bool:  # asyncio has a handler too, for as long as it starts things
        return getattr(signal.getsignal(signal.SIGINT), "__module__", "") == "plpm_ray.serving.run"

    def ask_and_stop() -> None:
        try:
            until(lambda: serving() or over.is_set(), 120)
            if serving():
                ask(f"http://127.0.0.1:{port}")
        except BaseException as error:
            failed.append(error)
        finally:
            if serving():
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=ask_and_stop)
    thread.start()
    ended = plpm("serve", config)
    over.set()
    thread.join()
    if failed:
        raise failed[0]
    assert ended.code == 0, ended.err
    return ended.out


def until(condition: Callable[[], Any], seconds: float) -> None:
    """Waits for a condition.

    Raises:
        TimeoutError: it did not come in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s")
        time.sleep(0.05)


def refused(ended: Ended) -> str:
    """The message of an error raised on purpose: status 2, one message with a hint, no traceback, nothing on stdout."""
    assert ended.code == 2, f"{ended.code}\n{ended.out}\n{ended.err}"
    assert ended.err.startswith("error: ") and "\n  hint: " in ended.err
    assert "Traceback" not in ended.err and not ended.out
    return ended.err
