"""Chunks on local disks: append-only segment files, checksummed, optionally compressed and encrypted."""

from __future__ import annotations

from dstorage_controllers.disk.controller import DiskController
from dstorage_controllers.disk.device import Device

__all__ = ["Device", "DiskController"]
