"""A transaction manager in memory that checks the rules on every call.

No block is written but one of this transaction that nobody shares; what is committed never changes; counts never fall below
zero; `check` counts all references from given roots and finds every leak.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dstorage.persistent.errors import DamagedMetadataError

BLOCK_BYTES = 4096


@dataclass
class FakeBlock:
    data: bytearray
    number: int
    writable: bool


class FakeTransactionManager:
    def __init__(self) -> None:
        self.blocks: dict[int, bytearray] = {}
        self.counts: Counter[int] = Counter()
        self.committed: dict[int, bytes] = {}
        self.shadows: set[int] = set()
        self.freed: set[int] = set()
        self.held: dict[int, FakeBlock] = {}
        self.next = 1
        self.views: dict[tuple[int, object], object] = {}
        self.kinds: dict[int, object] = {}
        self.prefetched: list[int] = []
        self.limit: int | None = None
        self.reads = 0
        self.generation = 0
        self.broken: set[int] = set()

    # -- the pinned interface

    def read_lock(self, number, validator):
        assert number not in self.held, f"block {number} is held already"
        self._known(number, validator)
        return FakeBlock(memoryview(bytes(self.blocks[number])), number, False)

    def unlock(self, block):
        if block.writable:
            assert self.held.pop(block.number) is block

    def new_block(self, validator):
        if self.limit is not None and len(self.blocks) - len(self.freed) >= self.limit:
            raise OSError(28, "no block is free")
        self.generation += 1
        number, self.next = self.next, self.next + 1
        self.blocks[number] = bytearray(BLOCK_BYTES)
        self.kinds[number] = validator
        self.counts[number] = 1
        self.shadows.add(number)
        return self._write(number)

    def shadow_block(self, number, validator):
        self._known(number, validator)
        inc_children = self.counts[number] > 1
        if number in self.shadows and not inc_children:
            return self._write(number), False
        assert number not in self.held
        block = self.new_block(validator)
        block.data[:] = self.blocks[number]
        self.dec(number)
        return block, inc_children

    def inc(self, number):
        assert self.counts[number] > 0, f"block {number} is free"
        self.generation += 1
        self.counts[number] += 1

    def dec(self, number):
        assert self.counts[number] > 0, f"block {number} is free"
        self.generation += 1
        self.counts[number] -= 1
        if not self.counts[number]:
            self.freed.add(number)

    def ref(self, number):
        return self.counts[number]

    def is_shared(self, number):
        return self.counts[number] > 1

    def prefetch(self, numbers):
        self.prefetched += numbers

    def peek(self, number, validator, decode):
        view = self.views.get((number, decode))
        if view is None:
            assert number not in self.held, f"block {number} is being written"
            if number not in self.blocks:
                raise DamagedMetadataError(f"there is no block {number}", block=number)
            self._known(number, validator)
            self.reads += 1
            if number in self.broken:
                raise DamagedMetadataError(f"block {number} is damaged", block=number)
            view = self.views[number, decode] = decode(memoryview(bytes(self.blocks[number])))
        return view

    # -- the rest of a transaction

    def commit(self):
        assert not self.held, f"locks held at commit: {sorted(self.held)}"
        self._committed_is_as_it_was()
        self.generation += 1
        for number in self.freed:
            del self.blocks[number], self.counts[number]
            self.views = {key: view for key, view in self.views.items() if key[0] != number}
        self.freed.clear()
        self.shadows.clear()
        self.committed = {number: bytes(data) for number, data in self.blocks.items()}

    def abort(self):
        raise NotImplementedError

    def check(self, references: Counter[int]):
        """Counts are exactly these references, no lock is held, nothing committed was overwritten."""
        assert not self.held, f"locks held: {sorted(self.held)}"
        assert +self.counts == +references
        self._committed_is_as_it_was()

    def _committed_is_as_it_was(self):
        for number, data in self.committed.items():
            assert number in self.freed or number in self.blocks
            assert self.blocks[number] == data, f"committed block {number} was overwritten"

    def _known(self, number, validator):
        assert self.counts[number] > 0, f"block {number} is free"
        assert self.kinds[number] is validator

    def _write(self, number):
        assert number not in self.held, f"block {number} is held already"
        assert number in self.shadows
        assert self.counts[number] == 1
        self.views = {key: view for key, view in self.views.items() if key[0] != number}
        block = self.held[number] = FakeBlock(self.blocks[number], number, True)
        return block
