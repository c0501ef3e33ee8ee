"""The plug-in passes the suite that every controller passes."""

from __future__ import annotations

from pathlib import Path

from dstorage_files import FilesController

from dstorage import Locator
from dstorage.testing import ControllerTests


class TestFiles(ControllerTests):
    def make(self, directory: Path) -> FilesController:
        return FilesController("files", directory / "medium")

    def make_small(self, directory: Path, capacity: int) -> FilesController:
        return FilesController("files", directory / "medium", capacity=capacity)

    def damage(self, directory: Path, id: int, locator: Locator) -> bool:
        (file,) = directory.glob(f"medium/*/{locator.b}")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        return True

    def lose(self, directory: Path, id: int, locator: Locator) -> bool:
        (file,) = directory.glob(f"medium/*/{locator.b}")
        file.unlink()
        return True
