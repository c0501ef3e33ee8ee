"""Reading in the program's own threads: right or not at all, whatever the loop does at that moment."""

from __future__ import annotations

import random
import struct
import threading
import time

import numpy as np
import pytest
from blocking_store import Threads

import dstorage
import dstorage.blocking
from dstorage.errors import ClosedError, Deleted, Lost, MemoryUnavailable, TemporarilyUnavailable

KIB = 1024


@pytest.fixture
def store(tmp_path):
    """A blocking store on a disk, committing only when told; its folder is on a file system with a page cache."""
    with opening(tmp_path) as opened:
        yield opened


def opening(path, **options):
    defaults = {"budget": 2**20, "commit_interval": None, "pressure": None, "tiering": False}
    return dstorage.blocking.open(path / "store", **(defaults | options))


def evict(store):
    """Have everything written and out of memory."""
    store.commit()
    budget = store.stats().budget
    store.set_budget(1)
    store.set_budget(budget)


def direct(store, id):
    return store.inner.shortcut.read(id)


def contents(id, version, size):
    """Contents of which every part tells whose they are and which."""
    return (struct.pack("<QQ", id, version) * (size // 16 + 1))[:size]


@pytest.fixture
def cached(store):
    """Ten chunks that are committed, in the page cache, and not in memory."""
    handles = [store.create(contents(number, 0, 5000)) for number in range(10)]
    evict(store)
    return handles


def test_a_chunk_in_the_page_cache_is_read_without_the_loop(store, cached, monkeypatch):
    def fail(*_):
        raise AssertionError("a trip to the loop")

    before = store.stats()
    monkeypatch.setattr(store.loop, "_send", fail)
    assert [handle.get() for handle in cached] == [contents(number, 0, 5000) for number in range(10)]
    monkeypatch.undo()
    after = store.stats()
    assert (after.page_ins - before.page_ins, after.bytes_read - before.bytes_read) == (10, 50_000)
    assert after.used == 0, "it is the reader's own, and in no budget"


def test_what_is_read_here_only_moves_up_to_a_faster_controller_all_the_same(tmp_path):
    from dstorage_controllers.disk import DiskController

    fast, slow = (DiskController(name, tmp_path / name, rank=rank) for name, rank in (("fast", 90), ("slow", 10)))
    with opening(tmp_path, controllers=[fast, slow], tiering=dstorage.TieringRules(interval=3600)) as store:
        ids = [store.create(bytes([number]) * 60_000).id for number in range(60)]
        store.commit()
        store.migrate(ids, to="slow")
        evict(store)
        tiering = store.inner.tiering
        idle = [tiering._idle(), tiering._idle()]
        for _ in range(2):
            for id in ids:
                store.get(id)
        assert store.inner.shortcut.chunks_read == 120
        assert [*idle[1:], tiering._idle()] == [True, False]
        assert store.call(tiering.step) == 60


def test_what_is_read_is_read_only(cached):
    assert cached[0].get().readonly


@pytest.mark.parametrize("size", [0, 2, 17, 4096, 128 * KIB, 128 * KIB + 1, 2**20])
@pytest.mark.parametrize("compress", [False, True])
def test_every_length_comes_back_whole(tmp_path, size, compress):
    from dstorage_controllers.disk import DiskController

    with opening(tmp_path, budget=2**22, controllers=[DiskController(compress=compress)]) as store:
        data = random.Random(size).randbytes(size) if size % 2 else contents(7, 7, size)
        handle = store.create(data)
        evict(store)
        assert direct(store, handle.id) == (data if size else None)
        assert handle.get() == data


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_an_id_may_be_an_integer_of_any_kind(store, cached, kind):
    id = kind(cached[3].id)
    assert direct(store, id) == contents(3, 0, 5000)
    assert store.get(id) == contents(3, 0, 5000)
    store.migrate([id], to="disk")
    store.commit()
    assert store.get(id) == contents(3, 0, 5000)


def test_what_is_asked_for_again_comes_into_memory(store, cached):
    for handle in cached:
        handle.get()
    assert all(store.peek(handle.id) is None for handle in cached)
    for handle in cached:
        handle.get()
    assert all(store.peek(handle.id) is not None for handle in cached)


def test_what_is_asked_for_after_more_than_memory_holds_is_not(store):
    """Going round through more than the budget leaves what is in memory there."""
    often = store.create(b"often")
    handles = [store.create(bytes(60_000)) for _ in range(60)]
    evict(store)
    for _ in range(2):
        often.get()
    for _ in range(3):
        for handle in handles:
            handle.get()
    assert store.peek(often.id) is not None
    assert store.memory_used == len(b"often")


def test_there_is_a_bound_on_what_is_remembered(store, cached, monkeypatch):
    monkeypatch.setattr("dstorage.shortcut.REMEMBERED", 3)
    for handle in cached:
        handle.get()
    shortcut = store.inner.shortcut
    assert len(shortcut._once) + len(shortcut._before) <= 8


def test_what_somebody_keeps_in_memory_is_the_loops(store, cached):
    handle = cached[0].acquire()
    assert direct(store, handle.id) is None
    handle.get()
    assert store.peek(handle.id) is not None
    handle.release()


def test_unknown_deleted_and_impossible_ids_are_the_loops(store, cached):
    cached[0].delete()
    for id in (cached[0].id, 2**63, 0, -1, 2**64, "one"):
        assert direct(store, id) is None
    with pytest.raises((Lost, Deleted)):
        cached[0].get()
    store.commit()
    assert direct(store, cached[0].id) is None


def test_a_removed_or_unloaded_controller_is_the_loops(store, cached):
    store.unload("disk")
    assert direct(store, cached[0].id) is None
    store.declare_removed("disk")
    assert direct(store, cached[1].id) is None
    with pytest.raises(Lost):
        cached[1].get()


def test_a_chunk_too_large_for_the_budget_is_refused_as_ever(store, cached):
    store.set_budget(4999)
    with pytest.raises(MemoryUnavailable):
        cached[0].get()


def test_a_damaged_chunk_is_the_loops(tmp_path, store, cached):
    (file,) = (tmp_path / "store").rglob("*.seg")
    data = bytearray(file.read_bytes())
    at = data.index(contents(3, 0, 5000))
    data[at + 2500] ^= 1
    file.write_bytes(data)
    assert direct(store, cached[3].id) is None
    assert direct(store, cached[4].id) == contents(4, 0, 5000)
    with pytest.raises(Lost):
        cached[3].get()


def test_a_closed_store_says_so(tmp_path):
    store = opening(tmp_path)
    handle = store.create(b"data")
    evict(store)
    store.close()
    assert direct(store, handle.id) is None
    with pytest.raises(ClosedError):
        handle.get()


def test_a_reading_store_asks_the_loop_which_knows_when_it_looked_last(tmp_path, store, cached):
    with opening(tmp_path, read_only=True) as reader:
        assert direct(reader, cached[0].id) is None
        assert reader.get(cached[0].id) == contents(0, 0, 5000)


# -- at that moment --------------------------------------------------------------------------------------------------


def meanwhile(store, monkeypatch, work):
    """Have `work` done on the loop between the looking up in the catalog and what follows."""
    catalog = store.inner._catalog
    look_up = catalog.look_up

    def then(id):
        record = look_up(id)
        monkeypatch.setattr(catalog, "look_up", look_up)
        work()
        return record

    monkeypatch.setattr(catalog, "look_up", then)


def test_replaced_written_and_committed_while_it_is_looked_up(store, cached, monkeypatch):
    handle = cached[0]

    def work():
        handle.replace(contents(0, 1, 5000))
        evict(store)

    meanwhile(store, monkeypatch, work)
    assert direct(store, handle.id) is None, "the layers were exchanged"
    assert direct(store, handle.id) == contents(0, 1, 5000)


@pytest.mark.parametrize("commit", [False, True])
def test_deleted_while_it_is_looked_up(store, cached, monkeypatch, commit):
    """Before the commit it may still be given, for it was there when the call began; after it, its bytes are gone."""

    def work():
        cached[0].delete()
        if commit:
            store.commit()

    meanwhile(store, monkeypatch, work)
    assert direct(store, cached[0].id) in ((None,) if commit else (None, contents(0, 0, 5000)))
    assert direct(store, cached[0].id) is None


def test_between_the_layers_of_a_commit_nothing_old_is_found(store, cached, monkeypatch):
    """At whatever moment of a commit's failure another thread looks, what was found once is not followed by older."""
    index, id = store.inner._index, cached[0].id
    catalog = index.catalog
    sizes = []

    def look():
        record = index.look_up(id)
        if record is not None:
            sizes.append(record.locator.size)

    class Layer(dict):
        def __setitem__(self, key, value):
            look()
            super().__setitem__(key, value)
            look()

    freeze, apply = index.freeze, catalog.apply

    def freezing():
        freeze()
        index.current = Layer()

    def failing(changes):
        raise TemporarilyUnavailable("no")

    cached[0].replace(contents(0, 1, 6000))
    cached[0].flush()
    monkeypatch.setattr(index, "freeze", freezing)
    monkeypatch.setattr(catalog, "apply", failing)
    look()
    with pytest.raises(TemporarilyUnavailable):
        store.commit()
    look()
    monkeypatch.setattr(catalog, "apply", apply)
    store.commit()
    look()
    assert len(sizes) >= 5
    assert set(sizes) == {6000}


@pytest.mark.parametrize("held", [True, False])
def test_a_deleted_segment_is_closed_when_the_last_reader_is_through(tmp_path, monkeypatch, held):
    from dstorage_controllers.disk import DiskController
    from dstorage_controllers.disk.device import Device

    class Slow(Device):
        """Holds up readers in threads of the program."""

        def __init__(self):
            super().__init__()
            self.reading, self.go_on, self.closed = threading.Event(), threading.Event(), []

        @property
        def can_read_held(self):
            return held and super().can_read_held

        def _wait(self, fd):
            if threading.current_thread().name == "reader":
                self.reading.set()
                assert self.go_on.wait(30)
                assert fd not in self.closed

        def preadv(self, fd, buffers, offset, *, nowait=False):
            self._wait(fd)
            return super().preadv(fd, buffers, offset, nowait=nowait)

        def read_held(self, fd, address, length, offset):
            self._wait(fd)
            return super().read_held(fd, address, length, offset)

        def close(self, fd):
            self.closed.append(fd)
            super().close(fd)

    device = Slow()
    answers = []
    store = opening(tmp_path, controllers=[DiskController(device=device, segment_bytes=16 * KIB)])
    handles = [store.create(contents(number, 0, 6000)) for number in range(10)]
    evict(store)
    reader = threading.Thread(target=lambda: answers.append(direct(store, handles[0].id)), name="reader")
    reader.start()
    assert device.reading.wait(30)
    for handle in handles:
        handle.delete()
    store.commit()
    store.close()
    device.go_on.set()
    reader.join(30)
    assert answers in ([None], [contents(0, 0, 6000)])
    assert not [fd for fd in device.closed if device.closed.count(fd) > 2]


# -- all at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_thread_ever_reads_what_is_old_torn_or_somebody_elses(tmp_path, seed):
    """Readers, while others replace, delete and make chunks, commit, compact, shrink the budget, and at last close the store."""
    from dstorage_controllers.disk import DiskController

    # Small segments, so that they are deleted and made all the time.
    store = opening(tmp_path, budget=256 * KIB, controllers=[DiskController(segment_bytes=64 * KIB)])
    chunks = 24
    ids = [store.create(contents(number, 0, 4000)).id for number in range(chunks)]
    # Version of each that was written at the latest when a call begins, and of which the writing had begun when it ends.
    done, begun = [0] * chunks, [0] * chunks
    closing = threading.Event()
    reads = [0] * 3

    def size(number, version):
        return 1000 + (number * 7919 + version * 104729) % 9000

    def reader(which):
        def run():
            choice = random.Random(seed * 10 + which)
            while True:
                number = choice.randrange(chunks)
                id, floor = ids[number], done[number]
                try:
                    data = bytes(store.get(id))
                except (Deleted, Lost):
                    assert ids[number] != id
                    continue
                except ClosedError:
                    assert closing.is_set()
                    return
                except (MemoryUnavailable, TemporarilyUnavailable):
                    continue
                owner, version = struct.unpack_from("<QQ", data)
                assert owner == number
                assert floor <= version <= begun[number], "older than what was written before, or not written yet"
                assert data == contents(number, version, len(data)), "torn"
                assert version == 0 or len(data) == size(number, version)
                reads[which] += 1

        return run

    def writer():
        choice = random.Random(seed)
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            number = choice.randrange(chunks)
            version = begun[number] = begun[number] + 1
            data = contents(number, version, size(number, version))
            what = choice.random()
            if what < 0.7:
                store.handle(ids[number]).replace(data, wait=60)
            else:
                former, ids[number] = ids[number], store.create(data, durable=what < 0.9, wait=60).id
                done[number] = version
                store.handle(former).delete()
            done[number] = version
            if what < 0.1:
                evict(store)
            elif what < 0.12:
                store.compact(max_live_share=0.9)
        closing.set()
        store.close()

    Threads(*(reader(which) for which in range(3)), writer).join(60)
    assert any(reads)
