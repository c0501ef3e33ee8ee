"""A catalog's file that was cut off is refused before LMDB maps it, and a sound one never is."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys

import lmdb
import pytest

import dstorage
from dstorage import CorruptData
from dstorage.lmdb_file import check_whole

OPTIONS = {"budget": 2**20, "commit_interval": None, "pressure": None}


async def make(path, count=300):
    async with dstorage.open(path, **OPTIONS) as store:
        for number in range(count):
            with await store.create(b"x" * 100) as handle:
                store.set_name(number.to_bytes(4, "big") * 20, handle.id)
        await store.commit()
    return path / "catalog" / "data.mdb"


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1, 0.01])
async def test_a_cut_off_catalog_is_an_error_and_not_the_end_of_the_process(tmp_path, read_only, kept):
    data = await make(tmp_path)
    os.truncate(data, int(data.stat().st_size * kept))
    before = data.read_bytes()
    with pytest.raises(CorruptData, match=r"data\.mdb .*(cut off|cannot be opened).*"):
        await dstorage.open(tmp_path, read_only=read_only, **OPTIONS)
    assert data.read_bytes() == before


async def test_without_the_look_before_it_ends_the_process(tmp_path):
    """Why there is the look: should LMDB ever find this itself, it can go."""
    data = await make(tmp_path)
    os.truncate(data, data.stat().st_size // 2 // 4096 * 4096)
    code = """
import sys, lmdb
with lmdb.open(sys.argv[1], max_dbs=9, readonly=True) as env:
    for name in (b"records", b"names"):
        with env.begin(db=env.open_db(name, create=False)) as transaction:
            for _ in transaction.cursor():
                pass
"""
    done = subprocess.run([sys.executable, "-c", code, str(data.parent)], capture_output=True, check=False, timeout=60)
    assert done.returncode < 0


def make_anew(data):
    data.unlink()
    lmdb.open(str(data.parent), max_dbs=16).close()


@pytest.mark.parametrize("damage", [lambda data: os.truncate(data, 0), os.unlink, make_anew])
async def test_an_empty_catalog_is_not_made_anew_over_what_controllers_hold(tmp_path, damage):
    data = await make(tmp_path)
    held = sorted(path.read_bytes() for path in tmp_path.rglob("*.seg"))
    damage(data)
    with pytest.raises(CorruptData, match="restore the store from a backup"):
        await dstorage.open(tmp_path, **OPTIONS)
    assert held
    assert held == sorted(path.read_bytes() for path in tmp_path.rglob("*.seg"))


async def test_a_first_open_that_was_killed_before_it_made_its_tables_is_begun_anew(tmp_path):
    (tmp_path / "catalog").mkdir()
    lmdb.open(str(tmp_path / "catalog"), max_dbs=16).close()
    async with dstorage.open(tmp_path, **OPTIONS) as store:
        with await store.create(b"x") as handle:
            assert await handle == b"x"


async def test_a_folder_that_holds_other_things_can_become_a_store(tmp_path):
    (tmp_path / "photos").mkdir()
    async with dstorage.open(tmp_path, **OPTIONS):
        pass


@pytest.mark.parametrize("seed", range(8))
def test_a_sound_file_is_never_refused_and_what_is_needed_cannot_be_cut(tmp_path, seed):
    """Also where the last pages were used and freed again in one transaction, so that they were never written."""
    random_ = random.Random(seed)
    data = tmp_path / "data.mdb"
    with lmdb.open(str(tmp_path), max_dbs=2, map_size=2**26) as env:
        tables = [env.open_db(name) for name in (b"a", b"b")]
        for _ in range(40):
            with env.begin(write=True) as transaction:
                for _ in range(random_.choice([1, 10, 300])):
                    key, table = random_.randrange(3000).to_bytes(4, "big"), random_.choice(tables)
                    if random_.random() < 0.55:
                        transaction.put(key, random_.randbytes(random_.choice([10, 100, 1000, 9000])), db=table)
                    else:
                        transaction.delete(key, db=table)
                if random_.random() < 0.1:
                    transaction.drop(random_.choice(tables), delete=False)
            check_whole(data)
    os.truncate(data, 2 * 4096)
    with pytest.raises(CorruptData, match="was cut off"):
        check_whole(data)


def test_pages_at_the_end_that_are_free_may_be_missing(tmp_path):
    with lmdb.open(str(tmp_path), map_size=2**26) as env:
        for number in range(200):
            with env.begin(write=True) as transaction:
                transaction.put(number.to_bytes(4, "big"), bytes(9000))
        with env.begin(write=True) as transaction:
            for number in range(200):
                transaction.delete(number.to_bytes(4, "big"))
        for _ in range(3):
            # So that the pages in use are at the beginning of the file.
            with env.begin(write=True) as transaction:
                transaction.put(b"key", b"value")
        pages = env.info()["last_pgno"] + 1
    os.truncate(tmp_path / "data.mdb", 4096 * (pages - 20))
    check_whole(tmp_path / "data.mdb")
    with lmdb.open(str(tmp_path)) as env, env.begin() as transaction:
        assert transaction.get(b"key") == b"value"


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(8192), random.Random(1).randbytes(8192)])
def test_what_is_no_such_file_is_left_to_lmdb(tmp_path, content):
    (tmp_path / "data.mdb").write_bytes(content)
    check_whole(tmp_path / "data.mdb")


def test_no_damage_holds_it_up(tmp_path):
    with lmdb.open(str(tmp_path), map_size=2**26) as env:
        for number in range(300):
            with env.begin(write=True) as transaction:
                transaction.put(number.to_bytes(4, "big"), bytes(900))
    whole = (tmp_path / "data.mdb").read_bytes()
    short = whole[: len(whole) * 3 // 4]
    random_ = random.Random(5)
    for _ in range(500):
        damaged = bytearray(short)
        for _ in range(random_.choice([1, 5, 50])):
            damaged[random_.choice([random_.randrange(16, 168), random_.randrange(len(damaged))])] ^= random_.randrange(
                256
            )
        (tmp_path / "data.mdb").write_bytes(damaged)
        with contextlib.suppress(CorruptData):
            check_whole(tmp_path / "data.mdb")
