"""Volumes: the bytes written are the bytes read, whatever is shared, discarded or going on at the same time."""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading

import pytest
from memory_data import MemoryData

from dstorage.errors import ClosedError, InvalidArgumentError, UsageError
from dstorage.persistent.block_file import BlockFile
from dstorage.volumes.check import check
from dstorage.volumes.metadata import ThinMetadata
from dstorage.volumes.pool import ThinPool

BLOCK = 65536


@pytest.fixture
async def pool(tmp_path):
    data = MemoryData()
    async with await ThinPool.create(
        tmp_path / "metadata", data, data_bytes=64 * BLOCK, metadata_bytes=2**20, commit_interval=None
    ) as made:
        await made.create_device(1)
        yield made
    assert check(tmp_path / "metadata").problems == []


@pytest.fixture
async def volume(pool):
    return await pool.volume(1, size=32 * BLOCK)


async def test_what_was_never_written_reads_as_zeros(pool, volume):
    assert bytes(await volume.pread(3 * BLOCK, BLOCK // 2)) == bytes(3 * BLOCK)
    await volume.pwrite(b"x", BLOCK + 5)
    # The rest of the block as well, whatever the device held there.
    assert bytes(await volume.pread(3 * BLOCK, 0)) == bytes(BLOCK + 5) + b"x" + bytes(2 * BLOCK - 6)
    assert pool.status().free_data_blocks == 63


async def test_reading_ends_with_the_volume_and_writing_is_refused_there(volume):
    assert len(await volume.pread(100, 32 * BLOCK - 10)) == 10
    assert await volume.pread(100, 32 * BLOCK) == b""
    assert await volume.pread(100, 2**70) == b""
    await volume.pwrite(b"", 32 * BLOCK)
    for offset in (-1, 32 * BLOCK - 1, 2**70):
        with pytest.raises(InvalidArgumentError):
            await volume.pwrite(b"xx", offset)
    for length, offset in ((-1, 0), (1, -1)):
        with pytest.raises(InvalidArgumentError):
            await volume.pread(length, offset)
    with pytest.raises(InvalidArgumentError):
        await volume.discard(0, 33 * BLOCK)


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_reads_as_plain_bytes_would(pool, seed):
    """Four volumes, snapshots of snapshots, discards, commits and rollbacks beside bytearrays."""
    chance = random.Random(seed)
    size = 12 * BLOCK
    volumes = {1: await pool.volume(1, size=size)}
    models = {1: bytearray(size)}
    await pool.commit()
    for step in range(200):
        id = chance.choice(list(volumes))
        action = chance.random()
        start = chance.choice([chance.randrange(size), chance.randrange(12) * BLOCK])
        length = min(chance.choice([1, 100, BLOCK, 3 * BLOCK + 7]), size - start)
        if action < 0.5:
            content = chance.randbytes(length)
            await volumes[id].pwrite(content, start)
            models[id][start : start + length] = content
        elif action < 0.7:
            await volumes[id].discard(start, length)
            first, last = -(-start // BLOCK), (start + length) // BLOCK
            if first < last:
                models[id][first * BLOCK : last * BLOCK] = bytes((last - first) * BLOCK)
        elif action < 0.8:
            other = chance.randrange(1, 5)
            if other not in volumes:
                await pool.snapshot(other, origin=id)
                volumes[other] = await pool.volume(other, size=size)
                models[other] = bytearray(models[id])
        elif action < 0.85 and len(volumes) > 1:
            volumes.pop(id).close()
            del models[id]
            await pool.delete_device(id)
        elif action < 0.95:
            await pool.commit()
        id = chance.choice(list(volumes))
        assert bytes(await volumes[id].pread(size, 0)) == models[id], f"seed {seed}, step {step}"
    for id, volume in volumes.items():
        assert bytes(await volume.pread(size, 0)) == models[id]


async def test_a_snapshot_and_its_origin_go_their_own_ways(pool, volume):
    await volume.pwrite(b"a" * 4 * BLOCK, 0)
    await pool.snapshot(2, origin=1)
    copy = await pool.volume(2, size=32 * BLOCK)
    free = pool.status().free_data_blocks
    await volume.pwrite(b"b", BLOCK)
    await copy.pwrite(b"c" * 2 * BLOCK, BLOCK)
    assert free - pool.status().free_data_blocks == 3
    assert bytes(await volume.pread(4 * BLOCK, 0)) == b"a" * BLOCK + b"b" + b"a" * (3 * BLOCK - 1)
    assert bytes(await copy.pread(4 * BLOCK, 0)) == b"a" * BLOCK + b"c" * 2 * BLOCK + b"a" * BLOCK
    # Broken once, a block is written in place.
    await volume.pwrite(b"d", BLOCK)
    assert free - pool.status().free_data_blocks == 3
    assert (await pool.device(1, shared=True)).shared_blocks == 3


async def test_writes_to_one_new_block_at_once_are_all_there(pool, volume):
    await asyncio.gather(*(volume.pwrite(bytes([number]) * 1000, number * 1000) for number in range(64)))
    assert bytes(await volume.pread(64_000, 0)) == b"".join(bytes([number]) * 1000 for number in range(64))
    assert pool.status().free_data_blocks == 63


async def test_a_write_that_is_cancelled_leaves_no_block_behind(pool, volume):
    await volume.pwrite(b"old" * 100, 0)
    await pool.snapshot(2, origin=1)
    pool.data.open.clear()
    write = asyncio.create_task(volume.pwrite(b"new" * BLOCK, 0))
    while not pool.data.waiting:
        await asyncio.sleep(0)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    pool.data.open.set()
    assert bytes(await volume.pread(300, 0)) == b"old" * 100
    assert pool.status().free_data_blocks == 63


async def test_a_write_that_fails_leaves_no_block_behind(pool, volume):
    pool.data.fails = "pwrite"
    with pytest.raises(OSError, match="pwrite failed"):
        await volume.pwrite(b"x" * 3 * BLOCK, 0)
    pool.data.fails = ""
    assert bytes(await volume.pread(3 * BLOCK, 0)) == bytes(3 * BLOCK)
    assert pool.status().free_data_blocks == 64


async def test_a_discarded_block_is_not_given_to_others_while_it_is_being_written(pool, volume):
    """Even if it was mapped only in this transaction: a write under way would hit somebody else's bytes."""
    await volume.pwrite(b"x", 0)
    pool.data.open.clear()
    late = asyncio.create_task(volume.pwrite(b"late" * 1000, 0))
    while not pool.data.waiting:
        await asyncio.sleep(0)
    await volume.discard(0, BLOCK)
    others = pool.allocate(63)
    assert 0 not in others
    pool.data.open.set()
    await late
    pool.release(others)
    assert bytes(await volume.pread(8, 0)) == bytes(8)


async def test_the_last_part_of_a_volume_is_a_block_to_discard(pool):
    volume = await pool.volume(1, size=2 * BLOCK + 100)
    await volume.pwrite(b"x" * (2 * BLOCK + 100), 0)
    await volume.discard(BLOCK, BLOCK + 100)
    assert bytes(await volume.pread(BLOCK + 100, BLOCK)) == bytes(BLOCK + 100)
    assert (await pool.device(1)).mapped_blocks == 1


async def test_a_device_cut_short_is_told(pool, volume):
    await volume.pwrite(b"x" * BLOCK, 0)
    del pool.data.bytes[100:]
    with pytest.raises(OSError, match="cut short"):
        await volume.pread(BLOCK, 0)
    pool.data.bytes += bytes(64 * BLOCK - 100)


async def test_a_large_discard_leaves_what_is_outside(pool):
    volume = await pool.volume(1, size=2**40)
    await volume.pwrite(b"x" * 3 * BLOCK, 0)
    await volume.pwrite(b"y" * BLOCK, 2**39)
    await volume.discard(BLOCK, 2**39 - BLOCK)
    assert bytes(await volume.pread(2, 2**39 - 1)) == b"\0y"
    assert bytes(await volume.pread(3 * BLOCK, 0)) == b"x" * BLOCK + bytes(2 * BLOCK)
    assert (await pool.device(1)).mapped_blocks == 2


async def test_metadata_that_are_not_in_memory_are_fetched_in_a_thread(tmp_path, monkeypatch):
    path, data = tmp_path / "metadata", MemoryData(4000 * BLOCK)
    with ThinMetadata.create(path, metadata_bytes=2**21, block_bytes=BLOCK, nr_data_blocks=4000) as metadata:
        metadata.create_device(1)
        metadata.map(1, dict(enumerate(metadata.allocate(4000))))
        metadata.commit()
    async with await ThinPool.open(path, data, commit_interval=None) as pool:
        volume = await pool.volume(1, size=4000 * BLOCK)
        here = threading.get_ident()
        threads = []
        real = BlockFile.pread

        def pread(file, length, offset):
            threads.append(threading.get_ident())
            return real(file, length, offset)

        monkeypatch.setattr(BlockFile, "pread", pread)
        await volume.pread(1, 3000 * BLOCK)
        await volume.pwrite(b"x", 1000 * BLOCK)
        await volume.discard(2000 * BLOCK, BLOCK)
        assert threads
        assert here not in threads
    assert check(path).problems == []


# -- files


async def test_a_volume_as_a_file_in_a_thread(pool, volume):
    def work():
        with volume.file() as file, io.BufferedRandom(volume.file()) as buffered:
            assert file.seekable()
            assert file.readable()
            assert file.writable()
            assert file.write(b"hello world") == 11
            assert file.tell() == 11
            assert file.seek(6) == 6
            assert file.read(5) == b"world"
            assert file.seek(-1, os.SEEK_END) == 32 * BLOCK - 1
            assert file.write(b"xyz") == 1
            with pytest.raises(OSError, match="ends at"):
                file.write(b"z")
            assert file.read(10) == b""
            file.seek(100)
            assert file.seek(5, os.SEEK_CUR) == 105
            for wrong in (lambda: file.seek(-1), lambda: file.seek(0, 9)):
                with pytest.raises(ValueError, match=r"whence|before"):
                    wrong()
            file.flush()
            buffered.seek(6)
            assert buffered.read(5) == b"world"
            buffered.write(b"!")
            buffered.flush()
        with pytest.raises(ValueError, match="closed"):
            file.read(1)

    with pytest.raises(UsageError, match="own loop"):
        volume.file().read(1)
    await asyncio.to_thread(work)
    assert bytes(await volume.pread(12, 0)) == b"hello world!"
    assert bytes(await volume.pread(1, 32 * BLOCK - 1)) == b"x"
    volume.close()
    volume.close()
    assert "closed" in repr(volume)
    with pytest.raises(ClosedError):
        await volume.pread(1, 0)
    with pytest.raises(ClosedError):
        volume.file()


async def test_a_file_of_a_pool_that_is_only_read_can_be_buffered(tmp_path):
    data = MemoryData()
    async with await ThinPool.create(tmp_path / "metadata", data, data_bytes=4 * BLOCK) as pool:
        await pool.create_device(1)
        await (await pool.volume(1)).pwrite(b"first\nsecond\n", 0)

    def work(file):
        assert not file.writable()
        with io.BufferedReader(file) as buffered:
            return buffered.readline()

    async with await ThinPool.open(tmp_path / "metadata", data, read_only=True) as pool:
        assert await asyncio.to_thread(work, (await pool.volume(1)).file()) == b"first\n"
