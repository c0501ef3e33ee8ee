"""RESP, the Redis protocol: requests (what goes out is in `dstorage.server.replies`).

`RequestParser` cuts a stream into commands. Whole batches of small requests go through hiredis; what hiredis finds incomplete or
odd is parsed again here, exactly, with the limits and error messages of Redis. An argument of `LARGE` bytes or more is not collected in
pieces: the parser names a buffer of its full length (a `Sink`'s window) and the socket is read straight into it.

Source: the RESP2 and RESP3 specifications at redis.io, and the observable behaviour of redis-server 7.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, Protocol

import hiredis

LARGE = 16 * 1024
"""Arguments from this many bytes on are read straight into a buffer of their own."""
SMALL = 1024
"""Batches of commands that are shorter than this gain by hiredis; longer ones, by not being copied through it."""
MAX_INLINE = 64 * 1024
"""Longest line: an inline command or a length."""
MAX_BULK = 512 * 2**20
"""Longest argument, and so the longest value."""
MAX_ARGUMENTS = 2**20
ARGUMENT_OVERHEAD = 64
"""Memory that an argument counts for beside its bytes."""
MAX_UNAUTHENTICATED_BULK = 16 * 1024
MAX_UNAUTHENTICATED_ARGUMENTS = 10
MAX_DIGITS = 20

Command = list[Any]
"""The arguments of one request, first its name: `bytes`, or for long ones `bytearray` or what a `Sink` made of it."""

_ONLY_BYTES = {bytes}
_MARK = b"*1\r\n$1\r\nM\r\n"
"""Comes out of hiredis as a command of its own only if nothing incomplete was left in it."""
_SHAPE = bytes.maketrans(b"123456789>~%|", b"000000000****")
_HUGE = b"*00000"
"""In a batch seen through `_SHAPE`: a list of so many elements, for which hiredis would take memory before they are there."""


class ProtocolError(Exception):
    """The stream makes no sense from here on: tell the client and hang up.

    Attributes:
        commands: The commands that came before.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.commands: list[Command] = []


class Sink(Protocol):
    """Where a long argument goes."""

    def window(self) -> memoryview:
        """Where the next bytes belong; never empty before the argument is complete."""
        ...

    def advance(self, count: int) -> bool:
        """So many bytes were put into the window; True when the argument is complete."""
        ...

    def value(self) -> object:
        """The argument, once complete."""
        ...


class MemorySink:
    """A long argument that is collected in memory."""

    __slots__ = ("_buffer", "_filled", "_view")

    def __init__(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._filled = 0

    def window(self) -> memoryview:
        """The part not filled yet."""
        return self._view[self._filled :]

    def advance(self, count: int) -> bool:
        """`count` bytes more are there."""
        self._filled += count
        return self._filled == len(self._buffer)

    def value(self) -> bytearray:
        """The bytes; the sink forgets them."""
        self._view.release()
        return self._buffer


class LargeCommand(list[Any]):
    """A command one of whose arguments came through a sink."""


class RequestParser:
    """Cuts one client's stream into commands.

    Args:
        sink: Makes the sink for an argument of so many bytes, which is at least `LARGE`; may raise ProtocolError.
        in_memory: The sinks of arguments up to this many bytes collect them in memory.
        max_request: Most bytes of one command in memory.

    Attributes:
        sink: Where the bytes to come belong, or None. While it is set, the socket is to be read into `sink.window()` and
            `filled` called; otherwise `feed`.
        trusted: False limits requests to what a client needs that has not given its password yet, and makes `feed` return one
            command at a time, for that one may be the password: when it is done, feed no bytes for the next.
    """

    __slots__ = (
        "_args",
        "_held",
        "_large",
        "_make_sink",
        "_missing",
        "_reader",
        "_tail",
        "_weight",
        "in_memory",
        "max_request",
        "sink",
        "trusted",
    )

    def __init__(
        self,
        sink: Callable[[int], Sink],
        *,
        in_memory: int = 2**20,
        max_request: int = 64 * 2**20,
        trusted: bool = True,
    ) -> None:
        self._make_sink = sink
        self._reader = hiredis.Reader(notEnoughData=self)
        self._tail = b""
        self._args: Command = []
        self._missing = 0
        self._weight = 0
        self._held = 0
        self._large = False
        self.in_memory = in_memory
        self.max_request = max_request
        self.trusted = trusted
        self.sink: Sink | None = None

    def feed(self, data: bytes) -> list[Command]:
        """The commands that are complete with `data`, in order; never one without arguments.

        Args:
            data: What came, less than `in_memory` bytes.

        Raises:
            ProtocolError: The stream makes no sense after the commands that the error carries.
        """
        commands: list[Command] = []
        start = 0
        begun = self._tail or self._missing
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if not self.trusted:
            start = self._parse(data, 0, commands, stop_after=1)
            if start < len(data):
                self._tail = data[start:]
            return commands
        if begun:
            # Finish what was begun; the rest may be a batch again.
            start = self._parse(data, 0, commands, stop_after=1)
            if self.sink is not None or self._missing or self._tail:
                return commands
        if start == len(data):
            return commands
        size = len(data)
        if data[start] == 42 and (size - start <= SMALL or data.find(b"\r\n*", start, start + SMALL) > 0):
            # Where the last command began: unless it is so long that it goes its own way.
            end = size if data[-1] == 10 else data.rfind(b"\r\n*", max(start, size - LARGE - MAX_DIGITS)) + 2
            batch = self._batch(data[start:end]) if end > 1 else None
            if batch is not None:
                commands += batch
                start = end
        if start < size:
            self._parse(data, start, commands)
        return commands

    def filled(self, count: int) -> None:
        """`count` bytes were read into the sink's window."""
        assert self.sink is not None
        if self.sink.advance(count):
            self._accept_sink()

    def forget(self) -> None:
        """The connection has gone: what was begun takes no memory any more."""
        self._args, self._tail, self.sink = [], b"", None

    @property
    def idle(self) -> bool:
        """Whether nothing has been begun."""
        return not (self._tail or self._missing or self.sink)

    @property
    def pending(self) -> int:
        """Memory that the beginning of a request takes whose end has not come, without what is in sinks; bytes."""
        return self._held + len(self._tail)

    # -- the fast way -------------------------------------------------------------------------------------------------

    def _batch(self, data: bytes) -> list[Command] | None:
        """The commands of `data` by hiredis, or None if it is not exactly a sequence of whole commands."""
        if _HUGE in data.translate(_SHAPE):
            return None
        reader = self._reader
        commands: list[Any] = []
        try:
            reader.feed(data)
            gets = reader.gets
            while (command := gets()) is not self:
                commands.append(command)
            reader.feed(_MARK)
            if gets() == [b"M"] and {*map(type, chain.from_iterable(commands))} == _ONLY_BYTES:
                return commands if all(commands) else [command for command in commands if command]
        except (hiredis.ProtocolError, TypeError, UnicodeError):
            pass
        self._reader = hiredis.Reader(notEnoughData=self)
        return None

    # -- the exact way ------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes, position: int, commands: list[Command], stop_after: int = MAX_BULK) -> int:
        """Parse `data` from `position` on; returns where it stopped. What is incomplete is kept."""
        size = len(data)
        try:
            while position < size and len(commands) < stop_after:
                following = self._argument(data, position) if self._missing else self._begin(data, position, commands)
                if following < 0:
                    self._tail = data[position:]
                    return size
                position = following
                if self._args and not self._missing:
                    args = self._args
                    commands.append(LargeCommand(args) if self._large else args)
                    self._args = []
                    self._held = 0
                    self._large = False
        except ProtocolError as error:
            error.commands = commands
            raise
        return position

    def _begin(self, data: bytes, position: int, commands: list[Command]) -> int:
        """Read the head of a command, or an inline one; returns what follows, or -1 when it is incomplete."""
        end = data.find(b"\n", position)
        if end < 0:
            if len(data) - position > MAX_INLINE:
                what = "mbulk count string" if data[position] == 42 else "inline request"
                raise ProtocolError(f"too big {what}")
            return -1
        if end - position > MAX_INLINE:
            raise ProtocolError("too big inline request")
        if data[position] != 42:
            line = data[position:end]
            args = split_inline(line)
            if args:
                commands.append(args)
            return end + 1
        count = self._number(data[position + 1 : end], "invalid multibulk length")
        if count > MAX_ARGUMENTS:
            raise ProtocolError("invalid multibulk length")
        if count > MAX_UNAUTHENTICATED_ARGUMENTS and not self.trusted:
            raise ProtocolError("unauthenticated multibulk length")
        self._missing = max(0, count)
        self._weight = 0
        return end + 1

    def _argument(self, data: bytes, position: int) -> int:
        """Read one argument; returns what follows, or -1 when it is incomplete."""
        if self.sink is not None:
            return self._pour(data, position)
        if self._args and self._args[-1] is _AWAITS_END:
            # A long one came by its sink: only its CRLF is left.
            if len(data) - position < 2:
                return -1
            self._args.pop()
            self._missing -= 1
            return position + 2
        if data[position] != 36:
            raise ProtocolError(f"expected '$', got '{chr(data[position])}'")
        end = data.find(b"\n", position, position + MAX_INLINE)
        if end < 0:
            if len(data) - position >= MAX_INLINE:
                raise ProtocolError("too big bulk count string")
            return -1
        size = self._number(data[position + 1 : end], "invalid bulk length")
        if not 0 <= size <= MAX_BULK:
            raise ProtocolError("invalid bulk length")
        if size > MAX_UNAUTHENTICATED_BULK and not self.trusted:
            raise ProtocolError("unauthenticated bulk length")
        start = end + 1
        if size >= LARGE and len(data) - start < size + 2:
            self._weigh(size if size <= self.in_memory else 0)
            self._large = True
            self.sink = self._make_sink(size)
            return self._pour(data, start) if start < len(data) else start
        if len(data) - start < size + 2:
            return -1
        self._weigh(size)
        self._held += size + ARGUMENT_OVERHEAD
        self._args.append(data[start : start + size])
        self._missing -= 1
        return start + size + 2

    def _weigh(self, size: int) -> None:
        self._weight += size + ARGUMENT_OVERHEAD
        if self._weight > self.max_request:
            raise ProtocolError(f"a request of more than {self.max_request} bytes")

    def _pour(self, data: bytes, position: int) -> int:
        """Put what is there of a long argument into its sink."""
        assert self.sink is not None
        view = memoryview(data)
        while position < len(data):
            window = self.sink.window()
            count = min(len(window), len(data) - position)
            window[:count] = view[position : position + count]
            position += count
            if self.sink.advance(count):
                self._accept_sink()
                break
        return position

    def _accept_sink(self) -> None:
        assert self.sink is not None
        self._args.append(self.sink.value())
        self._args.append(_AWAITS_END)
        self.sink = None

    @staticmethod
    def _number(raw: bytes, error: str) -> int:
        digits = raw.removesuffix(b"\r")
        if len(digits) > MAX_DIGITS or not digits.removeprefix(b"-").isdigit():
            raise ProtocolError(error)
        return int(digits)


_AWAITS_END = object()


def split_inline(line: bytes) -> list[bytes]:
    """The words of an inline command: separated by spaces; quotes and escapes as in Redis.

    Raises:
        ProtocolError: A quote is not closed, or something follows it directly.
    """
    line = line.removesuffix(b"\r")
    if not (b'"' in line or b"'" in line):
        return line.split()
    words: list[bytes] = []
    position, size = 0, len(line)
    while True:
        while position < size and line[position : position + 1].isspace():
            position += 1
        if position >= size:
            return words
        word = bytearray()
        while position < size and not line[position : position + 1].isspace():
            if line[position] in b"\"'":
                position = _quoted(line, position, word)
                if position < size and not line[position : position + 1].isspace():
                    raise ProtocolError("unbalanced quotes in request")
            else:
                word.append(line[position])
                position += 1
        words.append(bytes(word))


_ESCAPES = {ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("b"): 8, ord("a"): 7}


def _quoted(line: bytes, position: int, word: bytearray) -> int:
    """Read the quoted part that begins at `position` into `word`; returns what follows its closing quote."""
    quote = line[position]
    position += 1
    while position < len(line):
        byte = line[position]
        if byte == quote:
            return position + 1
        if byte == 92 and position + 1 < len(line):
            escaped = line[position + 1]
            if quote == 39:
                if escaped == 39:
                    byte, position = 39, position + 1
            else:
                code = line[position + 2 : position + 4]
                if escaped == ord("x") and len(code) == 2 and all(c in b"0123456789abcdefABCDEF" for c in code):
                    byte, position = int(code, 16), position + 3
                else:
                    byte, position = _ESCAPES.get(escaped, escaped), position + 1
        word.append(byte)
        position += 1
    raise ProtocolError("unbalanced quotes in request")
