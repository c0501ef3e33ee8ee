"""The way to the bucket: whole objects in, ranges out, with a bound on requests under way and a deadline on each.

obstore retries what may be sent again (5xx, refused and cut connections, reads that time out), with exponential backoff and
jitter. What is still unanswered at the deadline raises `TimeoutError`; a write that did may or may not have happened.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from typing import Literal

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore

from dstorage.controller import Buffer
from dstorage.errors import ControllerError, ControllerFull, ControllerUnavailable
from dstorage_controllers.health import Fault, Manners
from dstorage_controllers.internet.hedging import Hedging
from dstorage_controllers.internet.pacing import Pacing

FAILURES = (BaseError, OSError)
"""What a request can raise; `FileNotFoundError` and `TimeoutError` are among them."""

DELETE_AT_ONCE = 1000
"""What S3 takes in one request; obstore cuts it where others take less."""
LIST_AT_ONCE = 1000
_SETTLE_S = 0.02
_NO_BUCKET_SAID = "there is no such bucket; create it, or correct url and endpoint"
# What servers say when an account, a disk or a bucket has no more room.
_FULL = re.compile(
    r"status code: 507|InsufficientStorage|QuotaExceeded|Quota[ -]?Exceed|exceeded your.*quota|No space left", re.I
)
# Mostly a proxy's limit: nginx takes no more than a mebibyte if it is not told otherwise.
_TOO_LARGE = re.compile(r"status code: 413|EntityTooLarge|RequestBodyTooLarge", re.I)
# Where obstore looks for credentials last: the services that clouds' machines ask for their own.
_NO_CREDENTIALS = re.compile(r"/latest/api/token|computeMetadata|/metadata/identity")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist|The specified bucket", re.I)
# S3 and Google, Azure, a directory, memory.
_GONE = re.compile(r"NoSuchKey|BlobNotFound|No such file or directory|No data in memory", re.I)
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
# Why no request could be sent at all.
_WHY = re.compile(r'InvalidCertificate\(\s*(?P<tls>\w+)|(?:message|error): "(?P<os>[^"]{1,120})"')
_BEYOND = re.compile(r"status code: 416|Invalid ?range|Requested range was invalid|Wanted range starting at", re.I)

# obstore's threads let go of Python objects just behind an answer. One that does so while the interpreter goes down aborts the
# process, so that they get a moment before that.
atexit.register(time.sleep, _SETTLE_S)


class Gone(Exception):
    """There is no such object, in a bucket that is there."""


class Cut(Exception):
    """The object is shorter than what was asked of it."""


class NoBucket(OSError):
    """There is no such bucket."""


class Refused(OSError):
    """The server said that it does not store now; it may still give what it has."""


class Taken(Exception):
    """There is an object of that name already."""


class Bucket:
    """A bucket of some object store.

    Args:
        store: obstore's view of it.
        connections: Most objects at a time on their way, in and out each.
        timeout: Seconds for one request with all its retries.
        hedge: Whether reads may be asked for a second time.

    Attributes:
        reading: Whose turn it is to read; callers of `get` take one.
        writing: Whose turn it is to write; callers of `put` take one.
    """

    def __init__(self, store: ObjectStore, *, connections: int, timeout: float, hedge: bool) -> None:
        self._store = store
        self._timeout = timeout
        self.reading = Pacing(connections)
        self.writing = Pacing(connections)
        self._hedging = Hedging(timeout / 4) if hedge else None
        self.requests = 0
        """Sent so far (retries by obstore and pages of lists not counted)."""
        self.hedges = 0
        """Second requests among them."""

    async def put(self, key: str, parts: Sequence[Buffer], *, create: bool, patience: float | None = None) -> None:
        """Write an object.

        Args:
            key: Its name.
            parts: Its bytes, in order.
            create: Have the server refuse it if there is one of that name.
            patience: Another deadline in seconds.

        Raises:
            Taken: It did.
            NoBucket: The bucket is not there.
            TimeoutError: The outcome is unknown.
            Refused: The server does not store now.
            FAILURES: It was not written.
        """
        self.requests += 1
        try:
            async with asyncio.timeout(self._timeout if patience is None else patience):
                # Not joined: for many MiB a copy costs as much as encryption, or more.
                mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
                await obstore.put_async(self._store, key, parts, mode=mode, use_multipart=False)
        except AlreadyExistsError:
            # The same answer, 409, says that another request is in the way.
            if not create:
                raise
            raise Taken(key) from None
        except FileNotFoundError as error:
            raise _missing(error) from None
        except GenericError as error:
            if is_reply(error) and fault_of(error) is Fault.DOWN:
                raise Refused(said(error)) from None
            raise

    async def get(self, key: str, start: int, length: int, *, patience: float | None = None) -> memoryview:
        """Read at most `length` bytes (at least 1) of an object from `start` on; fewer only if it ends before.

        Raises:
            Gone: There is no such object.
            Cut: It ends before `start`.
            NoBucket: The bucket is not there.
            FAILURES: It cannot be read now.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout if patience is None else patience):
                data = memoryview(await self._hedged(key, start, length))
        except FileNotFoundError as error:
            if _GONE.search(str(error)):
                raise Gone(key) from None
            raise _missing(error) from None
        except GenericError as error:
            if _BEYOND.search(str(error).partition("\n")[0]):
                raise Cut(key) from None
            raise
        if self._hedging is not None:
            self._hedging.measured(length, time.monotonic() - began)
        return data

    async def _hedged(self, key: str, start: int, length: int) -> Buffer:
        if self._hedging is None:
            return await self._range(key, start, length)
        asked = {asyncio.ensure_future(self._range(key, start, length))}
        try:
            answered, _ = await asyncio.wait(asked, timeout=self._hedging.delay(length))
            if not answered and self._hedging.take():
                self.hedges += 1
                asked.add(asyncio.ensure_future(self._range(key, start, length)))
            pending = set(asked)
            while True:
                answered, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                good = [answer for answer in answered if answer.exception() is None]
                if good or not pending:
                    return (good or list(answered))[0].result()
        finally:
            for answer in asked:
                answer.cancel()
            # Cancelled ones end in their own time; what they say is of no interest.
            for answer in asked:
                answer.add_done_callback(_forget)

    async def _range(self, key: str, start: int, length: int) -> Buffer:
        self.requests += 1
        answer = await obstore.get_async(self._store, key, options={"range": (start, start + length)})
        # As one part, and not as a whole: what is longer than was asked for is left where it is.
        async for part in answer.stream(min_chunk_size=length + 1):
            if len(part) > length:
                raise GenericError(f"the server gives more than the {length} bytes it was asked for")
            return part
        return b""

    async def delete(self, keys: Sequence[str], *, patience: float | None = None) -> None:
        """Delete objects, some of which may not be there.

        Raises:
            FAILURES: Some may still be there.
        """
        async with asyncio.timeout(self._timeout if patience is None else patience):
            for start in range(0, len(keys), DELETE_AT_ONCE):
                self.requests += 1
                some = list(keys[start : start + DELETE_AT_ONCE])
                try:
                    await obstore.delete_async(self._store, some)
                except FileNotFoundError:
                    # Some stores stop there, some do not.
                    await self._delete_singly(some)
                except (NotSupportedError, GenericError):
                    # Google's S3 and others have no request for many.
                    if len(some) == 1:
                        raise
                    await self._delete_singly(some)

    async def _delete_singly(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.requests += 1
            with contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._store, key)

    async def names(self, folder: str) -> AsyncIterator[str]:
        """Names of all objects in a folder.

        Raises:
            FAILURES: They cannot be listed now.
        """
        pages = obstore.list(self._store, folder, chunk_size=LIST_AT_ONCE).__aiter__()
        first = ""
        while True:
            self.requests += 1
            try:
                async with asyncio.timeout(self._timeout):
                    page = await anext(pages)
            except StopAsyncIteration:
                return
            if page and page[0]["path"] == first:
                raise GenericError("the server lists the same objects again and again")
            first = page[0]["path"] if page else ""
            for entry in page:
                yield entry["path"]


def _missing(error: FileNotFoundError) -> Exception:
    """What a 404 that names no object means."""
    if _NO_BUCKET.search(str(error)):
        return NoBucket(_NO_BUCKET_SAID)
    # Anybody on the way can say 404: a balancer without servers, the page of a hotel.
    return GenericError(f"not the answer of an object store: {said(error)}")


def fault_of(error: BaseException) -> Fault:
    """What the bucket can still do after one of `FAILURES`."""
    if _FULL.search(str(error)):
        return Fault.FULL
    if isinstance(
        error, (Refused, PermissionDeniedError, UnauthenticatedError, NotSupportedError)
    ) or _TOO_LARGE.search(str(error)):
        return Fault.WRITES
    return Fault.DOWN


def refusal(name: str, error: BaseException) -> ControllerError:
    """What the store is told of one of `FAILURES`.

    Args:
        name: The controller's name.
        error: It.
    """
    if fault_of(error) is Fault.FULL:
        return ControllerFull(f"the bucket of {name!r} has no more room: {said(error)}")
    if _TOO_LARGE.search(str(error)):
        return ControllerUnavailable(
            f"the server of {name!r}, or one before it, takes no objects this large; register it with smaller pack_bytes: "
            f"{said(error)}"
        )
    if isinstance(error, TimeoutError):
        return ControllerUnavailable(f"the bucket of {name!r} did not answer in time")
    if _NO_CREDENTIALS.search(str(error).partition("\n")[0]):
        return ControllerUnavailable(
            f"no credentials for the bucket of {name!r} in the environment or in a profile, and this machine has none of its own"
        )
    return ControllerUnavailable(f"the bucket of {name!r} cannot be used now: {said(error)}")


MANNERS = Manners(FAILURES, fault_of, refusal, first_pause=0.1, longest_pause=5.0)


def is_reply(error: BaseException) -> bool:
    """Whether one of `FAILURES` is what a server said, and not that none did."""
    return "status code: " in str(error).partition("\n")[0]


def said(error: BaseException) -> str:
    """An error in one line without what may be secret: queries of URLs hold signatures, replies repeat what was asked with.

    Of a reply, its status and the code in it are left. The errors themselves are not to become the cause of others: whatever
    writes those to a log would write all of it.
    """
    text = str(error)
    line, status, reply = (text.partition("\n")[0] or type(error).__name__).partition("status code: ")
    if status:
        code = _CODE.search(text)
        line += status + reply.partition(":")[0] + (f" ({code[1]})" if code else "")
    elif "error sending request" in line:
        why = _WHY.search(text)
        if why is not None and why["tls"]:
            line += f": its certificate is not to be trusted ({why['tls']}); name in ca_file who has signed it"
        elif why is not None:
            line += f": {why['os']}"
    return re.sub(r"\?[^\s)]+", "", line)[:400]


def _forget(answer: asyncio.Future[Buffer]) -> None:
    if not answer.cancelled():
        answer.exception()
