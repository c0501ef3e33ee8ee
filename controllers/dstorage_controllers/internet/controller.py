"""Chunks in a bucket of an object store: the controller around reader, writer, books and bucket.

Objects are immutable, so a commit needs nothing of the bucket but that it keeps what it answered for. What no commit refers to
is deleted behind the commit; what a crash left behind is found by listing in the background of the next open.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore

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
from dstorage.errors import ControllerError, ControllerUnavailable, CorruptData, Lost
from dstorage.record import Locator
from dstorage_controllers.compression import DEFAULT_LEVEL
from dstorage_controllers.health import Health
from dstorage_controllers.internet.books import Books
from dstorage_controllers.internet.bucket import FAILURES, MANNERS, Bucket, NoBucket, Refused, Taken, said
from dstorage_controllers.internet.cleaning import Cleaning
from dstorage_controllers.internet.codec import NO_KEY, Codec
from dstorage_controllers.internet.connecting import connect
from dstorage_controllers.internet.layout import Layout
from dstorage_controllers.internet.mark import Mark
from dstorage_controllers.internet.parts import Parts, Session
from dstorage_controllers.internet.reader import Reader
from dstorage_controllers.internet.settings import check_settings, parse_url
from dstorage_controllers.internet.writer import Writer

PACK_BYTES = 8 * 2**20
KNOWN = 4
"""Where the mark is not there, so many objects of the last commit are looked for."""
PROBE_S = 5.0
"""A probe that takes longer has failed: one that the network swallowed is not to hide that the bucket is back."""


class _Open(NamedTuple):
    parts: Parts
    mark: Mark
    reader: Reader
    writer: Writer


class InternetController(Controller):
    """Keeps chunks in a bucket: Amazon S3 and compatible stores, Google Cloud Storage, Azure Blob Storage.

    Credentials come from the environment or the clouds' own files and are never settings.

    Args:
        name: The name under which the store lists it.
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``, or ``file:///directory`` for trying out.
        endpoint: Of an S3-compatible or Azure-like server: ``https://host:port``.
        region: Of the bucket; None for what the environment says.
        profile: Which one of ``~/.aws/credentials``; None for the environment, or else the default one.
        allow_http: Whether an endpoint may be plain http.
        ca_file: Certificates (PEM) that may have signed the server's, beside the system's.
        capacity: Stored bytes of live chunks to keep there at most; None for no limit.
        rank: Performance class.
        pack_bytes: Chunks are joined to objects of up to this length, and larger ones cut into pieces of it; a power of two
            from 64 KiB to 8 MiB.
        compress: False, True, or a zstd level 1 to 22. What does not shrink is stored as it is.
        key_file: File with the AES-256 keys (64 hexadecimal digits each, one a line): the first encrypts, all decrypt. A controller
            that has chunks without a key takes none any more, and one that has a key returns nothing that is not encrypted.
        key_env: Environment variable with those keys, separated by blanks, instead of a file.
        connections: Most objects on their way at a time, in and out each; fewer while they do not make it in time.
        timeout: Seconds after which what the bucket has not answered, retries included, counts as unavailable.
        hedge: Whether a read that takes much longer than others is asked for a second time, one in twenty at most.
        store: obstore's view of the bucket, for tests.

    Raises:
        InvalidArgumentError: An argument is out of range.
    """

    kind: ClassVar[str] = "internet"
    volatile = False

    def __init__(
        self,
        name: str = "internet",
        url: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        allow_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        capacity: int | None = None,
        rank: int = 10,
        pack_bytes: int = PACK_BYTES,
        compress: bool | int = True,
        key_file: str | os.PathLike[str] | None = None,
        key_env: str | None = None,
        connections: int = 16,
        timeout: float = 30.0,
        hedge: bool = True,
        store: ObjectStore | None = None,
    ) -> None:
        def absolute(path: str | os.PathLike[str] | None) -> str | None:
            return None if path is None else str(Path(path).absolute())

        settings: dict[str, object] = {
            "url": url,
            "endpoint": endpoint,
            "region": region,
            "profile": profile,
            "allow_http": allow_http,
            "ca_file": absolute(ca_file),
            "capacity": capacity,
            "rank": rank,
            "pack_bytes": pack_bytes,
            "compress": compress,
            "key_file": absolute(key_file),
            "key_env": key_env,
            "connections": connections,
            "timeout": timeout,
            "hedge": hedge,
        }
        check_settings(name, settings)
        super().__init__(name, rank=rank, settings=settings)
        self._capacity = capacity
        self._pack_bytes = pack_bytes
        self._level = DEFAULT_LEVEL if compress is True else int(compress)
        self._key_file = None if key_file is None else Path(key_file).absolute()
        self._key_env = key_env
        self._connections = connections
        self._timeout = timeout
        self._hedge = hedge
        self._store = store
        self._open: _Open | None = None
        self._begun = False

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> InternetController:
        """Build one from what the catalog kept.

        Raises:
            InvalidArgumentError: A setting is unknown, of the wrong type or out of range.
        """
        check_settings(name, settings)
        return cls(name, **settings)  # type: ignore[arg-type]  # just checked

    # -- inspection ---------------------------------------------------------------------------------------------------

    @property
    def status(self) -> ControllerStatus:
        """Unavailable while the bucket is; FULL while it says so or what the capacity refused would still not fit."""
        if self._open is None:
            return ControllerStatus.TEMPORARILY_UNAVAILABLE
        status = self._open.parts.health.status
        return ControllerStatus.FULL if status is ControllerStatus.OK and self._open.writer.full else status

    @property
    def trouble(self) -> str | None:
        """What the bucket failed by."""
        return None if self._open is None else self._open.parts.health.trouble

    def space(self) -> Space:
        """The capacity, and the stored bytes of this store's live chunks."""
        return Space(self._capacity, 0 if self._open is None else self._open.parts.books.used)

    def footprint(self, locator: Locator) -> int:
        """Stored bytes: after compression and encryption."""
        return Layout.stored(locator)

    def committed_bytes(self) -> int | None:
        """Stored bytes of all chunks the last commit refers to."""
        return self._opened().parts.books.committed_bytes

    # -- open and close -----------------------------------------------------------------------------------------------

    async def open(self, context: OpenContext) -> None:
        """Connect. A bucket that is away is no error: a warning, and its chunks come when it does.

        Raises:
            ControllerError: Wrong credentials or rights, a key is missing, or state that makes no sense.
        """
        layout = Layout(context.store_uuid, context.index, self.name, parse_url(str(self.settings["url"])).prefix)
        # Of a million objects, a second's work.
        books = await asyncio.to_thread(Books, self.name, context.state)
        codec = self._codec(context, layout, books)
        # The books have the state; nobody needs it twice.
        context = dataclasses.replace(context, state={})
        store = connect(self.name, self.settings) if self._store is None else self._store
        bucket = Bucket(store, connections=self._connections, timeout=self._timeout, hedge=self._hedge)
        health = Health(self.name, MANNERS, self._probe, context.status_changed)
        cleaning = Cleaning(bucket, lambda: health.status in (ControllerStatus.OK, ControllerStatus.FULL))
        parts = Parts(context, layout, codec, books, bucket, health, cleaning, Session(books))
        writer = Writer(
            self.name,
            parts,
            pack_bytes=self._pack_bytes,
            capacity=self._capacity,
            timeout=self._timeout,
        )
        patience = min(self._timeout, PROBE_S)
        mark = Mark(bucket, layout.folder, token=parts.session.token, directory=context.directory, patience=patience)
        reader = Reader(self.name, parts, self._connections, known=mark.key, patience=patience)
        self._open = _Open(parts, mark, reader, writer)
        self._begun = False
        try:
            await self._probe()
        except (PermissionDeniedError, UnauthenticatedError) as error:
            if not mark.found:
                raise ControllerError(
                    f"the bucket of controller {self.name!r} refuses: {said(error)}; check credentials and rights"
                ) from None
            told = health.failed(error)
            warnings.warn(
                f"controller {self.name!r} can read its bucket and not write to it: {told}",
                RuntimeWarning,
                stacklevel=2,
            )
        except NoBucket as error:
            raise ControllerError(f"controller {self.name!r} cannot use {self.settings['url']}: {error}") from None
        except FAILURES as error:
            told = health.failed(error)
            warnings.warn(f"controller {self.name!r} starts without its bucket: {told}", RuntimeWarning, stacklevel=2)

    def _codec(self, context: OpenContext, layout: Layout, books: Books) -> Codec:
        from dstorage_controllers.disk.keys import load_keys
        from dstorage_controllers.encryption import Encryption

        keys = load_keys(self.name, self._key_file, self._key_env)
        codec = Codec(layout.bound, level=self._level, ciphers=[Encryption(context.store_uuid, key) for key in keys])
        if not books.keys <= codec.key_checks:
            source = self._key_file or self._key_env
            if keys and NO_KEY in books.keys:
                raise ControllerError(
                    f"controller {self.name!r} has stored chunks without a key: given one now, it could not tell them from forged "
                    f"ones; register another controller with the key, and drain {self.name!r}, opened without, to it"
                )
            problem = f"{source} does not have all their keys" if keys else "no key was given"
            raise ControllerError(
                f"chunks of controller {self.name!r} are encrypted and {problem}; keep old keys behind the new one in "
                "key_file or key_env until `Store.compact` has written all chunks anew"
            )
        return codec

    async def close(self) -> None:
        """Let go of the bucket; a second call does nothing."""
        opened, self._open = self._open, None
        if opened is None:
            return
        health = opened.parts.health
        try:
            await opened.parts.cleaning.wait(self._timeout if health.status is ControllerStatus.OK else 0)
        finally:
            await opened.parts.cleaning.close()
            await health.close()

    # -- finding out --------------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        """Ask the bucket whether it takes what will be asked of it; the first time it does, begin the session."""
        opened = self._opened()
        parts, mark = opened.parts, opened.mark
        if parts.context.read_only or not self._begun:
            known = [parts.layout.keys(number, min(1, shape.pieces))[0] for number, shape in parts.books.some(KNOWN)]
            await mark.read(parts.books.token, known)
        if parts.context.read_only:
            return
        try:
            await mark.write()
        except Refused:
            # Whether it refuses all, or only this.
            if not await opened.reader.is_well():
                raise ControllerUnavailable(f"the bucket of {self.name!r} refuses whatever it is asked") from None
            raise
        if self._begun:
            return
        opened.writer.create = await self._refuses_to_overwrite(parts)
        self._begun = True
        if mark.shared:
            warnings.warn(
                f"controller {self.name!r}: a copy of this store has written to {self.settings['url']} as well; what crashes leave "
                f"there is not cleaned away any more. Use only one of them, and delete the object {mark.key} when the others "
                "are gone",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            parts.cleaning.sweep(parts.layout.folder, self._is_orphan)

    async def _refuses_to_overwrite(self, parts: Parts) -> bool:
        """Whether the server honours conditional writes: some do not know them, some overwrite without a word."""
        key = f"{parts.layout.folder}/probe-{parts.session.token.hex()}"
        patience = min(self._timeout, PROBE_S)
        try:
            for content in (b"1", b"2"):
                await parts.bucket.put(key, [content], create=True, patience=patience)
        except Taken:
            return True
        except FAILURES:
            return False
        finally:
            # If it stays, the sweep of a later open finds it.
            with suppress(*FAILURES):
                await parts.bucket.delete([key], patience=patience)
        return False

    def _is_orphan(self, key: str) -> bool:
        parts = self._opened().parts
        if key.startswith(f"{parts.layout.folder}/probe-"):
            return True
        number = parts.layout.parse(key)
        return number is not None and number not in parts.books and not parts.session.has(number)

    # -- reading and writing ------------------------------------------------------------------------------------------

    async def read(self, requests: Sequence[ReadRequest]) -> list[Buffer | Exception]:
        """Fetch chunks, several of a pack by one request, pieces of large ones side by side."""
        return await self._opened().reader.read(requests)

    async def write(self, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
        """Store chunks in new objects; each is answered with its locator, `ControllerFull` or `ControllerUnavailable`."""
        return await self._changing().writer.write(requests)

    async def discard(self, locators: Sequence[tuple[int, Locator]]) -> None:
        """Free places; objects of which nothing is in use any more are deleted in batches, after an outage when it is over."""
        self._changing().writer.discard(locators)

    async def sync(self) -> None:
        """Return at once: a bucket answers when it has stored."""
        self._changing()

    # -- commits ------------------------------------------------------------------------------------------------------

    def checkpoint(self, alive: Sequence[tuple[int, Locator]], dead: Sequence[tuple[int, Locator]]) -> dict[int, bytes]:
        """Live bytes of the objects that the commit touches."""
        parts = self._opened().parts
        layout = parts.layout
        return parts.books.plan(
            (layout.unpack(id, locator) for id, locator in alive),
            layout.sensible(dead),
            parts.session.token,
        )

    def committed(self) -> None:
        """The commit of the last checkpoint has happened."""
        parts = self._opened().parts
        parts.books.committed(parts.session.token)

    async def sparse_places(self, max_live_share: float) -> list[tuple[int, Locator]]:
        """All chunks ever written to packs of which at most this share is alive, or that are small; and those with an old key.

        Raises:
            ControllerUnavailable: The bucket does not answer.
        """
        opened = self._opened()
        books, codec = opened.parts.books, opened.parts.codec
        places: list[tuple[int, Locator]] = []
        for number, shape in books.rewritten(max_live_share, self._pack_bytes, codec.key_check):
            try:
                places += await opened.reader.contents(number, shape)
            except (Lost, CorruptData):
                # `advice` tells of it; the others can still be compacted.
                continue
        return places

    async def advice(self) -> list[str]:
        """A folder that others write to as well, a directory instead of a bucket, and packs whose index is damaged."""
        opened = self._opened()
        told = []
        if opened.mark.shared:
            told.append(
                f"a copy of this store has written to {self.settings['url']} as well and may delete chunks of this one: use only "
                f"one of them, and delete the object {opened.mark.key} when the others are gone"
            )
        if parse_url(str(self.settings["url"])).scheme == "file":
            told.append("chunks in a directory may not survive a power failure: use a bucket, or the disk controller")
        damaged = await opened.reader.damaged_indexes()
        if damaged:
            told.append(
                f"the indexes of {damaged} packs are damaged: their chunks are read, but not found by `Store.compact`, which neither "
                "frees dead space there nor encrypts with a new key; `dstorage drain` moves them elsewhere"
            )
        return told

    # -- private ------------------------------------------------------------------------------------------------------

    def _opened(self) -> _Open:
        if self._open is None:
            raise ControllerError(f"controller {self.name!r} is not open")
        return self._open

    def _changing(self) -> _Open:
        opened = self._opened()
        if opened.parts.context.read_only:
            raise ControllerError(f"controller {self.name!r} was opened read-only; open the store for writing")
        return opened
