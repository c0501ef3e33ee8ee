"""An event loop in a thread of its own, and the way to it from every other thread.

A call is put into a queue that the loop empties as a whole: however many threads call, the loop is woken once. The caller
waits on a lock of its own, which an interrupt (Ctrl-C) can break; what was asked for is then cancelled, or undone when it
had come to its end already. No task and no future is made for what the loop can answer at once.

The thread is a daemon, ended by `LoopThread.stop`. In a forked child there is no such thread: every call raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from dstorage.errors import ClosedError, UsageError

T = TypeVar("T")

LOOK_UP_S = 0.5
"""A thread that waits looks for signals so often: one that comes just before the wait does not break it, nor does any on Windows."""

CLOSED = "the store is closed: open it again"


class Call(Generic[T]):
    """One call on its way to the loop and back; `done` or `failed` is called exactly once, on the loop.

    Args:
        begin: Called on the loop with the call itself; answers it now or later.
        undo: Called on the loop with a result that nobody waits for any more.

    Attributes:
        unwanted: Nobody waits any more, says the calling thread; it need not be begun.
    """

    __slots__ = (
        "_abandoned",
        "_answered",
        "_begin",
        "_come",
        "_error",
        "_result",
        "_task",
        "_together",
        "_undo",
        "unwanted",
    )

    def __init__(self, begin: Callable[[Call[T]], object], undo: Callable[[T], object] | None = None) -> None:
        self._begin = begin
        self._undo = undo
        self._answered = threading.Lock()
        self._answered.acquire()
        self._come = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._together: list[threading.Lock] | None = None
        self._task: asyncio.Task[T] | None = None
        self._abandoned = False
        self.unwanted = False

    def start(self, together: list[threading.Lock]) -> None:
        """Begin (on the loop).

        Args:
            together: Takes the lock to release, if the answer comes at once.
        """
        if self.unwanted:
            return
        self._together = together
        self.begin_with(self._begin)
        self._together = None

    def begin_with(self, begin: Callable[[Call[T]], object]) -> None:
        """Call `begin` with this call; what it raises is the answer (on the loop)."""
        try:
            begin(self)
        except BaseException as error:
            self.failed(error)

    def done(self, result: T) -> None:
        """Answer with a result (on the loop)."""
        if self._abandoned:
            if self._undo is not None:
                self._undo(result)
            return
        self._result = result
        self._answer()

    def failed(self, error: BaseException) -> None:
        """Answer with an error (on the loop)."""
        if not self._abandoned:
            self._error = error
            self._answer()

    def _answer(self) -> None:
        self._come = True
        if self._together is None:
            self._answered.release()
        else:
            self._together.append(self._answered)

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Answer with what a coroutine comes to (on the loop).

        Returns:
            The task that runs it.
        """
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._ended)
        return self._task

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.failed(ClosedError("the store was closed while this call was on its way: open it again"))
        elif (error := task.exception()) is not None:
            self.failed(error)
        else:
            self.done(task.result())

    def wait(self) -> None:
        """Wait for the answer (in the calling thread)."""
        while not self._answered.acquire(timeout=LOOK_UP_S):
            pass

    def result(self) -> T:
        """The answer, once `wait` has returned."""
        error = self._error
        if error is not None:
            try:
                raise error
            finally:
                # The frame is in the traceback: without this the two would hold each other.
                self._error = error = None
        return self._result  # type: ignore[return-value]  # T may be None

    def abandon(self) -> None:
        """Nobody waits any more (on the loop): cancel it, or undo what it came to."""
        self._abandoned = True
        if not self._come:
            if self._task is not None:
                self._task.cancel()
        elif self._error is None and self._undo is not None:
            self._undo(self._result)  # type: ignore[arg-type]  # the answer came: this is a T


class LoopThread:
    """The background loop (uvloop where it is installed).

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._queue: deque[Call[Any]] = deque()
        self._awake = False
        self._ending = False
        self._closed: str | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        # Made here, so that what it fails with (no more descriptors) is raised here.
        self.loop = _new_loop()
        self._stop = self.loop.create_future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _threads.add(self)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            loop = runner.get_loop()
            while not self._stop.done():
                # What somebody had called here raised it, and is told; the loop is everybody's.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    loop.run_until_complete(self._stop)
        # A call may have come in after the last turn of the loop.
        self._refuse_queued()

    # -- calling ------------------------------------------------------------------------------------------------------

    def call(self, begin: Callable[[Call[T]], object], undo: Callable[[T], object] | None = None) -> T:
        """Have `begin` called on the loop and wait for the answer it gives to its `Call`.

        Raises:
            ClosedError: The loop has ended, or belongs to the parent of this process.
            UsageError: Called on the loop itself, which would wait for itself for ever.
        """
        self.check_caller()
        call = Call(begin, undo)
        try:
            self._send(call)
            call.wait()
        except ClosedError:
            raise
        except BaseException:
            # KeyboardInterrupt, or what another signal handler raised.
            call.unwanted = True
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._abandon, call)
            raise
        return call.result()

    def call_sync(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that does not wait, on the loop."""

        def begin(call: Call[T]) -> None:
            call.done(function(*args))

        return self.call(begin)

    def finish(self, function: Callable[..., object], *args: Any) -> None:
        """`call_sync` of what must happen to end something: an interrupt breaks the wait, not the call."""
        due = [function]

        def once() -> None:
            if due:
                due.pop()(*args)

        try:
            self.call_sync(once)
        except BaseException:
            # It may have been called or not, and is not called twice.
            with contextlib.suppress(ClosedError):
                self.post(once)
            raise

    def run(
        self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any, undo: Callable[[T], object] | None = None
    ) -> T:
        """Call a coroutine function on the loop and wait for its result; an interrupt cancels it, or undoes it.

        So does `cancel_calls`; what is to come to its end is begun by `Call.run`.
        """

        def begin(call: Call[T]) -> None:
            if self._ending:
                raise ClosedError(CLOSED)
            task = call.run(work(*args))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return self.call(begin, undo)

    def begin(self, begin: Callable[[Call[Any]], object]) -> None:
        """Have `begin` called on the loop in its turn among the calls, without waiting for it."""
        try:
            self._send(Call(begin))
        except BaseException:
            # The interrupt may have come between the raising of the flag and the waking.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._empty_queue)
            raise

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine (on the loop); the end of the store cancels it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def post(self, function: Callable[[], object]) -> None:
        """Have `function` called on the loop soon, without waiting for it."""
        self._check()
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # The loop was closed this moment.
            raise ClosedError(CLOSED) from None

    def _send(self, call: Call[Any]) -> None:
        self._check()
        self._queue.append(call)
        # Whoever finds the flag down wakes the loop; the loop lowers it before it looks, so that no call is left behind.
        if not self._awake:
            self._awake = True
            try:
                self.loop.call_soon_threadsafe(self._empty_queue)
            except RuntimeError:  # The loop was closed this moment.
                self._refuse_queued()
        elif self._closed is not None:
            # Nobody may come to empty the queue any more.
            self._refuse_queued()

    def _empty_queue(self) -> None:
        self._awake = False
        if self._closed is not None:
            self._refuse_queued()
            return
        queue = self._queue
        # Woken together, when there is nothing left to do: a thread woken earlier would take the interpreter from the loop
        # at the next read, only to wait again.
        together: list[threading.Lock] = []
        for _ in range(len(queue)):
            try:
                call = queue.popleft()
            except IndexError:  # Refused by a thread that saw the end come.
                break
            call.start(together)
        for answered in together:
            answered.release()

    def _abandon(self, call: Call[Any]) -> None:
        call.abandon()
        # The interrupt may have come between the raising of the flag and the waking.
        self._empty_queue()

    def _refuse_queued(self) -> None:
        while True:
            try:
                call = self._queue.popleft()
            except IndexError:
                return
            call.failed(ClosedError(CLOSED))

    def _check(self) -> None:
        if self._closed is not None:
            raise ClosedError(self._closed)

    def check_caller(self) -> None:
        """Raise `UsageError` on the loop itself."""
        # When it has ended, another thread may have its number.
        if threading.get_ident() == self._thread.ident and self._thread.is_alive():
            raise UsageError(
                "a blocking call on the store's own loop would wait for itself for ever: use `store.inner` and await there"
            )

    async def cancel_calls(self) -> None:
        """End the calls of `run` that are under way, and take no more: those who wait get a `ClosedError`."""
        self._ending = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- ending -------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the loop and its thread; calls under way get a ClosedError. Idempotent."""
        self.stop_soon()
        self._thread.join()

    def stop_soon(self) -> None:
        """`stop` without waiting for the end, also for the loop itself."""
        if self._closed is None:
            self._closed = CLOSED
            with contextlib.suppress(RuntimeError):  # Another thread was quicker.
                self.loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self._stop.done():
            self._stop.set_result(None)

    def forked(self) -> None:
        """In a forked child: the thread stayed with the parent."""
        if self._closed is None:
            self._closed = (
                f"this store was opened by the parent process {os.getppid()}; a forked child must open its own "
                "(the parent goes on using this one)"
            )


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


_threads: weakref.WeakSet[LoopThread] = weakref.WeakSet()


def _after_fork() -> None:
    for thread in list(_threads):
        thread.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
