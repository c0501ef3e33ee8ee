"""Keys are encoded in their order, without ambiguity, and come back as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstorage.cache.keys import MAX_DEPTH, MAX_KEY_BYTES, decode_key, encode_key, encode_prefix, exact
from dstorage.errors import InvalidArgumentError

PLAIN = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=8), st.binary(max_size=8), st.integers(-(2**80), 2**80)
)
KEYS = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


def rank(key):
    """The documented order: integers, bytes, str, tuples; each in Python's own."""
    if isinstance(key, tuple):
        return (3, [rank(element) for element in key])
    if isinstance(key, str):
        return (2, [ord(character) for character in key])
    return (1, key) if isinstance(key, bytes) else (0, key)


@given(KEYS)
def test_keys_come_back(key):
    encoded = encode_key(key)
    assert decode_key(b"before" + encoded + b"\x30behind\x00", 6) == (key, 6 + len(encoded))


@given(KEYS, KEYS)
def test_the_order_of_encodings_is_that_of_keys(one, other):
    assert (encode_key(one) < encode_key(other)) == (rank(one) < rank(other))
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(st.text(max_size=6), st.text(max_size=3))
def test_prefixes_of_strings(key, more):
    assert encode_key(key + more).startswith(encode_prefix(key))
    other = "x" + key
    assert encode_key(other).startswith(encode_prefix(key)) == other.startswith(key)


@given(st.lists(PLAIN, max_size=3).map(tuple), KEYS)
def test_prefixes_of_tuples(key, more):
    assert encode_key((*key, more)).startswith(encode_prefix(key))


@given(st.binary(max_size=40))
def test_hostile_bytes_are_a_key_or_an_error(raw):
    try:
        key, end = decode_key(raw)
    except ValueError:
        return
    assert encode_key(key) == raw[:end], "only what we would write is read"


@pytest.mark.parametrize(
    "key", [1.5, None, ["a"], ("a", 2.5), object(), {1}, bytearray(b"x"), "x" * MAX_KEY_BYTES, 1 << 900]
)
def test_other_keys_are_refused_by_name(key):
    with pytest.raises(InvalidArgumentError):
        encode_key(key)


def test_depth_is_bounded():
    key = "x"
    for _ in range(MAX_DEPTH):
        key = (key,)
    assert decode_key(encode_key(key))[0] == key
    with pytest.raises(InvalidArgumentError, match="flatter"):
        encode_key((key,))
    with pytest.raises(ValueError, match="no key"):
        decode_key(b"\x40" * 5000)


def test_numbers_have_no_prefix():
    with pytest.raises(InvalidArgumentError, match="start and stop"):
        encode_prefix(5)


def test_subclasses_become_the_plain_types():
    class Loud(str):
        __slots__ = ()

        def __eq__(self, other):
            raise AssertionError

        __hash__ = str.__hash__

    assert type(exact(Loud("a"))) is str
    assert exact((True, Loud("b"))) == (1, "b")
    assert type(exact(True)) is int
