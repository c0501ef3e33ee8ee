"""Power failures of a pool: both devices cut off together, at every write and between, torn, lost and reordered.

Nothing is taken on trust but what a disk promises: what was written before a sync that returned is there; of everything later any
sector may be there or not, in any order.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from thin_tools import require_tools, thin_check

sys.path.insert(0, str(Path(__file__).parent.parent / "persistent"))
from memory_device import MemoryDevice

from dstorage.volumes.check import check
from dstorage.volumes.metadata import ThinMetadata
from dstorage.volumes.pool import ThinPool

BLOCK = 65536
SECTOR = 512
SIZE = 12 * BLOCK


class Log:
    """What two devices were asked, in one order: (device, offset, data), or (device,) for a sync that returned."""

    def __init__(self):
        self.entries = []


class LoggedMetadata(MemoryDevice):
    def __init__(self, log, content):
        super().__init__(0, "metadata")
        self.bytes = bytearray(content)
        self.record = log

    def pwrite(self, data, offset):
        super().pwrite(data, offset)
        self.record.entries.append(("metadata", offset, bytes(data)))

    def sync(self):
        self.record.entries.append(("metadata",))


class LoggedData:
    def __init__(self, log, content):
        self.bytes = bytearray(content)
        self.record = log

    @property
    def size(self):
        return len(self.bytes)

    async def pread(self, length, offset, /):
        return bytes(self.bytes[offset : offset + length])

    async def pwrite(self, data, offset, /):
        self.bytes[offset : offset + len(data)] = data
        self.record.entries.append(("data", offset, bytes(data)))

    async def flush(self):
        self.record.entries.append(("data",))

    async def discard(self, offset, length, /):
        # Some devices give zeros afterwards, some anything: the worst is somebody else's bytes.
        await self.pwrite(b"\xdd" * length, offset)

    async def truncate(self, size, /):
        self.bytes += bytes(max(0, size - len(self.bytes)))


def states(before, log, chance, wanted):
    """What both devices may hold after a failure: before each of some entries of the log, and behind the last."""
    moments = set(chance.sample(range(len(log) + 1), min(wanted, len(log) + 1))) | {len(log)}
    durable = {name: bytearray(content) for name, content in before.items()}
    unsynced = {"metadata": [], "data": []}
    for moment in range(len(log) + 1):
        if moment in moments:
            for share in (0.0, 0.5, 0.95):
                yield moment, {name: torn(durable[name], unsynced[name], chance, share) for name in durable}
        if moment < len(log):
            device, *write = log[moment]
            if write:
                unsynced[device].append(write)
            else:
                for offset, data in unsynced[device]:
                    durable[device][offset : offset + len(data)] = data
                unsynced[device].clear()


def torn(durable, writes, chance, share):
    """With a share of the sectors written since, in any order of the writes."""
    state = bytearray(durable)
    for offset, data in chance.sample(writes, len(writes)):
        for at in range(0, len(data), SECTOR):
            if chance.random() < share:
                state[offset + at : offset + at + SECTOR] = data[at : at + SECTOR]
    return state


class History:
    """What the volumes were written, and what of it was committed.

    Attributes:
        now: Volume -> bytes.
        later: Volume -> sector -> all that was written there since the commit.
        committed: Volume -> bytes as at the commit.
    """

    def __init__(self):
        self.now = {1: bytearray(SIZE)}
        self.commit()

    def commit(self):
        self.later = {id: {} for id in self.now}
        self.committed = {id: bytes(content) for id, content in self.now.items()}

    def write(self, id, data, offset):
        self.now[id][offset : offset + len(data)] = data
        self.changed(id, offset, len(data))

    def changed(self, id, offset, length):
        later = self.later.get(id)
        if later is not None:
            for sector in range(offset // SECTOR, -(-(offset + length) // SECTOR)):
                later.setdefault(sector, []).append(bytes(self.now[id][sector * SECTOR : (sector + 1) * SECTOR]))


async def act(pool, volumes, history, chance):
    """One step of a random history."""
    id = chance.choice(list(volumes))
    action = chance.random()
    if action < 0.6:
        data = chance.randbytes(chance.choice([SECTOR, 4 * SECTOR, BLOCK]))
        offset = chance.randrange((SIZE - len(data)) // SECTOR + 1) * SECTOR
        await volumes[id].pwrite(data, offset)
        history.write(id, data, offset)
    elif action < 0.75:
        block = chance.randrange(12)
        await volumes[id].discard(block * BLOCK, BLOCK)
        # Not a write: until the commit the old bytes stay where they are.
        history.now[id][block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
    elif action < 0.9 and len(volumes) < 4:
        other = max(history.now) + 1
        await pool.snapshot(other, origin=id)
        volumes[other] = await pool.volume(other, size=SIZE)
        history.now[other] = bytearray(history.now[id])
    elif len(volumes) > 1:
        volumes.pop(id).close()
        await pool.delete_device(id)
        del history.now[id]


async def read(state):
    """All volumes of a pool that comes back after a failure."""
    log = Log()
    metadata = ThinMetadata.on_device(LoggedMetadata(log, state["metadata"]), read_only=True)
    async with ThinPool(metadata, LoggedData(log, state["data"]), commit_interval=None) as pool:
        found = {}
        for id in pool.devices():
            found[id] = bytes(await (await pool.volume(id, size=SIZE)).pread(SIZE, 0))
        return found


def explains(committed, later, found):
    """Whether these volumes are those of a commit: each sector as it was then, or as it was written since."""
    if set(committed) != set(found):
        return False
    for id, content in committed.items():
        if content == found[id]:
            continue
        for sector in range(SIZE // SECTOR):
            was, now = (text[sector * SECTOR : (sector + 1) * SECTOR] for text in (content, found[id]))
            if was != now and now not in later.get(id, {}).get(sector, ()):
                return False
    return True


@pytest.mark.parametrize("seed", range(2))
async def test_after_a_power_failure_a_pool_is_as_at_its_last_commit(tmp_path, seed):
    require_tools()
    chance = random.Random(seed)
    path = tmp_path / "metadata"
    ThinMetadata.create(path, metadata_bytes=2**19, block_bytes=BLOCK, nr_data_blocks=60).close()
    log = Log()
    metadata, data = LoggedMetadata(log, path.read_bytes()), LoggedData(log, b"\xee" * 60 * BLOCK)
    pool = ThinPool(ThinMetadata.on_device(metadata, cache_blocks=16), data, commit_interval=None)
    await pool.create_device(1)
    volumes = {1: await pool.volume(1, size=SIZE)}
    history = History()
    await pool.commit()
    failures = 0
    for _ in range(12):
        log.entries.clear()
        before = {"metadata": bytes(metadata.bytes), "data": bytes(data.bytes)}
        for _ in range(chance.randrange(1, 12)):
            await act(pool, volumes, history, chance)
        old = history.committed, history.later
        await pool.commit()
        history.commit()
        commits = [place for place, entry in enumerate(log.entries) if entry[:2] == ("metadata", 0)]
        for moment, state in states(before, log.entries, chance, 8):
            failures += 1
            found = await read(state)
            is_new = explains(history.committed, {}, found)
            is_old = explains(*old, found)
            assert is_new or is_old, f"seed {seed}, moment {moment} of {len(log.entries)}"
            if not commits or moment <= commits[0]:
                assert is_old, "a commit before its time"
            if commits and moment == len(log.entries):
                assert is_new, "a commit that returned was lost"
            if failures % 5 == 0:
                path.write_bytes(state["metadata"])
                thin_check(path)
                assert check(path).problems == []
                with ThinMetadata.open(path) as again:
                    again.commit()
                thin_check(path)
    await pool.close()
    assert failures > 200
