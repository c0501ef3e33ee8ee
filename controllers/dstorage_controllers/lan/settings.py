"""What a LAN controller can be told, checked: settings come from the catalog and count as hostile.

Secrets are never settings: a password comes from a file or the environment at `open`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from dstorage.controller import Settings
from dstorage.errors import ControllerError, InvalidArgumentError
from dstorage_controllers.lan.layout import MAX_PIECE_BYTES, MIN_PIECE_BYTES
from dstorage_controllers.settings import CAPACITY, RANK, SWITCH, TEXT, TEXT_OR_NONE, Setting, check, shown

DEFAULT_PORT = 6379
MAX_PASSWORD_BYTES = 64 * 2**10

_SETTINGS = {
    "url": TEXT,
    "cluster": SWITCH,
    "username": TEXT_OR_NONE,
    "password_file": TEXT_OR_NONE,
    "password_env": TEXT_OR_NONE,
    "ca_file": TEXT_OR_NONE,
    "cert_file": TEXT_OR_NONE,
    "key_file": TEXT_OR_NONE,
    "capacity": CAPACITY,
    "rank": RANK,
    "piece_bytes": Setting((int,), MIN_PIECE_BYTES, MAX_PIECE_BYTES, power_of_two=True),
    "connections": Setting((int,), 1, 1024),
    "timeout": Setting((int, float), 0.001, 3600),
    "replicas": Setting((int,), 0, 100),
}


class Address(NamedTuple):
    """Where a server listens.

    Attributes:
        hosts: (host, port) pairs, more than one only for a Cluster; empty for a unix socket.
        path: The unix socket, or None.
        tls: Whether to speak TLS.
        database: Number of the database.
        username: ACL user in the URL, or None.
    """

    hosts: tuple[tuple[str, int], ...]
    path: str | None
    tls: bool
    database: int
    username: str | None


def check_settings(name: str, settings: Settings) -> None:
    """Check names, types, ranges and what excludes each other.

    Args:
        name: Of the controller, for messages.
        settings: Keyword arguments of `LanController`.

    Raises:
        InvalidArgumentError: Something is wrong; the message says what is allowed.
    """
    owner = f"LAN controller {name!r}"

    def wrong(what: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{owner}: {what}")

    if "url" not in settings:
        raise wrong("url is missing: where is the server?")
    check(owner, _SETTINGS, settings)
    if settings.get("password_file") is not None and settings.get("password_env") is not None:
        raise wrong("give password_file or password_env, not both")
    try:
        address = parse_url(str(settings["url"]))
    except ValueError as error:
        raise wrong(str(error)) from error
    if settings.get("cluster"):
        if address.path is not None:
            raise wrong("the nodes of a Cluster are reached by host and port, not through a unix socket")
        if address.database:
            raise wrong("a Cluster has only database 0")
    elif len(address.hosts) > 1:
        raise wrong("several hosts are given; pass cluster=True if they are the nodes of one Cluster")
    if not address.tls and any(settings.get(key) for key in ("ca_file", "cert_file", "key_file")):
        raise wrong("certificates are given but the URL is not rediss://")
    if (settings.get("cert_file") is None) != (settings.get("key_file") is None):
        raise wrong("cert_file and key_file go together")
    if address.username is not None and settings.get("username") is not None:
        raise wrong("the user is named in the URL and in username; give one")


def parse_url(url: str) -> Address:
    """Take ``redis://[user@]host[:port][,host[:port]...][/database]``, ``rediss://...`` or ``unix:///path`` apart.

    Raises:
        ValueError: It is none of these, or holds a password.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ValueError(f"the URL {shown(url)} has parameters; pass them as arguments")
    if parts.scheme == "unix":
        if parts.netloc or not parts.path:
            raise ValueError(f"a unix socket is given as unix:///path, not {shown(url)}")
        return Address((), unquote(parts.path), False, 0, None)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError(f"the URL must begin with redis://, rediss:// or unix://, not {shown(url)}")
    user, _, places = parts.netloc.rpartition("@")
    if ":" in user:
        raise ValueError(
            "the URL holds a password, which would be kept in the catalog; use password_file or password_env"
        )
    hosts = []
    for place in places.split(","):
        one = urlsplit(f"//{place}")
        if not one.hostname:
            raise ValueError(f"the URL {shown(url)} names no host")
        try:
            port = one.port
        except ValueError:
            # Its own message repeats what may be half a password, cut off by a slash in it.
            raise ValueError(f"the URL {shown(url)} names a port that is none: 0 to 65535") from None
        hosts.append((one.hostname, DEFAULT_PORT if port is None else port))
    database = parts.path.strip("/") or "0"
    if not (database.isascii() and database.isdigit() and len(database) < 10):
        raise ValueError(f"the URL {shown(url)} ends with what is no number of a database")
    return Address(tuple(hosts), None, parts.scheme == "rediss", int(database), unquote(user) or None)


def load_password(name: str, path: str | None, variable: str | None) -> str | None:
    """The password, or None if none is configured.

    Raises:
        ControllerError: The file or variable cannot be read or is empty.
    """
    if path is not None:
        try:
            with Path(path).open("rb") as file:
                password = file.read(MAX_PASSWORD_BYTES).decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ControllerError(f"controller {name!r} cannot read its password from {path}: {error}") from error
    elif variable is not None:
        password = os.environ.get(variable, "")
    else:
        return None
    if not password:
        raise ControllerError(f"controller {name!r} needs its password in {path or f'the variable {variable}'}")
    return password
