"""Values come back as they were, with type, dtype and shape; what is no value is refused, whatever its bytes."""

from __future__ import annotations

import array
import contextlib
import enum
import io
import math
import mmap
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dstorage.cache.values import Codec, Kind, Serializer
from dstorage.errors import CorruptData, InvalidArgumentError, UsageError

CODEC = Codec()


def back(value, codec=CODEC, kind=bytes):
    encoded = codec.encode(value)
    return codec.decode(encoded.kind, kind(encoded.payload), encoded.serializer)


SIMPLE = st.one_of(
    st.binary(), st.text(st.characters(exclude_categories=())), st.integers(), st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False), st.booleans(), st.none(),
)  # fmt: skip


@given(SIMPLE, st.sampled_from([bytes, bytearray]))
def test_simple_values_come_back_with_their_type(value, kind):
    got = back(value, kind=kind)
    assert got == value
    assert type(got) is type(value)


def test_what_is_no_number_and_negative_zero_come_back():
    assert math.isnan(back(math.nan))
    assert math.copysign(1, back(-0.0)) == -1


@pytest.mark.parametrize("value", [bytearray(b"abc"), memoryview(b"abc"), memoryview(b"axbxcx")[::2]])
def test_bytes_like_values_come_back_as_bytes(value):
    assert back(value) == b"abc"
    assert type(back(value)) is bytes


def test_a_mapped_file_is_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        encoded = CODEC.encode(mapped)
        assert (encoded.kind, encoded.size, bytes(encoded.payload)) == (Kind.BYTES, 3, b"abc")
        del encoded


def test_bytes_come_back_without_a_copy():
    payload = bytes(1000)
    assert CODEC.decode(Kind.BYTES, payload) is payload


@given(
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes()), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)
    ),
    st.sampled_from("CF"),
    st.sampled_from([bytes, bytearray]),
)
def test_arrays_come_back_with_dtype_shape_and_order(value, order, kind):
    value = np.asarray(value, order=order)
    got = back(value, kind=kind)
    assert got.dtype == value.dtype
    assert got.shape == value.shape
    assert got.tobytes() == value.tobytes()
    assert not got.flags.writeable
    assert got.flags.f_contiguous == value.flags.f_contiguous


def test_slices_and_scalars_of_numpy_come_back():
    grid = np.arange(100.0).reshape(10, 10)
    assert (back(grid[::2, 1:3]) == grid[::2, 1:3]).all()
    assert type(back(np.float32(1.5))) is np.float32
    assert back(np.datetime64("2024-01-01", "s")) == np.datetime64("2024-01-01", "s")


def test_numpy_itself_reads_the_payload():
    payload = bytes(CODEC.encode(np.arange(6, dtype=">u2").reshape(2, 3)).payload)
    assert np.load(io.BytesIO(payload)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_array_is_a_view_on_aligned_payload():
    payload = bytes(CODEC.encode(np.arange(1000.0)).payload)
    got = CODEC.decode(Kind.ARRAY, payload)
    address = np.frombuffer(payload, np.uint8).__array_interface__["data"][0]
    assert (got.__array_interface__["data"][0] - address) % 64 == 0
    assert 0 < got.__array_interface__["data"][0] - address < 256


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize("value", [(1, 2), {"a": 1}, Colour.RED, object(), np.array([{}]), array.array("i", [1])])
def test_other_values_need_a_serializer_that_is_named(value):
    with pytest.raises(InvalidArgumentError, match="serializer="):
        CODEC.encode(value)


def test_an_array_of_objects_is_refused_as_such():
    for value in (np.array([{}]), np.array([("a", 1)], [("name", object), ("n", int)])):
        with pytest.raises(InvalidArgumentError, match="numpy array of Python objects"):
            CODEC.encode(value)


def test_serializers_by_name():
    assert back({"a": [1, None]}, Codec("json")) == {"a": [1, None]}
    assert back((1, Colour.RED), Codec("pickle")) == (1, Colour.RED)
    mine = Serializer("upper", lambda value: str(value).upper().encode(), lambda data: data.decode())
    assert back(("x",), Codec(mine)) == "('X',)"


def test_the_first_serializer_writes_and_all_are_read():
    old, new = Codec("pickle"), Codec(["json", "pickle"])
    encoded = old.encode((1, 2))
    assert new.decode(encoded.kind, bytes(encoded.payload), encoded.serializer) == (1, 2)
    assert new.encode((1, 2)).serializer == "json"


def test_nothing_is_unpickled_unless_pickle_was_named():
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    payload = pickle.dumps(Trap())
    with pytest.raises(UsageError, match="trust"):
        Codec("json").decode(Kind.OBJECT, payload, "pickle")


@pytest.mark.parametrize("given", ["yaml", ["json", "json"], ["json", "dill"]])
def test_unknown_or_double_serializers_are_refused(given):
    with pytest.raises(InvalidArgumentError):
        Codec(given)


@given(st.sampled_from(sorted(set(Kind) - {Kind.OBJECT})), st.binary(max_size=200))
def test_hostile_payloads_are_a_value_or_corrupt(kind, payload):
    with contextlib.suppress(CorruptData):
        CODEC.decode(kind, payload)


@given(st.data())
def test_damaged_arrays_are_an_array_or_corrupt(data):
    payload = bytearray(CODEC.encode(np.zeros((3, 2), "<i4")).payload)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(0, len(payload)))]
    try:
        got = CODEC.decode(Kind.ARRAY, bytes(payload))
    except CorruptData:
        return
    assert got.nbytes <= len(payload)


def test_an_array_of_objects_is_not_read():
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    payload = b"\x93NUMPY\x03\x00" + len(header).to_bytes(4, "little") + header + bytes(8)
    with pytest.raises(CorruptData, match="objects"):
        CODEC.decode(Kind.ARRAY, payload)


@given(st.text("{}[]()'descrshapefot_n: ,<>i48|VO0F-", max_size=60))
def test_hostile_descriptions_are_corrupt(text):
    header = (text + "\n").encode()
    with pytest.raises(CorruptData):
        CODEC.decode(Kind.ARRAY, b"\x93NUMPY\x03\x00" + len(header).to_bytes(4, "little") + header)


def test_deep_descriptions_are_corrupt():
    header = b"[" * 4000
    with pytest.raises(CorruptData):
        CODEC.decode(Kind.ARRAY, b"\x93NUMPY\x03\x00" + len(header).to_bytes(4, "little") + header)


def test_huge_shapes_take_no_memory():
    header = b"{'descr': '|V0', 'fortran_order': False, 'shape': (999999999999999999999,), }\n"
    payload = b"\x93NUMPY\x03\x00" + len(header).to_bytes(4, "little") + header
    with pytest.raises(CorruptData):
        CODEC.decode(Kind.ARRAY, payload)


def test_a_serializer_that_makes_no_bytes_is_told():
    codec = Codec(Serializer("text", str, str))
    with pytest.raises(InvalidArgumentError, match=r"serializer 'text' made a str"):
        codec.encode([1])
