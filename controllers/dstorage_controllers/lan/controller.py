"""Chunks on a Redis server: the controller around the link.

Keys are immutable, so a commit needs nothing of the server but that it keeps what it answered for. What no commit refers to
is unlinked behind the commit; what a crash left behind is found by a scan in the background of the next open.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from redis.exceptions import AuthenticationError, AuthorizationError, ResponseError

from dstorage.controller import (
    Buffer,
    Controller,
    ControllerStatus,
    OpenContext,
    ReadRequest,
    Settings,
    Space,
    WriteRequest,
)
from dstorage.errors import (
    ControllerError,
    ControllerFull,
    ControllerUnavailable,
    CorruptData,
    InvalidArgumentError,
    Lost,
)
from dstorage.record import MAX_CHUNK_BYTES, Locator
from dstorage_controllers.health import Health
from dstorage_controllers.lan.connecting import connect
from dstorage_controllers.lan.durability import Durability, advice
from dstorage_controllers.lan.layout import Layout, Place, content_sum
from dstorage_controllers.lan.link import FAILURES, MANNERS, Link, Reply, SingleLink, refusal
from dstorage_controllers.lan.session import Session
from dstorage_controllers.lan.settings import check_settings
from dstorage_controllers.lan.sweeping import Sweeping
from dstorage_controllers.lan.trips import Trip, Trips, add
from dstorage_controllers.lan.unlinking import Unlinking

PIECE_BYTES = 256 * 2**10
"""Pieces of this size, side by side into one buffer, came twice as fast as whole values of 4 MiB."""
INLINE_SUM_BYTES = 8 * 2**20
"""Checksums of more are computed in a thread."""
DISCARDS_AT_ONCE = 1024
"""Looked at in one turn of the loop, 3 ms."""


class _Open(NamedTuple):
    context: OpenContext
    link: Link
    health: Health
    layout: Layout
    session: Session
    trips: Trips
    unlinking: Unlinking
    sweeping: Sweeping


class LanController(Controller):
    """Keeps chunks on a server that speaks the Redis protocol: Redis, Valkey, their Clusters, Kvrocks, `dstorage serve`.

    Args:
        name: The name under which the store lists it.
        url: ``redis://host:port/database``, ``rediss://...`` for TLS, ``unix:///path``; with `cluster`, hosts separated by commas.
        cluster: Whether the server is a node of a Cluster; the other nodes are found through it.
        username: ACL user; None for the default one.
        password_file: File with the password.
        password_env: Environment variable with the password, instead of a file.
        ca_file: Certificates (PEM) that may have signed the server's; None for the system's.
        cert_file: This client's certificate (PEM), for servers that ask for one.
        key_file: Its private key.
        capacity: Bytes of chunks to keep there at most; None for what the server takes.
        rank: Performance class.
        piece_bytes: Larger chunks are cut into pieces of this length, a power of two from 64 KiB to 64 MiB.
        connections: Most connections at a time that carry chunks (to each node of a Cluster); a commit, a probe and the look
            for what a crash left behind take one more each.
        timeout: Seconds after which what the server has not answered counts as unavailable.
        replicas: Commits wait until so many replicas have taken their writes; 0 for none.

    Raises:
        InvalidArgumentError: An argument is out of range.
    """

    kind: ClassVar[str] = "lan"
    volatile = False

    def __init__(
        self,
        name: str = "lan",
        url: str = "redis://localhost:6379",
        *,
        cluster: bool = False,
        username: str | None = None,
        password_file: str | Path | None = None,
        password_env: str | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        capacity: int | None = None,
        rank: int = 30,
        piece_bytes: int = PIECE_BYTES,
        connections: int = 16,
        timeout: float = 5.0,
        replicas: int = 0,
    ) -> None:
        def absolute(path: str | Path | None) -> str | None:
            return None if path is None else str(Path(path).absolute())

        settings: dict[str, object] = {
            "url": url,
            "cluster": cluster,
            "username": username,
            "password_file": absolute(password_file),
            "password_env": password_env,
            "ca_file": absolute(ca_file),
            "cert_file": absolute(cert_file),
            "key_file": absolute(key_file),
            "capacity": capacity,
            "rank": rank,
            "piece_bytes": piece_bytes,
            "connections": connections,
            "timeout": timeout,
            "replicas": replicas,
        }
        check_settings(name, settings)
        super().__init__(name, rank=rank, settings=settings)
        self._capacity = capacity
        self._piece = piece_bytes
        self._timeout = timeout
        self._connections = connections
        # Half of what a trip may take, so that it is this wait that ends first.
        self._durability = Durability(name, replicas, timeout / 2)
        self._open: _Open | None = None
        self._used = 0
        self._refused: int | None = None
        self._recognised = False

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> LanController:
        """Build one from what the catalog kept.

        Raises:
            InvalidArgumentError: A setting is unknown, of the wrong type or out of range.
        """
        check_settings(name, settings)
        return cls(name, **settings)  # type: ignore[arg-type]  # just checked

    # -- inspection ---------------------------------------------------------------------------------------------------

    @property
    def status(self) -> ControllerStatus:
        """Unavailable while the server is; FULL while it says so or what the capacity refused would still not fit."""
        if self._open is None:
            return ControllerStatus.TEMPORARILY_UNAVAILABLE
        status = self._open.health.status
        if status is ControllerStatus.OK and self._refused is not None and self._room() < self._refused:
            return ControllerStatus.FULL
        return status

    @property
    def trouble(self) -> str | None:
        """What the server failed by."""
        return None if self._open is None else self._open.health.trouble

    def space(self) -> Space:
        """The capacity, and the bytes of this store's chunks there."""
        return Space(self._capacity, self._used)

    # -- open and close -----------------------------------------------------------------------------------------------

    async def open(self, context: OpenContext) -> None:
        """Connect. A server that is away is no error: a warning, and its chunks come when it does.

        Raises:
            ControllerError: Wrong password or rights, or state that makes no sense.
        """
        layout = Layout(context.store_uuid, context.index, self.name)
        session = Session(self.name, context, layout)
        link = connect(self.name, self.settings)
        health = Health(self.name, MANNERS, self._probe, self._health_changed)
        self._used = session.saved.used
        trips = Trips(link, health, self._connections)
        unlinking = Unlinking(link, trips)
        sweeping = Sweeping(link, health, prefix=layout.prefix, orphan=session.orphan, found=unlinking.add)
        self._open = _Open(context, link, health, layout, session, trips, unlinking, sweeping)
        try:
            await self._probe()
        except (AuthenticationError, AuthorizationError) as error:
            raise ControllerError(f"the server of controller {self.name!r} refuses the login: {error}") from error
        except FAILURES as error:
            told = health.failed(error)
            if health.status is not ControllerStatus.FULL:
                warnings.warn(
                    f"controller {self.name!r} starts without its server: {told}", RuntimeWarning, stacklevel=2
                )
        if session.forgotten:
            warnings.warn(
                f"the server of controller {self.name!r} does not know this store: it was emptied, does not persist, or is "
                "another one. Chunks that it does not have count as lost",
                RuntimeWarning,
                stacklevel=2,
            )

    async def close(self) -> None:
        """Let go of the connections; a second call does nothing."""
        opened, self._open = self._open, None
        if opened is None:
            return
        await opened.sweeping.close()
        await opened.unlinking.wait(self._timeout if opened.health.status is ControllerStatus.OK else 0)
        await opened.unlinking.close()
        await opened.health.close()
        await opened.link.close()

    async def _probe(self) -> None:
        """Ask each server whether it takes what will be asked of it."""
        opened = self._opened()
        reading = opened.context.read_only
        if self._recognised and not reading:
            await opened.session.revisit(opened.link)

        async def ask(server: SingleLink, number: int) -> None:
            command = ("PING",) if reading else ("SET", opened.layout.probe(number), b"")
            reply = (await server.run([command]))[0]
            if isinstance(reply, ResponseError):
                raise reply

        await opened.link.everywhere(ask)
        if not self._recognised:
            sweep = await opened.session.recognise(opened.link)
            self._recognised = True
            if sweep:
                opened.sweeping.begin()

    def _health_changed(self) -> None:
        if self._open is not None:
            if self._open.health.status is ControllerStatus.OK:
                self._open.unlinking.resume()
                self._open.sweeping.resume()
            self._open.context.status_changed()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Fetch chunks: small ones many at a time, large ones in pieces side by side."""
        opened = self._opened()
        answers: list[Buffer | Exception] = [b""] * len(requests)
        places: list[Place] = []
        trips: list[Trip] = []
        for at, (id, locator) in enumerate(requests):
            try:
                place = opened.layout.unpack(id, locator)
            except CorruptData as error:
                place = Place(0, 0, 0, 0)
                answers[at] = error
            places.append(place)
            keys = opened.layout.keys(id, place)
            if len(keys) > 1:
                answers[at] = bytearray(place.size)
            for piece, key in enumerate(keys):
                add(trips, ("GET", key), at, piece, place.piece or place.size)

        def take(at: int, piece: int, reply: Reply) -> None:
            answer = answers[at]
            if isinstance(answer, Exception):
                return
            found = self._checked(requests[at].id, places[at], piece, reply)
            if isinstance(answer, bytearray) and isinstance(found, bytes):
                start = piece * places[at].piece
                answer[start : start + len(found)] = found
            else:
                answers[at] = found

        await opened.trips.make(trips, take, write=False)
        for at, (id, _) in enumerate(requests):
            answer = answers[at]
            if not isinstance(answer, Exception) and await _sum(id, answer) != places[at].checksum:
                answers[at] = CorruptData("the server gave other bytes than were stored", id=id, controller=self.name)
        return answers

    def _checked(self, id: int, place: Place, piece: int, reply: Reply) -> bytes | Exception:
        if isinstance(reply, Exception):
            return reply
        if reply is None:
            why = "the server does not have it any more (evicted, expired or never persisted)"
            return Lost(why, id=id, controller=self.name)
        size = min(place.piece, place.size - piece * place.piece) if place.piece else place.size
        if not isinstance(reply, bytes) or len(reply) != size:
            return CorruptData("the server gave a value of another length", id=id, controller=self.name)
        return reply

    # -- writing ------------------------------------------------------------------------------------------------------

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Store chunks under new keys; each is answered with its locator, `ControllerFull` or `ControllerUnavailable`."""
        opened = self._changing()
        was = self.status
        answers: list[Locator | Exception] = []
        keys: list[list[str]] = [[] for _ in requests]
        reserved = [0] * len(requests)
        trips: list[Trip] = []

        def take(at: int, piece: int, reply: Reply) -> None:
            if isinstance(reply, Exception):
                answers[at] = reply

        try:
            for at, (id, data) in enumerate(requests):
                view = memoryview(data).cast("B")
                refused = self._refuse(id, len(view))
                if refused is not None:
                    answers.append(refused)
                    continue
                self._used += len(view)
                reserved[at] = len(view)
                piece = self._piece if len(view) > self._piece else 0
                place = Place(len(view), opened.session.next_generation(), piece, await _sum(id, view))
                answers.append(opened.layout.pack(id, place))
                keys[at] = opened.layout.keys(id, place)
                for number, key in enumerate(keys[at]):
                    part = view[number * piece : (number + 1) * piece] if piece else view
                    add(trips, ("SET", key, part), at, number, len(part))
            await opened.trips.make(trips, take, write=True)
        except BaseException:
            # Cancelled: nobody will ever name these keys.
            self._give_back(opened, sum(reserved), [key for some in keys for key in some])
            self._tell(was)
            raise
        for at, answer in enumerate(answers):
            if isinstance(answer, Exception):
                self._give_back(opened, reserved[at], keys[at])
            elif keys[at]:
                opened.session.wrote(keys[at][0])
        self._tell(was)
        return answers

    def _refuse(self, id: int, size: int) -> Exception | None:
        if size > MAX_CHUNK_BYTES:
            return InvalidArgumentError(f"chunk {id} is larger than {MAX_CHUNK_BYTES} bytes")
        if self._room() >= size:
            return None
        self._refused = min(size, self._refused or size)
        return ControllerFull(
            f"controller {self.name!r} has {self._room()} of {self._capacity} bytes left, chunk {id} needs {size}; raise its "
            "capacity or let the next controller take it"
        )

    def _give_back(self, opened: _Open, size: int, keys: list[str]) -> None:
        self._used -= size
        opened.unlinking.add(keys)

    # -- freeing ------------------------------------------------------------------------------------------------------

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Unlink keys, in batches; what the server does not take now it takes when it is back."""
        opened = self._changing()
        for start in range(0, len(locators), DISCARDS_AT_ONCE):
            if self._open is not opened:
                return
            was = self.status
            for id, place in self._places(opened, locators[start : start + DISCARDS_AT_ONCE]):
                self._used = max(0, self._used - place.size)
                opened.unlinking.add(opened.layout.keys(id, place))
            self._tell(was)
            # The loop gets a turn, and what waits stays little while the server takes it.
            await asyncio.sleep(0)
            await opened.unlinking.wait(self._timeout)

    # -- durability ---------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Return when each server, and as many replicas as asked for, has what it answered for.

        Raises:
            ControllerUnavailable: A server does not answer, or too few replicas do.
        """
        opened = self._changing()
        refused = opened.health.refuse(write=False)
        if refused is not None:
            raise refused
        try:
            await opened.session.mark(opened.link)
            await opened.link.everywhere(
                lambda server, number: self._durability.settle(server, opened.layout.probe(number))
            )
        except ControllerUnavailable:
            # Answered, but not durable enough: nothing is wrong with the server itself.
            raise
        except FAILURES as error:
            told = opened.health.failed(error)
            # A commit cannot go elsewhere for room.
            raise told if isinstance(told, ControllerUnavailable) else ControllerUnavailable(str(told)) from error

    def checkpoint(self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]) -> dict[int, bytes]:
        """The bytes that the commit will refer to, and whose commit it is."""
        opened = self._opened()
        begun = sum(place.size for _, place in self._places(opened, alive))
        ended = sum(place.size for _, place in self._places(opened, dead))
        return opened.session.plan(begun - ended)

    def committed(self) -> None:
        """The commit of the last checkpoint has happened."""
        self._opened().session.committed()

    def committed_bytes(self) -> int | None:
        """Bytes that the last commit refers to."""
        return self._opened().session.saved.used

    async def advice(self) -> list[str]:
        """Settings of the servers that may lose chunks: eviction, and no append-only file."""
        opened = self._opened()
        try:
            told = await opened.link.everywhere(lambda server, number: advice(server))
        except FAILURES as error:
            return [str(refusal(self.name, error))]
        return list(dict.fromkeys(sentence for sentences in told for sentence in sentences))

    def footprint(self, locator: Locator) -> int:
        """The chunk's length; a server needs some 100 bytes more for a key."""
        return locator.size

    # -- private ------------------------------------------------------------------------------------------------------

    def _opened(self) -> _Open:
        if self._open is None:
            raise ControllerError(f"controller {self.name!r} is not open")
        return self._open

    def _changing(self) -> _Open:
        opened = self._opened()
        if opened.context.read_only:
            raise ControllerError(f"controller {self.name!r} was opened read-only; open the store for writing")
        return opened

    def _places(self, opened: _Open, locators: Iterable[tuple[int, Locator]]) -> Iterator[tuple[int, Place]]:
        for id, locator in locators:
            try:
                yield id, opened.layout.unpack(id, locator)
            except CorruptData:
                # Names nothing that is here.
                continue

    def _room(self) -> int | float:
        return float("inf") if self._capacity is None else self._capacity - self._used

    def _tell(self, was: ControllerStatus) -> None:
        """The room has changed; what the server itself says is told by its health."""
        if self._refused is not None and self._room() >= self._refused:
            self._refused = None
        if self._open is not None and self.status is not was:
            self._open.context.status_changed()


async def _sum(id: int, data: Buffer) -> int:
    if len(data) <= INLINE_SUM_BYTES:
        return content_sum(id, data)
    return await asyncio.to_thread(content_sum, id, data)
