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

_LENGTH = struct.Struct("<Q")


class Job(msgspec.Struct):
    """Rollouts to extract, in order."""

    paths: list[str]
    default_provider: str


class Failed(msgspec.Struct, tag=True):
    """A rollout that could not be extracted."""

    error: str


class Extracted(msgspec.Struct, tag=True):
    """A rollout that could."""

    extraction: Extraction


Result = Extracted | Failed


def run_job(job: Job) -> list[Result]:
    """Extract each rollout of the job; one that fails doesn't stop the others."""
    results: list[Result] = []
    for path in job.paths:
        try:
            results.append(Extracted(extract(path, job.default_provider)))
        except RolloutError as error:
            results.append(Failed(str(error)))
    return results


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
    # JSON, not a binary form: a tool's schema travels as the undecoded JSON that it is in the rollout.
    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(Job).decode
    while (message := receive(sys.stdin.buffer)) is not None:
        send(sys.stdout.buffer, encode(run_job(decode(message))))


if __name__ == "__main__":
    main()
