"""The books: which objects there are, how many bytes of each are alive, now and as of the last commit.

The controller's private state has one entry for each object the last commit refers to (key: its number), and under key 0
who wrote last. Objects of numbers that are neither there nor of this session are what a crash left behind.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
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
        committed: Bytes that the last commit refers to; 0 if it refers to nothing there.
    """

    __slots__ = ("committed", "live", "shape")

    def __init__(self, shape: Shape, live: int, committed: int) -> None:
        self.shape = shape
        self.live = live
        self.committed = committed

    def pack(self, live: int) -> bytes:
        """As the private state has it with so many bytes alive; nothing where none is."""
        stored, pieces, index_bytes, key, id, size, piece = self.shape
        return _ENTRY.pack(live, stored, pieces, index_bytes, size, piece, id, key) if live else b""

    @classmethod
    def unpack(cls, raw: bytes) -> Entry:
        """What `pack` made.

        Raises:
            ValueError, struct.error: It did not.
        """
        live, stored, pieces, index_bytes, size, piece, id, key = _ENTRY.unpack(raw)
        shape = Shape(stored, pieces, index_bytes, key, id, size, piece)
        if not 0 < live <= stored or not shape.sane:
            raise ValueError("not an object")
        return cls(shape, live, live)


class Books:
    """All objects of one controller: the private state in its bytes, and what has changed since.

    Args:
        name: The controller's name, for messages.
        state: Its private state.

    Raises:
        ControllerError: The state makes no sense.
    """

    def __init__(self, name: str, state: Mapping[int, bytes]) -> None:
        # As it is: some 180 bytes for an object, half of what an `Entry` takes. There may be a million.
        self._state = dict(state)
        self._changed: dict[int, Entry] = {}
        self._plan: dict[int, int] = {}
        self.used = 0
        """Bytes of chunks in use."""
        self.committed_bytes = 0
        """Bytes that the last commit refers to."""
        self.token = bytes(TOKEN_BYTES)
        """Of the session that committed last; zeros before the first commit."""
        self.keys: set[bytes] = set()
        """Checks of the keys that the objects of the last commit were encrypted with when the books were opened."""
        try:
            head = self._state.pop(0, None)
            if head is not None:
                version, self.token = _HEAD.unpack(head)
                if version != _VERSION:
                    raise ControllerError(f"the private state of controller {name!r} is of a newer version")
            for number, raw in self._state.items():
                entry = Entry.unpack(raw)
                if not 0 < number <= MAX_NUMBER:
                    raise ValueError
                self.keys.add(entry.shape.key)
                self.used += entry.live
        except (struct.error, ValueError) as error:
            raise ControllerError(f"the private state of controller {name!r} is damaged") from error
        self.committed_bytes = self.used

    def __contains__(self, number: int) -> bool:
        return number in self._changed or number in self._state

    def __iter__(self) -> Iterator[int]:
        return iter(self._state.keys() | self._changed.keys())

    def __getitem__(self, number: int) -> Entry:
        entry = self._changed.get(number)
        return Entry.unpack(self._state[number]) if entry is None else entry

    def some(self, count: int) -> list[tuple[int, Shape]]:
        """At most so many of the objects that the last commit refers to."""
        return [(number, self[number].shape) for number in islice(self._state, count)]

    def written(self, number: int, shape: Shape) -> None:
        """An object of new chunks is in the bucket. Its bytes were counted as used before."""
        self._changed[number] = Entry(shape, shape.stored, 0)

    def discard(self, place: Place) -> Shape | None:
        """A chunk is not in use any more; returns the shape if nothing else of the object is: it can be deleted."""
        if place.number not in self:
            return None
        entry = self[place.number]
        freed = min(place.stored, entry.live)
        entry.live -= freed
        self.used -= freed
        self._keep(place.number, entry)
        return None if entry.live or entry.committed else entry.shape

    def plan(self, alive: Iterable[Place], dead: Iterable[Place], token: bytes) -> dict[int, bytes]:
        """Changes of the private state for a commit that begins and ceases to refer to chunks."""
        plan: dict[int, int] = {}
        for places, sign in ((alive, 1), (dead, -1)):
            for place in places:
                number = place.number
                if number in plan:
                    plan[number] += sign * place.stored
                elif number in self:
                    plan[number] = self[number].committed + sign * place.stored
        changes: dict[int, bytes] = {}
        for number, live in plan.items():
            entry = self[number]
            plan[number] = max(0, min(live, entry.shape.stored))
            changes[number] = entry.pack(plan[number])
        self._plan = plan
        if changes and token != self.token:
            changes[0] = _HEAD.pack(_VERSION, token)
        return changes

    def committed(self, token: bytes) -> None:
        """The commit planned last has happened."""
        if self._plan:
            self.token = token
        for number, live in self._plan.items():
            if number not in self:
                continue
            entry = self[number]
            self.committed_bytes += live - entry.committed
            entry.committed = live
            if live:
                self._state[number] = entry.pack(live)
            else:
                self._state.pop(number, None)
            self._keep(number, entry)
        self._plan = {}

    def _keep(self, number: int, entry: Entry) -> None:
        if entry.live == entry.committed:
            # The state says it all, or there is nothing to be said any more.
            self._changed.pop(number, None)
        else:
            self._changed[number] = entry

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
        for number in self._state:
            entry = self[number]
            shape = entry.shape
            share = entry.live / shape.stored
            if shape.key != key or (not shape.pieces and entry.live < shape.stored and share <= max_live_share):
                found.append((share, number))
            elif not shape.pieces and shape.stored * SMALL_SHARE < pack_bytes:
                small.append((share, number))
        if len(small) >= SMALL_SHARE:
            found += small
        return [(number, self[number].shape) for _, number in sorted(found)]
