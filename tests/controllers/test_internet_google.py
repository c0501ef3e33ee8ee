"""The internet controller passes the suite by Google's protocol; of a server that speaks it there is only our own.

The emulators that are to be had speak Google's JSON API, and obstore the XML one.
"""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import ClassVar

import obstore
import pytest
from dstorage_controllers.internet import InternetController
from dstorage_controllers.internet.connecting import connect
from dstorage_controllers.internet.layout import Layout
from obstore.exceptions import GenericError
from servers.scripted_s3 import ScriptedS3
from servers.settled import settled

from dstorage import OpenContext
from dstorage.testing import ControllerTests
from dstorage.testing.suite import STORE

_no_leaks = settled


@pytest.fixture(scope="module")
def served():
    """In a thread of its own: each test of the suite has a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ScriptedS3()
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    yield server
    asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def server(served, tmp_path, monkeypatch):
    """Answers what is sent to gs://chunks."""
    account = {"gcs_base_url": f"http://127.0.0.1:{served.port}", "disable_oauth": True}
    account |= {"client_email": "", "private_key": "", "private_key_id": ""}
    path = tmp_path / "account.json"
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(path))
    monkeypatch.setenv("INTERNET_TEST_KEY", "aa" * 32)
    served.log.clear()
    return served


class TestByGooglesProtocol(ControllerTests):
    options: ClassVar[dict[str, object]] = {"key_env": "INTERNET_TEST_KEY", "allow_http": True}

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.server = server

    def make(self, directory):
        return InternetController(url=f"gs://chunks/{directory.name}", **self.options)

    def make_small(self, directory, capacity):
        return InternetController(url=f"gs://chunks/{directory.name}", capacity=capacity, **self.options)

    def _place(self, directory: Path, id, locator):
        layout = Layout(STORE, 3, "internet", directory.name)
        place = layout.unpack(id, locator)
        return layout.key(place.number), place.offset

    def damage(self, directory, id, locator):
        key, offset = self._place(directory, id, locator)
        raw = bytearray(self.server.objects[key])
        raw[offset + 20] ^= 1
        self.server.objects[key] = bytes(raw)
        return True

    def lose(self, directory, id, locator):
        del self.server.objects[self._place(directory, id, locator)[0]]
        return True


async def test_conditional_writes_are_found_to_be_honoured(server, tmp_path):
    controller = InternetController(url="gs://chunks", allow_http=True)
    await controller.open(OpenContext(STORE, 1, tmp_path / "own"))
    assert controller._open.writer.create is True
    await controller.close()


async def test_https_is_spoken_unless_allowed_otherwise(server):
    with pytest.raises(GenericError):
        await obstore.put_async(connect("c", InternetController(url="gs://chunks").settings), "x", b"")
    assert server.log == []
