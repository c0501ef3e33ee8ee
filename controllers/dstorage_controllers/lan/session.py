"""Whose keys are whose: this session's, those of the last commit, and what a crash left behind.

Every write has a generation of its own: a random start for each session, counted up. The first generation of a session is its
name: written to the server (the mark) by its first sync and saved with its commits. So a session that finds the mark of
the last commit knows that nobody has written there since but by this very catalog, and that a key which neither it nor the last
commit knows is garbage. Where the marks differ, another copy of the catalog may be at work, and nothing is swept.
"""

from __future__ import annotations

import secrets
import struct
import warnings
from typing import NamedTuple

from redis.exceptions import OutOfMemoryError, ResponseError

from dstorage.controller import OpenContext
from dstorage.errors import ControllerError, ControllerUnavailable, CorruptData
from dstorage_controllers.lan.layout import Layout
from dstorage_controllers.lan.link import Link

_STATE = struct.Struct("<BQQ")
_STATE_VERSION = 1


class State(NamedTuple):
    """What is saved with each commit.

    Attributes:
        used: Bytes of all chunks the commit refers to.
        session: Name of the session that committed last; 0 for none.
    """

    used: int
    session: int


class Session:
    """One opening of one controller.

    Args:
        name: The controller's name, for messages.
        context: What it was opened with.
        layout: Names of its keys.

    Attributes:
        saved: As of the last commit.
        forgotten: Whether the server lacks the mark although the last commit has chunks there.

    Raises:
        ControllerError: The saved state makes no sense.
    """

    def __init__(self, name: str, context: OpenContext, layout: Layout) -> None:
        self._name = name
        self._context = context
        self._layout = layout
        self._first = self._last = self._kept = self._synced = secrets.randbits(62) + 1
        self._marked = False
        self._emptied = False
        self._witness: str | None = None
        self.forgotten = False
        self.saved = self._planned = self._load()

    def next_generation(self) -> int:
        """A number no write ever had."""
        self._last += 1
        return self._last

    def wrote(self, key: str) -> None:
        """The server has taken this key."""
        if self._witness is None:
            self._witness = key

    def plan(self, grown: int) -> dict[int, bytes]:
        """Changes of the private state for a commit that refers to `grown` bytes more than the last one."""
        # Only what synced has left its mark on the server.
        name = self._first if self._marked else self.saved.session
        self._planned = State(max(0, self.saved.used + grown), name)
        return {} if self._planned == self.saved else {0: _STATE.pack(_STATE_VERSION, *self._planned)}

    def committed(self) -> None:
        """The commit planned last has happened."""
        self.saved = self._planned
        self._kept = self._synced

    async def recognise(self, link: Link) -> bool:
        """Look for the mark of the last commit; returns whether what it does not know can be swept.

        Raises:
            RedisError, OSError, TimeoutError: The server does not answer.
        """
        mark = await self._look(link)
        self.forgotten = mark is None and self.saved.session != 0 and self.saved.used > 0
        known = self.saved.session != 0 and mark == b"%x" % self.saved.session
        return known and not self._context.read_only and self._context.place is not None

    async def revisit(self, link: Link) -> None:
        """Look whether a server that was away still has what it had; to be called before anything is written there.

        Raises:
            RedisError, OSError, TimeoutError: It does not answer.
        """
        await self._look(link)

    async def mark(self, link: Link) -> None:
        """Leave this session's mark, before a commit; warns if that of before is gone, and with it chunks.

        Raises:
            ControllerUnavailable: Chunks written since the last commit are gone.
            RedisError, OSError, TimeoutError: The server does not take it.
        """
        name = b"%x" % self._first
        self._synced = self._last
        witness, self._witness = self._witness, None
        before = await self._look(link)
        if before == name and not self._emptied:
            return
        if self._emptied or (before is None and (self._marked or self.forgotten)):
            warnings.warn(
                f"the server of controller {self._name!r} was emptied, or restarted without what it held; chunks that it does "
                "not have any more are lost",
                RuntimeWarning,
                stacklevel=3,
            )
        wrote = (await link.run([("SET", self._layout.mark, name)]))[0]
        # A full server keeps the old mark, and that of the last commit stays the name of the next.
        if isinstance(wrote, ResponseError) and (self._marked or not isinstance(wrote, OutOfMemoryError)):
            raise wrote
        emptied, self._emptied = self._emptied, False
        self._marked, self.forgotten = not isinstance(wrote, ResponseError), False
        if emptied and self._last > self._kept:
            if witness is not None and isinstance((await link.run([("GET", witness)]))[0], bytes):
                # All was written after it was emptied.
                return
            self._kept = self._last
            raise ControllerUnavailable(
                f"the server of {self._name!r} was emptied since the last commit, and may have lost what was written since; write it again, or "
                "commit again to go on without it"
            )

    async def _look(self, link: Link) -> object:
        """The mark; notes whether the probe, left there at the opening and by each commit, is gone as well."""
        mark, probe = await link.run([("GET", self._layout.mark), ("GET", self._layout.probe(0))])
        for reply in (mark, probe):
            if isinstance(reply, ResponseError):
                raise reply
        # One alone may have been evicted.
        if mark is None and probe is None:
            self._emptied = self._emptied or self._last > self._first
        return mark

    def orphan(self, key: str) -> bool:
        """Whether a key under this controller's prefix holds bytes of no chunk."""
        named = self._layout.parse(key)
        if named is None or self._context.place is None:
            return False
        id, generation = named
        if self._first < generation <= self._last:
            return False
        locator = self._context.place(id)
        try:
            return locator is None or self._layout.unpack(id, locator).generation != generation
        except CorruptData:
            return False

    def _load(self) -> State:
        raw = self._context.state.get(0)
        if raw is None:
            return State(0, 0)
        if len(raw) != _STATE.size or raw[0] != _STATE_VERSION:
            raise ControllerError(f"the private state of controller {self._name!r} is damaged or of a newer version")
        return State(*_STATE.unpack(raw)[1:])
