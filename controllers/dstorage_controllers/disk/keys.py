"""The encryption key: from a file or the environment, never from settings, never shown in a message."""

from __future__ import annotations

import binascii
import os
from pathlib import Path

from dstorage.errors import ControllerError

KEY_BYTES = 32
_MAX_FILE = 1024


def load_key(name: str, file: Path | None, variable: str | None) -> bytes | None:
    """The key to encrypt with, or None when neither source is named.

    Args:
        name: Of the controller, for messages.
        file: Holds `KEY_BYTES` bytes, or twice as many hexadecimal digits.
        variable: Environment variable with the hexadecimal digits.

    Raises:
        ControllerError: The source is missing or holds no key.
    """
    if file is not None:
        source = f"key_file {file}"
        try:
            with file.open("rb") as stream:
                raw = stream.read(_MAX_FILE)
        except OSError as error:
            raise ControllerError(f"controller {name!r} cannot read its {source}: {error}") from error
    elif variable is not None:
        source = f"environment variable {variable}"
        value = os.environ.get(variable)
        if value is None:
            raise ControllerError(f"controller {name!r} wants its key in {source}, which is not set")
        raw = value.encode(errors="surrogateescape")
    else:
        return None
    if len(raw) == KEY_BYTES:
        return raw
    try:
        key = binascii.unhexlify(raw.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ControllerError(
            f"controller {name!r}: {source} must hold {KEY_BYTES} bytes or {2 * KEY_BYTES} hexadecimal digits; make one with "
            f'python -c "import secrets; print(secrets.token_hex({KEY_BYTES}))"'
        )
    return key
