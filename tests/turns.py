"""Turns of the event loop, for tests that wait for what is ready to happen."""

from __future__ import annotations

import asyncio


async def settle(rounds: int = 20) -> None:
    """Let everything that is ready to run on the loop run."""
    for _ in range(rounds):
        await asyncio.sleep(0)
