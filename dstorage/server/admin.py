"""The commands about connections and the server itself."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import psutil

import dstorage
from dstorage.server.command import (
    COMPATIBLE,
    NOT_AN_INTEGER,
    SYNTAX,
    Command,
    CommandError,
    Work,
    to_integer,
)
from dstorage.server.glob import matcher
from dstorage.server.protocol import MAX_BULK
from dstorage.server.replies import OK, array, bulk, integer, mapping, text
from dstorage.server.subcommands import Container, Subcommand

if TYPE_CHECKING:
    from dstorage.server.connection import Connection
    from dstorage.server.server import Server


class Admin:
    """Commands that are not about keys.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    def commands(self) -> list[Command]:
        """All of them."""

        def make(name: str, run: Any, arity: int, summary: str, group: str = "connection", **more: Any) -> Command:
            return Command(name, run, arity, more.pop("flags", "loading stale fast"), (0, 0, 0), group, summary, **more)

        server = "server"
        config = Container(
            "config",
            [
                Subcommand("GET <pattern> ...", self._config_get, -3, "Settings that match."),
                Subcommand(
                    "SET <setting> <value> ...", self._config_set, -4, "Refused: see the options of `dstorage serve`."
                ),
                Subcommand("REWRITE", self._config_set, 2, "Refused: see the options of `dstorage serve`."),
                Subcommand("RESETSTAT", self._resetstat, 2, "Let INFO count from zero."),
            ],
        )
        return [
            make("info", self._info, -1, "Tell about the server", server),
            make("config", config, -2, "Tell about settings", server, flags="admin loading stale"),
            make("time", self._time, 1, "The server's time", server),
            make("lolwut", self._lolwut, -1, "Show the version", server),
            make("save", self._commit, 1, "Make everything durable", server, flags="admin"),
            make("bgsave", self._background_commit, -1, "Begin to make everything durable", server, flags="admin"),
            make("lastsave", self._lastsave, 1, "When everything was made durable last", server),
            make("wait", self._wait, 3, "Number of replicas that have everything: none", "generic", flags="blocking"),
            make("waitaof", self._waitaof, 4, "Wait until everything is durable", "generic", flags="blocking"),
            make("dstorage.commit", self._commit, 1, "Make everything durable", server, flags="blocking"),
        ]

    # -- the server ---------------------------------------------------------------------------------------------------

    def _time(self, link: Connection, args: list[Any]) -> None:
        seconds, rest = divmod(time.time_ns(), 10**9)
        link.out.append(array([bulk(b"%d" % seconds), bulk(b"%d" % (rest // 1000))]))

    def _lolwut(self, link: Connection, args: list[Any]) -> None:
        link.out.append(text([f"dstorage {dstorage.__version__}"], link.version))

    def _commit(self, link: Connection, args: list[Any]) -> Work:
        async def work() -> None:
            await self._server.store.commit()
            link.out.append(OK)

        return work()

    def _background_commit(self, link: Connection, args: list[Any]) -> None:
        if len(args) > 2 or (len(args) == 2 and args[1].upper() != b"SCHEDULE"):
            raise CommandError(SYNTAX)
        if not self._server.commit_soon():
            raise CommandError("ERR Background save already in progress")
        link.out.append(b"+Background saving started\r\n")

    def _lastsave(self, link: Connection, args: list[Any]) -> None:
        link.out.append(integer(int(self._server.committed_at)))

    def _wait(self, link: Connection, args: list[Any]) -> None:
        to_integer(args[1])
        _timeout(args[2])
        link.out.append(b":0\r\n")

    def _waitaof(self, link: Connection, args: list[Any]) -> Work | None:
        local = to_integer(args[1])
        if not 0 <= local <= 1:
            raise CommandError("ERR value is out of range, must be between 0 and 1")
        if to_integer(args[2]) < 0:
            raise CommandError(NOT_AN_INTEGER)
        patience = _timeout(args[3])
        if not local:
            link.out.append(array([integer(0), integer(0)]))
            return None

        async def work() -> None:
            done = 1
            try:
                async with asyncio.timeout(patience):
                    await self._server.store.commit()
            except TimeoutError:
                done = 0
            link.out.append(array([integer(done), integer(0)]))

        return work()

    def _info(self, link: Connection, args: list[Any]) -> None:
        wanted = {arg.decode(errors="replace").lower() for arg in args[1:]}
        every = not wanted or wanted & {"all", "default", "everything"}
        lines: list[str] = []
        for section, facts in self._facts():
            if every or section.lower() in wanted:
                lines += ["", f"# {section}"] if lines else [f"# {section}"]
                lines += [f"{key}:{value}" for key, value in facts.items()]
        link.out.append(text(lines, link.version, end="\r\n"))

    def _facts(self) -> Iterable[tuple[str, dict[str, object]]]:
        server = self._server
        keyspace, stats, memory = server.keyspace, server.store.stats(), psutil.Process().memory_info().rss
        uptime = int(time.time() - server.started_at)
        yield (
            "Server",
            {
                "redis_version": COMPATIBLE,
                "dstorage_version": dstorage.__version__,
                "redis_mode": "standalone",
                "os": f"{platform.system()} {platform.release()} {platform.machine()}",
                "arch_bits": 64 if sys.maxsize > 2**32 else 32,
                "process_id": os.getpid(),
                "run_id": server.run_id,
                "tcp_port": server.port or 0,
                "uptime_in_seconds": uptime,
                "uptime_in_days": uptime // 86400,
            },
        )
        yield (
            "Clients",
            {
                "connected_clients": len(server.connections),
                "maxclients": server.limits.connections,
                "client_input_bytes": server.buffered,
                "blocked_clients": 0,
            },
        )
        yield (
            "Memory",
            {
                "used_memory": stats.used,
                "used_memory_human": _human(stats.used),
                "used_memory_dirty": stats.dirty,
                "used_memory_stray": stats.stray,
                "used_memory_rss": memory,
                "used_memory_rss_human": _human(memory),
                "maxmemory": stats.budget,
                "maxmemory_human": _human(stats.budget),
                "maxmemory_now": stats.limit,
                "maxmemory_policy": "noeviction",
            },
        )
        yield (
            "Persistence",
            {
                "loading": 0,
                "rdb_last_save_time": int(server.committed_at),
                "rdb_bgsave_in_progress": int(server.committing),
                "rdb_last_bgsave_status": "ok" if server.commit_failure is None else "err",
                "aof_enabled": 1,
                "commits": stats.commits,
                "chunks": stats.chunks,
                "page_ins": stats.page_ins,
                "write_backs": stats.write_backs,
                "bytes_read": stats.bytes_read,
                "bytes_written": stats.bytes_written,
            },
        )
        yield (
            "Stats",
            {
                "total_connections_received": server.accepted,
                "total_commands_processed": server.commands,
                "instantaneous_ops_per_sec": server.rate,
                "rejected_connections": server.rejected,
                "expired_keys": keyspace.expired,
                "keyspace_hits": keyspace.hits,
                "keyspace_misses": keyspace.misses,
                "evicted_keys": 0,
                "evicted_chunks": stats.evictions,
                "unavailable_chunks": stats.unavailable,
            },
        )
        yield "Replication", {"role": "master", "connected_slaves": 0}
        yield "Cluster", {"cluster_enabled": 0}
        keys = {"db0": f"keys={keyspace.count},expires={len(keyspace.expires)},avg_ttl=0"} if keyspace.count else {}
        yield "Keyspace", dict(keys)

    def _config_get(self, link: Connection, args: list[Any]) -> None:
        matches = [matcher(pattern.lower()) for pattern in args[2:]]
        found = [
            (bulk(name.encode()), bulk(str(value).encode()))
            for name, value in self._settings().items()
            if any(match(name.encode()) for match in matches)
        ]
        link.out.append(mapping(found, link.version))

    def _config_set(self, link: Connection, args: list[Any]) -> None:
        raise CommandError("ERR settings are given to `dstorage serve` when it starts; none can be changed here")

    def _resetstat(self, link: Connection, args: list[Any]) -> None:
        self._server.reset_statistics()
        link.out.append(OK)

    def _settings(self) -> dict[str, object]:
        server = self._server
        return {
            "appendfsync": "everysec",
            "appendonly": "yes",
            "bind": " ".join(server.hosts),
            "databases": 1,
            "maxclients": server.limits.connections,
            "maxmemory": server.store.stats().budget,
            "maxmemory-policy": "noeviction",
            "port": server.port or 0,
            "proto-max-bulk-len": MAX_BULK,
            "save": "",
            "timeout": int(server.limits.idle or 0),
            "unixsocket": server.unix or "",
        }


def _timeout(raw: bytes) -> float | None:
    try:
        milliseconds = to_integer(raw)
    except CommandError:
        raise CommandError("ERR timeout is not an integer or out of range") from None
    if milliseconds < 0:
        raise CommandError("ERR timeout is negative")
    return milliseconds / 1000 or None


def _human(size: int) -> str:
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size / 1024**power:.2f}{'BKMGT'[power]}"
