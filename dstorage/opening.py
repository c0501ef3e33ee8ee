"""`dstorage.open`: checks the arguments, takes the lock, opens the catalog and the controllers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from dstorage.arguments import check_number, checked_count
from dstorage.catalog import Catalog
from dstorage.controller import Controller
from dstorage.errors import InvalidArgumentError, NotAStoreError, ReadOnlyError
from dstorage.known import worth_knowing
from dstorage.lease import DebugStore
from dstorage.lock import StoreLock
from dstorage.mount import Mount, mount_of
from dstorage.paging.budget import parse_bytes
from dstorage.paging.policy import Policy, policy_maker
from dstorage.paging.pressure import PressureMonitor
from dstorage.registry import load_plugin
from dstorage.store import Options, Store
from dstorage.tier import TierRule
from dstorage.tiering import TieringRules

T = TypeVar("T")


class Opening:
    """What `open` returns: await it, or use it with ``async with``."""

    def __init__(self, path: Path, options: Options, controllers: Sequence[Controller] | None, create: bool) -> None:
        self._path = path
        self._options = options
        self._controllers = controllers
        self._create = create
        self._store: Store | None = None

    def __await__(self) -> Generator[Any, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._store is not None
        await self._store.close()

    async def _open(self) -> Store:
        path, options = self._path, self._options
        lock: StoreLock | None = None

        def open_files() -> tuple[Catalog, Mount | None]:
            nonlocal lock
            if not options.read_only:
                if not self._create and not path.is_dir():
                    raise NotAStoreError(f"no store at {path}: create it with `dstorage init`, or pass create=True")
                if path.exists() and not path.is_dir():
                    raise NotAStoreError(f"{path} is no directory: name another place for the store")
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = StoreLock(path / "lock")
            with contextlib.ExitStack() as undo:
                data = path / "catalog" / "data.mdb"
                if lock is not None:
                    undo.callback(lock.release)
                    lock.keep(data)
                catalog = Catalog(
                    data.parent,
                    read_only=options.read_only,
                    create=self._create,
                    most_known=worth_knowing(options.budget),
                )
                undo.callback(catalog.close)
                if lock is not None:
                    # One that was made just now.
                    lock.keep(data)
                mount = mount_of(path)
                undo.pop_all()
                return catalog, mount

        catalog, mount = await asyncio.to_thread(open_files)
        debug = asyncio.get_running_loop().get_debug() or sys.flags.dev_mode
        store = (DebugStore if debug else Store)(path, lock, catalog, options)
        try:
            if mount is not None and mount.network:
                warnings.warn(
                    f"the store at {path} is on {mount.what}: its catalog must be open on one machine at a time, also for reading; prefer "
                    "a local disk",
                    RuntimeWarning,
                    stacklevel=2,
                )
            controllers = self._controllers
            if controllers is None and not catalog.controllers():
                if options.read_only:
                    raise NotAStoreError(f"the store at {path} has no controllers yet")
                controllers = [load_plugin("disk").from_settings("disk", {})]
            await store.start(controllers)
        except BaseException:
            await store.close()
            raise
        return store


def open(
    path: str | os.PathLike[str],
    *,
    budget: int | float | str = "25%",
    controllers: Sequence[Controller] | None = None,
    policy: str | Callable[[int], Policy] | None = None,
    dirty_share: float = 0.5,
    commit_interval: float | None = 5.0,
    max_handles: int | None = None,
    max_cached: int | None = None,
    read_only: bool = False,
    create: bool = True,
    pressure: PressureMonitor | bool | None = True,
    tiering: TieringRules | bool | None = True,
    tiers: Mapping[str, TierRule] | None = None,
) -> Opening:
    """Open a store; make it if there is none::

        async with dstorage.open("data", budget="512M") as store:
            ...

    Args:
        path: Directory of the store.
        budget: Bytes of chunk contents to keep in memory: a number, "512M", or a share of RAM as "25%" or 0.25.
        controllers: Controllers to register, in addition to those the store lists already. A new store without any gets
            one disk controller in its own directory.
        policy: Eviction policy: its name, or what makes one, given a capacity in bytes; the default is chosen by measured miss ratios.
        dirty_share: Share of the budget that may be dirty before whoever writes is slowed.
        commit_interval: Seconds between background commits, None for none (commits are then the program's own, and one
            at close). One comes sooner when so many chunks changed that remembering it takes more than a sixteenth of the budget.
        max_handles: Most handles in the table, None for no limit but the budget.
        max_cached: Most unreferenced chunks kept in memory, None for no limit but the budget.
        read_only: Look only: shows the newest commit, and may run beside the process that writes.
        create: Make a store if there is none.
        pressure: True watches the machine's memory and shrinks the effective budget when it runs short; False does not; or a
            monitor of your own.
        tiering: True moves hot chunks to faster controllers and cold ones to slower while the store is idle; False does not;
            or rules of your own.
        tiers: Name of a controller -> how it is to be used as a tier: who is let in, how full it gets, how fast it is written to.

    Returns:
        To be awaited, or used with ``async with``; gives a `Store`.

    Raises:
        StoreLocked: Another process writes it.
        VersionError: A newer dstorage wrote it.
        NotAStoreError: There is none, and `create` is False or `read_only` is True; or something else is at `path`.
        InvalidArgumentError: An argument is of another kind, or out of range.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidArgumentError(f"path={path!r:.100}: give the directory of the store")
    size = parse_bytes(budget)
    check_number("dirty_share", dirty_share, lambda share: 0 < share <= 1, "a share of the budget, 0 < share <= 1")
    if commit_interval is not None:
        check_number("commit_interval", commit_interval, lambda interval: interval > 0, "seconds > 0, or None")
    if controllers is not None:
        controllers = _all_of("controllers", controllers, Controller)
    if tiers is None:
        tiers = {}
    elif not isinstance(tiers, Mapping):
        raise InvalidArgumentError(f"tiers={tiers!r:.100}: give a dict, name of a controller -> TierRule")
    _all_of("tiers", tiers.values(), TierRule)
    if policy is not None and not isinstance(policy, str) and not callable(policy):
        raise InvalidArgumentError(f"policy={policy!r:.100}: give a name, or what makes one, given a capacity in bytes")
    if read_only and controllers:
        raise ReadOnlyError("a store opened with read_only=True takes no new controllers: it opens those it lists")
    options = Options(
        budget=size,
        policy=policy_maker(policy),
        dirty_share=dirty_share,
        commit_interval=commit_interval,
        max_handles=_limit("max_handles", max_handles),
        max_cached=_limit("max_cached", max_cached),
        read_only=read_only,
        pressure=_choice("pressure", pressure, PressureMonitor),
        tiering=_choice("tiering", tiering, TieringRules),
        tiers=dict(tiers),
    )
    return Opening(Path(path), options, controllers, create)


def _limit(name: str, value: int | None) -> int | None:
    return None if value is None else checked_count(name, value, lambda limit: limit >= 1, "at least 1, or None")


def _choice(name: str, value: T | bool | None, kind: type[T]) -> T | None:
    """What `value` stands for: True for the default of its kind, False and None for nothing."""
    if value is True:
        return kind()
    if value is False or value is None:
        return None
    if not isinstance(value, kind):
        raise InvalidArgumentError(f"{name}={value!r:.100}: give True, False, or a {kind.__name__}")
    return value


def _all_of(name: str, values: Iterable[T], kind: type) -> list[T]:
    """`values`, if they are all of one kind."""
    found = list(values) if isinstance(values, Iterable) else None
    if found is None or not all(isinstance(value, kind) for value in found):
        raise InvalidArgumentError(f"{name}={found or values!r:.100}: give objects of {kind.__name__}")
    return found
