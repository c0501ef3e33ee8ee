"""Handles: statuses, references, callbacks, edits."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_controller import MemoryController
from turns import settle

import dstorage
from dstorage import (
    Deleted,
    IllegalTransitionError,
    Lost,
    MemoryUnavailable,
    NotResolvedError,
    OverReleaseError,
    Status,
    TemporarilyUnavailable,
    UsageError,
)
from dstorage.handle import TRANSITIONS, Handle

DATA = bytes(range(256)) * 16


async def stored(store, data=DATA) -> int:
    """A committed chunk that is not in memory."""
    with await store.create(data) as handle:
        id = handle.id
    await store.commit()
    evict(store)
    return id


def evict(store):
    budget = store.stats().budget
    store.set_budget(1)
    store.set_budget(budget)


@given(st.sampled_from(Status), st.sampled_from(Status))
def test_only_listed_transitions_are_possible(before, after):
    handle = Handle.__new__(Handle)
    handle.id = 7
    handle.status = before
    if after in TRANSITIONS[before]:
        handle.to(after)
        assert handle.status is after
    else:
        with pytest.raises(IllegalTransitionError, match=f"handle 7 cannot go from {before.value} to {after.value}"):
            handle.to(after)
        assert handle.status is before


def test_every_status_has_its_row_and_lost_and_deleted_never_come_back():
    assert set(TRANSITIONS) == set(Status)
    assert TRANSITIONS[Status.DELETED] == frozenset()
    assert TRANSITIONS[Status.LOST] == {Status.DELETED}


async def test_one_handle_per_id(store):
    id = await stored(store)
    first, second = store.handle(id), store.handle(id)
    assert first is second
    assert first.refs == 2
    first.release()
    second.release()


async def test_a_handle_kept_after_its_release_is_the_one_that_comes_back(store):
    id = await stored(store)
    handle = store.handle(id)
    handle.release()
    again = store.handle(id)
    assert again is handle
    again.release()


async def test_over_release_is_an_error_and_changes_nothing(store):
    handle = await store.create(DATA)
    handle.release()
    with pytest.raises(OverReleaseError, match=f"handle {handle.id} "):
        handle.release()
    assert handle.refs == 0


async def test_with_releases_and_async_with_resolves_and_releases(store):
    id = await stored(store)
    with store.handle(id) as handle:
        assert handle.refs == 1
        assert handle.status is Status.NOT_RESOLVED
    assert handle.refs == 0
    async with store.handle(id) as data:
        assert data == DATA
        assert data.readonly
        assert handle.refs == 1
    assert handle.refs == 0


async def test_data_before_resolving_says_what_to_do(store):
    id = await stored(store)
    with store.handle(id) as handle, pytest.raises(NotResolvedError, match=f"handle {id} is not resolved: await it"):
        _ = handle.data


async def test_a_failing_resolve_in_async_with_leaves_no_reference(store):
    with pytest.raises(Lost):
        async with store.handle(12345):
            pass
    assert store.stats().handles == 0


@pytest.mark.parametrize("id", [0, -1, 2**64, "7", None, 1.5])
async def test_an_impossible_id_is_refused(store, id):
    with pytest.raises(dstorage.InvalidArgumentError, match="is no chunk id"):
        store.handle(id)


@pytest.mark.parametrize("kind", [numpy.int64, numpy.uint64])
async def test_an_id_may_be_an_integer_of_any_kind_wherever_the_chunk_is(store, kind):
    with await store.create(b"bytes") as handle:
        id = kind(handle.id)
    await store.commit()
    for _ in range(2):
        with store.handle(id) as same:
            assert same is handle
            assert await same == b"bytes"
        store.set_budget(1)
        store.set_budget(2**20)
    store.prefetch(numpy.array([id]))
    async for found in store.resolve_each(numpy.array([id])):
        assert found is handle
    store.set_name(b"name", id)
    assert type(store.get_name(b"name")) is int
    assert store.unbound_handle().bind(id) is handle
    handle.release()


async def test_an_unknown_id_is_lost(store):
    with store.handle(999) as handle:
        with pytest.raises(Lost, match="chunk 999 is lost: unknown id"):
            await handle
        assert handle.status is Status.LOST


async def test_callbacks_come_once_each_from_the_loop_with_the_handle_referenced(store):
    id = await stored(store)
    handle = store.handle(id)
    calls = []
    for number in range(3):
        handle.resolve(lambda h, number=number: calls.append((number, h, h.status, h.refs, bytes(h.data))))
    assert calls == []
    handle.release()
    await settle()
    while len(calls) < 3:
        await asyncio.sleep(0.001)
    assert [c[0] for c in calls] == [0, 1, 2]
    assert all(c[1] is handle and c[2] is Status.RESOLVED and c[3] >= 1 and c[4] == DATA for c in calls)
    assert handle.refs == 0


async def test_a_callback_on_a_resolved_handle_is_not_reentrant(store):
    with await store.create(DATA) as handle:
        calls = []
        handle.resolve(calls.append)
        assert calls == []
        await settle(2)
        assert calls == [handle]


async def test_an_exception_in_one_callback_goes_to_the_loop_and_disturbs_no_other(store):
    id = await stored(store)
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    done = asyncio.Event()

    def bad(handle):
        raise ZeroDivisionError

    with store.handle(id) as handle:
        handle.resolve(bad)
        handle.resolve(lambda h: done.set())
        await asyncio.wait_for(done.wait(), 60)
    assert [type(error) for error in reported] == [ZeroDivisionError]
    assert handle.refs == 0


async def test_one_read_serves_all_who_wait_and_cancelling_one_harms_no_other(store, memory):
    id = await stored(store)
    memory.gate = asyncio.Event()
    handle = store.handle(id)

    async def reader():
        return bytes(await handle)

    tasks = [asyncio.create_task(reader()) for _ in range(5)]
    await settle()
    tasks[2].cancel()
    await settle()
    memory.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [a for a in answers if a == DATA] == [DATA] * 4
    assert isinstance(answers[2], asyncio.CancelledError)
    assert memory.reads == [id]
    handle.release()
    assert handle.refs == 0


async def test_cancelling_the_only_waiter_lets_the_read_finish(store, memory):
    id = await stored(store)
    memory.gate = asyncio.Event()
    handle = store.handle(id)
    task = asyncio.create_task(handle.get())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    memory.gate.set()
    await settle()
    assert handle.status is Status.RESOLVED
    handle.release()


async def test_duplicate_handles_collapse_and_their_references_add_up(store):
    id = await stored(store)
    handle = store.handle(id)
    other = store.unbound_handle()
    assert other.status is Status.UNINITIALISED
    other.acquire()
    assert other.bind(id) is handle
    assert handle.refs == 3
    # The other object goes on working as a name for the one handle.
    assert bytes(await other) == DATA
    assert other == handle
    assert other.status is Status.RESOLVED
    assert other.data == DATA
    other.release()
    other.release()
    assert handle.refs == 1
    handle.release()


async def test_binding_to_a_new_id_makes_it_the_one_handle(store):
    id = await stored(store)
    handle = store.unbound_handle()
    with pytest.raises(UsageError, match="bind"):
        await handle
    assert handle.bind(id) is handle
    assert store.handle(id) is handle
    handle.release()
    with pytest.raises(UsageError, match="bound already"):
        handle.bind(id)
    handle.release()


async def test_edit_publishes_at_the_end_and_readers_keep_what_they_have(store):
    with await store.create(DATA) as handle:
        before = handle.data
        with handle.edit() as buf:
            buf[0] = 99
            assert handle.data[0] == 0
        assert before[0] == 0
        assert handle.data[0] == 99
        assert handle.dirty


async def test_an_exception_discards_the_edit(store):
    with await store.create(DATA) as handle:
        used = store.stats().used

        def fail():
            with handle.edit() as buf:
                buf[0] = 99 // 0

        with pytest.raises(ZeroDivisionError):
            fail()
        assert handle.data == DATA
        assert store.stats().used == used
        assert handle.refs == 1


async def test_edit_of_a_chunk_not_in_memory_needs_async_with(store):
    id = await stored(store)
    with store.handle(id) as handle:
        with pytest.raises(NotResolvedError), handle.edit():
            pass
        async with handle.edit() as buf:
            buf[:5] = b"HELLO"
    await store.commit()
    evict(store)
    async with store.handle(id) as data:
        assert data == b"HELLO" + DATA[5:]


async def test_nothing_is_written_through_the_buffer_after_its_block(store):
    with await store.create(b"before") as handle:
        with handle.edit() as buf:
            buf[0:1] = b"B"
        with pytest.raises(ValueError, match="released"):
            buf[1:2] = b"E"
        assert bytes(handle.data) == b"Before"
        with handle.edit() as buf:
            numpy.frombuffer(buf, numpy.uint8)[0] = ord("b")
            kept = numpy.frombuffer(buf, numpy.uint8)
        assert bytes(handle.data) == kept.tobytes() == b"before"


@pytest.mark.parametrize("meanwhile", ["deleted", "replaced"])
async def test_an_edit_that_waited_for_room_accounts_for_what_it_finds_then(store, meanwhile):
    size = 100_000
    with await store.create(bytes(size)) as handle:
        await store.commit()
        # Dirty up to the limit, so that the edit has to wait.
        others = [await store.create(bytes(size)) for _ in range(5)]

        async def edit():
            async with handle.edit() as buf:
                return len(buf)

        editing = asyncio.create_task(edit())
        await asyncio.sleep(0)
        assert store._memory.wanted
        if meanwhile == "deleted":
            handle.delete()
            with pytest.raises(Deleted):
                await editing
        else:
            store._memory.dirty_limit *= 2
            handle.replace_nowait(b"small")
            assert await editing == 5
        for other in others:
            other.release()
    await store.commit()
    contents = sum(other.size for other in store.table.handles.values() if other.buffer is not None)
    assert (store.stats().used, store.stats().dirty) == (contents, 0)


async def test_edit_with_discard_starts_from_zeros(store):
    with await store.create(DATA) as handle:
        with handle.edit(discard=True) as buf:
            assert bytes(buf) == bytes(len(DATA))
        assert handle.data == bytes(len(DATA))


@pytest.mark.parametrize("size", [0, 1, 5000, 100_000])
async def test_replace_changes_the_size_resident_or_not(store, size):
    id = await stored(store)
    for data in (b"a" * size, b"b" * (size // 2)):
        with store.handle(id) as handle:
            await handle.replace(data)
            assert handle.status is Status.RESOLVED
            assert handle.data == data
        await store.commit()
        evict(store)
        async with store.handle(id) as got:
            assert got == data
        evict(store)


async def test_replace_while_a_read_is_under_way_wins(store, memory):
    id = await stored(store)
    memory.gate = asyncio.Event()
    handle = store.handle(id)
    task = asyncio.create_task(handle.get())
    await settle()
    await handle.replace(b"newer")
    assert bytes(await task) == b"newer"
    memory.gate.set()
    await settle()
    assert handle.data == b"newer"
    handle.release()
    assert store.stats().used == 5


async def test_delete_tells_those_who_wait_and_is_final(store, memory):
    id = await stored(store)
    memory.gate = asyncio.Event()
    handle = store.handle(id)
    task = asyncio.create_task(handle.get())
    await settle()
    handle.delete()
    with pytest.raises(Deleted):
        await task
    memory.gate.set()
    await settle()
    assert handle.status is Status.DELETED
    handle.delete()  # once more changes nothing
    with pytest.raises(Deleted):
        await handle.replace(b"x")
    handle.release()
    await store.commit()
    assert list(store.ids()) == []
    assert memory.medium.cells == {}
    assert store.stats().used == 0
    with pytest.raises(Lost):
        async with store.handle(id):
            pass


async def test_deleting_what_does_not_exist_is_lost(store):
    with store.handle(4711) as handle, pytest.raises(Lost):
        handle.delete()


async def test_flush_writes_one_chunk(store, memory):
    with await store.create(DATA) as handle, await store.create(DATA) as other:
        await handle.flush()
        assert memory.writes == [handle.id]
        assert not handle.dirty
        assert other.dirty


async def test_unavailable_is_remembered_until_the_next_try(store, memory):
    id = await stored(store)
    memory.read_error = dstorage.ControllerUnavailable("cable out")
    with store.handle(id) as handle:
        with pytest.raises(TemporarilyUnavailable, match=f"chunk {id} on controller 'memory': cable out") as caught:
            await handle
        assert handle.status is Status.TEMPORARILY_UNAVAILABLE
        assert caught.value.id == id
        assert caught.value.controller == "memory"
        assert caught.value.retry_at > asyncio.get_running_loop().time()
        with pytest.raises(TemporarilyUnavailable):
            await handle
        assert len(memory.reads) == 1
        assert handle.retry_at == caught.value.retry_at


async def test_only_so_many_are_remembered_that_nobody_holds(store, memory, monkeypatch):
    monkeypatch.setattr("dstorage.outage.MAX_REMEMBERED", 16)
    ids = [await stored(store) for _ in range(60)]
    memory.set_unavailable(True)
    held = [store.handle(id) for id in ids[:20]]
    for id in ids:
        with store.handle(id) as handle:
            handle.resolve()
    # Those in use are no reason to keep the others.
    assert store.stats().unavailable <= 20 + 16
    assert all(handle.retry_at is not None for handle in held)
    memory.set_unavailable(False)
    for handle in held:
        assert bytes(await handle.get(wait=1)) == DATA
        handle.release()


async def test_those_who_asked_to_wait_are_told_the_moment_the_controller_returns(store, memory):
    id = await stored(store)
    memory.set_unavailable(True)
    with store.handle(id) as handle:
        seen = []
        handle.resolve(lambda h: seen.append(h.status), wait=60)
        task = asyncio.create_task(handle.get(wait=60))
        await settle()
        assert seen == []
        memory.set_unavailable(False)
        await settle()
        assert bytes(await asyncio.wait_for(task, 60)) == DATA
        assert seen == [Status.RESOLVED]


async def test_those_who_did_not_ask_to_wait_are_told_at_once(store, memory):
    id = await stored(store)
    memory.set_unavailable(True)
    seen = []
    with store.handle(id) as handle:
        handle.resolve(lambda h: seen.append(h.status))
        await settle()
        assert seen == [Status.TEMPORARILY_UNAVAILABLE]


async def test_waiting_retries_with_backoff_and_ends_at_the_deadline(store, memory):
    id = await stored(store)
    memory.read_error = dstorage.ControllerUnavailable("cable out")
    with store.handle(id) as handle, pytest.raises(TemporarilyUnavailable):
        await handle.get(wait=0.3)
    assert 2 <= len(memory.reads) <= 8


async def test_asking_while_others_wait_for_the_next_try_is_one_try(store, memory):
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    id = await stored(store)
    memory.unavailable = True
    with store.handle(id) as handle:
        waiting = asyncio.create_task(handle.get(wait=60))
        await settle()
        memory.unavailable = False
        memory.gate = asyncio.Event()
        # Now both the timer of the next try and another asker are due; the asker is first.
        time.sleep(0.2)
        handle.resolve()
        await settle()
        memory.set_unavailable(False)
        await settle()
        memory.gate.set()
        assert bytes(await asyncio.wait_for(waiting, 60)) == DATA
    assert memory.reads == [id]
    assert problems == []


async def test_no_memory_is_told_and_waiting_for_it_works(store):
    id = await stored(store, bytes(600_000))
    holder = await store.create(bytes(600_000))
    await store.commit()
    with store.handle(id) as handle:
        with pytest.raises(
            MemoryUnavailable, match=rf"1 chunks are referenced, the largest: {holder.id} \(600000 B, 1 refs\)"
        ):
            await handle
        waiting = asyncio.create_task(handle.get(wait=5))
        await settle()
        assert not waiting.done()
        holder.release()
        assert len(await waiting) == 600_000


@pytest.mark.parametrize("stalled", [False, True])
async def test_who_waits_for_room_that_writing_cannot_give_is_told(store, memory, stalled):
    id = await stored(store)
    # Dirty, so there is hope at first: but in use, or nobody takes it.
    store._memory.dirty_limit = 2**20
    full = [await store.create(bytes(2**18)) for _ in range(4)]
    if stalled:
        memory.write_error = dstorage.ControllerUnavailable("not now")
        for handle in full:
            handle.release()
    with store.handle(id) as handle, pytest.raises(MemoryUnavailable):
        await asyncio.wait_for(handle.get(), 60)
    memory.write_error = None
    for other in full:
        if not stalled:
            other.release()


async def test_who_needs_little_room_does_not_wait_behind_who_needs_much(store, memory):
    id = await stored(store)
    memory.write_gate = asyncio.Event()
    store._memory.dirty_limit = 2**20
    full = [await store.create(bytes(2**18)) for _ in range(4)]
    much = asyncio.create_task(store.create(bytes(2**19), wait=60))
    await settle()
    with store.handle(id) as handle:
        reading = asyncio.create_task(handle.get())
        await settle()
        assert handle.status is Status.WAITING
        full.pop().release()
        memory.write_gate.set()
        assert bytes(await asyncio.wait_for(reading, 60)) == DATA
        assert not much.done()
    for other in full:
        other.release()
    (await much).release()


@pytest.mark.parametrize("together", [1, 3])
async def test_what_a_plug_in_raises_or_answers_instead_of_bytes_is_unavailable(tmp_path, together):
    class Careless(MemoryController):
        broken = ""

        def read_nowait(self, id, locator):
            if self.broken == "raises":
                raise KeyError(id)

        async def read(self, requests):
            return [None] * len(requests) if self.broken else await super().read(requests)

    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context["exception"]))
    controller = Careless()
    options = {"budget": 2**20, "commit_interval": None, "pressure": None}
    async with dstorage.open(tmp_path, controllers=[controller], **options) as store:
        ids = [await stored(store) for _ in range(together)]
        evict(store)
        for broken, kind in (("raises", KeyError), ("answers", TypeError)):
            controller.broken = broken
            handles = [store.handle(id) for id in ids]
            answers = await asyncio.gather(*(handle.get() for handle in handles), return_exceptions=True)
            assert {type(answer) for answer in answers} == {TemporarilyUnavailable}
            assert {type(problem) for problem in problems} == {kind}
            problems.clear()
            controller.broken = ""
            assert bytes(await handles[0].get(wait=5)) == DATA
            for handle in handles:
                handle.release()
            store._outages.returned("memory")
            evict(store)
        assert store.stats().used == 0


async def test_views_keep_bytes_that_left_and_are_counted_as_stray(store):
    id = await stored(store)
    handle = store.handle(id)
    view = (await handle)[10:20]
    handle.release()
    evict(store)
    assert handle.status is Status.NOT_RESOLVED
    assert view == DATA[10:20]
    assert store.stats().stray == len(DATA)
    assert store.stats().used == len(DATA)
    del view
    gc.collect()
    assert store.stats().stray == 0
    assert store.stats().used == 0


async def test_in_debug_mode_a_handle_dropped_while_referenced_is_told_with_its_place(store):
    asyncio.get_running_loop().set_debug(True)
    id = await stored(store)
    async with dstorage.open(
        store.path.parent / "other", budget=2**20, controllers=[MemoryController()], pressure=None
    ) as other:
        handle = await other.create(DATA)
        handle.acquire()
        id = handle.id
        told = rf"handle {id} was dropped with 2 references, acquired at .*test_handle.py:\d+, .*"
        with pytest.warns(ResourceWarning, match=told):
            del handle
        # Given back in order there is nothing to tell; a callback that is still to come holds the lease.
        other.table.handles[id].refs = 0
        done = asyncio.Event()

        def arrived(handle):
            handle.release()
            done.set()

        other.handle(id).resolve(arrived)
        gc.collect()
        await asyncio.wait_for(done.wait(), 60)
        again = other.handle(id)
        assert other.handle(id) is again
        again.release()
        again.release()


@pytest.mark.parametrize("why", ["unavailable", "lost", "no memory"])
async def test_what_could_not_be_had_holds_nothing_of_who_asked(store, memory, why):
    class Mine:
        pass

    id = 99 if why == "lost" else await stored(store)
    memory.set_unavailable(why == "unavailable")
    if why == "no memory":
        store.set_budget(len(DATA) // 2)
    kept = store.handle(id)

    async def ask():
        mine = Mine()
        gone.append(weakref.ref(mine))
        with pytest.raises((TemporarilyUnavailable, Lost, MemoryUnavailable)) as told:
            await kept
        assert str(told.value) == str(kept.error)
        assert told.value.__dict__ == kept.error.__dict__
        assert repr(told.value) == repr(kept.error)

    gone = []
    for _ in range(3):
        await ask()
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    assert kept.error is not None
    kept.release()
