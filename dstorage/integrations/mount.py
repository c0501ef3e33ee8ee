"""A store for libraries that have event loops and threads of their own, and the stores that they name by path.

What is asked runs on the store's loop, wherever it is asked. Stores named by path are open once per process, for all who name them,
until the last one closes; at the exit of the program what is still open is committed and closed by `dstorage.blocking`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from dstorage import blocking
from dstorage.errors import ClosedError, InvalidArgumentError, UsageError
from dstorage.integrations.tree import Tree
from dstorage.store import Store

P = ParamSpec("P")
T = TypeVar("T")

Source = Store | blocking.Store | str | os.PathLike[str]
"""A store that somebody else opened and will close, or the directory of one that is to be opened."""
HEARD_S = 60.0
"""So long the loop of a store may be busy before what is asked of it is given up: perhaps it waits for just that."""


class Mount:
    """The tree of a store, for callers on every loop and thread.

    Args:
        source: The store.
        options: Arguments for `dstorage.open`, if `source` is a path.
        overlap: See `Tree.open`.
        join: With ``read_only=True`` among the options: look at the store that others in this process write, if they have opened it.

    Attributes:
        path: Directory of the store, absolute and without symbolic links: however it was named, it is open once.
    """

    def __init__(self, source: Source, options: dict[str, Any], *, overlap: bool = False, join: bool = False) -> None:
        self.path = (source.path if isinstance(source, Store | blocking.Store) else Path(source)).resolve()
        if options and isinstance(source, Store | blocking.Store):
            raise InvalidArgumentError(f"{', '.join(options)}: for stores given by path; {self.path} is open already")
        self.source = source
        self.options = options
        self._overlap = overlap
        self._join = join
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._facade: blocking.Store | None = None
        self._shared: _Shared | None = None
        self._tree: Tree | None = None
        self._forked = False
        _mounts.add(self)

    # -- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> Store:
        """Open the store, if that is not done (blocks).

        Raises:
            StoreLocked, NotAStoreError, VersionError: As `dstorage.open`.
            InvalidArgumentError: It is open in this process with other options.
            ClosedError: The store was opened by the parent of this process.
        """
        with self._lock:
            if self._store is None:
                if isinstance(self.source, Store):
                    if self._forked:
                        raise ClosedError(
                            f"{self.path} was opened by the parent process: a forked child must open its own"
                        )
                    self._store = self.source
                elif isinstance(self.source, blocking.Store):
                    self._facade, self._store = self.source, self.source.inner
                else:
                    self._shared, self._facade = _acquire(self.path, self.options, self._join)
                    self._store = self._facade.inner
            return self._store

    def close(self) -> None:
        """Give the store back (blocks); the last one who does closes it, if it was opened by path. Idempotent."""
        with self._lock:
            shared, self._shared = self._shared, None
            self._store, self._facade, self._tree = None, None, None
            if shared is not None:
                _release(shared)

    # -- asking -------------------------------------------------------------------------------------------------------

    async def run(
        self, function: Callable[Concatenate[Tree, P], Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await ``function(tree, *args, **kwargs)`` on the store's loop; cancelling the caller cancels it.

        Raises:
            ClosedError: The store is closed, or was while this was going on.
            UsageError: Its loop is blocked.
        """
        store = self._store
        if store is None:
            store = await asyncio.to_thread(self.open)
        store.check_open()
        work = self._with_tree(store, function, *args, **kwargs)
        if asyncio.get_running_loop() is store.loop:
            return await work
        future = _ask(work, store)
        given_up = asyncio.get_running_loop().call_later(HEARD_S, _give_up, work, future)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and task is not None and not task.cancelling():
                raise _unanswered(work) from None
            raise
        finally:
            given_up.cancel()

    async def now(self, function: Callable[Concatenate[Tree, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function(tree, *args, **kwargs)`` on the store's loop, for what does not wait."""
        return await self.run(_awaitable(function), *args, **kwargs)

    def call(
        self, function: Callable[Concatenate[Tree, P], Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`run` for callers that do not await: blocks until it is done; an interrupt cancels it.

        Raises:
            UsageError: Called on the store's loop, which would wait for itself; or that is blocked.
            ClosedError: As for `run`.
        """
        store = self.open()
        if self._facade is not None:
            return self._facade.call(lambda: self._with_tree(store, function, *args, **kwargs))
        # The loop is the caller's, in another thread.
        store.check_open()
        self.check_caller()
        work = self._with_tree(store, function, *args, **kwargs)
        future = _ask(work, store)
        try:
            try:
                return future.result(HEARD_S)
            except TimeoutError:
                _give_up(work, future)
                return future.result()
        except CancelledError:
            raise _unanswered(work) from None
        except BaseException:
            future.cancel()
            raise

    def check_caller(self) -> None:
        """Refuse a blocking call on the loop of the store.

        Raises:
            UsageError: It is one.
        """
        store = self.source if isinstance(self.source, Store) else self._store
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        if store is not None and running is store.loop:
            raise UsageError("a blocking call on the store's own loop would wait for itself: use the asynchronous one")

    async def _with_tree(
        self,
        store: Store,
        function: Callable[Concatenate[Tree, P], Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        tree = self._tree
        if tree is None or tree.store is not store:
            # Two who come first at the same time make the same one.
            tree = self._tree = await Tree.open(store, overlap=self._overlap)
        return await function(tree, *args, **kwargs)

    def forked(self) -> None:
        """In a forked child: the store stayed with the parent."""
        self._lock = threading.Lock()
        self._store, self._facade, self._shared, self._tree = None, None, None, None
        self._forked = True


def _ask(work: Coroutine[Any, Any, T], store: Store) -> Future[T]:
    try:
        return asyncio.run_coroutine_threadsafe(work, store.loop)
    except RuntimeError:
        work.close()
        raise ClosedError(f"the loop that {store.path} was opened on has ended: open it again") from None


def _give_up(work: Coroutine[Any, Any, Any], future: Future[Any]) -> None:
    """Cancel what has not even begun."""
    if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
        future.cancel()


def _unanswered(work: Coroutine[Any, Any, Any]) -> ClosedError | UsageError:
    if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
        return UsageError(
            f"the loop of the store was busy for {HEARD_S} s: is it waiting for this call? One that blocks, on a store that was opened "
            "on a loop, is to be made in another thread (asyncio.to_thread)"
        )
    return ClosedError("the store was closed while it was asked: open it again")


def _awaitable(
    function: Callable[Concatenate[Tree, P], T],
) -> Callable[Concatenate[Tree, P], Coroutine[Any, Any, T]]:
    async def call(tree: Tree, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return function(tree, *args, **kwargs)

    return call


class _Shared:
    """A store open for all who name its path.

    Attributes:
        key: Its path, and whether it is read-only.
        options: Arguments for `dstorage.open`.
        users: Who has it, or waits for it.
        lock: Held while it is opened or closed; those who want it meanwhile wait, and nobody else does.
        store: The store, while there are users.
    """

    def __init__(self, key: tuple[Path, bool]) -> None:
        self.key = key
        self.options: dict[str, Any] = {}
        self.users = 0
        self.lock = threading.Lock()
        self.store: blocking.Store | None = None


_shared: dict[tuple[Path, bool], _Shared] = {}
_mounts: weakref.WeakSet[Mount] = weakref.WeakSet()
_lock = threading.Lock()


def _acquire(path: Path, options: dict[str, Any], join: bool) -> tuple[_Shared, blocking.Store]:
    looks = bool(options.get("read_only"))
    with _lock:
        shared = _shared.get((path, False))
        if looks and not (join and shared is not None and shared.users):
            shared = _shared.get((path, True))
        if shared is None:
            shared = _shared[path, looks] = _Shared((path, looks))
        if not shared.users:
            shared.options = options
        elif _said(options) and _said(options) != _said(shared.options):
            raise InvalidArgumentError(
                f"the store {path} is open in this process with {_said(shared.options) or 'no options'}: give the same, or none"
            )
        shared.users += 1
    try:
        with shared.lock:
            if shared.store is None:
                shared.store = blocking.open(path, **shared.options)
            return shared, shared.store
    except BaseException:
        _release(shared)
        raise


def _said(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "read_only"}


def _release(shared: _Shared) -> None:
    with shared.lock:
        with _lock:
            shared.users -= 1
            if shared.users or _shared.get(shared.key) is not shared:
                # Others have it; or it is the parent's, in a forked child.
                return
        store, shared.store = shared.store, None
        if store is not None:
            store.close()


def _forked() -> None:
    """The parent's stores are not the child's."""
    global _lock
    _lock = threading.Lock()
    _shared.clear()
    for mount in list(_mounts):
        mount.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
