"""Records of neighbouring ids in one value: against a dict, and whatever bytes a damaged catalog has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dstorage import groups
from dstorage.record import DAMAGED, MAX_ID, Locator, Record, pack_record

u64 = st.integers(0, 2**64 - 1)
records = st.builds(Record, u64, st.integers(0, 2**32 - 1), st.builds(Locator, st.integers(0, 2**32 - 1), u64, u64))


@given(
    number=st.sampled_from([0, 1, MAX_ID >> groups.BITS]),
    changes=st.lists(st.tuples(st.integers(0, groups.IDS - 1), st.none() | records), max_size=60),
)
def test_it_is_a_dict(number, changes):
    group, model = b"", {}
    for low, record in changes:
        id = number << groups.BITS | low or 1
        changed = groups.editable(number, group)
        groups.put_in(changed, id, record)
        group = bytes(changed)
        if record is None:
            model.pop(id, None)
        else:
            model[id] = record
        assert groups.record_in(group, id) == record
    assert groups.records_in(number, group) == sorted(model.items())
    assert groups.count_in(group) == len(model)
    for low in range(groups.IDS):
        id = number << groups.BITS | low
        assert groups.record_in(group, id) == model.get(id)


damaged = st.binary(max_size=2500) | st.lists(st.integers(0, 33), max_size=40).flatmap(
    lambda lows: st.binary(min_size=32 * len(lows), max_size=32 * len(lows)).map(lambda rest: bytes(lows) + rest)
)


@given(number=st.integers(0, 2**64 - 1), group=damaged, low=st.integers(1, groups.IDS - 1), record=records)
def test_whatever_it_is_it_can_be_read_and_written_anew(number, group, low, record):
    found = dict(groups.records_in(number, group))
    assert len(found) <= groups.count_in(group)
    assert all(0 < id <= MAX_ID for id in found)
    for id, one in found.items():
        assert groups.record_in(group, id) == one
    if number > MAX_ID >> groups.BITS:
        return
    changed = groups.editable(number, group)
    id = number << groups.BITS | low
    groups.put_in(changed, id, record)
    after = dict(groups.records_in(number, bytes(changed)))
    assert after.pop(id) == record
    assert after == {other: one for other, one in found.items() if other != id}
    for other in list(after):
        groups.put_in(changed, other, None)
    assert dict(groups.records_in(number, bytes(changed))) == {id: record}


def test_a_group_of_a_length_that_none_has_is_damaged_as_a_whole():
    group = bytearray()
    for id in (7, 3, 9):
        groups.put_in(group, id, Record(id, 0, Locator(id)))
    for damaged in (bytes(group) + bytes(8), bytes(group[:-1])):
        found = groups.records_in(0, damaged)
        assert {record for _, record in found} == {DAMAGED}
        assert {id for id, _ in found} <= {3, 7, 9}
        anew = groups.editable(0, damaged)
        groups.put_in(anew, 7, Record(1, 1, Locator(1)))
        assert groups.record_in(bytes(anew), 7) == Record(1, 1, Locator(1))
        assert groups.record_in(bytes(anew), 3) == DAMAGED


def test_the_format():
    group = bytearray()
    for id in (0x107, 0x103):
        groups.put_in(group, id, Record(id, 0, Locator(id)))
    assert group == b"\x03\x07" + b"".join(pack_record(Record(id, 0, Locator(id))) for id in (0x103, 0x107))
