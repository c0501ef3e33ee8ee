"""The commands on keys, whatever their values."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dstorage.server.command import SYNTAX, Command, CommandError, Work, to_integer
from dstorage.server.expiry import MILLISECONDS, SECONDS, Condition, to_any_moment
from dstorage.server.glob import matcher
from dstorage.server.keyspace import LARGE_VALUE, MAX_CURSOR, Keyspace, now
from dstorage.server.replies import OK, array, bulk, integer
from dstorage.server.subcommands import Container, Subcommand

if TYPE_CHECKING:
    from dstorage.server.connection import Connection

AT_A_TIME = 1000
"""Keys looked at before others get a turn; COUNT of SCAN is a hint, and this its limit."""
KEY_OVERHEAD = 200
"""What MEMORY USAGE counts for a key beside its own bytes and its value's: about its name in the catalog and a handle."""


class Keys:
    """Commands that find, expire and remove keys.

    Args:
        keyspace: The keys.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    def commands(self) -> list[Command]:
        """All of them."""
        read, write, one, all_, none = "readonly fast", "write fast", (1, 1, 1), (1, -1, 1), (0, 0, 0)

        def make(name: str, run: Any, arity: int, flags: str, keys: tuple[int, int, int], summary: str) -> Command:
            return Command(name, run, arity, flags, keys, "generic", summary)

        usage = Subcommand("USAGE <key> [SAMPLES <count>]", self._usage, -3, "Bytes that a key and its value take.")
        memory = Container("memory", [usage])
        return [
            make("del", self._delete, -2, "write", all_, "Delete keys"),
            make("unlink", self._delete, -2, write, all_, "Delete keys"),
            make("exists", self._exists, -2, read, all_, "Count which of the keys exist"),
            make("touch", self._exists, -2, read, all_, "Count which of the keys exist"),
            make("type", self._type, 2, read, one, "Tell the type of a value"),
            make("ttl", self._ttl, 2, read, one, "Seconds until a key expires"),
            make("pttl", self._pttl, 2, read, one, "Milliseconds until a key expires"),
            make("expiretime", self._expiretime, 2, read, one, "When a key expires, in seconds since 1970"),
            make("pexpiretime", self._pexpiretime, 2, read, one, "When a key expires, in milliseconds since 1970"),
            make("expire", self._expire, -3, write, one, "Let a key expire in some seconds"),
            make("pexpire", self._pexpire, -3, write, one, "Let a key expire in some milliseconds"),
            make("expireat", self._expireat, -3, write, one, "Let a key expire at a second since 1970"),
            make("pexpireat", self._pexpireat, -3, write, one, "Let a key expire at a millisecond since 1970"),
            make("persist", self._persist, 2, write, one, "Let a key not expire"),
            make("scan", self._scan, -2, "readonly", none, "List keys, some at a time"),
            make("keys", self._keys, 2, "readonly", none, "List all keys that match a pattern"),
            make("randomkey", self._randomkey, 1, "readonly", none, "Any key"),
            make("dbsize", self._dbsize, 1, read, none, "Number of keys"),
            make("flushdb", self._flush, -1, "write", none, "Remove all keys"),
            make("flushall", self._flush, -1, "write", none, "Remove all keys"),
            make("memory", memory, -2, "readonly", (2, 2, 1), "Tell about memory: MEMORY USAGE key"),
        ]

    def _delete(self, link: Connection, args: list[Any]) -> None:
        keys = args[1:]
        for key in keys:
            self._keyspace.removable(key)
        link.out.append(integer(sum([self._keyspace.remove(key) for key in keys])))

    def _exists(self, link: Connection, args: list[Any]) -> None:
        link.out.append(integer(sum([self._keyspace.find(key) != 0 for key in args[1:]])))

    def _type(self, link: Connection, args: list[Any]) -> None:
        link.out.append(b"+string\r\n" if self._keyspace.find(args[1]) else b"+none\r\n")

    # -- expiry -------------------------------------------------------------------------------------------------------

    def _moment(self, key: bytes) -> int:
        """When a key expires; -1: never, -2: there is no such key."""
        return self._keyspace.expires.get(key, -1) if self._keyspace.find(key) else -2

    def _ttl(self, link: Connection, args: list[Any]) -> None:
        moment = self._moment(args[1])
        link.out.append(integer(moment if moment < 0 else (max(moment - now(), 0) + 500) // 1000))

    def _pttl(self, link: Connection, args: list[Any]) -> None:
        moment = self._moment(args[1])
        link.out.append(integer(moment if moment < 0 else max(moment - now(), 0)))

    def _expiretime(self, link: Connection, args: list[Any]) -> None:
        moment = self._moment(args[1])
        link.out.append(integer(moment if moment < 0 else (moment + 500) // 1000))

    def _pexpiretime(self, link: Connection, args: list[Any]) -> None:
        link.out.append(integer(self._moment(args[1])))

    def _expire(self, link: Connection, args: list[Any]) -> None:
        self._expire_at(link, args, "expire", SECONDS, relative=True)

    def _pexpire(self, link: Connection, args: list[Any]) -> None:
        self._expire_at(link, args, "pexpire", MILLISECONDS, relative=True)

    def _expireat(self, link: Connection, args: list[Any]) -> None:
        self._expire_at(link, args, "expireat", SECONDS, relative=False)

    def _pexpireat(self, link: Connection, args: list[Any]) -> None:
        self._expire_at(link, args, "pexpireat", MILLISECONDS, relative=False)

    def _expire_at(self, link: Connection, args: list[Any], name: str, unit: int, *, relative: bool) -> None:
        condition = Condition(args[3:])
        moment = to_any_moment(args[2], unit, name, relative=relative)
        key = args[1]
        keyspace = self._keyspace
        if not keyspace.find(key) or not condition.allows(moment, keyspace.expires.get(key)):
            link.out.append(b":0\r\n")
            return
        if moment <= now():
            keyspace.remove(key)
        else:
            keyspace.set_expiry(key, moment)
        link.out.append(b":1\r\n")

    def _persist(self, link: Connection, args: list[Any]) -> None:
        expires = self._keyspace.find(args[1]) and args[1] in self._keyspace.expires
        if expires:
            self._keyspace.set_expiry(args[1], None)
        link.out.append(b":1\r\n" if expires else b":0\r\n")

    # -- all keys -----------------------------------------------------------------------------------------------------

    def _some(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """About `count` keys from a position on, and the position of the next one; 0 when there is none."""
        keys: list[bytes] = []
        last = -1
        for position, key in self._keyspace.scan(cursor):
            # Keys of one position cannot be told apart by a cursor: they come together.
            if len(keys) >= count and position != last:
                return position, keys
            last = position
            keys.append(key)
        return 0, keys

    def _scan(self, link: Connection, args: list[Any]) -> None:
        if not args[1].isdigit() or len(args[1]) > 20 or int(args[1]) >= 2**64:
            raise CommandError("ERR invalid cursor")
        cursor = int(args[1])
        count, matches, wanted = 10, matcher(b"*"), b"string"
        if len(args) % 2:
            raise CommandError(SYNTAX)
        for option, value in zip(args[2::2], args[3::2], strict=True):
            match option.upper():
                case b"COUNT":
                    count = to_integer(value)
                    if count < 1:
                        raise CommandError(SYNTAX)
                case b"MATCH":
                    matches = matcher(value)
                case b"TYPE":
                    wanted = value.lower()
                case _:
                    raise CommandError(SYNTAX)
        following, keys = self._some(cursor, min(count, AT_A_TIME)) if cursor < MAX_CURSOR else (0, [])
        found = [bulk(key) for key in keys if matches(key)] if wanted == b"string" else []
        link.out.append(array([bulk(b"%d" % following), array(found)]))

    def _keys(self, link: Connection, args: list[Any]) -> Work | None:
        found: list[bytes] = []
        steps = self._matching(args[1], found, link.server.limits.request)
        if link.atomic:
            for _ in steps:
                pass
            link.out.append(array(found))
            return None

        async def work() -> None:
            for _ in steps:
                await asyncio.sleep(0)
            link.out.append(array(found))

        return work()

    def _matching(self, pattern: bytes, found: list[bytes], most: int) -> Iterator[None]:
        """Add the keys that match to `found`, some at each step.

        Raises:
            CommandError: They have more than `most` bytes.
        """
        matches = matcher(pattern)
        cursor = size = 0
        while True:
            cursor, keys = self._some(cursor, AT_A_TIME)
            some = [bulk(key) for key in keys if matches(key)]
            size += sum(map(len, some))
            if size > most:
                raise CommandError(f"ERR the keys that match have more than {most} bytes: use SCAN")
            found += some
            if not cursor:
                return
            yield

    def _randomkey(self, link: Connection, args: list[Any]) -> None:
        for start in (random.randrange(MAX_CURSOR), 0):  # noqa: S311 - any key, no secret
            _, keys = self._some(start, 1)
            if keys:
                link.out.append(bulk(keys[0]))
                return
        link.out.append(link.nil)

    def _dbsize(self, link: Connection, args: list[Any]) -> None:
        link.out.append(integer(self._keyspace.count))

    def _flush(self, link: Connection, args: list[Any]) -> Work | None:
        mode = args[1].upper() if len(args) == 2 else b"" if len(args) == 1 else None
        if mode not in (b"", b"ASYNC", b"SYNC"):
            raise CommandError(SYNTAX)
        cleaning = self._keyspace.clear()
        if mode != b"SYNC":
            link.out.append(OK)
            return None

        async def wait() -> None:
            await asyncio.wait([cleaning])
            link.out.append(OK)

        return wait()

    def _usage(self, link: Connection, args: list[Any]) -> None:
        if len(args) not in (3, 5) or (len(args) == 5 and args[3].upper() != b"SAMPLES"):
            raise CommandError(SYNTAX)
        if len(args) == 5 and to_integer(args[4]) < 0:
            raise CommandError(SYNTAX)
        number = self._keyspace.find(args[2])
        if not number:
            link.out.append(link.nil)
        elif number & LARGE_VALUE:
            manifest = self._keyspace.large.manifest(number & ~LARGE_VALUE)
            link.out.append(integer(manifest.size + 8 * len(manifest.ids) + len(args[2]) + KEY_OVERHEAD))
        else:
            info = self._keyspace.store.info(number)
            link.out.append(integer((info.size if info is not None else 0) + len(args[2]) + KEY_OVERHEAD))
