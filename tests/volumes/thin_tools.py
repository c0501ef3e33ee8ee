"""The thin-provisioning tools, which judge our metadata, and pools described by XML, which they and we make."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = ("thin_check", "thin_dump", "thin_restore")


def require_tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None and not Path("/usr/sbin", tool).exists()]
    if missing:
        message = f"{', '.join(missing)} not found: apt-get install thin-provisioning-tools"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


def run(tool: str, *arguments: object, fails: bool = False) -> bytes:
    environment = dict(os.environ, PATH=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    done = subprocess.run([tool, *map(str, arguments)], env=environment, capture_output=True, timeout=120)
    assert bool(done.returncode) == fails, f"{tool} ended with {done.returncode}: {done.stderr.decode()}"
    return done.stdout


def thin_check(path: Path) -> None:
    run("thin_check", "-q", path)


def thin_dump(path: Path, *options: str) -> bytes:
    return run("thin_dump", *options, path)


def thin_restore(xml: bytes, path: Path, size: int = 4 * 2**20) -> None:
    source = path.with_suffix(".xml")
    source.write_bytes(xml)
    path.write_bytes(b"")
    os.truncate(path, size)
    run("thin_restore", "-q", "-i", source, "-o", path)


def random_xml(seed: int, devices: int, runs: int, nr_data_blocks: int = 50_000) -> bytes:
    """A pool as thin_dump prints it: runs of all lengths, gaps, data blocks mapped up to many times."""
    chance = random.Random(seed)
    lines = [
        f'<superblock uuid="" time="5" transaction="3" flags="0" version="2" data_block_size="128" '
        f'nr_data_blocks="{nr_data_blocks}">'
    ]
    for id in sorted(chance.sample(range(2**24), devices)):
        virtual = mapped = 0
        body = []
        for _ in range(chance.randint(0, runs)):
            virtual += chance.choice([1, 2, 1000, 2**30])
            length = chance.choice([1, 1, 2, 50, chance.randint(1, 300)])
            data = chance.randrange(nr_data_blocks - length)
            time = chance.randint(0, 5)
            body.append(
                f'    <single_mapping origin_block="{virtual}" data_block="{data}" time="{time}"/>'
                if length == 1
                else f'    <range_mapping origin_begin="{virtual}" data_begin="{data}" length="{length}" time="{time}"/>'
            )
            virtual += length
            mapped += length
        lines += [
            f'  <device dev_id="{id}" mapped_blocks="{mapped}" transaction="{chance.randint(0, 9)}" '
            f'creation_time="0" snap_time="{chance.randint(0, 5)}">',
            *body,
            "  </device>",
        ]
    return "\n".join([*lines, "</superblock>", ""]).encode()


POOLS = {
    "empty": (1, 0, 0),
    "one": (2, 1, 40),
    "several": (3, 5, 300),
    "many small": (4, 300, 3),
    "large": (5, 4, 2000),
}
"""Seed, devices, most runs of each."""
