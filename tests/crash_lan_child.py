"""A child that works on a store of a disk and a Redis server until it is killed; tests/controllers/test_lan_crash.py reads its journal.

Usage: crash_lan_child.py STORE JOURNAL SEED URL STATE. STATE is a file with what the store holds; the journal is that of crash_child.py. Every commit has something new on
both controllers; one that fails because the server is away is asked for again with what came since.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
import warnings
from pathlib import Path

from dstorage_controllers.disk import DiskController
from dstorage_controllers.lan import LanController

import dstorage


async def main(path: str, journal_path: str, seed: int, url: str, state_path: str) -> None:
    rnd = random.Random(seed)
    journal = os.open(journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(kind: str, number: int, state: dict[int, str] | None = None) -> None:
        line = {"kind": kind, "number": number}
        if state is not None:
            line["state"] = state
        os.write(journal, json.dumps(line).encode() + b"\n")

    controllers = [DiskController("disk"), LanController(url=url, timeout=1.0)]
    async with dstorage.open(path, budget=2**20, commit_interval=None, pressure=None, controllers=controllers) as store:
        model = {int(id): digest for id, digest in json.loads(Path(state_path).read_text()).items()}
        note("opened", 0, model)
        number = 0
        while True:
            for controller in ("disk", "lan"):
                for _ in range(rnd.randrange(1, 6)):
                    data = rnd.randbytes(rnd.choice([0, 10, 5000, 30_000]))
                    with await store.create(data, controller=controller, wait=30) as handle:
                        model[handle.id] = hashlib.sha256(data).hexdigest()
            for id in rnd.sample(list(model), min(4, len(model))):
                with store.handle(id) as handle:
                    if rnd.random() < 0.5 or len(model) > 60:
                        handle.delete()
                        del model[id]
                    else:
                        data = rnd.randbytes(rnd.choice([10, 5000]))
                        await handle.replace(data, wait=30)
                        model[id] = hashlib.sha256(data).hexdigest()
            number += 1
            note("asked", number, model)
            try:
                await store.commit()
            except dstorage.TemporarilyUnavailable:
                await asyncio.sleep(0.02)
            else:
                note("acknowledged", number)


if __name__ == "__main__":
    # A server that is away at the moment is what this is about.
    warnings.simplefilter("ignore", RuntimeWarning)
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
