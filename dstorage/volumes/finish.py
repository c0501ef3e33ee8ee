"""Waiting for what cannot be stopped: a thread goes on when its waiter is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def finish(future: asyncio.Future[T]) -> T:
    """The future's result; if this is cancelled, the future is waited for all the same, then the cancellation goes on."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            # Looked at, so that nobody is told it was not.
            future.exception()
        raise


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread, to its end whatever happens."""
    return await finish(asyncio.ensure_future(asyncio.to_thread(work)))
