"""Keys as bytes: in the order of the keys, without ambiguity, and back.

An element begins with a byte for its type, so that integers sort before bytes, bytes before str, and str before tuples:

* int: a byte for sign and length, then the magnitude, big-endian (complemented for negative numbers);
* bytes, and str as UTF-8: the bytes, each zero as ``00 ff``, then a ``00``;
* tuple: its elements, then a ``00``.

Every element says where it ends, so encodings can stand one behind the other. The idea is that of the tuple layer of
FoundationDB; the bytes are our own.
"""

from __future__ import annotations

from dstorage.errors import InvalidArgumentError

Key = str | bytes | int | tuple["Key", ...]
"""What a key may be: str, bytes, int, or a tuple of keys. True and False are 1 and 0, as in a dict."""

MAX_KEY_BYTES = 4096
"""Longest encoding. Far over what a key is in practice (a URL), and a few dozen names in the catalog at most."""
MAX_DEPTH = 16
"""Tuples in tuples."""
MAX_INT_BYTES = 100

_INT, _BYTES, _STR, _TUPLE = 0x10, 0x20, 0x30, 0x40
_END = b"\x00"
_ZERO = 0x80
"""Sign and length of the integer 0; plus or minus the number of bytes of the others."""


def encode_key(key: Key) -> bytes:
    """The bytes that stand for `key`.

    Raises:
        InvalidArgumentError: No such type of key, or too long.
    """
    encoded = _encode(key, 0)
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidArgumentError(
            f"key {_shown(key)} takes {len(encoded)} bytes: at most {MAX_KEY_BYTES}; use a digest of it as the key"
        )
    return encoded


def encode_prefix(key: Key) -> bytes:
    """What the encodings of all keys begin with that begin with `key`: strings or bytes with this beginning, tuples with
    these first elements.

    Raises:
        InvalidArgumentError: An int, which is the beginning of nothing; or as for `encode_key`.
    """
    if isinstance(key, int):
        raise InvalidArgumentError(f"prefix {key!r}: give str, bytes or a tuple; for numbers give start and stop")
    return encode_key(key)[:-1]


def decode_key(data: bytes | memoryview, start: int = 0) -> tuple[Key, int]:
    """The key whose encoding begins at `start`, and where it ends.

    Raises:
        ValueError: No encoding of a key, or not the one that `encode_key` makes of it.
    """
    raw = bytes(data)
    key, end = _decode(raw, start, 0)
    if end - start > MAX_KEY_BYTES:
        raise ValueError("the key is too long")
    return key, end


def exact(key: Key) -> Key:
    """`key` made of the plain types only, so that what a subclass does to equality has no say; hashable.

    Raises:
        InvalidArgumentError: No such type of key.
    """
    kind = type(key)
    if kind is str or kind is bytes or kind is int:
        return key
    return _exact(key, 0)


def _exact(key: object, depth: int) -> Key:
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, int):
        return int.__int__(key)
    if isinstance(key, bytes):
        return bytes(memoryview(key))
    if isinstance(key, tuple) and depth < MAX_DEPTH:
        return tuple(_exact(element, depth + 1) for element in key)
    raise _refusal(key, depth)


def _encode(key: object, depth: int) -> bytes:
    if isinstance(key, str):
        # Python's file names and the like may hold lone surrogates.
        return b"\x30%b\x00" % key.encode("utf-8", "surrogatepass").replace(b"\x00", b"\x00\xff")
    if isinstance(key, int):
        return _encode_int(key)
    if isinstance(key, bytes):
        return b"\x20%b\x00" % key.replace(b"\x00", b"\x00\xff")
    if isinstance(key, tuple) and depth < MAX_DEPTH:
        return b"\x40%b\x00" % b"".join([_encode(element, depth + 1) for element in key])
    raise _refusal(key, depth)


def _encode_int(number: int) -> bytes:
    length = (number.bit_length() + 7) // 8
    if length > MAX_INT_BYTES:
        raise InvalidArgumentError(f"an integer of {length} bytes as a key: at most {MAX_INT_BYTES}")
    if number >= 0:
        return bytes((_INT, _ZERO + length)) + number.to_bytes(length, "big")
    return bytes((_INT, _ZERO - length)) + ((1 << 8 * length) - 1 + number).to_bytes(length, "big")


def _decode(raw: bytes, start: int, depth: int) -> tuple[Key, int]:
    if start >= len(raw):
        raise ValueError("the key is cut off")
    kind = raw[start]
    if kind == _INT:
        return _decode_int(raw, start + 1)
    if kind in (_BYTES, _STR):
        content, end = _decode_bytes(raw, start + 1)
        return (content if kind == _BYTES else content.decode("utf-8", "surrogatepass")), end
    if kind == _TUPLE and depth < MAX_DEPTH:
        elements = []
        position = start + 1
        while raw[position : position + 1] != _END:
            element, position = _decode(raw, position, depth + 1)
            elements.append(element)
        return tuple(elements), position + 1
    raise ValueError(f"no key begins with {kind:#x} here")


def _decode_int(raw: bytes, start: int) -> tuple[int, int]:
    if start >= len(raw):
        raise ValueError("the key is cut off")
    length = abs(raw[start] - _ZERO)
    end = start + 1 + length
    if length > MAX_INT_BYTES or end > len(raw):
        raise ValueError("the number in a key is cut off or too long")
    number = int.from_bytes(raw[start + 1 : end], "big")
    if raw[start] < _ZERO:
        number -= (1 << 8 * length) - 1
    if (number.bit_length() + 7) // 8 != length or (number < 0) != (raw[start] < _ZERO):
        raise ValueError("the number in a key is not written in the shortest way")
    return number, end


def _decode_bytes(raw: bytes, start: int) -> tuple[bytes, int]:
    position = start
    while True:
        zero = raw.find(_END, position)
        if zero < 0:
            raise ValueError("the key is cut off")
        if raw[zero + 1 : zero + 2] != b"\xff":
            return raw[start:zero].replace(b"\x00\xff", b"\x00"), zero + 1
        position = zero + 2


def _refusal(key: object, depth: int) -> InvalidArgumentError:
    if depth >= MAX_DEPTH:
        return InvalidArgumentError(f"a key of tuples within tuples, more than {MAX_DEPTH} deep: make it flatter")
    return InvalidArgumentError(
        f"key {_shown(key)} is a {type(key).__name__}: keys are str, bytes, int or tuples of them"
    )


def _shown(key: object) -> str:
    shown = repr(key)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
