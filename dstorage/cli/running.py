"""What all commands share: running on the fastest loop there is, opening a store, input, printing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import typer
from rich.console import Console
from rich.table import Table

import dstorage
from dstorage.errors import InvalidArgumentError
from dstorage.opening import Opening

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Directory of the store.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Budget = Annotated[str, typer.Option(help='Memory for chunks: "64M", "10%".')]

DEFAULT_BUDGET = "64M"

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on uvloop where there is one, else on the standard loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def open_store(path: Path, *, budget: str = DEFAULT_BUDGET, read_only: bool = False) -> Opening:
    """Open an existing store."""
    return dstorage.open(path, budget=budget, read_only=read_only, create=False, pressure=None)


def source_of(name: str) -> BinaryIO | nullcontext[BinaryIO]:
    """Where input comes from: the file of that name, or standard input for "-"."""
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise InvalidArgumentError(f"{name} cannot be read: {error.strerror}") from error


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_table(columns: list[str], rows: list[list[object]]) -> None:
    """A table for people; numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        right = bool(rows) and isinstance(rows[0][number], int)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *[f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell) for cell in row]
        )
    Console().print(table)
