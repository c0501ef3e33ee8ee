"""joblib's Memory on a store."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("joblib")
pytest.importorskip("fsspec")
import joblib
import numpy as np

import dstorage
from dstorage.integrations.fsspec import DStorageFileSystem
from dstorage.integrations.joblib import register

register()
calls = []


def double(array, factor=2):
    calls.append(factor)
    return array * factor


@pytest.fixture
def memory(tmp_path):
    calls.clear()
    yield joblib.Memory(
        str(tmp_path / "s"), backend="dstorage", backend_options={"budget": "8M", "pressure": False}, verbose=0
    )
    for fs in DStorageFileSystem._cache.values():
        fs.close()
    DStorageFileSystem.clear_instance_cache()


@pytest.mark.parametrize("compress", [False, 3])
def test_a_function_is_called_once_per_argument(tmp_path, memory, compress):
    memory = joblib.Memory(
        str(tmp_path / "s"),
        backend="dstorage",
        backend_options={"budget": "8M", "pressure": False},
        verbose=0,
        compress=compress,
    )
    cached = memory.cache(double)
    array = np.arange(200_000.0)
    for _ in range(3):
        np.testing.assert_array_equal(cached(array), array * 2)
        np.testing.assert_array_equal(cached(array, factor=3), array * 3)
    assert calls == [2, 3]
    assert cached.check_call_in_cache(array)


def test_what_was_returned_is_there_after_closing(memory):
    cached = memory.cache(double)
    cached(np.arange(5))
    memory.store_backend.close()
    assert cached(np.arange(5)).tolist() == [0, 2, 4, 6, 8]
    assert calls == [2]


def test_clearing_one_function_or_all(memory):
    def triple(number):
        calls.append("triple")
        return number * 3

    cached, other = memory.cache(double), memory.cache(triple)
    cached(1), other(1)
    cached.clear(warn=False)
    cached(1), other(1)
    assert calls == [2, "triple", 2]
    memory.clear(warn=False)
    cached(1), other(1)
    assert calls == [2, "triple", 2, 2, "triple"]


def test_the_oldest_leave_when_there_is_too_much(memory):
    cached = memory.cache(double)
    for number in range(6):
        cached(np.full(20_000, number))
        memory.store_backend.files.commit()
    items = memory.store_backend.get_items()
    assert len(items) == 6
    assert all(item.size > 160_000 for item in items)
    memory.reduce_size(bytes_limit=400_000)
    assert len(memory.store_backend.get_items()) == 2
    calls.clear()
    cached(np.full(20_000, 5))
    assert calls == []
    cached(np.full(20_000, 0))
    assert calls == [2]


def test_what_is_lost_is_computed_again(memory, caplog):
    cached = memory.cache(double)
    array = np.arange(10**6)
    cached(array)
    files = memory.store_backend.files
    (path,) = files.glob("**/output.pkl")

    async def lose(tree):
        with tree.store.handle(tree.file(path).number) as handle:
            handle.delete()

    files._mount.call(lose)
    assert len(memory.store_backend.get_items()) == 1
    assert cached(array)[7] == 14
    assert "Exception while loading results" in caplog.text
    assert cached(array)[7] == 14
    assert calls == [2, 2]


def test_mapping_into_memory_is_refused(tmp_path):
    with pytest.raises(dstorage.InvalidArgumentError, match="mmap_mode"):
        joblib.Memory(tmp_path / "s", backend="dstorage", mmap_mode="r")


def test_threads_share_a_cache(memory):
    cached = memory.cache(double)
    found = joblib.Parallel(n_jobs=4, backend="threading")(joblib.delayed(cached)(number % 5) for number in range(20))
    assert found == [number % 5 * 2 for number in range(20)]


def test_another_process_that_writes_is_told_who_holds_the_store(memory, tmp_path):
    memory.cache(double)(1)
    code = (
        "import sys, joblib; from dstorage.integrations.joblib import register; register()\n"
        "joblib.Memory(sys.argv[1], backend='dstorage', verbose=0).cache(abs)(1)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "s"], capture_output=True, text=True, check=False)
    assert "StoreLocked" in done.stderr
