"""An array does what a list does, a bitset what a list of bools does; old roots stay, and counts are exact."""

from __future__ import annotations

import struct
from collections import Counter

import pytest
from fake_transaction import FakeTransactionManager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import references

from dstorage.errors import InvalidArgumentError
from dstorage.persistent.array import PersistentArray, check_array_block
from dstorage.persistent.bitset import Bitset
from dstorage.persistent.errors import MissingKeyError
from dstorage.persistent.values import ValueHooks


def array_references(tm, roots, values=None):
    """References to index nodes and array blocks; every array block is checked, its values counted once."""
    numbers = Counter()
    found = references(tm, roots, values=numbers)
    for value, count in numbers.items():
        number = int.from_bytes(value, "little")
        found[number] += count
        data = tm.blocks[number]
        assert check_array_block(data) is None
        _, used, size, _ = struct.unpack_from("<IIIQ", data, 4)
        if values is not None:
            values.update(bytes(data[24 + i * size : 24 + (i + 1) * size]) for i in range(used))
    return found


@pytest.mark.parametrize("value_size", [1, 4, 8, 100, 4072])
def test_an_array_of_any_values(value_size):
    tm = FakeTransactionManager()
    array = PersistentArray(tm, value_size=value_size)
    root = array.new(2000, (index % 256 for index in range(2000)))
    assert [int.from_bytes(value, "little") for _, value in array.items(root)] == [i % 256 for i in range(2000)]
    root = array.set(root, 1999, 7)
    assert array.get_u64(root, 1999) == 7
    assert [index for index, _ in array.items(root, 1234)] == list(range(1234, 2000))
    tm.check(array_references(tm, [root]))
    array.delete(root)
    tm.check(Counter())


def test_blocks_are_laid_out_as_the_format_says():
    tm = FakeTransactionManager()
    root = PersistentArray(tm).new(600, range(600))
    first, second = struct.unpack_from("<2Q", tm.blocks[root], 32 + 8 * 252)
    assert struct.unpack_from("<IIIIQ3Q", tm.blocks[first], 0) == (0, 509, 509, 8, first, 0, 1, 2)
    assert struct.unpack_from("<IIIIQ3Q", tm.blocks[second], 0) == (0, 509, 91, 8, second, 509, 510, 511)


def test_bad_arguments_are_refused_and_change_nothing():
    tm = FakeTransactionManager()
    array = PersistentArray(tm)
    root = array.new(10, range(10))
    tm.commit()
    for call in (
        lambda: array.new(10, range(9)),
        lambda: array.new(2000, (index if index < 1500 else -1 for index in range(2000))),
        lambda: array.new(-1, ()),
        lambda: array.set(root, 3, 2**64),
        lambda: array.set(root, 3, b"1"),
        lambda: array.resize(root, 9, 20),
        lambda: array.resize(root, 10, 2**32 + 1),
        lambda: PersistentArray(tm, value_size=4073),
        lambda: Bitset(tm).new(100, [True] * 99),
        lambda: Bitset(tm).resize(root, 0, 100, True),
    ):
        with pytest.raises(InvalidArgumentError):
            call()
    for call in (
        lambda: array.get(root, 10),
        lambda: array.get(root, -1),
        lambda: array.set(root, 10, 1),
        lambda: array.set(root, 5000, 1),
        lambda: Bitset(tm).update(root, [5, 640], True),
        lambda: Bitset(tm).update(root, [-1], True),
    ):
        with pytest.raises(MissingKeyError):
            call()
    tm.check(array_references(tm, [root]))
    assert tm.shadows <= tm.freed


STEP = st.tuples(st.sampled_from("wwwgsdc"), st.integers(0, 3000), st.integers(1, 2**32))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, max_size=30))
def test_any_history_equals_a_list(steps):
    tm = FakeTransactionManager()
    owners: Counter[bytes] = Counter()

    def pieces(packed):
        return [bytes(packed[at : at + 8]) for at in range(0, len(packed), 8)]

    array = PersistentArray(
        tm, hooks=ValueHooks(inc=lambda p: owners.update(pieces(p)), dec=lambda p: owners.subtract(pieces(p)))
    )
    states = [(array.empty(), [])]
    for kind, size, value in steps:
        root, model = states[0]
        if kind == "w" and model:
            root = array.set(root, size % len(model), value)
            model[size % len(model)] = value
        elif kind == "g":
            root = array.resize(root, len(model), size, value)
            model[size:] = []
            model += [value] * (size - len(model))
        elif kind == "s":
            tm.inc(root)
            states.append((root, list(model)))
        elif kind == "d" and len(states) > 1:
            array.delete(states.pop()[0])
        elif kind == "c":
            tm.commit()
        states[0] = (root, model)
        values: Counter[bytes] = Counter()
        tm.check(array_references(tm, [root for root, _ in states], values))
        assert +owners == values
    for root, model in states:
        assert [int.from_bytes(value, "little") for _, value in array.items(root)] == model
    while states:
        array.delete(states.pop()[0])
    tm.check(Counter())
    assert not +owners


@settings(max_examples=60, deadline=None)
@given(
    first=st.lists(st.booleans(), max_size=200),
    steps=st.lists(st.tuples(st.sampled_from("ur"), st.integers(0, 40000), st.booleans()), max_size=12),
)
def test_a_bitset_equals_a_list_of_bools(first, steps):
    tm = FakeTransactionManager()
    bits = Bitset(tm)
    model = list(first)
    root = bits.new(len(model), model)
    for kind, number, value in steps:
        if kind == "r":
            root = bits.resize(root, len(model), number, value)
            model[number:] = []
            model += [value] * (number - len(model))
        elif model:
            chosen = {number * factor % len(model) for factor in (1, 3, 70, 71)}
            root = bits.update(root, chosen, value)
            for index in chosen:
                model[index] = value
    assert list(bits.ones(root, len(model))) == [index for index, bit in enumerate(model) if bit]
    for index in range(0, len(model), 97):
        assert bits.test(root, index) == model[index]
    tm.check(array_references(tm, [root]))
    bits.delete(root)
    tm.check(Counter())
