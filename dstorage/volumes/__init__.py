"""Thin pools and volumes with snapshots, in the format of the Linux kernel's thin provisioning; ``dstorage[persistent]``."""

from __future__ import annotations

from dstorage.volumes.device import DataDevice, FileDevice
from dstorage.volumes.errors import (
    DeviceBusyError,
    DeviceExistsError,
    NoSuchDeviceError,
    NotAPoolError,
    PoolFullError,
    PoolReadOnlyError,
    VolumeError,
    XmlError,
)
from dstorage.volumes.file import VolumeFile
from dstorage.volumes.metadata import ThinMetadata
from dstorage.volumes.pool import ThinPool
from dstorage.volumes.records import DeviceDetails, Run
from dstorage.volumes.status import DeviceStatus, LowSpace, Mode, PoolStatus
from dstorage.volumes.volume import Volume

__all__ = [
    "DataDevice",
    "DeviceBusyError",
    "DeviceDetails",
    "DeviceExistsError",
    "DeviceStatus",
    "FileDevice",
    "LowSpace",
    "Mode",
    "NoSuchDeviceError",
    "NotAPoolError",
    "PoolFullError",
    "PoolReadOnlyError",
    "PoolStatus",
    "Run",
    "ThinMetadata",
    "ThinPool",
    "Volume",
    "VolumeError",
    "VolumeFile",
    "XmlError",
]
