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
_NUMBER = struct.Struct("<Q")
SESSIONS = 16
"""Remembered: more than one, because it is not known of each whether its mark came to be."""


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
        self._own = directory / "sessions"
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
            own = token == last or token in await asyncio.to_thread(self._sessions)
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

    def _sessions(self) -> list[bytes]:
        """Tokens of the last sessions that wrote from this directory, or meant to; none in a copy of it."""
        try:
            with self._own.open("rb") as file:
                raw = file.read(_NUMBER.size + SESSIONS * TOKEN_BYTES)
            (number,) = _NUMBER.unpack_from(raw)
        except (OSError, struct.error):
            return []
        if number != self._own.parent.stat().st_ino:
            return []
        return [raw[at : at + TOKEN_BYTES] for at in range(_NUMBER.size, len(raw), TOKEN_BYTES)]

    def _note(self) -> None:
        directory = self._own.parent
        directory.mkdir(parents=True, exist_ok=True)
        tokens = [self._token, *self._sessions()][:SESSIONS]
        new = self._own.with_suffix(".new")
        with new.open("wb") as file:
            file.write(_NUMBER.pack(directory.stat().st_ino) + b"".join(tokens))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._own)
