"""Azurite: Microsoft's own emulator of Azure Blob Storage, with its files in a directory."""

from __future__ import annotations

import base64
import datetime
import hmac
import os
import urllib.error
import urllib.request
from pathlib import Path

from servers.process import ServerProcess, accepts, free_port, need

CONTAINER = "chunks"
ACCOUNT = "devstoreaccount1"
# The emulator's well-known key, the same everywhere.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ENVIRONMENT = {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}
HOW = "npm install -g azurite, or name its folder of programs in the variable DSTORAGE_TEST_NODE_BIN"


class AzuriteServer(ServerProcess):
    """`azurite-blob` with one container.

    Args:
        directory: For its files and log.
    """

    environment = ENVIRONMENT

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        extra = os.environ.get("DSTORAGE_TEST_NODE_BIN")
        program = str(Path(extra) / "azurite-blob") if extra else need("azurite-blob", HOW)
        command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "-l", str(directory / "files")]
        command += ["-s", "--disableTelemetry", "--skipApiVersionCheck"]
        super().__init__(command, ready=lambda: accepts(self.port), log=directory / "log")

    @property
    def settings(self) -> dict[str, object]:
        """Arguments of `InternetController`."""
        endpoint = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        return {"url": f"az://{CONTAINER}/azurite", "endpoint": endpoint, "allow_http": True}

    def start(self) -> None:
        """Start it, and create the container the first time."""
        super().start()
        now = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": now, "x-ms-version": "2021-12-02"}
        lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
        text = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}", "restype:container"])
        signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")).decode()
        url = f"http://127.0.0.1:{self.port}/{ACCOUNT}/{CONTAINER}?restype=container"
        request = urllib.request.Request(url, data=b"", method="PUT")
        for name, value in {**headers, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}.items():
            request.add_header(name, value)
        request.add_header("Content-Type", "")
        try:
            with urllib.request.urlopen(request, timeout=10):
                pass
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 409:
                    raise AssertionError(error.read()) from error
