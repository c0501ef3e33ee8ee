"""Contents that are given away with the deletion of their chunk."""

from __future__ import annotations

import pytest

import dstorage


@pytest.mark.parametrize("written", [False, True])
async def test_contents_that_are_given_away_count_no_more(store, written):
    await store.room.reserve(1000, 0, None, dirty=True)
    with store.contents.adopt(bytearray(b"x" * 1000)) as handle:
        if written:
            await handle.flush()
        taken = store.contents.take(handle)
        assert taken == b"x" * 1000
        assert (store.stats().used, store.stats().dirty) == (0, 0)
        with pytest.raises(dstorage.Deleted):
            store.contents.take(handle)


async def test_contents_that_others_look_at_are_given_away_as_a_copy(store):
    await store.room.reserve(1000, 0, None, dirty=True)
    with store.contents.adopt(bytearray(b"x" * 1000)) as handle:
        view = handle.data
        taken = store.contents.take(handle)
        taken[:] = b"y" * 1000
        assert view == b"x" * 1000
        assert (store.stats().used, store.stats().stray) == (1000, 1000)
