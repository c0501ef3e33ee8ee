"""A selection cut into tiles is what numpy selects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dstorage import InvalidArgumentError
from dstorage.array.layout import Layout
from dstorage.array.selection import Selection


@st.composite
def cases(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7))
    tile = tuple(draw(st.integers(1, 4)) for _ in shape)
    key = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    return Layout.make(shape, "i4", tile, -1, 2**20), key


def assemble(array, layout, selection):
    raw = np.full(selection.raw_shape, -9, array.dtype)
    for piece in selection.pieces():
        raw[piece.raw] = array[layout.extent(piece.place)][piece.inside]
    return raw


@given(cases())
def test_pieces_put_together_are_what_numpy_selects(case):
    layout, key = case
    array = np.arange(np.prod(layout.shape, dtype=int), dtype="i4").reshape(layout.shape)
    selection = Selection(key, layout)
    expected = array[key]
    result = selection.result(assemble(array, layout, selection))
    assert selection.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


@given(cases(), st.data())
def test_what_is_written_through_pieces_is_what_numpy_assigns(case, data):
    layout, key = case
    array = np.zeros(layout.shape, "i4")
    expected = array.copy()
    selection = Selection(key, layout)
    shape = data.draw(hnp.broadcastable_shapes(selection.shape, max_dims=len(selection.shape) + 1, max_side=7))
    try:
        value = np.broadcast_to(np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape), shape)
        expected[key] = value
    except ValueError:
        return
    raw = selection.raw(value)
    for piece in selection.pieces():
        array[(..., *layout.extent(piece.place))][piece.inside] = raw[piece.raw]
    np.testing.assert_array_equal(array, expected)


@given(cases())
def test_a_piece_is_whole_exactly_when_it_has_every_element_of_its_tile(case):
    layout, key = case
    selection = Selection(key, layout)
    for piece in selection.pieces():
        tile = np.zeros(layout.tile_shape(piece.place))
        tile[(..., *piece.inside)] = 1
        # A step over one element selects all of it as well, but need not be noticed.
        assert not selection.whole(piece) or tile.all()
    everything = Selection(..., layout)
    assert all(everything.whole(piece) for piece in everything.pieces())


@pytest.mark.parametrize("key", [[0, 1], np.array([0]), True, np.True_, 1.5, "a", (0, [1]), slice("a", None)])
def test_advanced_indexing_is_refused_with_the_way_out(key):
    layout = Layout.make((4, 4), "f8", (2, 2), 0, 2**20)
    with pytest.raises(InvalidArgumentError, match="axis"):
        Selection(key, layout)


def test_what_does_not_broadcast_is_a_value_error():
    layout = Layout.make((4, 4), "f8", (2, 2), 0, 2**20)
    with pytest.raises(ValueError, match="broadcast"):
        Selection(slice(0, 3), layout).raw(np.zeros((2, 4)))


@pytest.mark.parametrize("key", [4, -5, (0, 4), (0, 0, 0), (Ellipsis, Ellipsis)])
def test_out_of_range_is_an_index_error(key):
    layout = Layout.make((4, 4), "f8", (2, 2), 0, 2**20)
    with pytest.raises(IndexError):
        Selection(key, layout)


def test_numpy_integers_are_integers():
    layout = Layout.make((4, 4), "f8", (2, 2), 0, 2**20)
    assert Selection((np.int64(1), slice(np.int8(0), 2)), layout).shape == (2,)
