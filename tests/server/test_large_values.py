"""Values longer than a piece, longer than memory, and keys whose values are not in memory."""

from __future__ import annotations

import asyncio
import random

import hiredis
import pytest

from dstorage.server.large import Manifest
from dstorage.server.server import Limits

PIECE = 256 * 1024


async def tight(make_node, **options):
    """A node with 4 MiB of memory, and a client."""
    node = await make_node(budget="4M", **options)
    assert node.server.large.piece == PIECE
    client = await node.client()
    return node, client


async def test_a_value_larger_than_memory_goes_in_and_comes_out(make_node):
    node, client = await tight(make_node)
    value = random.Random(1).randbytes(16 * 2**20)
    peak = 0

    async def watch():
        nonlocal peak
        while True:
            peak = max(peak, node.store.memory_used)
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    assert await client.send("SET", "k", value) == b"OK"
    assert await client.send("STRLEN", "k") == len(value)
    assert await client.send("GET", "k") == value
    assert await client.send("GETRANGE", "k", 5_000_000, 9_000_000) == value[5_000_000:9_000_001]
    watcher.cancel()
    assert peak <= 4 * 2**20
    assert node.server.buffered == 0
    await client.send("DSTORAGE.COMMIT")
    assert node.store.stats().chunks == 64 + 1
    assert await client.send("GETDEL", "k") == value
    await client.send("DSTORAGE.COMMIT")
    assert node.store.stats().chunks == 0
    assert await client.send("DBSIZE") == 0


@pytest.mark.parametrize("seed", range(4))
async def test_long_values_change_as_a_string_would(client, seed):
    rng = random.Random(seed)
    piece = client.node.server.large.piece
    model = b""
    await client.send("DEL", "k")
    for _ in range(30):
        match rng.choice(["append", "setrange", "far", "set", "getrange", "small"]):
            case "append":
                data = rng.randbytes(rng.choice([1, 1000, piece - 1, piece]))
                model += data
                assert await client.send("APPEND", "k", data) == len(model)
            case "setrange" | "far" as how:
                offset = rng.randrange(len(model) + 1) if how == "setrange" else len(model) + rng.randrange(3 * piece)
                data = rng.randbytes(rng.choice([1, 1000, piece]))
                model = model[:offset].ljust(offset, b"\0") + data + model[offset + len(data) :]
                assert await client.send("SETRANGE", "k", offset, data) == len(model)
            case "set":
                model = rng.randbytes(rng.choice([10, piece, piece + 1, 3 * piece]))
                assert await client.send("SET", "k", model) == b"OK"
            case "small":
                model = b"small"
                assert await client.send("SET", "k", model) == b"OK"
            case "getrange":
                start, end = sorted(rng.randrange(len(model) + 1) for _ in range(2))
                assert await client.send("GETRANGE", "k", start, end) == model[start : end + 1]
        if rng.random() < 0.3:
            await client.send("DSTORAGE.COMMIT")
        assert await client.send("STRLEN", "k") == len(model)
    assert await client.send("GET", "k") == model
    await client.send("DEL", "k")
    await client.send("DSTORAGE.COMMIT")
    assert client.node.store.stats().chunks == 0


async def test_a_reader_sees_one_value_from_its_first_byte_to_its_last(make_node):
    node, reader = await tight(make_node)
    writer = await node.client()
    await writer.send("SET", "k", b"a" * 12_000_000)
    reader.write("GET", "k")
    (connection,) = [one for one in node.server.connections if one.id == 1]
    while connection._writable:
        await asyncio.sleep(0)
    await writer.send("SETRANGE", "k", 11_999_000, b"changed")
    await writer.send("APPEND", "k", b"longer")
    assert (
        await writer.send("SET", "k", b"b" * 6_000_000, "GET")
        == b"a" * 11_999_000 + b"changed" + b"a" * 993 + b"longer"
    )
    await writer.send("DEL", "k")
    assert await reader.receive() == b"a" * 12_000_000
    await writer.send("DSTORAGE.COMMIT")
    assert node.store.stats().chunks == 0
    assert dict(node.store.names()) == {}


async def test_more_keys_than_memory_are_read_and_changed_wherever_they_are(make_node):
    node, client = await tight(make_node)
    values = {f"k{number}": b"%d," % number * 5000 for number in range(700)}
    for key, value in values.items():
        client.write("SET", key, value)
    for _ in values:
        assert await client.receive() == b"OK"
    assert sum(map(len, values.values())) > 3 * 4 * 2**20
    await client.send("DSTORAGE.COMMIT")
    order = list(values)
    random.Random(5).shuffle(order)
    clients = [client, *[await node.client() for _ in range(7)]]
    for number, key in enumerate(order):
        clients[number % 8].write("APPEND", key, b"!")
    for number, key in enumerate(order):
        values[key] += b"!"
        assert await clients[number % 8].receive() == len(values[key])
    assert await client.send("MGET", *values) == list(values.values())
    assert node.store.memory_used <= 4 * 2**20
    node, client = await tight(make_node)
    assert await client.send("MGET", *reversed(values)) == list(reversed(values.values()))
    assert await client.send("DEL", *values) == len(values)


@pytest.mark.parametrize("kind", ["MGET", "EXEC"])
async def test_a_small_request_for_many_values_is_answered_without_a_copy_of_all_of_them(client, kind):
    import tracemalloc

    await client.send("SET", "k", b"x" * 16_000)
    if kind == "EXEC":
        client.write("MULTI")
        for _ in range(3000):
            client.write("GET", "k")
        for _ in range(3001):
            await client.receive()
    tracemalloc.start()
    client.write(*(["EXEC"] if kind == "EXEC" else ["MGET", *["k"] * 3000]))
    before = tracemalloc.get_traced_memory()[0]
    while not (got := client.reader._buffer):
        await asyncio.sleep(0)
    size = len(got)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert held < size + 8_000_000, "48 MB are asked for"
    assert await client.receive() == [b"x" * 16_000] * 3000


@pytest.mark.parametrize("change", [["DEL", "k"], ["SET", "k", "new"]])
async def test_a_value_that_is_replaced_while_somebody_waits_for_it_is_no_error(make_node, monkeypatch, change):
    node, client = await tight(make_node)
    for key in ("k", "large"):
        await client.send("SET", key, b"x" * (1000 if key == "k" else 3_000_000))
    node, client = await tight(make_node)
    waits, may_go_on = asyncio.Event(), asyncio.Event()

    async def fetch(handle, seconds):
        waits.set()
        await may_go_on.wait()
        return await handle

    monkeypatch.setattr(node.server.chunks, "bring", lambda id: False)
    monkeypatch.setattr("dstorage.server.chunks.fetch", fetch)
    client.write("GET", "k")
    await waits.wait()
    assert await (await node.client()).send(*change) in (1, b"OK")
    may_go_on.set()
    assert await client.receive() == (None if change[0] == "DEL" else b"new")


async def test_counting_in_many_clients_at_once_loses_nothing_when_the_number_is_not_in_memory(make_node):
    node, client = await tight(make_node)
    await client.send("SET", "n", "0")
    clients = [await node.client() for _ in range(10)]
    for turn in range(5):
        for number in range(300):
            client.write("SET", f"fill{number}", b"x" * 20_000 + b"%d" % turn)
        for _ in range(300):
            await client.receive()
        for other in clients:
            other.write("INCR", "n")
        for other in clients:
            await other.receive()
    assert await client.send("GET", "n") == b"50"


async def test_an_upload_that_breaks_off_leaves_nothing(make_node):
    node, client = await tight(make_node)
    client.writer.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$8000000\r\n" + b"x" * 3_000_000)
    while node.store.stats().handles < 10:
        await asyncio.sleep(0.01)
    await client.close()
    while node.server.connections or node.server._tasks - {node.server._minder}:
        await asyncio.sleep(0.01)
    await node.store.commit()
    assert node.store.stats().chunks == 0
    assert dict(node.store.names()) == {}
    assert node.server.buffered == 0


async def test_pieces_of_an_upload_that_was_under_way_at_a_crash_go_at_the_next_start(make_node):
    node, client = await tight(make_node)
    client.writer.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$8000000\r\n" + b"x" * 3_000_000)
    while node.store.stats().handles < 10:
        await asyncio.sleep(0.01)
    marks = dict(node.store.names(b"redis\0d"))
    assert len(marks) >= 10
    await node.store.commit()
    names = dict(marks)
    await client.close()
    while dict(node.store.names()):
        await asyncio.sleep(0.01)
    # As if the process had ended before it could do that.
    for name in names:
        with await node.store.create(b"piece") as handle:
            node.store.set_name(name[:7] + handle.id.to_bytes(8, "big"), handle.id)
    node, client = await tight(make_node)
    await client.send("DSTORAGE.COMMIT")
    assert node.store.stats().chunks == 0
    assert dict(node.store.names()) == {}


async def test_long_arguments_where_none_can_be_are_refused_and_the_connection_goes_on(make_node):
    node, client = await tight(make_node)
    long = b"x" * (PIECE + 1)
    for command in (
        ["APPEND", "k", long],
        ["GET", long],
        ["ECHO", long],
        [long],
        ["MSET", "k", long],
        ["SET", long, "v"],
        ["NOSUCH", long],
    ):
        reply = await client.send(*command)
        assert isinstance(reply, hiredis.ReplyError), command[0][:10]
    assert "too long for 'append'" in str(await client.send("APPEND", "k", long))
    for command in (["SET", "k", long, "EX"], ["SETEX", "k", "x", long], ["SET", long]):
        assert isinstance(await client.send(*command), hiredis.ReplyError)
    assert await client.send("SET", "k", long, "XX") is None
    assert await client.send("SETNX", "k", long) == 1
    assert await client.send("SETNX", "k", long + b"y") == 0
    assert await client.send("GETSET", "k", long + b"z") == long
    assert await client.send("GET", "k") == long + b"z"
    await client.send("DEL", "k")
    await node.store.commit()
    assert node.store.stats().chunks == 0
    assert node.server.buffered == 0


async def test_keys_have_a_longest_length(client):
    assert await client.send("SET", b"k" * 494, "v") == b"OK"
    assert await client.send("GET", b"k" * 494) == b"v"
    for command in (["SET", b"k" * 495, "v"], ["MSET", "a", "b", b"k" * 20000, "v"], ["APPEND", b"k" * 495, "v"]):
        assert "at most 494 bytes" in str(await client.send(*command))
    assert await client.send("GET", b"k" * 495) is None
    assert await client.send("DEL", b"k" * 495) == 0
    assert await client.send("EXISTS", "a") == 0
    await client.send("DSTORAGE.COMMIT")
    assert client.node.store.stats().chunks == 1


async def test_a_lost_value_is_said_to_be_lost_and_can_be_replaced_and_deleted(make_node):
    node = await make_node()
    client = await node.client()
    keys = ["plain", "plain2", "plain3", "large", "large2", "large3"]
    for key in keys:
        await client.send("SET", key, b"x" * (3_000_000 if "large" in key else 10))
    await client.send("DSTORAGE.COMMIT")
    for id in list(node.store.ids()):
        node.store.forget(id)
    node = await make_node()
    client = await node.client()
    for key in keys:
        assert str(await client.send("GET", key)).startswith("LOST")
    assert await client.send("SET", "plain", "again") == b"OK"
    assert await client.send("SET", "large", "again") == b"OK"
    assert await client.send("MGET", "plain", "large") == [b"again", b"again"]
    assert await client.send("DEL", *keys[:5]) == 5
    assert await client.send("FLUSHDB", "SYNC") == b"OK"
    assert dict(node.store.names()).keys() == {b"redis\0epoch"}


async def test_no_room_is_said_as_oom_and_nothing_was_done(make_node, monkeypatch):
    monkeypatch.setattr("dstorage.server.connection.PATIENCE_S", 0.2)
    node, client = await tight(make_node)
    held = [await node.store.create(b"x" * 1_000_000) for _ in range(3)]
    await node.store.commit()
    held += [await node.store.create(b"x" * 500_000) for _ in range(2)]
    await node.store.commit()
    reply = await client.send("MSET", "a", b"x" * 120_000, "b", b"y" * 120_000)
    assert str(reply).startswith("OOM")
    assert await client.send("EXISTS", "a", "b") == 0
    assert await client.send("PING") == b"PONG"
    for handle in held:
        handle.release()
    assert await client.send("MSET", "a", b"x" * 120_000, "b", b"y" * 120_000) == b"OK"


def test_a_chunk_that_is_no_manifest_is_found_out():
    from dstorage.errors import CorruptData

    whole = Manifest(100, 250, (1, 2, 3)).pack()
    assert Manifest.unpack(whole, 1) == Manifest(100, 250, (1, 2, 3))
    for damaged in (b"", whole[:-1], whole + b"12345678", b"xxxx" + whole[4:], whole[:4] + bytes(4) + whole[8:]):
        with pytest.raises(CorruptData):
            Manifest.unpack(damaged, 1)


async def test_a_request_of_many_arguments_is_limited(make_node):
    node = await make_node(limits=Limits(request=1_000_000))
    client = await node.client()
    client.write("MSET", *[part for number in range(200) for part in (f"k{number}", b"x" * 10_000)])
    assert "a request of more than 1000000 bytes" in str(await client.receive())
