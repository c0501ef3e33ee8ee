"""Any flipped byte anywhere, in a locator, a slot or a segment: an error for that chunk, never wrong bytes."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from pathlib import Path

import pytest
import zstandard
from devices import write_directly
from dstorage_controllers.disk import DiskController, layout
from dstorage_controllers.disk.codec import Codec
from hypothesis import given, settings
from hypothesis import strategies as st

from dstorage import ControllerUnavailable, CorruptData, Locator, Lost, VersionError
from dstorage.controller import ReadRequest
from dstorage.errors import ControllerError, DStorageError
from dstorage.testing import Bench, payload

CONFIGURATIONS = {
    "plain": {},
    "zstd": {"compress": True},
    "encrypted": {"compress": 1, "key_env": "DSTORAGE_TEST_KEY"},
    "direct": {"direct": True},
}
CHUNKS = {id: payload(id, 40 * id * id) for id in range(1, 14)}
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    write_directly(monkeypatch, 500)
    monkeypatch.setenv("DSTORAGE_TEST_KEY", "5a" * 32)


@pytest.fixture(params=CONFIGURATIONS)
def options(request):
    return {"segment_bytes": 2**14, **CONFIGURATIONS[request.param]}


async def written(directory: Path, options):
    bench = Bench(DiskController(**options), directory)
    await bench.open()
    places = await bench.put(CHUNKS)
    await bench.commit(places)
    await bench.controller.close()
    return places, bench.state


async def test_every_flipped_byte_of_a_chunk_is_noticed(tmp_path, options):
    places, state = await written(tmp_path / "own", options)
    place = layout.unpack(5, places[5])
    path = tmp_path / "own" / layout.file_name(place.segment)
    bench = Bench(DiskController(**options), tmp_path / "own", state)
    await bench.open()
    whole = path.read_bytes()
    for at in range(place.first, place.end):
        with path.open("r+b", buffering=0) as file:
            file.seek(at)
            file.write(bytes([whole[at] ^ 1 << at % 8]))
            assert bench.controller.read_nowait(5, places[5]) is None
            (answer,) = await bench.controller.read([ReadRequest(5, places[5])])
            assert isinstance(answer, CorruptData), f"byte {at}"
            assert answer.id == 5
            file.seek(at)
            file.write(whole[at : at + 1])
    assert await bench.get(places) == CHUNKS
    await bench.controller.close()


async def test_flipped_bytes_anywhere_else_do_no_harm_to_reading(tmp_path, options):
    places, state = await written(tmp_path / "own", options)
    table_end = layout.slots_for(2**14) * layout.ENTRY_BYTES
    for path in (tmp_path / "own").glob("*.seg"):
        content = bytearray(path.read_bytes())
        content[:table_end] = bytes(byte ^ 0xFF for byte in content[:table_end])
        path.write_bytes(content)
    bench = Bench(DiskController(**options), tmp_path / "own", state)
    await bench.open()
    assert await bench.get(places) == CHUNKS
    for number in state.keys() - {0}:
        with pytest.raises(CorruptData):
            await bench.controller.extents(number)
    await bench.controller.close()


async def test_a_damaged_slot_hides_its_chunk_and_no_other(tmp_path, options):
    places, state = await written(tmp_path / "own", options)
    segment = layout.unpack(1, places[1]).segment
    path = tmp_path / "own" / layout.file_name(segment)
    bench = Bench(DiskController(**options), tmp_path / "own", state)
    await bench.open()
    whole = await bench.controller.extents(segment)
    assert (1, places[1]) in whole
    original = path.read_bytes()
    for at in range(layout.ENTRY_BYTES, 2 * layout.ENTRY_BYTES):
        with path.open("r+b", buffering=0) as file:
            file.seek(at)
            file.write(bytes([original[at] ^ 0x40]))
            assert (1, places[1]) not in (found := await bench.controller.extents(segment))
            assert set(whole[1:]) <= set(found)
            file.seek(at)
            file.write(original[at : at + 1])
    await bench.controller.close()


def test_any_locator_is_answered_with_the_right_bytes_or_an_error(tmp_path_factory, options):
    directory = tmp_path_factory.mktemp("fuzz")
    loop = asyncio.new_event_loop()
    places, state = loop.run_until_complete(written(directory, options))
    bench = Bench(DiskController(**options), directory, state)
    loop.run_until_complete(bench.open())

    @settings(max_examples=300)
    @given(st.sampled_from(sorted(CHUNKS)), st.lists(st.tuples(st.integers(0, 159)), min_size=1, max_size=3), st.data())
    def spoil(id, bits, data):
        size, b, c = places[id]
        whole = size | b << 32 | c << 96
        for (bit,) in bits:
            whole ^= 1 << bit
        spoilt = Locator(whole & 0xFFFFFFFF, whole >> 32 & 2**64 - 1, whole >> 96)
        if data.draw(st.integers(0, 9)) == 0:
            spoilt = Locator(data.draw(U32), data.draw(U64), data.draw(U64))
        answers = loop.run_until_complete(bench.controller.read([ReadRequest(id, spoilt), ReadRequest(2, places[2])]))
        assert spoilt == places[id] or isinstance(answers[0], CorruptData | Lost | ControllerUnavailable)
        assert answers[1] == CHUNKS[2]
        try:
            at_once = bench.controller.read_nowait(id, spoilt)
        except CorruptData:
            at_once = None
        assert at_once is None or spoilt == places[id]

    try:
        spoil()
    finally:
        loop.run_until_complete(bench.controller.close())
        loop.close()
        shutil.rmtree(directory)


@given(st.integers(1, 2**64 - 1), U32, U64, U64)
def test_taking_a_locator_apart_and_together_is_exact(id, size, b, c):
    locator = Locator(size, b, c)
    try:
        place = layout.unpack(id, locator)
    except CorruptData:
        return
    assert layout.pack(place) == locator
    assert 0 <= place.stored <= place.size + layout.MAX_OVERHEAD
    assert place.end <= 2**32


@given(st.binary(max_size=200), st.integers(1, 100))
def test_no_table_breaks_the_scan(table, segment):
    whole = table[: len(table) // layout.ENTRY_BYTES * layout.ENTRY_BYTES]
    for id, locator in layout.unpack_entries(whole, segment):
        assert layout.unpack(id, locator).segment == segment


@given(st.binary(max_size=40))
def test_no_state_breaks_the_opening(raw):
    for decode in (lambda: layout.unpack_state(3, raw), lambda: layout.unpack_head(raw)):
        try:
            decode()
        except DStorageError:
            continue


def test_a_newer_format_is_told():
    with pytest.raises(VersionError) as told:
        layout.unpack_head((layout.FORMAT + 1).to_bytes(4, "little") + bytes(16))
    assert (told.value.found, told.value.supported) == (layout.FORMAT + 1, layout.FORMAT)


@pytest.mark.parametrize(
    "name", ["1.seg", "00000000.seg", "0000000x.seg", "00000001.seg.bak", "²0000001.seg", ".seg", "x"]
)
def test_other_files_are_no_segments(name):
    assert layout.segment_of(name) is None


def test_names_of_segments_are_read_back():
    for number in (1, 99, 10**8, layout.MAX_SEGMENT):
        assert layout.segment_of(layout.file_name(number)) == number


def test_a_frame_that_claims_more_than_the_chunk_is_not_decompressed():
    codec = Codec()
    bomb = zstandard.ZstdCompressor().compress(bytes(10**8))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    for frame in (bomb, unsized, b"no frame at all", b""):
        with pytest.raises(CorruptData):
            codec.decode(1, layout.Place(1000, 1, 4096, len(frame), 0, layout.ZSTD), frame)


def test_what_does_not_shrink_is_not_compressed():
    codec = Codec(level=3)
    noise = memoryview(payload(1, 100_000))
    assert codec.compress(noise) == (noise, 0)
    text, flags = codec.compress(memoryview(payload(2, 100_000)))
    assert flags == layout.ZSTD
    assert len(text) < 5000


async def test_another_stores_segment_is_refused(tmp_path):
    places, state = await written(tmp_path / "own", {"segment_bytes": 2**14})
    from dstorage import OpenContext

    other = DiskController(segment_bytes=2**14)
    await other.open(OpenContext(uuid.uuid4(), 0, tmp_path / "own", state, read_only=True))
    with pytest.raises(CorruptData, match="of this store"):
        await other.extents(layout.unpack(1, places[1]).segment)
    await other.close()


async def test_a_checkpoint_that_frees_more_than_there_is_is_refused(tmp_path):
    bench = Bench(DiskController(), tmp_path / "own")
    await bench.open()
    places = await bench.put({1: b"x" * 1000})
    with pytest.raises(ControllerError, match="dstorage check"):
        bench.controller.checkpoint([], list(places.items()))
    await bench.controller.close()
