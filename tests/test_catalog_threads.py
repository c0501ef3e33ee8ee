"""Looking records up in any thread while the catalog changes, grows and is closed."""

from __future__ import annotations

import random
import sys
import threading

import pytest

from dstorage.catalog import Catalog, Changes
from dstorage.known import Known
from dstorage.record import Locator, Record


def test_records_are_looked_up_while_the_map_moves_and_until_it_is_closed(tmp_path):
    catalog = Catalog(tmp_path / "catalog", most_known=0)
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
    catalog._known = slow, Known(0)
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
    moving.join(0.1)
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
        def keys(self):
            inside.set()
            assert go_on.wait(30)
            return super().keys()

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


def test_a_reader_is_opened_while_the_writer_of_this_process_commits(tmp_path):
    writer = Catalog(tmp_path / "catalog")
    inside, go_on = threading.Event(), threading.Event()
    put_others = writer._put_others

    def slowly(*args):
        inside.set()
        # Not for long: without a lock the other thread would wait for LMDB's, and keep the interpreter's.
        go_on.wait(0.2)
        put_others(*args)

    writer._put_others = slowly
    writing = threading.Thread(target=writer.apply, args=[Changes(records={1: Record(1, 0, Locator(1, 1, 1))})])
    writing.start()
    assert inside.wait(30)
    reader = Catalog(tmp_path / "catalog", read_only=True)
    go_on.set()
    writing.join(30)
    assert reader.get(1).last_access == 1
    reader.close()
    writer.close()


def test_threads_that_remember_do_not_make_it_forget(tmp_path):
    known = Known(20)
    choices = [random.Random(seed) for seed in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def remember(choice):
        for _ in range(20_000):
            known.put(choice.randrange(40), b"x" * choice.randrange(1000))

    try:
        threads = [threading.Thread(target=remember, args=[choice]) for choice in choices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    known.put(100, b"")
    assert len(known) == 20


def test_what_is_written_is_not_known_before_it_is_looked_at(tmp_path):
    catalog = Catalog(tmp_path / "catalog", most_known=100)
    old, new = Record(1, 0, Locator(1, 1, 1)), Record(2, 0, Locator(2, 2, 2))
    catalog.apply(Changes(records={1: old}))
    catalog.refresh()
    assert catalog.get(1) == old
    catalog.apply(Changes(records={1: new}))
    assert dict(catalog.superseded([1])) == {1: (new,)}
    catalog.close()


@pytest.mark.parametrize("most_known", [0, 3, 1000])
def test_what_is_remembered_is_what_the_last_commit_says_and_little(tmp_path, most_known):
    choice = random.Random(most_known)
    catalog = Catalog(tmp_path / "catalog", most_known=most_known)
    model = {}
    for turn in range(1, 200):
        ids = choice.sample(range(1, 500), choice.choice([1, 5, 100]))
        records = {id: None if choice.random() < 0.3 else Record(turn, turn, Locator(id, turn, id)) for id in ids}
        accessed = dict.fromkeys(choice.sample(range(1, 500), 5), turn)
        before = {id: (model[id],) if id in model else () for id in ids}
        assert dict(catalog.superseded(ids)) == before
        catalog.apply(Changes(records=records, accessed=accessed))
        for id in choice.sample(range(1, 500), 20):
            assert catalog.get(id) == model.get(id), "nobody has looked anew"
        catalog.refresh()
        for id, record in records.items():
            if record is None:
                model.pop(id, None)
            else:
                model[id] = record
        model |= {id: model[id]._replace(last_access=turn) for id in accessed if id in model and id not in records}
        for id in choice.sample(range(1, 500), 100):
            assert catalog.look_up(id) == model.get(id)
            assert catalog.get(id) == model.get(id)
        assert dict(catalog.records()) == model
        start = choice.randrange(1, 500)
        assert dict(catalog.records(start)) == {id: record for id, record in model.items() if id >= start}
        assert catalog.count() == len(model)
        assert len(catalog._known[1]) <= most_known
    catalog.close()
    reader = Catalog(tmp_path / "catalog", read_only=True)
    assert dict(reader.records()) == model
    reader.close()


def test_a_thread_that_comes_late_with_what_it_looked_up_does_not_make_it_the_newest(held):
    catalog, _, let_go = held
    catalog.apply(Changes(records={1: Record(2, 7, Locator(2, 2, 2))}))
    catalog.refresh()
    let_go()
    assert catalog.look_up(1).controller == 7
    catalog.refresh()


def test_a_reader_remembers_nothing_of_the_commit_before(tmp_path):
    writer = Catalog(tmp_path / "catalog")
    writer.apply(Changes(records={1: Record(1, 0, Locator(1, 1, 1))}))
    reader = Catalog(tmp_path / "catalog", read_only=True)
    assert reader.get(1).last_access == 1
    assert reader.get(2) is None
    writer.apply(Changes(records={1: Record(2, 0, Locator(1, 1, 1)), 2: Record(2, 0, Locator(1, 1, 1))}))
    assert reader.get(1).last_access == 1
    reader.refresh()
    assert reader.get(1).last_access == reader.get(2).last_access == 2
    reader.close()
    writer.close()
