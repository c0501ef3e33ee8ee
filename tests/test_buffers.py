"""Memory for contents: what it takes, and that it is what it should be."""

from __future__ import annotations

import sys

import pytest

from dstorage.buffers import FRESH_BYTES, copied, fresh_buffer, fresh_bytes_at, fresh_contents, zeros

SIZES = [0, 1, 2, 100, FRESH_BYTES - 1, FRESH_BYTES, FRESH_BYTES + 1, 2**21]


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
