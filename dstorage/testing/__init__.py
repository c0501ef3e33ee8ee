"""For the tests of controllers, and of programs on top of them.

* `ControllerTests`: the suite every controller passes; `Bench`, `payload` and `eventually` are its tools.
* `FaultyController`, `SlowController`, `FullController`, `LoggingController`: wrap any controller.
* `RecordingDevice`, `power_failures`: what a power failure may leave of files written through it.
* `FakeClock`, `FakeMachine`: time that passes, and memory that runs short, when told to.
"""

from __future__ import annotations

from dstorage.testing.clock import FakeClock
from dstorage.testing.machine import FakeMachine
from dstorage.testing.power import PowerFailure, RecordingDevice, power_failures
from dstorage.testing.suite import Bench, ControllerTests, eventually, payload
from dstorage.testing.wrappers import (
    Call,
    FaultyController,
    FullController,
    LoggingController,
    SlowController,
    WrappedController,
)

__all__ = [
    # the suite
    "ControllerTests", "Bench", "payload", "eventually",
    # wrappers
    "WrappedController", "FaultyController", "SlowController", "FullController", "LoggingController", "Call",
    # power failures
    "RecordingDevice", "PowerFailure", "power_failures",
    # time and memory
    "FakeClock", "FakeMachine",
]  # fmt: skip
