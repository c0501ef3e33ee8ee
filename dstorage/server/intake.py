"""What one client is sending: the memory it takes before it is done, counted; and long arguments on their way into chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dstorage.server.command import Command, CommandError
from dstorage.server.large import Upload
from dstorage.server.protocol import LargeCommand, MemorySink, ProtocolError, Sink

if TYPE_CHECKING:
    from dstorage.server.server import Server

BEGUN_FREE = 2**16
"""Up to so many bytes, the beginning of a request is not counted."""


class Intake:
    """Counts and keeps what has come from one client and is not done.

    Args:
        server: The server, whose clients share one limit.
        hold: Called when nothing more should be read for now.
        go_on: Called when reading may go on.

    Attributes:
        charged: Memory outside of the budget for which the client is to blame, bytes.
        begun: Of it, what has come of a request that is not complete.
    """

    def __init__(self, server: Server, hold: Callable[[], None], go_on: Callable[[], None]) -> None:
        self.charged = self.begun = 0
        self._server = server
        self._hold = hold
        self._go_on = go_on
        self._uploads: set[Upload] = set()

    # -- memory -------------------------------------------------------------------------------------------------------

    def charge(self, weight: int) -> None:
        """Count `weight` bytes.

        Raises:
            CommandError: All clients together would have more than there may be.
        """
        server = self._server
        if server.buffered + weight > server.limits.buffers:
            raise CommandError(f"ERR no room to receive {weight} bytes now: other clients are sending")
        server.buffered += weight
        self.charged += weight

    def discharge(self, weight: int) -> None:
        """That memory is free again; where the client has gone meanwhile, it was already."""
        weight = min(weight, self.charged)
        self._server.buffered -= weight
        self.charged -= weight

    def begin(self, pending: int) -> None:
        """Count what has come of a request that is not complete, instead of what was counted before.

        Raises:
            CommandError: As from `charge`.
        """
        self.discharge(self.begun)
        self.begun = 0
        if pending >= BEGUN_FREE:
            self.charge(pending)
            self.begun = pending

    def end(self) -> None:
        """The client has gone: nothing is left of what it sent."""
        self.discharge(self.charged)
        for upload in self._uploads:
            self._server.spawn(upload.abort())
        self._uploads.clear()

    # -- long arguments -----------------------------------------------------------------------------------------------

    def sink(self, size: int) -> Sink:
        """Where an argument of `size` bytes goes (for the parser).

        Raises:
            ProtocolError: There is no room for it.
        """
        try:
            self.charge(self._weight(size))
        except CommandError as error:
            raise ProtocolError(str(error).removeprefix("ERR ")) from error
        piece = self._server.large.piece
        if size <= piece:
            return MemorySink(size)
        upload = Upload(size, self._server.chunks, piece, hold=self._hold, go_on=self._go_on)
        self._uploads.add(upload)
        return upload

    def accept(self, command: Command, args: LargeCommand) -> tuple[list[Any], Upload | None]:
        """The arguments as `command` takes them, and the one among them that is an upload.

        Raises:
            CommandError: It takes none of that length there.
        """
        piece = self._server.large.piece
        plain: list[Any] = []
        upload = None
        for position, arg in enumerate(args):
            if isinstance(arg, Upload):
                if not (command.uploads and position == command.value_at):
                    raise CommandError(
                        f"ERR an argument of {arg.size} bytes is too long for '{command.name}': at most {piece}; "
                        "SET, SETEX and GETSET take values of up to 512 MiB, SETRANGE and APPEND write them in parts"
                    )
                upload = arg
            plain.append(bytes(arg) if isinstance(arg, bytearray) and position != command.value_at else arg)
        return plain, upload

    def drop(self, args: list[Any]) -> None:
        """The long ones among the arguments of a command are not needed any more."""
        if isinstance(args, LargeCommand):
            self.forget(args)
            for arg in args:
                if isinstance(arg, Upload) and not arg.kept:
                    self.drop_upload(arg)

    def drop_upload(self, upload: Upload) -> None:
        """An upload is not needed any more: what has not become a value goes."""
        self._uploads.discard(upload)
        self._server.spawn(upload.abort())

    def forget(self, args: LargeCommand) -> None:
        """Long arguments are the command's now: they are not counted here any more."""
        weight = sum(
            self._weight(arg.size if isinstance(arg, Upload) else len(arg))
            for arg in args
            if not isinstance(arg, bytes)
        )
        self.discharge(weight)

    def _weight(self, size: int) -> int:
        """Memory outside of the budget that an argument of `size` bytes takes while it arrives."""
        return min(size, 2 * self._server.large.piece)
