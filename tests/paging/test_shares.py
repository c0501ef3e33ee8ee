"""Shares: what is counted is what is there, after any history."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dstorage.paging.car import Car
from dstorage.paging.memory import Memory
from dstorage.paging.page import ABSENT, IN_ORDER, Page

CAPACITY = 64


class SharesMachine(RuleBasedStateMachine):
    """Pages of three namespaces in a `Memory` that shares; the model counts them one by one."""

    @initialize(first=st.integers(0, 5))
    def start(self, first):
        self.pages = {}
        self.next = 1
        self.memory = Memory(
            CAPACITY,
            dirty_share=1.0,
            policy=Car(CAPACITY),
            max_cached=None,
            on_evicted=lambda page, reason: None,
            on_laundry=lambda: None,
        )
        for _ in range(first):
            self.create(0, 3, False)
        self.shares = self.memory.share_out(Car, self.pages.values())
        self.shares.set_share(1, 0.25)
        self.shares.set_share(2, 0.5)

    def create(self, namespace, size, dirty):
        if self.memory.reserve(size, dirty=dirty):
            page = Page(namespace << 56 | self.next)
            self.next += 1
            self.pages[page.id] = page
            self.memory.insert(page, bytes(size + 2)[2:], dirty=dirty)
            self.memory.settled(page)

    def here(self):
        return [page for page in self.pages.values() if page.place != ABSENT]

    def pick(self, number):
        here = self.here()
        return here[number % len(here)] if here else None

    @rule(namespace=st.integers(0, 2), size=st.integers(0, 20), dirty=st.booleans())
    def insert(self, namespace, size, dirty):
        self.create(namespace, size, dirty)

    @rule(number=st.integers(0, 99))
    def hit(self, number):
        if page := self.pick(number):
            page.hot = True

    @rule(number=st.integers(0, 99))
    def acquire(self, number):
        if page := self.pick(number):
            page.refs += 1

    @rule(number=st.integers(0, 99))
    def release(self, number):
        page = self.pick(number)
        if page and page.refs:
            page.refs -= 1
            if not page.refs:
                self.memory.released(page)

    @rule(number=st.integers(0, 99), size=st.integers(0, 20))
    def replace(self, number, size):
        page = self.pick(number)
        if page and self.memory.reserve(size, dirty=True):
            if page.place == ABSENT:
                self.memory.give_back(size, dirty=True)
            else:
                self.memory.replace(page, bytes(size + 2)[2:])

    @rule(number=st.integers(0, 99))
    def delete(self, number):
        if page := self.pick(number):
            self.memory.forget(page)
            del self.pages[page.id]

    @precondition(lambda self: self.memory.dirty)
    @rule(number=st.integers(0, 99))
    def written(self, number):
        dirty = list(self.memory.dirty)
        self.memory.clean(dirty[number % len(dirty)])

    @rule(limit=st.integers(1, CAPACITY), critical=st.booleans())
    def limit(self, limit, critical):
        self.memory.set_limit(limit, critical=critical)

    @invariant()
    def every_byte_is_counted_where_it_belongs(self):
        for namespace in range(3):
            pages = [page for page in self.here() if page.id >> 56 == namespace]
            staying = sum(page.size for page in pages if page.place == IN_ORDER)
            chosen = sum(page.size for page in pages if page.place != IN_ORDER)
            # Of what was chosen to leave, that counts which references held then.
            assert staying <= self.shares.used(namespace) <= staying + chosen
        assert sum(page.size for page in self.here()) <= self.memory.used

    @invariant()
    def the_claims_add_up(self):
        assert abs(self.shares.unclaimed - 0.25) < 1e-9


TestShares = SharesMachine.TestCase
