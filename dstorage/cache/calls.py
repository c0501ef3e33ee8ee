"""A call of a function as a key: its name and its arguments.

Arguments that are keys themselves stay readable: ``(name, first, second)``. Others, and long ones, go into a digest: ``(name, (digest,))``.
Two calls have one key exactly if their arguments are the same, however they were passed and whatever was left to its default.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import inspect
import pathlib
import struct
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dstorage.cache.keys import MAX_INT_BYTES, Key
from dstorage.errors import InvalidArgumentError

READABLE_LENGTH = 256
"""Characters and bytes of arguments; longer ones become a digest."""
MAX_DEPTH = 32

_BY_TEXT = (
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    decimal.Decimal,
    fractions.Fraction,
    pathlib.PurePath,
    uuid.UUID,
    range,
)
"""Types of values whose `repr` says all there is."""

_READABLE = frozenset({str, bytes, int})


class CallKey:
    """Makes keys of the calls of one function.

    Args:
        function: The function.
        name: First element of the keys; by default its module and qualified name.
        typed: Tell arguments apart that are equal but of different types.
        ignore: Numbers and names of parameters that do not matter, or one of them.

    Raises:
        InvalidArgumentError: There is no such parameter to ignore, or the function has no name or no signature.
    """

    def __init__(
        self, function: Callable[..., Any], name: str | None, *, typed: bool, ignore: int | str | Iterable[int | str]
    ) -> None:
        try:
            self.name = name if name is not None else f"{function.__module__}.{function.__qualname__}"
            self._signature = inspect.signature(function)
        except (AttributeError, ValueError) as error:
            raise InvalidArgumentError(
                f"{function!r} has no name (give name=) or does not tell its parameters (wrap it in a function)"
            ) from error
        self._typed = typed
        parameters = list(self._signature.parameters)
        self._ignore = set()
        for which in (ignore,) if isinstance(ignore, int | str) else ignore:
            known = which in parameters if isinstance(which, str) else 0 <= which < len(parameters)
            if not known:
                raise InvalidArgumentError(f"ignore={which!r}: {self.name} has the parameters {', '.join(parameters)}")
            self._ignore.add(which if isinstance(which, str) else parameters[which])
        kinds = {parameter.kind for parameter in self._signature.parameters.values()}
        plain = kinds <= {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        self._plain = len(parameters) if plain and not self._ignore else -1

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        """The key of a call.

        Raises:
            TypeError: The function does not take these arguments.
            InvalidArgumentError: An argument cannot be told from others by its contents.
        """
        values: Sequence[Any] = args
        if kwargs or len(args) != self._plain:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = [value for name, value in bound.arguments.items() if name not in self._ignore]
        if not self._typed:
            values = [_plain(value) for value in values]
            key = (self.name, *values)
            if all(map(_is_readable, values)) and sum(map(_length, values)) <= READABLE_LENGTH:
                return key
        digest = hashlib.blake2b(digest_size=16)
        for value in values:
            _feed(digest.update, value, self._typed, 0)
        return (self.name, (digest.digest(),))


def _is_readable(value: Any) -> bool:
    return type(value) in _READABLE and (type(value) is not int or _length(value) <= MAX_INT_BYTES)


def _length(value: str | bytes | int) -> int:
    return (value.bit_length() + 7) // 8 if isinstance(value, int) else len(value)


def _plain(value: Any) -> Any:
    """Equal numbers are one, as for a dict: the integer, where there is one."""
    if type(value) is bool or (type(value) is float and value.is_integer()):
        return int(value)
    return value


def _feed(update: Callable[[bytes], object], value: Any, typed: bool, depth: int) -> None:
    """Feed what tells `value` from all others; every item says how long it is, so that none runs into the next."""

    def item(kind: str, content: bytes = b"") -> None:
        update(b"%b:%d:%b" % (kind.encode(), len(content), content))

    if depth > MAX_DEPTH:
        raise InvalidArgumentError(
            f"an argument of more than {MAX_DEPTH} levels: memoize with ignore=, or pass a key of it"
        )
    if not typed:
        value = _plain(value)
    kind = type(value)
    if value is None or kind is bool:
        item(f"is {value}")
    elif kind is int:
        item("int", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    elif kind is float:
        item("float", struct.pack(">d", value))
    elif kind is complex:
        item("complex", struct.pack(">dd", value.real, value.imag))
    elif kind is str:
        item("str", value.encode("utf-8", "surrogatepass"))
    elif kind in (bytes, bytearray, memoryview):
        item("bytes", bytes(value))
    elif kind in (tuple, list):
        item(kind.__name__, b"%d" % len(value))
        for element in value:
            _feed(update, element, typed, depth + 1)
    elif kind in (set, frozenset, dict):
        parts = []
        for element in value.items() if kind is dict else value:
            digest = hashlib.blake2b(digest_size=16)
            _feed(digest.update, element, typed, depth + 1)
            parts.append(digest.digest())
        item("dict" if kind is dict else "set", b"".join(sorted(parts)))
    elif isinstance(value, enum.Enum):
        item("enum", f"{kind.__module__}.{kind.__qualname__}.{value.name}".encode())
    elif isinstance(value, _BY_TEXT):
        item(kind.__name__, repr(value).encode())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        item("dataclass", f"{kind.__module__}.{kind.__qualname__}".encode())
        _feed(update, [getattr(value, field.name) for field in dataclasses.fields(value)], typed, depth + 1)
    else:
        _feed_array(item, value)


def _feed_array(item: Callable[[str, bytes], None], value: Any) -> None:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic) and not value.dtype.hasobject:
        array = numpy.ascontiguousarray(value)
        item("array", f"{numpy.lib.format.dtype_to_descr(array.dtype)} {numpy.shape(value)}".encode())
        item("elements", array.tobytes())
        return
    raise InvalidArgumentError(
        f"an argument of type {type(value).__name__} cannot be told from others by its contents: name it in ignore=, or pass "
        "something that can (numbers, text, bytes, arrays, dates, paths, dataclasses, and collections of them)"
    )
