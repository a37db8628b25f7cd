"""A process that extracts rollouts for a backfill: jobs come in on standard input, results go out on standard output.

A plain child process rather than ``multiprocessing``: it imports only what decoding needs, so it starts in a moment,
and it doesn't run the caller's main module again.
"""

from __future__ import annotations

import struct
import sys
from typing import IO

import msgspec

from codex_state.errors import RolloutError
from codex_state.rollout.fold import Extraction, extract
from codex_state.rollout.reading import may_pass

_LENGTH = struct.Struct("<Q")


class Job(msgspec.Struct):
    """Rollouts to extract, in order."""

    paths: list[str]
    default_provider: str


class Failed(msgspec.Struct, tag=True, gc=False):
    """A rollout that could not be extracted."""

    error: str
    may_pass: bool = False
    """Whether it may be readable later though nothing of it changes."""


class Extracted(msgspec.Struct, tag=True, gc=False):
    """A rollout that could."""

    extraction: Extraction


Result = Extracted | Failed


def extract_one(path: str, default_provider: str) -> Result:
    """Extract a rollout; one that can't be is a result as well."""
    try:
        return Extracted(extract(path, default_provider))
    except RolloutError as error:
        return Failed(str(error), may_pass(error))


def run_job(job: Job) -> list[Result]:
    """Extract each rollout of the job."""
    return [extract_one(path, job.default_provider) for path in job.paths]


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


def main() -> None:
    """Serve jobs until standard input ends."""
    encode = msgspec.msgpack.Encoder().encode
    decode = msgspec.msgpack.Decoder(Job).decode
    while (message := receive(sys.stdin.buffer)) is not None:
        send(sys.stdout.buffer, encode(run_job(decode(message))))


if __name__ == "__main__":
    main()
