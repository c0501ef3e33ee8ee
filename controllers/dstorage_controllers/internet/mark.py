"""The mark: an object that says who wrote last in the controller's folder, so that copies of a store do not clean up each other.

What a crash left behind cannot be told from what another copy of the same store, on this machine or another, goes on using. So
each session that may write leaves its token and the place of its store in the mark, and the token goes into the private
state with the first commit. Who then finds a mark that is neither of its last commit nor of its own place shares the folder:
from then on nobody cleans up there, until somebody deletes the mark.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from pathlib import Path

from dstorage_controllers.internet.books import TOKEN_BYTES
from dstorage_controllers.internet.bucket import Bucket, Cut, Gone

PLACE_BYTES = 16
_MARK = struct.Struct(f"<B?{TOKEN_BYTES}s{PLACE_BYTES}s")
_VERSION = 1


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
        self._place = _place(directory)
        self._patience = patience
        self.shared = False
        """Whether others write in the folder as well."""
        self.found = False
        """Whether there was one: then the bucket can be read."""

    async def read(self, last: bytes) -> None:
        """Find out whose the folder is.

        Args:
            last: Token of the session that made the last commit.

        Raises:
            FAILURES: It cannot be found out now.
        """
        try:
            found = bytes(await self._bucket.get(self.key, 0, 2 * _MARK.size, patience=self._patience))
        except Gone:
            return
        except Cut:
            # Nobody leaves an empty one.
            found = b""
        self.found = True
        try:
            version, shared, token, place = _MARK.unpack(found)
        except struct.error:
            self.shared = True
            return
        if token != self._token:
            self.shared = shared or version != _VERSION or (token != last and place != self._place)

    async def write(self) -> None:
        """Say that this session writes here.

        Raises:
            FAILURES: The bucket takes no writes now.
        """
        data = _MARK.pack(_VERSION, self.shared, self._token, self._place)
        await self._bucket.put(self.key, [data], create=False, patience=self._patience)


def _place(directory: Path) -> bytes:
    """Tells this store's directory from a copy of it."""
    directory = directory.absolute()
    found = directory
    while not found.exists() and found != found.parent:
        found = found.parent
    told = f"{socket.gethostname()}\0{directory}\0{found.stat().st_ino if found.exists() else 0}"
    return hashlib.blake2b(told.encode(errors="surrogateescape"), digest_size=PLACE_BYTES).digest()
