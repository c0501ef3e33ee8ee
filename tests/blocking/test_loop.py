"""Calls to the loop's thread: what becomes of those that nobody waits for any more, and of those that meet the end."""

from __future__ import annotations

import asyncio
import threading

import pytest
from blocking_store import Threads

from dstorage import ClosedError, UsageError
from dstorage.blocking.loop import Call, LoopThread


@pytest.fixture
def loop():
    thread = LoopThread("the test's loop")
    yield thread
    thread.stop()


class Busy:
    """Keeps the loop from doing anything else until `end`."""

    def __init__(self, loop):
        self._begun, self._ended = threading.Event(), threading.Event()
        loop.post(self._wait)
        assert self._begun.wait(30)

    def _wait(self):
        self._begun.set()
        assert self._ended.wait(30)

    def end(self):
        self._ended.set()


def interrupted(monkeypatch, when):
    """An interrupt strikes whoever waits for an answer, once `when` is set."""

    def wait(call):
        assert when.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(Call, "wait", wait)


def now():
    event = threading.Event()
    event.set()
    return event


def test_a_call_gives_what_the_function_gives_or_raises(loop):
    def fail():
        raise LookupError("here")

    assert loop.call_sync(divmod, 7, 2) == (3, 1)
    assert loop.call_sync(lambda: None) is None
    with pytest.raises(LookupError, match="here"):
        loop.call_sync(fail)
    assert loop.call_sync(threading.get_ident) != threading.get_ident()


def test_a_call_from_the_loop_itself_is_refused(loop):
    with pytest.raises(UsageError, match="for ever"):
        loop.call_sync(lambda: loop.call_sync(print))


def test_a_thread_that_has_the_number_of_the_ended_loop_is_not_taken_for_it(loop, monkeypatch):
    loop.stop()
    monkeypatch.setattr(loop._thread, "_ident", threading.get_ident())
    with pytest.raises(ClosedError):
        loop.call_sync(int)


def test_an_interrupt_before_a_call_is_begun_means_it_never_is(loop, monkeypatch):
    called = []
    busy = Busy(loop)
    with monkeypatch.context() as patch:
        interrupted(patch, now())
        with pytest.raises(KeyboardInterrupt):
            loop.call_sync(called.append, 1)
    busy.end()
    loop.call_sync(called.append, 2)
    assert called == [2]


def test_an_interrupt_before_the_loop_is_woken_leaves_no_other_call_behind(loop, monkeypatch):
    class Interrupted:
        def __init__(self, inner):
            self._inner = inner
            self._struck = False

        def call_soon_threadsafe(self, *call):
            if not self._struck:
                self._struck = True
                raise KeyboardInterrupt
            return self._inner.call_soon_threadsafe(*call)

    called = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "loop", Interrupted(loop.loop))
        with pytest.raises(KeyboardInterrupt):
            loop.call_sync(called.append, 1)
    Threads(lambda: loop.call_sync(called.append, 2)).join(10)
    assert called == [2]


def test_an_interrupt_cancels_a_coroutine_and_the_loop_goes_on(loop, monkeypatch):
    begun, cancelled = threading.Event(), threading.Event()

    async def work():
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with monkeypatch.context() as patch:
        interrupted(patch, begun)
        with pytest.raises(KeyboardInterrupt):
            loop.run(work)
    assert cancelled.wait(30)
    assert loop.call_sync(int) == 0


def test_an_answer_that_comes_after_an_interrupt_is_undone(loop, monkeypatch):
    begun, undone = threading.Event(), []
    calls = []

    def begin(call):
        calls.append(call)
        begun.set()

    with monkeypatch.context() as patch:
        interrupted(patch, begun)
        with pytest.raises(KeyboardInterrupt):
            loop.call(begin, undone.append)
    loop.call_sync(lambda: calls[0].done("late"))
    assert undone == ["late"]


def test_an_error_that_comes_after_an_interrupt_is_nobodys(loop, monkeypatch):
    begun, calls = threading.Event(), []

    def begin(call):
        calls.append(call)
        begun.set()

    with monkeypatch.context() as patch:
        interrupted(patch, begun)
        with pytest.raises(KeyboardInterrupt):
            loop.call(begin)
    loop.call_sync(lambda: calls[0].failed(LookupError()))


def test_calls_in_the_queue_when_the_loop_ends_are_refused(loop):
    busy = Busy(loop)
    refused = []

    def call():
        try:
            loop.call_sync(int)
        except ClosedError as error:
            refused.append(error)

    threads = Threads(call, call, call)
    while len(loop._queue) < 3:
        pass
    loop.stop_soon()
    busy.end()
    threads.join()
    assert len(refused) == 3


@pytest.mark.parametrize("awake", [False, True], ids=["first to call", "behind another"])
def test_a_call_that_missed_the_end_is_refused_by_itself(loop, monkeypatch, awake):
    loop.stop()
    # As if it had looked just before the end.
    monkeypatch.setattr(loop, "_check", lambda: None)
    loop._awake = awake
    with pytest.raises(ClosedError):
        loop.call_sync(int)


def test_coroutines_under_way_when_the_loop_ends_are_refused(loop):
    begun = threading.Event()

    async def work():
        begun.set()
        await asyncio.sleep(60)

    def call():
        with pytest.raises(ClosedError, match="on its way"):
            loop.run(work)

    threads = Threads(call)
    assert begun.wait(30)
    loop.stop()
    threads.join()


def test_coroutines_are_refused_once_calls_were_cancelled_and_all_else_is_answered(loop):
    async def work():
        return 1

    assert loop.run(work) == 1
    loop.call(lambda call: call.run(loop.cancel_calls()))
    with pytest.raises(ClosedError):
        loop.run(work)
    assert loop.call(lambda call: call.run(work())) == 1
    assert loop.call_sync(int) == 0


def test_what_is_posted_is_called_without_waiting(loop):
    called = threading.Event()
    loop.post(called.set)
    assert called.wait(30)
    loop.stop()
    with pytest.raises(ClosedError):
        loop.post(called.set)


def test_what_is_posted_when_the_loop_was_closed_this_moment_is_refused(loop, monkeypatch):
    loop.stop()
    monkeypatch.setattr(loop, "_check", lambda: None)
    with pytest.raises(ClosedError):
        loop.post(print)


def test_a_call_that_another_thread_refused_keeps_no_other_from_its_answer(loop, monkeypatch):
    """A thread that saw the end come empties the queue while the loop does."""
    busy = Busy(loop)

    def first():
        def steal(call):
            loop._refuse_queued()
            call.done(1)

        assert loop.call(steal) == 1

    def second():
        with pytest.raises(ClosedError):
            loop.call_sync(int)

    threads = Threads(first)
    while len(loop._queue) < 1:
        pass
    more = Threads(second)
    while len(loop._queue) < 2:
        pass
    busy.end()
    threads.join(10)
    more.join(10)


def test_many_threads_may_end_it_at_once(loop):
    Threads(*[loop.stop] * 8).join()


@pytest.mark.parametrize("uvloop", [True, False])
def test_an_exit_raised_on_the_loop_does_not_end_it(monkeypatch, uvloop):
    if not uvloop:
        monkeypatch.setattr("dstorage.blocking.loop._new_loop", asyncio.new_event_loop)
    loop = LoopThread("the test's loop")

    async def leave():
        raise SystemExit(3)

    def leave_at_once():
        raise SystemExit(4)

    for _ in range(3):
        with pytest.raises(SystemExit):
            loop.run(leave)
        loop.post(leave_at_once)
        assert loop.call_sync(int) == 0
    loop.stop()


def test_a_loop_that_cannot_be_made_is_an_error_of_the_caller(monkeypatch):
    def fail():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("dstorage.blocking.loop._new_loop", fail)
    before = threading.active_count()
    with pytest.raises(OSError, match="Too many"):
        LoopThread("never")
    assert threading.active_count() == before
