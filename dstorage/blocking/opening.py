"""`dstorage.blocking.open`: starts a loop in a thread and opens the store on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import dstorage.opening
from dstorage.blocking.delivery import Deliver, check_deliver
from dstorage.blocking.loop import LoopThread
from dstorage.blocking.store import Store
from dstorage.controller import Controller
from dstorage.paging.policy import Policy
from dstorage.paging.pressure import PressureMonitor
from dstorage.store import Store as AsyncStore
from dstorage.tier import TierRule
from dstorage.tiering import TieringRules


class OpenOptions(TypedDict, total=False):
    """The keyword arguments of `dstorage.open`, which documents them."""

    budget: int | float | str
    controllers: Sequence[Controller] | None
    policy: str | Callable[[int], Policy] | None
    dirty_share: float
    commit_interval: float | None
    max_handles: int | None
    max_cached: int | None
    read_only: bool
    create: bool
    pressure: PressureMonitor | bool | None
    tiering: TieringRules | bool | None
    tiers: Mapping[str, TierRule] | None


def open(path: str | os.PathLike[str], *, deliver: Deliver | None = None, **options: Unpack[OpenOptions]) -> Store:
    """Open a store for use from any thread; make it if there is none::

        with dstorage.blocking.open("data", budget="512M") as store:
            ...

    Args:
        path: Directory of the store.
        deliver: Where callbacks run: an event loop, an executor, or what takes a function and has it called
            (``queue.put``). By default one thread of the store's own.
        options: As for `dstorage.open`.

    Returns:
        The open store: close it, or use it with ``with``. If neither happens, it is closed at interpreter exit.

    Raises:
        StoreLocked: Another process writes it.
        VersionError: A newer dstorage wrote it.
        NotAStoreError: There is none, and `create` is False or `read_only` is True.
        InvalidArgumentError: An argument is out of range.
    """
    check_deliver(deliver)
    opening = dstorage.opening.open(path, **options)
    loop = LoopThread(f"dstorage {path}")
    tasks: list[asyncio.Task[Any]] = []

    async def opened() -> AsyncStore:
        return await opening

    async def begin() -> AsyncStore:
        task = asyncio.create_task(opened())
        tasks.append(task)
        return await asyncio.shield(task)

    async def take_back() -> None:
        with contextlib.suppress(Exception):
            for task in tasks[:-1]:
                await (await task).close()
        loop.stop_soon()

    try:
        return Store(loop.run(begin), loop, deliver)
    except Exception:
        loop.stop()
        raise
    except BaseException:
        # Interrupted: what was begun comes to its end, and is closed, behind the caller's back.
        loop.post(lambda: tasks.append(loop.loop.create_task(take_back())))
        raise
