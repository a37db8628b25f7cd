"""Reading rollouts line by line, plain or compressed, in bounded memory.

Beside one line, a reader holds a buffer of 64 KiB, and for a compressed file its window of at most 128 MiB. Lines are
read up to 128 MiB; a longer one is passed over without being held, and counts as a parse error.

A compressed file may hold at most 1 GiB and 256 times its own size: a thread that called the same tool for hours is
compressed to a thousandth. What takes long are its lines, not its bytes, and nobody writes padding. So each line counts
as 16 bytes, each NUL as one, and these may be at most 4 MiB and 256 times the file's size: little enough that a few
bytes can't cost minutes. Blank lines are passed over by the buffer, not one by one: a gigabyte of them takes about as
long as it takes to read a gigabyte. A plain file may have 1 GiB of holes and 256 times what it takes on the disk: one
that a hundred bytes made a terabyte is refused.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from codex_state.errors import RolloutError
from codex_state.rollout.files import COMPRESSED_SUFFIX
from codex_state.rollout.format import GitInfo, ResponseItem, SessionMeta, decode_tolerantly

MAX_LINE_BYTES = 128 * 1024 * 1024

# Small enough to stay in the processor's cache between reading and decoding, which is worth a quarter of the speed.
_BUFFER_BYTES = 64 * 1024
_MAX_WINDOW_BYTES = 128 * 1024 * 1024
_COMPRESSED_BYTES = 64 * 1024
_PIECE_BYTES = 512
_TIMES_ON_DISK = 256
_MORE_BYTES = 1024 * 1024 * 1024
_COSTLY_BYTES = 4 * 1024 * 1024
_BYTES_OF_LINE = 16

# Not blocking, because opening a named pipe would wait for its writer.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


Lines = Iterable[bytes]


def open_rollout(path: str) -> tuple[io.BufferedIOBase, os.stat_result]:
    """Open a rollout, whose lines are what iterating over it gives. That may raise ``OSError``. The caller closes it.

    Of a line that is too long only the beginning is given, made into something that is no JSON value.

    Returns:
        The rollout, and the file's status from before the first byte was read.

    Raises:
        RolloutError: it can't be opened, or isn't a regular file.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    file = None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RolloutError(f"can't read the rollout {path}: not a regular file")
        on_disk = getattr(status, "st_blocks", None)  # Windows has none
        if on_disk is not None and status.st_size > _MORE_BYTES + 512 * on_disk * _TIMES_ON_DISK:
            raise RolloutError(f"can't read the rollout {path}: nearly all of its {status.st_size:,} bytes are holes")
        is_compressed = path.endswith(COMPRESSED_SUFFIX)
        if not is_compressed and status.st_size <= min(_BUFFER_BYTES, MAX_LINE_BYTES):
            return io.BytesIO(_all_of(descriptor, status.st_size)), status
        file = io.FileIO(descriptor)
        if is_compressed:
            return _BoundedLines(_Decompressed(file), _BUFFER_BYTES), status
        # No line of a file that isn't too large can be too long, and iterating over the file itself is the fastest.
        is_bounded = status.st_size <= MAX_LINE_BYTES
        return (io.BufferedReader if is_bounded else _BoundedLines)(file, _BUFFER_BYTES), status
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        if file is None:
            os.close(descriptor)


def _all_of(descriptor: int, size: int) -> bytes:
    """A small file at once: the objects that read others in pieces cost more than its bytes."""
    content = os.read(descriptor, size)
    while len(content) < size and (more := os.read(descriptor, size - len(content))):
        content += more
    return content


class _BoundedLines(io.BufferedReader):
    """Lines of which none is held that is too long."""

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (part := self.readline(_BUFFER_BYTES)) and not part.endswith(b"\n"):
                    pass
                line = line[:_BUFFER_BYTES] + b"\0"
            yield line


def unreadable(path: str, error: Exception) -> RolloutError:
    """The error to raise when reading ``path`` failed."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return RolloutError(f"can't read the rollout {path}: {reason}")


def may_pass(error: RolloutError) -> bool:
    """Whether a rollout may be readable later though nothing of it changes: permissions, a disk that answers again."""
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, _DamagedError)


def skip_blank_lines(lines: Lines) -> None:
    """Pass over the blank lines that come next, as many as there are. They hold nothing, and are counted nowhere.

    Call it after a blank line. Lines that aren't read from a file directly are left to whoever gives them.
    """
    if not isinstance(lines, io.BufferedReader):
        return
    while waiting := lines.peek():
        blank = len(waiting) - len(waiting.lstrip())
        lines.read(blank)
        if blank < len(waiting):
            return


def why_unusable(path: str, parse_errors: int, unknown_lines: int) -> str:
    """What is wrong with a rollout of which no line could be used, as the rest of a sentence about it."""
    try:
        with open_rollout(path)[0] as file:
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
        in_proportion = _TIMES_ON_DISK * os.fstat(file.fileno()).st_size
        self._left = _MORE_BYTES + in_proportion
        self._costly_left = _COSTLY_BYTES + in_proportion
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
            output = frame.decompress(piece)
        except self._error as error:
            raise _DamagedError(errno.EIO, f"damaged compression: {error}") from error
        self._left -= len(output)
        self._costly_left -= _BYTES_OF_LINE * output.count(b"\n") + output.count(b"\0")
        if self._left < 0 or self._costly_left < 0:
            raise _DamagedError(
                errno.EIO,
                f"more than {_TIMES_ON_DISK} times its size comes out of it; decompress it first",
            )
        self._output = memoryview(output)
        self._frame = frame
        if frame.eof:
            self._input = frame.unused_data + self._input
            self._frame = None

    def close(self) -> None:
        self._file.close()
        super().close()


def read_session_meta(path: Path) -> SessionMeta:
    """The session_meta that a rollout begins with.

    Lines that can't be read, turn contexts and events may come before it; a response item may not.

    Raises:
        RolloutError: the file can't be read, or doesn't start with a session_meta.
    """
    return _read(path)[0]


def owner_of(path: Path) -> str | None:
    """Whose rollout it is by its content; ``None`` when it doesn't say, or can't be read.

    When something before the first session_meta can't be read, that may be a parent's, and the thread's own is lost.
    """
    try:
        meta, is_first = _read(path)
    except RolloutError:
        return None
    return meta.id if is_first else None


def git_of(path: Path, thread_id: str) -> GitInfo | None:
    """Where the thread's repository stood by this rollout of it, if it says so."""
    try:
        meta, _ = _read(path)
    except RolloutError:
        return None
    return meta.git if meta.id == thread_id else None


def _read(path: Path) -> tuple[SessionMeta, bool]:
    with open_rollout(str(path))[0] as file:
        try:
            head, is_first = _head_of(file)
        except OSError as error:
            raise unreadable(str(path), error) from error
    if isinstance(head, SessionMeta):
        return head, is_first
    if head is None:
        raise RolloutError(f"the rollout {path} is empty: it holds no session metadata")
    raise RolloutError(f"the rollout {path} does not start with session metadata")


def _head_of(lines: Lines) -> tuple[SessionMeta | ResponseItem | None, bool]:
    whole = True
    for line in lines:
        if line.isspace():
            skip_blank_lines(lines)
            continue
        salvaged = decode_tolerantly(line)
        for record in salvaged.lines:
            if isinstance(record.payload, SessionMeta | ResponseItem):
                return record.payload, whole and not salvaged.broken
        whole = whole and not salvaged.broken
    return None, whole
