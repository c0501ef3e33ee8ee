"""What a block must show before its bytes are believed: against figures computed by other programs, and bit by bit."""

from __future__ import annotations

import pytest

from dstorage.persistent.array import ARRAY, ARRAY_HEADER
from dstorage.persistent.node import LEAF, NODE, NODE_HEADER
from dstorage.persistent.validators import Validator


@pytest.mark.parametrize(
    ("salt", "checksum"),
    [
        (160774, 0x58CFD397),
        (121107, 0x58CC7E82),
        (240779, 0x58CE0B1A),
        (160478, 0x58CFD54F),
        (595846735, 0x7B4E41DE),
    ],
)
def test_zeros_have_the_kernels_checksums(salt, checksum):
    assert Validator("zeros", salt).checksum(bytes(4096)) == checksum


def test_an_empty_leaf_has_the_kernels_checksum():
    data = bytearray(4096)
    NODE_HEADER.pack_into(data, 0, 0, LEAF, 0, 0, 252, 8, 0)
    NODE.seal(data, 7)
    assert int.from_bytes(data[:4], "little") == 0x49C54642
    assert int.from_bytes(data[8:16], "little") == 7
    assert NODE.problem(data, 7) is None


def test_every_byte_counts():
    data = bytearray(4096)
    NODE_HEADER.pack_into(data, 0, 0, LEAF, 0, 0, 252, 8, 0)
    NODE.seal(data, 7)
    for at in range(4096):
        data[at] ^= 1 << at % 8
        assert NODE.problem(data, 7) == "wrong checksum"
        data[at] ^= 1 << at % 8


def test_a_block_in_a_wrong_place_or_of_a_wrong_kind_is_told():
    data = bytearray(4096)
    NODE_HEADER.pack_into(data, 0, 0, LEAF, 0, 0, 252, 8, 0)
    NODE.seal(data, 7)
    assert NODE.problem(data, 8) == "it says that it is block 7"
    assert ARRAY.problem(data, 7) == "wrong checksum"


def test_array_blocks_keep_their_number_elsewhere():
    data = bytearray(4096)
    ARRAY_HEADER.pack_into(data, 0, 0, 509, 3, 8, 0)
    ARRAY.seal(data, 12)
    assert int.from_bytes(data[16:24], "little") == 12
    assert ARRAY.problem(data, 12) is None


def test_rules_of_the_kind_are_asked_last():
    data = bytearray(4096)
    NODE_HEADER.pack_into(data, 0, 0, 3, 0, 0, 252, 8, 0)
    NODE.seal(data, 7)
    assert "flags 3" in NODE.problem(data, 7)
