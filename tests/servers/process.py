"""A server as a child process: started on a free port, killed and started again by tests, gone at the end of the session."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

PATIENCE_S = 30.0


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on, with room for a Cluster's bus at +10000."""
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        if port < 55_000:
            return port


def need(program: str, how: str) -> str:
    """Path of a program, or skip the test (with CI=true: fail it) with a sentence on how to get it."""
    path = shutil.which(program)
    if path is None:
        sentence = f"{program} is not installed: {how}"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return path


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


class ServerProcess:
    """One child process.

    Args:
        command: What to run.
        ready: Called until it is true, after each start.
        log: File that takes its output.
        environment: Variables in addition to this process's.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready: Callable[[], bool],
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self._ready = ready
        self._environment = {**os.environ, **(environment or {})}
        self._cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it and return when it is ready."""
        assert not self.alive
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, cwd=self._cwd
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._ready():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(
                    f"{self.command[0]} did not start:\n{self.log.read_text(errors='replace')[-3000:]}"
                )
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL it, and wait for its end."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and wait for it."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: it is there, accepts connections (the kernel does), and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.send_signal(how)
            try:
                child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
