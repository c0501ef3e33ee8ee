"""Other people's clients against `dstorage serve`, and the process as its owner sees it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis.asyncio
from servers.certificates import Authority
from servers.process import need

import dstorage

TOOLS = "install the Debian package redis-tools"
MAIN = "from dstorage.cli import main; main()"
PATIENCE_S = 60


class Process:
    """`dstorage serve` as a process of its own."""

    def __init__(self, store: Path, *options: str, environment=None, **more):
        self.child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                MAIN,
                "serve",
                str(store),
                "--port",
                "0",
                "--json",
                "--budget",
                "16M",
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            **more,
        )
        lines = []
        while (line := self.child.stdout.readline()) and line != "}\n":
            lines.append(line)
        if not line:
            raise AssertionError(self.child.communicate(timeout=PATIENCE_S)[1])
        self.port = json.loads("".join([*lines, line]))["port"]

    def end(self, how=signal.SIGTERM) -> int:
        self.child.send_signal(how)
        self.child.communicate(timeout=PATIENCE_S)
        return self.child.returncode


@pytest.fixture
def serve(tmp_path):
    path = tmp_path / "store"

    async def init():
        async with dstorage.open(path, budget="1M", pressure=None):
            pass

    asyncio.run(init())
    running = []

    def start(*options, **more):
        running.append(Process(path, *options, **more))
        return running[-1]

    start.path = path
    yield start
    for process in running:
        if process.child.poll() is None:
            process.end(signal.SIGKILL)


def run(*command, **more) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True, **more).stdout


def test_redis_cli(serve):
    cli = need("redis-cli", TOOLS)
    port = str(serve().port)
    assert run(cli, "-p", port, "SET", "k", "v") == "OK\n"
    assert run(cli, "-p", port, "-3", "GET", "k") == "v\n"
    assert run(cli, "-p", port, "--scan", "--pattern", "k*") == "k\n"
    assert "redis_mode:standalone" in run(cli, "-p", port, "INFO", "server")
    assert run(cli, "-p", port, input="SET a 1\nINCRBY a 41\nGET a\nFOO\n").splitlines()[:3] == ["OK", "42", "42"]
    bulk = b"".join(b"*3\r\n$3\r\nSET\r\n$5\r\n%05d\r\n$3\r\nabc\r\n" % number for number in range(5000))
    piped = subprocess.run([cli, "-p", port, "--pipe"], input=bulk, capture_output=True, timeout=PATIENCE_S, check=True)
    assert b"errors: 0, replies: 5000" in piped.stdout
    assert run(cli, "-p", port, "DBSIZE") == "5002\n"
    assert "5002 keys" in run(cli, "-p", port, "--bigkeys")


def test_redis_benchmark(serve):
    benchmark = need("redis-benchmark", TOOLS)
    port = str(serve().port)
    for size in ("10", "20000"):
        out = run(
            benchmark,
            "-p",
            port,
            "-t",
            "ping,set,get,incr,mset",
            "-n",
            "500",
            "-P",
            "16",
            "-d",
            size,
            "-r",
            "100",
            "--csv",
        )
        rows = [line.split(",")[0] for line in out.splitlines()[1:]]
        assert [row.strip('"').split(" ")[0] for row in rows] == [
            "PING_INLINE",
            "PING_MBULK",
            "SET",
            "GET",
            "INCR",
            "MSET",
        ]


@pytest.mark.parametrize("version", [2, 3])
def test_redis_py(serve, version):
    port = serve().port

    async def main():
        async with redis.asyncio.Redis(port=port, protocol=version) as client:
            assert await client.set("k", b"v", ex=100)
            assert await client.get("k") == b"v"
            assert 0 < await client.ttl("k") <= 100
            async with client.pipeline(transaction=False) as pipe:
                for number in range(500):
                    pipe.set(f"p{number}", b"x" * number)
                    pipe.get(f"p{number}")
                answers = await pipe.execute()
            assert answers[1::2] == [b"x" * number for number in range(500)]
            assert await client.mget("k", "p3", "none") == [b"v", b"xxx", None]
            assert sorted([key async for key in client.scan_iter(match="p1*", count=7)]) == sorted(
                f"p{number}".encode() for number in range(500) if str(number).startswith("1")
            )
            assert (await client.info())["db0"]["keys"] == 501
            assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
            assert "getrange" in await client.command()
            assert await client.client_list()
            with pytest.raises(redis.ResponseError, match="not an integer"):
                await client.incr("k")
            large = random.Random(3).randbytes(20_000_000)
            await client.set("large", large)
            assert await client.get("large") == large
            assert await client.getrange("large", 7_000_000, 7_000_009) == large[7_000_000:7_000_010]

    asyncio.run(main())


NODE_PROGRAM = """
const Redis = require('ioredis');
(async () => {
  const client = new Redis(+process.argv[2], '127.0.0.1', { password: 'secret', connectionName: 'node' });
  await client.set('k', Buffer.from([0, 255, 13, 10]), 'EX', 100);
  const value = await client.getBuffer('k');
  const pipeline = client.pipeline();
  for (let i = 0; i < 500; i++) pipeline.incr('n').get('n');
  const answers = await pipeline.exec();
  const transaction = await client.multi().set('t', 1).incr('t').get('t').exec();
  const large = Buffer.alloc(3000000, 'abc');
  await client.set('large', large);
  let keys = [];
  for await (const some of client.scanStream({ match: '*', count: 2 })) keys = keys.concat(some);
  console.log(JSON.stringify({
    value: [...value], last: answers[999], transaction, same: large.equals(await client.getBuffer('large')),
    keys: keys.sort(), ttl: await client.ttl('k') > 0, error: await client.incr('k').catch(e => e.message),
    name: await client.client('GETNAME'),
  }));
  await client.quit();
})();
"""


@pytest.fixture(scope="module")
def ioredis(tmp_path_factory):
    npm = need("npm", "install the Debian packages nodejs and npm")
    need("node", "install the Debian package nodejs")
    folder = tmp_path_factory.mktemp("node")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "ioredis@5"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"npm cannot install ioredis: {done.stderr[-500:]}")
        pytest.skip("npm cannot install ioredis: the registry is not to be had")
    (folder / "program.js").write_text(NODE_PROGRAM)
    return folder


def test_ioredis(serve, ioredis):
    port = serve(environment={"DSTORAGE_PASSWORD": "secret"}).port
    told = json.loads(run(shutil.which("node"), "program.js", str(port), cwd=ioredis))
    assert told == {
        "value": [0, 255, 13, 10],
        "last": [None, "500"],
        "transaction": [[None, "OK"], [None, 2], [None, "2"]],
        "same": True,
        "keys": ["k", "large", "n", "t"],
        "ttl": True,
        "error": "ERR value is not an integer or out of range",
        "name": "node",
    }


def ask(port, *command, count=1):
    """Raw replies over a plain socket."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as link:
        link.sendall(b"".join(command))
        reply = b""
        while reply.count(b"\r\n") < count:
            data = link.recv(65536)
            if not data:
                break
            reply += data
        return reply


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_ordered_end_commits(serve, how):
    first = serve("--commit-interval", "1000")
    assert ask(first.port, b"SET k v\r\nSET e v EX 1000\r\n", count=2) == b"+OK\r\n+OK\r\n"
    assert first.end(how) == 0
    kept, left = ask(serve().port, b"GET k\r\nTTL e\r\n", count=3).rsplit(b":", 1)
    assert kept == b"$1\r\nv\r\n"
    assert 900 < int(left) <= 1000


def test_after_a_kill_there_is_the_last_commit(serve):
    first = serve("--commit-interval", "1000")
    assert ask(first.port, b"SET k old\r\nSET j old\r\nWAITAOF 1 0 0\r\nSET k new\r\nDEL j\r\nSET l new\r\n", count=8)
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert ask(serve().port, b"MGET k j l\r\nDBSIZE\r\n", count=7) == b"*3\r\n$3\r\nold\r\n$3\r\nold\r\n$-1\r\n:2\r\n"


def test_killed_at_any_moment_it_comes_back_as_of_one_moment(serve):
    durable = 0
    for turn in range(3):
        process = serve("--commit-interval", "0.03")
        with (
            socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE_S) as link,
            link.makefile("rb") as replies,
        ):
            link.sendall(b"MGET a b\r\nTTL t\r\nDBSIZE\r\n")
            lines = [replies.readline() for _ in range(7 if turn else 5)]
            if turn:
                assert lines[2] == lines[4], "both values are of one commit"
                assert int(lines[2]) >= durable
                assert int(lines[5][1:]) > 0
                assert lines[6] == b":4\r\n"
            for number in range(durable + 1, durable + 1 + random.Random(turn).randrange(60, 300)):
                link.sendall(
                    b"MSET a %d b %d\r\nSET t %d EX 1000\r\nSETRANGE large %d x\r\n" % (*[number] * 3, number * 3000)
                )
                if number % 50 == 0:
                    link.sendall(b"WAITAOF 1 0 0\r\n")
                    for _ in range(3 * 50 if number > durable + 50 else 3 * (number - durable)):
                        replies.readline()
                    assert [replies.readline() for _ in range(3)] == [b"*2\r\n", b":1\r\n", b":0\r\n"]
                    done = number
            durable = max(durable, done)
            assert process.end(signal.SIGKILL) == -signal.SIGKILL


def test_an_end_in_the_middle_of_uploads_is_an_end(serve):
    first = serve()
    with socket.create_connection(("127.0.0.1", first.port)) as link:
        link.sendall(b"SET k v\r\n*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$80000000\r\n" + b"x" * 3_000_000)
        assert link.recv(100) == b"+OK\r\n"
        assert first.end() == 0
    assert ask(serve().port, b"GET k\r\nDBSIZE\r\n", count=3) == b"$1\r\nv\r\n:1\r\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "set a password"),
        (["--no-tcp"], "nothing to listen on"),
        (["--tls-key", "x"], "need --tls-cert"),
        (["--tls-cert", "none.pem"], "cannot be used"),
        (["--password-file", "none"], "cannot be read"),
        (["--max-request", "x"], "max-request"),
        (["--budget", "1M"], "at least 2097152 bytes"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid is no address"),
        (["--unix", "/no/such/folder/socket"], "cannot be listened at: No such file"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(serve, options, message):
    command = [sys.executable, "-c", MAIN, "serve", str(serve.path), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode in (1, 2)
    assert message in " ".join(done.stderr.split()) or options[1] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named(serve):
    port = serve().port
    other = serve.path.with_name("other")
    for command in (["init", str(other)], ["serve", str(other), "--port", str(port)]):
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *command], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert f"127.0.0.1:{port} cannot be listened at: Address already in use" in " ".join(done.stderr.split())


def test_a_key_with_a_passphrase_is_refused_without_asking(serve, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = serialization.BestAvailableEncryption(b"x")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret
    (tmp_path / "key.pem").write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*form))
    certificate, _ = Authority(tmp_path).issue("localhost")
    command = ["serve", str(serve.path), "--port", "0", "--tls-cert", certificate, "--tls-key", tmp_path / "key.pem"]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "is encrypted" in " ".join(done.stderr.split())
    assert "pass phrase" not in done.stderr


def test_redis_cli_over_tls_with_a_certificate_of_its_own(serve, tmp_path):
    cli = need("redis-cli", TOOLS)
    authority, strangers = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    certificate, key = authority.issue("localhost")
    port = serve("--tls-cert", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(authority.ca_file)).port

    def ask(one, *command):
        options = ["-p", str(port), "--tls", "--cacert", str(authority.ca_file)]
        if one is not None:
            options += [
                part
                for name, file in zip(("--cert", "--key"), one.issue("me"), strict=True)
                for part in (name, str(file))
            ]
        done = subprocess.run(
            [cli, *options, *command], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        return done.stdout.strip()

    assert ask(authority, "SET", "k", "v") == "OK"
    assert ask(authority, "GET", "k") == "v"
    assert ask(None, "GET", "k") != "v"
    assert ask(strangers, "GET", "k") != "v"


def test_connections_leave_the_store_the_files_it_needs(serve):
    resource = pytest.importorskip("resource")

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))

    process = serve(preexec_fn=few)
    links = []
    for _ in range(300):
        links.append(socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE_S))
        links[-1].sendall(b"PING\r\n")
        if links[-1].recv(100) != b"+PONG\r\n":
            break
    assert len(links) == 300 - 256 + 1
    links[0].sendall(b"SET k v\r\nSAVE\r\n")
    with links[0].makefile("rb") as replies:
        assert [replies.readline() for _ in range(2)] == [b"+OK\r\n"] * 2
    for link in links:
        link.close()


def test_beyond_loopback_with_a_password(serve, tmp_path):
    (tmp_path / "password").write_text("secret\n")
    port = serve("--host", "0.0.0.0", "--password-file", str(tmp_path / "password")).port
    assert ask(port, b"GET k\r\n").startswith(b"-NOAUTH")
    assert ask(port, b"AUTH secret\r\nGET k\r\n", count=2) == b"+OK\r\n$-1\r\n"
