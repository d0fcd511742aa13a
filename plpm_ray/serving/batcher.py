"""Requests that wait at the same moment are answered together: one call of the engine instead of one each.

Nothing is delayed for it. While the engine works on one batch, the requests that arrive form the next one, so a single
client sees the latency of its own request, and many clients share the cost of the engine's fixed part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Row = TypeVar("Row")
Result = TypeVar("Result")


class Batcher(Generic[Row, Result]):
    """Joins the rows of waiting calls.

    Args:
        fn: (n,) rows -> (n,) results.
        executor: where `fn` runs; None runs it in the event loop, right for work that waits for nothing.
        max_rows: most rows in one call of `fn` (a single call with more is not cut).
        key: rows of different keys are never joined.
    """

    def __init__(
        self,
        fn: Callable[[list[Row]], Sequence[Result]],
        executor: ThreadPoolExecutor | None = None,
        max_rows: int = 1024,
        key: Callable[[Row], object] = lambda row: None,
    ) -> None:
        self._fn = fn
        self._executor = executor
        self._max_rows = max_rows
        self._key = key
        self._waiting: list[tuple[list[Row], asyncio.Future[Sequence[Result]]]] = []
        self._running: asyncio.Task[None] | None = None

    def __call__(self, rows: list[Row]) -> Awaitable[Sequence[Result]]:
        """The results of the rows, in order; an error of `fn` is raised to every call that it was joined with."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[Result]] = loop.create_future()
        self._waiting.append((rows, future))
        if self._running is None:
            self._running = loop.create_task(self._run())
        return future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = self._next()
                rows = [row for part, _ in batch for row in part]
                try:
                    if self._executor is None:
                        results = self._fn(rows)
                    else:
                        results = await loop.run_in_executor(self._executor, self._fn, rows)
                except Exception as error:  # handed to the callers
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                start = 0
                for part, future in batch:
                    if not future.done():
                        future.set_result(results[start : start + len(part)])
                    start += len(part)
                if self._executor is None:
                    await asyncio.sleep(0)  # lets answers go out and new requests come in
        finally:
            self._running = None

    def _next(self) -> list[tuple[list[Row], asyncio.Future[Sequence[Result]]]]:
        key, total, end = self._key(self._waiting[0][0][0]), 0, 0
        for rows, _ in self._waiting:
            if end and (total + len(rows) > self._max_rows or self._key(rows[0]) != key):
                break
            total, end = total + len(rows), end + 1
        batch, self._waiting = self._waiting[:end], self._waiting[end:]
        return batch
