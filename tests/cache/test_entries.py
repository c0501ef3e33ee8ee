"""The index beside a model: what is live, what it weighs, who leaves, and every listing."""

from __future__ import annotations

import itertools
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dstorage.cache.entries import ENTRY_BYTES, FEW, Entries
from dstorage.cache.keys import encode_key, encode_prefix
from dstorage.cache.records import NEVER, Entry
from dstorage.cache.values import Kind

KEYS = st.one_of(st.sampled_from(["a", "ab", "abc", "b", "\xff", "a\0"]), st.integers(-3, 3), st.binary(max_size=2),
                 st.tuples(st.sampled_from(["a", "ab"]), st.integers(0, 3)))  # fmt: skip
TAGS = st.sampled_from([None, "x", "y", 1])


class IndexMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.entries = Entries()
        self.model = {}
        self.ids = itertools.count(1)

    @rule(key=KEYS, size=st.integers(0, 100), expires=st.sampled_from([NEVER, 1.0, 5.0]), tag=TAGS,
          kind=st.sampled_from([Kind.BYTES, Kind.ABSENT]))  # fmt: skip
    def put(self, key, size, expires, tag, kind):
        entry = Entry(key, next(self.ids), kind, size, expires, tag)
        assert self.entries.put(entry) is self.model.get(key)
        self.model[key] = entry

    @rule(key=KEYS)
    def remove(self, key):
        if key in self.model:
            self.entries.remove(self.model.pop(key))

    @rule(key=KEYS)
    def use(self, key):
        if key in self.model:
            self.model[key].used = True

    @rule()
    def evict(self):
        unused = [entry for entry in self.model.values() if not entry.used]
        victim = self.entries.victim()
        assert (victim is None) == (not self.model)
        if victim is not None:
            assert not unused or victim in unused
            self.entries.remove(victim)
            del self.model[victim.key]

    @rule(now=st.sampled_from([0.5, 1.0, 6.0]))
    def expire(self, now):
        gone = set()
        while (entry := self.entries.expired(now)) is not None:
            gone.add(entry.key)
            self.entries.remove(entry)
        assert gone == {key for key, entry in self.model.items() if entry.expires <= now}
        for key in gone:
            del self.model[key]

    @rule(prefix=KEYS, reverse=st.booleans())
    def list_prefix(self, prefix, reverse):
        if isinstance(prefix, int):
            return
        wanted = sorted(
            (key for key in self.model if encode_key(key).startswith(encode_prefix(prefix))),
            key=encode_key, reverse=reverse,
        )  # fmt: skip
        assert list(self.entries.in_order(prefix, None, None, reverse=reverse)) == wanted

    @rule(start=st.one_of(st.none(), KEYS), stop=st.one_of(st.none(), KEYS))
    def list_range(self, start, stop):
        wanted = sorted(
            (
                key for key in self.model
                if (start is None or encode_key(start) <= encode_key(key)) and (stop is None or encode_key(key) < encode_key(stop))
            ),
            key=encode_key,
        )  # fmt: skip
        assert list(self.entries.in_order(None, start, stop, reverse=False)) == wanted

    @invariant()
    def weighs_what_the_model_weighs(self):
        assert self.entries.live == self.model
        assert self.entries.volume == sum(entry.size + ENTRY_BYTES for entry in self.model.values())
        assert self.entries.absent == sum(entry.kind is Kind.ABSENT for entry in self.model.values())
        for tag in ("x", "y", 1):
            assert set(self.entries.tagged(tag)) == {key for key, entry in self.model.items() if entry.tag == tag}
        for now in (0.5, 1.0, 6.0):
            alive = [entry for entry in self.model.values() if entry.expires > now]
            assert set(self.entries.tags(now)) == {entry.tag for entry in alive if entry.tag is not None}
            dead = [entry for entry in self.model.values() if entry.expires <= now]
            assert self.entries.gone(now) == sum(entry.kind is not Kind.ABSENT for entry in dead)
        assert self.entries.next_expiry <= min((entry.expires for entry in self.model.values()), default=NEVER)


TestIndex = IndexMachine.TestCase


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 5 * FEW])
def test_new_keys_are_listed_in_order_be_they_few_or_many(count):
    entries = Entries()
    ids = itertools.count(1)

    def listed_after_putting(keys):
        for key in keys:
            entries.put(Entry(key, next(ids), Kind.BYTES, 1))
        return list(entries.in_order(None, None, None, reverse=False))

    assert listed_after_putting(range(0, 400, 2)) == list(range(0, 400, 2))
    entries.remove(entries.live[2])
    wanted = sorted({*entries.live, 2, *range(1, 2 * count, 2)})
    assert listed_after_putting([2, *range(2 * count - 1, 0, -2)]) == wanted


def test_what_was_looked_at_gets_a_second_chance():
    entries = Entries()
    for number in range(4):
        entries.put(Entry(number, number + 1, Kind.BYTES, 1))
    entries.live[0].used = True
    leaving = []
    while (entry := entries.victim()) is not None:
        entries.remove(entry)
        leaving.append(entry.key)
    assert leaving == [1, 2, 3, 0]


def test_the_entry_just_written_stays():
    entries = Entries()
    old, new = Entry("old", 1, Kind.BYTES, 1), Entry("new", 2, Kind.BYTES, 1)
    entries.put(old)
    entries.put(new)
    old.used = True
    assert entries.victim(new) is old
    entries.remove(old)
    assert entries.victim(new) is None


@given(st.integers(500, 1000))
def test_queues_do_not_grow_with_rewriting(times):
    entries = Entries()
    for id in range(1, times):
        entries.put(Entry("a", id, Kind.BYTES, 1, expires=1e9 + id))
    assert len(entries._hand) < 100
    assert len(entries._expiries) < 100


def test_a_key_touched_twice_in_one_moment_expires_once():
    entries = Entries()
    entry = Entry("a", 1, Kind.BYTES, 1, 5.0)
    entries.put(entry)
    for expires in (5.0, 5.0, 7.0, 5.0):
        entry = entry.expiring(expires)
        entries.put(entry)
    assert entries.expired(4.0) is None
    assert entries.expired(5.0) is entry
    entries.remove(entry)
    assert entries.expired(9.0) is None


def test_other_threads_see_a_change_as_a_whole():
    """However the interpreter switches threads: what moves is never nowhere, and who sees the first sees the last."""
    entries = Entries()
    keys = range(10_000)
    torn, end = [], threading.Event()

    def there(key):
        entry = entries.live.get(key)
        return entry is not None and entry.expires > 0

    def look():
        while not end.is_set():
            first, last = entries.live[keys[0]].id, entries.live[keys[-1]].id
            if first > last:
                torn.append((first, last))
            if not there("a") and not there("b") and not there("a"):
                torn.append("nowhere")

    here, other = Entry("a", 1, Kind.INT, 1), "b"
    entries.change([Entry(key, 0, Kind.INT, 1) for key in keys] + [here], [])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(1, 21):
            there_now = Entry(other, number, Kind.INT, 1)
            entries.change([Entry(key, number, Kind.INT, 1) for key in keys] + [there_now], [here])
            here, other = there_now, here.key
    finally:
        end.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert torn == []
    assert entries.live[here.key] is here
    assert len(entries.live) == len(keys) + 1
