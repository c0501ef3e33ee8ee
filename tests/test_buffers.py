"""Memory for contents: what it takes, and that it is what it should be."""

from __future__ import annotations

import random
import sys
from array import array
from pathlib import Path

import pytest

from dstorage.buffers import (
    FRESH_BYTES,
    HUGE_BYTES,
    UNLOCKED_BYTES,
    address_of,
    copied,
    copied_bytes,
    copy,
    fresh_buffer,
    fresh_bytes_at,
    fresh_contents,
    joined,
    zeros,
)

SIZES = [0, 1, 2, 100, FRESH_BYTES - 1, FRESH_BYTES, FRESH_BYTES + 1, 2**21, HUGE_BYTES]


@pytest.mark.parametrize("size", SIZES)
def test_buffers_are_as_long_as_asked_for(size):
    assert len(fresh_buffer(size)) == size
    assert zeros(size) == bytes(size)
    data = bytes(range(256)) * (size // 256 + 1)
    assert copied(data[:size]) == data[:size]
    assert copied(bytearray(data[:size])) == data[:size]
    contents, view = fresh_contents(size)
    view[:] = data[:size]
    assert contents == data[:size]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="it is about CPython's objects")
@pytest.mark.parametrize("size", [size for size in SIZES if size >= FRESH_BYTES])
def test_large_buffers_take_what_bytes_take_so_that_one_s_memory_serves_the_other(size):
    taken = bytes(size).__sizeof__()
    contents, _ = fresh_contents(size)
    assert type(contents) is bytes
    assert contents.__sizeof__() == taken
    for buffer in (fresh_buffer(size), zeros(size), copied(bytes(size)), copied(bytearray(size))):
        assert buffer.__alloc__() == taken


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="it is about CPython's objects")
def test_bytes_that_the_interpreter_shares_are_not_given_out_to_be_filled():
    assert fresh_bytes_at(0) is None
    assert fresh_bytes_at(1) is None
    data, address = fresh_bytes_at(2)
    assert len(data) == 2
    assert address > id(data)


def test_what_is_made_of_other_bytes_is_made_of_all_of_them():
    parts = [b"head", bytearray(b"-"), memoryview(b"x" * FRESH_BYTES)]
    for pieces in ([], parts[:1], parts[:2], parts):
        made = joined(pieces)
        assert type(made) is bytearray
        assert made == b"".join(pieces)
    for shaped in (memoryview(b"abcdef"), memoryview(array("d", [1.5, 2.5])), memoryview(b"abcdef")[::2]):
        assert copied_bytes(shaped) == shaped.tobytes()


@pytest.mark.parametrize("size", [UNLOCKED_BYTES - 1, UNLOCKED_BYTES, 2 * HUGE_BYTES + 3])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_copy_is_the_same_and_touches_nothing_else(size, kind):
    data = random.Random(1).randbytes(size)
    around = bytearray(b"<" * 7 + bytes(size) + b">" * 7)
    copy(memoryview(around)[7 : 7 + size], memoryview(kind(b"-" + data + b"-"))[1:-1])
    assert around == b"<" * 7 + data + b">" * 7
    assert joined([data, kind(data), b"end"]) == data + data + b"end"
    assert copied(kind(data)) == data


@pytest.mark.skipif(
    not (Path("/proc/self/smaps").exists() and Path("/sys/kernel/mm/transparent_hugepage").exists()),
    reason="this system has no huge pages, or does not tell where",
)
@pytest.mark.parametrize(
    "make",
    [
        fresh_buffer,
        zeros,
        lambda size: copied(bytes(size)),
        lambda size: joined([bytes(size - 1), b"x"]),
        lambda size: fresh_contents(size)[0],
        lambda size: copied_bytes(memoryview(bytes(size))),
    ],
    ids=["fresh", "zeros", "copied", "joined", "contents", "bytes"],
)
def test_very_large_ones_ask_for_huge_pages(make):
    """What the system makes of that is its own affair; `hg` among a mapping's flags is the wish. Of this size each has a mapping of its own."""
    size = 2**25
    made = make(size)
    assert len(made) == size
    begin = address_of(made) if isinstance(made, bytearray) else id(made)
    assert "hg" in _flags_of_the_mapping_at(begin + size // 2)


def _flags_of_the_mapping_at(address):
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head:
            begin, end = (int(number, 16) for number in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "VmFlags:":
            return rest.split()
    raise AssertionError(f"nothing is mapped at {address:#x}")
