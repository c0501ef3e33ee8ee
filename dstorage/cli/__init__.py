"""The command line `dstorage`.

Results go to standard output (as JSON with ``--json``), progress and errors to standard error. Exit codes: 0 done, 1 something
is wrong with the store or an operation failed, 2 the command was called wrongly.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

import dstorage
from dstorage.cli.demo import demo
from dstorage.cli.serve_command import serve
from dstorage.cli.store_commands import (
    check,
    compact,
    controllers,
    drain,
    get,
    init,
    ls,
    migrate,
    put,
    stat,
)
from dstorage.errors import DStorageError, UsageError

app = typer.Typer(
    name="dstorage",
    help="A memory-paging object store: far more data than memory, by 64-bit ids.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dstorage {dstorage.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


for command in (demo, init, put, get, ls, stat, controllers, check, compact, drain, migrate, serve):
    app.command()(command)


def _without_volumes(package: str | None) -> None:
    """The other commands work without the packages that volumes need."""

    @app.command("volume", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def missing() -> None:
        """Thin pools, volumes and snapshots; needs more packages."""
        raise UsageError(f"volumes need {package}: pip install 'dstorage[persistent]'")


try:
    from dstorage.cli.volume_commands import volume_app
except ModuleNotFoundError as error:
    if error.name not in ("google_crc32c", "defusedxml"):
        raise
    _without_volumes(error.name)
else:
    app.add_typer(volume_app)


def main() -> None:
    """Entry point of the `dstorage` command."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app()
    except DStorageError as error:
        _fail(error)
    except BrokenPipeError:
        # The reader of our output has gone (`dstorage ls | head`): no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename is not None else error)


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """To who types a command, the line of code that warns says nothing."""
    Console(stderr=True).print(f"[yellow]dstorage:[/yellow] {escape(str(message))}", highlight=False, soft_wrap=True)


def _fail(why: object) -> NoReturn:
    Console(stderr=True).print(f"[red]dstorage:[/red] {escape(str(why))}", highlight=False, soft_wrap=True)
    sys.exit(1)
