"""What an array may be, and that a stored description is believed only when it makes sense."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstorage import CorruptData, InvalidArgumentError
from dstorage.array.layout import Layout

BUDGET = 256 * 2**20
STRUCTURE = np.dtype([("place", "<f8", (3,)), ("name", "S4"), ("tag", [("a", "u1"), ("b", ">i2")])], align=True)


def nested(depth):
    kind = np.dtype("f4")
    for _ in range(depth):
        kind = np.dtype([("inside", kind)])
    return kind


@pytest.mark.parametrize(
    ("shape", "tile", "expected"),
    [
        ((8192, 8192), "bands", (32, 8192)),
        ((8192, 8192), "blocks", (512, 512)),
        ((4, 10**8), "bands", (1, 2**18)),
        ((100, 200, 300), "blocks", (64, 64, 64)),
        ((3, 10**6), "blocks", (3, 87381)),
        ((), "bands", ()),
        ((0, 5), "bands", (1, 5)),
        (7, "bands", (7,)),
        ((10, 10), (3, 99), (3, 10)),
    ],
)
def test_tiles_are_bands_of_whole_rows_or_near_to_cubes(shape, tile, expected):
    assert Layout.make(shape, "f8", tile, 0, BUDGET).tile == expected


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("f8", np.nan),
        (">i2", -3),
        ("?", True),
        ("c16", 1j),
        ("S5", b"abc"),
        ("U3", "äöü"),
        ("M8[ns]", "NaT"),
        (STRUCTURE, None),
        (nested(9), None),
        (np.dtype([(f"f{number}", "u1") for number in range(1024)]), None),
    ],
)
def test_a_description_comes_back_as_it_was(dtype, fill):
    layout = Layout.make((5, 6), dtype, (2, 3), fill, BUDGET)
    again = Layout.unpack(layout.pack(), "a", 1)
    assert (again.dtype, again.shape, again.tile) == (np.dtype(dtype), (5, 6), (2, 3))
    assert again.fill.tobytes() == layout.fill.tobytes()


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": object},
        {"dtype": [("a", "O")]},
        {"dtype": "S"},
        {"dtype": "no such type"},
        {"dtype": np.dtype(("f8", (3,)))},
        {"dtype": np.dtype({"names": ["a"], "formats": ["f4"], "titles": ["b"]})},
        {"dtype": np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [4, 0]})},
        {"dtype": np.dtype([(f"f{number}", "u1") for number in range(1025)])},
        {"dtype": nested(10)},
        {"shape": (-1,)},
        {"shape": (2.5,)},
        {"shape": "abc"},
        {"shape": (2**40, 2**40)},
        {"shape": (1,) * 33},
        {"tile": (0, 1)},
        {"tile": (1,)},
        {"tile": "rows"},
        {"tile": (2**12, 2**12)},
        {"fill": "abc"},
        {"fill": [1, 2]},
        {"fill": 300, "dtype": "i1"},
    ],
    ids=str,
)
def test_what_cannot_be_an_array_is_refused_by_name(arguments):
    given = {"shape": (2**13, 2**13), "dtype": "f8", "tile": "bands", "fill": 0, **arguments}
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(arguments))}|axes"):
        Layout.make(given["shape"], given["dtype"], given["tile"], given["fill"], BUDGET)


GOOD = json.loads(Layout.make((5, 6), "f8", (2, 3), 0, BUDGET).pack())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"extra": 1},
        {"dtype": "O"},
        {"dtype": "|O8"},
        {"dtype": "S0"},
        {"dtype": "f8,O"},
        {"dtype": 8},
        {"dtype": []},
        {"dtype": [["a", "|O8"]]},
        {"dtype": [["a"]]},
        {"dtype": [["a", "<f8", [-1]]]},
        {"dtype": {"names": ["a"], "formats": ["O"]}},
        {"shape": [5, -1]},
        {"shape": [5, True]},
        {"shape": [2**61, 2**61]},
        {"shape": [1] * 33, "tile": [1] * 33},
        {"shape": 5},
        {"tile": [0, 1]},
        {"tile": [1]},
        {"tile": [2**20, 2**20]},
        {"fill": "00"},
        {"fill": "zz"},
        {"fill": 0},
    ],
    ids=str,
)
def test_a_hostile_description_is_corrupt_data(change):
    with pytest.raises(CorruptData, match="'a'"):
        Layout.unpack(json.dumps(GOOD | change).encode(), "a", 1)


@given(
    st.binary(max_size=200)
    | st.recursive(st.integers() | st.text() | st.none(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_anything_else_is_corrupt_data(raw):
    with pytest.raises(CorruptData):
        Layout.unpack(raw, "a", 1)


def test_deep_nesting_is_corrupt_data():
    with pytest.raises(CorruptData):
        Layout.unpack(b"[" * 60000 + b"]" * 60000, "a", 1)


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
def test_tiles_are_numbered_in_c_order_without_gaps(shape, data):
    tile = [data.draw(st.integers(1, 3)) for _ in shape]
    layout = Layout.make(shape, "u1", tile, 0, 2**20)
    places = [layout.place(number) for number in range(layout.tiles)]
    assert places == sorted(places)
    assert [layout.number(place) for place in places] == list(range(layout.tiles))
    covered = np.zeros(shape, int)
    for place in places:
        covered[(..., *layout.extent(place))] += 1
    assert (covered == 1).all()
