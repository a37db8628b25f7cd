"""Reading rollouts line by line, plain or compressed, in bounded memory.

Beside one line, a reader holds a buffer of 64 KiB, and for a compressed file its window of at most 128 MiB. Lines are
read up to 128 MiB; a longer one is passed over without being held, and counts as a parse error.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator

from codex_state.errors import RolloutError
from codex_state.rollout.files import COMPRESSED_SUFFIX

MAX_LINE_BYTES = 128 * 1024 * 1024

# Small enough to stay in the processor's cache between reading and decoding, which is worth a quarter of the speed.
_BUFFER_BYTES = 64 * 1024
_MAX_WINDOW_BYTES = 128 * 1024 * 1024

# Not blocking, because opening a named pipe would wait for its writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


Lines = Iterable[bytes]


def open_rollout(path: str) -> tuple[io.BufferedReader, os.stat_result]:
    """Open a rollout for reading its lines, which may raise ``OSError``. The caller closes it.

    Returns:
        The lines, and the file's status from before the first byte was read.

    Raises:
        RolloutError: it can't be opened, or isn't a regular file.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    try:
        status = os.fstat(descriptor)
        _require_regular(path, status)
        file = io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        raw = _Decompressed(file) if path.endswith(COMPRESSED_SUFFIX) else file
    except BaseException:
        file.close()
        raise
    return io.BufferedReader(raw, _BUFFER_BYTES), status


def _require_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RolloutError(f"can't read the rollout {path}: not a regular file")


def unreadable(path: str, error: Exception) -> RolloutError:
    """The error to raise when reading ``path`` failed."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return RolloutError(f"can't read the rollout {path}: {reason}")


def lines_of(file: io.BufferedReader, status: os.stat_result) -> Lines:
    """The lines of an opened rollout.

    Of a line that is too long only the beginning is given, made into something that is no JSON value.

    Args:
        file: what ``open_rollout`` gave.
        status: the status that came with it.
    """
    plain = isinstance(file.raw, io.FileIO)
    # No line of a small file can be too long, and iterating over the file itself is the fastest.
    return file if plain and status.st_size <= MAX_LINE_BYTES else _bounded_lines(file)


def _bounded_lines(file: io.BufferedReader) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            _skip_rest_of_line(file)
            line = line[:_BUFFER_BYTES] + b"\0"
        yield line


def _skip_rest_of_line(file: io.BufferedReader) -> None:
    while (part := file.readline(_BUFFER_BYTES)) and not part.endswith(b"\n"):
        pass


class _Decompressed(io.RawIOBase):
    """The decompressed bytes of a Zstandard file. Damage is an ``OSError``, as of any other file."""

    def __init__(self, file: io.FileIO) -> None:
        import zstandard  # compressed rollouts are rare, and a decoding process should start quickly

        super().__init__()
        self._file = file
        self._error = zstandard.ZstdError
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        self._frames = decompressor.stream_reader(file, read_across_frames=True, closefd=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            return self._frames.readinto(buffer)
        except self._error as error:
            raise OSError(errno.EIO, f"damaged compression: {error}") from error

    def close(self) -> None:
        try:
            self._frames.close()  # type: ignore[no-untyped-call]
        finally:
            self._file.close()
            super().close()
