"""Entries are kept in names and come back; damaged names make no entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstorage.cache.keys import encode_key
from dstorage.cache.records import NEVER, Entry, Names, pack_entry, unpack_entry
from dstorage.cache.values import Kind
from dstorage.errors import InvalidArgumentError, VersionError

NAMES = Names("pictures")
KEYS = st.one_of(st.text(max_size=30), st.integers(0, 2**40), st.text(min_size=1, max_size=3).map(lambda s: s * 300))


def fields(entry):
    return {name: getattr(entry, name) for name in Entry.__slots__}


ENTRIES = st.builds(
    Entry, KEYS, st.integers(1, 2**64 - 1), st.sampled_from(Kind), st.integers(0, 2**50),
    st.one_of(st.just(NEVER), st.floats(0, 1e12)), st.one_of(st.none(), KEYS), st.floats(0, 1e6, width=32),
    st.sampled_from(["", "json"]),
)  # fmt: skip


def test_parts_come_back():
    parts = tuple((id, 3) for id in range(10, 1000, 7))
    entry = Entry("a", 10, Kind.BYTES, 10**6, parts=parts)
    names = [(name, 10) for name in NAMES.of_entry(entry)]
    assert len(names) > 1
    [got], _ = NAMES.read(names)
    assert got.parts == parts
    assert list(got.ids())[:4] == [10, 11, 12, 17]


@pytest.mark.parametrize(
    "parts", [((11, 2),), ((10, 0),), ((10, 2**21),), ((10, 3), (0, 1)), ((10, 1), (2**64 - 1, 2))]
)
def test_parts_that_cannot_be_are_damage(parts):
    with pytest.raises(ValueError, match="parts"):
        unpack_entry(10, pack_entry(Entry("a", 10, Kind.BYTES, 100, parts=parts)))


@given(st.lists(ENTRIES, max_size=5, unique_by=lambda entry: entry.id))
def test_entries_come_back_in_order_of_id(entries):
    names = sorted((name, entry.id) for entry in entries for name in NAMES.of_entry(entry))
    assert all(0 < len(name) <= 511 for name, _ in names)
    assert all(name.startswith(NAMES.entries) for name, _ in names)
    found, damaged = NAMES.read(names)
    assert [fields(entry) for entry in found] == [fields(e) for e in sorted(entries, key=lambda entry: entry.id)]
    assert not damaged


@given(ENTRIES, st.data())
def test_an_entry_with_a_missing_name_is_damaged_and_harms_no_other(entry, data):
    entry.id = min(entry.id, 2**64 - 2)
    names = [(name, entry.id) for name in NAMES.of_entry(entry)]
    other = Entry("other", entry.id + 1, Kind.BYTES, 1)
    missing = data.draw(st.integers(0, len(names) - 1))
    rest = names[:missing] + names[missing + 1 :]
    found, damaged = NAMES.read([*rest, (NAMES.of_entry(other)[0], other.id)])
    assert [e.key for e in found] == ["other"]
    assert damaged == rest


@given(ENTRIES, st.data())
def test_changed_bytes_are_an_entry_or_an_error(entry, data):
    record = bytearray(pack_entry(entry))
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(record[: data.draw(st.integers(0, len(record)))])
    try:
        got = unpack_entry(7, raw)
    except (ValueError, VersionError):
        return
    assert pack_entry(got) == raw


@given(st.binary(max_size=60))
def test_any_bytes_are_an_entry_or_an_error(raw):
    try:
        unpack_entry(7, raw)
    except (ValueError, VersionError):
        return


def test_a_name_that_stands_for_another_chunk_is_damaged():
    entry = Entry("a", 5, Kind.BYTES, 1)
    assert NAMES.read([(NAMES.of_entry(entry)[0], 6)]) == ([], [(NAMES.of_entry(entry)[0], 6)])


def test_a_newer_format_is_not_thrown_away():
    entry = Entry("a", 5, Kind.BYTES, 1)
    name = bytearray(NAMES.of_entry(entry)[0])
    name[len(NAMES.entries) + 9] = 2
    with pytest.raises(VersionError, match="not touched"):
        NAMES.read([(bytes(name), 5)])


def test_names_of_two_caches_do_not_mix():
    short, long = Names("a"), Names("ab")
    assert not long.entries.startswith(short.prefix)
    assert len({short.entries, short.pending, short.settings}) == 3
    assert not short.of_pending(1).startswith(short.entries)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\0b"])
def test_names_of_caches_are_checked(name):
    with pytest.raises(InvalidArgumentError):
        Names(name)


def test_the_longest_key_and_tag_fit():
    key = "x" * 4000
    entry = Entry(key, 5, Kind.BYTES, 1, tag=key)
    assert len(encode_key(key)) > 4000
    [got], _ = NAMES.read([(name, 5) for name in NAMES.of_entry(entry)])
    assert got.tag == key
