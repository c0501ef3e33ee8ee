"""The internet controller's parts: locators, runs, pacing, hedging; and any order of writes, commits, crashes and compactions."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from dstorage_controllers.internet import InternetController
from dstorage_controllers.internet.books import Books, Entry, Shape
from dstorage_controllers.internet.bucket import Fault, fault_of, refusal, said
from dstorage_controllers.internet.hedging import BURST, ENOUGH, Hedging
from dstorage_controllers.internet.layout import (
    AES,
    MAX_NUMBER,
    MAX_PACK_BYTES,
    MIN_PACK_BYTES,
    PIECES,
    ZSTD,
    Layout,
    Place,
    pack_index,
    unpack_index,
)
from dstorage_controllers.internet.pacing import Pacing
from dstorage_controllers.internet.reader import GAP_BYTES, RUN_BYTES, _runs, _Wanted
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from obstore.exceptions import GenericError
from obstore.store import MemoryStore
from servers.settled import settled

from dstorage import CorruptData, Locator
from dstorage.controller import OpenContext, ReadRequest, WriteRequest
from dstorage.record import MAX_CHUNK_BYTES
from dstorage.testing import payload
from dstorage.testing.suite import STORE

_no_leaks = settled
LAYOUT = Layout(STORE, 3, "internet", "p")

packed = st.builds(
    lambda size, number, offset, stored, flags, key: Place(size, number, offset, stored, flags, key),
    st.integers(1, MAX_PACK_BYTES),
    st.integers(1, MAX_NUMBER),
    st.integers(0, MAX_PACK_BYTES - 1),
    st.integers(1, MAX_PACK_BYTES + 64),
    st.sampled_from([0, ZSTD, AES, ZSTD | AES]),
    st.integers(0, 255),
)
cut = st.builds(
    lambda log, extra, number, stored, flags, key: Place(
        min((1 << log) + extra, MAX_CHUNK_BYTES), number, 0, stored, flags | PIECES, key, 1 << log
    ),
    st.integers(MIN_PACK_BYTES.bit_length() - 1, MAX_PACK_BYTES.bit_length() - 1),
    st.integers(1, MAX_CHUNK_BYTES),
    st.integers(1, MAX_NUMBER),
    st.integers(1, 2**33),
    st.sampled_from([0, AES]),
    st.integers(0, 255),
)


@given(st.integers(1, 2**64 - 1), packed | cut)
def test_a_locator_says_what_it_was_made_of(id, place):
    locator = LAYOUT.pack(id, place)
    assert locator.b < 2**64
    assert locator.c < 2**64
    assert LAYOUT.unpack(id, locator) == place
    assert Layout.stored(locator) == place.stored


@given(st.integers(1, 2**64 - 1), packed | cut, st.integers(0, 159))
def test_a_locator_with_a_flipped_bit_is_refused_or_another(id, place, bit):
    size, b, c = LAYOUT.pack(id, place)
    whole = (size | b << 32 | c << 96) ^ 1 << bit
    spoilt = Locator(whole & (2**32 - 1), whole >> 32 & (2**64 - 1), whole >> 96)
    with contextlib.suppress(CorruptData):
        assert LAYOUT.unpack(id, spoilt) != place


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), packed | cut), max_size=20))
def test_the_index_of_a_pack_says_what_is_in_it(entries):
    places = [(id, LAYOUT.pack(id, place)) for id, place in entries]
    assert unpack_index(pack_index(places)) == places


def test_an_index_that_was_cut_is_none():
    with pytest.raises(ValueError, match="whole number"):
        unpack_index(pack_index([(1, Locator(1, 2, 3))])[:-1])


@given(st.integers(1, MAX_NUMBER), st.integers(0, 300))
def test_names_say_their_number(number, piece):
    assert LAYOUT.parse(LAYOUT.key(number)) == number
    assert LAYOUT.parse(LAYOUT.piece_key(number, piece)) == number


@pytest.mark.parametrize(
    "name", ["", "x", "writer", "0" * 13, "0" * 15, "0" * 14 + ".", "0" * 14 + ".x", "../" + "0" * 14]
)
def test_other_names_are_nobodys(name):
    assert LAYOUT.parse(f"{LAYOUT.folder}/{name}") is None
    assert LAYOUT.parse("0" * 14) is None


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4_000_000), st.integers(1, 700_000)), max_size=30))
def test_runs_hold_everything_once_and_stay_within_their_bounds(wanted):
    asked = [
        _Wanted(at, at, Place(1, number, offset, stored, 0, 0)) for at, (number, offset, stored) in enumerate(wanted)
    ]
    runs = _runs(asked)
    assert sorted(one.at for run in runs for one in run) == list(range(len(asked)))
    for run in runs:
        assert len({one.place.number for one in run}) == 1
        first, end = run[0].place.offset, 0
        for one in run:
            assert one.place.offset <= max(end, first) + GAP_BYTES
            end = max(end, one.place.offset + one.place.stored)
        assert len(run) == 1 or end - first <= RUN_BYTES


# -- pacing and hedging --------------------------------------------------------------------------------------------------


async def late(pacing):
    with contextlib.suppress(TimeoutError):
        async with pacing.turn():
            await asyncio.sleep(0)
            raise TimeoutError


async def test_a_line_that_is_too_thin_halves_the_turns_once_for_those_under_way_together():
    pacing = Pacing(16)
    await asyncio.gather(*(late(pacing) for _ in range(16)))
    assert pacing.limit == 8
    await asyncio.gather(*(late(pacing) for _ in range(8)))
    assert pacing.limit == 4
    for _ in range(10):
        await late(pacing)
    assert pacing.limit == 1


async def test_as_many_have_a_turn_as_the_limit_says_and_it_grows_again():
    pacing = Pacing(8)
    inside = most = 0

    async def work():
        nonlocal inside, most
        async with pacing.turn():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(late(pacing) for _ in range(8)))
    await asyncio.gather(*(work() for _ in range(3)))
    assert most <= 4
    await asyncio.gather(*(work() for _ in range(200)))
    assert pacing.limit == 8
    assert most == 8


async def test_other_failures_and_cancellations_give_the_turn_back():
    pacing = Pacing(1)
    with pytest.raises(OSError, match="other"):
        async with pacing.turn():
            raise OSError("other")
    task = asyncio.create_task(late(pacing))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    async with asyncio.timeout(60), pacing.turn():
        assert pacing.limit == 1


def test_the_delay_of_a_second_request_is_measured_for_each_class_of_lengths():
    hedging = Hedging(7.0)
    assert hedging.delay(1000) == 7.0
    for at in range(ENOUGH * 4):
        hedging.measured(1000, 0.1 if at % 10 else 0.5)
    assert hedging.delay(1000) == 0.5
    assert hedging.delay(10_000_000) == 7.0


def test_where_all_take_about_as_long_nobody_is_late():
    hedging = Hedging(7.0)
    for at in range(ENOUGH * 4):
        hedging.measured(1000, 0.1 + at % 10 / 100)
    assert hedging.delay(1000) == pytest.approx(0.3, abs=0.02)


def test_second_requests_are_a_small_share_of_all():
    hedging = Hedging(7.0)
    assert sum(hedging.take() for _ in range(1000)) == BURST
    sent = 0
    for _ in range(1000):
        hedging.measured(1000, 0.1)
        sent += hedging.take()
    assert 40 <= sent <= 50


# -- books ---------------------------------------------------------------------------------------------------------------


def test_the_books_of_many_objects_take_little_memory():
    count = 20_000
    shape = Shape(8 * 2**20, 0, 4000, bytes(range(16)))

    def state():
        return {2**54 + number: Entry(shape, 2**20 + number, 0).pack(2**20 + number) for number in range(count)}

    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        books = Books("cloud", state())
        # Neither does it take more when much of it has changed once.
        places = [Place(9, 2**54 + number, 0, 2**10, 0, 0) for number in range(count)]
        books.plan([], places, bytes(16))
        books.committed(bytes(16))
        for place in places:
            books.discard(place)
        del places
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / count < 200
    assert books.used == books.committed_bytes == sum(2**20 + number - 2**10 for number in range(count))


# -- errors --------------------------------------------------------------------------------------------------------------


def test_what_an_error_says_holds_no_query():
    error = GenericError(
        "Error performing GET https://a.blob/x?sv=2020&sig=secret%3D in 2ms - 500\n\nDebug source: secret"
    )
    assert said(error) == "Error performing GET https://a.blob/x in 2ms - 500"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Server returned non-2xx status code: 507 X", Fault.FULL),
        ("<Code>QuotaExceeded</Code>", Fault.FULL),
        ("No space left on device", Fault.FULL),
        ("Error performing GET http://host:507/bucket", Fault.DOWN),
        ("timed out", Fault.DOWN),
    ],
)
def test_what_a_server_says_is_understood(text, fault):
    assert fault_of(GenericError(text)) is fault


def test_missing_credentials_are_called_that():
    error = GenericError("Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - 403")
    assert "no credentials for the bucket of 'cloud'" in str(refusal("cloud", error))


# -- any order -----------------------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Writes, commits, crashes and compactions in any order, against dicts."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = MemoryStore()
        self.directory = tempfile.TemporaryDirectory()
        self.state: dict[int, bytes] = {}
        # What a commit refers to, and what the program sees: id -> (place, data).
        self.committed: dict[int, tuple[Locator, bytes]] = {}
        self.current: dict[int, tuple[Locator, bytes]] = {}
        self.version = 0
        self.controller: InternetController | None = None

    def do(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def open(self):
        self.controller = InternetController(url="s3://b", store=self.store, pack_bytes=2**16, **self.options)
        self.do(self.controller.open(OpenContext(STORE, 3, Path(self.directory.name), dict(self.state))))
        assert self.controller.committed_bytes() == self.controller.space().used

    @initialize(compress=st.booleans())
    def begin(self, compress):
        self.options = {"compress": compress, "hedge": False}
        self.open()

    def teardown(self):
        if self.controller is not None:
            self.do(self.controller.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.directory.cleanup()

    def put(self, chunks):
        answers = self.do(self.controller.write([WriteRequest(id, data) for id, data in chunks.items()]))
        for (id, data), place in zip(chunks.items(), answers, strict=True):
            assert isinstance(place, Locator)
            before = self.current.get(id)
            if before is not None and before != self.committed.get(id):
                # Overtaken before any commit.
                self.do(self.controller.discard([(id, before[0])]))
            self.current[id] = place, data

    @rule(
        ids=st.lists(st.integers(1, 12), min_size=1, max_size=6, unique=True),
        size=st.sampled_from([0, 100, 20_000, 150_000]),
    )
    def write(self, ids, size):
        self.version += 1
        self.put({id: payload(self.version * 20 + id, size + id) if size else b"" for id in ids})

    @rule(id=st.integers(1, 12))
    def delete(self, id):
        gone = self.current.pop(id, None)
        if gone is not None and gone != self.committed.get(id):
            self.do(self.controller.discard([(id, gone[0])]))

    @rule(fails=st.booleans())
    def commit(self, fails):
        alive = [(id, place) for id, (place, data) in self.current.items() if self.committed.get(id) != (place, data)]
        dead = [(id, place) for id, (place, data) in self.committed.items() if self.current.get(id) != (place, data)]
        self.do(self.controller.sync())
        changes = self.controller.checkpoint(alive, dead)
        if fails:
            return
        for key, value in changes.items():
            if value:
                self.state[key] = value
            else:
                self.state.pop(key, None)
        self.controller.committed()
        self.committed = dict(self.current)
        self.do(self.controller.discard(dead))

    @rule(orderly=st.booleans())
    def crash(self, orderly):
        if orderly:
            self.do(self.controller.close())
        else:
            # Nothing that was under way comes to its end.
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.do(asyncio.sleep(0))
        self.current = dict(self.committed)
        self.open()

    @rule()
    def compact(self):
        places = dict(self.do(self.controller.sparse_places(0.5)))
        self.put({id: data for id, (place, data) in self.current.items() if places.get(id) == place})

    @precondition(lambda self: self.controller is not None)
    @rule()
    def nothing_else_is_in_the_bucket(self):
        self.commit(False)
        parts = self.controller._open.parts
        self.do(parts.cleaning.wait(10))

        async def names():
            return {key async for key in parts.bucket.names(parts.layout.folder)}

        numbers = {parts.layout.parse(key) for key in self.do(names())} - {None}
        assert numbers == {parts.layout.unpack(id, place).number for id, (place, data) in self.current.items() if data}

    @invariant()
    def reads_as_written(self):
        if self.controller is None:
            return
        both = [(id, *what) for contents in (self.current, self.committed) for id, what in contents.items()]
        answers = self.do(self.controller.read([ReadRequest(id, place) for id, place, _ in both]))
        for (_, _, data), answer in zip(both, answers, strict=True):
            assert not isinstance(answer, Exception), answer
            assert bytes(answer) == data
        places = {(id, place) for id, place, _ in both}
        assert self.controller.space().used == sum(self.controller.footprint(place) for _, place in places)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
