"""Encryption keys: from a file or the environment, never from settings, never shown in a message."""

from __future__ import annotations

import binascii
import os
import shlex
import string
import warnings
from pathlib import Path
from typing import BinaryIO

from dstorage.errors import ControllerError

KEY_BYTES = 32
MAX_KEYS = 16
_MAX_FILE = 4096
_HEX_DIGITS = frozenset(string.hexdigits.encode())
_HOW_TO_MAKE_ONE = f'make a key with python -c "import secrets; print(secrets.token_hex({KEY_BYTES}))"'


def load_key(name: str, file: Path | None, variable: str | None) -> bytes | None:
    """The key to encrypt with, or None when neither source is named.

    Args:
        name: Of the controller, for messages.
        file: Holds `KEY_BYTES` bytes, or twice as many hexadecimal digits.
        variable: Environment variable with the hexadecimal digits.

    Raises:
        ControllerError: The source is missing or holds no key, or more than one.
    """
    keys = load_keys(name, file, variable)
    if len(keys) > 1:
        raise ControllerError(f"controller {name!r}: {_source(file, variable)} must hold one key, not {len(keys)}")
    return keys[0] if keys else None


def load_keys(name: str, file: Path | None, variable: str | None) -> list[bytes]:
    """The keys of a controller whose keys can change: the first encrypts, all decrypt. Empty when no source is named.

    Warns of a file of this user that others may read or write, as ssh does.

    Args:
        name: Of the controller, for messages.
        file: Holds `KEY_BYTES` bytes, or up to `MAX_KEYS` keys of twice as many hexadecimal digits, one a line.
        variable: Environment variable with such keys, separated by blanks.

    Raises:
        ControllerError: The source is missing or holds something else.
    """
    if file is not None:
        try:
            with file.open("rb") as stream:
                _warn_if_exposed(name, file, stream)
                raw = stream.read(_MAX_FILE)
        except OSError as error:
            raise ControllerError(f"controller {name!r} cannot read its {_source(file, variable)}: {error}") from error
        if len(raw) == KEY_BYTES:
            digits = raw.strip()
            if _HEX_DIGITS.issuperset(digits):
                # No random bytes look like that.
                raise ControllerError(
                    f"controller {name!r}: {_source(file, variable)} holds {len(digits)} hexadecimal digits, and a key has "
                    f"{2 * KEY_BYTES}; {_HOW_TO_MAKE_ONE}"
                )
            return [raw]
    elif variable is not None:
        value = os.environ.get(variable)
        if value is None:
            raise ControllerError(f"controller {name!r} wants its key in {_source(file, variable)}, which is not set")
        raw = value.encode(errors="surrogateescape")
    else:
        return []
    try:
        keys = [binascii.unhexlify(word) for word in raw.split()]
    except ValueError:
        keys = []
    if not 1 <= len(keys) <= MAX_KEYS or any(len(key) != KEY_BYTES for key in keys):
        raise ControllerError(
            f"controller {name!r}: {_source(file, variable)} must hold {KEY_BYTES} bytes or {2 * KEY_BYTES} hexadecimal digits; "
            f"{_HOW_TO_MAKE_ONE}"
        )
    return keys


def _warn_if_exposed(name: str, file: Path, stream: BinaryIO) -> None:
    # Of a file that somebody else provides, group and mode are that one's to know.
    if os.name == "posix":
        found = os.fstat(stream.fileno())
        if found.st_uid == os.geteuid() and found.st_mode & 0o077:
            warnings.warn(
                f"controller {name!r}: others than you may use its {_source(file, None)} (mode {found.st_mode & 0o777:03o}); "
                f"keep it to yourself: chmod 600 {shlex.quote(str(file))}",
                RuntimeWarning,
                stacklevel=2,
            )


def _source(file: Path | None, variable: str | None) -> str:
    return f"key_file {file}" if file is not None else f"environment variable {variable}"
