"""Looking records up in any thread while the catalog changes, grows and is closed."""

from __future__ import annotations

import sys
import threading

import pytest

from dstorage.catalog import Catalog, Changes
from dstorage.record import Locator, Record


def test_records_are_looked_up_while_the_map_moves_and_until_it_is_closed(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    ids = range(1, 201)
    records = {id: Record(id, 0, Locator(id, id, id)) for id in ids}
    catalog.apply(Changes(records=records))
    catalog.refresh()
    stop = threading.Event()
    found, wrong = [], []

    def look():
        count = 0
        while not stop.is_set():
            for id in ids:
                record = catalog.look_up(id)
                count += record is not None
                if record is not None and record != records[id]:
                    wrong.append(record)
        found.append(count)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(12):
            catalog.grow()
        catalog.close()
        stop.set()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert len(found) == 4
    assert all(found)
    assert catalog.look_up(1) is None, "it is closed"


class SlowTransaction:
    """Holds up a thread in the midst of looking something up, and notes what is done meanwhile."""

    def __init__(self, transaction):
        self.transaction = transaction
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.done = []

    def get(self, *args, **options):
        if threading.current_thread().name == "looking":
            self.inside.set()
            assert self.go_on.wait(30)
            self.done.append("looked up")
        return self.transaction.get(*args, **options)

    def abort(self):
        self.done.append("ended")
        self.transaction.abort()


@pytest.fixture
def held(tmp_path):
    """A catalog of one record, in which a thread is looking something up."""
    catalog = Catalog(tmp_path / "catalog")
    record = Record(1, 0, Locator(1, 1, 1))
    catalog.apply(Changes(records={1: record}))
    catalog.refresh()
    catalog._txn = slow = SlowTransaction(catalog._txn)
    catalog._known = slow, {}
    answers = []
    looking = threading.Thread(target=lambda: answers.append(catalog.look_up(1)), name="looking")
    looking.start()
    assert slow.inside.wait(30)

    def let_go():
        slow.go_on.set()
        looking.join(30)
        assert answers == [record]

    yield catalog, slow, let_go
    catalog.close()
    assert slow.done == ["looked up", "ended"]


def test_the_map_does_not_move_under_who_looks_something_up_and_who_comes_then_asks_the_loop(held):
    catalog, slow, let_go = held
    moving = threading.Thread(target=catalog.grow)
    moving.start()
    while not catalog._shared.moving:
        pass
    assert catalog.look_up(1) is None
    assert not slow.done
    let_go()
    moving.join(30)
    assert catalog.look_up(1).controller == 0


def test_a_new_commit_is_seen_at_once_and_does_not_wait_for_who_looks_into_the_one_before(held):
    catalog, slow, let_go = held
    catalog.apply(Changes(records={1: Record(2, 7, Locator(2, 2, 2))}))
    catalog.refresh()
    assert catalog.look_up(1).controller == 7
    assert not slow.done
    let_go()
    assert slow.done == ["looked up"]
    catalog.refresh()
    assert slow.done == ["looked up", "ended"], "the next one ends it"


def test_who_looks_long_into_one_commit_keeps_no_later_one(held):
    catalog, _, let_go = held
    for controller in range(50):
        catalog.apply(Changes(records={1: Record(2, controller, Locator(2, 2, 2))}))
        catalog.refresh()
    assert str(catalog._env.readers()).count("\n") <= 4
    assert catalog.look_up(1).controller == 49
    let_go()
    catalog.refresh()


def test_the_map_does_not_move_under_a_reader_that_another_thread_has_beside_the_writer(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    record = Record(1, 0, Locator(1, 1, 1))
    catalog.apply(Changes(records={1: record}))
    reader = Catalog(tmp_path / "catalog", read_only=True)
    reader._txn = slow = SlowTransaction(reader._txn)
    answers = []
    looking = threading.Thread(target=lambda: answers.append(reader.get(1)), name="looking")
    looking.start()
    assert slow.inside.wait(30)
    moving = threading.Thread(target=catalog.grow)
    moving.start()
    while moving.is_alive() and not catalog._shared.moving:
        pass
    slow.go_on.set()
    looking.join(30)
    moving.join(30)
    assert slow.done == ["looked up", "ended"]
    assert answers == [record]
    assert reader.get(1) == record
    reader.close()
    catalog.close()


def test_the_map_does_not_move_under_who_opens_a_reader_beside_the_writer(tmp_path, monkeypatch):
    catalog = Catalog(tmp_path / "catalog")
    done, inside, go_on = [], threading.Event(), threading.Event()
    open_tables = Catalog._open_tables

    def slowly(self):
        inside.set()
        assert go_on.wait(30)
        open_tables(self)
        done.append("opened")

    def grow():
        catalog.grow()
        done.append("grown")

    monkeypatch.setattr(Catalog, "_open_tables", slowly)
    opened = []
    opening = threading.Thread(target=lambda: opened.append(Catalog(tmp_path / "catalog", read_only=True)))
    opening.start()
    assert inside.wait(30)
    moving = threading.Thread(target=grow)
    moving.start()
    while moving.is_alive() and not catalog._shared.moving:
        pass
    go_on.set()
    opening.join(30)
    moving.join(30)
    assert done == ["opened", "grown"]
    assert opened[0].count() == 0
    catalog.close()
    assert opened[0].count() == 0, "the environment is there as long as one needs it"
    opened[0].close()


def test_the_map_does_not_move_while_something_is_written_for_somebody_who_waits_no_more(tmp_path):
    catalog = Catalog(tmp_path / "catalog")
    inside, go_on = threading.Event(), threading.Event()
    record = Record(1, 0, Locator(1, 1, 1))

    class Slow(dict):
        def items(self):
            inside.set()
            assert go_on.wait(30)
            return super().items()

    errors = []

    def grow():
        try:
            catalog.grow()
        except Exception as error:
            errors.append(error)

    writing = threading.Thread(target=catalog.apply, args=[Changes(records=Slow({1: record}))])
    writing.start()
    assert inside.wait(30)
    moving = threading.Thread(target=grow)
    moving.start()
    moving.join(0.1)
    go_on.set()
    writing.join(30)
    moving.join(30)
    assert not errors
    assert catalog.get(1) == record
    catalog.close()


def test_what_was_looked_up_before_is_looked_up_anew_after_a_commit_and_little_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("dstorage.catalog.KNOWN", 5)
    catalog = Catalog(tmp_path / "catalog")
    for turn in (1, 2, 3):
        records = {id: Record(turn, turn, Locator(id, id, id)) for id in range(turn, 21)}
        catalog.apply(Changes(records=records | {turn - 1: None}))
        catalog.refresh()
        for id in [*range(1, 21), *range(1, 21), 7, 7]:
            assert catalog.look_up(id) == records.get(id)
        assert len(catalog._known[1]) <= 5
    catalog.close()
