"""The mark: an object that says who wrote last in the controller's folder, so that copies of a store do not clean up each other.

What a crash left behind cannot be told from what another copy of the same store, on this machine or another, goes on using. So
each session that may write leaves its token in the store's directory, then in the mark, and the token goes into the private
state with the first commit. Who then finds a mark that is neither of its last commit nor of its own directory shares the
folder: from then on nobody cleans up there, until somebody deletes the mark. A directory that was copied is known by the
number that its file system gave it; one that was moved, or is looked at from another host, is not taken for a copy.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from dstorage_controllers.internet.books import TOKEN_BYTES
from dstorage_controllers.internet.bucket import Bucket, Cut, Gone, NoBucket

_MARK = struct.Struct(f"<B?{TOKEN_BYTES}s")
_VERSION = 1
_NOTHING_SAID = "there is nothing of this store; correct url and endpoint, or, if all of it is gone for good, declare the controller removed"
_OWN = struct.Struct(f"<Q{TOKEN_BYTES}s")


class Mark:
    """The mark of one session.

    Args:
        bucket: Where.
        folder: The controller's.
        token: The session's.
        directory: The controller's in the store.
        patience: Seconds for each request.
    """

    def __init__(self, bucket: Bucket, folder: str, *, token: bytes, directory: Path, patience: float) -> None:
        self.key = f"{folder}/writer"
        self._bucket = bucket
        self._token = token
        self._own = directory / "session"
        self._patience = patience
        self._noted = False
        self.shared = False
        """Whether others write in the folder as well."""
        self.found = False
        """Whether there was one: then the bucket can be read."""

    async def read(self, last: bytes, known: Sequence[str]) -> None:
        """Find out whose the folder is.

        Args:
            last: Token of the session that made the last commit.
            known: Names of some objects that it refers to.

        Raises:
            NoBucket: There is neither a mark nor any of the known objects: it is not the store's.
            FAILURES: It cannot be found out now.
        """
        try:
            found = bytes(await self._bucket.get(self.key, 0, 2 * _MARK.size, patience=self._patience))
        except Gone:
            if known and not await self._any(known):
                # Another bucket or prefix than before, or a server that was set up anew: that is no reason to call chunks lost.
                raise NoBucket(_NOTHING_SAID) from None
            return
        except Cut:
            # Nobody leaves an empty one.
            found = b""
        self.found = True
        try:
            version, shared, token = _MARK.unpack(found)
        except struct.error:
            self.shared = True
            return
        if token != self._token:
            own = token == last or token == await asyncio.to_thread(self._session_before)
            self.shared = shared or version != _VERSION or not own

    async def _any(self, keys: Sequence[str]) -> bool:
        for key in keys:
            try:
                await self._bucket.get(key, 0, 1, patience=self._patience)
            except Gone:
                continue
            except Cut:
                pass
            return True
        return False

    async def write(self) -> None:
        """Say that this session writes here.

        Raises:
            FAILURES: The bucket, or the store's directory, takes no writes now.
        """
        if not self._noted:
            await asyncio.to_thread(self._note)
            self._noted = True
        data = _MARK.pack(_VERSION, self.shared, self._token)
        await self._bucket.put(self.key, [data], create=False, patience=self._patience)

    def _session_before(self) -> bytes:
        """Token of the last session that wrote from this directory; nothing in a copy of it."""
        try:
            with self._own.open("rb") as file:
                number, token = _OWN.unpack(file.read(_OWN.size))
        except (OSError, struct.error):
            return b""
        return token if number == self._own.parent.stat().st_ino else b""

    def _note(self) -> None:
        directory = self._own.parent
        directory.mkdir(parents=True, exist_ok=True)
        new = self._own.with_suffix(".new")
        with new.open("wb") as file:
            file.write(_OWN.pack(directory.stat().st_ino, self._token))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._own)
