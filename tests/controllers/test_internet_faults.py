"""The internet controller when the network and the servers misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import obstore
import pytest
from dstorage_controllers.internet import InternetController, bucket, cleaning, controller
from obstore.store import MemoryStore
from servers.certificates import Authority
from servers.moto import MotoServer
from servers.proxy import FaultProxy
from servers.scripted_s3 import ScriptedS3
from servers.settled import settled

from dstorage import ControllerError, ControllerFull, ControllerStatus, ControllerUnavailable, Locator, OpenContext
from dstorage.controller import ReadRequest, WriteRequest
from dstorage.testing import payload
from dstorage.testing.suite import STORE, Bench, eventually

_no_leaks = settled
OK, AWAY, FULL = ControllerStatus.OK, ControllerStatus.TEMPORARILY_UNAVAILABLE, ControllerStatus.FULL
READ_ONLY = ControllerStatus.READ_ONLY


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    server = MotoServer(tmp_path_factory.mktemp("moto"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One store for all tests, as there is one moto."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(autouse=True)
def _surroundings(place, monkeypatch):
    monkeypatch.chdir(place)
    for name, value in ScriptedS3.environment.items():
        monkeypatch.setenv(name, value)


class Watched(Bench):
    """Notes every status that the store is told of."""

    def __init__(self, controller, directory, state=None):
        super().__init__(controller, directory, state)
        self.told: list[ControllerStatus] = []

    async def open(self, *, read_only=False):
        await self.controller.open(
            OpenContext(
                STORE,
                3,
                self.directory,
                dict(self.state),
                read_only=read_only,
                status_changed=lambda: self.told.append(self.controller.status),
            )
        )


@contextlib.asynccontextmanager
async def watched(server, *, port=None, state=None, **options):
    settings = dict(server.settings)
    if port is not None:
        settings["endpoint"] = f"http://127.0.0.1:{port}"
    bench = Watched(InternetController(**{"timeout": 1.0, **settings, **options}), Path(f"{server.port}"), state)
    await bench.open()
    try:
        yield bench
    finally:
        await bench.controller.close()


async def one(bench, id, data):
    (answer,) = await bench.controller.write([WriteRequest(id, data)])
    return answer


# -- the network ---------------------------------------------------------------------------------------------------------


async def test_a_server_that_refuses_is_away_until_it_is_back(moto):
    async with FaultProxy(moto.port) as proxy, watched(moto, port=proxy.port, timeout=3.0) as bench:
        places = await bench.put({1: payload(1, 5000)})
        await proxy.refuse()
        began = time.monotonic()
        (answer,) = (await bench.get(places)).values()
        assert isinstance(answer, ControllerUnavailable)
        assert "Connection refused" in str(answer)
        assert time.monotonic() - began < 6
        assert bench.controller.status is AWAY
        # The next are refused at once, with the time of the next probe.
        began = time.monotonic()
        refused = await one(bench, 2, b"x")
        assert isinstance(refused, ControllerUnavailable)
        assert refused.retry_after is not None
        assert isinstance((await bench.get(places))[1], ControllerUnavailable)
        assert time.monotonic() - began < 0.5
        await proxy.listen()
        await eventually(lambda: bench.controller.status is OK, "it does not notice that the server is back")
        assert bench.told == [AWAY, OK]
        assert await bench.get(places) == {1: payload(1, 5000)}


@pytest.mark.parametrize("hole", ["requests", "replies"])
async def test_what_the_network_swallows_is_answered_by_the_deadline(moto, hole):
    async with FaultProxy(moto.port) as proxy, watched(moto, port=proxy.port) as bench:
        places = await bench.put({1: payload(1, 5000)})
        setattr(proxy, hole, False)
        began = time.monotonic()
        reading, writing = asyncio.create_task(bench.get(places)), asyncio.create_task(one(bench, 2, payload(2, 5000)))
        assert isinstance((await reading)[1], ControllerUnavailable)
        assert isinstance(await writing, ControllerUnavailable)
        assert time.monotonic() - began < 4.0
        assert bench.told == [AWAY]
        setattr(proxy, hole, True)
        proxy.cut()
        await eventually(lambda: bench.controller.status is OK, "it does not notice that the network is back")
        assert await bench.get(places) == {1: payload(1, 5000)}
        assert await bench.get(await bench.put({2: payload(2, 5000)})) == {2: payload(2, 5000)}


async def test_a_write_of_unknown_outcome_is_abandoned_and_its_object_deleted():
    async with ScriptedS3() as server, watched(server, timeout=0.3) as bench:
        used = bench.controller.space().used
        first = bench.controller._open.parts.session.first

        def deaf(method, key, query):
            # It is stored, but the answer never comes.
            if method == "PUT" and key.endswith(f"{first:014x}"):
                server.objects[key] = b"x"
                return 60.0
            return None

        server.script = deaf
        assert isinstance(await one(bench, 1, payload(1, 5000)), ControllerUnavailable)
        assert bench.controller.space().used == used
        assert any(key.endswith(f"{first:014x}") for key in server.objects)
        await eventually(lambda: bench.controller.status is OK, "it does not notice that the server is back")
        places = await bench.put({1: payload(3, 5000)})
        await eventually(
            lambda: not any(key.endswith(f"{first:014x}") for key in server.objects), "the abandoned object is left"
        )
        assert await bench.get(places) == {1: payload(3, 5000)}


@pytest.mark.parametrize("size", [5000, 9_000_000], ids=["pack", "pieces"])
async def test_an_answer_that_was_lost_costs_no_failure(size):
    """The server stores and then says that it has not: asked again for the same name, it refuses."""
    async with ScriptedS3() as server, watched(server, timeout=20) as bench:
        lost = []

        def lose_the_first(method, key, query):
            if method == "PUT" and not lost:
                lost.append(key)
                server.objects[key] = b"as it was sent"
                return 500, b""
            return None

        server.script = lose_the_first
        assert await bench.get(await bench.put({1: payload(1, size)})) == {1: payload(1, size)}
        assert lost


async def test_a_large_chunk_is_written_whole_or_not_at_all():
    async with ScriptedS3() as server, watched(server, timeout=0.5, pack_bytes=2**16, compress=False) as bench:
        used = bench.controller.space().used
        server.script = lambda method, key, query: (500, b"") if key.endswith(".3") else None
        assert isinstance(await one(bench, 1, payload(1, 10 * 2**16)), ControllerUnavailable)
        assert bench.controller.space().used == used
        server.script = lambda method, key, query: None
        await eventually(lambda: len(server.objects) == 1, "pieces are left")
        await eventually(lambda: bench.controller.status is OK, "it does not notice that the server is back")
        assert await bench.get(await bench.put({1: payload(1, 10 * 2**16)})) == {1: payload(1, 10 * 2**16)}


async def test_connections_that_are_cut_cost_a_retry_and_no_failure(moto):
    async with FaultProxy(moto.port) as proxy, watched(moto, port=proxy.port, timeout=10.0) as bench:
        places = await bench.put({id: payload(id, 5000) for id in range(1, 20)})
        for reset in (False, True):
            proxy.cut(reset=reset)
            assert await bench.get(places) == {id: payload(id, 5000) for id in places}
            proxy.cut(reset=reset)
            assert isinstance(await one(bench, 99, b"x"), Locator)
        assert bench.told == []


async def test_a_reply_that_breaks_off_is_resumed_or_refused(moto):
    async with FaultProxy(moto.port) as proxy, watched(moto, port=proxy.port, timeout=2.0, compress=False) as bench:
        places = await bench.put({1: payload(1, 200_000)})
        proxy.cut()
        for proxy.cut_after in (100_000, 1000, None):
            answer = (await bench.get(places))[1]
            assert answer == payload(1, 200_000) or isinstance(answer, ControllerUnavailable)
        await eventually(lambda: bench.controller.status is OK, "it stays away")
        assert await bench.get(places) == {1: payload(1, 200_000)}


async def test_a_bucket_that_is_away_at_open_comes_later(moto):
    async with FaultProxy(moto.port) as proxy, contextlib.AsyncExitStack() as stack:
        await proxy.refuse()
        with pytest.warns(RuntimeWarning, match="starts without its bucket"):
            bench = await stack.enter_async_context(watched(moto, port=proxy.port))
        assert bench.controller.status is AWAY
        assert isinstance(await one(bench, 1, b"x"), ControllerUnavailable)
        await proxy.listen()
        await eventually(lambda: bench.controller.status is OK, "it does not notice that the bucket is there")
        assert await bench.get(await bench.put({1: b"x"})) == {1: b"x"}
        assert bench.controller._open.writer.create is True


async def test_a_restarted_server_is_used_again(moto, tmp_path):
    server = MotoServer(tmp_path)
    server.start()
    try:
        async with watched(server) as bench:
            await bench.put({1: b"x"})
            server.kill()
            assert isinstance(await one(bench, 2, b"y"), ControllerUnavailable)
            await asyncio.to_thread(server.start)
            await eventually(lambda: bench.controller.status is OK, "it does not notice that the server is back")
            assert await bench.get(await bench.put({2: b"y"})) == {2: b"y"}
    finally:
        server.kill()


async def test_a_slow_read_is_asked_for_twice(monkeypatch):
    store, slow, calls = MemoryStore(), [False], []
    real = obstore.get_async

    async def tardy(store, key, **options):
        calls.append(key)
        if slow[0]:
            slow[0] = False
            await asyncio.sleep(60)
        return await real(store, key, **options)

    monkeypatch.setattr(bucket.obstore, "get_async", tardy)
    bench = Watched(InternetController(url="s3://bucket", store=store), Path("unused"))
    await bench.open()
    try:
        places = await bench.put({1: payload(1, 5000)})
        for _ in range(40):
            await bench.get(places)
        slow[0] = True
        calls.clear()
        began = time.monotonic()
        assert await bench.get(places) == {1: payload(1, 5000)}
        assert time.monotonic() - began < 5
        assert len(calls) == 2
        assert bench.controller._open.parts.bucket.hedges >= 1
    finally:
        await bench.controller.close()


# -- the server ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_wants_less_is_asked_again_later():
    async with ScriptedS3() as server, watched(server, timeout=10.0) as bench:
        refusals = iter([(503, b"<Error><Code>SlowDown</Code></Error>")] * 2)
        server.script = lambda method, key, query: next(refusals, None)
        places = await bench.put({1: payload(1, 5000)})
        assert await bench.get(places) == {1: payload(1, 5000)}
        assert bench.told == []


@pytest.mark.parametrize(
    "answer",
    [(507, b"<Error><Code>InsufficientStorage</Code></Error>"), (403, b"<Error><Code>QuotaExceeded</Code></Error>")],
)
async def test_a_full_server_is_full_and_goes_on_reading(answer):
    async with ScriptedS3() as server, watched(server, timeout=8.0) as bench:
        places = await bench.put({1: payload(1, 5000)})
        server.script = lambda method, key, query: answer if method == "PUT" else None
        assert isinstance(await one(bench, 2, payload(2, 5000)), ControllerFull)
        assert bench.controller.status is FULL
        assert await bench.get(places) == {1: payload(1, 5000)}
        server.script = lambda method, key, query: None
        await eventually(lambda: bench.controller.status is OK, "it does not notice that there is room")
        assert bench.told == [FULL, OK]


async def test_rights_that_are_taken_away_end_writing_and_not_reading():
    async with ScriptedS3() as server, watched(server) as bench:
        places = await bench.put({1: payload(1, 5000)})
        denied = (403, b"<Error><Code>AccessDenied</Code></Error>")
        server.script = lambda method, key, query: denied if method == "PUT" else None
        answer = await one(bench, 2, payload(2, 5000))
        assert isinstance(answer, ControllerUnavailable)
        assert bench.controller.status is READ_ONLY
        assert await bench.get(places) == {1: payload(1, 5000)}
        server.script = lambda method, key, query: None
        await eventually(lambda: bench.controller.status is OK, "it does not notice that it may write again")


@pytest.mark.parametrize("status", [403, 500])
async def test_an_object_that_is_not_given_keeps_no_other_away(status):
    """One in an archive, or on a disk that is broken."""
    async with ScriptedS3() as server, watched(server, timeout=8.0) as bench:
        archived = await bench.put({1: payload(1, 5000)})
        key = list(server.objects)[-1]
        others = await bench.put({2: payload(2, 5000)})
        reply = (status, b"<Error><Code>InvalidObjectState</Code></Error>")
        server.script = lambda method, asked, query: reply if asked == key else None
        answers = await bench.get(archived | others)
        assert isinstance(answers[1], ControllerUnavailable)
        assert "the object of chunk 1 now" in str(answers[1])
        assert "InvalidObjectState" in str(answers[1])
        assert answers[2] == payload(2, 5000)
        assert bench.told == []
        assert await bench.get(await bench.put({3: payload(3, 5000)})) == {3: payload(3, 5000)}
        server.script = lambda method, asked, query: None
        assert await bench.get(archived) == {1: payload(1, 5000)}


async def test_a_server_that_refuses_to_store_goes_on_giving():
    async with ScriptedS3() as server, watched(server, timeout=8.0) as bench:
        places = await bench.put({1: payload(1, 5000)})
        server.script = lambda method, key, query: (500, b"") if method == "PUT" else None
        assert isinstance(await one(bench, 2, b"x"), ControllerUnavailable)
        assert bench.told == [READ_ONLY]
        assert await bench.get(places) == {1: payload(1, 5000)}
        # And then it gives nothing any more.
        server.script = lambda method, key, query: (500, b"")
        assert isinstance((await bench.get(places))[1], ControllerUnavailable)
        assert bench.controller.status is AWAY
        asked = len(server.log)
        await eventually(lambda: len(server.log) > asked + 12, "it is not asked again")
        assert bench.told == [READ_ONLY, AWAY]
        server.script = lambda method, key, query: None
        await eventually(lambda: bench.controller.status is OK, "it stays away")
        assert await bench.get(places) == {1: payload(1, 5000)}


async def test_a_server_that_takes_no_large_objects_says_so_and_is_read():
    async with ScriptedS3() as server:

        def small_bodies(method, key, query):
            large = int(server.headers.get("content-length", 0)) > 2**20
            return (413, b"<html>Request Entity Too Large</html>") if large else None

        server.script = small_bodies
        async with watched(server) as bench:
            places = await bench.put({1: payload(1, 5000)})
            answer = await one(bench, 2, payload(3, 2**21 + 1))
            assert isinstance(answer, ControllerUnavailable)
            assert "smaller pack_bytes" in str(answer)
            assert bench.controller.status is READ_ONLY
            assert await bench.get(places) == {1: payload(1, 5000)}
            await bench.commit(places)
        async with watched(server, state=bench.state, pack_bytes=2**19) as again:
            large = await again.put({2: payload(3, 2**21 + 1)})
            assert await again.get(places | large) == {1: payload(1, 5000), 2: payload(3, 2**21 + 1)}


async def test_who_may_only_read_reads():
    async with ScriptedS3() as server:
        async with watched(server) as bench:
            places = await bench.put({1: payload(1, 5000)})
            await bench.commit(places)
        denied = (403, b"<Error><Code>AccessDenied</Code></Error>")
        server.script = lambda method, key, query: denied if method != "GET" else None
        async with contextlib.AsyncExitStack() as stack:
            with pytest.warns(RuntimeWarning, match="can read its bucket and not write"):
                again = await stack.enter_async_context(watched(server, state=bench.state))
            assert again.controller.status is READ_ONLY
            assert await again.get(places) == {1: payload(1, 5000)}
            assert isinstance(await one(again, 2, b"x"), ControllerUnavailable)


async def test_missing_rights_and_buckets_are_told_at_open(moto):
    async with ScriptedS3() as server:
        server.script = lambda method, key, query: (403, b"<Error><Code>AccessDenied</Code></Error>")
        with pytest.raises(ControllerError, match="check credentials and rights"):
            async with watched(server):
                pass
    with pytest.raises(ControllerError, match="no such bucket"):
        async with watched(moto, url="s3://nobody-made-this"):
            pass


async def test_a_bucket_that_vanishes_is_away_and_nothing_is_lost():
    async with ScriptedS3() as server, watched(server) as bench:
        places = await bench.put({1: payload(1, 5000)})
        gone = (404, b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>")
        server.script = lambda method, key, query: gone
        assert isinstance((await bench.get(places))[1], ControllerUnavailable)
        server.script = lambda method, key, query: None
        await eventually(lambda: bench.controller.status is OK, "it stays away")
        server.script = lambda method, key, query: gone if method == "PUT" else None
        assert "no such bucket" in str(await one(bench, 2, b"x"))
        server.script = lambda method, key, query: None
        await eventually(lambda: bench.controller.status is OK, "it stays away")
        assert await bench.get(places) == {1: payload(1, 5000)}


@pytest.mark.parametrize(
    "nonsense",
    [
        (404, b"default backend - 404"),
        (404, b""),
        (200, b"<html>Welcome to our hotel</html>"),
        (206, b"<html>Welcome to our hotel</html>"),
        (302, b""),
        (409, b"<Error><Code>OperationAborted</Code></Error>"),
        (418, b"\xff\x00" * 1000),
    ],
)
async def test_answers_that_are_none_lose_nothing_and_end_well(nonsense):
    """Whoever answers in place of the bucket: no chunk is lost by it, and the bucket is used again when it is back."""
    async with ScriptedS3() as server, watched(server, timeout=3.0) as bench:
        places = await bench.put({1: payload(1, 5000)})
        server.script = lambda method, key, query: nonsense if method == "GET" else (503, b"")
        assert isinstance((await bench.get(places))[1], ControllerUnavailable)
        server.script = lambda method, key, query: (503, b"") if method == "PUT" else None
        assert isinstance(await one(bench, 2, b"x"), ControllerUnavailable)
        # The small request that asks whether it is back meets it as well.
        asked = len(server.log)
        server.script = lambda method, key, query: nonsense
        await eventually(lambda: len(server.log) > asked, "it does not ask again")
        server.script = lambda method, key, query: None
        await eventually(lambda: bench.controller.status is OK, "it stays away")
        assert await bench.get(places) == {1: payload(1, 5000)}


@pytest.mark.parametrize(
    "nonsense", [(404, b"default backend - 404"), (409, b"<Error><Code>OperationAborted</Code></Error>")]
)
async def test_answers_that_are_none_at_open_are_an_outage(nonsense):
    async with ScriptedS3() as server, contextlib.AsyncExitStack() as stack:
        server.script = lambda method, key, query: nonsense
        with pytest.warns(RuntimeWarning, match="starts without its bucket"):
            bench = await stack.enter_async_context(watched(server))
        server.script = lambda method, key, query: None
        await eventually(lambda: bench.controller.status is OK, "it stays away")


async def test_an_answer_without_end_is_left_at_once():
    """It is not gathered in memory until the deadline."""
    async with ScriptedS3() as server, watched(server, timeout=20.0, hedge=False) as bench:
        places = await bench.put({1: payload(1, 5000)})
        server.endless = True
        began = time.monotonic()
        answer = (await bench.get(places))[1]
        assert isinstance(answer, ControllerUnavailable)
        assert "more than" in str(answer)
        assert time.monotonic() - began < 10
        server.endless = False
        await eventually(lambda: bench.controller.status is OK, "it stays away")
        assert await bench.get(places) == {1: payload(1, 5000)}


async def test_an_empty_mark_is_that_of_somebody_else():
    async with ScriptedS3() as server:
        async with watched(server):
            pass
        (mark,) = (key for key in server.objects if key.endswith("/writer"))
        server.objects[mark] = b""
        async with contextlib.AsyncExitStack() as stack:
            with pytest.warns(RuntimeWarning, match="a copy of this store"):
                await stack.enter_async_context(watched(server))


async def test_objects_whose_deletion_failed_are_deleted_later():
    async with ScriptedS3() as server, watched(server) as bench:
        places = await bench.put({1: payload(1, 5000)})
        refusals = iter([(500, b"")] * 8)
        server.script = lambda method, key, query: next(refusals, None) if method == "POST" else None
        await bench.controller.discard(list(places.items()))
        await eventually(lambda: len(server.objects) == 1, "the object is left")


async def test_an_object_that_is_not_to_be_deleted_is_in_nobodys_way(monkeypatch):
    monkeypatch.setattr(cleaning, "RETRY_S", 0.01)
    async with ScriptedS3() as server, watched(server) as bench:
        places = {}
        for id in range(1, 9):
            places |= await bench.put({id: b"x"})
        held = list(server.objects)[-1]
        refusal = (403, b"<Error><Code>AccessDenied</Code></Error>")
        server.script = lambda method, key, query: refusal if method == "POST" and held in server.names else None
        await bench.controller.discard(list(places.items()))
        await eventually(lambda: len(server.objects) == 2, "objects are left")
        assert held in server.objects
        server.script = lambda method, key, query: None
        await eventually(lambda: len(server.objects) == 1, "it is not tried again")


async def test_a_list_without_end_is_left():
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken><Contents>"
        b"<Key>p/a</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>x</ETag><Size>1</Size></Contents></ListBucketResult>"
    )
    async with ScriptedS3() as server:
        server.script = lambda method, key, query: (200, page) if method == "GET" and "list-type" in query else None
        async with watched(server, timeout=8.0) as bench:
            await asyncio.wait_for(bench.controller._open.parts.cleaning.wait(30), 60)
            asked = len(server.log)
            await asyncio.sleep(0.05)
            assert len(server.log) == asked


async def test_the_probe_for_conditional_writes_does_not_hold_up_the_opening(monkeypatch):
    monkeypatch.setattr(controller, "PROBE_S", 0.2)
    async with ScriptedS3() as server:
        server.script = lambda method, key, query: 60.0 if "/probe-" in key else None
        began = time.monotonic()
        async with watched(server, timeout=20.0) as bench:
            assert time.monotonic() - began < 10
            assert await bench.get(await bench.put({1: payload(1, 5000)})) == {1: payload(1, 5000)}


async def test_a_server_that_deletes_slowly_is_asked_for_less_at_a_time():
    async with ScriptedS3() as server, watched(server, timeout=0.5) as bench:
        # One object each.
        places = {}
        for id in range(1, 41):
            places |= await bench.put({id: b"x"})
        most = []

        def slow(method, key, query):
            if method == "POST":
                most.append(len(server.names))
                return 5.0 if len(server.names) > 10 else None
            return None

        server.script = slow
        await bench.controller.discard(list(places.items()))
        await eventually(lambda: len(server.objects) == 1, "objects are left")
        assert most[0] == 40


@pytest.mark.parametrize("deaf", ["PUT", "GET"])
async def test_everything_is_over_soon_when_nothing_is_answered(deaf):
    """Also for what waited for its turn behind others."""
    chunks = {id: payload(2 * id + 1, 60_000) for id in range(1, 31)}
    async with ScriptedS3() as server, watched(server, connections=2, timeout=0.5, pack_bytes=2**16) as bench:
        places = await bench.put(chunks)
        server.script = lambda method, key, query: 60.0 if method == deaf else None
        began = time.monotonic()
        if deaf == "PUT":
            answers = await bench.controller.write([WriteRequest(id, data) for id, data in chunks.items()])
        else:
            answers = await bench.controller.read([ReadRequest(id, place) for id, place in places.items()])
        assert time.monotonic() - began < 5
        assert all(isinstance(answer, ControllerUnavailable) for answer in answers)


# -- TLS -----------------------------------------------------------------------------------------------------------------


async def test_https_with_certificates_of_ones_own(tmp_path):
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("localhost")
    server = MotoServer(tmp_path / "moto", "--ssl-cert", str(certificate), "--ssl-key", str(key), bucket=False)
    server.start()
    try:
        endpoint = f"https://localhost:{server.port}"
        options = {"endpoint": endpoint, "allow_http": False, "timeout": 10.0}
        with pytest.raises(ControllerError, match="no such bucket"):
            async with watched(server, ca_file=authority.ca_file, **options):
                pass
        async with contextlib.AsyncExitStack() as stack:
            with pytest.warns(RuntimeWarning, match=r"starts without .*certificate.*UnknownIssuer.*ca_file"):
                bench = await stack.enter_async_context(watched(server, **options))
            assert bench.controller.status is AWAY
    finally:
        server.kill()


async def test_reading_goes_on_beside_a_slow_write():
    async with ScriptedS3() as server, watched(server, timeout=5.0) as bench:
        places = await bench.put({1: payload(1, 5000)})
        server.script = lambda method, key, query: 1.0 if method == "PUT" else None
        writing = asyncio.create_task(one(bench, 2, payload(2, 5000)))
        await asyncio.sleep(0)
        (answer,) = await bench.controller.read([ReadRequest(1, places[1])])
        assert bytes(answer) == payload(1, 5000)
        assert not writing.done()
        assert isinstance(await writing, Locator)
