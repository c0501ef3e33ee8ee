"""Plans of reads and writes: whatever the mappings are, the bytes go where a byte-by-byte look says they go."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from dstorage.volumes import plan
from dstorage.volumes.plan import HOLE, pieces, transfers
from dstorage.volumes.records import pack_mapping

SIZE = 8
BLOCKS = 6
PLACES = 12


@st.composite
def requests(draw):
    """Mappings of a volume (place or None), and a range in it."""
    places = draw(st.permutations(range(PLACES)))
    mapped = [place if draw(st.booleans()) else None for place in places[:BLOCKS]]
    offset = draw(st.integers(0, BLOCKS * SIZE - 1))
    return mapped, offset, draw(st.integers(1, BLOCKS * SIZE - offset)), places[BLOCKS:]


def lookup(mapped):
    return lambda block: HOLE if mapped[block] is None else pack_mapping(mapped[block], 5)


def contents(mapped, device):
    """The volume, looked at byte by byte."""
    return b"".join(bytes(SIZE) if place is None else device[place * SIZE : (place + 1) * SIZE] for place in mapped)


@given(requests())
def test_pieces_are_the_bytes_of_the_range_in_as_few_parts_as_can_be(request):
    mapped, offset, length, _ = request
    device = bytes(range(1, PLACES * SIZE + 1))
    found = list(pieces(lookup(mapped), SIZE, offset, length))
    read = bytearray(length)
    at = 0
    for piece in found:
        assert piece.start == at
        at += piece.length
        if piece.data != HOLE:
            read[piece.start : at] = device[piece.data : piece.data + piece.length]
    assert (at, bytes(read)) == (length, contents(mapped, device)[offset : offset + length])
    for one, other in pairwise(found):
        assert (one.data == HOLE) != (other.data == HOLE) or (one.data != HOLE and one.data + one.length != other.data)


@given(requests(), st.integers(1, 2 * SIZE), st.data())
def test_transfers_write_the_range_and_leave_all_else_as_it_was(request, copy_bytes, data):
    mapped, offset, length, free = request
    touched = range(offset // SIZE, (offset + length - 1) // SIZE + 1)
    # What has no place gets one, and so do some that a snapshot shares.
    new = {
        block: free[number]
        for number, block in enumerate(touched)
        if mapped[block] is None or data.draw(st.booleans(), label=f"block {block} is shared")
    }
    device = bytearray(b"%c" * (PLACES * SIZE) % tuple(range(1, PLACES * SIZE + 1)))
    before = contents(mapped, bytes(device))
    given_ = bytes(range(128, 128 + length))
    with patch.object(plan, "COPY_BYTES", copy_bytes):
        for part in transfers(lookup(mapped), SIZE, offset, length, new):
            size = part.stop - part.start
            buffer = bytearray(size) if part.old == HOLE else device[part.old : part.old + size]
            if part.data_start < part.data_stop:
                inside = slice(part.data_start - part.start, part.data_stop - part.start)
                buffer[inside] = given_[part.data_start - offset : part.data_stop - offset]
            assert len(buffer) == size
            device[part.place : part.place + size] = buffer
    after = contents([new.get(block, place) for block, place in enumerate(mapped)], bytes(device))
    assert after == before[:offset] + given_ + before[offset + length :]
    # What is shared is left to the others.
    for block in new:
        if mapped[block] is not None:
            place = mapped[block]
            assert device[place * SIZE : (place + 1) * SIZE] == before[block * SIZE : (block + 1) * SIZE]
