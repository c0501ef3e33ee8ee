"""The same commands to a real redis-server and to the node: the same replies."""

from __future__ import annotations

import asyncio
import random
import time

import hiredis
import pytest
from nodes import Client
from servers.redis_server import RedisServer

KEYS = [b"a", b"b", b"number", b"float", b"", b"k\r\n\x00\xff"]
FAR = 4_000_000_000
"""A second far in the future, in any unit."""


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"), durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def both(redis, client):
    link = Client(*await asyncio.open_connection("127.0.0.1", redis.port))
    await link.send("FLUSHALL")
    yield link, client
    await link.close()


class Stream:
    """Random commands, right and wrong."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def key(self):
        return self.random.choice(KEYS)

    def value(self):
        r = self.random
        return r.choice(
            [
                b"",
                b"x",
                b"%d" % r.randrange(-100, 100),
                b"%d" % r.choice([2**63 - 1, -(2**63), 2**63, 2**62]),
                b"%.3f" % r.uniform(-1000, 1000),
                r.choice([b"1e3", b"abc", b" 1", b"1 ", b"+1", b"-0", b"00", b"1e400", b"nan", b".5", b"5."]),
                r.randbytes(r.randrange(100)),
                bytes([r.randrange(256)]) * r.choice([16383, 16384, 20000, 70000]),
            ]
        )

    def number(self):
        r = self.random
        return r.choice(
            [0, 1, -1, 7, -7, 100, r.randrange(-200, 200), 2**31, 2**63 - 1, -(2**63), 2**63, "x", "", "1.5", "01"]
        )

    def seconds(self):
        r = self.random
        # Never the same twice: which of two equal ones is later depends on the millisecond.
        far = FAR + r.randrange(10**8)
        return r.choice([far, far, far, 0, -1, 2**63 - 1, -(2**63), 2**53, "x", "1.5"])

    def case(self, name):
        return self.random.choice([name, name.lower(), name.title()])

    def expiry(self):
        r = self.random
        option = r.choice(["EX", "PX", "EXAT", "PXAT"])
        # Not in the past: such a key is gone at once here, and at some moment soon there.
        moment = r.choice([FAR * 1000, FAR * 1000, 2**53, 0, -1, "x", "1.5", 2**63 - 1, -(2**63), 2**63])
        return [self.case(option), moment]

    def command(self):
        r = self.random
        match r.choice(
            [
                "get",
                "set",
                "setopt",
                "getrange",
                "setrange",
                "append",
                "strlen",
                "mget",
                "mset",
                "msetnx",
                "del",
                "exists",
                "incr",
                "incrby",
                "float",
                "getset",
                "getdel",
                "getex",
                "setnx",
                "setex",
                "expire",
                "persist",
                "ttl",
                "type",
                "wrong",
                "dbsize",
                "touch",
                "keys",
                "misc",
            ]
        ):
            case "get":
                return ["GET", self.key()]
            case "set":
                return ["SET", self.key(), self.value()]
            case "setopt":
                options = []
                for _ in range(r.randrange(1, 4)):
                    options += r.choice(
                        [["NX"], ["XX"], ["GET"], ["KEEPTTL"], self.expiry(), self.expiry(), ["FOO"], ["EX"]]
                    )
                return ["SET", self.key(), self.value(), *options]
            case "getrange":
                return [r.choice(["GETRANGE", "SUBSTR"]), self.key(), self.number(), self.number()]
            case "setrange":
                return [
                    "SETRANGE",
                    self.key(),
                    r.choice([0, 1, 5, 100, -1, 2**29, "x", 3_000_000]),
                    r.choice([b"", b"y", b"yyyy"]),
                ]
            case "append":
                return ["APPEND", self.key(), self.value()[:1000]]
            case "strlen":
                return ["STRLEN", self.key()]
            case "mget":
                return ["MGET", *[self.key() for _ in range(r.randrange(1, 5))]]
            case "mset" | "msetnx" as name:
                args = [part for _ in range(r.randrange(1, 4)) for part in (self.key(), self.value())]
                return [name.upper(), *(args[:-1] if r.random() < 0.1 else args)]
            case "del":
                return [r.choice(["DEL", "UNLINK"]), *[self.key() for _ in range(r.randrange(1, 4))]]
            case "exists" | "touch" as name:
                return [name, *[self.key() for _ in range(r.randrange(1, 4))]]
            case "incr":
                return [r.choice(["INCR", "DECR"]), self.key()]
            case "incrby":
                return [r.choice(["INCRBY", "DECRBY"]), self.key(), self.number()]
            case "float":
                amount = r.choice(
                    [
                        b"0.1",
                        b"-2.5",
                        b"1e2",
                        b"3",
                        b"x",
                        b"",
                        b"1234567.875",
                        b"1e17",
                        *[
                            b"0x10",
                            b"0X1.8p3",
                            b"-0x.8",
                            b"0x",
                            b"0x1p",
                            b"inf",
                            b"-Infinity",
                            b"nan",
                            b"+1",
                            b"1.",
                            b".5",
                            b".",
                        ],
                        *[b"1e", b"1E5", b"1_0", b"00001", b"1e-400", b"-0", b" 1", b"1 ", b"0x1p-70"],
                        b"-0.000001",
                        b"%.6f" % r.uniform(-9, 9),
                    ]
                )
                return ["INCRBYFLOAT", b"float" if r.random() < 0.8 else self.key(), amount]
            case "getset":
                return ["GETSET", self.key(), self.value()]
            case "getdel":
                return ["GETDEL", self.key()]
            case "getex":
                return [
                    "GETEX",
                    self.key(),
                    *r.choice([[], ["PERSIST"], self.expiry(), self.expiry(), ["NX"], ["EX", 10, "PX", 10]]),
                ]
            case "setnx":
                return ["SETNX", self.key(), self.value()]
            case "setex":
                return [
                    r.choice(["SETEX", "PSETEX"]),
                    self.key(),
                    r.choice([FAR, FAR, 0, -1, "x", 2**63 - 1]),
                    self.value(),
                ]
            case "expire":
                name = r.choice(["EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT"])
                options = r.choice(
                    [[], [], ["NX"], ["XX"], ["gt"], ["LT"], ["NX", "XX"], ["GT", "LT"], ["XX", "GT"], ["foo"]]
                )
                return [name, self.key(), self.seconds(), *options]
            case "persist":
                return ["PERSIST", self.key()]
            case "ttl":
                return [r.choice(["EXPIRETIME", "PEXPIRETIME", "TTL", "PTTL"]), self.key()]
            case "type":
                return ["TYPE", self.key()]
            case "dbsize":
                return ["DBSIZE"]
            case "keys":
                return [
                    "KEYS",
                    r.choice(["*", "a*", "?", "[a-b]", "[^a]*", "n*e*", "\\a", "*\r*", "", "[", "[a-", "f[l]o?t"]),
                ]
            case "misc":
                return r.choice(
                    [
                        ["PING"], ["PING", "x"], ["ECHO", self.value()], ["SELECT", 0], ["SELECT", 99], ["SELECT", "x"], ["WAIT", 0, 0],
                        ["SCAN", 0, "COUNT", 0], ["SCAN", "x"], ["SCAN", 0, "FOO", 1], ["SCAN", 0, "MATCH"], ["SCAN", 0, "COUNT", "x"],
                        ["CLIENT", "GETNAME"], ["CLIENT", "SETNAME", "a b"], ["AUTH", "x"], ["AUTH", "a", "b", "c"], ["HELLO", 4],
                        ["HELLO", "x"], ["HELLO", 2, "FOO"], ["MEMORY", "FOO"], ["CONFIG", "FOO"], ["OBJECT2", "x", self.key()],
                        ["CONFIG", "GET"], ["COMMAND", "GETKEYS", "GET", "k"], ["COMMAND", "GETKEYS", "MSET", "k", 1, "l", 2],
                        ["COMMAND", "GETKEYS", "GET"], ["COMMAND", "GETKEYS", "SET", "k"],
                        ["COMMAND", "COUNT", "x"], ["COMMAND", "LIST", "FILTERBY", "PATTERN", "getr*"], ["COMMAND", "LIST", "FOO"],
                        ["COMMAND", "INFO", "none"], ["COMMAND", "DOCS", "none"], ["CONFIG", "SET", "a"], ["CONFIG", "RESETSTAT", "x"],
                        ["CONFIG", "GET", "maxmemory-p[no]licy", "none*"], ["CLUSTER", "INFO"], ["READONLY"], ["MEMORY", "USAGE", "none"],
                        ["MEMORY", "USAGE", "none", "SAMPLES"], ["MEMORY", "USAGE", "none", "SAMPLES", "-1"], ["BGSAVE", "FOO"],
                        ["CLIENT", "GETNAME", "x"], ["CLIENT", "NO-EVICT", "foo"], ["CLIENT", "NO-EVICT"], ["CLIENT", "LIST", "TYPE", "x"],
                        ["CLIENT", "LIST", "ID", 99999], ["CLIENT", "LIST", "ID", "x"], ["CLIENT", "LIST", "FOO"], ["CLIENT", "REPLY", "ON"],
                        ["CLIENT", "KILL", "1.2.3.4:5"], ["CLIENT", "KILL", "ID", 99999], ["CLIENT", "KILL", "ID", 0], ["CLIENT", "KILL", "a", "b", "c"],
                        ["CLIENT", "KILL", "TYPE", "foo"], ["CLIENT", "TRACKING", "OFF"], ["CLIENT", "SETNAME", "name"], ["CLIENT", "SETNAME", ""], ["COMMAND", "GETKEYS", "NONE", "k"], ["COMMAND", "GETKEYS", "PING"], ["FLUSHALL", "x"],
                    ]
                )  # fmt: skip
            case _:
                name = r.choice(
                    ["GET", "SET", "TTL", "EXPIRE", "GETRANGE", "NOSUCH", "INCRBY", "SETEX", "MGET", "HELLO\xff", "DEL"]
                )
                return [name, *[self.value()[:20] for _ in range(r.randrange(3))]]


def shown(reply):
    return f"error {reply}" if isinstance(reply, hiredis.ReplyError) else reply


def same(command, theirs, ours, commands):
    name = str(command[0]).upper()
    if name == "EXEC" and isinstance(theirs, list):
        return len(theirs) == len(ours) and all(map(same, commands[1:-1], theirs, ours, [()] * len(theirs)))
    theirs, ours = shown(theirs), shown(ours)
    if (
        name in ("TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME")
        and isinstance(theirs, int)
        and isinstance(ours, int)
        and theirs > 0
    ):
        # The clocks of two processes, in the command's unit.
        return abs(theirs - ours) <= (20 if "P" not in name[0] else 20_000)
    if name == "KEYS" and isinstance(theirs, list):
        return sorted(theirs) == sorted(ours)
    return theirs == ours


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("version", [2, 3])
async def test_random_commands_get_the_same_replies(both, seed, version):
    redis, node = both
    if version == 3:
        assert dict_of(await redis.send("HELLO", 3))[b"proto"] == dict_of(await node.send("HELLO", 3))[b"proto"] == 3
    stream = Stream(seed)
    done = []
    for _ in range(60):
        commands = [stream.command() for _ in range(stream.random.choice([1, 5, 30]))]
        if stream.random.random() < 0.3:
            commands = [["MULTI"], *commands, [stream.random.choice(["EXEC", "EXEC", "DISCARD"])]]
        for command in commands:
            redis.write(*command)
            node.write(*command)
        for command in commands:
            done.append(command)
            theirs, ours = await redis.receive(), await node.receive()
            if command[0] == "HELLO" and not isinstance(theirs, hiredis.ReplyError):
                continue
            assert same(command, theirs, ours, commands), (
                f"after {len(done)} commands {command}: {shown(theirs)!r} != {shown(ours)!r}"
            )
    for key in KEYS:
        assert shown(await redis.send("GET", key)) == shown(await node.send("GET", key))


def dict_of(reply):
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


async def test_keys_are_there_until_their_moment_and_not_after(both):
    for link in both:
        moment = int(time.time() * 1000) + 500
        await link.send("SET", "k", "v", "PXAT", moment)
        await link.send("SET", "stays", "v")
        there = 2
        while there == 2:
            before = time.time() * 1000
            there = await link.send("EXISTS", "k", "stays")
            after = time.time() * 1000
            # The clock of another process may be read a little differently.
            assert there == 2 or after >= moment - 5
            assert there == 1 or before <= moment + 5
        assert await link.send("DBSIZE") == 1


INLINE = [
    b"PING\r\n",
    b"SET k 'a b'\r\n",
    b'GET "k"\r\n',
    b"\r\n",
    b"  get   k  \r\n",
    b'ECHO "\\x41\\n"\r\n',
    b"ping\n",
]
BROKEN = [
    b"*1\r\n!\r\n",
    b"*x\r\n",
    b"*2\r\n$3\r\nGET\r\n$-5\r\n",
    b"GET 'k\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$600000000\r\n",
]


async def test_inline_commands_and_broken_ones_get_the_same_bytes(redis, client):
    async def ask(port, data):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return answer

    for data in [b"".join(INLINE), *BROKEN, *[b"".join(INLINE) + broken for broken in BROKEN]]:
        assert await ask(redis.port, data) == await ask(client.node.port, data), data
