"""Settings, credentials and certificates of the internet controller: what is refused, and what is never told."""

from __future__ import annotations

import json
import traceback

import obstore
import pytest
from dstorage_controllers.internet import InternetController
from dstorage_controllers.internet.connecting import connect
from obstore.exceptions import GenericError
from servers.scripted_s3 import ScriptedS3
from servers.settled import settled

from dstorage import ControllerError, ControllerUnavailable, InvalidArgumentError, OpenContext
from dstorage.controller import ReadRequest, WriteRequest
from dstorage.testing.suite import STORE

_no_leaks = settled


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://bucket"}, "must begin with s3://"),
        ({"url": "s3://"}, "names no bucket"),
        ({"url": ""}, "must begin with"),
        ({"url": "s3://key:secret@bucket"}, "holds more than a bucket"),
        ({"url": "s3://bucket?versioning=1"}, "has parameters"),
        ({"url": "s3://bucket/a/../b"}, "dotted"),
        ({"url": "file://host/path"}, "file:///path"),
        ({"url": "s3://bucket", "endpoint": "http://localhost:1"}, "allow_http=True"),
        ({"url": "s3://bucket", "endpoint": "localhost:1"}, "https://host"),
        ({"url": "s3://bucket", "endpoint": "https://key:secret@localhost"}, "credentials"),
        ({"url": "gs://bucket", "endpoint": "https://localhost"}, "endpoint is a matter of"),
        ({"url": "gs://bucket", "profile": "work"}, "profile"),
        ({"url": "s3://bucket", "pack_bytes": 100_000}, "power of two"),
        ({"url": "s3://bucket", "pack_bytes": 2**24}, "65536 to"),
        ({"url": "s3://bucket", "compress": 23}, "compress must be"),
        ({"url": "s3://bucket", "connections": 0}, "connections must be"),
        ({"url": "s3://bucket", "timeout": 0}, "timeout must be"),
        ({"url": "s3://bucket", "key_file": "a", "key_env": "b"}, "not both"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InvalidArgumentError, match=message) as told:
        InternetController(**settings)
    assert "secret" not in str(told.value)


async def test_credentials_are_neither_kept_nor_told(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDNAME")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecretvalue")
    controller = InternetController(url="s3://bucket", endpoint="https://127.0.0.1:1", region="here", timeout=2)
    with pytest.warns(RuntimeWarning, match="starts without its bucket") as told:
        await controller.open(OpenContext(STORE, 3, tmp_path))
    try:
        (answer,) = await controller.write([WriteRequest(1, b"x")])
        assert isinstance(answer, ControllerUnavailable)
        shown = " ".join([repr(controller), json.dumps(dict(controller.settings)), str(answer), *map(str, told.list)])
        assert "AKIDNAME" not in shown
        assert "verysecretvalue" not in shown
    finally:
        await controller.close()


async def test_what_a_server_repeats_of_a_request_is_not_told(monkeypatch, tmp_path):
    """A reply about a wrong signature holds the whole request; neither messages nor tracebacks are to show it."""
    for name, value in ScriptedS3.environment.items():
        monkeypatch.setenv(name, value)
    reply = (
        b"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIDNAME</AWSAccessKeyId>"
        b"<CanonicalRequest>x-amz-security-token:verysecret</CanonicalRequest></Error>"
    )
    async with ScriptedS3() as server:
        told: list[BaseException] = []
        server.script = lambda method, key, query: (403, reply)
        controller = InternetController(**server.settings)
        with pytest.raises(ControllerError, match=r"403 Forbidden \(SignatureDoesNotMatch\); check") as refused:
            await controller.open(OpenContext(STORE, 3, tmp_path))
        await controller.close()
        told.append(refused.value)
        server.script = lambda method, key, query: None
        controller = InternetController(**server.settings, timeout=5)
        await controller.open(OpenContext(STORE, 3, tmp_path))
        (place,) = await controller.write([WriteRequest(1, b"x")])
        for status in (403, 404, 400):
            server.script = lambda method, key, query, status=status: (status, reply)
            told += await controller.read([ReadRequest(1, place)])
            told += await controller.write([WriteRequest(2, b"x")])
        await controller.close()
    assert len(told) == 7
    for error in told:
        shown = "".join(traceback.format_exception(error))
        assert "verysecret" not in shown
        assert "AKIDNAME" not in shown


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
async def test_plain_http_from_the_environment_is_spoken_only_when_allowed(monkeypatch, variable):
    for name, value in ScriptedS3.environment.items():
        monkeypatch.setenv(name, value)
    async with ScriptedS3() as server:
        monkeypatch.setenv(variable, str(server.settings["endpoint"]))
        with pytest.raises(ControllerError, match=f"{variable} is plain http"):
            connect("c", InternetController(url="s3://chunks").settings)
        # Neither when the environment says that it may be.
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setattr("dstorage_controllers.internet.connecting._ENDPOINTS", ())
        with pytest.raises(GenericError):
            await obstore.put_async(connect("c", InternetController(url="s3://chunks").settings), "x", b"")
        assert server.log == []
        store = connect("c", InternetController(url="s3://chunks", allow_http=True).settings)
        await obstore.put_async(store, "x", b"")
        assert server.log == [("PUT", "x")]


async def test_a_profile_is_read_and_a_missing_one_named(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "credentials"
    path.write_text("[work]\naws_access_key_id = A\naws_secret_access_key = %S\n[half]\naws_access_key_id = A\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    base = {"url": "s3://bucket", "region": "here"}
    # What the environment has of another identity is not mixed in.
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
    async with ScriptedS3() as server:
        store = connect("c", InternetController(**{**server.settings, **base}, profile="work").settings)
        await obstore.put_async(store, "x", b"x")
        assert "Credential=A/" in server.headers["authorization"]
        assert "x-amz-security-token" not in server.headers
        assert "%S" not in repr(store)
    for profile in ("half", "none"):
        with pytest.raises(ControllerError, match=f"no access key for the profile '{profile}'"):
            connect("c", InternetController(**base, profile=profile).settings)
    path.write_text("secret without a section")
    with pytest.raises(ControllerError, match="cannot make sense") as told:
        connect("c", InternetController(**base).settings)
    assert "secret" not in str(told.value)


def test_certificates_that_are_none_are_refused(tmp_path):
    path = tmp_path / "ca.pem"
    with pytest.raises(ControllerError, match="cannot read"):
        connect("c", InternetController(url="s3://b", region="here", ca_file=path).settings)
    path.write_text("junk")
    with pytest.raises(ControllerError, match="cannot use s3://b"):
        connect("c", InternetController(url="s3://b", region="here", ca_file=path).settings)
