"""The blocking store in one process: what it gives, from many threads, and how it ends."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time

import numpy as np
import pytest
from blocking_store import Threads, opening
from memory_controller import MemoryController

import dstorage
import dstorage.blocking
from dstorage import (
    ClosedError,
    Deleted,
    InvalidArgumentError,
    Lost,
    MemoryUnavailable,
    NotResolvedError,
    OverReleaseError,
    Status,
    StoreLocked,
    TemporarilyUnavailable,
    UsageError,
)
from dstorage.blocking.loop import Call

KIB = 1024


@pytest.fixture
def memory():
    return MemoryController()


@pytest.fixture
def store(tmp_path, memory):
    """A blocking store of 1 MiB budget over `memory`, committing only when told."""
    with opening(tmp_path / "store", memory) as opened:
        yield opened


def evict(store, handle):
    """Make `handle`'s chunk leave memory."""
    store.commit()
    budget = store.stats().budget
    store.set_budget(1)
    store.set_budget(budget)
    assert store.peek(handle.id) is None


def no_trips(store, monkeypatch):
    """From now on a trip to the loop fails."""

    def fail(*_):
        raise AssertionError("a trip to the loop")

    monkeypatch.setattr(store.loop, "call", fail)


# -- chunks ---------------------------------------------------------------------------------------------------------------


def test_a_chunk_is_made_read_changed_and_deleted(store):
    handle = store.create(b"first")
    assert bytes(handle.get()) == b"first"
    with handle.edit() as buffer:
        buffer[0] = ord("F")
    assert bytes(store.get(handle.id)) == b"First"
    handle.replace(b"another length")
    assert (bytes(handle.get()), handle.size, handle.dirty) == (b"another length", 14, True)
    with handle as data:
        assert data.readonly
    handle.delete()
    with pytest.raises(Lost):
        handle.get()


def test_a_deleted_chunk_is_known_as_such_while_it_is_held(store):
    handle = store.create(b"bytes").acquire()
    handle.delete()
    assert handle.status is Status.DELETED
    with pytest.raises(Deleted):
        handle.get()
    handle.release()


def test_a_handle_is_its_id_and_needs_no_release(store):
    handle = store.create(b"bytes")
    assert store.handle(handle.id) == handle
    assert len({handle, store.handle(handle.id)}) == 1
    assert handle != store.handle(handle.id + 1)
    assert store.info(handle.id).refs == 0


def test_an_exception_in_an_edit_discards_it(store):
    handle = store.create(b"before")

    def fail():
        with handle.edit() as buffer:
            buffer[:] = b"after!"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert bytes(handle.get()) == b"before"
    assert store.stats().used == 6


def test_an_edit_is_used_once(store):
    edit = store.create(b"x").edit()
    with edit:
        pass
    with pytest.raises(UsageError, match="edit is over"):
        edit.__exit__(None, None, None)


def test_discard_gives_zeros_to_write_on(store):
    handle = store.create(b"before")
    with handle.edit(discard=True) as buffer:
        assert bytes(buffer) == bytes(6)
        buffer[:] = b"after!"
    assert bytes(handle.get()) == b"after!"


def test_a_view_stays_what_it_is_and_counts_as_stray(store):
    handle = store.create(b"old" * 1000)
    view = handle.get()
    array = np.frombuffer(view, np.uint8)
    handle.replace(b"new" * 1000)
    del view
    assert bytes(array[:3]) == b"old"
    assert store.stats().stray == 3000
    del array
    assert store.stats().stray == 0


@pytest.mark.parametrize("id", [0, -1, 2**64, "1", 1.5])
def test_an_impossible_id_is_refused(store, id):
    with pytest.raises(InvalidArgumentError, match="ids are integers"):
        store.get(id)


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), "1"])
def test_an_impossible_wait_is_refused_wherever_the_chunk_is(store, wait):
    handle = store.create(b"bytes")
    for _ in range(2):
        for call in (handle.get, handle.resolve, lambda wait: handle.edit(wait=wait).__enter__()):
            with pytest.raises(InvalidArgumentError, match="wait="):
                call(wait=wait)
        evict(store, handle)


def test_an_unknown_id_is_lost(store):
    handle = store.handle(99)
    with pytest.raises(Lost, match="99"):
        handle.get()
    with pytest.raises(Lost, match="99"):
        _ = handle.size


def test_data_is_only_what_is_in_memory(store):
    handle = store.create(b"bytes")
    assert bytes(handle.data) == b"bytes"
    evict(store, handle)
    assert handle.status is Status.NOT_RESOLVED
    with pytest.raises(NotResolvedError, match="use get"):
        _ = handle.data
    assert bytes(handle.get()) == b"bytes"
    assert handle.status is Status.RESOLVED


def test_a_hit_needs_no_trip_to_the_loop(store, monkeypatch):
    handle = store.create(b"bytes")
    with monkeypatch.context() as patched:
        no_trips(store, patched)
        assert bytes(store.get(handle.id)) == b"bytes"
        assert bytes(store.handle(handle.id).get()) == b"bytes"
        with handle as data:
            assert bytes(data) == b"bytes"


def test_what_is_acquired_stays_in_memory(store):
    handle = store.create(b"x" * 1000).acquire()
    store.commit()
    store.set_budget(1)
    assert handle.status is Status.RESOLVED
    handle.release()
    assert handle.status is Status.NOT_RESOLVED
    with pytest.raises(OverReleaseError):
        handle.release()


def test_waiting_for_an_unavailable_chunk_ends_when_it_is_back(store, memory):
    handle = store.create(b"bytes")
    evict(store, handle)
    memory.unavailable = True
    with pytest.raises(TemporarilyUnavailable):
        handle.get(wait=0.01)
    assert isinstance(handle.error, TemporarilyUnavailable)
    got = []
    waiting = Threads(lambda: got.append(bytes(handle.get(wait=30))))
    store.call(_set_unavailable, memory, False)
    waiting.join()
    assert got == [b"bytes"]


def test_who_waits_for_an_unavailable_chunk_is_not_forgotten_when_handles_are_short(tmp_path, memory):
    with opening(tmp_path / "store", memory, max_handles=4) as store:
        handles = [store.create(b"bytes") for _ in range(4)]
        evict(store, handles[0])
        store.call(_set_unavailable, memory, True)
        told, got = Told(), []
        handles[0].resolve(told, wait=60)
        waiting = Threads(lambda: got.append(bytes(handles[1].get(wait=60))))
        while store.call(_count_patients, store) < 2:
            pass
        for id in range(1, 20):
            with pytest.raises((TemporarilyUnavailable, Lost)):
                store.get(id)
        store.call(_set_unavailable, memory, False)
        waiting.join()
        told.wait()
        assert got == [b"bytes"]
        assert told.calls[0][:3] == (handles[0].id, Status.RESOLVED, b"bytes")


async def _count_patients(store):
    return sum(len(outage.patients) for outage in store.inner._outages._outages.values())


async def _set_unavailable(controller, unavailable):
    controller.set_unavailable(unavailable)


def test_flush_writes_without_a_commit(store, memory):
    handle = store.create(b"bytes")
    assert handle.dirty
    handle.flush()
    assert not handle.dirty
    assert len(memory.writes) == 1


def test_memory_held_by_views_is_named_as_unavailable(store):
    view = store.create(b"x" * 900 * KIB).acquire()
    store.commit()
    with pytest.raises(MemoryUnavailable):
        store.create(b"y" * 200 * KIB)
    view.release()
    assert store.create(b"y" * 200 * KIB).size == 200 * KIB


def test_views_that_hold_all_memory_are_named(store):
    handles = [store.create(b"x" * 300 * KIB, wait=30) for _ in range(3)]
    views = [handle.get() for handle in handles]
    with pytest.raises(
        MemoryUnavailable, match=rf"largest stray views are on .*{handles[1].id} \(307200 B\).*Release"
    ) as told:
        store.create(b"y" * 400 * KIB)
    assert all(f"{handle.id} (307200 B)" in str(told.value) for handle in handles)
    views.clear()
    assert store.create(b"y" * 400 * KIB).size == 400 * KIB


# -- many at once ---------------------------------------------------------------------------------------------------------


def test_many_are_resolved_together_and_one_by_one(store):
    handles = [store.create(bytes([n]) * 100) for n in range(20)]
    ids = [handle.id for handle in handles]
    evict(store, handles[0])
    assert [data[0] for data in store.resolve_all(ids)] == list(range(20))
    assert {handle.id for handle in store.resolve_each(ids)} == set(ids)
    assert len(store.wait(ids, 5, timeout=30)) == 5
    store.prefetch(ids)
    assert store.info(ids[0]).refs == 0


def test_ids_may_come_from_the_store_itself(store):
    ids = [store.create(b"x").id for _ in range(3)]
    store.commit()
    assert len(store.wait(store.ids())) == 3
    assert len(store.resolve_all(store.ids())) == 3
    assert {handle.id for handle in store.resolve_each(store.ids())} == set(ids)
    store.prefetch(store.ids())
    assert store.migrate(store.ids(), to="memory") == 0


def test_breaking_off_a_resolve_each_gives_everything_back(store):
    ids = [store.create(b"x" * 100).id for _ in range(20)]
    for handle in store.resolve_each(ids):
        assert handle.id in ids
        break
    store.commit()
    assert all(store.info(id).refs == 0 for id in ids)


def test_call_runs_many_steps_in_one_trip(store):
    async def double(id):
        async with store.inner.handle(id) as data:
            made = await store.inner.create(bytes(data) * 2)
        with made:
            return made.id

    assert bytes(store.get(store.call(double, store.create(b"ab").id))) == b"abab"


def test_what_call_raises_comes_to_the_caller(store):
    async def fail():
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        store.call(fail)


def test_a_blocking_call_on_the_stores_own_loop_is_refused(store):
    async def wrong():
        store.commit()

    async def wrong_end():
        store.close()

    with pytest.raises(UsageError, match=r"store\.inner"):
        store.call(wrong)
    with pytest.raises(UsageError, match=r"store\.inner"):
        store.call(wrong_end)


# -- names, namespaces, controllers, events -----------------------------------------------------------------------------------


def test_names_last_and_are_listed_in_order(tmp_path):
    with opening(tmp_path / "store") as store:
        for name in (b"b", b"a", b"other"):
            store.set_name(name, store.create(name).id)
        store.set_name(b"b", None)
    with opening(tmp_path / "store") as store:
        assert [name for name, _ in store.names()] == [b"a", b"other"]
        assert [name for name, _ in store.names(b"o")] == [b"other"]
        assert [name for name, _ in store.names(start=b"b")] == [b"other"]
        assert bytes(store.get(store.get_name(b"a"))) == b"a"
        assert store.get_name(b"b") is None
        with pytest.raises(InvalidArgumentError):
            store.set_name(b"", 1)


def test_namespaces_group_chunks(store):
    space = store.namespace("tiles", share=0.25)
    handle = space.create(b"tile")
    other = store.create(b"other")
    store.commit()
    assert list(space.ids()) == [handle.id]
    assert handle.id in space
    assert other.id not in space
    assert (space.name, space.share, space.used) == ("tiles", 0.25, 4)
    assert [found.name for found in store.namespaces()] == ["tiles"]
    with pytest.raises(InvalidArgumentError, match="share"):
        store.namespace("greedy", share=0.9)


def test_more_ids_than_one_trip_brings(store):
    ids = [store.create(b"").id for _ in range(1500)]
    store.commit()
    assert list(store.ids()) == ids


def test_controllers_are_listed_loaded_and_unloaded(store, memory):
    assert [(info.name, info.kind) for info in store.controllers()] == [("memory", "memory")]
    handle = store.create(b"bytes")
    evict(store, handle)
    store.unload("memory")
    with pytest.raises(TemporarilyUnavailable):
        handle.get()
    store.register(type(memory)("memory", medium=memory.medium))
    assert bytes(handle.get(wait=30)) == b"bytes"
    store.register(type(memory)("second"))
    assert store.migrate([handle.id], to="second") == 1
    assert store.info(handle.id).controller == "second"
    assert store.record(handle.id).controller == 1
    assert store.compact() == 0
    store.register(type(memory)("third"))
    looked_at = []
    assert store.drain("second", advance=looked_at.append) == 1
    assert sum(looked_at) >= 1
    assert store.info(handle.id).controller in ("memory", "third")
    store.cancel_drain("second")
    assert store.make_copies() == 0
    store.declare_removed("second")
    assert store.controllers()[1].status.value == "removed"


def test_events_come_as_they_happen_and_end_with_the_store(tmp_path, memory):
    with opening(tmp_path / "store", memory) as store, store.events() as events:
        handle = store.create(b"bytes")
        assert next(events) == dstorage.Event("created", handle.id)
        rest = []
        reading = Threads(lambda: rest.extend(event.kind for event in events))
        store.commit()
    reading.join()
    assert "commit" in rest
    with pytest.raises(StopIteration):
        next(events)


def test_who_waits_for_events_sees_what_happens_at_the_end(tmp_path, memory):
    store = opening(tmp_path / "store", memory)
    events = store.events()
    store.create(b"bytes")
    kinds = []
    reading = Threads(lambda: kinds.extend(event.kind for event in events))
    while not (kinds and store.call(_is_waited_for, events)):
        pass
    store.close()
    reading.join()
    assert kinds == ["created", "written", "commit"]


async def _is_waited_for(events):
    return bool(events._inner._changed._waiters)


def test_a_reader_that_breaks_off_costs_nothing_more(store):
    events = store.events()
    store.create(b"x")
    for event in events:
        assert event.kind == "created"
        break
    assert len(store.inner._events.streams) == 1
    del events
    assert not store.inner._events.streams


def test_events_that_have_arrived_need_no_trip_to_the_loop(store, monkeypatch):
    events = store.events()
    handle = store.create(b"bytes")
    handle.delete()
    with monkeypatch.context() as patched:
        no_trips(store, patched)
        assert [next(events).kind for _ in range(2)] == ["created", "deleted"]


def test_a_closed_stream_ends_and_a_slow_reader_loses_the_oldest(store):
    events = store.events(limit=2)
    handles = [store.create(b"x") for _ in range(3)]
    assert events.dropped == 1
    assert next(events).id == handles[1].id
    events.close()
    assert [event.id for event in events] == [handles[2].id]


# -- callbacks ------------------------------------------------------------------------------------------------------------


class Told:
    """Callbacks, with the thread they ran in."""

    def __init__(self):
        self.calls = []
        self._come = threading.Semaphore(0)

    def __call__(self, handle):
        data = bytes(handle.data) if handle.status is Status.RESOLVED else None
        self.calls.append((handle.id, handle.status, data, threading.current_thread()))
        self._come.release()

    def wait(self, count=1):
        for _ in range(count):
            assert self._come.acquire(timeout=30)


def test_a_callback_runs_in_a_thread_of_the_stores_own_by_default(store):
    told = Told()
    handle = store.create(b"bytes")
    for _ in range(10):
        handle.resolve(told)
    told.wait(10)
    threads = {thread for *_, thread in told.calls}
    assert {call[:3] for call in told.calls} == {(handle.id, Status.RESOLVED, b"bytes")}
    assert len(threads) == 1
    assert threads.pop() not in (threading.current_thread(), store.loop._thread)


def test_a_callback_may_use_the_store(store):
    told = Told()
    first, second = store.create(b"1"), store.create(b"2")
    evict(store, first)
    first.resolve(lambda handle: told(store.handle(store.create(handle.get()).id)))
    second.resolve(told)
    told.wait(2)
    assert sorted(data for _, _, data, _ in told.calls) == [b"1", b"2"]


@pytest.mark.parametrize("how", ["lost", "deleted", "unavailable"])
def test_a_callback_is_told_what_went_wrong(store, memory, how):
    handle = store.create(b"bytes")
    evict(store, handle)
    if how == "lost":
        handle = store.handle(99)
    elif how == "deleted":
        handle.acquire().delete()
    else:
        memory.unavailable = True
    told, errors = Told(), []

    def callback(handle):
        errors.append(handle.error)
        with pytest.raises(NotResolvedError):
            _ = handle.data
        told(handle)

    handle.resolve(callback)
    told.wait()
    status, error = {
        "lost": (Status.LOST, Lost),
        "deleted": (Status.DELETED, type(None)),
        "unavailable": (Status.TEMPORARILY_UNAVAILABLE, TemporarilyUnavailable),
    }[how]
    assert told.calls[0][1] is status
    assert isinstance(errors[0], error)
    if how == "deleted":
        handle.release()


def test_while_a_callback_runs_it_has_the_bytes_whatever_becomes_of_the_chunk(store):
    calls, told = queue.SimpleQueue(), Told()
    handle = store.create(b"before")
    evict(store, handle)
    handle.resolve(told, deliver=calls.put)
    call = calls.get(timeout=30)
    handle.delete()
    call()
    assert told.calls[0][:3] == (handle.id, Status.RESOLVED, b"before")


async def test_callbacks_come_on_a_chosen_event_loop(store):
    told = Told()
    done = asyncio.Event()
    handle = store.create(b"bytes")
    handle.resolve(lambda handle: (told(handle), done.set()), deliver=asyncio.get_running_loop())
    await asyncio.wait_for(done.wait(), 60)
    assert told.calls[0][3] is threading.current_thread()


def test_callbacks_come_in_an_executor_or_through_a_function_chosen_for_the_store(tmp_path, memory):
    from concurrent.futures import ThreadPoolExecutor

    told = Told()
    with ThreadPoolExecutor(1, "mine") as executor, opening(tmp_path / "store", memory, deliver=executor) as store:
        store.create(b"bytes").resolve(told)
        told.wait()
    assert told.calls[0][3].name.startswith("mine")
    waiting = queue.SimpleQueue()
    with opening(tmp_path / "store", memory, deliver=waiting.put) as store:
        handle = store.handle(1)
        assert bytes(handle.get()) == b"bytes"
        handle.resolve(told)
        waiting.get(timeout=30)()
    assert told.calls[1][3] is threading.current_thread()


def test_what_a_callback_raises_is_reported_and_disturbs_no_other(store):
    reported, told = [], Told()
    come = threading.Event()

    def report(loop, context):
        reported.append(context["exception"])
        come.set()

    store.loop.loop.set_exception_handler(report)

    def fail(handle):
        raise LookupError("in a callback")

    handle = store.create(b"bytes")
    handle.resolve(fail)
    handle.resolve(told)
    told.wait()
    assert come.wait(30)
    assert [type(error) for error in reported] == [LookupError]


@pytest.mark.parametrize("refusal", [RuntimeError("queue is full"), SystemExit(3)])
def test_a_place_that_refuses_a_callback_is_reported(store, refusal):
    come = threading.Event()
    store.loop.loop.set_exception_handler(lambda loop, context: come.set())

    def refuse(function):
        raise refusal

    store.create(b"bytes").resolve(Told(), deliver=refuse)
    assert come.wait(30)
    assert bytes(store.create(b"others").get()) == b"others"


def test_a_place_that_is_none_is_refused_at_once(tmp_path, store):
    import queue

    for deliver in (queue.Queue(), 5, "thread"):
        with pytest.raises(InvalidArgumentError, match="deliver="):
            store.create(b"bytes").resolve(Told(), deliver=deliver)
        with pytest.raises(InvalidArgumentError, match="deliver="):
            opening(tmp_path / "other", deliver=deliver)
    assert not (tmp_path / "other").exists()


def test_callbacks_that_wait_are_called_when_the_store_is_closed(tmp_path, memory):
    told = Told()
    with opening(tmp_path / "store", memory) as store:
        handle = store.create(b"bytes")
        evict(store, handle)

        async def hold():
            memory.gate = asyncio.Event()

        store.call(hold)
        handle.resolve(told)
        assert not told.calls
    assert [call[1] for call in told.calls] == [Status.TEMPORARILY_UNAVAILABLE]


# -- many threads ---------------------------------------------------------------------------------------------------------


def test_many_threads_see_whole_contents_only(store):
    """Readers, writers and evictions at once: each chunk is always one byte repeated, of one of the lengths written."""
    ids = [store.create(bytes([n]) * 5000).id for n in range(16)]
    stop = threading.Event()

    def read(seed):
        for round in range(1500):
            data = bytes(store.get(ids[(round * 7 + seed) % 16], wait=30))
            assert data == data[:1] * len(data)
            assert len(data) in (5000, 9000)

    def write(seed):
        for round in range(60):
            handle = store.handle(ids[(round * 5 + seed) % 16])
            if round % 2:
                handle.replace(bytes([round]) * (9000 if seed else 5000), wait=30)
            else:
                with handle.edit(wait=30) as buffer:
                    buffer[:] = bytes([round]) * len(buffer)

    def squeeze():
        while not stop.is_set():
            store.set_budget(30_000)
            store.set_budget(200_000)

    squeezing = Threads(squeeze)
    working = Threads(*[lambda seed=seed: read(seed) for seed in range(6)], lambda: write(0), lambda: write(1))
    try:
        working.join()
    finally:
        stop.set()
        squeezing.join()
    stats = store.stats()
    assert stats.stray == 0
    assert stats.used <= 200_000


def test_many_threads_create_and_commit(store):
    made: dict[int, bytes] = {}

    def work(seed):
        for number in range(40):
            data = bytes([seed, number]) * 50
            made[store.create(data, wait=30).id] = data
            if number % 10 == 0:
                store.commit()

    Threads(*[lambda seed=seed: work(seed) for seed in range(8)]).join()
    assert len(made) == 320
    assert all(bytes(store.get(id)) == data for id, data in made.items())


# -- interrupts that come when the answer is there already ------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch):
    """Calls are answered, but an interrupt strikes before the caller sees it."""

    def wait(call):
        call._answered.acquire()
        raise KeyboardInterrupt

    def begin():
        monkeypatch.setattr(Call, "wait", wait)

    return begin


def test_a_chunk_that_was_made_for_nobody_is_taken_back(store, interrupted, monkeypatch):
    interrupted()
    with pytest.raises(KeyboardInterrupt):
        store.create(b"bytes")
    monkeypatch.undo()
    store.commit()
    assert list(store.ids()) == []
    assert store.stats().used == 0


def test_an_edit_that_was_begun_for_nobody_is_dropped(store, interrupted, monkeypatch):
    handle = store.create(b"bytes")
    interrupted()
    with pytest.raises(KeyboardInterrupt):
        handle.edit().__enter__()
    monkeypatch.undo()
    assert bytes(handle.get()) == b"bytes"
    assert store.info(handle.id).refs == 0
    assert store.stats().used == 5


def test_an_edit_whose_end_is_interrupted_ends(store, monkeypatch):
    handle = store.create(b"bytes")
    edit = handle.edit()
    edit.__enter__()[:] = b"BYTES"

    def wait(call):
        raise KeyboardInterrupt

    monkeypatch.setattr(Call, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        edit.__exit__(None, None, None)
    monkeypatch.undo()
    store.stats()  # The loop gets to it before it answers this.
    assert bytes(handle.get()) == b"BYTES"
    assert store.info(handle.id).refs == 0
    assert store.stats().used == 5


def test_a_release_that_is_interrupted_is_one(store, monkeypatch):
    handle = store.create(b"bytes").acquire()

    def wait(call):
        raise KeyboardInterrupt

    monkeypatch.setattr(Call, "wait", wait)
    # Before the loop gets to it.
    store.loop.post(lambda: time.sleep(0.05))
    with pytest.raises(KeyboardInterrupt):
        handle.release()
    monkeypatch.undo()
    store.stats()
    assert store.info(handle.id).refs == 0


def test_a_reference_taken_for_nobody_is_given_back(store, interrupted, monkeypatch):
    handle = store.create(b"bytes")
    interrupted()
    with pytest.raises(KeyboardInterrupt):
        handle.acquire()
    monkeypatch.undo()
    assert store.info(handle.id).refs == 0


# -- the end --------------------------------------------------------------------------------------------------------------


def test_close_ends_those_who_wait(tmp_path, memory):
    store = opening(tmp_path / "store", memory)
    handle = store.create(b"bytes")
    evict(store, handle)
    reached = threading.Barrier(4)

    async def hold():
        memory.gate = asyncio.Event()

    store.call(hold)
    errors = []

    def waiting(call):
        reached.wait(30)
        try:
            call()
        except dstorage.DStorageError as error:
            errors.append(error)

    threads = Threads(
        lambda: waiting(handle.get),
        lambda: waiting(lambda: handle.get(wait=60)),
        lambda: waiting(lambda: store.resolve_all([handle.id])),
    )
    reached.wait(30)
    while store.call(_count_waiters, store, handle.id) < 3:
        pass
    store.close()
    threads.join()
    assert len(errors) == 3
    assert all(isinstance(error, ClosedError) for error in errors)


async def _count_waiters(store, id):
    known = store.inner.table.handles.get(id)
    return len(known.waiters or ()) if known is not None else 0


def test_a_closed_store_says_so_and_closes_again(tmp_path, memory):
    store = opening(tmp_path / "store", memory)
    handle = store.create(b"bytes")
    store.close()
    store.close()
    for call in (
        handle.get,
        handle.resolve,
        lambda: handle.data,
        store.commit,
        store.stats,
        lambda: store.prefetch([1]),
        store.ids,
        store.names,
        store.events,
    ):
        with pytest.raises(ClosedError, match="open it again"):
            call()
    assert "closed" in repr(store)


def test_many_threads_close_at_once(tmp_path, memory):
    store = opening(tmp_path / "store", memory)
    store.create(b"bytes")
    Threads(*[store.close] * 8).join()
    with opening(tmp_path / "store", memory) as store:
        assert bytes(store.get(1)) == b"bytes"


def test_all_who_close_are_told_that_the_last_commit_failed(tmp_path, memory):
    store = opening(tmp_path / "store", memory)
    store.create(b"bytes")
    store.call(_set_unavailable, memory, True)
    begun, failed = threading.Barrier(3), []

    def close():
        begun.wait(30)
        try:
            store.close()
        except TemporarilyUnavailable as error:
            failed.append(error)

    Threads(close, close, close).join()
    assert failed
    store.close()
    with opening(tmp_path / "store", MemoryController()):
        pass


def test_a_callback_may_close_the_store_while_another_thread_closes_it(tmp_path, memory):
    store = opening(tmp_path / "store", memory)
    called, closed = threading.Event(), threading.Event()

    def close(handle):
        called.set()
        # So long until close waits for this.
        while store.loop._thread.is_alive():
            pass
        store.close()
        closed.set()

    store.create(b"bytes").resolve(close)
    assert called.wait(30)
    Threads(store.close).join()
    assert closed.is_set()


def test_what_exits_on_the_loop_ends_its_caller_and_not_the_store(store):
    async def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        store.call(leave)
    assert bytes(store.create(b"bytes").get()) == b"bytes"
    store.commit()


def test_calls_that_race_with_the_close_end(tmp_path, memory):
    for _ in range(10):
        store = opening(tmp_path / "store", memory)
        begun = threading.Barrier(5)

        def work(store=store, begun=begun):
            begun.wait(30)
            try:
                while True:
                    store.create(b"bytes", wait=30)
            except (ClosedError, TemporarilyUnavailable):
                pass

        threads = Threads(*[work] * 4)
        begun.wait(30)
        store.close()
        threads.join()


def test_a_failed_open_leaves_nothing_behind(tmp_path, memory):
    with opening(tmp_path / "store", memory):
        before = threading.active_count()
        with pytest.raises(StoreLocked):
            opening(tmp_path / "store", memory)
        assert threading.active_count() == before
    with pytest.raises(InvalidArgumentError):
        opening(tmp_path / "store", budget="nonsense")
    with pytest.raises(dstorage.NotAStoreError):
        dstorage.blocking.open(tmp_path / "none", create=False)


def test_a_callback_may_close_the_store(tmp_path, memory):
    store = opening(tmp_path / "store", memory)
    closed = threading.Event()

    def close(handle):
        store.close()
        closed.set()

    store.create(b"bytes").resolve(close)
    assert closed.wait(30)


def test_what_one_stores_offers_the_other_offers_too():
    """But for what only an event loop can use, and what needs no counterpart because handles hold nothing."""
    kept = {
        "create_nowait",
        "unbound_handle",
        "spawn",
        "start",
        "discard",
        "on_pressure",
        "check_open",
        "check_writable",
        "check_changeable",
    }
    kept |= {"controller", "entry", "entry_named", "records", "forget", "places", "heal", "recount", "recount_chunks"}
    public = {name for name in vars(dstorage.Store) if not name.startswith("_")}
    assert public - kept <= set(vars(dstorage.blocking.Store)) | {"loop"}
    opened = set(inspect.signature(dstorage.open).parameters) - {"path"}
    assert opened == set(dstorage.blocking.OpenOptions.__annotations__)
    for method in (
        "create",
        "get_name",
        "names",
        "namespace",
        "compact",
        "migrate",
        "drain",
        "prefetch",
        "wait",
        "events",
    ):
        theirs, ours = (inspect.signature(getattr(c, method)) for c in (dstorage.Store, dstorage.blocking.Store))
        assert [(p.name, p.kind, p.annotation) for p in theirs.parameters.values()] == [
            (p.name, p.kind, p.annotation) for p in ours.parameters.values()
        ]
    handle = {name for name in vars(dstorage.Handle) if not name.startswith("_")}
    kept = {"to", "bind", "failure", "replace_nowait", "retry_at", "waiters", "refs"}
    assert handle - kept <= set(vars(dstorage.blocking.Handle))
