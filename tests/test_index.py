"""The index against plain dicts: what is where, and that each place is freed once, as soon as nothing refers to it and not before."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dstorage.catalog import Catalog
from dstorage.index import Index
from dstorage.record import Locator, Record

MOST = 2
IDS = st.integers(1, MOST)
COPIES = st.integers(0, 2)
DISK, MEMORY = 1, 5


class Indexing(RuleBasedStateMachine):
    """Everything that puts a record, at any moment of a commit that succeeds or fails."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.catalog = Catalog(Path(self.folder.name) / "catalog")
        self.index = Index(self.catalog, self.free, many=10**9, on_many=lambda: None)
        self.now: dict[int, Record] = {}
        self.taken = 0
        self.alive: set[tuple[int, Record]] = set()
        self.left: set[int] = set()
        """Ids of which bytes of the cut may still be written, and those changed since."""
        self.changed: set[int] = set()

    def teardown(self):
        if hasattr(self, "catalog"):
            self.catalog.close()
            self.folder.cleanup()

    def new(self, id, controller=DISK):
        self.taken += 1
        record = Record(0, controller, Locator(100, self.taken, self.taken))
        self.alive.add((id, record))
        return record

    def free(self, id, record):
        assert (id, record) in self.alive, f"{record} of {id} is freed twice"
        self.alive.remove((id, record))

    def committed_places(self, id):
        return [place for place in (self.catalog.get(id), *self.catalog.copies(id)) if place is not None]

    @rule(id=IDS, copies=COPIES)
    def write(self, id, copies):
        self.changed.add(id)
        self.now[id] = self.new(id)
        self.index.put(id, self.now[id], copies=tuple(self.new(id) for _ in range(copies)))

    @rule(id=IDS)
    def write_scratch(self, id):
        self.changed.add(id)
        self.now[id] = self.new(id, MEMORY)
        self.index.put(id, self.now[id], volatile=True)

    @rule(id=IDS)
    def delete(self, id):
        self.changed.add(id)
        self.now.pop(id, None)
        self.index.put(id, None)

    @rule(id=IDS)
    def copy(self, id):
        places = self.index.places(id)
        if places and id not in self.index.scratch:
            self.index.put(id, places[0], copies=(*places[1:], self.new(id)))

    @rule(id=IDS)
    def read_from_the_other_place_first(self, id):
        places = self.index.places(id)
        if len(places) > 1:
            self.now[id] = places[1]
            self.index.put(id, places[1], copies=(places[0], *places[2:]))

    @precondition(lambda self: not self.index.committing)
    @rule()
    def cut(self):
        self.index.freeze()
        self.left, self.changed = set(range(1, MOST + 1)), set()

    @precondition(lambda self: self.index.committing and self.left)
    @rule(data=st.data(), copies=COPIES, overtaken=st.booleans())
    def write_what_was_cut(self, data, copies, overtaken):
        id = data.draw(st.sampled_from(sorted(self.left)))
        self.left.remove(id)
        newest = not overtaken and id not in self.changed
        record = self.new(id)
        self.index.put_frozen(id, record, copies=tuple(self.new(id) for _ in range(copies)), newest=newest)
        if newest or not (id in self.index.current or id in self.index.scratch):
            self.now[id] = record

    @precondition(lambda self: self.index.committing)
    @rule()
    def commit(self):
        index, catalog = self.index, self.catalog
        before = {id: places for id in index.frozen if (places := self.committed_places(id))}
        catalog.apply(index.frozen_changes({}, {}))
        index.committed()
        for id, places in before.items():
            for place in places:
                if place not in self.committed_places(id) and not index.is_current(id, place[1:]):
                    self.free(id, place)

    @precondition(lambda self: self.index.committing)
    @rule()
    def fail_to_commit(self):
        self.index.thaw()

    @invariant()
    def every_place_that_is_referred_to_is_alive_and_no_other(self):
        if not hasattr(self, "index"):
            return
        for id in range(1, MOST + 1):
            assert self.index.get(id) == self.now.get(id)
        referred = {(id, place) for id in range(1, MOST + 1) for place in self.committed_places(id)}
        index = self.index
        for records, copies in ((index.current, index._current_copies), (index.frozen, index.frozen_copies)):
            referred |= {(id, record) for id, record in records.items() if record is not None}
            referred |= {(id, copy) for id in copies for copy in copies[id]}
        referred |= set(index.scratch.items())
        assert referred == self.alive


Indexing.TestCase.settings = settings(max_examples=500, stateful_step_count=40, deadline=None)
test_an_index_knows_where_everything_is_and_frees_every_place_once = Indexing.TestCase
