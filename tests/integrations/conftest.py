"""What the libraries keep for the life of the process is begun before the leak checks look."""

from __future__ import annotations

import contextlib

import pytest


@pytest.fixture(autouse=True, scope="session")
def _process_wide():
    with contextlib.suppress(ImportError):
        import uvloop

        # libuv keeps one pipe for signals, made with the first loop.
        uvloop.new_event_loop().close()
    with contextlib.suppress(ImportError):
        import zarr
        from zarr.core.sync import _get_executor

        # zarr keeps its loop and its threads.
        zarr.create_array({}, shape=1, dtype="i1")[:] = 1
        _get_executor().submit(int).result()
    with contextlib.suppress(ImportError):
        import fsspec.asyn

        # So does fsspec.
        fsspec.asyn.get_loop()
