"""Model-based: a store, whatever is done to it in whatever order, equals a plain dict; and its books are exact."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from memory_controller import InlineController, MemoryController

import dstorage

BUDGET = 64 * 1024
sizes = st.sampled_from([0, 1, 100, 4096, 9000, 20_000])


class StoreModel(RuleBasedStateMachine):
    chunks = Bundle("chunks")

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.slow = MemoryController("slow", rank=10)
        self.scratch_disk = MemoryController("ram", rank=90, capacity=50_000, volatile=True)
        self.model: dict[int, bytes] = {}
        self.committed: dict[int, bytes] = {}
        self.scratch: set[int] = set()
        self.held: list[dstorage.Handle] = []
        self.counter = 0

    def run(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    @initialize(inline=st.booleans())
    def begin(self, inline):
        kind = InlineController if inline else MemoryController
        self.fast = kind("fast", rank=50, capacity=100_000)
        self.open()

    def open(self):
        async def opening():
            return await dstorage.open(
                Path(self.folder.name) / "store",
                budget=BUDGET,
                controllers=[self.fast, self.slow, self.scratch_disk],
                commit_interval=None,
                pressure=None,
            )

        self.store = self.run(opening())

    def fresh(self, size):
        self.counter += 1
        return self.counter.to_bytes(4, "little") * (size // 4) + b"x" * (size % 4)

    @rule(target=chunks, size=sizes, durable=st.booleans())
    def create(self, size, durable):
        data = self.fresh(size)

        async def work():
            with await self.store.create(data, durable=durable) as handle:
                return handle.id

        id = self.run(work())
        assert id not in self.model
        self.model[id] = data
        if not durable:
            self.scratch.add(id)
        return id

    @rule(id=chunks)
    def read(self, id):
        async def work():
            async with self.store.handle(id) as data:
                return bytes(data)

        assert self.run(work()) == self.model[id]

    @rule(id=chunks, size=sizes)
    def replace(self, id, size):
        data = self.fresh(size)

        async def work():
            with self.store.handle(id) as handle:
                await handle.replace(data)

        self.run(work())
        self.model[id] = data

    @rule(id=chunks, fail=st.booleans())
    def edit(self, id, fail):
        async def work():
            with self.store.handle(id) as handle:
                async with handle.edit() as buf:
                    if len(buf):
                        buf[-1] ^= 0xFF
                    if fail:
                        raise ZeroDivisionError

        try:
            self.run(work())
        except ZeroDivisionError:
            return
        if data := self.model[id]:
            self.model[id] = data[:-1] + bytes([data[-1] ^ 0xFF])

    @rule(id=consumes(chunks))
    def delete(self, id):
        async def work():
            with self.store.handle(id) as handle:
                handle.delete()

        self.run(work())
        del self.model[id]
        self.scratch.discard(id)

    @rule(id=chunks)
    def flush(self, id):
        async def work():
            async with self.store.handle(id):
                with self.store.handle(id) as handle:
                    await handle.flush()

        self.run(work())

    @rule(ids=st.lists(chunks, max_size=8))
    def prefetch(self, ids):
        async def work():
            self.store.prefetch(ids)
            await asyncio.sleep(0)

        self.run(work())

    @rule(ids=st.lists(chunks, max_size=12))
    def read_many(self, ids):
        async def work():
            found = {}
            async for handle in self.store.resolve_each(ids):
                found[handle.id] = bytes(handle.data)
            return found

        assert self.run(work()) == {id: self.model[id] for id in ids}

    @rule(id=chunks, to=st.sampled_from(["fast", "slow"]))
    def migrate(self, id, to):
        async def work():
            # No room there: it stays where it is.
            with contextlib.suppress(dstorage.StoreFull, dstorage.MemoryUnavailable):
                await self.store.migrate([id], to=to)

        self.run(work())

    @rule()
    def commit(self):
        self.run(self.store.commit())
        self.committed = {id: data for id, data in self.model.items() if id not in self.scratch}

    @rule(failing=st.sampled_from(["write", "sync"]))
    def failing_commit(self, failing):
        error = dstorage.ControllerUnavailable("cable out")
        for controller in (self.fast, self.slow):
            setattr(controller, f"{failing}_error", error)
        try:
            self.run(self.store.commit())
            self.committed = {id: data for id, data in self.model.items() if id not in self.scratch}
        except (dstorage.TemporarilyUnavailable, dstorage.StoreFull):
            pass
        finally:
            for controller in (self.fast, self.slow):
                setattr(controller, f"{failing}_error", None)
        self.run(self.back())

    async def back(self):
        self.fast.context.status_changed()
        await asyncio.sleep(0)

    @rule()
    def close_and_reopen(self):
        self.run(self.store.close())
        self.scratch.clear()
        self.committed = dict(self.model)
        self.open()

    @invariant()
    def books_are_exact(self):
        if not hasattr(self, "store"):
            return
        # An exception's traceback may hold a view in a cycle.
        gc.collect(0)
        self.run(asyncio.sleep(0))
        stats = self.store.stats()
        assert stats.used <= BUDGET
        assert stats.stray == 0
        handles = self.store.table.handles
        assert stats.used == sum(len(h.buffer) for h in handles.values() if h.buffer is not None)
        assert stats.dirty == sum(h.size for h in handles.values() if h.dirty)

    def teardown(self):
        if hasattr(self, "store"):
            self.run(self.store.close())
            self.committed = dict(self.model)
            self.open()
            assert list(self.store.ids()) == sorted(self.model)
            for id in self.model:
                self.read(id)

            async def commit():
                await self.store.commit()
                await asyncio.sleep(0)

            self.run(commit())
            # No place leaks: what the controllers keep is what the catalog names.
            kept = sorted(data for c in (self.fast, self.slow) for data in c.medium.cells.values())
            assert kept == sorted(self.model.values())
            self.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()
        gc.collect()


StoreModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestStoreModel = StoreModel.TestCase
