"""moto's S3, in a process of its own: a fast mock that honours conditional writes. Objects are in its memory: a kill loses them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from servers.process import ServerProcess, accepts, free_port
from servers.s3 import make_bucket

BUCKET = "chunks"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret", "AWS_REGION": "us-east-1"}

# Servers are not what coverage is measured of, and are slow enough.
PYTHON = ["env", "-u", "COVERAGE_PROCESS_CONFIG", "-u", "COVERAGE_PROCESS_START", sys.executable, "-P", "-W", "ignore"]


def need_module(module: str, how: str) -> None:
    """Skip the test (with CI=true: fail it) unless a module can be imported."""
    if importlib.util.find_spec(module) is None:
        sentence = f"the module {module} is not installed: {how}"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)


class MotoServer(ServerProcess):
    """`moto_server` with one bucket.

    Args:
        directory: For its log.
        arguments: More of `moto_server`.
        bucket: Whether to make one.
    """

    environment = ENVIRONMENT

    def __init__(self, directory: Path, *arguments: str, bucket: bool = True) -> None:
        need_module("moto.server", "pip install 'moto[s3,server]'")
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        command = [*PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._bucket = bucket
        super().__init__([*command, *arguments], ready=lambda: accepts(self.port), log=directory / "log")

    @property
    def settings(self) -> dict[str, object]:
        """Arguments of `InternetController`."""
        return {"url": f"s3://{BUCKET}/moto", "endpoint": f"http://127.0.0.1:{self.port}", "allow_http": True}

    def start(self) -> None:
        """Start it, empty but for the bucket."""
        super().start()
        if self._bucket:
            make_bucket(self.port, BUCKET, self.environment)
