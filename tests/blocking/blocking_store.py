"""What the tests of blocking stores share: opening one, threads, and programs of a few lines in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import dstorage.blocking

PRELUDE = """
import asyncio, os, signal, sys, threading, time
import dstorage, dstorage.blocking
from memory_controller import MemoryController

class Gate:
    'For a MemoryController: tells who interrupts that somebody has come to it.'
    def __init__(self):
        self.event = asyncio.Event()
        self.reached = threading.Event()
    async def wait(self):
        self.reached.set()
        await self.event.wait()
    async def open(self):
        self.event.set()

def interrupt_at(reached):
    def interrupt():
        reached.wait()
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
"""


def opening(path, *controllers, **options):
    defaults = {"budget": 2**20, "commit_interval": None, "pressure": None, "controllers": controllers or None}
    return dstorage.blocking.open(path, **(defaults | options))


def program(source: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a Python program; its warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + source, *map(str, arguments)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class Threads:
    """Threads that run at the same time; `join` raises what any of them raised."""

    def __init__(self, *functions):
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(function,)) for function in functions]
        for thread in self._threads:
            thread.start()

    def _run(self, function):
        try:
            function()
        except BaseException as error:
            self.errors.append(error)

    def join(self, timeout=30):
        for thread in self._threads:
            thread.join(timeout)
        assert not any(thread.is_alive() for thread in self._threads), "a thread hangs"
        for error in self.errors:
            raise error
