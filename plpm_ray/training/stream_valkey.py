"""A stream in a Valkey or Redis server as a source of sessions, read through a consumer group.

The position kept with the learner's weights is the truth; the group follows it. Where a run starts, the group is set back
to that position: entries up to it that still wait for an acknowledgement get it, later ones are delivered again. Every read
is one transaction that also looks whether anything between the position and what is read was trimmed, deleted, or
taken by another consumer.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import valkey
from valkey.exceptions import ResponseError, ValkeyError

from plpm_ray.core.errors import ConfigError, DataError, StateError
from plpm_ray.core.features import FeatureSchema
from plpm_ray.data.stream import FIELD, pack_rows, unpack_rows
from plpm_ray.training.stream_sources import StreamRows

_START = "0-0"
_CONSUMER = "learner"
_MOST = 1000  # ids of one command
_WAIT_MS = 500


class ValkeyStream:
    """See the module's text.

    Args:
        url: valkey://, redis://, rediss:// or unix:// address; `${NAME}` is replaced by that environment variable.
        stream: key of the stream; its entries hold `plpm_ray.data.stream.pack_rows` under "row".
        group: consumer group; made where it is absent. Nobody else may read in it.
        schema: of the rows.
        follow: wait for further entries.
        timeout_s: seconds to wait for an answer.

    Raises:
        StateError: the server cannot be reached, here and in every method.
        ConfigError: the environment variable in the address is not set.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        group: str,
        schema: FeatureSchema,
        *,
        follow: bool = True,
        timeout_s: float = 5.0,
    ) -> None:
        self.schema, self.follow = schema, follow
        self.identity = identity_of(stream, group)
        self._stream, self._group = stream, group
        self._held: list[tuple[str, bytes]] = []
        self._at = _START  # the last entry delivered to this process
        self._returned: str | None = None  # the position it was asked to go on from next
        self._gap = _START  # the newest deletion that the run began with
        self._client, self.address = connect(url, timeout_s)

    def read(self, after: str | None, n: int) -> StreamRows | None:
        if self._returned is None or after != self._returned:
            self._rewind(after)
        with _reached(self.address):
            while len(self._held) < n and self._deliver(n - len(self._held)):
                pass
            if len(self._held) < n:
                if self.follow:
                    self._client.xread({self._stream: self._at}, count=1, block=_WAIT_MS)
                return None
        taken, self._held = self._held[:n], self._held[n:]
        self._returned = f"{taken[-1][0]}|{self._gap}"
        features, outcome = unpack_rows(self.schema, [row for _, row in taken])
        return StreamRows(features, outcome, self._returned)

    def ended(self) -> bool:
        return not self.follow

    def committed(self, position: str) -> None:
        """Acknowledges every entry up to the position that still waits for it."""
        last = position.partition("|")[0]
        with _reached(self.address):
            while waiting := _pending(self._client, self._stream, self._group, last):
                self._client.xack(self._stream, self._group, *waiting)

    def close(self) -> None:
        self._client.close()

    def _rewind(self, after: str | None) -> None:
        """Makes the group deliver what comes after a position, whoever had it before."""
        last, _, gap = (after or f"{_START}|").partition("|")
        with _reached(self.address):
            try:
                self._client.xgroup_create(self._stream, self._group, id=last, mkstream=after is None)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise _gone(self._stream, self.address, last) from None
                self._client.xgroup_setid(self._stream, self._group, id=last)
            if not gap:
                info: Any = self._client.xinfo_stream(self._stream)
                gap = _text(info.get("max-deleted-entry-id", _START))
        self._held, self._at, self._gap, self._returned = [], last, gap, after

    def _deliver(self, n: int) -> bool:
        """Adds up to `n` entries after the last one; False where there is none."""
        pipe = self._client.pipeline(transaction=True)
        pipe.xinfo_stream(self._stream)
        pipe.xinfo_groups(self._stream)
        pipe.xreadgroup(self._group, _CONSUMER, {self._stream: ">"}, count=n)
        try:
            info, groups, delivered = pipe.execute()
        except ResponseError as error:
            if "no such key" in str(error) or "NOGROUP" in str(error):
                raise _gone(self._stream, self.address, self._at) from None
            raise
        self._check(info, groups)
        entries = _entries(delivered)
        for name, fields in entries:
            if fields is None or FIELD.encode() not in fields:
                raise DataError(
                    f"entry {name} of stream {self._stream!r} has no field {FIELD!r}",
                    hint="other programs write to this stream; give the sessions one of their own",
                )
            self._held.append((name, fields[FIELD.encode()]))
        if entries:
            self._at = entries[-1][0]
        return bool(entries)

    def _check(self, info: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
        """Refuses to read over a gap.

        Raises:
            DataError: entries after the last one read are gone, or went to somebody else.
        """
        at = _number(self._at)
        first = info["first-entry"]
        if _number(info["last-generated-id"]) < at:
            raise DataError(
                f"stream {self._stream!r} at {self.address} ends before the committed position {self._at}",
                hint="it was made anew; start the run anew under another name, or from its last bundle",
            )
        behind = _number(info["last-generated-id"]) > at
        trimmed = behind and at != (0, 0) and (first is None or _number(first[0]) > at)
        newest = _text(info.get("max-deleted-entry-id", _START))
        deleted = newest != self._gap and _number(newest) > at
        if trimmed or deleted:
            raise DataError(
                f"entries of stream {self._stream!r} after {self._at} were trimmed or deleted before they were learned",
                hint="trim only what is acknowledged (XTRIM MINID <last acknowledged>); to accept the loss, start a new "
                "run from the last bundle",
            )
        own = next((g for g in groups if _text(g["name"]) == self._group), None)
        if own is None or _number(own["last-delivered-id"]) != at:
            raise DataError(
                f"another consumer reads group {self._group!r} of stream {self._stream!r}",
                hint="sessions would be learned by either of them only: give every run a group of its own",
            )


def identity_of(stream: str, group: str) -> dict[str, Any]:
    """What a run of this stream is known by; the server may move."""
    return {"kind": "valkey", "stream": stream, "group": group}


def add_rows(client: valkey.Valkey, stream: str, features: Any, outcome: Mapping[str, Any]) -> list[str]:
    """Adds finished sessions to a stream in one round trip; gives the ids of the entries."""
    pipe = client.pipeline(transaction=False)
    for row in pack_rows(features, outcome):
        pipe.xadd(stream, {FIELD: row})
    return [_text(name) for name in pipe.execute()]


def connect(url: str, timeout_s: float = 5.0) -> tuple[valkey.Valkey, str]:
    """A client, and the address without its password.

    Raises:
        StateError: the server cannot be reached.
        ConfigError: an environment variable in the address is not set.
    """
    url = re.sub(r"\$\{(\w+)\}", _variable, url)
    address = re.sub(r"//[^@/]*@", "//", url)
    with _reached(address):
        client = valkey.Valkey.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        client.ping()
    return client, address


def _variable(match: re.Match[str]) -> str:
    if match[1] not in os.environ:
        raise ConfigError(
            f"source.url names ${{{match[1]}}}, which is not set", hint="export it, or write the address"
        )
    return os.environ[match[1]]


def _pending(client: valkey.Valkey, stream: str, group: str, position: str) -> list[bytes]:
    try:
        found: Any = client.xpending_range(stream, group, min="-", max=position, count=_MOST)
    except ResponseError:  # no group yet: nothing was delivered in it
        return []
    return [entry["message_id"] for entry in found]


def _entries(delivered: Any) -> list[tuple[str, Mapping[bytes, bytes] | None]]:
    if not delivered:
        return []
    found = delivered[0][1] if isinstance(delivered, list) else next(iter(delivered.values()))[0]
    return [(_text(name), fields) for name, fields in found]


def _number(name: bytes | str) -> tuple[int, int]:
    """An entry's id as numbers, in the order of the stream."""
    milliseconds, _, sequence = _text(name).partition("-")
    return int(milliseconds), int(sequence or 0)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _gone(stream: str, address: str, after: str) -> DataError:
    return DataError(
        f"stream {stream!r} at {address} is gone; {after} of it was learned last",
        hint="restore the server's data, or start a new run from the last bundle",
    )


@contextlib.contextmanager
def _reached(address: str) -> Iterator[None]:
    try:
        yield
    except (ValkeyError, OSError, ValueError) as error:
        raise StateError(
            f"the stream's server {address} cannot be used: {error}",
            hint="is it running, and source.url right?",
        ) from error
