"""Dead ranges that wait to be punched out, against a plain set of bytes."""

from __future__ import annotations

from uuid import uuid4

import pytest
from dstorage_controllers.disk.device import Device
from dstorage_controllers.disk.files import Segment, SegmentFiles
from dstorage_controllers.disk.holes import Holes, whole_pages
from dstorage_controllers.disk.layout import Place
from dstorage_controllers.disk.log import SegmentLog
from hypothesis import given
from hypothesis import strategies as st

PAGE = 4096
MIB = 2**20


@given(
    st.lists(st.integers(0, 300), unique=True, max_size=40),
    st.lists(st.integers(1, 3 * PAGE), min_size=301, max_size=301),
    st.integers(0, 8),
)
def test_just_the_pages_of_which_every_byte_is_dead_are_given_back(dying, lengths, most):
    firsts = [sum(lengths[:at]) for at in range(301)] if dying else []
    segment, holes = Segment(1, 0), Holes()
    dead = set()
    for at in dying:
        holes.add(segment, firsts[at], lengths[at])
        dead.update(range(firsts[at], firsts[at] + lengths[at]))
    now, later = whole_pages(holes.take_all().get(segment, ()), most)
    assert not holes
    pages = [page for first, length in now + later for page in range(first // PAGE, (first + length) // PAGE)]
    assert sorted(pages) == sorted(
        {byte // PAGE for byte in dead if byte % PAGE == 0 and dead >= set(range(byte, byte + PAGE))}
    )
    assert len(now) == min(most, len(now + later)), "as many as are asked for"
    assert now == sorted(now), "in the order of the file"
    assert not (later and now) or min(length for _, length in now) >= max(length for _, length in later)


def test_very_many_are_put_in_order_part_by_part(monkeypatch):
    monkeypatch.setattr("dstorage_controllers.disk.holes._SORTED_AT_ONCE", 3)
    holes, segment = Holes(), Segment(1, 0)
    for at in (9, 1, 4, 0, 8, 3, 7, 2):
        holes.add(segment, at * PAGE, PAGE)
    assert whole_pages(holes.take_all()[segment], 8) == ([(0, 5 * PAGE), (7 * PAGE, 3 * PAGE)], [])


def test_no_more_waits_than_is_allowed_and_the_segment_with_most_goes_first():
    holes = Holes()
    few, many, gone = Segment(1, 0), Segment(2, 0), Segment(3, 0)
    for segment, count in ((few, 3), (many, 4), (gone, 3)):
        for at in range(count):
            holes.add(segment, 2 * at * PAGE, PAGE)
    assert not holes.take_due(10 * PAGE)
    holes.forget(gone)
    for at in range(3):
        holes.add(few, (101 + at) * PAGE, 1)
    assert not holes.take_due(10 * PAGE), "what died with its segment does not count"
    holes.add(many, 200 * PAGE, 4 * PAGE)
    due = holes.take_due(10 * PAGE)
    assert set(due) == {many}
    assert whole_pages(due[many], 9) == (
        [(0, PAGE), (2 * PAGE, PAGE), (4 * PAGE, PAGE), (6 * PAGE, PAGE), (200 * PAGE, 4 * PAGE)],
        [],
    )
    assert set(holes.take_all()) == {few}
    assert not holes


def test_the_last_bytes_of_the_largest_file_are_found():
    holes, segment = Holes(), Segment(1, 0)
    holes.add(segment, 2**32 - PAGE, PAGE)
    assert whole_pages(holes.take_all()[segment], 1) == ([(2**32 - PAGE, PAGE)], [])


@pytest.mark.parametrize(
    ("capacity", "alive", "most"),
    [(None, 2**40, 512 * MIB), (2**30, 2**40, 128 * MIB), (None, 700 * MIB, 350 * MIB), (None, 20 * MIB, 16 * MIB)],
    ids=["never more", "with a capacity", "as many as are alive", "a few always"],
)
def test_how_many_dead_bytes_wait(tmp_path, capacity, alive, most):
    files = SegmentFiles(Device(), tmp_path, read_only=False)
    log = SegmentLog(files, store=uuid4(), segment_bytes=MIB, capacity=capacity, name="disk")
    segment = log.segments[1] = Segment(1, 128)
    segment.live = log.used = alive
    for number in range(1, most // MIB + 2):
        # Not neighbours, in a segment that lives on.
        due, dead = log.discard([Place(MIB, 1, 2 * number * MIB, MIB)])
        assert not dead
        assert bool(due) is (number * MIB > most)
