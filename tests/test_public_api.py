"""What is public is documented and typed, and what is documented is there."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import dstorage_controllers
import pytest
import typer.main

import dstorage
import dstorage.blocking
import dstorage.persistent
import dstorage.testing
import dstorage.volumes
from dstorage.cli import app
from dstorage.handle import TRANSITIONS

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
PACKAGES = [dstorage, dstorage.blocking, dstorage.persistent, dstorage.testing, dstorage.volumes]
PUBLIC = [
    pytest.param(getattr(package, name), id=f"{package.__name__}.{name}")
    for package in PACKAGES
    for name in package.__all__
]


def documented() -> list[str]:
    """Identifiers that the reference has an entry for."""
    pages = [page.read_text() for page in sorted(REFERENCE.rglob("*.md"))]
    return [name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_reference_documents_all_that_is_public_once_and_nothing_else(package):
    names = [name.rpartition(".") for name in documented()]
    assert sorted(name for base, _, name in names if base == package.__name__) == sorted(package.__all__)


def test_all_names_what_is_there_and_hides_no_class_of_ours():
    assert len(set(dstorage.__all__)) == len(dstorage.__all__)
    ours = {
        name
        for name, value in vars(dstorage).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("dstorage.")
    }
    assert ours == set(dstorage.__all__)


def callables(thing: object) -> list[tuple[str, object]]:
    """Functions that a user of `thing` calls: itself, or the public methods (and properties) that its class defines."""
    if not inspect.isclass(thing):
        return [(getattr(thing, "__name__", repr(thing)), thing)] if callable(thing) else []
    found: list[tuple[str, object]] = []
    for name, value in vars(thing).items():
        if name.startswith("_") and name not in ("__init__", "__enter__", "__aenter__", "__await__"):
            continue
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if inspect.isfunction(value):
            found.append((f"{thing.__name__}.{name}", value))
    return found


@pytest.mark.parametrize("thing", PUBLIC)
def test_everything_public_is_typed(thing):
    generated = dataclasses.is_dataclass(thing) or getattr(thing, "_is_protocol", False)
    for name, function in callables(thing):
        if generated and name.endswith("__init__"):
            continue
        signature = inspect.signature(function)
        untyped = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is inspect.Parameter.empty and parameter.name not in ("self", "cls")
        ]
        assert not untyped, f"{name} does not type {untyped}"
        assert signature.return_annotation is not inspect.Signature.empty, f"{name} does not type what it returns"


@pytest.mark.parametrize("thing", PUBLIC)
def test_everything_public_says_what_it_is(thing):
    assert inspect.getdoc(thing)
    for name, function in callables(thing):
        if not name.rpartition(".")[2].startswith("_"):
            assert inspect.getdoc(function), f"{name} has no docstring"


@pytest.mark.parametrize("package", [dstorage, dstorage_controllers])
def test_both_packages_tell_type_checkers_that_they_are_typed(package):
    assert (Path(package.__file__).parent / "py.typed").is_file()


def test_the_reference_shows_the_table_of_statuses_that_the_code_enforces():
    text = (REFERENCE / "handle.md").read_text().partition("| Status | may become |")[2].partition("\n\n")[0]
    table = {
        row[0].strip(): frozenset(re.findall(r"\w+", row[1]))
        for line in text.strip().splitlines()[1:]
        if (row := line.strip("|").split("|"))
    }
    assert table == {status.name: frozenset(after.name for after in allowed) for status, allowed in TRANSITIONS.items()}


def test_the_reference_lists_every_command_with_its_options():
    text = (REFERENCE / "cli.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)[^`]*` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE))
    listed = {name: set(re.findall(r"`(-[\w-]+)`", options)) for name, options in rows.items()}
    group = typer.main.get_command(app)
    offered = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
        - {"--json", "--help"}
        for name, command in group.commands.items()
    }
    assert listed == offered
