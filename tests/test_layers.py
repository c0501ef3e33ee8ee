"""A lower layer never imports a higher one, the core imports no plug-in, and a plug-in imports only the contract.

The layers are those of docs/explanation/architecture.md. Imports are read from the syntax tree, so that those inside of
functions count too; those under `if TYPE_CHECKING:` do not, for they never happen.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    "errors record arguments events waiting buffers mount durable",
    "controller",
    "tier answers lmdb_file groups known catalog index registry uses",
    "paging",
    "handle table room outage resolver contents shortcut bulk commit ids namespace loading transfer copies mover drain tiering info lock store lease opening",
    "check testing persistent volumes exnode",
    "blocking cache array",
    "server integrations cli",
]
"""Lowest first; a name stands for the module `dstorage.<name>` or the package of that name."""

LAYER = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
TOP = len(LAYERS) - 1
CONTRACT = {
    "dstorage.buffers",
    "dstorage.controller",
    "dstorage.durable",
    "dstorage.errors",
    "dstorage.mount",
    "dstorage.record",
}
"""What a plug-in may import of the core; `dstorage` itself re-exports the same and is allowed as well."""


def modules(folder: Path, package: str) -> dict[str, ast.Module]:
    """Module name -> syntax tree, for all below `folder`."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join([package, *(part for part in parts if part != "__init__")])
        found[name] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.Module, package: str, known: set[str]) -> set[str]:
    """Modules that a module really imports; `from package import module` counts as `package.module`."""
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & known) or {base}
        pending += ast.iter_child_nodes(node)
    return found


CORE = modules(ROOT / "dstorage", "dstorage")
PLUGINS = modules(ROOT / "controllers" / "dstorage_controllers", "dstorage_controllers")
KNOWN = set(CORE) | set(PLUGINS)


def package_of(module: str, trees: dict[str, ast.Module]) -> str:
    is_package = any(other.startswith(f"{module}.") for other in trees)
    return module if is_package else module.rpartition(".")[0]


def level(module: str) -> int:
    """Layer of a module of the core; the package itself, which re-exports the public names, is the top."""
    return LAYER[module.split(".")[1]] if "." in module else TOP


def imported_by(module: str) -> set[str]:
    trees = CORE if module in CORE else PLUGINS
    return imports(trees[module], package_of(module, trees), KNOWN)


@pytest.mark.parametrize("module", sorted(set(CORE) - {"dstorage"}))
def test_every_module_has_a_layer(module):
    assert module.split(".")[1] in LAYER, f"give {module} its place in LAYERS"


@pytest.mark.parametrize("module", sorted(set(CORE) - {"dstorage"}))
def test_no_layer_imports_a_higher_one(module):
    own = level(module)
    higher = {name for name in imported_by(module) if name.split(".")[0] == "dstorage" and level(name) > own}
    assert not higher, f"{module} (layer {own}) imports {higher}"


@pytest.mark.parametrize("module", sorted(CORE))
def test_the_core_imports_no_plugin(module):
    assert not {name for name in imported_by(module) if name.split(".")[0] == "dstorage_controllers"}


@pytest.mark.parametrize("module", sorted(PLUGINS))
def test_a_plugin_imports_only_the_contract(module):
    core = {name for name in imported_by(module) if name.split(".")[0] == "dstorage"}
    assert core <= CONTRACT | {"dstorage"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import dstorage.store", {"dstorage.store"}),
        ("def f():\n    from dstorage import store", {"dstorage.store"}),
        ("from dstorage.store import Store", {"dstorage.store"}),
        ("from . import policy", {"dstorage.paging.policy"}),
        ("from ..store import Store", {"dstorage.store"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dstorage.store", {"typing"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source, expected):
    known = {"dstorage.store", "dstorage.paging.policy"}
    assert imports(ast.parse(source), "dstorage.paging", known) == expected
