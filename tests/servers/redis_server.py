"""Real Redis servers: a single one."""

from __future__ import annotations

import socket
from pathlib import Path

from servers.process import ServerProcess, free_port, need

HOW = "install the Debian packages redis-server and redis-tools"


class RedisServer(ServerProcess):
    """A `redis-server` that keeps data as its settings say.

    Args:
        directory: For its data, socket and log.
        settings: Further settings, as on its command line: ``maxmemory="10mb"``.
        durable: Append-only file with a sync per write; False keeps nothing.
    """

    def __init__(self, directory: Path, *, durable: bool = True, port: int | None = None, **settings: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port() if port is None else port
        self.socket = directory / "redis.sock"
        self.password = settings.get("requirepass")
        chosen = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(directory),
            "unixsocket": str(self.socket),
            "save": "",
            "appendonly": "yes" if durable else "no",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            **{key.replace("_", "-"): value for key, value in settings.items()},
        }
        command = [need("redis-server", HOW), *(part for key, value in chosen.items() for part in (f"--{key}", value))]
        super().__init__(command, ready=self._answers, log=directory / "log")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def ask(self, *command: str | bytes) -> bytes:
        """The first bytes of the reply to a command, in RESP, through the unix socket."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect(str(self.socket))
            if self.password is not None:
                link.sendall(_pack("AUTH", self.password))
                link.recv(1024)
            link.sendall(_pack(*command))
            return link.recv(2**20)

    def _answers(self) -> bool:
        try:
            return self.ask("PING").startswith(b"+PONG")
        except OSError:
            return False


def _pack(*command: str | bytes) -> bytes:
    parts = [part.encode() if isinstance(part, str) else part for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
