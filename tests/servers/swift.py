"""OpenStack Swift with its S3 interface: a real object store, all in one, with one replica on one directory."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from servers.moto import PYTHON, need_module
from servers.process import ServerProcess, accepts, free_port, need
from servers.s3 import make_bucket

BUCKET = "chunks"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}

_SWIFT = """\
[swift-hash]
swift_hash_path_suffix = test
[storage-policy:0]
name = one
default = yes
"""
_BACKEND = """\
[DEFAULT]
swift_dir = {etc}
devices = {node}
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
disable_fallocate = true
log_level = ERROR
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = """\
[DEFAULT]
swift_dir = {etc}
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
log_level = ERROR
[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
_RINGS = """
from swift.common.ring import RingBuilder
import sys
for spec in sys.argv[2:]:
    kind, port = spec.split(":")
    builder = RingBuilder(4, 1, 0)
    device = dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=1.0)
    builder.add_dev({**device, "replication_ip": "127.0.0.1", "replication_port": int(port), "meta": ""})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""
_KINDS = ("account", "container", "object")


class SwiftServer:
    """All of Swift. Its objects are in files: they survive a kill.

    Args:
        directory: For its files, configuration and logs; on a file system with user attributes.
    """

    environment = ENVIRONMENT

    def __init__(self, directory: Path) -> None:
        need_module("swift", "pip install swift")
        memcached = need("memcached", "install the Debian package memcached")
        self.etc = directory / "etc"
        self.etc.mkdir(parents=True, exist_ok=True)
        (directory / "node" / "d1").mkdir(parents=True)
        cache, *ports, self.port = (free_port() for _ in range(len(_KINDS) + 2))
        (self.etc / "swift.conf").write_text(_SWIFT)
        rings = [f"{kind}:{port}" for kind, port in zip(_KINDS, ports, strict=True)]
        subprocess.run([*PYTHON, "-c", _RINGS, str(self.etc), *rings], check=True, cwd=self.etc, timeout=60)
        common = {"etc": self.etc, "node": directory / "node", "user": getpass.getuser()}
        self._back = [
            ServerProcess(
                [memcached, "-u", getpass.getuser(), "-l", "127.0.0.1", "-p", str(cache), "-m", "64"],
                ready=lambda: accepts(cache),
                log=directory / "memcached.log",
            )
        ]
        for kind, port in zip(_KINDS, ports, strict=True):
            text = _BACKEND.format(kind=kind, port=port, **common)
            self._back.append(self._server(kind, port, text, directory))
        self._front = self._server(
            "proxy", self.port, _PROXY.format(port=self.port, memcached=cache, **common), directory
        )

    @property
    def settings(self) -> dict[str, object]:
        """Arguments of `InternetController`."""
        return {"url": f"s3://{BUCKET}/swift", "endpoint": f"http://127.0.0.1:{self.port}", "allow_http": True}

    def start(self) -> None:
        """Start what is not running."""
        for process in [*self._back, self._front]:
            if not process.alive:
                process.start()
        make_bucket(self.port, BUCKET, self.environment)

    def kill(self) -> None:
        """SIGKILL everything."""
        for process in [self._front, *self._back]:
            process.kill()

    def freeze(self) -> None:
        """The front is there and says nothing."""
        self._front.freeze()

    def thaw(self) -> None:
        """It goes on."""
        self._front.thaw()

    def _server(self, kind: str, port: int, text: str, directory: Path) -> ServerProcess:
        path = self.etc / f"{kind}-server.conf"
        path.write_text(text)
        return ServerProcess(
            [*_script(f"swift-{kind}-server"), str(path)], ready=lambda: accepts(port), log=directory / f"{kind}.log"
        )


def _script(name: str) -> Sequence[str]:
    path = Path(sys.executable).parent / name
    return [*PYTHON, str(path if path.exists() else shutil.which(name))]
