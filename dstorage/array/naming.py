"""Arrays by name: making, finding, listing and deleting them. All of it runs on the store's loop.

The name ``array/NAME`` of the store stands for the chunk with the description and the root of the tree of tiles. To delete an array
takes as many steps as it has nodes, and a commit (so a crash) may fall between them. So the first step gives the array a name
under ``array-deleted/``, the last one takes it away, and what is found there when the next array is made or deleted is
finished then.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress

from dstorage.array.layout import Layout
from dstorage.array.tiles import (
    DELETED,
    FANOUT,
    NODE_BYTES,
    deleted_name,
    pack_root,
    root_slots,
    span_of,
    tile_bytes,
    unpack_root,
)
from dstorage.catalog import MAX_NAME_BYTES
from dstorage.errors import (
    CorruptData,
    Deleted,
    InvalidArgumentError,
    Lost,
    MemoryUnavailable,
    TemporarilyUnavailable,
    UsageError,
)
from dstorage.store import Store
from dstorage.waiting import check_wait

PREFIX = b"array/"


def key_of(name: str) -> bytes:
    """The store's name for an array.

    Raises:
        InvalidArgumentError: It is empty, too long or no text.
    """
    try:
        key = PREFIX + name.encode()
    except (AttributeError, UnicodeEncodeError):
        key = PREFIX
    if key == PREFIX or len(key) > MAX_NAME_BYTES:
        raise InvalidArgumentError(
            f"array name {str(name)[:40]!r}: give text of 1 to {MAX_NAME_BYTES - len(PREFIX)} bytes of UTF-8"
        )
    return key


async def create(store: Store, name: str, layout: Layout, wait: float | None) -> tuple[int, int]:
    """Make an array; the chunk of its root, and the bytes in it before the root.

    Raises:
        UsageError: There is one of that name.
    """
    check_wait(wait)
    key = key_of(name)
    store.check_writable()
    await finish_deleting(store)
    packed = pack_root(layout)
    _check_free(store, key, name)
    await store.room.reserve(len(packed), 0, wait)
    try:
        _check_free(store, key, name)
    except UsageError:
        store.contents.drop_reserved(len(packed))
        raise
    with store.contents.adopt(packed) as handle:
        # In the step in which it is made: no commit has it without its name.
        store.set_name(key, handle.id)
        return handle.id, unpack_root(memoryview(packed), name, handle.id)[1]


def _check_free(store: Store, key: bytes, name: str) -> None:
    if store.get_name(key) is not None:
        raise UsageError(f"there is an array {name!r} in this store: open it, or delete it first")


async def find(store: Store, name: str, wait: float | None) -> tuple[Layout, int, int]:
    """Layout, root and head of an array.

    Raises:
        InvalidArgumentError: There is none of that name.
        CorruptData: What the name stands for is no array.
    """
    check_wait(wait)
    id = store.get_name(key_of(name))
    if id is None:
        known = ", ".join(map(repr, names(store)[:10])) or "none"
        raise InvalidArgumentError(f"no array {name!r} in this store (there are: {known})")
    with store.table.get(id) as handle:
        layout, head = unpack_root(await handle.get(wait=wait), name, id)
    return layout, id, head


def names(store: Store) -> list[str]:
    """Names of all arrays, in byte order."""
    return [key[len(PREFIX) :].decode(errors="replace") for key, _ in store.names(PREFIX)]


async def delete(store: Store, name: str, wait: float | None) -> None:
    """Delete an array: from now on its name is free; from the next commit on its space.

    Raises:
        InvalidArgumentError: There is none of that name.
    """
    check_wait(wait)
    store.check_writable()
    key = key_of(name)
    id = store.get_name(key)
    if id is None:
        raise InvalidArgumentError(f"no array {name!r} in this store")
    store.set_name(key, None)
    doomed = deleted_name(id)
    store.set_name(doomed, id)
    await _finish(store, doomed, id, wait)
    await finish_deleting(store)


async def finish_deleting(store: Store) -> None:
    """Delete what is under ``array-deleted/``, but for what is away now."""
    for key, id in list(store.names(DELETED)):
        with suppress(TemporarilyUnavailable, MemoryUnavailable):
            await _finish(store, key, id, None)


async def _finish(store: Store, key: bytes, id: int, wait: float | None) -> None:
    """Delete the array that `key` stands for; safe to be done by several at once, and again after a crash."""
    # What cannot be read any more cannot say what it names; what is no array is not ours to delete.
    with suppress(Lost, Deleted, CorruptData), store.table.get(id) as root:
        layout, head = unpack_root(await root.get(wait=wait), "?", id)
        with suppress(Lost, Deleted):
            await _delete_below(store, layout, id, head, 0, 0, wait)
        root.delete()
    store.set_name(key, None)


async def _delete_below(
    store: Store, layout: Layout, node: int, head: int, level: int, first: int, wait: float | None
) -> None:
    """Delete all that a node names; `first` is the number of the first tile below it."""
    span = span_of(layout, level)
    slots = root_slots(layout) if level == 0 else FANOUT
    with store.table.get(node) as handle:
        ids = struct.unpack_from(f"<{slots}Q", await handle.get(wait=wait), head)
    for slot, id in enumerate(ids):
        if not id:
            continue
        number = first + slot * span
        # A damaged tree must not take other people's chunks with it.
        info = store.info(id)
        if info is None or info.size != (NODE_BYTES if span > 1 else tile_bytes(layout, number)):
            continue
        if span > 1:
            with suppress(Lost, Deleted):
                await _delete_below(store, layout, id, 0, level + 1, number, wait)
        with store.table.get(id) as below, suppress(Lost):
            below.delete()
    # A node names many: others on the loop have their turn.
    await asyncio.sleep(0)
