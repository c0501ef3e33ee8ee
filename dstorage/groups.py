"""Records of neighbouring ids in one value of the catalog.

A *group* has the records of up to 32 chunks, those whose ids differ in the low five bits only: first these bits of each id, a byte each
and ascending, then the records, 32 bytes each, in the same order. So one look into the catalog answers for the neighbours, which are
used together as often as not, and a commit of many changes makes few entries: LMDB gives the interpreter's lock away with each,
which takes longer than the entry where other threads want it.

Bytes in the catalog may be damaged. A group whose length is none has only `DAMAGED` records, for the ids that it begins with; a byte
that is no such bits names nothing. Neither keeps other groups from being read, nor this one from being written anew.
"""

from __future__ import annotations

from bisect import bisect_left

from dstorage.record import DAMAGED, MAX_ID, RECORD, Record, pack_record, unpack_record_at

BITS = 5
"""Of an id, that tell the chunks of a group apart. With more of them two full groups would not fit on a page of LMDB's."""
IDS = 1 << BITS
_LOW = IDS - 1
_LOWS = [bytes([low]) for low in range(IDS)]
"""To be looked for: an integer of numpy's would be taken for the bytes that it consists of."""
_ENTRY_BYTES = 1 + RECORD.size


def record_in(group: bytes, id: int) -> Record | None:
    """The record of `id`, or None if it has none."""
    count, rest = divmod(len(group), _ENTRY_BYTES)
    at = group.find(_LOWS[id & _LOW], 0, count)
    if at < 0:
        return None
    return DAMAGED if rest else unpack_record_at(group, count + at * RECORD.size)


def records_in(number: int, group: bytes) -> list[tuple[int, Record]]:
    """All (id, record) pairs of group `number`, ascending."""
    count, rest = divmod(len(group), _ENTRY_BYTES)
    found: dict[int, Record] = {}
    for at, low in enumerate(group[:count]):
        id = number << BITS | low
        if low < IDS and 0 < id <= MAX_ID and id not in found:
            found[id] = DAMAGED if rest else unpack_record_at(group, count + at * RECORD.size)
    return sorted(found.items())


def count_in(group: bytes | bytearray) -> int:
    """How many records it has, if it is not damaged."""
    return len(group) // _ENTRY_BYTES


def editable(number: int, group: bytes) -> bytearray:
    """A copy to be changed by `put_in`, made anew if it is damaged."""
    count, rest = divmod(len(group), _ENTRY_BYTES)
    lows = group[:count]
    if not rest and lows == bytes(sorted(set(lows))) and (not lows or lows[-1] < IDS):
        return bytearray(group)
    anew = bytearray()
    for id, record in records_in(number, group):
        put_in(anew, id, record)
    return anew


def put_in(group: bytearray, id: int, record: Record | None) -> None:
    """Give `id` another record, or none."""
    count = len(group) // _ENTRY_BYTES
    low = id & _LOW
    at = group.find(low, 0, count)
    first = count + at * RECORD.size
    if record is None:
        if at >= 0:
            del group[first : first + RECORD.size]
            del group[at]
    elif at >= 0:
        group[first : first + RECORD.size] = pack_record(record)
    else:
        at = bisect_left(group, low, 0, count)
        first = count + at * RECORD.size
        group[first:first] = pack_record(record)
        group.insert(at, low)
