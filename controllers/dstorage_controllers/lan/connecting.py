"""From checked settings to a `Link`: plain TCP, TLS or unix socket, one server or a Cluster."""

from __future__ import annotations

from functools import partial
from typing import Any

from redis._parsers import _AsyncHiredisParser
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse

from dstorage.controller import Settings
from dstorage_controllers.lan.cluster import ClusterLink, Node
from dstorage_controllers.lan.layout import MAX_PIECE_BYTES
from dstorage_controllers.lan.link import Link, SingleLink
from dstorage_controllers.lan.settings import load_password, parse_url

READ_BYTES = 2**20
"""Asked of a socket at a time; with redis-py's own 64 KiB a chunk of that size takes two turns of the loop."""
MAX_REPLY_BYTES = MAX_PIECE_BYTES + 2**20
"""Larger than any reply that was asked for."""


class _Parser(_AsyncHiredisParser):
    """Ends a connection whose other end sends without end, instead of collecting it all."""

    async def read_from_socket(self) -> bool:
        """Read some more of a reply that is not whole yet."""
        if self._reader is not None and self._reader.len() > MAX_REPLY_BYTES:
            raise InvalidResponse(f"a reply is longer than {MAX_REPLY_BYTES} bytes")
        return bool(await super().read_from_socket())  # type: ignore[no-untyped-call]  # redis-py has none there


class _Abrupt(AbstractConnection):
    """Drops what is not sent yet when it is given up, instead of sending it some time later: the caller's memory is then his again."""

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Close at once."""
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*args, **kwargs)


class _Tcp(_Abrupt, Connection):
    pass


class _Tls(_Abrupt, SSLConnection):
    pass


class _Unix(_Abrupt, UnixDomainSocketConnection):
    pass


def connect(name: str, settings: Settings) -> Link:
    """A link for settings that `check_settings` has passed; nothing is sent yet.

    Raises:
        ControllerError: The password cannot be read.
    """
    chosen: dict[str, Any] = dict(settings)
    address = parse_url(chosen["url"])
    timeout = float(chosen["timeout"])
    common: dict[str, Any] = {
        "username": address.username or chosen["username"],
        "password": load_password(name, chosen["password_file"], chosen["password_env"]),
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        "socket_read_size": READ_BYTES,
        "retry": Retry(NoBackoff(), 0),
        "parser_class": _Parser,
        "protocol": 2,
        "driver_info": None,
    }
    if address.path is not None:
        return SingleLink(partial(_Unix, path=address.path, **common), timeout=timeout)
    tls: dict[str, Any] = {}
    if address.tls:
        tls = {
            "ssl_ca_certs": chosen["ca_file"],
            "ssl_certfile": chosen["cert_file"],
            "ssl_keyfile": chosen["key_file"],
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
        }
    kind = _Tls if address.tls else _Tcp

    def one(node: Node) -> SingleLink:
        host, port = node
        make = partial(kind, host=host, port=port, db=address.database, **common, **tls)
        return SingleLink(make, timeout=timeout)

    return ClusterLink(address.hosts, one, timeout=timeout) if chosen["cluster"] else one(address.hosts[0])
