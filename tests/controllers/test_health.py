"""Health: what a failure ends, what a probe finds out, and how often it asks."""

from __future__ import annotations

import asyncio

import pytest
from dstorage_controllers.health import Fault, Health, Manners

from dstorage import ControllerStatus, ControllerUnavailable
from dstorage.testing import eventually

FAULTS = {"down": Fault.DOWN, "writes": Fault.WRITES, "full": Fault.FULL}
MANNERS = Manners(
    (OSError,),
    lambda error: FAULTS[str(error)],
    lambda name, error: ControllerUnavailable(f"{name}: {error}"),
    first_pause=0.001,
    longest_pause=0.01,
)


class Server:
    """Fails as long as `error` says."""

    def __init__(self):
        self.error: Exception | None = None
        self.probes = 0
        self.told: list[ControllerStatus] = []
        self.health = Health("server", MANNERS, self.probe, lambda: self.told.append(self.health.status))

    async def probe(self):
        self.probes += 1
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("fault", "status", "reads"),
    [
        ("down", ControllerStatus.TEMPORARILY_UNAVAILABLE, False),
        ("writes", ControllerStatus.READ_ONLY, True),
        ("full", ControllerStatus.FULL, True),
    ],
)
async def test_a_fault_ends_what_it_says_until_a_probe_is_answered(fault, status, reads):
    server = Server()
    assert server.health.refuse(write=True) is None
    server.error = OSError(fault)
    server.health.failed(server.error)
    assert server.health.status is status
    assert (server.health.refuse(write=False) is None) is reads
    assert server.health.refuse(write=True) is not None
    await eventually(lambda: server.probes > 2, "it is not asked again")
    assert server.health.status is status
    server.error = None
    await eventually(lambda: server.health.status is ControllerStatus.OK, "it is not noticed that it is back")
    assert server.told == [status, ControllerStatus.OK]
    await server.health.close()


async def test_a_probe_with_a_fault_of_its_own_is_told_and_asked_again():
    server, told = Server(), []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
    server.error = RuntimeError("a slip")
    server.health.failed(OSError("down"))
    await eventually(lambda: server.probes > 2, "one slip ended the probing")
    assert told[0] is server.error
    server.error = None
    await eventually(lambda: server.health.status is ControllerStatus.OK, "it stays away")
    await server.health.close()


async def test_nothing_is_asked_after_the_end():
    server = Server()
    server.error = OSError("down")
    server.health.failed(server.error)
    await eventually(lambda: server.probes > 0, "it is not asked")
    await server.health.close()
    probes = server.probes
    server.health.failed(server.error)
    await asyncio.sleep(0.05)
    assert server.probes == probes
