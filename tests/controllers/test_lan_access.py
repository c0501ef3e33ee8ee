"""Who is let in: TLS, client certificates, passwords, ACL users; what is wrong is told in words and keeps no secret."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap

import pytest
from dstorage_controllers.lan import LanController
from servers.certificates import Authority
from servers.process import free_port
from servers.redis_server import RedisServer

import dstorage
from dstorage.controller import ControllerStatus
from dstorage.errors import ControllerError, ControllerUnavailable, InvalidArgumentError
from dstorage.testing import Bench, ControllerTests, payload

RIGHTS = "~dstorage:* -@all +ping +get +set +unlink +scan +wait +info +cluster|slots"
"""What docs/how-to/use-machines-of-the-lan.md says a user needs."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory, authority):
    certificate, key = authority.issue("localhost")
    port = free_port()
    server = RedisServer(
        tmp_path_factory.mktemp("tls"),
        tls_port=str(port),
        tls_cert_file=str(certificate),
        tls_key_file=str(key),
        tls_ca_cert_file=str(authority.ca_file),
        tls_auth_clients="optional",
    )
    server.tls_port = port
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("guarded"), requirepass="let me in")
    server.start()
    assert server.ask("ACL", "SETUSER", "store", "on", ">its secret", *RIGHTS.split()) == b"+OK\r\n"
    assert server.ask("ACL", "SETUSER", "reader", "on", ">its secret", "~dstorage:*", "+get", "+ping") == b"+OK\r\n"
    yield server
    server.kill()


class TestTls(ControllerTests):
    @pytest.fixture(autouse=True)
    def _server(self, tls_server, authority):
        self.url = f"rediss://localhost:{tls_server.tls_port}"
        self.ca_file = authority.ca_file

    def make(self, directory):
        return LanController(url=self.url, ca_file=self.ca_file)


async def _round_trip(controller, directory):
    bench = Bench(controller, directory)
    await bench.open()
    try:
        data = payload(1, 300_000)
        places = await bench.put({1: data})
        await bench.commit(places)
        assert (await bench.get(places))[1] == data
        await bench.commit({}, places)
    finally:
        await controller.close()


async def test_a_client_certificate_is_shown(tmp_path, authority):
    certificate, key = authority.issue("localhost")
    mine, my_key = authority.issue("client")
    port = free_port()
    server = RedisServer(
        tmp_path / "redis",
        tls_port=str(port),
        tls_cert_file=str(certificate),
        tls_key_file=str(key),
        tls_ca_cert_file=str(authority.ca_file),
        tls_auth_clients="yes",
    )
    server.start()
    url = f"rediss://127.0.0.1:{port}"
    try:
        await _round_trip(LanController(url=url, ca_file=authority.ca_file, cert_file=mine, key_file=my_key), tmp_path)
        bench = Bench(LanController(url=url, ca_file=authority.ca_file, timeout=2), tmp_path)
        with pytest.warns(RuntimeWarning, match="starts without its server"):
            await bench.open()
        await bench.controller.close()
    finally:
        server.kill()


@pytest.mark.parametrize("wrong", ["another authority", "another name"])
async def test_a_server_that_cannot_prove_its_name_gets_nothing(tmp_path, authority, tls_server, wrong):
    if wrong == "another authority":
        ca_file, host = Authority(tmp_path / "other").ca_file, "localhost"
    else:
        # Resolved by the system, and in nobody's certificate.
        ca_file, host = authority.ca_file, "127.0.0.2"
    bench = Bench(LanController(url=f"rediss://{host}:{tls_server.tls_port}", ca_file=ca_file), tmp_path)
    with pytest.warns(RuntimeWarning, match="starts without its server"):
        await bench.open()
    assert bench.controller.status is ControllerStatus.TEMPORARILY_UNAVAILABLE
    await bench.controller.close()


@pytest.mark.parametrize("where", ["file", "environment"])
async def test_the_default_user_logs_in(tmp_path, guarded, monkeypatch, where):
    if where == "file":
        (tmp_path / "password").write_text("let me in\n")
        secret = {"password_file": tmp_path / "password"}
    else:
        monkeypatch.setenv("DSTORAGE_TEST_SECRET", "let me in")
        secret = {"password_env": "DSTORAGE_TEST_SECRET"}
    await _round_trip(LanController(url=guarded.url, **secret), tmp_path)


async def test_an_acl_user_needs_no_more_rights_than_the_documentation_says(tmp_path, guarded, monkeypatch):
    monkeypatch.setenv("DSTORAGE_TEST_SECRET", "its secret")
    controller = LanController(url=guarded.url, username="store", password_env="DSTORAGE_TEST_SECRET")
    await _round_trip(controller, tmp_path)
    again = LanController(url=guarded.url.replace("//", "//store@"), password_env="DSTORAGE_TEST_SECRET")
    for controllers in ([again], None):
        async with dstorage.open(tmp_path / "store", controllers=controllers) as store:
            with await store.create(b"kept"):
                await store.commit()
            assert await store.controller("lan").advice() == []


async def test_a_user_who_may_only_read_makes_it_unavailable_for_writing(tmp_path, guarded, monkeypatch):
    monkeypatch.setenv("DSTORAGE_TEST_SECRET", "its secret")
    controller = LanController(url=guarded.url, username="reader", password_env="DSTORAGE_TEST_SECRET")
    bench = Bench(controller, tmp_path)
    with pytest.warns(RuntimeWarning, match="no permissions"):
        await bench.open()
    answer = (await controller.write([dstorage.WriteRequest(1, b"x")]))[0]
    assert isinstance(answer, ControllerUnavailable)
    await controller.close()


async def test_a_wrong_password_is_an_error_that_does_not_repeat_it(tmp_path, guarded, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DSTORAGE_TEST_SECRET", "guessed wrongly")
    bench = Bench(LanController(url=guarded.url, password_env="DSTORAGE_TEST_SECRET"), tmp_path)
    with pytest.raises(ControllerError, match="refuses the login") as caught:
        await bench.open()
    await bench.controller.close()
    assert "guessed" not in str(caught.value)
    assert "guessed" not in caplog.text


async def test_a_missing_password_is_an_error(tmp_path, guarded, monkeypatch):
    with pytest.raises(ControllerError, match="refuses the login"):
        await LanController(url=guarded.url).open(_context(tmp_path))
    monkeypatch.delenv("DSTORAGE_TEST_SECRET", raising=False)
    with pytest.raises(ControllerError, match="DSTORAGE_TEST_SECRET"):
        await LanController(url=guarded.url, password_env="DSTORAGE_TEST_SECRET").open(_context(tmp_path))
    with pytest.raises(ControllerError, match="nowhere"):
        await LanController(url=guarded.url, password_file=tmp_path / "nowhere").open(_context(tmp_path))


def _context(directory):
    return dstorage.OpenContext(dstorage.testing.suite.STORE, 3, directory)


async def test_the_catalog_keeps_where_the_password_is_and_not_the_password(tmp_path, guarded, monkeypatch):
    monkeypatch.setenv("DSTORAGE_TEST_SECRET", "let me in")
    controllers = [LanController(url=guarded.url, password_env="DSTORAGE_TEST_SECRET")]
    async with dstorage.open(tmp_path / "store", controllers=controllers) as store:
        with await store.create(b"x"):
            await store.commit()
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"let me in" not in data
            assert path.name != "data.mdb" or b"DSTORAGE_TEST_SECRET" in data


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "redis://user:secret@host"}, "password"),
        ({"url": "http://host"}, "redis://"),
        ({"url": "redis://"}, "no host"),
        ({"url": "redis://host:port"}, "[Pp]ort"),
        ({"url": "redis://host:99999"}, "[Pp]ort"),
        ({"url": "redis://host/one"}, "number of a database"),
        ({"url": "redis://host?db=1"}, "parameters"),
        ({"url": "redis://host?password=secret"}, "parameters"),
        ({"url": "unix:///path?password=secret"}, "parameters"),
        ({"url": "redis://host#secret"}, "parameters"),
        ({"url": "redis://user:secret/more@host"}, "[Pp]ort"),
        ({"url": "redis://user:1/secret@host"}, "number of a database"),
        ({"url": b"redis://:secret@host"}, "url must be str, not bytes"),
        ({"url": "redis://one,two"}, "cluster=True"),
        ({"url": "redis://one/1", "cluster": True}, "database 0"),
        ({"url": "unix:///path", "cluster": True}, "unix socket"),
        ({"url": "unix://host/path"}, "unix:///path"),
        ({"ca_file": "/ca"}, "rediss://"),
        ({"url": "rediss://host", "cert_file": "/c"}, "go together"),
        ({"url": "redis://me@host", "username": "me"}, "give one"),
        ({"password_file": "/p", "password_env": "P"}, "not both"),
        ({"piece_bytes": 100_000}, "power of two"),
        ({"piece_bytes": 1024}, "piece_bytes must be"),
        ({"connections": 0}, "connections must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"capacity": -1}, "capacity must be"),
        ({"capacity": "much"}, "capacity must be"),
        ({"cluster": 1}, "cluster must be"),
        ({"replicas": -1}, "replicas must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, told):
    with pytest.raises(InvalidArgumentError, match=told) as caught:
        LanController(**settings)
    assert "secret" not in str(caught.value)


def test_unknown_settings_of_a_catalog_are_refused():
    with pytest.raises(InvalidArgumentError, match="'colour'"):
        LanController.from_settings("lan", {"url": "redis://host", "colour": "red"})
    with pytest.raises(InvalidArgumentError, match="url"):
        LanController.from_settings("lan", {})


def test_settings_survive_the_catalog():
    one = LanController("far", "rediss://me@host:1/2", capacity=5, timeout=2.5, ca_file="ca", replicas=1)
    again = LanController.from_settings("far", json.loads(json.dumps(one.settings)))
    assert again.settings == one.settings
    assert again.rank == one.rank


def test_without_the_extra_a_store_works_and_the_missing_package_is_named(tmp_path):
    """In a process of its own, where redis cannot be imported."""
    code = """
        import asyncio, sys
        sys.modules["redis"] = None
        import dstorage
        from dstorage.registry import load_plugin

        async def main():
            async with dstorage.open(sys.argv[1]) as store:
                with await store.create(b"works"):
                    await store.commit()
            try:
                load_plugin("lan")
            except dstorage.ControllerError as error:
                print(error)

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'dstorage[lan]'" in done.stdout
    assert "needs redis" in done.stdout
