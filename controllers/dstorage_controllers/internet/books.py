"""The books: which objects there are, how many bytes of each are alive, now and as of the last commit.

The controller's private state has one entry for each object the last commit refers to (key: its number), and under key 0
who wrote last. Objects of numbers that are neither there nor of this session are what a crash left behind.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dstorage.errors import ControllerError
from dstorage_controllers.internet.codec import CHECK_BYTES
from dstorage_controllers.internet.layout import MAX_NUMBER, MAX_PACK_BYTES, MIN_PACK_BYTES, Place

TOKEN_BYTES = 16
_VERSION = 1
_HEAD = struct.Struct(f"<B{TOKEN_BYTES}s")
_ENTRY = struct.Struct(f"<QQ4IQ{CHECK_BYTES}s")
SMALL_SHARE = 8
"""A pack with less than this part (1/8) of its full length is worth joining with others, dead space or not."""


class Shape(NamedTuple):
    """What never changes about an object.

    Attributes:
        stored: Bytes of sealed chunks in it (of all pieces together).
        pieces: 0 for a pack.
        index_bytes: Length of the sealed index behind the chunks of a pack.
        key: Check of the key it is encrypted with.
        id: Of pieces: their chunk.
        size: Of pieces: its length.
        piece: Of pieces: the plain length of each but the last.
    """

    stored: int
    pieces: int
    index_bytes: int
    key: bytes
    id: int = 0
    size: int = 0
    piece: int = 0

    @property
    def sane(self) -> bool:
        """Whether there can be such an object."""
        if not self.pieces:
            return self.index_bytes > 0
        power = self.piece & (self.piece - 1) == 0
        return power and MIN_PACK_BYTES <= self.piece <= MAX_PACK_BYTES and self.pieces == -(-self.size // self.piece)


class Entry:
    """One object, or the pieces of one chunk.

    Attributes:
        shape: What never changes.
        live: Bytes of chunks in use, written ones not yet committed included.
        committed: Bytes that the last commit refers to; None if it refers to nothing there.
    """

    __slots__ = ("committed", "live", "shape")

    def __init__(self, shape: Shape, live: int, committed: int | None) -> None:
        self.shape = shape
        self.live = live
        self.committed = committed


class Books:
    """All objects of one controller.

    Args:
        name: The controller's name, for messages.
        state: Its private state.

    Raises:
        ControllerError: The state makes no sense.
    """

    def __init__(self, name: str, state: Mapping[int, bytes]) -> None:
        self.entries: dict[int, Entry] = {}
        self.used = 0
        """Bytes of chunks in use."""
        self.token = bytes(TOKEN_BYTES)
        """Of the session that committed last; zeros before the first commit."""
        self._plan: dict[int, int] = {}
        keys: dict[bytes, bytes] = {}
        try:
            for number, raw in state.items():
                if number == 0:
                    version, self.token = _HEAD.unpack(raw)
                    if version != _VERSION:
                        raise ControllerError(f"the private state of controller {name!r} is of a newer version")
                    continue
                live, stored, pieces, index_bytes, size, piece, id, key = _ENTRY.unpack(raw)
                # One object for each key, and not one for each entry.
                shape = Shape(stored, pieces, index_bytes, keys.setdefault(key, key), id, size, piece)
                if not 0 < live <= stored or not 0 < number <= MAX_NUMBER or not shape.sane:
                    raise ValueError
                self.entries[number] = Entry(shape, live, live)
                self.used += live
        except (struct.error, ValueError) as error:
            raise ControllerError(f"the private state of controller {name!r} is damaged") from error

    def written(self, number: int, shape: Shape) -> None:
        """An object of new chunks is in the bucket. Its bytes were counted as used before."""
        self.entries[number] = Entry(shape, shape.stored, None)

    def discard(self, place: Place) -> Shape | None:
        """A chunk is not in use any more; returns the shape if nothing else of the object is: it can be deleted."""
        entry = self.entries.get(place.number)
        if entry is None:
            return None
        freed = min(place.stored, entry.live)
        entry.live -= freed
        self.used -= freed
        if entry.live or entry.committed is not None:
            return None
        del self.entries[place.number]
        return entry.shape

    def plan(self, alive: Iterable[Place], dead: Iterable[Place], token: bytes) -> dict[int, bytes]:
        """Changes of the private state for a commit that begins and ceases to refer to chunks."""
        plan: dict[int, int] = {}
        for places, sign in ((alive, 1), (dead, -1)):
            for place in places:
                entry = self.entries.get(place.number)
                if entry is not None:
                    before = plan.get(place.number, entry.committed or 0)
                    plan[place.number] = before + sign * place.stored
        self._plan = plan
        changes: dict[int, bytes] = {}
        for number, live in plan.items():
            stored, pieces, index_bytes, key, id, size, piece = self.entries[number].shape
            kept = max(0, min(live, stored))
            changed = _ENTRY.pack(kept, stored, pieces, index_bytes, size, piece, id, key)
            changes[number] = changed if kept else b""
        if changes and token != self.token:
            changes[0] = _HEAD.pack(_VERSION, token)
        return changes

    def committed(self, token: bytes) -> None:
        """The commit planned last has happened."""
        if self._plan:
            self.token = token
        for number, live in self._plan.items():
            entry = self.entries.get(number)
            if entry is not None:
                entry.committed = live if live > 0 else None
        self._plan = {}

    def committed_bytes(self) -> int:
        """Bytes that the last commit refers to."""
        return sum(entry.committed or 0 for entry in self.entries.values())

    def rewritten(self, max_live_share: float, pack_bytes: int, key: bytes) -> list[tuple[int, Shape]]:
        """Objects that are worth writing anew.

        Packs of which at most this share is alive; small ones if there are several; whatever has another key. Never what is not
        committed yet.

        Args:
            max_live_share: 0 to 1.
            pack_bytes: Full length of a pack.
            key: Check of the key that encrypts now.
        """
        found: list[tuple[float, int]] = []
        small: list[tuple[float, int]] = []
        for number, entry in self.entries.items():
            if entry.committed is None:
                continue
            shape = entry.shape
            share = entry.live / shape.stored
            if shape.key != key or (not shape.pieces and entry.live < shape.stored and share <= max_live_share):
                found.append((share, number))
            elif not shape.pieces and shape.stored * SMALL_SHARE < pack_bytes:
                small.append((share, number))
        if len(small) >= SMALL_SHARE:
            found += small
        return [(number, self.entries[number].shape) for _, number in sorted(found)]
