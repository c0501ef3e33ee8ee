"""Stores: opening, locking, versions, controllers, commits, limits, many chunks at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager

import lmdb
import numpy as np
import pytest
from dstorage_controllers.disk import DiskController
from memory_controller import Medium, MemoryController
from turns import settle

import dstorage
from dstorage import (
    ClosedError,
    ControllerError,
    ControllerStatus,
    ControllerUnavailable,
    InvalidArgumentError,
    Lost,
    MemoryUnavailable,
    NotAStoreError,
    ReadOnlyError,
    Status,
    StoreFull,
    StoreLocked,
    TemporarilyUnavailable,
    TooManyHandles,
    VersionError,
    groups,
)
from dstorage.catalog import Catalog
from dstorage.check import check
from dstorage.known import Known
from dstorage.record import KEY

KIB = 1024


def opening(path, *controllers, **options):
    return dstorage.open(
        path, **{"budget": 2**20, "controllers": controllers, "commit_interval": None, "pressure": None} | options
    )


async def fill(store, count, size=1000, **options):
    ids = []
    for number in range(count):
        with await store.create(number.to_bytes(4, "big") * (size // 4), **options) as handle:
            ids.append(handle.id)
    return ids


def crash(store):
    """Let go of the files without closing in order, as the end of the process does."""
    store.closed = "the process has crashed"
    for task in store._tasks:
        task.cancel()
    store._writer.shutdown()
    store._catalog.close()
    store._lock.release()


# -- opening --------------------------------------------------------------------------------------------------------------


async def test_a_second_writer_is_refused_with_the_pid_of_the_first(tmp_path):
    async with opening(tmp_path, MemoryController()):
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}") as caught:
            await opening(tmp_path, MemoryController())
        assert caught.value.pid == os.getpid()
        script = "import dstorage, asyncio, sys; asyncio.run(dstorage.open(sys.argv[1], pressure=None)._open())"
        child = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert f"process {os.getpid()}" in child.stderr
    async with opening(tmp_path, MemoryController()):
        pass


@pytest.mark.parametrize(("written", "way_out"), [(b"3", "upgrade dstorage"), (b"1", "the version that wrote it")])
async def test_a_store_of_another_format_is_refused_and_untouched(tmp_path, written, way_out):
    async with opening(tmp_path, MemoryController()):
        pass
    env = lmdb.open(str(tmp_path / "catalog"), max_dbs=16)
    with env.begin(write=True) as txn:
        txn.put(b"format", written, db=env.open_db(b"meta", txn))
    env.close()
    before = (tmp_path / "catalog" / "data.mdb").read_bytes()
    with pytest.raises(VersionError, match=f"has store format {int(written)}, .* reads 2: .*{way_out}") as caught:
        await opening(tmp_path, MemoryController())
    assert (caught.value.found, caught.value.supported) == (int(written), 2)
    assert (tmp_path / "catalog" / "data.mdb").read_bytes() == before


async def test_what_is_no_store_is_told(tmp_path):
    with pytest.raises(NotAStoreError, match="dstorage init"):
        await opening(tmp_path / "nothing", create=False)
    with pytest.raises(NotAStoreError):
        await dstorage.open(tmp_path / "nothing", read_only=True)
    (tmp_path / "bad" / "catalog").mkdir(parents=True)
    (tmp_path / "bad" / "catalog" / "data.mdb").write_bytes(b"no catalog" * 1000)
    with pytest.raises(dstorage.CorruptData):
        await opening(tmp_path / "bad", MemoryController())


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0},
        {"budget": "lots"},
        {"dirty_share": 0},
        {"commit_interval": 0},
        {"max_handles": 0},
        {"max_cached": 0},
        {"policy": "magic"},
    ],
)
async def test_bad_options_are_named(tmp_path, options):
    with pytest.raises(InvalidArgumentError):
        await opening(tmp_path, MemoryController(), **options)


async def test_after_close_every_call_says_so(tmp_path):
    store = await opening(tmp_path, MemoryController())
    await store.close()
    await store.close()
    for call in (lambda: store.handle(1), lambda: store.create_nowait(b""), store.ids, lambda: store.prefetch([1])):
        with pytest.raises(ClosedError, match="open it again"):
            call()


async def test_what_is_answered_while_closing_is_in_the_last_commit(tmp_path, memory):
    store = await opening(tmp_path, memory)
    created, refused = [], []

    async def produce():
        try:
            while True:
                with await store.create(b"x" * 100) as handle:
                    created.append(handle.id)
                await asyncio.sleep(0)
        except ClosedError as error:
            refused.append(error)

    memory.write_gate = asyncio.Event()
    (edited,) = await fill(store, 1)
    handle = store.handle(edited)
    edit = handle.edit()
    await edit.__aenter__()
    producer = asyncio.create_task(produce())
    await settle()
    closing = asyncio.create_task(store.close())
    await settle()
    with pytest.raises(ClosedError):
        await edit.__aexit__(None, None, None)
    handle.release()
    assert refused
    memory.write_gate.set()
    await asyncio.gather(closing, producer)
    async with opening(tmp_path, memory) as store:
        assert [id for id in created if store.info(id) is None] == []


async def test_who_waits_for_a_chunk_or_for_its_room_when_the_store_is_closed_is_told(tmp_path, memory):
    store = await opening(tmp_path, memory, budget=2500)
    ids = await fill(store, 6)
    await store.commit()
    store.set_budget(1)
    store.set_budget(2500)
    memory.gate = asyncio.Event()
    told = []
    for id in ids:
        with store.handle(id) as handle:
            handle.resolve(lambda handle: told.append((handle.id, handle.status, type(handle.error))))

    async def read(id):
        async with store.handle(id):
            pass

    reading = [asyncio.create_task(read(id)) for id in ids]
    await settle()
    await store.close()  # And warns of none of these handles.
    for error in await asyncio.gather(*reading, return_exceptions=True):
        assert isinstance(error, dstorage.TemporarilyUnavailable)
    await settle()
    unavailable = Status.TEMPORARILY_UNAVAILABLE, dstorage.TemporarilyUnavailable
    assert told == [(id, *unavailable) for id in ids]
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing goes on"


async def test_who_closes_a_second_time_waits_for_the_first(tmp_path, memory):
    store = await opening(tmp_path, memory)
    await fill(store, 3)
    memory.write_gate = asyncio.Event()
    first, second = asyncio.create_task(store.close()), asyncio.create_task(store.close())
    await settle()
    assert not first.done()
    assert not second.done()
    memory.write_gate.set()
    assert await asyncio.gather(first, second) == [None, None]
    assert memory.closed


async def test_a_controller_that_fails_to_close_does_not_keep_the_store_locked(tmp_path):
    class Stuck(MemoryController):
        async def close(self):
            raise OSError("it does not let go")

    store = await opening(tmp_path, Stuck())
    with pytest.raises(OSError, match="it does not let go"):
        await store.close()
    async with opening(tmp_path, MemoryController()):
        pass


async def test_closing_with_referenced_handles_warns(tmp_path):
    store = await opening(tmp_path, MemoryController())
    handle = await store.create(b"x")
    with pytest.warns(ResourceWarning, match=f"1 handles were still referenced when the store was closed: {handle.id}"):
        await store.close()


async def test_ids_are_never_reused_even_after_a_crash(tmp_path):
    medium = MemoryController().medium
    store = await opening(tmp_path, MemoryController(medium=medium))
    first = (await fill(store, 3))[-1]
    crash(store)
    async with opening(tmp_path, MemoryController(medium=medium)) as again:
        assert (await fill(again, 1))[0] > first
        last = (await fill(again, 1))[0]
    async with opening(tmp_path, MemoryController(medium=medium)) as again:
        assert (await fill(again, 1)) == [last + 1]


async def test_a_forked_child_is_refused(tmp_path):
    async with opening(tmp_path, MemoryController()) as store:
        pid = os.fork()
        if pid == 0:
            try:
                store.handle(77)
            except ClosedError as error:
                os._exit(0 if "forked child must open its own" in str(error) else 1)
            os._exit(2)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await fill(store, 1)


# -- damage ---------------------------------------------------------------------------------------------------------------


@contextmanager
def table_of_records(path):
    """A transaction that changes the catalog of a closed store, and the table of its records."""
    with lmdb.open(str(path / "catalog"), max_dbs=16) as env:
        records = env.open_db(b"records", integerkey=True, create=False)
        with env.begin(write=True) as txn:
            yield txn, records


def change_record(txn, records, id, change):
    """Let `change` make other bytes of a record in the catalog."""
    key = KEY.pack(id >> groups.BITS)
    group = txn.get(key, db=records)
    count = len(group) // 33
    start = count + 32 * group.index(id % groups.IDS, 0, count)
    txn.put(key, group[:start] + change(group[start : start + 32]) + group[start + 32 :], db=records)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: bytes(32),
        lambda record: b"\xff" * 32,
        # The locator's size, its segment, its offset.
        lambda record: record[:12] + b"\xff" * 4 + record[16:],
        lambda record: record[:20] + bytes([record[20] ^ 5]) + record[21:],
        lambda record: record[:18] + bytes([record[18] ^ 16]) + record[19:],
    ],
)
async def test_a_damaged_record_is_one_lost_chunk_that_repair_drops(tmp_path, damage):
    options = {"budget": 2**20, "commit_interval": None, "pressure": None}
    async with dstorage.open(tmp_path, **options) as store:
        ids = await fill(store, 3)
    with table_of_records(tmp_path) as (txn, records):
        change_record(txn, records, ids[1], damage)
    async with dstorage.open(tmp_path, **options) as store:
        with store.handle(ids[1]) as handle, pytest.raises((Lost, MemoryUnavailable)):
            await handle
        report = await check(store, repair=True)
        assert [problem.id for problem in report.problems if problem.kind == "lost"] == report.repaired == [ids[1]]
        assert report.sound
        assert store.controllers()[0].space.used == 2000
    async with dstorage.open(tmp_path, **options) as store:
        assert (await check(store)).problems == []
        assert store.controllers()[0].space.used == 2000
        assert [store.info(id) is not None for id in ids] == [True, False, True]
        for id in (ids[0], ids[2]):
            async with store.handle(id) as data:
                assert len(data) == 1000


@pytest.mark.parametrize(
    "damage", [lambda group: group + bytes(8), lambda group: group[:-1], lambda group: b"\xff" * 99]
)
async def test_a_damaged_group_of_records_keeps_no_others_from_being_read_and_can_be_dropped(tmp_path, damage):
    options = {"budget": 2**20, "commit_interval": None, "pressure": None}
    async with dstorage.open(tmp_path, **options) as store:
        ids = await fill(store, 70)
    with table_of_records(tmp_path) as (txn, records):
        key = KEY.pack(1)
        txn.put(key, damage(txn.get(key, db=records)), db=records)
    gone = [id for id in ids if id >> groups.BITS == 1]
    assert len(gone) == groups.IDS
    async with dstorage.open(tmp_path, **options) as store:
        with store.handle(gone[0]) as handle, pytest.raises(Lost):
            await handle
        for id in set(ids) - set(gone):
            async with store.handle(id) as data:
                assert len(data) == 1000
        report = await check(store, repair=True)
        assert {problem.id for problem in report.problems if problem.kind == "lost"} <= set(gone)
        lost = [problem for problem in report.problems if problem.kind == "lost"]
        assert len(lost) == len(gone) or any(problem.kind == "count" for problem in report.problems)
        assert report.sound
        with store.handle(ids[-1]) as handle:
            await handle.replace(b"x" * 1000)
    async with dstorage.open(tmp_path, **options) as store:
        assert (await check(store)).problems == []
        assert set(store.ids()) == set(ids) - set(gone)
        assert store.stats().chunks == len(ids) - len(gone)


@pytest.mark.parametrize("count", [b"", b"abc", b"\xff" * 8, bytes(8)])
async def test_a_damaged_count_of_chunks_keeps_nobody_from_committing_and_is_found(tmp_path, count):
    async with dstorage.open(tmp_path, budget=2**20, commit_interval=None, pressure=None) as store:
        ids = await fill(store, 40)
    with lmdb.open(str(tmp_path / "catalog"), max_dbs=16) as env, env.begin(write=True) as txn:
        txn.put(b"records", count, db=env.open_db(b"meta", txn))
    async with dstorage.open(tmp_path, budget=2**20, commit_interval=None, pressure=None) as store:
        store.stats()
        ids += await fill(store, 1)
        await store.commit()
        report = await check(store, repair=True)
        assert [problem.kind for problem in report.problems] == ["count"]
        assert report.sound
        assert store.stats().chunks == len(ids)
    async with dstorage.open(tmp_path, budget=2**20, commit_interval=None, pressure=None) as store:
        assert (await check(store)).problems == []


async def test_a_damaged_record_that_names_another_segment_can_be_dropped(tmp_path):
    options = {"budget": 2**20, "commit_interval": None, "pressure": None}
    async with dstorage.open(tmp_path, controllers=[DiskController(segment_bytes=2**14)], **options) as store:
        ids = []
        for size in (16000, 1000, 16000):
            with await store.create(bytes(size)) as handle:
                ids.append(handle.id)
            await store.commit()
    with table_of_records(tmp_path) as (txn, records):
        # Its segment: that of the small chunk, where there is less than this record would take with it.
        small = []
        change_record(txn, records, ids[1], lambda record: small.append(record) or record)
        change_record(txn, records, ids[0], lambda record: record[:20] + small[0][20:22] + record[22:])
    async with dstorage.open(tmp_path, **options) as store:
        report = await check(store, repair=True)
        assert report.repaired == [ids[0]]
        assert report.sound
    async with dstorage.open(tmp_path, **options) as store:
        assert (await check(store)).problems == []
        assert store.controllers()[0].space.used == 17000
    # The one of which nothing is alive is gone.
    assert sorted(path.name for path in tmp_path.rglob("*.seg")) == ["00000002.seg", "00000003.seg"]


async def test_a_controller_that_is_away_keeps_no_repair_of_others_from_being_made(tmp_path):
    near, far = MemoryController("near", rank=9), MemoryController("far", rank=1)
    async with opening(tmp_path, near, far) as store:
        ids = await fill(store, 2)
        await store.commit()
        await store.migrate(ids[1:], to="far")
        await store.commit()
        near._get = lambda request: Lost("rust", id=request.id)
        far.set_unavailable(True)
        far.sync_error = ControllerUnavailable("cable out")
        report = await check(store, repair=True)
        assert report.repaired == ids[:1]
        assert [problem.kind for problem in report.problems if not report.mended(problem)] == ["unavailable"]
        far.sync_error = None
        far.set_unavailable(False)
        del near._get
        assert (await check(store)).sound


async def test_a_damaged_catalog_is_told_and_holds_nobody_up(store, monkeypatch):
    (id,) = await fill(store, 1)
    await store.commit()
    store.set_budget(1)
    catalog = store._catalog

    class Damaged:
        def get(self, *args, **kwargs):
            raise lmdb.CorruptedError("mdb_get")

        def abort(self):
            transaction.abort()

    transaction, catalog._txn = catalog._txn, Damaged()
    catalog._known = catalog._txn, Known(0)
    for _ in range(2):
        with store.handle(id) as handle, pytest.raises(Lost, match=r"the catalog .* is damaged"):
            await asyncio.wait_for(handle.get(), 60)
    catalog.refresh()


# -- reading beside the writer --------------------------------------------------------------------------------------------


async def test_a_read_only_open_shows_the_last_commit_and_changes_nothing(tmp_path):
    async with dstorage.open(tmp_path, budget=2**20, commit_interval=None, pressure=None) as store:
        ids = await fill(store, 10)
        await store.commit()
        uncommitted = (await fill(store, 1))[0]
        async with dstorage.open(tmp_path, budget=2**20, read_only=True, pressure=None) as reader:
            async with reader.handle(ids[3]) as data:
                assert data == (3).to_bytes(4, "big") * 250
            with pytest.raises(Lost):
                async with reader.handle(uncommitted):
                    pass
            for change in (lambda: reader.create_nowait(b"x"), lambda: reader.set_name(b"n", 1)):
                with pytest.raises(ReadOnlyError):
                    change()
            with pytest.raises(ReadOnlyError):
                await reader.commit()
            # The writer goes on: rewrites, commits, frees the old places; the reader follows when it misses something.
            for id in ids:
                with store.handle(id) as handle:
                    await handle.replace(b"new" * 100)
            await store.commit()
            await asyncio.sleep(0.05)
            async with reader.handle(ids[4]) as data:
                assert data in ((4).to_bytes(4, "big") * 250, b"new" * 100)
            async with reader.handle(uncommitted) as data:
                assert len(data) == 1000
            async with reader.handle(ids[5]) as data:
                assert data == b"new" * 100


# -- controllers ----------------------------------------------------------------------------------------------------------


async def test_indices_stay_and_a_known_name_replaces_the_instance(tmp_path):
    first, second = MemoryController("one"), MemoryController("two")
    async with opening(tmp_path, first, second) as store:
        ids = await fill(store, 2, controller="two")
        await store.commit()
        assert [c.index for c in store.controllers()] == [0, 1]
        again = MemoryController("one")
        assert await store.register(again) == 0
        assert first.closed
        assert store.controller("one") is again
        assert await store.register(MemoryController("three")) == 2
        assert store.info(ids[0]).controller == "two"


async def test_a_controller_not_loaded_is_unavailable_until_it_registers(tmp_path):
    medium = MemoryController().medium
    async with opening(tmp_path, MemoryController("kept", medium=medium)) as store:
        ids = await fill(store, 2)
    with pytest.warns(RuntimeWarning, match="'kept' is not available: no installed package offers"):
        store = await opening(tmp_path, MemoryController("other"))
    async with store:
        handle = store.handle(ids[0])
        with pytest.raises(TemporarilyUnavailable, match="'kept', which is not loaded"):
            await handle
        waiting = asyncio.create_task(handle.get(wait=30))
        await settle()
        await store.register(MemoryController("kept", medium=medium))
        assert len(await asyncio.wait_for(waiting, 60)) == 1000
        handle.release()


@pytest.mark.parametrize("mistake", ["no key", "another key", "another path"])
async def test_a_controller_that_does_not_open_changes_nothing_of_what_is_remembered(tmp_path, mistake):
    key, other = tmp_path / "key", tmp_path / "other"
    for number, file in enumerate((key, other)):
        file.touch(0o600)
        file.write_text(f"{number}5" * 32)
    mistaken = {"no key": {}, "another key": {"key_file": other}, "another path": {"key_file": key, "path": tmp_path}}
    async with opening(tmp_path / "s", DiskController("disk", key_file=key)) as store:
        ids = await fill(store, 2)
    with pytest.raises(ControllerError, match="'disk'"):
        await opening(tmp_path / "s", DiskController("disk", **mistaken[mistake]))
    async with opening(tmp_path / "s") as store:
        async with store.handle(ids[1]) as data:
            assert len(data) == 1000
        with pytest.raises(ControllerError, match="'disk'"):
            await store.register(DiskController("disk", **mistaken[mistake]))
    async with opening(tmp_path / "s") as store, store.handle(ids[0]) as data:
        assert len(data) == 1000


async def test_what_a_controller_opened_with_is_remembered(tmp_path):
    async with opening(tmp_path, DiskController("disk")) as store:
        await fill(store, 2)
    async with opening(tmp_path, DiskController("disk", capacity=2**30, rank=7)) as store:
        assert store.controllers()[0].rank == 7
    async with opening(tmp_path) as store:
        assert (store.controllers()[0].rank, store.controllers()[0].space.total) == (7, 2**30)


async def test_a_controller_whose_settings_cannot_be_remembered_is_closed(tmp_path, memory, monkeypatch):
    again = MemoryController("memory", rank=11, medium=memory.medium)
    async with opening(tmp_path, memory) as store:

        def refuse(*_):
            raise lmdb.DiskError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "put_controller", refuse)
            with pytest.raises(lmdb.DiskError):
                await store.register(again)
        assert again.closed
        assert store.controllers()[0].status is ControllerStatus.TEMPORARILY_UNAVAILABLE


async def test_a_new_controller_that_is_away_has_its_index_for_ever(tmp_path):
    class Away(MemoryController):
        async def open(self, context):
            raise ControllerUnavailable("the server is away")

    async with opening(tmp_path, MemoryController("first")) as store:
        with pytest.raises(ControllerUnavailable):
            await store.register(Away("away"))
        assert await store.register(MemoryController("last")) == 2
    async with opening(
        tmp_path, MemoryController("last"), MemoryController("away"), MemoryController("first")
    ) as store:
        assert [c.name for c in store.controllers()] == ["first", "away", "last"]


@pytest.mark.parametrize("name", ["", "..", "catalog", "Lock", "a/b", "a\\b", "a\0b", "x" * 256])
async def test_a_controller_is_not_named_after_what_is_in_the_folder_already(tmp_path, name):
    async with opening(tmp_path, MemoryController()) as store:
        with pytest.raises(InvalidArgumentError, match="controller name"):
            await store.register(MemoryController(name))
        assert len(store.controllers()) == 1


async def test_registering_disturbs_no_look_into_the_catalog(tmp_path, memory):
    async with opening(tmp_path, memory) as store:
        ids = await fill(store, 100)
        await store.commit()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            registering = asyncio.create_task(store.register(MemoryController("new")))
            for number in range(100):
                while not registering.done():
                    assert all(store.record(id) is not None for id in ids)
                    assert store.entry_named("memory").index == 0
                    await asyncio.sleep(0)
                await registering
                registering = asyncio.create_task(store.register(MemoryController(f"new{number}")))
            await registering
        finally:
            sys.setswitchinterval(interval)


async def test_declared_removed_is_lost_for_ever(tmp_path):
    async with opening(tmp_path, MemoryController("gone"), MemoryController("stays")) as store:
        ids = await fill(store, 2, controller="gone")
        await store.commit()
        store.set_budget(1)
        store.set_budget(2**20)
        await store.declare_removed("gone")
        with pytest.raises(Lost, match="controller 'gone' was declared removed"):
            async with store.handle(ids[0]):
                pass
        with pytest.raises(InvalidArgumentError, match="declared removed"):
            await store.register(MemoryController("gone"))
    async with opening(tmp_path, MemoryController("stays")) as store:
        with pytest.raises(Lost, match="declared removed"):
            async with store.handle(ids[1]):
                pass


async def test_the_fastest_with_room_takes_new_chunks_and_full_is_not_an_error(tmp_path):
    fast, slow = MemoryController("fast", rank=90, capacity=5000), MemoryController("slow", rank=10)
    async with opening(tmp_path, slow, fast) as store:
        ids = await fill(store, 12)
        await store.commit()
        kept = [store.info(id).controller for id in ids]
        assert kept.count("fast") == 5
        assert kept.count("slow") == 7


async def test_durable_chunks_never_go_to_a_volatile_controller(tmp_path):
    ram, disk = MemoryController("ram", rank=90, volatile=True), MemoryController("disk", rank=10)
    async with opening(tmp_path, ram, disk) as store:
        durable = await fill(store, 3)
        scratch = await fill(store, 3, durable=False)
        for id in scratch:
            with store.handle(id) as handle:
                await handle.flush()
        await store.commit()
        assert {store.info(id).controller for id in durable} == {"disk"}
        assert {store.info(id).controller for id in scratch} == {"ram"}
        with pytest.raises(InvalidArgumentError, match="volatile"):
            await store.create(b"x", controller="ram")
    # An orderly close has made the scratch chunks durable.
    async with opening(
        tmp_path, MemoryController("disk", medium=disk.medium), MemoryController("ram", volatile=True)
    ) as store:
        for number, id in enumerate(scratch):
            async with store.handle(id) as data:
                assert data == number.to_bytes(4, "big") * 250


async def test_durable_chunks_are_not_moved_to_a_volatile_controller(tmp_path):
    ram = MemoryController("ram", rank=100, volatile=True, capacity=0)
    async with opening(tmp_path, ram, MemoryController()) as store:
        (durable,) = await fill(store, 1)
        (scratch,) = await fill(store, 1, durable=False)
        with store.handle(scratch) as handle:
            await handle.flush()
        await store.commit()
        ram.capacity = None
        with pytest.raises(InvalidArgumentError, match="volatile"):
            await store.migrate([durable], to="ram")
        assert store.info(durable).controller == "memory"
        assert await store.migrate([scratch], to="ram") == 1
        assert store.info(scratch).controller == "ram"


async def test_a_scratch_chunk_that_comes_to_a_volatile_controller_later_is_still_there(tmp_path):
    ram = MemoryController("ram", rank=100, volatile=True, capacity=0)
    async with opening(tmp_path, ram, MemoryController()) as store:
        (id,) = await fill(store, 1, durable=False)
        with store.handle(id) as handle:
            await handle.flush()
            await store.commit()
            assert store.info(id).controller == "memory"
            ram.capacity = None
            await handle.replace(b"scratch")
            await handle.flush()
        for _ in range(3):
            store.set_budget(1)
            assert store.info(id).controller == "ram"
            store.set_budget(2**20)
            async with store.handle(id) as data:
                assert bytes(data) == b"scratch"
            assert list(store.ids()) == [id]
            await store.commit()


async def test_when_everything_is_full_the_commit_fails_and_nothing_is_lost(tmp_path):
    only = MemoryController("only", capacity=3000)
    async with opening(tmp_path, only) as store:
        ids = await fill(store, 5)
        with pytest.raises(StoreFull, match="controllers only are full"):
            await store.commit()
        for number, id in enumerate(ids):
            async with store.handle(id) as data:
                assert data == number.to_bytes(4, "big") * 250
        only.capacity = None
        only.context.status_changed()
        await store.commit()
        assert store.stats().dirty == 0


async def test_a_chunk_for_which_no_controller_has_the_room_is_refused_as_one_for_a_full_store(tmp_path):
    nearly_full = MemoryController(capacity=1500)
    async with opening(tmp_path, nearly_full) as store:
        await fill(store, 1)
        await store.commit()
        (large,) = await fill(store, 1)
        assert nearly_full.status is not dstorage.ControllerStatus.FULL
        with pytest.raises(StoreFull, match="memory are full"):
            await store.commit()
        nearly_full.capacity = None
        nearly_full.set_unavailable(True)
        with pytest.raises(TemporarilyUnavailable, match=r"no controller takes chunk 2 now \(memory: .*unavailable\)"):
            await store.commit()
        nearly_full.set_unavailable(False)
        await store.commit()
        assert store.info(large).controller == "memory"


async def test_what_is_only_in_memory_yet_is_not_moved_and_not_counted(tmp_path):
    async with opening(tmp_path, MemoryController("near", rank=9), MemoryController("far", rank=1)) as store:
        (written,) = await fill(store, 1)
        await store.commit()
        (new,) = await fill(store, 1)
        assert await store.migrate([new, written], to="far") == 1
        assert (store.info(new).controller, store.info(written).controller) == (None, "far")
        with pytest.raises(Lost, match="unknown id"):
            await store.migrate([999], to="far")


async def test_migrate_keeps_ids_while_they_are_read_and_written(tmp_path):
    a, b = MemoryController("a", rank=90), MemoryController("b", rank=10)
    async with opening(tmp_path, a, b, budget=20_000) as store:
        ids = await fill(store, 50)
        await store.commit()
        model = {id: number.to_bytes(4, "big") * 250 for number, id in enumerate(ids)}

        async def use():
            for round_ in range(4):
                for id in ids:
                    async with store.handle(id) as data:
                        assert data == model[id]
                    if id % 5 == round_:
                        model[id] = bytes([round_]) * 500
                        with store.handle(id) as handle:
                            await handle.replace(model[id])
                    await asyncio.sleep(0)

        async def move():
            for target in ("b", "a", "b"):
                await store.commit()
                await store.migrate(ids, to=target)
                await asyncio.sleep(0)

        await asyncio.gather(use(), move())
        await store.commit()
        await settle()
        for id in ids:
            async with store.handle(id) as data:
                assert data == model[id]
        kept = sorted(data for c in (a, b) for data in c.medium.cells.values())
        assert kept == sorted(model.values())


# -- commits --------------------------------------------------------------------------------------------------------------


async def test_a_move_during_a_commit_does_not_bring_old_contents_back(tmp_path):
    fast, slow, other = MemoryController("fast", rank=30), MemoryController("slow", rank=20), MemoryController("other")
    async with opening(tmp_path, fast, slow, other) as store:
        with await store.create(b"old", controller="slow") as handle:
            await store.commit()
            async with handle.edit() as buf:
                buf[:] = b"new"
            slow.write_gate = asyncio.Event()
            committing = asyncio.create_task(store.commit())
            await settle()
            assert await store.migrate([handle.id], to="other") == 1
            slow.write_gate.set()
            await committing
            id = handle.id
        for _ in range(2):
            store.set_budget(1)
            store.set_budget(2**20)
            async with store.handle(id) as data:
                assert bytes(data) == b"new"
            await store.commit()
        assert other.medium.cells == {}


async def test_commits_asked_for_together_share_one(store):
    await fill(store, 5)
    await asyncio.gather(*[store.commit() for _ in range(10)])
    assert store.stats().commits <= 2


async def test_a_commit_takes_the_contents_of_its_moment(tmp_path, memory):
    async with opening(tmp_path, memory) as store:
        (id,) = await fill(store, 1)
        memory.write_gate = asyncio.Event()
        commit = asyncio.create_task(store.commit())
        await settle()
        with store.handle(id) as handle:
            with handle.edit() as buf:
                buf[:5] = b"LATER"
            other = await store.create(b"after the cut")
            other.release()
            memory.write_gate.set()
            await commit
            assert handle.dirty
            assert handle.data[:5] == b"LATER"
        # A crash now: what came after the cut is gone, what was before is whole.
        crash(store)
        async with opening(tmp_path, MemoryController(medium=memory.medium), commit_interval=None) as crashed:
            async with crashed.handle(id) as data:
                assert data == (0).to_bytes(4, "big") * 250
            with pytest.raises(Lost):
                async with crashed.handle(other.id):
                    pass


async def test_a_failed_sync_leaves_the_last_commit_and_keeps_the_changes(store, memory):
    ids = await fill(store, 3)
    await store.commit()
    with store.handle(ids[0]) as handle:
        await handle.replace(b"changed")
    memory.sync_error = dstorage.ControllerUnavailable("cable out")
    with pytest.raises(TemporarilyUnavailable, match="cannot make the commit durable now"):
        await store.commit()
    assert store._catalog.get(ids[0]).locator.size == 1000
    memory.sync_error = None
    await store.commit()
    assert store._catalog.get(ids[0]).locator.size == 7


async def test_a_write_that_was_refused_before_does_not_fail_a_commit_now(store, memory):
    memory.write_error = ControllerUnavailable("not now")
    handles = [await store.create(bytes(2**18), wait=0) for _ in range(2)]
    flushing = [asyncio.create_task(handle.flush()) for handle in handles]
    for _ in range(100):
        await asyncio.sleep(0)
        if any(write.refused for write in store._writeback._writing.values()):
            break
    memory.write_error = None
    await store.commit()
    await asyncio.gather(*flushing, return_exceptions=True)
    assert not any(handle.dirty for handle in handles)
    for handle in handles:
        handle.release()


async def test_cancelling_a_commit_leaves_it_going_on(store, memory):
    await fill(store, 3)
    memory.write_gate = asyncio.Event()
    commit = asyncio.create_task(store.commit())
    await settle()
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    memory.write_gate.set()
    await store.commit()
    assert store.stats().commits >= 1
    assert store.stats().dirty == 0


async def test_the_background_commits_by_itself(tmp_path, memory):
    async with opening(tmp_path, memory, commit_interval=0.01) as store:
        with store.events() as events:
            await fill(store, 1)
            async with asyncio.timeout(60):
                async for event in events:
                    if event.kind == "commit":
                        break
        assert store.stats().chunks == 1


async def test_names_are_committed_with_the_chunks(tmp_path, memory):
    async with opening(tmp_path, memory) as store:
        (id,) = await fill(store, 1)
        store.set_name(b"a/1", id)
        store.set_name(b"a/2", id)
        store.set_name(b"b", id)
        await store.commit()
        store.set_name(b"a/2", None)
        store.set_name(b"a/3", id)
        assert dict(store.names(b"a/")) == {b"a/1": id, b"a/3": id}
    async with opening(tmp_path, MemoryController(medium=memory.medium)) as store:
        assert store.get_name(b"a/1") == id
        assert store.get_name(b"a/2") is None
        with pytest.raises(InvalidArgumentError):
            store.set_name(b"x" * 512, id)


@pytest.mark.parametrize("commit_at", [0, 1, 1023, 1024, 1025, 5000])
async def test_names_that_are_committed_while_they_are_listed_are_listed_all_and_once(store, commit_at):
    names = [b"n%05d" % number for number in range(6000)]
    for name in names[::2]:
        store.set_name(name, 1)
    await store.commit()
    for name in names[1::2]:
        store.set_name(name, 2)
    listed = []
    for name, _ in store.names(b"n"):
        listed.append(name)
        if len(listed) == commit_at + 1:
            await store.commit()
    assert listed == names


@pytest.mark.parametrize(
    ("name", "id"), [(b"k", 2**64), (b"k", 0), (b"k", -1), (b"k", "7"), ("k", 7), (b"", 7), (b"k" * 512, 7)]
)
async def test_a_name_that_no_commit_could_keep_is_refused(store, name, id):
    (known,) = await fill(store, 1)
    with pytest.raises(InvalidArgumentError):
        store.set_name(name, id)
    store.set_name(b"k", known)
    await store.commit()
    assert list(store.names()) == [(b"k", known)]


async def test_the_catalog_grows_by_itself(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("dstorage.catalog.FIRST_MAP_BYTES", 256 * KIB)
    async with opening(tmp_path, memory) as store:
        for _ in range(4):
            await fill(store, 5000, size=4)
            await store.commit()
        assert store.stats().chunks == 20_000


# -- memory ---------------------------------------------------------------------------------------------------------------


async def test_a_commit_that_was_larger_than_estimated_grows_the_map(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("dstorage.catalog.FIRST_MAP_BYTES", 2**18)
    monkeypatch.setattr("dstorage.catalog.Catalog.make_room", lambda self, entries: None)
    async with opening(tmp_path, memory) as store:
        ids = await fill(store, 2000, size=100)
        for id in ids:
            store.set_name(b"%0500d" % id, id)
        await store.commit()
    async with opening(tmp_path, memory) as store:
        assert [id for _, id in store.names()] == ids
        assert all(store.info(id) for id in ids)


async def test_pages_that_a_killed_reader_held_are_used_again(tmp_path, memory):
    async with opening(tmp_path, memory) as store:
        ids = await fill(store, 1000, size=8)
        await store.commit()
        script = (
            "import sys, pathlib, dstorage.catalog as c; catalog = c.Catalog(pathlib.Path(sys.argv[1]), read_only=True);"
            "print(catalog.count(), flush=True); sys.stdin.read()"
        )
        reader = subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "catalog"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with reader:
            assert reader.stdout.readline() == b"1000\n"
            reader.kill()

        async def size_after_commits():
            for _ in range(10):
                for id in ids:
                    store.set_name(b"%d" % id, id)
                await store.commit()
            return (tmp_path / "catalog" / "data.mdb").stat().st_size

        assert await size_after_commits() == await size_after_commits()


async def test_the_budget_changes_while_running_down_to_what_references_hold(store):
    ids = await fill(store, 100, 8000)
    await store.commit()
    held = store.handle(ids[0])
    await held
    store.set_budget(50_000)
    assert store.stats().used <= 50_000
    store.set_budget(1000)
    assert store.stats().used == 8000
    assert held.data[:4] == bytes(4)
    held.release()
    with pytest.raises(MemoryUnavailable, match="more than the whole budget"):
        async with store.handle(ids[1]):
            pass
    store.set_budget(2**20)
    async with store.handle(ids[1]) as data:
        assert len(data) == 8000


async def test_nobody_waits_for_a_chunk_that_is_larger_than_the_whole_budget(tmp_path):
    async with opening(tmp_path, DiskController()) as store:
        with await store.create(bytes(300_000)) as handle:
            id = handle.id
    async with opening(tmp_path, DiskController(), budget=200_000) as store:
        told = asyncio.get_running_loop().create_future()
        with store.handle(id) as handle:
            handle.resolve(told.set_result, wait=1000)
            async with asyncio.timeout(60):
                with pytest.raises(MemoryUnavailable, match="more than the whole budget of 200000") as caught:
                    await handle.get(wait=1000)
                assert (await told).status is Status.TEMPORARILY_UNAVAILABLE
            assert caught.value.never
            store.set_budget(400_000)
            assert len(await handle.get(wait=30)) == 300_000


async def test_a_running_budget_takes_the_forms_that_opening_takes(store):
    store.set_budget("2M")
    assert store.stats().budget == 2 * 2**20
    for budget in (0, -1, 1.5, "much", None):
        with pytest.raises(InvalidArgumentError):
            store.set_budget(budget)
    assert store.stats().budget == 2 * 2**20


async def test_a_producer_faster_than_the_controller_is_slowed(tmp_path, memory):
    async with opening(tmp_path, memory, budget=100_000, dirty_share=0.3) as store:
        memory.write_gate = asyncio.Event()
        created = 0

        async def produce():
            nonlocal created
            for _ in range(30):
                (await store.create(bytes(5000))).release()
                created += 1

        task = asyncio.create_task(produce())
        await settle(50)
        assert created == 6
        assert store.stats().dirty == 30_000
        with pytest.raises(MemoryUnavailable, match="30000 dirty"):
            store.create_nowait(bytes(5000))
        memory.write_gate.set()
        await task
        assert created == 30


async def test_limits_on_handles(tmp_path, memory):
    async with opening(tmp_path, memory, max_handles=10, max_cached=4) as store:
        ids = await fill(store, 20)
        await store.commit()
        for id in ids:
            async with store.handle(id):
                pass
        assert store.stats().handles <= 5
        held = [store.handle(id) for id in ids[:10]]
        with pytest.raises(TooManyHandles, match="max_handles"):
            store.handle(ids[10])
        for handle in held:
            handle.release()
        async with store.handle(ids[10]):
            pass


async def test_a_handle_that_finds_no_room_in_the_table_is_as_it_was(tmp_path, memory):
    async with opening(tmp_path, memory, max_handles=2) as store:
        ids = await fill(store, 3)
        await store.commit()
        with store.handle(ids[0]) as kept:
            pass
        held = [store.handle(id) for id in ids[1:]]
        assert kept.id not in store.table.handles
        used = store.stats().used
        unbound = store.table.unbound()
        for act in (
            kept.acquire,
            lambda: store.handle(kept.id),
            lambda: kept.replace_nowait(bytes(500)),
            lambda: unbound.bind(kept.id),
            lambda: unbound.bind(2**40),
            lambda: store.contents.delete_each([kept.id]),
        ):
            with pytest.raises(TooManyHandles):
                act()
        assert (store.stats().used, store.stats().dirty) == (used, 0), "what was reserved is given back"
        assert (kept.refs, kept.status) == (0, Status.NOT_RESOLVED)
        assert (unbound.refs, unbound.status) == (1, Status.UNINITIALISED)
        held.pop().release()
        with store.handle(kept.id) as again:
            assert again is kept, "one handle per id"
        assert unbound.bind(kept.id) == kept
        assert store.contents.delete_each([kept.id]) == 1
        assert kept.status is Status.DELETED, "whoever holds it is told"
        unbound.release()
        held.pop().release()


async def test_a_create_that_fails_leaves_its_room(tmp_path, memory):
    async with opening(tmp_path, memory, max_handles=4) as store:
        ids = await fill(store, 4)
        used = store.stats().used
        memory.write_error = ControllerUnavailable("not now")
        with pytest.raises(TemporarilyUnavailable):
            await store.create(bytes(1000))
        assert (store.stats().used, store.stats().dirty) == (used, used)
        memory.write_error = None
        ids += await fill(store, 1)
        assert len(set(ids)) == 5


async def test_what_is_being_stored_keeps_its_size_while_the_call_waits_for_room(store):
    data = bytearray(1000)
    full = [await store.create(bytes(2**17)) for _ in range(4)]
    creating = asyncio.create_task(store.create(data, wait=5))
    await asyncio.sleep(0)
    with pytest.raises(BufferError):
        data += bytes(1000)
    with await creating as handle:
        assert handle.size == 1000
    data += b"free again"
    for other in full:
        other.release()


async def test_one_pass_over_everything_does_not_flush_the_hot_set(tmp_path, memory):
    async with opening(tmp_path, memory, budget=100_000) as store:
        ids = await fill(store, 1000)
        await store.commit()
        hot = ids[:50]
        for _ in range(4):
            for id in hot:
                async with store.handle(id):
                    pass
        for id in ids[200:]:
            async with store.handle(id):
                pass
        assert sum(store.info(id).resident for id in hot) >= 40


# -- many -----------------------------------------------------------------------------------------------------------------


async def test_resolve_each_gives_more_than_memory_holds(tmp_path, memory):
    async with opening(tmp_path, memory, budget=50_000) as store:
        ids = await fill(store, 300)
        found = {}
        async for handle in store.resolve_each([*ids, 99999]):
            found[handle.id] = handle.status
        assert found == dict.fromkeys(ids, Status.RESOLVED) | {99999: Status.LOST}
        assert store.stats().handles <= 60


async def test_many_at_once_keep_to_the_limit_on_handles(tmp_path, memory):
    async with opening(tmp_path, memory, max_handles=8) as store:
        ids = await fill(store, 40, size=100)
        await store.commit()
        assert sorted([handle.id async for handle in store.resolve_each(ids)]) == ids
        with pytest.raises(TooManyHandles):
            await store.resolve_all(ids)
        with pytest.raises(TooManyHandles):
            await store.wait(ids, 1)
        with pytest.raises(InvalidArgumentError):
            await store.resolve_all([*ids[:3], 0])
        held = [store.handle(id) for id in ids[:8]]
        with pytest.raises(TooManyHandles):
            await anext(aiter(store.resolve_each(ids[8:])))
        for handle in held:
            handle.release()
        assert not any(handle.refs for handle in store.table.handles.values())


async def test_resolve_all_is_all_or_nothing(store):
    ids = await fill(store, 5)
    handles = await store.resolve_all(ids)
    assert [h.id for h in handles] == ids
    for handle in handles:
        handle.release()
    with pytest.raises(Lost):
        await store.resolve_all([*ids, 99999])
    assert all(store.info(id).refs == 0 for id in ids)


async def test_a_controller_that_fails_for_a_moment_at_close_loses_nothing(tmp_path, memory):
    store = await dstorage.open(tmp_path / "store", budget=2**20, controllers=[memory], pressure=None)
    with await store.create(b"kept") as handle:
        id = handle.id
    memory.sync_error = dstorage.ControllerUnavailable("a moment")
    closing = asyncio.create_task(store.close())
    while not memory.writes:
        await asyncio.sleep(0.01)
    memory.sync_error = None
    await closing
    async with (
        dstorage.open(tmp_path / "store", budget=2**20, controllers=[memory], pressure=None) as store,
        store.handle(id) as data,
    ):
        assert data == b"kept"


async def test_what_a_commit_under_way_at_close_holds_is_not_lost(tmp_path, memory, monkeypatch):
    store = await dstorage.open(tmp_path / "store", budget=2**20, controllers=[memory], pressure=None)
    with await store.create(b"before") as handle:
        await store.commit()
        await handle.replace(b"kept")
        id = handle.id
    syncing, go_on = asyncio.Event(), asyncio.Event()

    async def sync():
        syncing.set()
        await go_on.wait()

    monkeypatch.setattr(memory, "sync", sync)
    committing = asyncio.create_task(store.commit())
    await syncing.wait()
    closing = asyncio.create_task(store.close())
    for _ in range(10):
        await asyncio.sleep(0)
    go_on.set()
    await closing
    await committing
    async with (
        dstorage.open(tmp_path / "store", budget=2**20, controllers=[memory], pressure=None) as store,
        store.handle(id) as data,
    ):
        assert data == b"kept"


@pytest.mark.parametrize("error", [ControllerUnavailable("a moment"), MemoryError("the machine has none")])
async def test_background_commits_go_on_after_one_that_failed(tmp_path, memory, error):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    async with opening(tmp_path, memory, commit_interval=0.01) as store:
        memory.sync_error = error
        (await store.create(b"kept")).release()
        async with asyncio.timeout(60):
            while not told:
                await asyncio.sleep(0.01)
            memory.sync_error = None
            while not memory.syncs:
                await asyncio.sleep(0.01)
        assert any("the background commit failed; it is tried again" in message for message in told)


async def test_wait_gives_the_first_n(store, memory):
    ids = await fill(store, 5)
    await store.commit()
    store.set_budget(1)
    store.set_budget(2**20)
    memory.gate = asyncio.Event()
    assert await store.wait(ids, 2, timeout=0.02) == []
    memory.gate.set()
    came = await store.wait(ids, 2, timeout=10)
    assert len(came) == 2
    for handle in came:
        assert handle.status is Status.RESOLVED
        handle.release()
    with pytest.raises(InvalidArgumentError):
        await store.wait(ids, 6)
    assert await store.wait([], 0) == []


async def test_wait_counts_a_chunk_once_however_often_it_is_named(store):
    first, second = await fill(store, 2)
    for ids in ([first, first, second], iter([first, second, first]), {first, second}):
        came = await store.wait(ids, 2)
        assert [handle.id for handle in came] == [first, second]
        for handle in came:
            handle.release()
    for n in (3, -1, 1.5, "1", True):
        with pytest.raises(InvalidArgumentError, match=r"^n=.*: give 0 to 2: there are 2 different chunks"):
            await store.wait([first, first, second], n)
    (handle,) = await store.wait([np.uint64(first), first, np.int32(first)], np.int64(1))
    handle.release()
    assert all(store.info(id).refs == 0 for id in (first, second))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("make", [float, bool, str])
async def test_calls_of_many_ids_refuse_what_only_equals_one(store, resident, make):
    (id,) = await fill(store, 1)
    await store.commit()
    assert id == 1
    if not resident:
        store.set_budget(1)
        store.set_budget(2**20)
    for call in (
        lambda: store.wait([make(id)]),
        lambda: store.resolve_all([id, make(id)]),
        lambda: anext(store.resolve_each([make(id)])),
    ):
        with pytest.raises(InvalidArgumentError, match="is no chunk id"):
            await call()
    assert store.info(id).refs == 0


async def test_wait_gives_as_many_as_memory_holds_and_the_others_say_so(store):
    ids = await fill(store, 4, size=400_000)
    await store.commit()
    store.set_budget(1)
    store.set_budget(2**20)
    came = await store.wait(ids)
    assert len(came) == 2
    (missing, *_) = set(ids) - {handle.id for handle in came}
    with store.handle(missing) as handle, pytest.raises(MemoryUnavailable):
        await handle
    for handle in came:
        handle.release()
    async with store.handle(missing):
        pass


async def test_wait_gives_fewer_where_the_others_cannot_be_had(store, memory):
    ids = await fill(store, 4)
    await store.commit()
    with store.handle(ids[0]) as handle:
        handle.delete()
    store.set_budget(1)
    store.set_budget(2**20)
    memory.set_unavailable(True)
    assert await store.wait(ids, 2) == []
    waiting = asyncio.create_task(store.wait([*ids, 99999], 3, timeout=60))
    await settle()
    memory.set_unavailable(False)
    came = await waiting
    assert sorted(handle.id for handle in came) == ids[1:]
    for handle in came:
        handle.release()
    assert await store.wait([ids[0], 99999], timeout=60) == []


async def test_prefetch_is_a_hint_that_never_fails(store, memory):
    ids = await fill(store, 50)
    await store.commit()
    store.set_budget(1)
    store.set_budget(2**20)
    store.prefetch([*ids, 0, -5, 99999])
    await settle()
    assert all(store.info(id).resident for id in ids)
    assert len(memory.reads) == 50
    assert store.stats().unavailable == 0


async def test_events_tell_what_happens(store, memory):
    with store.events() as events:
        (id,) = await fill(store, 1)
        await store.commit()
        store.set_budget(1)
        store.set_budget(2**20)
        async with store.handle(id):
            pass
        with store.handle(id) as handle:
            handle.delete()
    kinds = [event.kind async for event in events]
    assert kinds == ["created", "written", "commit", "evicted", "resolved", "deleted"]


def test_warnings_are_errors_here():
    with pytest.raises(UserWarning):
        warnings.warn("x", stacklevel=1)


async def test_changes_from_another_thread_are_refused(store):
    """Only the loop's own thread may change anything: the others are told of the blocking store."""
    with await store.create(b"bytes") as handle:

        async def make():
            await store.create(b"more")

        changes = [lambda: asyncio.run(make()), lambda: store.create_nowait(b"more"), lambda: handle.replace_nowait(b"x"),
                   handle.delete, handle.edit().__enter__, lambda: store.set_name(b"name", 1)]  # fmt: skip
        for change in changes:
            with pytest.raises(dstorage.UsageError, match=r"dstorage\.blocking"):
                await asyncio.to_thread(change)
        assert bytes(await handle) == b"bytes"
    assert store.stats().used == 5


async def test_a_controller_that_is_registered_anew_is_there_while_a_commit_goes_on(tmp_path):
    medium, second = Medium(), MemoryController("second", rank=5)
    async with dstorage.open(
        tmp_path / "store", controllers=[MemoryController(medium=medium), second], commit_interval=None, tiering=False
    ) as store:
        second.write_gate = asyncio.Event()
        with await store.create(b"y", controller="second"):
            committing = [asyncio.create_task(store.commit())]
            await settle()
            registering = asyncio.create_task(store.register(MemoryController(medium=medium)))
            await settle()
            with await store.create(b"z", controller="memory"):
                committing.append(asyncio.create_task(store.commit()))
                await settle()
                second.write_gate.set()
                await asyncio.wait_for(asyncio.gather(*committing, registering), 60)


@pytest.mark.parametrize("turns", range(8))
async def test_scratch_that_is_on_its_way_to_a_volatile_controller_at_the_close_is_kept(tmp_path, turns):
    disk, volatile = MemoryController("disk", rank=10), MemoryController("volatile", rank=90, volatile=True)
    async with dstorage.open(
        tmp_path / "store", controllers=[disk, volatile], commit_interval=None, tiering=False
    ) as store:
        volatile.write_gate = asyncio.Event()
        with await store.create(b"scratch", durable=False) as handle:
            id = handle.id
            flush = asyncio.create_task(handle.flush())
            await settle()
        closing = asyncio.create_task(store.close())
        await settle(turns)
        volatile.write_gate.set()
        await asyncio.wait_for(asyncio.gather(closing, flush, return_exceptions=True), 60)
    again = [
        MemoryController("disk", rank=10, medium=disk.medium),
        MemoryController("volatile", rank=90, volatile=True),
    ]
    async with (
        dstorage.open(tmp_path / "store", controllers=again, commit_interval=None, tiering=False) as store,
        store.handle(id) as data,
    ):
        assert data == b"scratch"


async def test_a_register_with_other_settings_that_is_cancelled_takes_no_chunks(tmp_path):
    async with dstorage.open(
        tmp_path / "store", controllers=[DiskController("disk", tmp_path / "one")], commit_interval=None, tiering=False
    ) as store:
        slow = MemoryController("slow", rank=5)
        await store.register(slow)
        slow.write_gate = asyncio.Event()
        with await store.create(b"y", controller="slow"):
            committing = asyncio.create_task(store.commit())
            await settle()
            other = DiskController("disk", tmp_path / "two")
            registering = asyncio.create_task(store.register(other))
            await asyncio.sleep(0.1)
            registering.cancel()
            slow.write_gate.set()
            await asyncio.wait([registering, committing])
        assert store.entry_named("disk").controller is not other
