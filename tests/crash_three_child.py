"""A child that works on a store of a disk, a Redis server and a bucket until it is killed; tests/controllers/test_internet_crash.py
reads its journal, which is that of crash_child.py.

Usage: crash_three_child.py STORE JOURNAL SEED STATE REDIS BUCKET. STATE is a file with what the store holds, REDIS the server's
URL, BUCKET settings of `InternetController` in JSON. Every commit has something new on all three; one that fails because a
server is away is asked for again with what came since.
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
from dstorage_controllers.internet import InternetController
from dstorage_controllers.lan import LanController

import dstorage


async def main(path: str, journal_path: str, seed: int, state_path: str, url: str, bucket: str) -> None:
    rnd = random.Random(seed)
    journal = os.open(journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(kind: str, number: int, state: dict[int, str] | None = None) -> None:
        line = {"kind": kind, "number": number}
        if state is not None:
            line["state"] = state
        os.write(journal, json.dumps(line).encode() + b"\n")

    controllers = [
        DiskController("disk"),
        LanController(url=url, timeout=1.0),
        InternetController(**json.loads(bucket)),
    ]
    async with dstorage.open(path, budget=2**20, commit_interval=None, pressure=None, controllers=controllers) as store:
        model = {int(id): digest for id, digest in json.loads(Path(state_path).read_text()).items()}
        note("opened", 0, model)
        number = 0
        while True:
            for controller in ("disk", "lan", "internet"):
                for _ in range(rnd.randrange(1, 4)):
                    data = rnd.randbytes(rnd.choice([0, 10, 5000, 30_000, 100_000]))
                    with await store.create(data, controller=controller, wait=30) as handle:
                        model[handle.id] = hashlib.sha256(data).hexdigest()
            for id in rnd.sample(list(model), min(5, len(model))):
                with store.handle(id) as handle:
                    if rnd.random() < 0.5 or len(model) > 40:
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
