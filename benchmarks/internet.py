"""The internet controller, encryption on, beside bare obstore, on the same object store in the same run.

python benchmarks/internet.py [--size tiny|full] [--repeat N] [--url s3://BUCKET/PREFIX --endpoint URL] [--json FILE]

16 requests at a time store and fetch random bytes: chunks of 4 MiB one per call, and chunks of 64 KiB in batches of 64, as the
store writes them back and pages them in, or one per call. obstore makes an object of each; the controller encrypts and
authenticates, keeps its books, and joins small chunks to packs. Without --url a moto server of this machine is started:
client and server share its cores, and neither a network nor a disk is measured. Credentials come from the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvloop
from charts import Chart, keep
from environment import describe

try:
    import obstore
    from dstorage_controllers.internet import InternetController
    from dstorage_controllers.internet.connecting import connect
except ModuleNotFoundError:
    raise SystemExit("this benchmark needs obstore and cryptography: pip install 'dstorage[internet]'") from None

from dstorage import Locator
from dstorage.controller import OpenContext, ReadRequest, WriteRequest

KIB = 2**10
MIB = 2**20
AT_ONCE = 16
BATCH = 64
SIZES = {"tiny": (8 * MIB, 1), "full": (128 * MIB, 5)}
"""Bytes moved per round, and rounds."""
CASES = (("4 MiB", 4 * MIB, 1), ("64 KiB, 64 per call", 64 * KIB, BATCH), ("64 KiB, 1 per call", 64 * KIB, 1))
SMALL_SHARE = 8
"""Of small chunks one by one, which take far longer, a round moves so much less."""

Settings = dict[str, Any]


@contextlib.contextmanager
def server(directory: Path) -> Iterator[Settings | None]:
    """Settings for a moto server with one bucket, or None where moto is not installed."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (directory / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(3000):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
        import boto3  # type: ignore[import-untyped]

        endpoint = f"http://127.0.0.1:{port}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="chunks")
        yield {"url": "s3://chunks/benchmark", "endpoint": endpoint, "allow_http": True}
    finally:
        child.kill()
        child.wait()


class Bare:
    """obstore as it comes: an object for each chunk."""

    name = "obstore"

    def __init__(self, settings: Settings) -> None:
        self.store = connect("bare", InternetController(**settings).settings)
        self.stem = f"bare/{uuid4().hex}"

    async def put(self, first: int, values: Sequence[bytes]) -> None:
        for at, value in enumerate(values):
            await obstore.put_async(self.store, f"{self.stem}/{first + at}", value, use_multipart=False)

    async def get(self, first: int, count: int, size: int) -> None:
        for number in range(first, first + count):
            answer = await obstore.get_async(self.store, f"{self.stem}/{number}")
            assert len(await answer.bytes_async()) == size

    async def clear(self) -> None:
        names = [meta["path"] for meta in await obstore.list(self.store, self.stem).collect_async()]
        for start in range(0, len(names), 100):
            await obstore.delete_async(self.store, names[start : start + 100])


class Ours:
    """The controller."""

    name = "internet controller"

    def __init__(self, settings: Settings) -> None:
        self.controller = InternetController(key_env="DSTORAGE_BENCHMARK_KEY", **settings)
        self.places: dict[int, Locator] = {}

    async def put(self, first: int, values: Sequence[bytes]) -> None:
        answers = await self.controller.write([WriteRequest(first + at, value) for at, value in enumerate(values)])
        for at, place in enumerate(answers):
            assert isinstance(place, Locator), place
            self.places[first + at] = place

    async def get(self, first: int, count: int, size: int) -> None:
        wanted = [ReadRequest(number, self.places[number]) for number in range(first, first + count)]
        for answer in await self.controller.read(wanted):
            assert not isinstance(answer, Exception), answer
            assert len(answer) == size

    async def clear(self) -> None:
        await self.controller.discard(list(self.places.items()))
        self.places.clear()


async def together(firsts: Sequence[int], work: Callable[[int], Awaitable[None]]) -> float:
    """Seconds that all of the work takes, `AT_ONCE` at a time."""
    left = iter(firsts)

    async def worker() -> None:
        for first in left:
            await work(first)

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return time.perf_counter() - begun


async def put_and_get(who: Bare | Ours, values: Sequence[bytes], count: int, per_call: int) -> dict[str, float]:
    """Seconds to store `count` chunks, `per_call` of them with each call, and to fetch them."""
    size = len(values[0])
    # Numbers of chunks begin with 1.
    firsts = range(1, count + 1, per_call)

    async def put(first: int) -> None:
        await who.put(first, [values[(first + at) % len(values)] for at in range(per_call)])

    return {
        "PUT": await together(firsts, put),
        "GET": await together(firsts, lambda first: who.get(first, per_call, size)),
    }


async def measure(settings: Settings, directory: Path, total: int, rounds: int) -> Chart:
    """Rounds of PUT and GET of each case, the contestants taking turns."""
    groups: dict[str, dict[str, list[float]]] = {}
    source = random.Random(1)
    bare, ours = Bare(settings), Ours(settings)
    await ours.controller.open(OpenContext(uuid4(), 1, directory))
    try:
        for label, size, per_call in CASES:
            moved = total if size > MIB or per_call > 1 else total // SMALL_SHARE
            count = max(per_call, moved // size // per_call * per_call)
            values = [source.randbytes(size) for _ in range(min(16, count))]
            rates: dict[tuple[str, str], list[float]] = {}
            for turn in range(rounds):
                for who in (bare, ours) if turn % 2 == 0 else (ours, bare):
                    spent = await put_and_get(who, values, count, per_call)
                    await who.clear()
                    for what, seconds in spent.items():
                        rates.setdefault((what, who.name), []).append(count * size / seconds / MIB)
            for what in ("PUT", "GET"):
                yardstick = statistics.median(rates[what, Bare.name])
                print(f"\n{what} {label}, {AT_ONCE} calls at a time")
                for name in (Bare.name, Ours.name):
                    seen = rates[what, name]
                    median = statistics.median(seen)
                    spread = f"{min(seen):,.0f} to {max(seen):,.0f}"
                    print(f"  {name:<20} {median:>8,.0f} MiB/s {median / yardstick:>6.2f}x   ({spread})")
                    groups.setdefault(f"{what} {label}", {})[name] = seen
    finally:
        await ours.controller.close()
    return Chart("Encrypted chunks in object storage beside bare obstore (higher is better)", "MiB/s", groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeat", type=int, help="rounds")
    parser.add_argument("--url", help="a bucket that is there already")
    parser.add_argument("--endpoint", help="of its server, if it is not the cloud's own; may be plain http")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    total, rounds = SIZES[arguments.size]
    facts = describe()
    print(facts["line"])
    os.environ["DSTORAGE_BENCHMARK_KEY"] = secrets.token_hex(32)
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        settings: Settings | None
        if arguments.url is not None:
            settings = {"url": arguments.url, "endpoint": arguments.endpoint, "allow_http": True}
        else:
            settings = stack.enter_context(server(Path(place)))
        if settings is None:
            print("moto is not installed (pip install 'moto[s3,server]'), and no --url is given: nothing to measure")
            keep(arguments.json, facts, [])
            return
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            chart = runner.run(measure(settings, Path(place), total, arguments.repeat or rounds))
    keep(arguments.json, facts, [chart])


if __name__ == "__main__":
    main()
