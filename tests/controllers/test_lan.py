"""The LAN controller passes the suite, on a real server."""

from __future__ import annotations

from typing import ClassVar

import pytest
from dstorage_controllers.lan import LanController
from dstorage_controllers.lan.layout import Layout
from servers.redis_server import RedisServer, valkey

from dstorage.testing import ControllerTests
from dstorage.testing.suite import STORE


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def valkey_server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("valkey"), program=valkey())
    server.start()
    yield server
    server.kill()


def _keys(id, locator):
    layout = Layout(STORE, 3, "lan")
    return layout.keys(id, layout.unpack(id, locator))


class Suite(ControllerTests):
    """Which keys a chunk has, and how to spoil them."""

    server: RedisServer
    extra: ClassVar[dict] = {}

    def make(self, directory):
        return LanController(url=self.server.url, **self.extra)

    def make_small(self, directory, capacity):
        return LanController(url=self.server.url, capacity=capacity, **self.extra)

    def damage(self, directory, id, locator):
        return self.server.ask("SETRANGE", _keys(id, locator)[0], "100", b"\x00\xff\x00").startswith(b":")

    def lose(self, directory, id, locator):
        return self.server.ask("DEL", *_keys(id, locator)).startswith(b":1")


class TestSingle(Suite):
    @pytest.fixture(autouse=True)
    def _server(self, redis):
        self.server = redis


class TestSmallPieces(Suite):
    extra: ClassVar[dict] = {"piece_bytes": 65536, "connections": 3}

    @pytest.fixture(autouse=True)
    def _server(self, redis):
        self.server = redis


class TestValkey(Suite):
    @pytest.fixture(autouse=True)
    def _server(self, valkey_server):
        self.server = valkey_server


class TestUnixSocket(Suite):
    @pytest.fixture(autouse=True)
    def _server(self, redis):
        self.server = redis

    def make(self, directory):
        return LanController(url=f"unix://{self.server.socket}")

    def make_small(self, directory, capacity):
        return LanController(url=f"unix://{self.server.socket}", capacity=capacity)
