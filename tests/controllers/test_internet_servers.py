"""The internet controller passes the suite on real servers: Swift and moto by S3, Azurite by Azure's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import obstore
import pytest
from dstorage_controllers.internet import InternetController
from dstorage_controllers.internet.bucket import Bucket, NoBucket
from dstorage_controllers.internet.connecting import connect
from dstorage_controllers.internet.layout import Layout
from servers.azurite import AzuriteServer
from servers.moto import MotoServer
from servers.settled import settled
from servers.swift import SwiftServer

from dstorage import OpenContext
from dstorage.testing import ControllerTests
from dstorage.testing.suite import STORE

_no_leaks = settled


@pytest.fixture(scope="module", params=[MotoServer, SwiftServer, AzuriteServer], ids=["moto", "swift", "azurite"])
def server(request, tmp_path_factory):
    started = request.param(tmp_path_factory.mktemp("server"))
    started.start()
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def _credentials(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("INTERNET_TEST_KEY", "aa" * 32)


class TestOnServer(ControllerTests):
    options: ClassVar[dict[str, object]] = {"key_env": "INTERNET_TEST_KEY", "pack_bytes": 256 * 2**10}

    @pytest.fixture(autouse=True)
    def _server(self, server, _credentials):
        self.server = server

    def settings(self, directory: Path) -> dict[str, object]:
        # Each test has a folder of its own.
        settings = dict(self.server.settings)
        return {**settings, "url": f"{settings['url']}/{directory.name}", **self.options}

    def make(self, directory):
        return InternetController(**self.settings(directory))

    def make_small(self, directory, capacity):
        return InternetController(capacity=capacity, **self.settings(directory))

    def _object(self, directory, id, locator):
        controller = self.make(directory)
        layout = Layout(STORE, 3, "internet", str(controller.settings["url"]).split("/", 3)[3])
        place = layout.unpack(id, locator)
        return connect("test", controller.settings), layout.key(place.number), place

    def damage(self, directory, id, locator):
        store, key, place = self._object(directory, id, locator)
        raw = bytearray(obstore.get(store, key).bytes())
        raw[place.offset + 20] ^= 1
        obstore.put(store, key, bytes(raw), use_multipart=False)
        return True

    def lose(self, directory, id, locator):
        store, key, _ = self._object(directory, id, locator)
        obstore.delete(store, key)
        return True


async def test_a_bucket_that_is_not_there_is_not_taken_for_lost_chunks(server):
    settings = InternetController(
        **{**server.settings, "url": server.settings["url"].replace("chunks", "nothing")}
    ).settings
    bucket = Bucket(connect("test", settings), connections=1, timeout=20, hedge=False)
    with pytest.raises(NoBucket):
        await bucket.get("some/object", 0, 10)
    with pytest.raises(NoBucket):
        await bucket.put("some/object", [b"x"], create=False)


async def test_conditional_writes_are_found_to_be_honoured(server, tmp_path):
    controller = InternetController(**server.settings)
    await controller.open(OpenContext(uuid4(), 1, tmp_path))
    assert controller._open.writer.create is True
    await controller.close()
