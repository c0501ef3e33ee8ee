"""A blocking store does what a dict does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from memory_controller import MemoryController

import dstorage.blocking
from dstorage import Deleted, Lost

CONTENTS = st.binary(max_size=3000)


class BlockingStore(RuleBasedStateMachine):
    chunks = Bundle("chunks")
    gone = Bundle("gone")

    def __init__(self):
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._controller = MemoryController()
        self.model: dict[int, bytes] = {}
        self.names: dict[bytes, int] = {}
        self._open()

    def _open(self):
        self.store = dstorage.blocking.open(
            Path(self._folder.name) / "store",
            budget=10_000,
            commit_interval=None,
            pressure=None,
            controllers=[MemoryController(medium=self._controller.medium)],
        )

    @rule(target=chunks, data=CONTENTS)
    def create(self, data):
        id = self.store.create(data, wait=30).id
        assert id not in self.model
        self.model[id] = data
        return id

    @rule(id=chunks)
    def get(self, id):
        assert bytes(self.store.get(id, wait=30)) == self.model[id]
        assert self.store.handle(id).size == len(self.model[id])

    @rule(id=chunks, data=CONTENTS)
    def replace(self, id, data):
        self.store.handle(id).replace(data, wait=30)
        self.model[id] = data

    @rule(id=chunks, byte=st.integers(0, 255), fails=st.booleans())
    def edit(self, id, byte, fails):
        changed = bytes([byte]) * len(self.model[id])
        try:
            with self.store.handle(id).edit(wait=30) as buffer:
                assert bytes(buffer) == self.model[id]
                buffer[:] = changed
                if fails:
                    raise KeyError
        except KeyError:
            return
        self.model[id] = changed

    @rule(target=gone, id=consumes(chunks))
    def delete(self, id):
        self.store.handle(id).delete()
        del self.model[id]
        return id

    @rule(id=gone)
    def get_deleted(self, id):
        with pytest.raises((Lost, Deleted)):
            self.store.get(id)

    @rule(name=st.binary(min_size=1, max_size=3), id=chunks)
    def set_name(self, name, id):
        self.store.set_name(name, id)
        self.names[name] = id

    @rule(budget=st.integers(5000, 20_000))
    def set_budget(self, budget):
        self.store.set_budget(budget)

    @rule()
    def commit(self):
        self.store.commit()
        assert list(self.store.ids()) == sorted(self.model)

    @rule()
    def reopen(self):
        self.store.close()
        self._open()

    @invariant()
    def names_are_kept(self):
        assert dict(self.store.names()) == self.names

    @invariant()
    def nothing_is_held(self):
        assert self.store.stats().stray == 0

    def teardown(self):
        self.store.close()
        self._folder.cleanup()


TestBlockingStore = BlockingStore.TestCase
TestBlockingStore.settings = settings(settings.get_profile("dstorage"), max_examples=25, stateful_step_count=25)
