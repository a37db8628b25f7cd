"""Reading rollouts line by line, plain or compressed, in bounded memory.

Beside one line, a reader holds a buffer of 64 KiB, and for a compressed file its window of at most 128 MiB. Lines are
read up to 128 MiB; a longer one is passed over without being held, and counts as a parse error.

A compressed file may hold at most 8 MiB and 256 times its own size: more than any rollout is compressed, and little
enough that a few bytes can't cost minutes. Blank lines are passed over by the buffer, not one by one.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator

import msgspec

from codex_state.errors import RolloutError
from codex_state.rollout.files import COMPRESSED_SUFFIX

MAX_LINE_BYTES = 128 * 1024 * 1024

# Small enough to stay in the processor's cache between reading and decoding, which is worth a quarter of the speed.
_BUFFER_BYTES = 64 * 1024
_MAX_WINDOW_BYTES = 128 * 1024 * 1024
_COMPRESSED_BYTES = 64 * 1024
_PIECE_BYTES = 512
_DECOMPRESSED_BYTES = 8 * 1024 * 1024
_TIMES_COMPRESSED = 256

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


def may_pass(error: RolloutError) -> bool:
    """Whether a rollout may be readable later though nothing of it changes: permissions, a disk that answers again."""
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, _DamagedError)


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
        if len(line) <= 2 and line.isspace():
            skip_blank_lines(file)


def skip_blank_lines(lines: Lines) -> None:
    """Pass over the empty lines that come next, as many as there are. They hold nothing, and are counted nowhere.

    Call it after a blank line. Lines that aren't read from a file directly are left to whoever gives them.
    """
    if not isinstance(lines, io.BufferedReader):
        return
    while waiting := lines.peek():
        blank = len(waiting) - len(waiting.lstrip(b"\r\n"))
        lines.read(blank)
        if blank < len(waiting):
            return


def _skip_rest_of_line(file: io.BufferedReader) -> None:
    while (part := file.readline(_BUFFER_BYTES)) and not part.endswith(b"\n"):
        pass


def why_unusable(path: str, parse_errors: int, unknown_lines: int) -> str:
    """What is wrong with a rollout of which no line could be used, as the rest of a sentence about it."""
    try:
        file, _ = open_rollout(path)
        with file:
            head = file.read(4096)
    except (OSError, RolloutError):
        head = b""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _is_mostly_nul(head[::2]) != _is_mostly_nul(head[1::2]):
        return "is UTF-16 text, not UTF-8; save it as UTF-8 to have it indexed"
    if _is_of_early_2025(head):
        return "is in the format of early 2025, which has no session_meta; it can't be indexed"
    if unknown_lines:
        return f"holds no line of a kind that is known ({unknown_lines} of other kinds, {parse_errors} can't be read)"
    if parse_errors:
        return f"holds no usable line ({parse_errors} can't be read)"
    if b"\0" in head:
        return "holds nothing but NUL bytes, as a power failure may leave it"
    return "is empty: it holds no session metadata"


def _is_mostly_nul(part: bytes) -> bool:
    """Every other byte of what UTF-16 makes of ASCII is NUL; of padding all are."""
    return len(part) >= 8 and part.count(0) > len(part) * 3 // 4


def _is_of_early_2025(head: bytes) -> bool:
    try:
        first = msgspec.json.decode(head.split(b"\n", 1)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "payload" not in first and ("instructions" in first or "id" in first)


class _DamagedError(OSError):
    """What is in the file can't be decompressed, however often it is tried."""


class _Decompressed(io.RawIOBase):
    """The decompressed bytes of a Zstandard file. Damage, and an end before the end, are an ``OSError``."""

    def __init__(self, file: io.FileIO) -> None:
        import zstandard  # compressed rollouts are rare, and a decoding process should start quickly

        super().__init__()
        self._file = file
        self._left = _DECOMPRESSED_BYTES + _TIMES_COMPRESSED * os.fstat(file.fileno()).st_size
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._output:
            if not self._input:
                self._input = self._file.read(_COMPRESSED_BYTES) or b""
            if not self._input:
                if self._frame is not None:
                    raise _DamagedError(errno.EIO, "the compressed file ends early: it was cut off")
                return 0
            self._decompress()
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _decompress(self) -> None:
        """Decompress a little: a few bytes may stand for 128 KiB each."""
        frame = self._frame or self._decompressor.decompressobj()
        piece, self._input = self._input[:_PIECE_BYTES], self._input[_PIECE_BYTES:]
        try:
            self._output = memoryview(frame.decompress(piece))
        except self._error as error:
            raise _DamagedError(errno.EIO, f"damaged compression: {error}") from error
        self._left -= len(self._output)
        if self._left < 0:
            raise _DamagedError(
                errno.EIO,
                f"more than {_TIMES_COMPRESSED} times its size comes out of it; decompress it first",
            )
        self._frame = frame
        if frame.eof:
            self._input = frame.unused_data + self._input
            self._frame = None

    def close(self) -> None:
        self._file.close()
        super().close()
