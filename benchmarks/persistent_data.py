"""Copy-on-write trees beside ZODB's BTrees with FileStorage, sqlite3 and lmdb; snapshots by size; volumes beside their bare data file.

python benchmarks/persistent_data.py [--size tiny|full] [--repeat N] [--json FILE]

Everybody keeps the same random 63-bit keys with 64-bit values in one file, and makes each commit durable (sqlite3: write-ahead log,
synchronous=FULL; lmdb: its default). "Bulk load" is all keys in ascending order in one transaction, each by the way meant for it; "insert" is
new random keys, 1000 to a transaction, commits included. Lookups are of keys at hand as the API takes them (lmdb: 8 bytes
packed before the clock runs) and all in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sqlite3
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import lmdb
from charts import Chart, keep
from environment import describe

try:
    import transaction
    import ZODB
    import ZODB.FileStorage
    from BTrees.LLBTree import LLBTree
except ModuleNotFoundError:
    ZODB = None

from dstorage.persistent import BlockFile, BlockManager, BTree, TransactionManager, Validator
from dstorage.volumes import FileDevice, ThinMetadata, ThinPool

MIB = 2**20
PER_TRANSACTION = 1000
RANGE = 1000
SIZES = {"tiny": (3_000, 2, 4 * MIB, 1), "full": (1_000_000, 50, 512 * MIB, 5)}
"""Keys, transactions of inserts, bytes of the volume, rounds of what is repeated."""
SNAPSHOTS = 20

Keys = Sequence[int]


class Peer(Protocol):
    """One contestant; made in a directory of its own."""

    name: str

    def __init__(self, directory: Path, keys: int) -> None: ...

    def load(self, keys: Keys) -> None:
        """All keys, ascending, each its own value; committed."""

    def insert(self, keys: Keys) -> None: ...

    def commit(self) -> None: ...

    def lookups(self, keys: Keys) -> Callable[[], None]:
        """What looks all of these up, prepared."""

    def scan(self, first: int, count: int) -> int:
        """Sum of the next `count` values from a key on."""

    def close(self) -> None: ...


class Ours:
    name = "dstorage"

    def __init__(self, directory: Path, keys: int) -> None:
        path = directory / "blocks"
        path.touch()
        os.truncate(path, (keys // 30 + 2000) * 4096)
        self.file = BlockFile(path)
        self.tm = TransactionManager.create(BlockManager(self.file))
        self.tree = BTree(self.tm)
        self.root = self.tree.empty()
        self.superblock = Validator("benchmark", 4711)

    def load(self, keys: Keys) -> None:
        self.root = self.tree.bulk_load(zip(keys, keys, strict=True))
        self.commit()

    def insert(self, keys: Keys) -> None:
        for key in keys:
            self.root = self.tree.insert(self.root, key, key)

    def commit(self) -> None:
        self.tm.commit(self.superblock, lambda data, root: struct.pack_into("<32sQ", data, 16, root, self.root))

    def lookups(self, keys: Keys) -> Callable[[], None]:
        lookup, root = self.tree.lookup_u64, self.root

        def work() -> None:
            for key in keys:
                lookup(root, key)

        return work

    def scan(self, first: int, count: int) -> int:
        pairs = self.tree.items_u64(self.root, first=first)
        return sum(value for (_, value), _ in zip(pairs, range(count), strict=False))

    def close(self) -> None:
        self.file.close()


class Zodb:
    name = "ZODB BTrees + FileStorage"

    def __init__(self, directory: Path, keys: int) -> None:
        self.database = ZODB.DB(ZODB.FileStorage.FileStorage(str(directory / "zodb")), cache_size=keys)
        self.connection = self.database.open()
        self.tree: Any = LLBTree()
        self.connection.root()["tree"] = self.tree

    def load(self, keys: Keys) -> None:
        self.tree.update(list(zip(keys, keys, strict=True)))
        self.commit()

    def insert(self, keys: Keys) -> None:
        for key in keys:
            self.tree[key] = key

    def commit(self) -> None:
        transaction.commit()

    def lookups(self, keys: Keys) -> Callable[[], None]:
        tree = self.tree

        def work() -> None:
            for key in keys:
                tree[key]

        return work

    def scan(self, first: int, count: int) -> int:
        return sum(value for value, _ in zip(self.tree.itervalues(first), range(count), strict=False))

    def close(self) -> None:
        transaction.abort()
        self.connection.close()
        self.database.close()


class Sqlite:
    name = "sqlite3"

    def __init__(self, directory: Path, keys: int) -> None:
        self.database = sqlite3.connect(directory / "sqlite", isolation_level=None)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute("PRAGMA synchronous=FULL")
        self.database.execute("PRAGMA cache_size=-262144")
        self.database.execute("CREATE TABLE tree (key INTEGER PRIMARY KEY, value INTEGER)")
        self.database.execute("BEGIN")

    def load(self, keys: Keys) -> None:
        self.database.executemany("INSERT INTO tree VALUES (?, ?)", zip(keys, keys, strict=True))
        self.commit()

    def insert(self, keys: Keys) -> None:
        for key in keys:
            self.database.execute("INSERT OR REPLACE INTO tree VALUES (?, ?)", (key, key))

    def commit(self) -> None:
        self.database.execute("COMMIT")
        self.database.execute("BEGIN")

    def lookups(self, keys: Keys) -> Callable[[], None]:
        execute = self.database.execute

        def work() -> None:
            for key in keys:
                execute("SELECT value FROM tree WHERE key = ?", (key,)).fetchone()

        return work

    def scan(self, first: int, count: int) -> int:
        rows = self.database.execute("SELECT value FROM tree WHERE key >= ? ORDER BY key LIMIT ?", (first, count))
        return sum(row[0] for row in rows)

    def close(self) -> None:
        self.database.close()


class Lmdb:
    name = "lmdb"
    key = struct.Struct(">Q")
    """Big-endian, so that the order of the bytes is that of the numbers."""

    def __init__(self, directory: Path, keys: int) -> None:
        self.environment = lmdb.open(str(directory / "lmdb"), map_size=max(64 * MIB, keys * 400))
        self.write = self.environment.begin(write=True)

    def load(self, keys: Keys) -> None:
        pack = self.key.pack
        self.write.cursor().putmulti(((pack(key), pack(key)) for key in keys), append=True)
        self.commit()

    def insert(self, keys: Keys) -> None:
        pack, put = self.key.pack, self.write.put
        for key in keys:
            put(pack(key), pack(key))

    def commit(self) -> None:
        self.write.commit()
        self.write = self.environment.begin(write=True)

    def lookups(self, keys: Keys) -> Callable[[], None]:
        packed = [self.key.pack(key) for key in keys]

        def work() -> None:
            with self.environment.begin() as read:
                get = read.get
                for key in packed:
                    get(key)

        return work

    def scan(self, first: int, count: int) -> int:
        unpack = self.key.unpack
        with self.environment.begin() as read:
            cursor = read.cursor()
            cursor.set_range(self.key.pack(first))
            return sum(
                unpack(value)[0]
                for value, _ in zip(cursor.iternext(keys=False, values=True), range(count), strict=False)
            )

    def close(self) -> None:
        self.write.abort()
        self.environment.close()


PEERS: list[type[Peer]] = [Ours, *([Zodb] if ZODB is not None else []), Sqlite, Lmdb]


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(peer: Peer, count: int, transactions: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds for each key (for each commit: milliseconds), several times."""
    chance = random.Random(1)
    keys = sorted(chance.sample(range(2**62), count))
    found: dict[str, list[float]] = {}
    found["bulk load, us/key"] = [1e6 * seconds(lambda: peer.load(keys)) / count]
    inserts, commits = [], []
    for _ in range(transactions):
        new = chance.sample(range(2**62), PER_TRANSACTION)
        spent = seconds(lambda new=new: peer.insert(new))  # type: ignore[misc]  # bound at once
        commit = seconds(peer.commit)
        inserts.append(1e6 * (spent + commit) / PER_TRANSACTION)
        commits.append(1e3 * commit)
    found["insert with commits, us/key"] = inserts
    found["commit of 1000 keys, ms"] = commits
    sample = chance.choices(keys, k=min(count, 100_000))
    work = peer.lookups(sample)
    work()
    found["lookup, us"] = [1e6 * seconds(work) / len(sample) for _ in range(rounds)]
    firsts = chance.choices(keys[:-RANGE], k=min(200, count // 10))
    sums = [peer.scan(first, RANGE) for first in firsts]
    found[f"range of {RANGE}, us/key"] = [
        1e6 * seconds(lambda: [peer.scan(first, RANGE) for first in firsts]) / len(firsts) / RANGE
        for _ in range(rounds)
    ]
    found["answer"] = [float(sum(sums) % 2**50)]
    return found


def trees(directory: Path, count: int, transactions: int, rounds: int) -> Chart:
    """All contestants, one after the other, on the same keys."""
    groups: dict[str, dict[str, list[float]]] = {}
    answers = set()
    for kind in PEERS:
        place = directory / kind.__name__
        place.mkdir()
        peer = kind(place, count)
        figures = measure(peer, count, transactions, rounds)
        peer.close()
        answers.add(figures.pop("answer")[0])
        for what, values in figures.items():
            groups.setdefault(what, {})[kind.name] = values
    assert len(answers) == 1, "the contestants do not agree"
    for what, figures in groups.items():
        print(f"\n{what} (of {count:,} keys; lower is better)")
        ours = statistics.median(figures[Ours.name])
        for name, values in figures.items():
            median = statistics.median(values)
            spread = f"{min(values):,.2f} to {max(values):,.2f}"
            print(f"  {name:<26} {median:>10,.2f} {median / ours:>7.2f}x   ({spread})")
    return Chart("Copy-on-write trees beside other stores of 64-bit keys (lower is better)", "us or ms", groups)


def snapshots(directory: Path, largest: int) -> Chart:
    """Time of a snapshot, without and with its commit, by the number of mappings."""
    groups: dict[str, dict[str, list[float]]] = {}
    print("\nsnapshot of a volume, ms (lower is better)")
    size = 1000
    while size <= largest:
        path = directory / f"metadata-{size}"
        with ThinMetadata.create(
            path, metadata_bytes=(size // 30 + 1000) * 4096, block_bytes=65536, nr_data_blocks=size
        ) as pool:
            pool.create_device(0)
            pool.map(0, dict(enumerate(pool.allocate(size))))
            pool.commit()
            alone, committed = [], []
            for id in range(1, SNAPSHOTS + 1):
                alone.append(1e3 * seconds(lambda id=id: pool.create_snapshot(id, 0)))  # type: ignore[misc]  # at once
                committed.append(alone[-1] + 1e3 * seconds(pool.commit))
        for what, values in (("snapshot", alone), ("and commit", committed)):
            groups.setdefault(what, {})[f"{size:,} mappings"] = values
            spread = f"{min(values):,.3f} to {max(values):,.3f}"
            print(f"  {size:>9,} mappings {what:<10} {statistics.median(values):>8.3f}   ({spread})")
        size *= 10
    return Chart("Snapshots by number of mappings (lower is better)", "ms", groups)


async def volumes(directory: Path, total: int, rounds: int) -> Chart:
    """Sequential writes and reads of a volume beside the file that is its data device, 1 MiB at a time, flushed."""
    piece = random.Random(1).randbytes(MIB)
    bare = FileDevice(directory / "bare", create=True)
    data = FileDevice(directory / "data", create=True)
    rates: dict[str, dict[str, list[float]]] = {}

    async def write(device: Any) -> None:
        for at in range(0, total, MIB):
            await device.pwrite(piece, at)
        await device.flush()

    async def read(device: Any) -> None:
        for at in range(0, total, MIB):
            assert len(await device.pread(MIB, at)) == MIB

    async def clocked(what: str, name: str, work: Callable[[Any], Any], device: Any) -> None:
        began = time.perf_counter()
        await work(device)
        rates.setdefault(what, {}).setdefault(name, []).append(total / MIB / (time.perf_counter() - began))

    async with await ThinPool.create(
        directory / "pool", data, data_bytes=2 * total, metadata_bytes=64 * MIB, commit_interval=None
    ) as pool:
        for turn in range(rounds):
            await pool.create_device(turn)
            volume = await pool.volume(turn, size=total)
            await bare.truncate(0)
            # A bare file's first write allocates as well.
            await clocked("first write", "file", write, bare)
            await clocked("first write", "volume", write, volume)
            for what, work in (("rewrite", write), ("read", read)):
                await clocked(what, "file", work, bare)
                await clocked(what, "volume", work, volume)
            volume.close()
            await pool.delete_device(turn)
            await pool.commit()
    bare.close()
    data.close()
    print("\nvolume beside its bare data file, sequential, MiB/s (higher is better)")
    for what, figures in rates.items():
        file = statistics.median(figures["file"])
        for name, values in figures.items():
            median = statistics.median(values)
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            print(f"  {what:<12} {name:<8} {median:>8,.0f} {median / file:>6.2f}x   ({spread})")
    return Chart("Volumes beside a file (higher is better)", "MiB/s", rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeat", type=int, help="rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    count, transactions, total, rounds = SIZES[arguments.size]
    rounds = arguments.repeat or rounds
    facts = describe()
    print(facts["line"])
    if ZODB is None:
        print("ZODB is not installed (pip install 'dstorage[bench]'): it does not take part")
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        charts = [trees(directory, count, transactions, rounds), snapshots(directory, count)]
        charts.append(asyncio.run(volumes(directory, total, rounds)))
    keep(arguments.json, facts, charts)


if __name__ == "__main__":
    main()
