"""The reference names exactly the commands and settings there are."""

from __future__ import annotations

import re
from pathlib import Path

from dstorage.server.admin import Admin
from dstorage.server.keyspace import MAX_KEY_BYTES

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference" / "serve.md").read_text()


async def test_the_reference_lists_every_command(client):
    table = REFERENCE.partition("## Commands")[2].partition("## Durability")[0]
    rows = [re.sub(r"\([^)]*\)", "", line.split("|")[2]) for line in table.splitlines() if line.startswith("| ")][1:]
    listed = [name.lower() for row in rows for name in re.findall(r"`([A-Z.]+)`", row)]
    there = {command.name for command in client.node.server.table.values()}
    assert sorted(listed) == sorted(there)
    assert f"at most {MAX_KEY_BYTES} bytes" in REFERENCE


async def test_the_reference_lists_every_setting(client):
    sentence = REFERENCE.partition("`CONFIG GET` knows ")[2].partition(".\n")[0]
    assert re.findall(r"`([\w-]+)`", sentence) == sorted(Admin(client.node.server)._settings())
