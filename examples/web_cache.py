"""A web server of resized pictures, from a cache that is several times larger than its memory.

Every size of every picture is computed once, however many ask for it at the same time, and kept on disk; those asked for most are answered
from memory. A picture that does not exist is remembered for a while as well.

    python examples/web_cache.py serve PICTURES [--port 8080] [--cache web-cache] [--budget 64M] [--limit 1G]
    python examples/web_cache.py demo [--pictures 60] [--requests 3000] [--budget 4M]

`serve` answers GET /WIDTH/NAME, as in http://localhost:8080/320/holiday.jpg, and GET /stats. `demo` paints pictures, starts a server
and asks it, the popular ones most. Needs aiohttp and pillow: pip install 'dstorage[examples]'
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import resource
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from aiohttp import ClientSession, web
from PIL import Image

import dstorage

MAX_WIDTH = 2048
"""Sizes are the caller's choice, and each is kept: so there is an end to them."""
KEEP_S = 7 * 24 * 3600
REMEMBER_MISSING_S = 60
AT_A_TIME = 20


def resize(path: Path, width: int) -> bytes:
    """A picture as JPEG, `width` pixels wide."""
    with Image.open(path) as picture:
        height = max(1, round(picture.height * width / picture.width))
        small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


class Server:
    """Answers with resized pictures.

    Args:
        pictures: Directory with the originals; nothing outside of it is read.
        cache: Where the resized ones are kept.
    """

    def __init__(self, pictures: Path, cache: dstorage.AsyncCache) -> None:
        self.pictures = pictures
        self.cache = cache
        self.resized = 0
        self.thumbnail = cache.memoize(name="thumbnail", expire=KEEP_S, early=1.0)(self._thumbnail)
        self.version = cache.memoize(name="version", expire=REMEMBER_MISSING_S, misses=REMEMBER_MISSING_S)(
            self._version
        )
        self.app = web.Application()
        self.app.add_routes([web.get("/stats", self.stats), web.get("/{width:[0-9]{1,4}}/{name}", self.picture)])

    async def _version(self, name: str) -> int:
        """Changes when the file does."""
        if Path(name).name != name or name == "..":
            raise KeyError(name)
        try:
            return (await asyncio.to_thread((self.pictures / name).stat)).st_mtime_ns
        except (OSError, ValueError):  # ValueError: there is a zero in it.
            raise KeyError(name) from None

    async def _thumbnail(self, name: str, version: int, width: int) -> bytes:
        self.resized += 1
        return await asyncio.to_thread(resize, self.pictures / name, width)

    async def picture(self, request: web.Request) -> web.Response:
        """GET /WIDTH/NAME."""
        name, width = request.match_info["name"], int(request.match_info["width"])
        if not 1 <= width <= MAX_WIDTH:
            raise web.HTTPBadRequest(text=f"width {width}: give 1 to {MAX_WIDTH}\n")
        try:
            version = await self.version(name)
            body = await self.thumbnail(name, version, width)
        except LookupError:
            raise web.HTTPNotFound(text=f"no picture {name}\n") from None
        except OSError:
            raise web.HTTPUnsupportedMediaType(text=f"{name} is no picture\n") from None
        # The body shares memory with the cache until it is sent.
        return web.Response(body=body, content_type="image/jpeg", headers={"ETag": f'"{version}-{width}"'})

    async def stats(self, request: web.Request) -> web.Response:
        """GET /stats."""
        return web.json_response(asdict(self.cache.stats()) | {"resized": self.resized})


async def serve(options: argparse.Namespace) -> None:
    """Serve until interrupted."""
    async with dstorage.AsyncCache(options.cache, size_limit=options.limit, budget=options.budget) as cache:
        runner = web.AppRunner(Server(options.pictures, cache).app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "localhost", options.port).start()
            print(f"http://localhost:{options.port}/320/NAME for NAME in {options.pictures}", flush=True)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def paint(directory: Path, count: int, rng: random.Random) -> list[str]:
    """Pictures that compress as badly as photographs."""
    names = [f"{number:03}.jpg" for number in range(count)]
    for name in names:
        Image.frombytes("RGB", (320, 240), rng.randbytes(320 * 240 * 3)).resize((800, 600)).save(directory / name)
    return names


async def demo(options: argparse.Namespace) -> None:
    """Ask a server for pictures, the first ones most often."""
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = paint(folder, options.pictures, rng)
        popularity = [1 / rank for rank in range(1, len(pictures) + 1)]
        wanted = [(rng.choice((160, 320, 640)), each) for each in rng.choices(pictures, popularity, k=options.requests)]
        async with dstorage.AsyncCache(folder / "cache", size_limit="1G", budget=options.budget) as cache:
            server = Server(folder, cache)
            runner = web.AppRunner(server.app)
            await runner.setup()
            site = web.TCPSite(runner, "localhost", 0)
            await site.start()
            port = runner.addresses[0][1]
            room = asyncio.Semaphore(AT_A_TIME)

            async def ask(session: ClientSession, width: int, picture: str) -> int:
                async with room, session.get(f"/{width}/{picture}") as answer:
                    body = await answer.read()
                    if answer.status == 200 and Image.open(io.BytesIO(body)).width != width:
                        raise AssertionError(f"{picture} is not {width} pixels wide")
                    return answer.status

            async with ClientSession(f"http://localhost:{port}") as session:
                statuses = await asyncio.gather(*[ask(session, *each) for each in wanted])
                missing = await asyncio.gather(*[ask(session, 320, "none.jpg") for _ in range(10)])
            await runner.cleanup()
            stats = cache.stats()
            print(
                f"{statuses.count(200)} pictures served, {server.resized} resized ({len(set(wanted))} different ones)"
            )
            print(f"a picture that is not there: {set(missing)}")
            print(f"the cache holds {stats.volume / 2**20:.1f} MiB with a budget of {options.budget}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak of the process {peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MiB")


def main() -> None:
    """Serve, or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    serving = commands.add_parser("serve")
    serving.set_defaults(run=serve)
    serving.add_argument("pictures", type=Path)
    serving.add_argument("--port", type=int, default=8080)
    serving.add_argument("--cache", default="web-cache")
    serving.add_argument("--budget", default="64M")
    serving.add_argument("--limit", default="1G")
    showing = commands.add_parser("demo")
    showing.set_defaults(run=demo)
    showing.add_argument("--pictures", type=int, default=60)
    showing.add_argument("--requests", type=int, default=3000)
    showing.add_argument("--budget", default="4M")
    options = parser.parse_args()
    try:
        asyncio.run(options.run(options))
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
