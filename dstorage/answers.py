"""What controllers answer to a write, checked: a plug-in that answers nonsense fails that chunk, and not the commits of all others."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from dstorage.controller import Controller, WriteRequest
from dstorage.errors import ControllerError
from dstorage.record import Locator

_LOCATOR = struct.Struct("<IQQ")


async def write_to(controller: Controller, requests: Sequence[WriteRequest]) -> list[Locator | Exception]:
    """Have `controller` write; each answer is a locator that a record can hold, or an exception.

    Raises:
        ControllerError: It did not give an answer to each request.
        Exception: What befell the whole batch.
    """
    answers = await controller.write(requests)
    if not isinstance(answers, Sequence) or len(answers) != len(requests):
        given = len(answers) if isinstance(answers, Sequence) else repr(answers)
        raise ControllerError(f"controller {controller.name!r} gave {given} answers to {len(requests)} writes")
    return [_checked(controller, request, answer) for request, answer in zip(requests, answers, strict=True)]


def _checked(controller: Controller, request: WriteRequest, answer: object) -> Locator | Exception:
    if isinstance(answer, Exception):
        return answer
    if isinstance(answer, Locator) and answer.size == len(request.data):
        try:
            _LOCATOR.pack(*answer)
        except struct.error:
            pass
        else:
            return answer
    return ControllerError(
        f"controller {controller.name!r} answered the write of chunk {request.id} ({len(request.data)} bytes) with {answer!r}, "
        "which is no locator of it: the size and two numbers from 0 to 2**64-1"
    )
