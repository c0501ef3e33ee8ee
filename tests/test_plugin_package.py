"""A third party's controller: built and installed for real, found through its entry point alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "plugin_package"

WRITE = """
import asyncio, json, dstorage
from dstorage_files import FilesController

async def main():
    files = FilesController("archive", "files")
    async with dstorage.open("store", budget="1M", controllers=[files], pressure=False, commit_interval=None) as store:
        ids = []
        for number in range(20):
            with await store.create(bytes([number]) * 100_000) as handle:
                ids.append(handle.id)
        await store.commit()
        with store.handle(ids[0]) as handle:
            await handle.replace(b"changed")
        with store.handle(ids[1]) as handle:
            handle.delete()
    print(json.dumps(ids))

asyncio.run(main())
"""

READ = """
import asyncio, json, sys, dstorage
from dstorage.check import check

async def main():
    ids = json.loads(sys.argv[1])
    async with dstorage.open("store", budget="1M", pressure=False) as store:
        found = []
        for id in ids:
            try:
                async with store.handle(id) as data:
                    found.append([len(data), data[0]])
            except (dstorage.Lost, dstorage.TemporarilyUnavailable) as error:
                found.append(type(error).__name__)
        (info,) = store.controllers()
        report = await check(store)
    print(json.dumps({"found": found, "kind": info.kind, "status": info.status.value, "sound": report.sound}))

asyncio.run(main())
"""

FULL = """
import asyncio, dstorage
from dstorage_controllers.disk import DiskController
from dstorage_files import FilesController

async def main():
    small, large = FilesController("small", "files", capacity=250_000, rank=90), DiskController("large")
    async with dstorage.open("store", budget="1M", controllers=[small, large], pressure=False) as store:
        ids = []
        for number in range(5):
            with await store.create(bytes([number]) * 100_000) as handle:
                ids.append(handle.id)
        await store.commit()
        where = sorted(store.info(id).controller for id in ids)
        with store.events() as events:
            with store.handle(next(id for id in ids if store.info(id).controller == "small")) as handle:
                handle.delete()
            await store.commit()
            async for event in events:
                if event.detail == "small: ok":
                    break
        with await store.create(bytes(100_000)) as handle:
            await handle.flush()
            print(*where, "then", store.info(handle.id).controller)

asyncio.run(main())
"""

BREAK = """
import asyncio, json, sys, dstorage
from dstorage_files import FilesController

async def main():
    ids = json.loads(sys.argv[1])
    store = await dstorage.open("store", budget="1M", pressure=False, commit_interval=None)
    await store.create(bytes(300_000))
    with store.handle(ids[2]) as handle:
        await handle.replace(b"never committed")
        await handle.flush()
    import os
    os._exit(0)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder into which pip has installed the package."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore")
    subprocess.run([*command, "--target", target, PACKAGE], check=True, env=environment, timeout=120)
    return target


@pytest.fixture
def python(tmp_path, installed):
    """Run a program, with the package installed or not; gives what it printed."""

    def run(program: str, *args: str, plugin: bool = True, warnings: str = "error") -> str:
        paths = [str(installed)] if plugin else []
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", warnings, "-c", program, *args],
            cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def files(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "files").glob("*/*")}


EXPECTED = [[7, ord("c")], "Lost", *([100_000, number] for number in range(2, 20))]


def test_a_store_finds_an_installed_plugin_by_its_entry_point(python):
    ids = python(WRITE)
    answer = json.loads(python(READ, ids))
    assert answer == {"found": EXPECTED, "kind": "files", "status": "ok", "sound": True}


def test_without_its_plugin_a_stores_chunks_are_unavailable_and_come_back_with_it(python):
    ids = python(WRITE)
    answer = json.loads(python(READ, ids, plugin=False, warnings="ignore"))
    assert answer["status"] == "temporarily unavailable"
    assert answer["found"] == ["TemporarilyUnavailable", "Lost", *["TemporarilyUnavailable"] * 18]
    assert json.loads(python(READ, ids))["found"] == EXPECTED


def test_files_written_after_the_last_commit_are_gone_after_a_crash(python, tmp_path):
    ids = python(WRITE)
    before = files(tmp_path)
    python(BREAK, ids)
    assert files(tmp_path) > before
    assert json.loads(python(READ, ids)) == {"found": EXPECTED, "kind": "files", "status": "ok", "sound": True}
    assert files(tmp_path) == before


def test_what_a_full_plugin_refuses_goes_to_the_next_until_it_has_room_again(python):
    assert python(FULL) == "large large large small small then small"


def test_a_damaged_file_loses_its_chunk_and_no_other(python, tmp_path):
    ids = python(WRITE)
    victim = max((tmp_path / "files").glob("*/*"), key=lambda path: (path.stat().st_size, path.read_bytes()[0]))
    data = bytearray(victim.read_bytes())
    data[5000] ^= 1
    victim.write_bytes(data)
    answer = json.loads(python(READ, ids))
    assert answer["found"] == [*EXPECTED[:-1], "Lost"]
    assert not answer["sound"]
