"""`dstorage volume`: pools, volumes and snapshots from the command line.

Results go to standard output (as JSON with ``--json``), progress and errors to standard error. Exit codes: 0 done, 1 something is
wrong with the pool or the operation failed, 2 the command was called wrongly.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dstorage.cli.progress import Meter
from dstorage.cli.running import AsJson, print_json, source_of
from dstorage.cli.streams import PIECE_BYTES, copy_out, mapped, target_of
from dstorage.errors import InvalidArgumentError
from dstorage.paging.budget import parse_bytes
from dstorage.volumes.check import check as check_metadata
from dstorage.volumes.device import FileDevice
from dstorage.volumes.dump import dump as dump_metadata
from dstorage.volumes.metadata import ThinMetadata
from dstorage.volumes.pool import ThinPool
from dstorage.volumes.restore import restore as restore_metadata

volume_app = typer.Typer(
    name="volume",
    help="Thin pools, volumes and snapshots, in the format of the Linux kernel's thin provisioning.",
    no_args_is_help=True,
)

Metadata = Annotated[Path, typer.Argument(metavar="METADATA", help="File of the pool's metadata.", show_default=False)]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="File or device of the pool's data.", show_default=False)]
Id = Annotated[int, typer.Argument(metavar="ID", min=0, max=2**24 - 1, help="Of the volume.", show_default=False)]
Ids = Annotated[list[int], typer.Argument(metavar="ID...", min=0, max=2**24 - 1, show_default=False)]
Offset = Annotated[str, typer.Option(help='Where to begin ("4096", "1G").')]


@volume_app.command()
def create(
    metadata: Metadata,
    data: Data,
    size: Annotated[str | None, typer.Option(help='Space for data ("10G"); default: as long as DATA is.')] = None,
    block: Annotated[str, typer.Option(help="Of a data block.")] = "64K",
    metadata_size: Annotated[str, typer.Option(help="Of the metadata file.")] = "16M",
    id: Annotated[int | None, typer.Option(min=0, max=2**24 - 1, help="Make this volume, too.")] = None,
    json: AsJson = False,
) -> None:
    """Make a pool; or, with --id, a volume in the pool that is there (or is made first)."""
    there = metadata.exists() and metadata.stat().st_size > 0
    if there and id is None:
        raise InvalidArgumentError(f"{metadata} is there already: --id makes a volume in it")
    if there and size is not None:
        raise InvalidArgumentError(f"{metadata} is there already, with a size of its own: leave --size out")

    # Before anything is made.
    block_bytes, metadata_bytes = _bytes(block), _bytes(metadata_size)
    data_bytes = None if size is None else _bytes(size)
    data_there = data.exists()

    async def work() -> None:
        device = FileDevice(data, create=not there)
        try:
            if not there and data_bytes is None and device.size < block_bytes:
                raise InvalidArgumentError(f"{data} has not even one block: say by --size how long it is to be")
            if there:
                pool = await ThinPool.open(metadata, device, commit_interval=None)
            else:
                pool = await ThinPool.create(
                    metadata,
                    device,
                    block_bytes=block_bytes,
                    data_bytes=data_bytes,
                    metadata_bytes=metadata_bytes,
                    commit_interval=None,
                )
            async with pool:
                if id is not None:
                    await pool.create_device(id)
                    await pool.commit()
                status = pool.status()
        finally:
            device.close()
            if not data_there and not metadata.exists():
                # There is no pool that it could be the data of.
                data.unlink()
        if json:
            print_json({"metadata": str(metadata), "volume": id, **asdict(status), "mode": status.mode.value})
        else:
            what = f"volume {id} made in a" if id is not None else "a"
            typer.echo(f"{metadata}: {what} pool of {status.data_blocks:,} blocks of {status.block_bytes:,} bytes")

    asyncio.run(work())


@volume_app.command()
def snapshot(metadata: Metadata, origin: Id, id: Id, json: AsJson = False) -> None:
    """Make volume ID the same as ORIGIN is now; takes no space until one of them is written."""
    with ThinMetadata.open(metadata) as pool:
        pool.create_snapshot(id, origin)
        pool.commit()
        details = pool.details(id)
    if json:
        print_json({"id": id, "origin": origin, "mapped_blocks": details.mapped_blocks})
    else:
        typer.echo(f"volume {id}: a snapshot of {origin}, {details.mapped_blocks:,} blocks")


@volume_app.command()
def ls(metadata: Metadata, json: AsJson = False) -> None:
    """List the volumes of a pool (id, mapped bytes, times of creation and last snapshot), and what it has left."""
    with ThinMetadata.open(metadata, read_only=True) as pool:
        block = pool.block_bytes
        used = pool.nr_data_blocks - pool.free_data_blocks
        rows = [
            {"id": id, "mapped_bytes": found.mapped_blocks * block, **asdict(found)} for id, found in pool.devices()
        ]
        if json:
            print_json(
                {
                    "block_bytes": block,
                    "data_blocks": pool.nr_data_blocks,
                    "used_data_blocks": used,
                    "free_data_blocks": pool.free_data_blocks,
                    "metadata_blocks": pool.nr_metadata_blocks,
                    "used_metadata_blocks": pool.used_metadata_blocks,
                    "free_metadata_blocks": pool.free_metadata_blocks,
                    "needs_check": pool.needs_check,
                    "volumes": rows,
                }
            )
            return
        for row in rows:
            typer.echo(f"{row['id']}\t{row['mapped_bytes']}\t{row['creation_time']}\t{row['snapshotted_time']}")
        typer.echo(
            f"{used:,} of {pool.nr_data_blocks:,} data blocks of {block:,} bytes used, {pool.free_data_blocks:,} free; "
            f"{pool.used_metadata_blocks:,} of {pool.nr_metadata_blocks:,} metadata blocks used, "
            f"{pool.free_metadata_blocks:,} free{', needs a check' if pool.needs_check else ''}"
        )


@volume_app.command()
def rm(metadata: Metadata, ids: Ids, json: AsJson = False) -> None:
    """Delete volumes, all or none."""
    with ThinMetadata.open(metadata) as pool:
        with Meter("deleting", len(ids)) as meter:
            for id in ids:
                pool.delete_device(id)
                meter.advance(1)
        pool.commit()
        free = pool.free_data_blocks
    if json:
        print_json({"deleted": ids, "free_data_blocks": free})
    else:
        typer.echo(f"{len(ids)} volumes deleted, {free:,} blocks free")


@volume_app.command()
def check(metadata: Metadata, json: AsJson = False) -> None:
    """Verify all metadata: trees, counts, volumes; exit code 1 if anything is wrong. Nobody may be writing the pool."""
    blocks = metadata.stat().st_size // 4096 if metadata.is_file() else None
    with Meter("checking", blocks) as meter:
        report = check_metadata(metadata, advance=meter.advance)
    if json:
        problems = [{"severity": p.severity.value, "block": p.block, "message": p.message} for p in report.problems]
        figures = {key: value for key, value in asdict(report).items() if not key.startswith("_")}
        print_json({**figures, "problems": problems, "sound": report.sound})
    else:
        for problem in report.problems:
            typer.echo(f"{problem.severity.value}: {problem.message}")
        if report.more:
            typer.echo(f"and {report.more:,} more")
        if report.needs_check:
            typer.echo(
                "the pool is marked as needing a check (`thin_check --clear-needs-check-flag` takes the mark away)"
            )
        typer.echo(
            f"{report.devices:,} volumes, {report.mappings:,} mappings, {report.data_blocks:,} data blocks, "
            f"{report.metadata_blocks:,} metadata blocks: {'sound' if report.sound else 'damaged'}"
        )
    if not report.sound:
        raise typer.Exit(1)


@volume_app.command()
def dump(
    metadata: Metadata,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; default standard output.")
    ] = None,
    held: Annotated[bool, typer.Option("--snapshot", "-m", help="The metadata snapshot of a pool in use.")] = False,
) -> None:
    """Write the metadata as XML, as thin_dump does."""
    with target_of(output, metadata) as target:
        with Meter("dumping", None) as meter:
            dump_metadata(metadata, target.write, snapshot=held, advance=meter.advance)
        target.flush()


@volume_app.command()
def restore(
    source: Annotated[
        str, typer.Argument(metavar="POOL.xml", help='The XML; "-" is standard input.', show_default=False)
    ],
    metadata: Metadata,
    force: Annotated[bool, typer.Option("--force", help="Replace a pool that is there.")] = False,
    json: AsJson = False,
) -> None:
    """Make metadata from XML, as thin_restore does; a file that is not there is made large enough."""
    length = Path(source).stat().st_size if source != "-" and Path(source).is_file() else None
    with source_of(source) as text, Meter("restoring", length, unit="bytes") as meter:
        made = restore_metadata(text, metadata, overwrite=force, advance=meter.advance)
    if json:
        print_json(asdict(made))
    else:
        typer.echo(
            f"{metadata}: {made.devices:,} volumes, {made.mappings:,} mappings, "
            f"{made.used_blocks:,} of {made.nr_blocks:,} metadata blocks used"
        )


@volume_app.command()
def read(
    metadata: Metadata,
    data: Data,
    id: Id,
    offset: Offset = "0",
    length: Annotated[str | None, typer.Option(help="Bytes; default: to the end of what is mapped.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; default standard output.")
    ] = None,
) -> None:
    """Write the bytes of a volume; what was never written is left out of a file (a hole), and zeros elsewhere."""
    start = _bytes(offset)

    async def work() -> None:
        device = FileDevice(data, read_only=True)
        try:
            async with await ThinPool.open(metadata, device, read_only=True) as pool:
                end = pool.metadata.mapped_end(id) * pool.block_bytes if length is None else start + _bytes(length)
                end = max(end, start)
                volume = await pool.volume(id, size=end)
                with target_of(output, metadata, data) as target:
                    with Meter("reading", end - start, unit="bytes") as meter:
                        await copy_out(volume, mapped(pool, id, start, end), start, end, target, meter)
                    target.flush()
        finally:
            device.close()

    asyncio.run(work())


@volume_app.command()
def write(
    metadata: Metadata,
    data: Data,
    id: Id,
    source: Annotated[str, typer.Argument(metavar="FILE", help='"-" is standard input.')] = "-",
    offset: Offset = "0",
    json: AsJson = False,
) -> None:
    """Write a file's bytes into a volume, and make them durable."""
    start = _bytes(offset)
    total = Path(source).stat().st_size if source != "-" and Path(source).is_file() else None

    async def work() -> int:
        device = FileDevice(data)
        try:
            async with await ThinPool.open(metadata, device) as pool:
                volume = await pool.volume(id, size=2**63 - 1)
                at = start
                with source_of(source) as file, Meter("writing", total, unit="bytes") as meter:
                    while piece := file.read(PIECE_BYTES):
                        await volume.pwrite(piece, at)
                        at += len(piece)
                        meter.advance(len(piece))
                await pool.commit()
                return at - start
        finally:
            device.close()

    written = asyncio.run(work())
    if json:
        print_json({"id": id, "offset": start, "bytes": written})
    else:
        typer.echo(f"volume {id}: {written:,} bytes written at {start:,}")


def _bytes(text: str) -> int:
    # Exact, where a number with a unit goes by floating point.
    if text.isascii() and text.isdecimal() and len(text) < 20:
        return int(text)
    try:
        if "%" not in text:
            return parse_bytes(text)
    except InvalidArgumentError:
        pass
    raise InvalidArgumentError(f'{text!r} is no number of bytes: "4096", "512M" and "1.5GiB" are')
