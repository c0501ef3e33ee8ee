"""What a controller is: the contract between the store and a plug-in that keeps chunks somewhere.

A plug-in subclasses `Controller`, and is found through the entry-point group ``dstorage.controllers`` (entry name =
`Controller.kind`). `dstorage.testing.ControllerTests` is the suite that proves an implementation.

The contract in short:

* **Copy-on-write.** `write` never overwrites bytes an earlier locator refers to; it returns a new locator. The old one
  stays readable until the store calls `discard` for it, which it does only after a commit that no longer refers to it.
* **Durability.** Bytes need not survive a power failure until `sync` has returned. A volatile controller has no-op `sync`.
* **Batches.** `read` and `write` take many requests and answer each in its place: the value or the exception that this
  one request met. A failure of one must not fail the others. The methods raise only for what befalls the whole batch.
* **Errors.** `ControllerUnavailable`: may pass, ask again. `ControllerFull` (write only). `Lost`: gone for ever.
  `CorruptData`: the bytes fail their check. Anything else is a bug of the plug-in and treated as unavailable.
* **The loop.** All methods but `read_in_thread` are called on the store's event loop and must not block it for longer than a page-cached
  read. The store calls `read`, `write` and `discard` concurrently; never `open`/`close` beside anything else.
* **Private state.** A controller that needs a little persistent state of its own (a disk: live bytes per segment)
  returns changes from `checkpoint`; the store saves them in the same transaction that switches the records, and hands
  all of it back at `open`. So the private state is always exactly as old as the records.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple
from uuid import UUID

from dstorage.record import Locator

Buffer = bytes | bytearray | memoryview
"""A contiguous run of bytes. What `read` returns must be owned by the caller: the controller keeps no reference."""

Settings = Mapping[str, object]
"""A controller's settings: JSON values only, no secrets (they are stored in the catalog)."""

ENTRY_POINT_GROUP = "dstorage.controllers"


class ControllerStatus(enum.Enum):
    """How a controller is, as the store sees it."""

    OK = "ok"
    TEMPORARILY_UNAVAILABLE = "temporarily unavailable"
    FULL = "full"
    READ_ONLY = "read-only"
    """It can be read, and takes nothing for another reason than room: a replica, rights that were withdrawn."""
    REMOVED = "removed"


class Space(NamedTuple):
    """Room of a controller in bytes; `total` is None when unbounded."""

    total: int | None
    used: int


class ReadRequest(NamedTuple):
    """One chunk to read."""

    id: int
    locator: Locator


class WriteRequest(NamedTuple):
    """One chunk to write; `data` (C-contiguous bytes) does not change until the batch is answered."""

    id: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class OpenContext:
    """What a controller is told when it is opened.

    Attributes:
        store_uuid: Identity of the store; a shared medium keeps stores apart by it.
        index: The controller's index in this store, the same for ever.
        directory: A directory of the store that belongs to this controller alone (not created yet).
        state: The controller's private state as of the last commit, see `Controller.checkpoint`.
        read_only: True when another process may be writing: nothing may be changed on the medium.
        status_changed: To be called (on the loop) after `Controller.status` changed.
        place: Where the last commit has a chunk on this controller, or None if it has none there; by it a medium can be
            searched for what a crash left behind. None where nobody can say.
    """

    store_uuid: UUID
    index: int
    directory: Path
    state: Mapping[int, bytes] = field(default_factory=dict)
    read_only: bool = False
    status_changed: Callable[[], None] = lambda: None
    place: Callable[[int], Locator | None] | None = None


class Controller(ABC):
    """Keeps chunks somewhere. See the module's docstring for the contract.

    Args:
        name: The name under which the store lists it; unique in the store.
        rank: Performance class; new chunks go to the highest rank with room.
        settings: What the catalog keeps of the configuration, so that a later `open` can build it again with
            `from_settings`.
    """

    kind: ClassVar[str]
    """Entry-point name of the plug-in, stored in the catalog."""
    volatile: bool = False
    """True when a crash of this process loses the bytes."""

    def __init__(self, name: str, *, rank: int, settings: Settings | None = None) -> None:
        self.name = name
        self.rank = rank
        self.settings: Settings = dict(settings or {})

    @classmethod
    @abstractmethod
    def from_settings(cls, name: str, settings: Settings) -> Controller:
        """Build one from what the catalog kept (hostile until checked).

        Raises:
            InvalidArgumentError: A setting is missing, unknown or out of range.
        """

    @property
    @abstractmethod
    def status(self) -> ControllerStatus:
        """How it is now; never blocks."""

    @property
    def trouble(self) -> str | None:
        """What keeps `status` from being OK and what to do about it, a sentence that names the controller; None if that is not known."""
        return None

    @abstractmethod
    def space(self) -> Space:
        """Room now, in bytes; never blocks."""

    @abstractmethod
    async def open(self, context: OpenContext) -> None:
        """Make ready for use; called once.

        Raises:
            ControllerUnavailable: Cannot be reached now. The store lists it as unavailable and tries again.
            ControllerError: Will not work without the user's help.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give up all resources. Idempotent; called also after a failed `open`."""

    def read_nowait(self, id: int, locator: Locator) -> Buffer | None:
        """Answer a read at once if that needs no waiting (bytes in memory or in the page cache), else None.

        Asked twice for a chunk, some moments apart: if the first time makes the system begin to fetch the bytes, the second may
        find them. What is not answered then comes to `read`.

        Raises:
            CorruptData: The bytes fail their check.
            Lost: They are known to be gone.
        """
        return None

    def read_in_thread(self, id: int, locator: Locator, *, writable: bool = False) -> bytes | bytearray | None:
        """`read_nowait` for the program's own threads: called in any of them, at the same time as anything else, `close` included.

        Returns:
            `bytes`, or if they are to be `writable` a `bytearray`. None wherever that is not to be had or anything is doubtful;
            then the loop is asked. Raises nothing.
        """
        return None

    @abstractmethod
    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Read chunks; the answers are in the order of the requests, each exactly `locator.size` bytes or an error.

        Cancelling it abandons the answers and leaves the medium as it was.
        """

    @abstractmethod
    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Write chunks to new places; the answers are in the order of the requests.

        Never overwrites anything that an earlier locator refers to. If cancelled, or for a request answered with an
        exception, nothing of it counts as used.
        """

    @abstractmethod
    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Free places that no commit refers to any more: (id, locator) pairs. Failing to free is never an error."""

    @abstractmethod
    async def sync(self) -> None:
        """Return when everything written by answered `write` calls so far is durable.

        Raises:
            ControllerUnavailable: It could not be made durable; the commit fails and nothing of it is visible.
        """

    def footprint(self, locator: Locator) -> int:
        """Bytes that a place takes of `space`."""
        return locator.size

    def committed_bytes(self) -> int | None:
        """Footprint of all places the last commit refers to, by this controller's own books; None if it keeps none."""
        return None

    async def advice(self) -> list[str]:
        """What about the medium's settings may lose chunks, a sentence each with the way out; `dstorage check` shows them."""
        return []

    async def sparse_places(self, max_live_share: float) -> list[tuple[int, Locator]]:
        """Places to be written anew so that dead space around them can be freed: (id, locator) pairs.

        Args:
            max_live_share: Only from regions (segments, packs) of which at most this share is in use.
        """
        return []

    def checkpoint(
        self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]
    ) -> Mapping[int, bytes]:
        """Changes of the private state to be saved with the commit that is about to happen (empty value: delete key).

        Called after `sync` and right before the switch, for every controller that `alive` or `dead` names. Changes
        nothing in the controller: the commit may still fail, and the next one then names the same places again.
        `committed` tells that it did not.

        Args:
            alive: (id, locator) pairs this commit begins to refer to. Writes answered but not named here belong to a
                later commit (or to none): after a crash they are garbage, and the state must not count them as used.
            dead: (id, locator) pairs the last commit referred to and this one does not. The state must already count
                them as free, because after a crash right behind the switch nobody calls `discard` for them again.
        """
        return {}

    async def recount(self, places: AsyncIterator[tuple[int, Locator]]) -> Mapping[int, bytes]:
        """Count anew what the last commit refers to; for repairs of books that say something else.

        Called while no commit is under way. Changes nothing in the controller, as `checkpoint`: `committed` tells that what
        it returned is saved.

        Args:
            places: (id, locator) pairs that the last commit refers to, damaged ones too; there may be many.

        Returns:
            Changes of the private state; empty if the books were right, or none are kept.
        """
        return {}

    def committed(self) -> None:
        """What `checkpoint` or `recount` returned last is saved, with the commit or for itself."""
        return

    def __repr__(self) -> str:
        space = self.space()
        total = "unbounded" if space.total is None else space.total
        return f"<{type(self).__name__} {self.name!r} rank {self.rank}, {self.status.value}, {space.used}/{total} B>"
