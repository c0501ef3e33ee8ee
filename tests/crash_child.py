"""A child that works on a store at random until it is killed; the parent of tests/test_crash.py reads its journal.

Usage: crash_child.py STORE JOURNAL SEED. The journal, one JSON line per step, is written before a commit is asked for
("asked": the whole state it will make durable) and after it was acknowledged ("acknowledged").
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys

import dstorage


def contents(id_seed: int, size: int) -> bytes:
    return random.Random(id_seed).randbytes(size)


async def main(path: str, journal_path: str, seed: int) -> None:
    rnd = random.Random(seed)
    journal = os.open(journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(kind: str, number: int, state: dict[int, str] | None = None) -> None:
        line = {"kind": kind, "number": number}
        if state is not None:
            line["state"] = state
        os.write(journal, json.dumps(line).encode() + b"\n")

    async with dstorage.open(path, budget=256 * 1024, commit_interval=None, pressure=None) as store:
        model: dict[int, str] = {}
        for id in store.ids():
            async with store.handle(id) as data:
                model[id] = hashlib.sha256(data).hexdigest()
        note("opened", 0, model)
        number = 0
        while True:
            for _ in range(rnd.randrange(1, 40)):
                size = rnd.choice([0, 10, 1000, 5000, 30_000])
                data = rnd.randbytes(size)
                action = rnd.random()
                if action < 0.4 or not model:
                    with await store.create(data) as handle:
                        model[handle.id] = hashlib.sha256(data).hexdigest()
                    continue
                id = rnd.choice(list(model))
                with store.handle(id) as handle:
                    if action < 0.6:
                        await handle.replace(data)
                        model[id] = hashlib.sha256(data).hexdigest()
                    elif action < 0.75:
                        async with handle.edit() as buf:
                            if len(buf):
                                buf[0] ^= 1
                            model[id] = hashlib.sha256(buf).hexdigest()
                    elif action < 0.9:
                        handle.delete()
                        del model[id]
                    else:
                        await handle
            number += 1
            note("asked", number, model)
            await store.commit()
            note("acknowledged", number)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
