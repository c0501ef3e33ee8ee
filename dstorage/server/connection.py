"""One client's connection: its stream in, commands in order, replies out.

What is answered from memory is answered in the step of the loop that read it, and the replies of one read leave in one write. A
command that has to wait becomes a task; until it is done nothing more is read, and the commands behind it wait their turn. A client that does
not read its replies is not read from either. So what a connection holds is bounded, whatever its client does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from dstorage.server.chunks import Absent, NoRoom, Patience
from dstorage.server.command import Command, CommandError, Work
from dstorage.server.intake import BEGUN_FREE, Intake
from dstorage.server.large import Upload
from dstorage.server.protocol import LargeCommand, ProtocolError, RequestParser
from dstorage.server.refusal import log, message, unknown
from dstorage.server.replies import NIL, error

if TYPE_CHECKING:
    from dstorage.server.server import Server
    from dstorage.server.transactions import Transaction

OUTPUT_BYTES = 2**20
"""Replies that wait for a client before it is not served any more until it reads; a piece where that is less."""
PROGRESS_BYTES = 2**16
"""What a client that is behind has to read for not being silent."""
FLUSH_AT = 256
"""Parts of replies that are collected before they are handed to the socket."""
FLUSH_BYTES = 2**18
"""Bytes of long replies that are collected."""
WEB = (b"post", b"host:")
"""What a browser says that a web page sent here. It is hung up on, as by Redis, before it gets to the commands in the page's text:
loopback is no protection against the browser of this machine's user."""
PATIENCE_S = 30.0
"""How long a command waits for room or for a chunk that is temporarily unavailable."""


class _End(list[str]):
    """In the place of a command: after this error message, if any, hang up."""


class Connection(asyncio.BufferedProtocol):
    """The server's side of one connection.

    Attributes:
        id: Number of the connection.
        name: What the client calls itself.
        version: Of the protocol: 2 or 3.
        nil: How it says "nothing".
        out: Parts of replies not yet handed to the socket.
        bulky: Bytes of the long ones among them; if there are any, they are not copied together.
        table: The commands it may use, by name in lower and upper case.
        copy_below: Values shorter than this are copied into one buffer with others; longer ones are handed to the socket as they are.
        atomic: Whether a command has to be done in this step of the loop, whatever it costs others.
        transaction: What it has begun with WATCH or MULTI.
        closing: Nothing more is to be done for it.
        last: Second in which it was last heard of.
    """

    COPY_BELOW = 16 * 1024
    """What `copy_below` is but for commands whose many replies are all there at the same time."""
    COPY_OF_MANY_BELOW = 64
    """What it is for those."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.id = 0
        self.copy_below = self.COPY_BELOW
        self.atomic = False
        self.transaction: Transaction | None = None
        self.name = b""
        self.library: dict[bytes, bytes] = {}
        self.version = 2
        self.nil = NIL[2]
        self.out: list[Any] = []
        self.bulky = 0
        self.table = server.table if server.password is None else server.before_password
        self.closing = False
        self.since = self.last = server.second
        self.intake = Intake(server, self.hold, self.go_on)
        self.parser = RequestParser(
            self.intake.sink,
            in_memory=server.large.piece,
            max_request=server.limits.request,
            trusted=server.password is None,
        )
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._queue: deque[list[Any]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._holds = 0
        self._writable = True
        self._drained: asyncio.Future[None] | None = None
        self._unread = 0

    # -- the transport's calls ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        # uvloop's transports are no subclass of it.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=min(OUTPUT_BYTES, self.server.large.piece))
        refusal = self.server.entered(self)
        if refusal is not None:
            transport.write(error(refusal))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self.closing = True
        self._queue.clear()
        # It and its transport name each other: they stay until the garbage is collected, its memory must not.
        self.parser.forget()
        self.server.left(self)
        self.server.transactions.end(self)
        self.resume_writing()
        self.intake.end()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the socket is to be read into."""
        sink = self.parser.sink
        return self.server.receive_view if sink is None else sink.window()

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes came."""
        self.last = self.server.second
        parser = self.parser
        if parser.sink is not None:
            parser.filled(nbytes)
            return
        if self.closing:
            return
        self._take(bytes(self.server.receive_view[:nbytes]))
        if parser.pending >= BEGUN_FREE or self.intake.begun:
            self._count_begun()

    def _take(self, data: bytes) -> None:
        """Cut what came into commands and do them; those of a client without password one by one."""
        parser, queue = self.parser, self._queue
        while True:
            trusted = parser.trusted
            try:
                commands = parser.feed(data)
                self.server.commands += len(commands)
                queue.extend(commands)
            except ProtocolError as failure:
                queue.extend([*failure.commands, _End([f"ERR Protocol error: {failure}"])])
            if trusted or not queue:
                break
            self._run()
            if self.closing or self._task is not None:
                return
            data = b""
        if self._task is None and self._writable:
            self._run()

    def eof_received(self) -> bool:
        """The client will send no more: what it asked for is still answered."""
        if (self._task is None and not self._queue) or self._transport.get_extra_info("ssl_object") is not None:
            return False
        self._queue.append(_End())
        return True

    def pause_writing(self) -> None:
        """The client does not read."""
        self._writable = False
        self.last = self.server.second
        self._unread = self.unread
        self.hold()

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._writable:
            return
        self.last = self.server.second
        self._writable = True
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._task is None:
            self._run()
        self.go_on()

    # -- reading ------------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Read no more until `go_on` was called as often."""
        self._holds += 1
        if self._holds == 1 and not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """See `hold`."""
        self._holds -= 1
        if not self._holds and not self._transport.is_closing():
            self._transport.resume_reading()

    def _count_begun(self) -> None:
        try:
            self.intake.begin(self.parser.pending)
        except CommandError as failure:
            self._queue.append(_End([str(failure)]))
            if self._task is None and self._writable:
                self._run()

    # -- commands -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Do the commands that have come until one has to wait or the client is behind."""
        out, queue = self.out, self._queue
        while queue:
            # Taken out, so that nobody but the store knows the values of commands that are done.
            args = queue.popleft()
            mark = len(out)
            command = self.table.get(args[0]) if args.__class__ is list else None
            try:
                if command is not None and command.least <= len(args) <= command.most:
                    later = command.run(self, args)
                else:
                    later = self._unusual(args)
            except (Absent, NoRoom) as obstacle:
                del out[mark:]
                assert command is not None
                later = self._obstructed(command, args, obstacle)
            except Exception as failure:
                del out[mark:]
                later = None
                self.refuse(failure)
            if later is not None:
                self._wait(later)
                return
            if len(out) >= FLUSH_AT or self.bulky >= FLUSH_BYTES:
                self.flush()
            if self.closing or not self._writable:
                break
        if self.closing:
            queue.clear()
            self.flush()
            self._transport.close()
        elif out:
            self.server.flush_soon(self)

    def _wait(self, work: Work) -> None:
        """Do the rest of a command in a task, and what is behind it afterwards."""
        self.hold()
        self.flush()
        self._task = self.server.spawn(self._finish(work))

    async def _finish(self, work: Work) -> None:
        mark = len(self.out)
        try:
            await work
        except ConnectionError:
            # The client has gone while its reply was on the way.
            self.abort()
        except Exception as failure:
            del self.out[mark:]
            self.refuse(failure)
        finally:
            self._task = None
        self.flush()
        if self._writable or self.closing:
            self._run()
        if not (self.parser.trusted or self.closing or self._task is not None):
            self._take(b"")
        self.go_on()

    def _unusual(self, args: list[Any]) -> Work | None:
        """What the loop of `_run` leaves aside: unknown names, wrong numbers of arguments, long arguments, the end."""
        if isinstance(args, _End):
            self.out += map(error, args)
            self.closing = True
            return None
        name = b"" if isinstance(args[0], Upload) else bytes(args[0]).lower()
        command = self.table.get(name)
        if name in WEB:
            self.intake.drop(args)
            log.warning("hung up on %s, which speaks HTTP: a web page may be trying to get at this node", self.peer)
            self.closing = True
            return None
        try:
            if command is None:
                raise CommandError(unknown(name, args, known=name in self.server.table))
            if not command.least <= len(args) <= command.most:
                raise CommandError(command.wrong_arity)
            if not isinstance(args, LargeCommand):
                return self._attempt(command, args)
            plain, upload = self.intake.accept(command, args)
        except CommandError:
            self.intake.drop(args)
            raise
        if upload is not None:
            return self._upload(command, args, plain, upload)
        self.intake.forget(args)
        return self._attempt(command, plain)

    async def _upload(self, command: Command, args: LargeCommand, plain: list[Any], upload: Upload) -> None:
        try:
            await upload.finish()
            await self.patiently(lambda: command.run(self, plain))
        finally:
            self.intake.drop(args)

    def _attempt(self, command: Command, args: list[Any]) -> Work | None:
        mark = len(self.out)
        try:
            return command.run(self, args)
        except (Absent, NoRoom) as obstacle:
            del self.out[mark:]
            return self._obstructed(command, args, obstacle)

    def _obstructed(self, command: Command, args: list[Any], obstacle: Absent | NoRoom) -> Work | None:
        """A command met an obstacle: a chunk that its controller has at hand comes at once, anything else needs a task."""
        mark = len(self.out)
        try:
            if isinstance(obstacle, Absent) and self.server.chunks.bring(obstacle.id):
                return command.run(self, args)
        except (Absent, NoRoom) as another:
            del self.out[mark:]
            obstacle = another
        except Exception as failure:
            del self.out[mark:]
            self.refuse(failure)
            return None
        return self.patiently(lambda: command.run(self, args), obstacle)

    async def patiently(self, run: Callable[[], Work | None], obstacle: Absent | NoRoom | None = None) -> None:
        """Do what may find a chunk absent or no room, after the obstacle met already.

        Raises:
            TemporarilyUnavailable, Lost, MemoryUnavailable: It stays so.
        """
        with Patience(self.server.chunks, PATIENCE_S) as patience:
            while True:
                if obstacle is not None:
                    await patience.overcome(obstacle)
                mark = len(self.out)
                try:
                    later = run()
                    break
                except (Absent, NoRoom) as another:
                    del self.out[mark:]
                    obstacle = another
                finally:
                    self.server.chunks.settle()
        if later is not None:
            await later

    # -- replies ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand the replies collected so far to the socket."""
        out = self.out
        if self._transport.is_closing():
            out.clear()
        elif out:
            if self.bulky:
                self.bulky = 0
                self._transport.writelines(out)
            else:
                self._transport.write(b"".join(out))
            out.clear()

    async def drained(self) -> None:
        """Return when the client has read enough of its replies.

        Raises:
            ConnectionResetError: It has gone.
        """
        if not self._writable:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
            self._drained = None
        if self._transport.is_closing():
            raise ConnectionResetError("the client has gone")

    def stream(self, parts: list[Any]) -> Work | None:
        """Reply with many parts, as fast as the client reads them.

        Args:
            parts: Bytes, and works that append theirs when their turn comes.
        """
        size = 0
        for part in parts:
            if asyncio.iscoroutine(part):
                return self._stream(parts)
            size += len(part)
        if size >= FLUSH_BYTES or len(parts) >= FLUSH_AT:
            return self._stream(parts)
        self.out += parts
        return None

    async def _stream(self, parts: list[Any]) -> None:
        size = 0
        parts.reverse()
        try:
            while parts:
                part = parts.pop()
                if asyncio.iscoroutine(part):
                    await self.part(part)
                else:
                    self.out.append(part)
                    size += len(part)
                if size >= FLUSH_BYTES or len(self.out) >= FLUSH_AT:
                    self.bulky = size if size >= len(self.out) * self.COPY_BELOW else 0
                    size = 0
                    self.flush()
                    await self.drained()
        finally:
            # The client has gone; what was begun for it has to be ended all the same.
            for part in parts:
                if asyncio.iscoroutine(part):
                    with contextlib.suppress(Exception):
                        await part

    async def part(self, work: Work) -> None:
        """Let `work` append one of several replies; its failure is that reply."""
        mark = len(self.out)
        try:
            await work
        except ConnectionError:
            raise
        except Exception as failure:
            del self.out[mark:]
            self.refuse(failure)

    def refuse(self, failure: Exception) -> None:
        """Reply with an error."""
        if self.transaction is not None:
            self.transaction.fail()
        self.out.append(error(message(failure)))

    def speak(self, version: int) -> None:
        """Change to another version of the protocol."""
        self.version = version
        self.nil = NIL[version]

    def trust(self) -> None:
        """The client has shown the password."""
        self.table = self.server.table
        self.parser.trusted = True

    @property
    def peer(self) -> str:
        """Its address."""
        peer = self._transport.get_extra_info("peername")
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix:0"

    @property
    def here(self) -> str:
        """The server's address of it."""
        name = self._transport.get_extra_info("sockname")
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else f"{name}:0"

    @property
    def memory(self) -> int:
        """What it takes beside the budget, bytes."""
        return self.intake.charged + self.unread

    @property
    def unread(self) -> int:
        """Bytes of replies that the client has not read."""
        return self._transport.get_write_buffer_size()

    @property
    def stuck(self) -> bool:
        """Whether the client is behind with reading; to be asked every second: whoever reads a little counts as heard of."""
        if self._writable:
            return False
        if self.unread <= self._unread - PROGRESS_BYTES:
            self._unread = self.unread
            self.last = self.server.second
        return True

    @property
    def idle(self) -> bool:
        """Whether nothing is being done for it but waiting for the client itself."""
        return self._task is None or not self._writable

    def close(self) -> None:
        """Hang up when what was written is sent."""
        self.closing = True
        self._transport.close()

    def abort(self) -> None:
        """Hang up now."""
        self.closing = True
        self._transport.abort()

    async def finished(self) -> None:
        """Return when the command under way, if any, is done."""
        if self._task is not None:
            await asyncio.wait([self._task])
