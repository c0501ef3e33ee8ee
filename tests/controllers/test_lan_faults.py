"""What the LAN controller makes of servers and networks that fail: bounded waits, the right error, recovery by itself."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from uuid import uuid4

import pytest
from dstorage_controllers.health import Health
from dstorage_controllers.lan import LanController, unlinking
from dstorage_controllers.lan.layout import Layout
from dstorage_controllers.lan.link import MANNERS
from dstorage_controllers.lan.trips import Trips
from redis.exceptions import ResponseError
from servers.proxy import FaultProxy
from servers.redis_server import RedisServer, valkey
from servers.scripted import ScriptedServer

from dstorage.controller import ControllerStatus, OpenContext, ReadRequest, WriteRequest
from dstorage.errors import ControllerFull, ControllerUnavailable, CorruptData, Lost
from dstorage.record import Locator
from dstorage.testing import Bench, eventually, payload
from dstorage.testing.suite import STORE

TIMEOUT_S = 1.5
"""Long enough for what works, even on a loaded machine."""
SLACK_S = 15.0
"""By what a loaded machine may be late."""


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def bench(redis, tmp_path):
    bench = Bench(LanController(url=redis.url, timeout=TIMEOUT_S), tmp_path)
    await bench.open()
    yield bench
    await bench.controller.close()


def chunks(count=8, size=300_000):
    return {number: payload(number, size) for number in range(1, count + 1)}


async def read_one(controller, places):
    """Answer for the first chunk, and the seconds it took."""
    id, locator = next(iter(places.items()))
    begun = time.monotonic()
    answer = (await controller.read([ReadRequest(id, locator)]))[0]
    return answer, time.monotonic() - begun


async def back(bench):
    await eventually(lambda: bench.controller.status is ControllerStatus.OK, "the controller is back")


async def server_keys(server):
    return int(server.ask("DBSIZE")[1:])


class TestServer:
    async def test_one_that_is_down_at_open_is_used_when_it_comes(self, redis, tmp_path):
        redis.kill()
        bench = Bench(LanController(url=redis.url, timeout=TIMEOUT_S), tmp_path)
        with pytest.warns(RuntimeWarning, match="starts without its server"):
            await bench.open()
        assert bench.controller.status is ControllerStatus.TEMPORARILY_UNAVAILABLE
        answer = (await bench.controller.write([WriteRequest(1, b"x")]))[0]
        assert isinstance(answer, ControllerUnavailable)
        assert "ECONNREFUSED" in str(answer) or "refused" in str(answer) or "connect" in str(answer).lower()
        assert answer.retry_after < MANNERS.longest_pause * 1.5
        redis.start()
        await back(bench)
        assert bench.changes
        places = await bench.put(chunks())
        assert await bench.get(places) == chunks()
        await bench.controller.close()

    async def test_a_killed_and_restarted_one_has_every_committed_chunk(self, redis, bench):
        places = await bench.put(chunks())
        await bench.commit(places)
        redis.kill()
        answers = await bench.get(places)
        assert all(isinstance(answer, ControllerUnavailable) for answer in answers.values())
        assert bench.controller.status is ControllerStatus.TEMPORARILY_UNAVAILABLE
        told = bench.changes
        redis.start()
        await back(bench)
        assert bench.changes == told + 1
        assert await bench.get(places) == chunks()

    async def test_a_frozen_one_is_unavailable_within_the_timeout_and_then_at_once(self, redis, bench):
        places = await bench.put(chunks())
        redis.freeze()
        try:
            answer, seconds = await read_one(bench.controller, places)
            assert isinstance(answer, ControllerUnavailable)
            assert TIMEOUT_S * 0.9 <= seconds < TIMEOUT_S + SLACK_S
            for _ in range(20):
                # Whatever the probes are doing meanwhile.
                answer, seconds = await read_one(bench.controller, places)
                assert isinstance(answer, ControllerUnavailable)
                assert seconds < TIMEOUT_S / 2, "nobody waits for a server known to be away"
            begun = time.monotonic()
            with pytest.raises(ControllerUnavailable):
                await bench.controller.sync()
            await bench.controller.discard([])
            assert time.monotonic() - begun < TIMEOUT_S + SLACK_S
        finally:
            redis.thaw()
        await back(bench)
        assert await bench.get(places) == chunks()

    async def test_closing_beside_a_frozen_one_ends(self, redis, tmp_path):
        bench = Bench(LanController(url=redis.url, timeout=TIMEOUT_S), tmp_path)
        await bench.open()
        places = await bench.put(chunks())
        redis.freeze()
        begun = time.monotonic()
        await bench.controller.discard(list(places.items()))
        await bench.controller.close()
        assert time.monotonic() - begun < 3 * TIMEOUT_S + SLACK_S
        redis.thaw()

    async def test_connections_it_closed_while_idle_are_no_failure(self, redis, bench):
        places = await bench.put(chunks())
        changes = bench.changes
        redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await bench.get(places) == chunks()
        assert bench.changes == changes

    async def test_one_without_memory_is_full_reads_on_and_takes_again_when_something_is_freed(self, tmp_path):
        server = RedisServer(tmp_path / "small", durable=False, maxmemory="12mb")
        server.start()
        bench = Bench(LanController(url=server.url), tmp_path)
        await bench.open()
        kept, refused = {}, None
        for number in range(1, 100):
            answer = (await bench.controller.write([WriteRequest(number, payload(number, 500_000))]))[0]
            if isinstance(answer, Exception):
                refused = answer
                break
            kept[number] = answer
        assert isinstance(refused, ControllerFull)
        assert "maxmemory" in str(refused)
        assert bench.controller.status is ControllerStatus.FULL
        assert bench.controller.space().used == 500_000 * len(kept)
        assert (await bench.get(kept)) == {number: payload(number, 500_000) for number in kept}
        await bench.controller.discard(list(kept.items()))
        await back(bench)
        assert isinstance((await bench.controller.write([WriteRequest(1, b"again")]))[0], Locator)
        await bench.controller.close()
        server.kill()

    async def test_one_that_is_full_still_commits_what_it_has_taken(self, redis, bench):
        places = await bench.put(chunks())
        redis.ask("CONFIG", "SET", "maxmemory", "1mb")
        for new in (places, {}):
            await bench.commit(new)
            assert isinstance((await bench.controller.write([WriteRequest(99, b"x" * 100_000)]))[0], ControllerFull)
        assert await bench.get(places) == chunks()
        await bench.controller.close()
        again = Bench(LanController(url=redis.url), bench.directory, bench.state)
        await again.open()
        assert again.controller.status is ControllerStatus.FULL, "no warning: it is there"
        assert await again.get(places) == chunks()
        redis.ask("CONFIG", "SET", "maxmemory", "0")
        await back(again)
        await again.commit(await again.put({99: b"more"}))
        await again.controller.close()

    @pytest.mark.parametrize("noticed", [False, True], ids=["unnoticed", "noticed"])
    @pytest.mark.parametrize("committed_before", [False, True], ids=["first", "second"])
    async def test_a_commit_of_chunks_that_it_has_forgotten_fails_once(self, tmp_path, noticed, committed_before):
        server = RedisServer(tmp_path / "forgetful", durable=False)
        server.start()
        bench = Bench(LanController(url=server.url), tmp_path)
        await bench.open()
        if committed_before:
            await bench.commit(await bench.put({1: b"before"}))
        places = await bench.put({2: b"written"})
        server.kill()
        if noticed:
            await bench.get(places)
        server.start()
        await back(bench)
        with (
            pytest.warns(RuntimeWarning, match="emptied, or restarted"),
            pytest.raises(ControllerUnavailable, match="since the last commit"),
        ):
            await bench.commit(places)
        await bench.commit(places)
        await bench.controller.close()
        server.kill()

    async def test_what_was_written_after_it_was_emptied_is_committed(self, redis, bench):
        first = await bench.put({1: b"before"})
        await bench.commit(first)
        await bench.commit(await bench.put({1: b"newer"}), first)
        redis.ask("FLUSHALL")
        places = await bench.put({2: b"after", 3: b""})
        with pytest.warns(RuntimeWarning, match="emptied, or restarted"):
            await bench.commit(places)
        assert await bench.get(places) == {2: b"after", 3: b""}

    async def test_freeing_very_many_gives_the_loop_its_turns_and_is_bounded_while_it_is_away(
        self, redis, bench, monkeypatch
    ):
        places = list((await bench.put(dict.fromkeys(range(1, 8001), b"0123456789"))).items())
        freeing = asyncio.ensure_future(bench.controller.discard(places[:5000]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 30_000 < bench.controller.space().used < 80_000, "only some were looked at in one turn"
        await freeing
        assert bench.controller.space().used == 30_000
        assert await server_keys(redis) == 3001, "what is still there, and the probe"
        monkeypatch.setattr(unlinking, "MAX_KEYS", 2000)
        redis.freeze()
        await bench.get(dict(places[5000:5001]))
        await bench.controller.discard(places[5000:])
        assert bench.controller.space().used == 0
        redis.thaw()
        await back(bench)
        await eventually(lambda: redis.ask("DBSIZE") == b":1001\r\n", "those that are remembered have gone")

    async def test_what_it_evicted_is_lost_and_the_rest_is_not(self, tmp_path):
        server = RedisServer(tmp_path / "small", durable=False, maxmemory="8mb", maxmemory_policy="allkeys-random")
        server.start()
        bench = Bench(LanController(url=server.url), tmp_path)
        await bench.open()
        written = chunks(40)
        answers = await bench.get(await bench.put(written))
        lost = [answer for answer in answers.values() if isinstance(answer, Lost)]
        assert lost
        assert "evicted" in str(lost[0])
        assert all(answers[id] == data or isinstance(answers[id], Lost) for id, data in written.items())
        await bench.controller.close()
        server.kill()

    async def test_what_it_never_persisted_is_lost_and_told(self, tmp_path):
        server = RedisServer(tmp_path / "forgetful", durable=False)
        server.start()
        bench = Bench(LanController(url=server.url), tmp_path)
        await bench.open()
        places = await bench.put(chunks())
        await bench.commit(places)
        server.kill()
        server.start()
        await bench.get(places)
        await back(bench)
        assert all(isinstance(answer, Lost) for answer in (await bench.get(places)).values())
        with pytest.warns(RuntimeWarning, match="emptied, or restarted"):
            await bench.controller.sync()
        await bench.controller.close()
        server.kill()
        server.start()
        again = Bench(LanController(url=server.url), tmp_path, bench.state)
        with pytest.warns(RuntimeWarning, match="does not know this store"):
            await again.open()
        await again.controller.close()
        server.kill()

    async def test_a_replica_is_read_from_and_not_written_to(self, redis, bench):
        places = await bench.put(chunks())
        redis.ask("REPLICAOF", "127.0.0.1", "1")
        answer = (await bench.controller.write([WriteRequest(99, b"x")]))[0]
        assert isinstance(answer, ControllerUnavailable)
        assert "read only" in str(answer)
        assert bench.controller.status is ControllerStatus.READ_ONLY
        assert await bench.get(places) == chunks()
        with pytest.raises(ControllerUnavailable):
            await bench.controller.sync()
        redis.ask("REPLICAOF", "NO", "ONE")
        await back(bench)
        assert isinstance((await bench.controller.write([WriteRequest(99, b"x")]))[0], Locator)

    async def test_a_replica_without_its_master_is_unavailable_and_nothing_is_lost(self, redis, bench):
        places = await bench.put(chunks())
        redis.ask("CONFIG", "SET", "replica-serve-stale-data", "no")
        redis.ask("REPLICAOF", "127.0.0.1", "1")
        answers = await bench.get(places)
        assert all(isinstance(answer, ControllerUnavailable) for answer in answers.values())
        redis.ask("REPLICAOF", "NO", "ONE")
        await back(bench)
        assert await bench.get(places) == chunks()

    async def test_a_commit_waits_for_replicas(self, redis, tmp_path):
        replica = RedisServer(tmp_path / "replica", replicaof=f"127.0.0.1 {redis.port}")
        replica.start()
        await eventually(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"), "the replica follows")
        bench = Bench(LanController(url=redis.url, replicas=1, timeout=4.0), tmp_path)
        await bench.open()
        places = await bench.put(chunks())
        await bench.commit(places)
        assert await server_keys(replica) == await server_keys(redis)
        replica.kill()
        with pytest.raises(ControllerUnavailable, match="0 of 1 replicas"):
            await bench.controller.sync()
        assert bench.controller.status is ControllerStatus.OK, "reading and writing go on"
        await bench.controller.close()


class TestValkey:
    """What Redis has learnt since version 7.0: to wait for its disk."""

    async def test_a_commit_waits_for_the_append_only_file(self, tmp_path):
        server = RedisServer(tmp_path / "valkey", program=valkey(), appendfsync="no")
        server.start()
        bench = Bench(LanController(url=server.url, timeout=TIMEOUT_S), tmp_path)
        await bench.open()
        places = await bench.put(chunks())
        with pytest.raises(ControllerUnavailable, match="append-only file"):
            await bench.controller.sync()
        assert bench.controller.status is ControllerStatus.OK
        server.ask("CONFIG", "SET", "appendfsync", "always")
        await bench.commit(places)
        # Full, it waits all the same.
        server.ask("CONFIG", "SET", "maxmemory", "1mb")
        await bench.controller.sync()
        server.ask("CONFIG", "SET", "appendfsync", "no")
        with pytest.raises(ControllerUnavailable, match="append-only file"):
            await bench.controller.sync()
        server.kill()
        server.start()
        await bench.get(places)
        await back(bench)
        assert await bench.get(places) == chunks()
        await bench.controller.close()
        server.kill()


class TestReplies:
    """What a real server says only at odd moments, said by a scripted one."""

    @pytest.mark.parametrize(
        "reply",
        [
            b"-LOADING Redis is loading the dataset in memory\r\n",
            b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
            b"-CLUSTERDOWN The cluster is down\r\n",
            b"-MOVED 1 10.0.0.1:6379\r\n",
            b"-MOVED nonsense\r\n",
            b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
            b"-ERR max number of clients reached\r\n",
            b"-NOAUTH Authentication required.\r\n",
            b"-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.\r\n",
            b"-NOREPLICAS Not enough good replicas to write.\r\n",
            b"-BUSY Redis is busy running a script.\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"$99999999999999999999999\r\n",
        ],
        ids=lambda reply: reply[:12].decode(),
    )
    async def test_any_refusal_is_unavailable_and_passes(self, tmp_path, reply):
        kept: dict[bytes, bytes] = {}
        trouble = False

        def answer(command):
            if trouble:
                return reply
            if command[0] == b"SET":
                kept[command[1]] = command[2]
                return b"+OK\r\n"
            value = kept.get(command[1]) if command[0] == b"GET" else None
            return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)

        async with ScriptedServer(answer) as server:
            bench = Bench(LanController(url=server.url, timeout=TIMEOUT_S), tmp_path)
            await bench.open()
            places = await bench.put({1: b"first"})
            trouble = True
            assert isinstance((await bench.get(places))[1], ControllerUnavailable)
            assert isinstance((await bench.controller.write([WriteRequest(2, b"x")]))[0], ControllerUnavailable)
            with pytest.raises(ControllerUnavailable):
                await bench.controller.sync()
            trouble = False
            await back(bench)
            assert await bench.get(places) == {1: b"first"}
            await bench.controller.close()

    @pytest.mark.parametrize(
        "reply",
        [b":7\r\n", b"*1\r\n$1\r\nx\r\n", b"+x\r\n", b"$3\r\nxxx\r\n"],
        ids=["number", "list", "line", "length"],
    )
    async def test_replies_of_another_kind_are_never_taken_for_bytes(self, tmp_path, reply):
        async with ScriptedServer(lambda command: b"+OK\r\n" if command[0] == b"SET" else reply) as server:
            bench = Bench(LanController(url=server.url), tmp_path)
            await bench.open()
            places = await bench.put({1: b"first"})
            assert isinstance((await bench.get(places))[1], CorruptData)
            await bench.controller.close()

    @pytest.mark.parametrize("reply", [b":7\r\n", b"*0\r\n", b"$-1\r\n", b"*2\r\n$1\r\nx\r\n:1\r\n"])
    async def test_a_commit_that_is_answered_nonsense_fails(self, tmp_path, reply):
        async with ScriptedServer(lambda command: b"+OK\r\n" if command[0] == b"SET" else reply) as server:
            bench = Bench(LanController(url=server.url), tmp_path)
            await bench.open()
            with pytest.raises(ControllerUnavailable, match="something else"):
                await bench.controller.sync()
            await bench.controller.close()

    async def test_a_reply_that_announces_more_than_any_memory_holds_is_a_failure_that_passes(self, tmp_path):
        async with ScriptedServer(lambda command: b"+OK\r\n" if command[0] == b"SET" else reply) as server:
            reply = b"$-1\r\n"
            bench = Bench(LanController(url=server.url, timeout=TIMEOUT_S), tmp_path)
            await bench.open()
            places = await bench.put({1: b"first"})
            # More than this is refused as a length, this as a list.
            reply = b"*4294967295\r\n"
            assert isinstance((await bench.get(places))[1], ControllerUnavailable)
            reply = b"$5\r\nfirst\r\n"
            await back(bench)
            assert await bench.get(places) == {1: b"first"}
            await bench.controller.close()

    async def test_a_reply_without_end_is_not_collected(self, tmp_path):
        def answer(command):
            if command[0] == b"SET":
                return b"+OK\r\n"
            if not asked:
                return b"$-1\r\n"
            return b"$600000000\r\n" + bytes(200 * 2**20)

        asked = False
        async with ScriptedServer(answer) as server:
            bench = Bench(LanController(url=server.url, timeout=60.0), tmp_path)
            await bench.open()
            places = await bench.put({1: b"first"})
            asked = True
            answers = await bench.get(places)
            assert "longer than" in str(answers[1])
            await bench.controller.close()

    @pytest.mark.parametrize(
        ("reply", "durable"),
        [
            (b"*2\r\n:1\r\n:0\r\n", True),
            (b"*2\r\n:0\r\n:0\r\n", False),
            (b"-ERR unknown command 'WAITAOF'\r\n", True),
            (b"-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.\r\n", True),
        ],
        ids=["on the disk", "not in time", "unknown", "nothing is appended"],
    )
    async def test_a_commit_waits_for_the_append_only_file_where_the_server_can_tell(self, tmp_path, reply, durable):
        asked = []

        def answer(command):
            asked.append(command[0])
            return {b"SET": b"+OK\r\n", b"GET": b"$-1\r\n", b"WAITAOF": reply}[command[0]]

        async with ScriptedServer(answer) as server:
            bench = Bench(LanController(url=server.url), tmp_path)
            await bench.open()
            if durable:
                await bench.controller.sync()
            else:
                with pytest.raises(ControllerUnavailable, match="append-only file"):
                    await bench.controller.sync()
            assert b"WAITAOF" in asked
            await bench.controller.close()


class TestNetwork:
    @pytest.fixture
    def redis(self, tmp_path):
        """No test here ends it, so it need not wait for its disk."""
        server = RedisServer(tmp_path / "redis", durable=False)
        server.start()
        yield server
        server.kill()

    @pytest.fixture
    async def proxy(self, redis):
        async with FaultProxy(redis.port) as proxy:
            yield proxy

    @pytest.fixture
    async def bench(self, proxy, tmp_path):
        bench = Bench(LanController(url=proxy.url, timeout=TIMEOUT_S), tmp_path)
        await bench.open()
        yield bench
        await bench.controller.close()

    async def test_latency_within_the_timeout_is_no_failure(self, proxy, bench):
        proxy.latency = 0.01
        places = await bench.put(chunks())
        assert await bench.get(places) == chunks()
        assert bench.changes == 0

    @pytest.mark.parametrize("fault", ["black hole", "half open", "too slow"])
    async def test_a_network_that_swallows_is_told_within_the_timeout(self, proxy, bench, fault):
        places = await bench.put(chunks())
        proxy.requests = fault != "black hole"
        proxy.replies = fault != "half open"
        proxy.rate = 20_000 if fault == "too slow" else None
        answer, seconds = await read_one(bench.controller, places)
        assert isinstance(answer, ControllerUnavailable)
        assert seconds < 2 * TIMEOUT_S + SLACK_S
        proxy.requests = proxy.replies = True
        proxy.rate = None
        proxy.cut()
        await back(bench)
        assert await bench.get(places) == chunks()

    async def test_connections_that_something_on_the_way_has_forgotten_cost_one_time_out(self, proxy, bench):
        places = await bench.put(chunks(40))
        opened = proxy.accepted
        assert opened > 4, "many are open and idle"
        proxy.forget()
        answer, _ = await read_one(bench.controller, places)
        assert isinstance(answer, ControllerUnavailable)
        begun = time.monotonic()
        await back(bench)
        assert time.monotonic() - begun < TIMEOUT_S, "the probe does not try the forgotten ones in turn"
        assert await bench.get(places) == chunks(40)

    @pytest.mark.parametrize("at_once", [1, 64])
    async def test_many_that_wait_are_all_told_within_twice_the_timeout(self, proxy, bench, at_once):
        places = await bench.put(chunks(64, 1000))
        proxy.requests = False
        begun = time.monotonic()
        requests = [ReadRequest(id, locator) for id, locator in places.items()]
        answers = await asyncio.gather(
            *(bench.controller.read(requests[start : start + at_once]) for start in range(0, 64, at_once))
        )
        assert time.monotonic() - begun < 2 * TIMEOUT_S + SLACK_S
        assert all(isinstance(answer, ControllerUnavailable) for some in answers for answer in some)

    @pytest.mark.parametrize("reset", [False, True], ids=["cut", "reset"])
    async def test_connections_that_break_under_way_give_whole_chunks_or_errors(self, proxy, bench, reset):
        places = await bench.put(chunks())
        seen: set[type] = set()
        for _ in range(15):
            reading = asyncio.ensure_future(bench.get(places))
            await asyncio.sleep(0.002)
            proxy.cut(reset=reset)
            for id, answer in (await reading).items():
                seen.add(type(answer))
                assert answer == payload(id, 300_000) or isinstance(answer, ControllerUnavailable)
            await back(bench)
        assert await bench.get(places) == chunks()

    async def test_a_reply_cut_in_the_middle_is_never_taken_for_whole(self, proxy, bench):
        places = await bench.put(chunks())
        proxy.cut_after = 100_000
        proxy.cut()
        answers = await bench.get(places)
        assert all(isinstance(answer, ControllerUnavailable) for answer in answers.values())
        proxy.cut_after = None
        proxy.cut()
        await back(bench)
        assert await bench.get(places) == chunks()

    async def test_what_was_written_without_an_answer_is_freed_when_the_server_is_back(self, redis, proxy, bench):
        before = await server_keys(redis)
        proxy.replies = False
        answers = await bench.controller.write([WriteRequest(id, data) for id, data in chunks().items()])
        assert all(isinstance(answer, ControllerUnavailable) for answer in answers)
        assert bench.controller.space().used == 0
        assert await server_keys(redis) > before, "it came there all the same"
        proxy.replies = True
        proxy.cut()
        await back(bench)
        await eventually(lambda: int(redis.ask("DBSIZE")[1:]) == before, "nothing is left of it")

    async def test_a_host_that_refuses_is_used_again_when_it_accepts(self, proxy, bench):
        places = await bench.put(chunks())
        await proxy.refuse()
        answer, seconds = await read_one(bench.controller, places)
        assert isinstance(answer, ControllerUnavailable)
        assert seconds < TIMEOUT_S + SLACK_S
        await proxy.listen()
        await back(bench)
        assert await bench.get(places) == chunks()


class TestHealth:
    """When a server is asked again."""

    async def test_pauses_grow_with_jitter_up_to_a_bound(self):
        loop = asyncio.get_running_loop()

        async def outage() -> list[float]:
            asked = []

            async def probe():
                asked.append(loop.time())
                raise ConnectionRefusedError("no")

            health = Health("lan", MANNERS, probe, lambda: None)
            begun = loop.time()
            health.failed(ConnectionRefusedError("no"))
            await eventually(lambda: len(asked) >= 6, "it is asked")
            await health.close()
            return [later - earlier for earlier, later in zip([begun, *asked], asked, strict=False)]

        one, other = await asyncio.gather(outage(), outage())
        for pauses in (one, other):
            assert pauses[0] < 0.5
            assert pauses[4] > pauses[0]
            assert max(pauses) < MANNERS.longest_pause + SLACK_S
        assert any(abs(mine - yours) > 0.001 for mine, yours in zip(one, other, strict=False)), "they are not in step"


class TestSweep:
    """Keys that a crash left behind."""

    async def _session(self, url, directory, state, place, store=STORE):
        bench = Bench(LanController(url=url), directory, state)
        context = OpenContext(store, 3, directory, dict(state), place=place)
        await bench.controller.open(context)
        return bench

    async def test_they_are_unlinked_at_the_next_open_and_nothing_else_is(self, redis, tmp_path):
        redis.ask("SET", "somebody:else", "1")
        stranger = await self._session(redis.url, tmp_path, {}, None, uuid4())
        foreign = await stranger.put(chunks(3))
        bench = await self._session(redis.url, tmp_path, {}, {}.get)
        places = await bench.put(chunks())
        await bench.commit(places)
        before = await server_keys(redis)
        # Changed and new chunks of a commit that never happened; the process ends without a word.
        await bench.put({1: payload(11, 5000), 2: payload(12, 700_000), 50: b"new"})
        assert await server_keys(redis) > before
        await bench.controller.close()

        again = await self._session(redis.url, tmp_path, bench.state, places.get)
        fresh = await again.put({60: b"of this session"})
        await eventually(lambda: int(redis.ask("DBSIZE")[1:]) == before + 1, "they are gone")
        assert await again.get(places) == chunks()
        assert await again.get(fresh) == {60: b"of this session"}
        assert await stranger.get(foreign) == chunks(3)
        for one in (again, stranger):
            await one.controller.close()

    async def test_they_are_found_too_when_the_server_comes_late(self, redis, tmp_path):
        bench = await self._session(redis.url, tmp_path, {}, {}.get)
        places = await bench.put(chunks(3))
        await bench.commit(places)
        before = await server_keys(redis)
        await bench.put({50: b"of a commit that never was"})
        await bench.controller.close()
        redis.kill()
        with pytest.warns(RuntimeWarning, match="starts without its server"):
            again = await self._session(redis.url, tmp_path, bench.state, places.get)
        redis.start()
        await eventually(lambda: int(redis.ask("DBSIZE")[1:]) == before, "it is gone")
        assert await again.get(places) == chunks(3)
        await again.controller.close()

    async def test_an_older_copy_of_the_catalog_deletes_nothing_of_the_newer(self, redis, tmp_path):
        first = await self._session(redis.url, tmp_path, {}, {}.get)
        places = await first.put(chunks(3))
        await first.commit(places)
        await first.controller.close()
        backup = dict(first.state)

        second = await self._session(redis.url, tmp_path, first.state, places.get)
        more = await second.put({7: b"later"})
        await second.commit(more)
        await second.controller.close()

        old = await self._session(redis.url, tmp_path, backup, places.get)
        await old.controller._open.sweeping.wait()
        assert await old.get(more) == {7: b"later"}
        await old.controller.close()

    async def test_a_walk_goes_on_when_the_server_is_back(self, redis, tmp_path):
        bench = await self._session(redis.url, tmp_path, {}, {}.get)
        await bench.commit(await bench.put({1: b"kept"}))
        kept = await server_keys(redis)
        garbage = dict.fromkeys(range(100, 3100), b"x")
        await bench.put(garbage)
        await bench.controller.close()
        async with FaultProxy(redis.port) as proxy:
            proxy.latency = 0.05
            again = await self._session(proxy.url, tmp_path, bench.state, lambda id: None)
            await proxy.refuse()
            await again.controller._open.sweeping.wait()
            proxy.latency = 0
            await proxy.listen()
            await eventually(lambda: int(redis.ask("DBSIZE")[1:]) == kept - 1, "all but mark and probe are gone")
            await again.controller.close()


async def test_what_is_unlinked_while_the_server_comes_back_is_not_left():
    sent = []

    class Flapping(Trips):
        async def make(self, trips, take, *, write):
            for trip in trips:
                sent.append(trip.commands[0][1:])
                take(0, 0, ResponseError("away") if len(sent) == 1 else 1)
            if len(sent) == 1:
                # Back, before the one who asked has heard that it was away.
                queue.resume()

    queue = unlinking.Unlinking(SimpleNamespace(many_keys=True), Flapping(None, None, 1))
    queue.add(["a", "b"])
    await queue.wait(60)
    assert [sorted(keys) for keys in sent] == [["a", "b"], ["a", "b"]]
    await queue.close()


def test_keys_begin_alike_so_that_a_rule_can_name_them():
    layout = Layout(STORE, 3, "lan")
    for key in (layout.mark, layout.probe(5)):
        assert key.startswith("dstorage:")
        assert layout.parse(key) is None
