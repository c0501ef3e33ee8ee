"""The default eviction policy: against a model of the paper, and what it owes to programs that scan and sweep."""

from __future__ import annotations

import random
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from dstorage.paging.car import MAX_STEP, Car
from dstorage.paging.page import Page
from dstorage.paging.policy import Policy


def page_of(id, size=1):
    page = Page(id)
    page.size = size
    return page


class Cache:
    """A policy in use: evicts until there is room, as `Memory` does."""

    def __init__(self, policy: Policy, capacity: int) -> None:
        self.policy = policy
        self.capacity = capacity
        self.pages: dict[int, Page] = {}
        self.used = 0

    def access(self, id, size=1):
        if id in self.pages:
            self.pages[id].hot = True
            return True
        while self.used + size > self.capacity:
            self.evict()
        self.pages[id] = page_of(id, size)
        self.used += size
        self.policy.insert(self.pages[id])
        return False

    def evict(self):
        victim = self.policy.victim()
        self.policy.evicted(victim)
        del self.pages[victim.id]
        self.used -= victim.size
        return victim.id


class Lru:
    def __init__(self, capacity):
        self.capacity = capacity
        self.pages = OrderedDict()

    def access(self, id):
        if id in self.pages:
            self.pages.move_to_end(id)
            return True
        if len(self.pages) >= self.capacity:
            self.pages.popitem(last=False)
        self.pages[id] = None
        return False


def miss_ratio(cache, ids):
    return sum(not cache.access(id) for id in ids) / len(ids)


# -- the model ------------------------------------------------------------------------------------------------------------


class Model:
    """CAR of the paper on plain lists of [id, size, hot], with byte sizes and bounded steps; nothing is fast here."""

    def __init__(self, capacity):
        self.c = capacity
        self.p = 0.0
        self.t1, self.t2, self.b1, self.b2 = [], [], [], []

    @staticmethod
    def total(pages):
        return sum(page[1] for page in pages)

    def find(self, id, *lists):
        return next(((pages, page) for pages in lists for page in pages if page[0] == id), (None, None))

    def touch(self, id):
        self.find(id, self.t1, self.t2)[1][2] = True

    def insert(self, id, size):
        pages, ghost = self.find(id, self.b1, self.b2)
        if ghost is None:
            self.t1.append([id, size, False])
            return
        mine, other = self.total(pages), self.total(self.b2 if pages is self.b1 else self.b1)
        step = size * min(MAX_STEP, max(1.0, other / mine))
        self.p = min(self.c, self.p + step) if pages is self.b1 else max(0.0, self.p - step)
        pages.remove(ghost)
        self.t2.append([id, size, False])

    def victim(self):
        while True:
            source = self.t1 if self.t1 and (self.total(self.t1) >= max(1, self.p) or not self.t2) else self.t2
            page = source.pop(0)
            if not page[2]:
                self.came_from = source
                return page
            page[2] = False
            self.t2.append(page)

    def evicted(self, page):
        if not page[1]:
            return
        (self.b1 if self.came_from is self.t1 else self.b2).append(page)
        while self.b1 and self.total(self.b1) > max(0, self.c - self.total(self.t1)):
            self.b1.pop(0)
        rest = 2 * self.c - self.total(self.t1) - self.total(self.t2) - self.total(self.b1)
        while self.b2 and self.total(self.b2) > max(0, rest):
            self.b2.pop(0)

    def restore(self, page, hot):
        (self.t2 if hot or self.came_from is self.t2 else self.t1).append([page[0], page[1], False])

    def remove(self, id):
        pages, page = self.find(id, self.t1, self.t2)
        pages.remove(page)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("access"), st.integers(1, 14)),
        st.tuples(st.just("evict"), st.just(0)),
        st.tuples(st.just("pin"), st.booleans()),
        st.tuples(st.just("remove"), st.integers(1, 14)),
        st.tuples(st.just("resize"), st.integers(1, 40)),
    ),
    max_size=120,
)


@given(steps, st.lists(st.integers(0, 9), min_size=15, max_size=15))
def test_it_does_what_the_model_does(steps, sizes):
    car, model = Car(20), Model(20)
    pages = {}
    capacity = 20
    for step, value in steps:
        if step == "access" and value in pages:
            pages[value].hot = True
            model.touch(value)
        elif step == "access":
            while pages and sum(page.size for page in pages.values()) + sizes[value] > capacity:
                victim, expected = car.victim(), model.victim()
                assert victim.id == expected[0]
                car.evicted(victim)
                model.evicted(expected)
                del pages[victim.id]
            pages[value] = page_of(value, sizes[value])
            car.insert(pages[value])
            model.insert(value, sizes[value])
        elif step in ("evict", "pin") and pages:
            victim, expected = car.victim(), model.victim()
            assert victim.id == expected[0]
            if step == "evict":
                car.evicted(victim)
                model.evicted(expected)
                del pages[victim.id]
            else:
                victim.hot = value
                car.restore(victim)
                model.restore(expected, value)
                assert not victim.hot
        elif step == "remove" and value in pages:
            car.remove(pages.pop(value))
            model.remove(value)
        elif step == "resize":
            capacity = value
            car.resize(value)
            model.c, model.p = value, min(model.p, value)
        assert len(car) == len(pages)
    left = []
    while (victim := car.victim()) is not None:
        assert victim.id == model.victim()[0]
        left.append(victim.id)
    assert sorted(left) == sorted(pages)
    assert len(car) == 0


def test_what_is_remembered_is_bounded_also_for_empty_chunks():
    cache = Cache(Car(100), 100)
    for id in range(1, 5000):
        cache.access(id, id % 7)
    # Everything leaves, as it does when memory is critical.
    while cache.pages:
        cache.evict()
    car = cache.policy
    remembered = [*car._left_recent.ids.values(), *car._left_frequent.ids.values()]
    assert sum(remembered) <= 200
    assert 0 not in remembered


# -- what programs do -----------------------------------------------------------------------------------------------------


def test_a_one_pass_scan_leaves_the_hot_set_alone():
    cache = Cache(Car(100), 100)
    hot = range(1, 61)
    for _ in range(3):
        for id in hot:
            cache.access(id)
    # While the program goes on with its hot set, a scan of a hundred times the memory passes.
    for number in range(10_000):
        cache.access(1000 + number)
        if number % 5 == 0:
            cache.access(hot[number // 5 % 60])
    assert sum(cache.access(id) for id in hot) >= 59


def test_a_hot_set_that_was_used_twice_survives_a_scan_as_long_as_the_memory():
    cache = Cache(Car(100), 100)
    for _ in range(2):
        for id in range(1, 51):
            cache.access(id)
    for id in range(1000, 1100):
        cache.access(id)
    assert all(cache.access(id) for id in range(1, 51))


def workloads():
    rng = random.Random(7)
    zipf = rng.choices(range(1000), [1 / rank for rank in range(1, 1001)], k=20_000)
    return {
        "zipf": zipf,
        "shifting zipf": [(id + number // 200 * 10) % 1000 for number, id in enumerate(zipf)],
        "stencil sweep": [(number // 3 + number % 3) % 1000 for number in range(20_000)],
        "stencil sweep of a plane": [(number // 5 + (0, -1, 1, -30, 30)[number % 5]) % 900 for number in range(20_000)],
        "cyclic sweep": [number % 1000 for number in range(20_000)],
    }


def test_neither_skew_nor_drift_nor_sweeps_make_it_worse_than_lru():
    for name, ids in workloads().items():
        for capacity in (50, 100, 200, 400):
            ours = miss_ratio(Cache(Car(capacity), capacity), ids)
            lru = miss_ratio(Lru(capacity), ids)
            assert ours <= lru + 0.01, f"{name}, room for {capacity}: misses {ours:.3f}, LRU {lru:.3f}"


def test_when_the_program_moves_on_the_former_hot_set_makes_room():
    cache = Cache(Car(100), 100)
    for _ in range(20):
        for id in range(1, 91):
            cache.access(id)
    misses = []
    for _ in range(20):
        misses.append(sum(not cache.access(id) for id in range(1001, 1091)))
    assert misses[-1] == 0, misses
