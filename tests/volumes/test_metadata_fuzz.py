"""Metadata of which bytes were changed: harmless or a clear error; never a wrong answer, a hang, or memory without bound."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import tracemalloc
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "persistent"))
from memory_device import MemoryDevice

from dstorage.errors import DStorageError
from dstorage.volumes.layout import BITMAP_SALT, INDEX_SALT, NODE_SALT, SUPERBLOCK_SALT, checksum, seal
from dstorage.volumes.metadata import ThinMetadata

SALTS = (SUPERBLOCK_SALT, NODE_SALT, BITMAP_SALT, INDEX_SALT)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A pool with all that can be in one: shared trees, counts of three and more, a metadata snapshot, two data bitmaps."""
    path = tmp_path_factory.mktemp("fuzz") / "metadata"
    chance = random.Random(1)
    with ThinMetadata.create(path, metadata_bytes=2**20, block_bytes=65536, nr_data_blocks=20_000) as pool:
        pool.create_device(0)
        pool.map(0, dict(zip(range(0, 1600, 2), pool.allocate(800), strict=True)))
        for id in range(1, 6):
            pool.create_snapshot(id, id - 1)
            blocks = chance.sample(range(3000), 150)
            pool.map(id, dict(zip(blocks, pool.allocate(150), strict=True)))
        pool.commit()
        pool.take_snapshot()
        pool.commit()
        pool.unmap(3, 0, 500)
        pool.commit()
    return path.read_bytes()


def device_of(content):
    device = MemoryDevice(0, "fuzzed")
    device.bytes = bytearray(content)
    return device


def read(device):
    """All that a pool says; the tree of each device from both ends."""
    with ThinMetadata.on_device(device, read_only=True) as pool:
        found = {id: (details, list(pool.mappings(id))) for id, details in pool.devices()}
        for id in found:
            pool.mapped_end(id)
        return found, pool.time, pool.transaction_id, pool.nr_data_blocks, pool.held_root


def change(device):
    """Some of everything, and a commit."""
    with ThinMetadata.on_device(device) as pool:
        change_pool(pool, device)


def change_pool(pool, device):
    ids = [id for id, _ in pool.devices()]
    pool.create_snapshot(100, ids[-1])
    pool.map(100, dict(zip(range(0, 900, 3), pool.allocate(300), strict=True)))
    pool.unmap(ids[0], 0, 1000)
    pool.commit()
    pool.delete_device(ids[1])
    if pool.held_root:
        pool.release_snapshot()
    pool.grow_data(pool.nr_data_blocks + 20_000)
    pool.grow_metadata(device.size + 2**20)
    pool.commit()


def answers(device, right, number):
    """Read a pool of which a block was damaged: the right answer, or an error that names block and file."""
    try:
        found = read(device)
    except DStorageError as error:
        message = str(error)
    else:
        assert found == right
        return "harmless"
    assert f"block {number} of fuzzed" in message
    return "told"


def used_blocks(content):
    return [number for number in range(len(content) // 4096) if any(content[number * 4096 : number * 4096 + 4096])]


def test_any_byte_changed_is_harmless_or_a_clear_error(content):
    right = read(device_of(content))
    chance = random.Random(2)
    outcomes = {"harmless": 0, "told": 0}
    for number in used_blocks(content):
        for at in chance.sample(range(4096), 6):
            device = device_of(content)
            device.bytes[number * 4096 + at] ^= 1 << chance.randrange(8)
            outcomes[answers(device, right, number)] += 1
    assert min(outcomes.values()) > 50


def test_changes_of_damaged_metadata_commit_nothing_wrong(content):
    """Where a damaged block is met before the commit, nothing is committed; where none is met, none was needed."""
    chance = random.Random(3)
    sound = device_of(content)
    change(sound)
    right = read(sound)
    for number in used_blocks(content):
        device = device_of(content)
        device.bytes[number * 4096 + chance.randrange(4096)] ^= 1 << chance.randrange(8)
        try:
            change(device)
        except DStorageError:
            continue
        answers(device, right, number)


@pytest.mark.parametrize("seed", range(2))
def test_bytes_that_were_changed_with_their_checksum_make_no_crash(content, seed):
    """What a bug or an attacker writes passes for whole; it may mean something else, but nothing breaks or runs away."""
    chance = random.Random(seed)
    salts = {
        number: next(salt for salt in SALTS if checksum(block, salt) == int.from_bytes(block[:4], "little"))
        for number in used_blocks(content)
        for block in [content[number * 4096 : number * 4096 + 4096]]
    }
    told = 0
    for _ in range(60):
        device = device_of(content)
        number = chance.choice(list(salts))
        block = bytearray(content[number * 4096 : number * 4096 + 4096])
        for _ in range(chance.choice([1, 1, 4])):
            # Headers are where the numbers are that steer.
            at = chance.choice([chance.randrange(4, 380), chance.randrange(4, 40), chance.randrange(4, 4096)])
            value = chance.choice([chance.randbytes(1), b"\0" * 4, b"\xff" * 4, b"\xff" * 8, chance.randbytes(8)])
            block[at : at + len(value)] = value
            del block[4096:]
        device.bytes[number * 4096 : number * 4096 + 4096] = seal(block, number, salts[number])
        for work in (read, change):
            try:
                work(device)
            except DStorageError:
                told += 1
    assert told > 20


@pytest.mark.parametrize("value", [b"\xff", b"\x7f"])
def test_numbers_that_a_superblock_makes_up_take_no_memory(content, value):
    """Times, places, numbers of blocks and roots, each in turn."""
    for at in (40, 44, 48, 56, 64, 72, 80, 88, 192, 200, 208, 216, 320, 328, 336, 344):
        device = device_of(content)
        block = device.bytes[:4096]
        block[at : at + 8] = value * 8
        device.bytes[:4096] = seal(block, 0, SUPERBLOCK_SALT)
        gc.collect()
        tracemalloc.start()
        try:
            for work in (read, change):
                with contextlib.suppress(DStorageError):
                    work(device)
            assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
        finally:
            tracemalloc.stop()
