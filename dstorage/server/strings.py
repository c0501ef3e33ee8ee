"""The commands on strings, which are all the values there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dstorage.server.chunks import Absent
from dstorage.server.command import TOO_LONG, Command, CommandError, Work, to_integer
from dstorage.server.expiry import MILLISECONDS, SECONDS, Expiry, to_moment
from dstorage.server.keyspace import LARGE_VALUE, Keyspace, now
from dstorage.server.large import Reading, Upload
from dstorage.server.protocol import MAX_BULK
from dstorage.server.replies import CRLF, OK, bulk, integer

if TYPE_CHECKING:
    from dstorage.server.connection import Connection

MANY = 100
"""Values of one command from which on they are not copied before the client reads them."""

Value = bytes | bytearray | Upload


class Strings:
    """Commands that read and write values.

    Args:
        keyspace: The keys.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._chunks = keyspace.chunks
        self._large = keyspace.large
        self._hot = keyspace.hot
        self._expires = keyspace.expires
        self._try_reserve = keyspace.store.room.try_reserve
        self._publish = keyspace.store.contents.publish

    def commands(self) -> list[Command]:
        """All of them."""
        read, write, one = "readonly fast", "write denyoom", (1, 1, 1)

        def make(name: str, run: Any, arity: int, flags: str, summary: str, **more: Any) -> Command:
            return Command(name, run, arity, flags, more.pop("keys", one), "string", summary, **more)

        old = {"reads": True}
        return [
            make("get", self._get, 2, read, "Get the value of a key", **old),
            make("getrange", self._getrange, 4, "readonly", "Get a part of a value", **old),
            make("substr", self._getrange, 4, "readonly", "Get a part of a value", **old),
            make("strlen", self._strlen, 2, read, "Get the length of a value"),
            make("mget", self._mget, -2, read, "Get the values of several keys", keys=(1, -1, 1), **old),
            make("getdel", self._getdel, 2, "write fast", "Get a value and delete its key", **old),
            make("getex", self._getex, -2, "write fast", "Get a value and change when its key expires", **old),
            make("getset", self._getset, 3, write, "Set a value and get the old one", value_at=2, uploads=True, **old),
            make("set", self._set, -3, write, "Set the value of a key", value_at=2, uploads=True, **old),
            make("setnx", self._setnx, 3, write, "Set a value if the key does not exist", value_at=2, uploads=True),
            make("setex", self._setex, 4, write, "Set a value that expires", value_at=3, uploads=True),
            make("psetex", self._psetex, 4, write, "Set a value that expires", value_at=3, uploads=True),
            make("mset", self._mset, -3, write, "Set several values", keys=(1, -1, 2)),
            make("msetnx", self._msetnx, -3, write, "Set several values if no key exists", keys=(1, -1, 2)),
            make(
                "append", self._append, 3, write, "Append to a value", value_at=2, prepare=self._prepare_append, **old
            ),
            make(
                "setrange",
                self._setrange,
                4,
                write,
                "Overwrite a part of a value",
                value_at=3,
                prepare=self._prepare_setrange,
                **old,
            ),
        ]

    # -- reading ------------------------------------------------------------------------------------------------------

    def _get(self, link: Connection, args: list[Any]) -> Work | None:
        key = args[1]
        handle = self._hot.get(key)
        if handle is not None and (buffer := handle.buffer) is not None:
            moment = self._expires.get(key)
            size = len(buffer)
            if size < link.copy_below and (moment is None or moment > now()):
                handle.hot = True
                self._keyspace.hits += 1
                link.out.append(b"$%d\r\n%b\r\n" % (size, buffer))  # type: ignore[str-format]  # any buffer will do
                return None
        return self._reply(link, key)

    def _reply(self, link: Connection, key: bytes) -> Work | None:
        """Reply with a value, in one step or in parts."""
        return self._answer(link, self._value(key))

    def _value(self, key: bytes) -> bytes | bytearray | Reading | None:
        """The value of a key as it is now, whatever is done to the key afterwards; a Reading is the caller's to close."""
        found = self._keyspace.look(key)
        if found is None:
            return None
        if isinstance(found, int):
            return self._large.open(found & ~LARGE_VALUE)
        return found.buffer

    def _answer(self, link: Connection, value: bytes | bytearray | Reading | None) -> Work | None:
        if value is None:
            link.out.append(link.nil)
        elif isinstance(value, Reading):
            return _send(link, value, 0, value.manifest.size)
        else:
            _put_out(link, value)
        return None

    def _getrange(self, link: Connection, args: list[Any]) -> Work | None:
        start, end = to_integer(args[2]), to_integer(args[3])
        found = self._keyspace.look(args[1])
        manifest = None
        size = 0
        if isinstance(found, int):
            manifest = self._large.manifest(found & ~LARGE_VALUE)
            size = manifest.size
        elif found is not None:
            size = found.size
        if start < 0 and end < 0 and start > end:
            size = 0
        start = max(start + size, 0) if start < 0 else start
        end = min(max(end + size, 0) if end < 0 else end, size - 1)
        if start > end or not size:
            link.out.append(b"$0\r\n\r\n")
        elif manifest is not None:
            assert isinstance(found, int)
            return _send(link, self._large.open(found & ~LARGE_VALUE), start, end + 1)
        else:
            assert found is not None
            assert not isinstance(found, int)
            assert found.buffer is not None
            _put_out(link, memoryview(found.buffer)[start : end + 1])
        return None

    def _strlen(self, link: Connection, args: list[Any]) -> None:
        link.out.append(integer(self.length(self._keyspace.find(args[1]))))

    def length(self, number: int) -> int:
        """Length of the value under a key's number; 0 for none."""
        if number & LARGE_VALUE:
            return self._large.manifest(number & ~LARGE_VALUE).size
        info = self._keyspace.store.info(number) if number else None
        return info.size if info is not None else 0

    def _mget(self, link: Connection, args: list[Any]) -> Work | None:
        out, mark = link.out, len(link.out)
        parts: list[Any] = [b"*%d\r\n" % (len(args) - 1)]
        usual = link.copy_below
        if len(args) > MANY:
            link.copy_below = link.COPY_OF_MANY_BELOW
        try:
            for position in range(1, len(args)):
                try:
                    later = self._reply(link, args[position])
                except Absent:
                    # Values that have to come to memory first: each is taken when its turn comes.
                    parts.append(self._mget_rest(link, args[position:]))
                    break
                parts += out[mark:]
                del out[mark:]
                if later is not None:
                    parts.append(later)
        finally:
            link.copy_below = usual
        return link.stream(parts)

    async def _mget_rest(self, link: Connection, keys: list[bytes]) -> None:
        for key in keys:
            await link.part(link.patiently(lambda key=key: self._reply(link, key)))  # type: ignore[misc]
            link.flush()
            await link.drained()

    # -- writing ------------------------------------------------------------------------------------------------------

    def _set(self, link: Connection, args: list[Any]) -> Work | None:
        if len(args) > 3:
            return self._set_with_options(link, args)
        key, value = args[1], args[2]
        handle = self._hot.get(key)
        if (
            handle is not None
            and handle.buffer is not None
            and key not in self._expires
            and value.__class__ is not Upload
            and self._try_reserve(len(value))
        ):
            self._publish(handle, value)
        else:
            self._assign(key, value, None)
        link.out.append(OK)
        return None

    def _assign(self, key: bytes, value: Value, expires: int | None, *, keep_expiry: bool = False) -> None:
        """Make `value` that of a key; all or nothing."""
        if isinstance(value, Upload):
            self._keyspace.replaceable(key)
            self._keyspace.bind(key, self._large.keep(value) | LARGE_VALUE)
        else:
            self._keyspace.put(key, value)
        if not keep_expiry:
            self._keyspace.set_expiry(key, expires)
            if expires is not None:
                # Where that is in the past, the key is gone at once.
                self._keyspace.find(key)

    def _set_with_options(self, link: Connection, args: list[Any]) -> Work | None:
        key, value = args[1], args[2]
        expiry = Expiry()
        only_new = only_old = get = False
        position = 3
        while position < len(args):
            option = args[position].upper()
            if option == b"NX" and not only_old:
                only_new = True
            elif option == b"XX" and not only_new:
                only_old = True
            elif option == b"GET":
                get = True
            else:
                position += expiry.option(args, position, keep=b"KEEPTTL")
            position += 1
        moment = expiry.moment("set")
        there = self._keyspace.find(key)
        skip = bool(there) if only_new else only_old and not there
        if get and not skip:
            return self._exchange(link, key, lambda: self._assign(key, value, moment, keep_expiry=expiry.keep))
        if get:
            return self._reply(link, key)
        if skip:
            link.out.append(link.nil)
        else:
            self._assign(key, value, moment, keep_expiry=expiry.keep)
            link.out.append(OK)
        return None

    def _exchange(self, link: Connection, key: bytes, change: Callable[[], object]) -> Work | None:
        """Change a key, and reply with the value it had."""
        old = self._value(key)
        try:
            change()
        except BaseException:
            if isinstance(old, Reading):
                old.close()
            raise
        return self._answer(link, old)

    def _getset(self, link: Connection, args: list[Any]) -> Work | None:
        return self._exchange(link, args[1], lambda: self._assign(args[1], args[2], None))

    def _getdel(self, link: Connection, args: list[Any]) -> Work | None:
        return self._exchange(link, args[1], lambda: self._keyspace.remove(args[1]))

    def _getex(self, link: Connection, args: list[Any]) -> Work | None:
        expiry = Expiry()
        position = 2
        while position < len(args):
            position += expiry.option(args, position, keep=b"PERSIST") + 1
        key = args[1]
        if not self._keyspace.find(key):
            link.out.append(link.nil)
            return None
        moment = expiry.moment("getex")
        if moment is None and not expiry.keep:
            return self._reply(link, key)
        # The option that stands alone is PERSIST here.
        return self._exchange(link, key, lambda: self._keyspace.set_expiry(key, moment))

    def _setnx(self, link: Connection, args: list[Any]) -> None:
        if self._keyspace.find(args[1]):
            link.out.append(b":0\r\n")
            return
        self._assign(args[1], args[2], None)
        link.out.append(b":1\r\n")

    def _setex(self, link: Connection, args: list[Any]) -> None:
        self._assign(args[1], args[3], to_moment(args[2], SECONDS, "setex", relative=True))
        link.out.append(OK)

    def _psetex(self, link: Connection, args: list[Any]) -> None:
        self._assign(args[1], args[3], to_moment(args[2], MILLISECONDS, "psetex", relative=True))
        link.out.append(OK)

    def _mset(self, link: Connection, args: list[Any]) -> Work | None:
        if len(args) % 2 == 0:
            raise CommandError("ERR wrong number of arguments for 'mset' command")
        self._assign_all(args)
        link.out.append(OK)
        return None

    def _msetnx(self, link: Connection, args: list[Any]) -> None:
        if len(args) % 2 == 0:
            raise CommandError("ERR wrong number of arguments for 'msetnx' command")
        if any(self._keyspace.find(key) for key in args[1::2]):
            link.out.append(b":0\r\n")
            return
        self._assign_all(args)
        link.out.append(b":1\r\n")

    def _assign_all(self, args: list[Any]) -> None:
        """Several keys; room for all of them is made sure of first, so that it is all or nothing."""
        pairs = dict(zip(args[1::2], args[2::2], strict=True))
        for key in pairs:
            self._keyspace.replaceable(key)
        self._chunks.take(sum(map(len, pairs.values())))
        for key, value in pairs.items():
            self._chunks.lend(len(value))
            self._assign(key, value, None)

    def _append(self, link: Connection, args: list[Any]) -> None:
        key, data = args[1], args[2]
        number = self._keyspace.find(key)
        link.out.append(integer(self._splice(key, number, self.length(number), data)))

    def _setrange(self, link: Connection, args: list[Any]) -> None:
        key, data = args[1], args[3]
        offset = to_integer(args[2])
        if offset < 0:
            raise CommandError("ERR offset is out of range")
        number = self._keyspace.find(key)
        link.out.append(integer(self._splice(key, number, offset, data) if data else self.length(number)))

    def _prepare_append(self, args: list[Any], uploads: Mapping[bytes, Upload]) -> int:
        return self._prepare_splice(args[1], None, len(args[2]), uploads)

    def _prepare_setrange(self, args: list[Any], uploads: Mapping[bytes, Upload]) -> int:
        try:
            return self._prepare_splice(args[1], to_integer(args[2]), len(args[3]), uploads)
        except CommandError:
            return 0

    def _prepare_splice(self, key: bytes, offset: int | None, length: int, uploads: Mapping[bytes, Upload]) -> int:
        """See `Command.prepare`."""
        piece = self._large.piece
        ids: Sequence[int] = ()
        if (upload := uploads.get(key)) is not None:
            size, ids = upload.size, upload.ids
        elif (number := self._keyspace.find(key)) & LARGE_VALUE:
            manifest = self._large.manifest(number & ~LARGE_VALUE)
            size, ids = manifest.size, manifest.ids
        else:
            size = self.length(number)
        start = size if offset is None else offset
        end = start + length
        if not 0 <= start < end <= MAX_BULK:
            return 0
        for id in ids[start // piece : (end - 1) // piece + 1]:
            if id:
                self._chunks.resident(id)
        # At most two pieces are changed; one more where a plain value becomes a long one; and the manifest.
        size = max(size, end)
        return size if size <= piece and not ids else 3 * piece + 8 * (size // piece + 4)

    def _splice(self, key: bytes, number: int, offset: int, data: bytes | bytearray) -> int:
        """Write `data` into a value, there or not; returns the new length."""
        self._keyspace.replaceable(key)
        size = max(self.length(number), offset + len(data))
        if offset + len(data) > MAX_BULK:
            raise CommandError(TOO_LONG)
        if number & LARGE_VALUE:
            if data:
                manifest = self._large.manifest(number & ~LARGE_VALUE)
                self._keyspace.rebind(key, number, self._large.splice(manifest, offset, data) | LARGE_VALUE)
            return size
        old: bytes | bytearray = b""
        if number:
            buffer = self._chunks.resident(number).buffer
            assert buffer is not None
            old = buffer
        if size > self._large.piece and data:
            new = self._large.splice(self._large.empty(), offset, data, old)
            self._keyspace.bind(key, new | LARGE_VALUE)
        else:
            self._keyspace.put(key, b"".join((old[:offset].ljust(offset, b"\0"), data, old[offset + len(data) :])))
        return size


def _put_out(link: Connection, value: bytes | bytearray | memoryview) -> None:
    if len(value) < link.copy_below:
        link.out.append(bulk(value))
    else:
        link.out += (b"$%d\r\n" % len(value), value, CRLF)
        link.bulky += len(value)


async def _send(link: Connection, reading: Reading, start: int, stop: int) -> None:
    """Reply with a part of a long value."""
    begun = False
    try:
        async for part in reading.parts(start, stop):
            if not begun:
                begun = True
                link.out.append(b"$%d\r\n" % (stop - start))
            link.out.append(part)
            link.bulky += len(part)
            link.flush()
            await link.drained()
        link.out.append(CRLF)
    except BaseException:
        # The client was promised so many bytes: only the end of the connection tells it the truth.
        if begun:
            link.abort()
        raise
    finally:
        reading.close()
