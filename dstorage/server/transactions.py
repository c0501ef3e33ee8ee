"""MULTI, EXEC, DISCARD, WATCH, UNWATCH: several commands done in one step, or none of them.

While MULTI is open the connection uses a table whose commands only take notes, so that what is done outside of transactions pays
nothing for them. EXEC first has everything brought to memory that the commands need, and room reserved for what they make, waiting as
any command does; then all of them run in one step of the loop. So no other client sees half of a transaction, nor does a
commit, and after a crash there is all of it or nothing. As in Redis, a command that fails leaves the others done.

A transaction has to fit in memory: the values it reads, and those it makes (long ones excepted: they are in chunks before EXEC).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dstorage.errors import MemoryUnavailable
from dstorage.server.chunks import Absent, NoRoom
from dstorage.server.command import Command, CommandError, Work
from dstorage.server.keyspace import LARGE_VALUE, Keyspace, Watch
from dstorage.server.large import Upload
from dstorage.server.replies import OK, error
from dstorage.server.subcommands import Container

if TYPE_CHECKING:
    from dstorage.server.connection import Connection

AT_ONCE = ("multi", "exec", "discard", "watch", "quit", "reset")
"""Commands that are done when they come, also behind MULTI."""
OVERHEAD = 256
"""Memory that a command behind MULTI counts for, beside its arguments: about its list and its reply."""
SMALL_CHANGE = 64
"""Room for a number, or a change of a few digits."""


class Transaction:
    """What one connection has begun.

    Attributes:
        watch: The keys that must not change before EXEC.
        queued: The commands behind MULTI; None: that was not said yet.
        failed: One of them was refused.
        weight: Memory charged to the connection for all this, bytes.
    """

    def __init__(self) -> None:
        self.watch = Watch()
        self.queued: list[tuple[Command, list[Any]]] | None = None
        self.failed = False
        self.weight = 0

    def fail(self) -> None:
        """A command was refused; of no consequence before MULTI."""
        self.failed = self.queued is not None


class Transactions:
    """The commands of transactions.

    Args:
        keyspace: The keys.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._chunks = keyspace.chunks

    def commands(self) -> list[Command]:
        """All of them."""

        def make(name: str, run: Any, arity: int, summary: str, keys: tuple[int, int, int] = (0, 0, 0)) -> Command:
            return Command(name, run, arity, "noscript loading stale fast", keys, "transactions", summary)

        return [
            make("multi", self._multi, 1, "Begin a transaction"),
            make("exec", self._exec, 1, "Do the commands since MULTI"),
            make("discard", self._discard, 1, "Forget the commands since MULTI"),
            make("watch", self._watch, -2, "Let EXEC do nothing if a key changes before", (1, -1, 1)),
            make("unwatch", self._unwatch, 1, "Watch no keys any more"),
        ]

    def queueing(self, command: Command) -> Command:
        """What stands for `command` behind MULTI."""
        if command.name in AT_ONCE:
            return command
        return Command(
            command.name,
            partial(_queue, command),
            command.arity,
            command.flags,
            command.keys,
            command.group,
            command.summary,
            value_at=command.value_at,
            uploads=command.uploads,
        )

    def end(self, link: Connection) -> None:
        """Forget what a connection has begun; its keys are watched no more."""
        begun, link.transaction = link.transaction, None
        if begun is not None:
            self._leave(link, begun)
            self._release(link, begun)

    def _leave(self, link: Connection, begun: Transaction) -> None:
        link.transaction = None
        if begun.queued is not None:
            link.table = link.server.table

    def _release(self, link: Connection, begun: Transaction) -> None:
        self._keyspace.unwatch(begun.watch)
        link.intake.discharge(begun.weight)
        for _, args in begun.queued or ():
            for arg in args:
                if isinstance(arg, Upload):
                    link.intake.drop_upload(arg)

    def _multi(self, link: Connection, args: list[Any]) -> None:
        begun = link.transaction = link.transaction or Transaction()
        if begun.queued is not None:
            # Of no consequence for what is queued: so no exception.
            link.out.append(error("ERR MULTI calls can not be nested"))
            return
        begun.queued = []
        link.table = link.server.queueing
        link.out.append(OK)

    def _discard(self, link: Connection, args: list[Any]) -> None:
        if link.transaction is None or link.transaction.queued is None:
            raise CommandError("ERR DISCARD without MULTI")
        self.end(link)
        link.out.append(OK)

    def _watch(self, link: Connection, args: list[Any]) -> None:
        begun = link.transaction or Transaction()
        if begun.queued is not None:
            link.out.append(error("ERR WATCH inside MULTI is not allowed"))
            return
        for key in args[1:]:
            # One that has expired already goes first: that is no change.
            self._keyspace.find(key)
        link.transaction = begun
        for key in args[1:]:
            if key not in begun.watch.keys:
                weight = OVERHEAD + len(key)
                link.intake.charge(weight)
                begun.weight += weight
                self._keyspace.watch(key, begun.watch)
        link.out.append(OK)

    def _unwatch(self, link: Connection, args: list[Any]) -> None:
        self.end(link)
        link.out.append(OK)

    # -- EXEC ---------------------------------------------------------------------------------------------------------

    def _exec(self, link: Connection, args: list[Any]) -> Work | None:
        begun = link.transaction
        if begun is None or begun.queued is None:
            raise CommandError("ERR EXEC without MULTI")
        if begun.failed:
            self.end(link)
            raise CommandError("EXECABORT Transaction discarded because of previous errors.")
        self._leave(link, begun)
        try:
            later = self._attempt(link, begun)
        except (Absent, NoRoom) as obstacle:
            return self._patiently(link, begun, obstacle)
        except BaseException:
            self._release(link, begun)
            raise
        self._release(link, begun)
        return later

    async def _patiently(self, link: Connection, begun: Transaction, obstacle: Absent | NoRoom) -> None:
        try:
            await link.patiently(lambda: self._attempt(link, begun), obstacle)
        finally:
            self._release(link, begun)

    def _attempt(self, link: Connection, begun: Transaction) -> Work | None:
        """Do all of it now.

        Raises:
            Absent, NoRoom: Nothing was done.
        """
        assert begun.queued is not None
        for key in begun.watch.keys:
            # To expire is to change.
            self._keyspace.find(key)
        if begun.watch.stale:
            link.out.append(b"*-1\r\n" if link.version == 2 else link.nil)
            return None
        uploads: dict[bytes, Upload] = {}
        room = sum([self._prepare(command, args, uploads) for command, args in begun.queued])
        self._chunks.take(room)
        self._chunks.lend(room)
        out, mark = link.out, len(link.out)
        link.copy_below = link.COPY_OF_MANY_BELOW
        link.atomic = True
        parts: list[Any] = [b"*%d\r\n" % len(begun.queued)]
        try:
            for command, args in begun.queued:
                later = self._do(link, command, args)
                parts += out[mark:]
                del out[mark:]
                if later is not None:
                    parts.append(later)
        finally:
            link.copy_below = link.COPY_BELOW
            link.atomic = False
            self._chunks.settle()
        return link.stream(parts)

    def _do(self, link: Connection, command: Command, args: list[Any]) -> Work | None:
        """One of the commands; its failure is its reply."""
        mark = len(link.out)
        failure: Exception
        try:
            return command.run(link, args)
        except Absent as obstacle:
            # It is lost, or was made by a command before and had to leave for another.
            failure = self._chunks.failure(obstacle.id)
        except NoRoom as obstacle:
            failure = MemoryUnavailable(
                f"no room for {obstacle.size} bytes: the transaction is too large for the budget"
            )
        except Exception as refusal:
            failure = refusal
        del link.out[mark:]
        link.refuse(failure)
        return None

    def _prepare(self, command: Command, args: list[Any], uploads: dict[bytes, Upload]) -> int:
        """The room that a command takes at most.

        Args:
            command: The command.
            args: Its arguments.
            uploads: Long values that the commands before it set, by key; its own is added.

        Raises:
            Absent: It needs contents that are not in memory.
        """
        first, last, step = command.keys
        writes = "write" in command.flags
        room = 0
        if writes:
            room = SMALL_CHANGE + sum([8 * len(arg.ids) if isinstance(arg, Upload) else len(arg) for arg in args])
        for key in args[first : (last + 1) or None : step] if first else ():
            number = self._keyspace.find(key)
            self._keyspace.reachable(number)
            if number and not number & LARGE_VALUE and command.reads and not self._chunks.lost(number):
                handle = self._chunks.resident(number)
                room += handle.size if writes else 0
        if command.prepare is not None:
            room += command.prepare(args, uploads)
        if command.uploads and isinstance(args[command.value_at], Upload):
            uploads[args[1]] = args[command.value_at]
        return room


def _queue(command: Command, link: Connection, args: list[Any]) -> None:
    begun = link.transaction
    assert begun is not None
    assert begun.queued is not None
    if isinstance(command.run, Container):
        command.run.chosen(args)
    weight = OVERHEAD
    for arg in args:
        weight += 64 + (0 if isinstance(arg, Upload) else len(arg))
    if begun.weight + weight > link.server.limits.request:
        raise CommandError(f"ERR a transaction of more than {link.server.limits.request} bytes")
    link.intake.charge(weight)
    begun.weight += weight
    begun.queued.append((command, args))
    for arg in args:
        if isinstance(arg, Upload):
            arg.kept = True
    link.out.append(b"+QUEUED\r\n")
