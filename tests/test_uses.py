"""Times of access reach the catalog, but not with every commit."""

from __future__ import annotations

import time

import pytest
from memory_controller import MemoryController

import dstorage
from dstorage import blocking, uses


async def paged_in(store, id):
    """Bring a chunk into memory and let it go again."""
    async with store.handle(id) as data:
        assert data == b"data"
    store.set_budget(1)
    store.set_budget(2**20)


@pytest.mark.parametrize(("fineness", "written"), [(60 * 10**9, False), (0, True)])
async def test_a_time_of_access_is_written_where_the_one_in_the_catalog_is_too_old(
    tmp_path, monkeypatch, fineness, written
):
    monkeypatch.setattr(uses, "FINENESS_NS", fineness)
    async with dstorage.open(
        tmp_path, controllers=[MemoryController()], budget=2**20, commit_interval=None, pressure=None
    ) as store:
        with await store.create(b"data") as handle:
            id = handle.id
        await store.commit()
        first = store.info(id).last_access
        assert 0 < first <= time.time_ns()
        await paged_in(store, id)
        for _ in range(2):
            # The second one knows that the first was a moment ago.
            await paged_in(store, id)
            (await store.create(b"something to commit")).release()
            await store.commit()
        assert (store.info(id).last_access > first) is written


def test_what_is_read_in_the_programs_threads_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(uses, "FINENESS_NS", 0)
    with blocking.open(tmp_path, budget=2**20, commit_interval=None, pressure=None) as store:
        id = store.create(b"data").id
        store.commit()
        first = store.info(id).last_access
        store.set_budget(1)
        store.set_budget(2**20)
        for _ in range(2):
            # Once where the page cache has it, without the store's loop.
            assert store.get(id) == b"data"
            store.create(b"something to commit")
            store.commit()
        assert store.info(id).last_access > first


def test_a_thread_that_notes_while_a_commit_takes_the_times_does_not_disturb_it():
    noted = uses.Uses()
    for id in range(1, 4):
        noted.note(id, 0)
    outdated = noted._outdated

    class Times(dict):
        """Another thread has got hold of the set just before it was taken, and adds to it now."""

        def __contains__(self, id):
            outdated.add(1000 + len(outdated))
            return super().__contains__(id)

    noted._times = Times()
    assert noted.take_times().keys() == {1, 2, 3}
