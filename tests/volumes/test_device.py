"""A file as a pool's data device."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from dstorage.errors import ClosedError
from dstorage.volumes.device import FileDevice

MIB = 2**20


@pytest.fixture
def device(tmp_path):
    made = FileDevice(tmp_path / "data", create=True)
    yield made
    made.close()


async def test_what_is_written_is_read(device):
    await device.pwrite(b"hello", MIB)
    assert device.size == MIB + 5
    assert bytes(await device.pread(5, MIB)) == b"hello"
    # Fewer only at the end of the file.
    assert bytes(await device.pread(100, MIB + 3)) == b"lo"
    assert bytes(await device.pread(3, 0)) == bytes(3)
    await device.flush()
    assert (device.path).read_bytes() == bytes(MIB) + b"hello"


async def test_large_pieces_and_memory_views(device):
    content = os.urandom(9 * MIB)
    await device.pwrite(memoryview(content), 0)
    assert bytes(await device.pread(9 * MIB, 0)) == content


async def test_a_file_system_that_cannot_tell_is_read_in_threads(device, monkeypatch):
    await device.pwrite(b"hello", 0)
    calls = []
    real = os.preadv

    def refuse(*arguments):
        if len(arguments) == 4:
            calls.append(1)
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", refuse)
    assert bytes(await device.pread(5, 0)) == b"hello"
    assert bytes(await device.pread(5, 0)) == b"hello"
    assert len(calls) <= 1


async def test_discarded_bytes_take_no_space_where_the_file_system_can(device):
    await device.pwrite(b"x" * MIB, 0)
    await device.flush()
    before = os.stat(device.path).st_blocks
    await device.discard(0, MIB // 2)
    assert device.size == MIB
    if os.stat(device.path).st_blocks < before:
        assert bytes(await device.pread(MIB // 2, 0)) == bytes(MIB // 2)
    assert bytes(await device.pread(1, MIB // 2)) == b"x"


async def test_length_can_change(device):
    await device.truncate(MIB)
    assert device.size == MIB
    assert os.stat(device.path).st_size == MIB
    await device.truncate(10)
    assert device.size == 10
    assert len(await device.pread(100, 0)) == 10


async def test_a_cancelled_write_returns_only_when_the_device_has_done(device, monkeypatch):
    loop = asyncio.get_running_loop()
    begun, go_on = asyncio.Event(), asyncio.Event()
    real = os.pwrite

    def slow(*arguments):
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", slow)
    write = asyncio.create_task(device.pwrite(b"late", 0))
    await begun.wait()
    write.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not write.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await write
    assert device.path.read_bytes() == b"late"


async def test_errors_come_as_they_are(tmp_path, device):
    with pytest.raises(FileNotFoundError):
        FileDevice(tmp_path / "nowhere")
    reading = FileDevice(device.path, read_only=True)
    with pytest.raises(OSError, match="file descriptor"):
        await reading.pwrite(b"x", 0)
    reading.close()
    reading.close()
    for call in (
        reading.pread(1, 0),
        reading.pwrite(b"", 0),
        reading.flush(),
        reading.discard(0, 1),
        reading.truncate(1),
    ):
        with pytest.raises(ClosedError):
            await call
