"""MULTI, EXEC, DISCARD, WATCH: all or nothing, for other clients, for commits, wherever the values are."""

from __future__ import annotations

import asyncio
import random

import hiredis
import pytest
import redis.asyncio
from nodes import Client
from servers.redis_server import RedisServer

from dstorage.server.server import Limits

SCENARIOS = [
    [["EXEC"], ["DISCARD"], ["UNWATCH"], ["WATCH"], ["MULTI", "x"], ["EXEC"]],
    [["MULTI"], ["MULTI"], ["SET", "k", "1"], ["EXEC"], ["EXEC"]],
    [["MULTI"], ["WATCH", "k"], ["UNWATCH"], ["SET", "k", "1"], ["EXEC"], ["GET", "k"]],
    [["MULTI"], ["DISCARD", "x"], ["EXEC"]],
    [["MULTI"], ["SET", "k"], ["SET", "k", "1"], ["EXEC"], ["EXEC"], ["GET", "k"]],
    [["MULTI"], ["NOSUCH"], ["SET", "k", "1"], ["EXEC"], ["GET", "k"]],
    [["MULTI"], ["NOSUCH"], ["DISCARD"], ["MULTI"], ["PING"], ["EXEC"]],
    [["MULTI"], ["SET", "k", "x"], ["INCR", "k"], ["GET", "k"], ["EXEC"], ["GET", "k"]],
    [["MULTI"], ["SET", "k", "x"], ["DISCARD"], ["GET", "k"]],
    [["MULTI"], ["SET", "k", "x"], ["RESET"], ["EXEC"], ["GET", "k"]],
    [["MULTI"], ["EXEC"]],
    [["MULTI"], ["AUTH", "x"], ["HELLO", 9], ["GET", "k"], ["EXEC"]],
    [["MULTI"], ["PING"], ["ECHO", "a"], ["SELECT", 0], ["SELECT", 99], ["CLIENT", "GETNAME"], ["GET", "none"], ["DBSIZE"],
     ["MGET", "a", "b"], ["KEYS", "zz"], ["WAIT", 0, 0], ["FLUSHALL"], ["TTL", "k"], ["EXISTS", "k"], ["EXEC"], ["PING"]],
    [["WATCH", "k"], ["SET", "k", "2"], ["MULTI"], ["GET", "k"], ["EXEC"]],
    [["WATCH", "k"], ["other", "SET", "k", "5"], ["UNWATCH"], ["MULTI"], ["GET", "k"], ["EXEC"]],
    [["WATCH", "k"], ["other", "SET", "k", "5"], ["MULTI"], ["DISCARD"], ["MULTI"], ["GET", "k"], ["EXEC"]],
    [["HELLO", 3], ["WATCH", "k"], ["other", "SET", "k", "2"], ["MULTI"], ["EXEC"]],
    [["SET", "k", "1", "PX", 30], ["WATCH", "k"], ["sleep"], ["MULTI"], ["GET", "k"], ["EXEC"]],
    [["SET", "k", "1", "PX", 30], ["sleep"], ["WATCH", "k"], ["other", "GET", "k"], ["MULTI"], ["GET", "k"], ["EXEC"]],
    *[
        [["SET", "k", "1"], ["WATCH", "none", "k", "k"], ["other", *change], ["MULTI"], ["GET", "k"], ["EXEC"]]
        for change in [
            ["GET", "k"], ["SET", "k", "2"], ["SET", "k", "1", "NX"], ["SET", "none", "x"], ["DEL", "none"], ["DEL", "k"], ["FLUSHALL"],
            ["EXPIRE", "k", 100], ["EXPIRE", "k", 100, "XX"], ["EXPIRE", "k", -1], ["PERSIST", "k"], ["APPEND", "k", ""], ["INCR", "k"],
            ["SETRANGE", "k", 0, ""], ["SETRANGE", "k", 0, "1"], ["INCRBYFLOAT", "k", 0], ["GETEX", "k"], ["GETEX", "k", "EX", 10],
            ["GETDEL", "k"], ["GETSET", "k", "1"], ["TOUCH", "k"], ["MSET", "a", 1, "k", 1], ["MSETNX", "a", 1, "k", 1], ["SCAN", 0],
        ]
    ],
]  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"), durable=False)
    server.start()
    yield server
    server.stop()


async def play(port, script):
    clients = [Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(2)]
    client, other = clients
    await other.send("FLUSHALL")
    replies = []
    for command in script:
        if command[0] == "other":
            await other.send(*command[1:])
        elif command[0] == "sleep":
            await asyncio.sleep(0.06)
        else:
            reply = await client.send(*command)
            replies.append("map" if isinstance(reply, dict) else reply)
    for one in clients:
        await one.close()
    return [repr(reply) for reply in replies]


@pytest.mark.parametrize("script", SCENARIOS, ids=lambda script: " ".join(str(c[0]) for c in script)[:50])
async def test_transactions_do_what_they_do_in_redis(real, client, script):
    assert await play(client.node.port, script) == await play(real.port, script)


async def test_redis_py_with_its_usual_pipeline_and_optimistic_locking(client):
    async with redis.asyncio.Redis(port=client.node.port) as one, redis.asyncio.Redis(port=client.node.port) as two:
        async with one.pipeline() as pipe:
            for number in range(300):
                pipe.set(f"k{number}", b"v" * number).get(f"k{number}")
            assert (await pipe.execute())[1::2] == [b"v" * number for number in range(300)]
        turns = 0

        async def add(pipe):
            nonlocal turns
            turns += 1
            value = int(await pipe.get("n") or 0)
            if turns < 3:
                await two.incr("n", 100)
            pipe.multi()
            pipe.set("n", value + 1)

        await one.transaction(add, "n")
        assert await one.get("n") == b"201"
        assert turns == 3


async def test_nobody_sees_half_of_a_transaction_wherever_its_values_are(make_node):
    node = await make_node(budget="4M")
    client, reader = await node.client(), await node.client()
    await client.send("MSET", "a", b"0" * 50_000, "b", b"0" * 50_000)
    done = asyncio.Event()

    async def read():
        seen = set()
        while not done.is_set():
            for command in (["MULTI"], ["GETRANGE", "a", 0, 5], ["GETRANGE", "b", 0, 5], ["EXEC"]):
                reader.write(*command)
            _, _, _, (a, b) = [await reader.receive() for _ in range(4)]
            assert a == b
            seen.add(a)
        return seen

    reading = asyncio.create_task(read())
    for turn in range(1, 30):
        # Push both out of memory: what the transaction changes has to come back first, one after the other.
        for number in range(120):
            client.write("SET", f"fill{number}", b"x" * 40_000 + b"%d" % turn)
        for _ in range(120):
            await client.receive()
        client.write("MULTI")
        client.write("SETRANGE", "a", 0, f"{turn:06}")
        client.write("DSTORAGE.COMMIT")
        client.write("SETRANGE", "b", 0, f"{turn:06}")
        client.write("EXEC")
        assert [await client.receive() for _ in range(5)] == [b"OK", *[b"QUEUED"] * 3, [50_000, b"OK", 50_000]]
    done.set()
    assert len(await reading) > 5
    node = await make_node(budget="4M")
    client = await node.client()
    assert [await client.send("GETRANGE", key, 0, 5) for key in "ab"] == [b"000029"] * 2


async def test_long_values_go_through_transactions_as_they_were_at_its_moment(make_node):
    node = await make_node(budget="4M")
    client = await node.client()
    piece = node.server.large.piece
    old, new = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(9_000_000)
    await client.send("SET", "k", old)
    await client.send("SET", "other", b"o" * 2_000_000)
    commands = [
        ["GET", "k"], ["SET", "k", new, "GET"], ["GETRANGE", "k", 8_999_990, -1], ["APPEND", "k", b"end"], ["MGET", "k", "none", "other"],
        ["SETRANGE", "k", piece - 2, b"across"], ["GETRANGE", "k", piece - 2, piece + 3], ["DEL", "other"], ["STRLEN", "k"], ["GETDEL", "k"],
    ]  # fmt: skip
    client.write("MULTI")
    for command in commands:
        client.write(*command)
    client.write("EXEC")
    assert await client.receive() == b"OK"
    assert [await client.receive() for _ in commands] == [b"QUEUED"] * len(commands)
    changed = new[: piece - 2] + b"across" + new[piece + 4 :] + b"end"
    assert await client.receive() == [
        old, old, new[-10:], 9_000_003, [new + b"end", None, b"o" * 2_000_000],
        9_000_003, b"across", 1, 9_000_003, changed,
    ]  # fmt: skip
    await client.send("DSTORAGE.COMMIT")
    assert node.store.stats().chunks == 0
    assert dict(node.store.names()) == {}
    assert node.server.buffered == 0


@pytest.mark.parametrize("end", ["DISCARD", "failed EXEC", "hang up"])
async def test_a_transaction_that_comes_to_nothing_leaves_nothing(make_node, end):
    node = await make_node(budget="4M")
    client, other = await node.client(), await node.client()
    await client.send("WATCH", "k")
    await client.send("MULTI")
    assert await client.send("SET", "k", b"x" * 3_000_000) == b"QUEUED"
    assert await client.send("SET", "j", b"x" * 100_000) == b"QUEUED"
    assert node.server.buffered > 100_000
    if end == "DISCARD":
        assert await client.send("DISCARD") == b"OK"
    elif end == "failed EXEC":
        await other.send("SET", "k", "v")
        assert await client.send("EXEC") is None
        await other.send("DEL", "k")
    else:
        await client.close()
    while node.server.buffered or node.server._tasks - {node.server._minder}:
        await asyncio.sleep(0.01)
    await other.send("DSTORAGE.COMMIT")
    assert node.store.stats().chunks == 0
    assert dict(node.store.names()) == {}
    assert not node.server.keyspace._watches


async def test_a_client_that_is_killed_while_its_transaction_waits_is_counted_once(make_node, monkeypatch):
    await (await (await make_node()).client()).send("SET", "k", b"x" * 1000)
    node = await make_node()
    client, other = await node.client(), await node.client()
    waits, may_go_on = asyncio.Event(), asyncio.Event()

    async def fetch(handle, seconds):
        waits.set()
        await may_go_on.wait()
        return await handle

    monkeypatch.setattr("dstorage.server.chunks.fetch", fetch)
    for command in (["MULTI"], ["SET", "j", b"y" * 100_000], ["APPEND", "k", "y"], ["EXEC"]):
        client.write(*command)
    await waits.wait()
    assert await other.send("CLIENT", "KILL", "TYPE", "normal") == 1
    while len(node.server.connections) > 1:
        await asyncio.sleep(0.01)
    may_go_on.set()
    while await other.send("EXISTS", "j") == 0:
        await asyncio.sleep(0.01)
    assert await other.send("STRLEN", "k") == 1001
    assert node.server.buffered == 0


async def test_a_transaction_larger_than_memory_is_refused_and_nothing_of_it_done(make_node, monkeypatch):
    monkeypatch.setattr("dstorage.server.connection.PATIENCE_S", 0.2)
    node = await make_node(budget="4M")
    client = await node.client()
    for number in range(60):
        await client.send("SET", f"k{number}", b"x" * 100_000)
    client.write("MULTI")
    client.write("SET", "first", "v")
    for number in range(60):
        client.write("APPEND", f"k{number}", "y")
    client.write("EXEC")
    replies = [await client.receive() for _ in range(63)]
    assert replies[:-1] == [b"OK", *[b"QUEUED"] * 61]
    assert str(replies[-1]).startswith("OOM")
    assert await client.send("EXISTS", "first") == 0
    assert await client.send("STRLEN", "k3") == 100_000
    assert await client.send("SET", "after", "v") == b"OK"


async def test_what_is_queued_is_limited(make_node):
    node = await make_node(limits=Limits(request=100_000, buffers=150_000))
    first, second = await node.client(), await node.client()
    for client in (first, second):
        assert await client.send("MULTI") == b"OK"
    assert await first.send("SET", "a", b"x" * 90_000) == b"QUEUED"
    assert "a transaction of more than 100000 bytes" in str(await first.send("SET", "b", b"x" * 10_000))
    replies = [str(await second.send("SET", "b", b"x" * 10_000)) for _ in range(7)]
    assert "no room" in replies[-1]
    for client in (first, second):
        assert str(await client.send("EXEC")).startswith("EXECABORT")
    assert node.server.buffered == 0
    assert await second.send("DBSIZE") == 0
    for number in range(1000):
        reply = await first.send("WATCH", b"%0400d" % number)
        if isinstance(reply, hiredis.ReplyError):
            break
    assert "no room" in str(reply)
    assert await first.send("UNWATCH") == b"OK"
    assert node.server.buffered == 0


async def test_a_lost_value_is_said_to_be_lost_in_its_place(make_node):
    node = await make_node()
    client = await node.client()
    for key in ("plain", "large"):
        await client.send("SET", key, b"x" * (3_000_000 if key == "large" else 10))
    await client.send("DSTORAGE.COMMIT")
    for id in list(node.store.ids()):
        node.store.forget(id)
    node = await make_node()
    client = await node.client()
    client.write("MULTI")
    for command in (["GET", "plain"], ["GET", "large"], ["SET", "k", "v"], ["SET", "plain", "new"], ["GET", "plain"]):
        client.write(*command)
    client.write("EXEC")
    *_, replies = [await client.receive() for _ in range(7)]
    assert [str(reply)[:4] for reply in replies[:2]] == ["LOST", "LOST"]
    assert replies[2:] == [b"OK", b"OK", b"new"]
