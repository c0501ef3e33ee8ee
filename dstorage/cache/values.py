"""Values as bytes and back, without pickle.

| kind | payload |
|---|---|
| BYTES | as it is |
| STR | UTF-8 |
| INT | two's complement, little-endian, as many bytes as it takes |
| FLOAT, COMPLEX | one or two IEEE doubles, little-endian |
| BOOL, NONE | one byte, none |
| ARRAY, SCALAR | numpy's own .npy format (3.0): a header with dtype, order and shape, padded to 64 bytes, then the elements |
| OBJECT | what a serializer made, which the program named |
| ABSENT | a remembered miss: why there is no value, UTF-8 |

Bytes and arrays come back as views on the payload, not as copies. Only exact types count: an instance of a subclass (an enum, say)
would come back as something else, so it is for a serializer. Payloads are checked before anything is made of them; an array of
objects, which numpy would have to unpickle, is neither written nor read.
"""

from __future__ import annotations

import ast
import enum
import functools
import json
import math
import mmap
import pickle
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dstorage.controller import Buffer
from dstorage.errors import CorruptData, InvalidArgumentError, UsageError

if TYPE_CHECKING:
    import numpy as np

MAX_HEADER_BYTES = 4096
"""Of an array; Python's parser is fit for short texts from strangers only."""
_NPY = b"\x93NUMPY\x03\x00"
"""Version 3.0, which is the one for names of fields in any language; then come 4 bytes of length and the text."""
MAX_DIMENSIONS = 64
MAX_SERIALIZER_NAME = 64


class Kind(enum.IntEnum):
    """How a value is kept."""

    BYTES = 1
    STR = 2
    INT = 3
    FLOAT = 4
    COMPLEX = 5
    BOOL = 6
    NONE = 7
    ARRAY = 8
    SCALAR = 9
    OBJECT = 10
    ABSENT = 11


ABSENT: Final = Kind.ABSENT
ARRAY: Final = Kind.ARRAY
BYTES: Final = Kind.BYTES
"""What a hit asks for, by a name of its own: until Python 3.12 an enum takes longer than a call to find its member."""


@dataclass(frozen=True, slots=True)
class Serializer:
    """How values are kept for which the cache has no kind of its own. Works in the threads and on the loops that call the cache.

    Attributes:
        name: Kept with each value; who reads it must have named the same one. 1 to 64 characters.
        dumps: Makes bytes of a value.
        loads: Makes a value of such bytes; of bytes that others can write it must not run code.
    """

    name: str
    dumps: Callable[[Any], Buffer]
    loads: Callable[[bytes], Any]

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_SERIALIZER_NAME:
            raise InvalidArgumentError(f"serializer name {self.name!r}: give 1 to {MAX_SERIALIZER_NAME} bytes of UTF-8")


BUILT_IN = {
    "json": Serializer("json", lambda value: json.dumps(value, separators=(",", ":")).encode(), json.loads),
    "pickle": Serializer(
        "pickle",
        lambda value: pickle.dumps(value, pickle.HIGHEST_PROTOCOL),
        pickle.loads,  # the program asked for it by name
    ),
}
"""Serializers that a name is enough for."""


class Encoded(NamedTuple):
    """A value as it is kept.

    Attributes:
        kind: How.
        payload: The bytes.
        serializer: Name of the serializer, or "".
        own: The payload was made for the cache, and is nobody else's.
    """

    kind: Kind
    payload: Buffer
    serializer: str = ""
    own: bool = True

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        payload = self.payload
        return len(payload) if payload.__class__ is bytes else memoryview(payload).nbytes


def absence(reason: str) -> Encoded:
    """A remembered miss, as it is kept."""
    return Encoded(Kind.ABSENT, reason.encode("utf-8", "surrogatepass"))


class Codec:
    """Makes payloads of values, and values of payloads.

    Args:
        serializers: The first is used for what no kind fits; all of them are read. Names of built-in ones ("json", "pickle"),
            or `Serializer`.

    Raises:
        InvalidArgumentError: No serializer of that name is built in, or two have one name.
    """

    def __init__(self, serializers: str | Serializer | Sequence[str | Serializer] | None = None) -> None:
        given = [serializers] if isinstance(serializers, str | Serializer) else list(serializers or ())
        self._serializers: dict[str, Serializer] = {}
        for one in given:
            if isinstance(one, str) and one not in BUILT_IN:
                raise InvalidArgumentError(
                    f"serializer {one!r}: there are {', '.join(map(repr, BUILT_IN))}; or give a dstorage.Serializer"
                )
            serializer = BUILT_IN[one] if isinstance(one, str) else one
            if serializer.name in self._serializers:
                raise InvalidArgumentError(f"serializer {serializer.name!r} is given twice")
            self._serializers[serializer.name] = serializer
        self._first = next(iter(self._serializers.values()), None)

    def encode(self, value: Any) -> Encoded:
        """The payload of `value`; where it is a view, on memory that the caller must not change meanwhile.

        Raises:
            InvalidArgumentError: There is no kind for it, and no serializer was named.
        """
        simple = _SIMPLE.get(type(value))
        if simple is not None:
            return simple(value)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if type(value) is numpy.ndarray and not value.dtype.hasobject:
                return Encoded(Kind.ARRAY, _array_payload(value, numpy))
            if isinstance(value, numpy.generic) and not value.dtype.hasobject:
                return Encoded(Kind.SCALAR, _array_payload(numpy.asarray(value), numpy))
        if self._first is not None:
            payload = self._first.dumps(value)
            if not isinstance(payload, Buffer):
                raise InvalidArgumentError(
                    f"serializer {self._first.name!r} made a {type(payload).__name__} of a value: it has to make bytes"
                )
            return Encoded(Kind.OBJECT, payload, self._first.name)
        what = f"a value of type {type(value).__name__}"
        if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.hasobject:
            what = "a numpy array of Python objects"
        raise InvalidArgumentError(
            f"{what} needs a serializer: open the cache with serializer='json' (text others "
            "can read), 'pickle' (only if nobody else can write the cache), or a dstorage.Serializer of your own"
        )

    def decode(self, kind: Kind, payload: bytes | bytearray, serializer: str = "") -> Any:
        """The value of `payload`.

        Raises:
            CorruptData: It is no payload of that kind.
            UsageError: Its serializer was not named, or numpy is not installed.
        """
        if kind is BYTES:
            return payload if payload.__class__ is bytes else bytes(payload)
        if kind is Kind.OBJECT:
            named = self._serializers.get(serializer)
            if named is None:
                raise UsageError(
                    f"this value was written by serializer {serializer!r}, which this cache was not opened with: name it in "
                    "serializer=... if you trust who wrote the cache, or delete the key"
                )
            return named.loads(bytes(payload))
        try:
            return _DECODERS[kind](payload)
        except (ValueError, struct.error, KeyError, SyntaxError, TypeError, OverflowError) as error:
            raise CorruptData(f"a value of kind {kind.name} makes no sense: {error}") from error


_DOUBLE = struct.Struct("<d")
_TWO_DOUBLES = struct.Struct("<dd")


def _int_payload(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


_SIMPLE: Mapping[type, Callable[[Any], Encoded]] = {
    bytes: lambda value: Encoded(Kind.BYTES, value, own=False),
    bytearray: lambda value: Encoded(Kind.BYTES, value, own=False),
    memoryview: lambda value: Encoded(Kind.BYTES, value if value.c_contiguous else bytes(value), own=False),
    mmap.mmap: lambda value: Encoded(Kind.BYTES, memoryview(value), own=False),
    str: lambda value: Encoded(Kind.STR, value.encode("utf-8", "surrogatepass")),
    int: lambda value: Encoded(Kind.INT, _int_payload(value)),
    float: lambda value: Encoded(Kind.FLOAT, _DOUBLE.pack(value)),
    complex: lambda value: Encoded(Kind.COMPLEX, _TWO_DOUBLES.pack(value.real, value.imag)),
    bool: lambda value: Encoded(Kind.BOOL, b"\x01" if value else b"\x00"),
    type(None): lambda value: Encoded(Kind.NONE, b""),
    # Of the thread that knows the value: what a serializer does takes its time, and is the program's.
    Encoded: lambda value: value,
}


def _decode_bool(payload: bytes | bytearray) -> bool:
    if payload not in (b"\x00", b"\x01"):
        raise ValueError("neither 0 nor 1")
    return payload == b"\x01"


def _decode_none(payload: bytes | bytearray) -> None:
    if payload:
        raise ValueError("None has no bytes")


def _array_payload(value: np.ndarray[Any, Any], numpy: Any) -> bytes:
    fortran = bool(value.flags.f_contiguous and not value.flags.c_contiguous)
    description = {
        "descr": numpy.lib.format.dtype_to_descr(value.dtype),
        "fortran_order": fortran,
        "shape": value.shape,
    }
    text = repr(description).encode("utf-8")
    offset = -(-(len(_NPY) + 4 + len(text) + 1) // 64) * 64
    if offset > MAX_HEADER_BYTES:
        raise InvalidArgumentError(
            f"an array whose dtype takes {len(text)} bytes to describe: at most about {MAX_HEADER_BYTES}; store its parts"
        )
    header = b"%b%b%b\n" % (
        _NPY,
        (offset - len(_NPY) - 4).to_bytes(4, "little"),
        text.ljust(offset - len(_NPY) - 5),
    )
    elements = numpy.ascontiguousarray(value.T if fortran else value).reshape(-1)
    # Seen as bytes: some dtypes (times, say) have no buffer of their own.
    return b"".join((header, elements.view(numpy.uint8) if value.size and value.itemsize else b""))


def _decode_array(payload: bytes | bytearray) -> Any:
    try:
        import numpy
    except ImportError as error:
        raise UsageError("this value is a numpy array: install numpy, e.g. `pip install dstorage[array]`") from error
    offset = len(_NPY) + 4 + int.from_bytes(payload[len(_NPY) : len(_NPY) + 4], "little")
    if not 0 < offset <= min(MAX_HEADER_BYTES, len(payload)):
        raise ValueError("the header is cut off or too long")
    dtype, shape, fortran = _array_header(bytes(payload[:offset]))
    count = math.prod(shape)
    if count * dtype.itemsize != len(payload) - offset:
        raise ValueError(f"{len(payload) - offset} bytes for shape {shape} of {dtype}")
    if not count or not dtype.itemsize:
        array = numpy.empty(shape, dtype)
        array.flags.writeable = False
        return array
    # Read-only, whatever the payload is: others see the same bytes.
    flat = numpy.frombuffer(memoryview(payload).toreadonly(), dtype, count, offset)
    return flat.reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(maxsize=256)
def _array_header(header: bytes) -> tuple[Any, tuple[int, ...], bool]:
    """dtype, shape and order; kept, because parsing costs more than all the rest of a hit."""
    import numpy

    if not header.startswith(_NPY):
        raise ValueError("not version 3.0 of the .npy format")
    try:
        description = ast.literal_eval(header[len(_NPY) + 4 :].decode("utf-8"))
        dtype = numpy.lib.format.descr_to_dtype(description["descr"])
        shape, fortran = tuple(description["shape"]), description["fortran_order"]
    except Exception as error:  # such a text can go wrong in any way
        raise ValueError(f"no description of an array: {error!r}") from error
    if dtype.hasobject:
        raise ValueError("an array of objects")
    if len(shape) > MAX_DIMENSIONS or type(fortran) is not bool or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("a shape that cannot be")
    return dtype, shape, fortran


_DECODERS: Mapping[Kind, Callable[[bytes | bytearray], Any]] = {
    Kind.STR: lambda payload: payload.decode("utf-8", "surrogatepass"),
    Kind.INT: lambda payload: int.from_bytes(payload, "little", signed=True),
    Kind.FLOAT: lambda payload: _DOUBLE.unpack(payload)[0],
    Kind.COMPLEX: lambda payload: complex(*_TWO_DOUBLES.unpack(payload)),
    Kind.BOOL: _decode_bool,
    Kind.NONE: _decode_none,
    Kind.ARRAY: _decode_array,
    Kind.SCALAR: lambda payload: _decode_array(payload)[()],
    Kind.ABSENT: lambda payload: payload.decode("utf-8", "surrogatepass"),
}
