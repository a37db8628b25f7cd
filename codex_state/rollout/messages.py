"""What a process and its children say to each other: messages with their length before them.

A child imports this and what its work needs, so it starts in a moment.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import IO, Any, TypeVar

import msgspec

JobT = TypeVar("JobT", bound=msgspec.Struct)

_LENGTH = struct.Struct("<Q")


def serve(job: type[JobT], run: Callable[[JobT], Any]) -> None:
    """Be a child: do jobs until standard input ends."""
    encode = msgspec.msgpack.Encoder().encode
    decode = msgspec.msgpack.Decoder(job).decode
    while (message := receive(sys.stdin.buffer)) is not None:
        send(sys.stdout.buffer, encode(run(decode(message))))


def send(stream: IO[bytes], message: bytes) -> None:
    """Write one framed message."""
    stream.write(_LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """Read one framed message; ``None`` when the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    message = stream.read(length)
    return message if len(message) == length else None
