"""`dstorage serve`: a store on the network, over the Redis protocol."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import dstorage
from dstorage.cli.running import AsJson, StorePath, print_json, run
from dstorage.errors import DStorageError, InvalidArgumentError
from dstorage.paging.budget import parse_bytes

if TYPE_CHECKING:
    from dstorage.server.server import Server

PASSWORD_VARIABLE = "DSTORAGE_PASSWORD"  # noqa: S105 - its name
MAX_PASSWORD_FILE = 4096
OTHER_FILES = 256
"""Descriptors kept for the store, beside one for each connection."""


def serve(
    store: StorePath,
    host: Annotated[list[str], typer.Option(help="Address to listen on; may be given several times.")] = ["127.0.0.1"],  # noqa: B006 - typer reads it
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 6379,
    tcp: Annotated[bool, typer.Option(help="Listen on the network at all.")] = True,
    unix: Annotated[Path | None, typer.Option(help="Listen on this unix socket too.")] = None,
    budget: Annotated[str, typer.Option(help='Memory for chunks: "512M", "25%".')] = "25%",
    password_file: Annotated[
        Path | None, typer.Option(help=f"File with the password; or set {PASSWORD_VARIABLE}.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM): TCP connections are encrypted.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM), unless it is in the same file.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Clients need a certificate from this authority.")] = None,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections at a time.")] = 1000,
    max_request: Annotated[str, typer.Option(help="Memory for one request.")] = "64M",
    max_buffers: Annotated[str, typer.Option(help="Memory for all requests that are arriving.")] = "256M",
    idle: Annotated[
        float, typer.Option(min=0, help="Let clients go that are silent for so many seconds; 0: never.")
    ] = 0,
    commit_interval: Annotated[float, typer.Option(min=0.01, help="Seconds between commits.")] = 5.0,
    json: AsJson = False,
) -> None:
    """Serve a store to Redis clients until SIGTERM or SIGINT, then commit."""
    try:
        from dstorage.server.server import Limits, Server
    except ModuleNotFoundError as error:
        raise DStorageError(f"{error.name} is not installed: pip install 'dstorage[serve]'") from error
    if not tcp and unix is None:
        raise InvalidArgumentError("--no-tcp without --unix: there is nothing to listen on")
    limits = Limits(
        connections=_connections(max_connections),
        request=parse_bytes(max_request),
        buffers=parse_bytes(max_buffers),
        idle=idle or None,
    )
    password = _password(password_file)
    tls = _tls(tls_cert, tls_key, tls_client_ca)

    async def work() -> None:
        stop = _until_told()
        async with (
            dstorage.open(store, budget=budget, create=False, commit_interval=commit_interval) as opened,
            Server(opened, password=password, limits=limits) as server,
        ):
            if tcp:
                await server.listen(host, port, tls=tls)
            if unix is not None:
                await server.listen_unix(unix)
            _announce(store, server, json)
            await stop.wait()
        if not json:
            typer.echo("committed and closed")

    run(work())


def _connections(wanted: int) -> int:
    """How many connections there can be, so that they never take the descriptors that the store needs to write."""
    try:
        import resource
    except ModuleNotFoundError:
        # No such limit there.
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + OTHER_FILES:
        most = wanted + OTHER_FILES if hard == resource.RLIM_INFINITY else min(wanted + OTHER_FILES, hard)
        if most > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted + OTHER_FILES:
            fewer = most - OTHER_FILES
            if fewer < 1:
                raise InvalidArgumentError(
                    f"this process may open {most} files only, which are too few to serve: raise `ulimit -n` to {wanted + OTHER_FILES}"
                )
            typer.echo(
                f"at most {fewer} connections, for this process may open {most} files only: raise `ulimit -n` to "
                f"{wanted + OTHER_FILES} for {wanted}",
                err=True,
            )
            return fewer
    return wanted


def _until_told() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:
            # The loop of Windows takes none; what Python runs instead may interrupt the loop anywhere.
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    return stop


def _announce(store: Path, server: Server, json: bool) -> None:
    if json:
        print_json({"store": str(store), "hosts": server.hosts, "port": server.port, "unix": server.unix})
    else:
        places = [f"{host}:{server.port}" for host in server.hosts] + ([server.unix] if server.unix else [])
        typer.echo(f"{store}: serving {server.keyspace.count:,} keys on {', '.join(places)}")
    # Whoever started it waits for this line.
    sys.stdout.flush()


def _password(file: Path | None) -> bytes | None:
    """From a file, else from the environment: an argument could be read by everybody on the machine."""
    if file is None:
        given = os.environ.get(PASSWORD_VARIABLE)
        return None if given is None else os.fsencode(given)
    try:
        with file.open("rb") as source:
            password = source.read(MAX_PASSWORD_FILE + 1).rstrip(b"\r\n")
    except OSError as error:
        raise InvalidArgumentError(f"{file} cannot be read: {error.strerror}") from error
    if not 0 < len(password) <= MAX_PASSWORD_FILE:
        raise InvalidArgumentError(f"{file}: give a password of 1 to {MAX_PASSWORD_FILE} bytes in one line")
    return password


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    if cert is None:
        if key is not None or client_ca is not None:
            raise InvalidArgumentError("--tls-key and --tls-client-ca need --tls-cert")
        return None

    def passphrase() -> str:
        raise InvalidArgumentError(
            f"the key {key or cert} is encrypted, and a service has nobody to ask: decrypt it with `openssl pkey`"
        )

    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cert, key, passphrase)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgumentError(f"certificate {cert} or its key cannot be used: {error}") from error
    return context
