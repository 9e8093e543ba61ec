"""One thread for one object that blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["OwnThread"]

P = ParamSpec("P")
R = TypeVar("R")


class OwnThread:
    """Calls run one after another, in the order they were made, also after one was cancelled."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.wrap_future(self._pool.submit(function, *args, **kwargs))

    async def aclose(self, close: Callable[[], None]) -> None:
        """Run `close` as the last call. Harmless if called twice."""
        try:
            last = self._pool.submit(close)
        except RuntimeError:
            return
        self._pool.shutdown(wait=False)
        await asyncio.wrap_future(last)
