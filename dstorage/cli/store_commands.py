"""Commands on a store: init, put, get, ls, stat, controllers, check, compact, drain, migrate."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

import dstorage
from dstorage.check import CheckReport
from dstorage.check import check as check_store
from dstorage.cli.progress import Meter
from dstorage.cli.running import (
    DEFAULT_BUDGET,
    AsJson,
    Budget,
    StorePath,
    open_store,
    print_json,
    print_table,
    run,
    source_of,
)
from dstorage.errors import InvalidArgumentError, Lost
from dstorage.paging.budget import parse_bytes

MENDED = {"lost": "dropped", "copy": "written anew", "books": "counted anew", "count": "counted anew"}
ChunkIds = Annotated[list[int], typer.Argument(metavar="ID...", min=1, max=2**64 - 1, show_default=False)]


def init(store: StorePath, json: AsJson = False) -> None:
    """Make a new, empty store with one disk controller."""
    if (store / "catalog").exists():
        raise InvalidArgumentError(f"there is a store at {store} already")

    async def work() -> None:
        async with dstorage.open(store, budget=DEFAULT_BUDGET, pressure=None) as opened:
            names = [info.name for info in opened.controllers()]
        if json:
            print_json({"store": str(store), "controllers": names})
        else:
            typer.echo(f"{store}: a new store with controller {', '.join(names)}")

    run(work())


def put(
    store: StorePath,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help='Files; "-" is standard input.', show_default=False)
    ],
    chunk: Annotated[str, typer.Option(help="Larger files are cut into chunks of this size.")] = "16M",
    controller: Annotated[str | None, typer.Option(help="Controller to keep them on.")] = None,
    budget: Budget = DEFAULT_BUDGET,
    json: AsJson = False,
) -> None:
    """Store files; prints the ids of each."""
    size = min(parse_bytes(chunk), parse_bytes(budget) // 4)
    if not size:
        raise InvalidArgumentError(
            f"--budget {budget} leaves no room for a chunk: give at least 4 bytes, better some megabytes"
        )
    total = sum(Path(name).stat().st_size for name in files if name != "-" and Path(name).is_file())

    async def work() -> None:
        stored: list[tuple[str, list[int]]] = []
        async with open_store(store, budget=budget) as opened:
            try:
                with Meter("storing", total or None, unit="bytes") as meter:
                    for name in files:
                        ids: list[int] = []
                        stored.append((name, ids))
                        with source_of(name) as source:
                            # An empty file is one empty chunk.
                            while (data := _read(source, size)) or not ids:
                                with await opened.create(data, controller=controller) as handle:
                                    ids.append(handle.id)
                                meter.advance(len(data))
                await opened.commit()
            except BaseException:
                # All or nothing: nobody would ever learn the ids of a part.
                opened.contents.delete_each(id for _, ids in stored for id in ids)
                raise
        # Only now are they durable.
        if json:
            print_json([{"file": name, "ids": ids} for name, ids in stored])
        else:
            for name, ids in stored:
                typer.echo(f"{' '.join(map(str, ids))}\t{name}")

    run(work())


def _read(source: BinaryIO, size: int) -> bytes:
    # A terminal or pipe may keep us waiting: Ctrl-C then breaks the read, where the loop's own handler would wait for its end.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return source.read(size)
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _target(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output or a file, which appears when it is whole (unless it is a device or a pipe)."""
    if output is None:
        yield sys.stdout.buffer
    elif output.exists() and not output.is_file():
        with output.open("wb") as file:
            yield file
    else:
        if not output.parent.is_dir():
            raise InvalidArgumentError(f"{output} cannot be written: there is no folder {output.parent}")
        output = output.resolve()
        part = output.with_name(f".{output.name}.{os.getpid()}.part")
        try:
            with part.open("xb") as file:
                yield file
            part.replace(output)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def get(
    store: StorePath,
    ids: ChunkIds,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; default standard output.")
    ] = None,
    budget: Budget = DEFAULT_BUDGET,
) -> None:
    """Write the bytes of chunks, one after the other."""

    async def work() -> None:
        async with open_store(store, budget=budget, read_only=True) as opened:
            for id in ids:
                if opened.info(id) is None:
                    raise Lost("unknown id", id=id)
            with _target(output) as target:
                with Meter("reading", len(ids)) as meter:
                    for id in ids:
                        async with opened.handle(id) as data:
                            target.write(data)
                        meter.advance()
                target.flush()

    run(work())


def ls(store: StorePath, json: AsJson = False) -> None:
    """List all chunks: id, size, controller."""

    async def work() -> None:
        async with open_store(store, read_only=True) as opened:
            if json:
                print_json([asdict(info) for id in opened.ids() if (info := opened.info(id)) is not None])
                return
            # Line by line: a store may list more chunks than a table in memory could.
            for id in opened.ids():
                if (info := opened.info(id)) is not None:
                    typer.echo(f"{info.id}\t{info.size}\t{info.controller}")

    run(work())


def stat(
    store: StorePath,
    id: Annotated[int | None, typer.Argument(metavar="ID", min=1, max=2**64 - 1, show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """Tell about the store, or about one chunk."""

    async def work() -> None:
        async with open_store(store, read_only=True) as opened:
            if id is not None:
                info = opened.info(id)
                if info is None:
                    raise Lost("unknown id", id=id)
                _print_fields(asdict(info), json)
                return
            total = sum(record.locator.size for _, record in opened.records())
            fields = {
                "store": str(store),
                "chunks": opened.stats().chunks,
                "bytes": total,
                "controllers": len(opened.controllers()),
            }
            _print_fields(fields, json)

    run(work())


def _print_fields(fields: dict[str, object], json: bool) -> None:
    if json:
        print_json(fields)
    else:
        print_table(
            ["field", "value"],
            [[key, f"{value:,}" if isinstance(value, int) else value] for key, value in fields.items()],
        )


def controllers(store: StorePath, json: AsJson = False) -> None:
    """List the controllers of a store."""

    async def work() -> None:
        async with open_store(store, read_only=True) as opened:
            infos = opened.controllers()
        rows = [
            {
                "index": info.index,
                "name": info.name,
                "kind": info.kind,
                "rank": info.rank,
                "status": info.status.value,
                "volatile": info.volatile,
                "used": info.space.used,
                "total": info.space.total,
                "draining": info.draining,
                "error": info.error,
            }
            for info in infos
        ]
        if json:
            print_json(rows)
        else:
            print_table(
                ["index", "name", "kind", "rank", "status", "used", "total", "error"],
                [
                    [
                        r["index"],
                        r["name"],
                        r["kind"],
                        r["rank"],
                        "draining" if r["draining"] and r["status"] == "ok" else r["status"],
                        r["used"],
                        r["total"] or "unbounded",
                        r["error"] or "",
                    ]
                    for r in rows
                ],
            )

    run(work())


def check(
    store: StorePath,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write damage anew from copies; drop the chunks that are lost.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Verify every record, extent and checksum; exit code 1 if anything is wrong."""

    async def work() -> CheckReport:
        async with open_store(store, read_only=not repair) as opened:
            with Meter("checking", opened.stats().chunks) as meter:
                return await check_store(opened, repair=repair, advance=meter.advance)

    report = run(work())
    if json:
        print_json({**asdict(report), "sound": report.sound})
    else:
        for problem in report.problems:
            what = f"chunk {problem.id}" if problem.id else "controller"
            done = f" ({MENDED[problem.kind]})" if report.mended(problem) else ""
            typer.echo(f"{problem.kind}: {what} on {problem.controller}: {problem.reason}{done}")
        for controller, sentences in report.advice.items():
            for sentence in sentences:
                typer.echo(f"advice: {controller}: {sentence}")
        typer.echo(f"{report.chunks:,} chunks, {report.size_bytes:,} bytes, {len(report.problems)} problems")
    if not report.sound:
        raise typer.Exit(1)


def compact(store: StorePath, json: AsJson = False) -> None:
    """Give dead space back: rewrite sparse segments."""

    async def work() -> None:
        async with open_store(store) as opened:
            before = sum(info.space.used for info in opened.controllers())
            moved = await opened.compact()
            after = sum(info.space.used for info in opened.controllers())
        if json:
            print_json({"rewritten": moved, "used_before": before, "used_after": after})
        else:
            typer.echo(f"{moved:,} chunks rewritten; {before:,} bytes used before, {after:,} now")

    run(work())


def drain(
    store: StorePath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the controller.", show_default=False)],
    remove: Annotated[bool, typer.Option("--remove", help="Declare it removed, for ever, once it is empty.")] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Let it take chunks again; what has moved stays moved.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Move everything off a controller, so that it can be taken away; interrupted, it goes on when called again."""
    if remove and cancel:
        raise InvalidArgumentError("--remove and --cancel exclude each other")

    async def work() -> int:
        async with open_store(store) as opened:
            if cancel:
                await opened.cancel_drain(name)
                return 0
            with Meter("draining", opened.stats().chunks) as meter:
                moved = await opened.drain(name, advance=meter.advance)
            if remove:
                await opened.declare_removed(name)
            return moved

    moved = run(work())
    if json:
        print_json({"controller": name, "moved": moved, "removed": remove, "draining": not (cancel or remove)})
    elif cancel:
        typer.echo(f"{name} takes chunks again")
    else:
        typer.echo(f"{moved:,} chunks moved; {name} is empty{' and declared removed' if remove else ''}")


def migrate(
    store: StorePath,
    ids: ChunkIds,
    to: Annotated[str, typer.Option("--to", help="Name of the controller.", show_default=False)],
    json: AsJson = False,
) -> None:
    """Move chunks to another controller; their ids stay."""

    async def work() -> int:
        async with open_store(store) as opened:
            moved = 0
            with Meter("moving", len(ids)) as meter:
                for start in range(0, len(ids), 64):
                    part = ids[start : start + 64]
                    moved += await opened.migrate(part, to=to)
                    meter.advance(len(part))
            await opened.commit()
            return moved

    moved = run(work())
    if json:
        print_json({"moved": moved, "to": to})
    else:
        typer.echo(f"{moved:,} chunks moved to {to}")
