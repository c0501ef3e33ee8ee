"""RESP, the Redis protocol: replies, in versions 2 and 3."""

from __future__ import annotations

from itertools import chain

OK = b"+OK\r\n"
CRLF = b"\r\n"
NIL = {2: b"$-1\r\n", 3: b"_\r\n"}
"""By version of the protocol."""


def integer(value: int) -> bytes:
    """A number."""
    return b":%d\r\n" % value


def bulk(value: bytes | bytearray | memoryview) -> bytes:
    """A string of bytes."""
    return b"".join((b"$%d\r\n" % len(value), value, CRLF))


def array(items: list[bytes]) -> bytes:
    """A list of replies that are encoded already."""
    return b"*%d\r\n%b" % (len(items), b"".join(items))


def mapping(items: list[tuple[bytes, bytes]], version: int) -> bytes:
    """A map of encoded replies: a flat list in version 2."""
    head = b"%%%d\r\n" % len(items) if version == 3 else b"*%d\r\n" % (2 * len(items))
    return head + b"".join(chain.from_iterable(items))


def error(message: str) -> bytes:
    """An error; `message` begins with its prefix, as in "ERR ..."."""
    line = message.replace("\r", " ").replace("\n", " ")
    return b"-%b\r\n" % line.encode(errors="surrogateescape")


def text(lines: list[str], version: int, end: str = "\n") -> bytes:
    """Lines to read: in version 3 said to be text."""
    raw = "".join(f"{line}{end}" for line in lines).encode(errors="replace")
    return b"=%d\r\ntxt:%b\r\n" % (len(raw) + 4, raw) if version == 3 else bulk(raw)
