from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import zstandard
from rollout_files import write

from codex_state.errors import RolloutError
from codex_state.rollout import reading
from codex_state.rollout.reading import open_rollout


def lines(path: Path) -> list[bytes]:
    with open_rollout(str(path))[0] as file:
        return list(file)


def compressed(content: bytes, *, frames: int = 1) -> bytes:
    size = -(-len(content) // frames) or 1
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"a\nb\n", b"a\n\nb", b"a\r\nb\r\n", b"x" * 300_000 + b"\n" + b"y" * 200_000, b"\0\n\xff"],
    ids=["empty", "newline", "two", "no last newline", "CRLF", "longer than the buffer", "binary"],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.zst"])
def test_lines_are_what_lies_between_newlines(tmp_path: Path, content: bytes, suffix: str) -> None:
    stored = compressed(content, frames=2) if suffix.endswith("zst") else content
    path = write(tmp_path / f"rollout-a.{suffix}", stored)
    assert lines(path) == content.splitlines(keepends=True) or lines(path) == io.BytesIO(content).readlines()
    assert b"".join(lines(path)) == content


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.zst"])
def test_a_line_that_is_too_long_is_passed_over_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 1000)
    content = b"first\n" + b"{" * 5000 + b"\n" + b"x" * 999 + b"\n" + b"last" * 1000
    stored = compressed(content) if suffix.endswith("zst") else content
    found = lines(write(tmp_path / f"rollout-a.{suffix}", stored))
    assert found[0] == b"first\n"
    assert found[2] == b"x" * 999 + b"\n"
    assert len(found) == 4
    assert all(found[index].endswith(b"\0") for index in (1, 3))
    assert all(len(line) <= reading._BUFFER_BYTES + 1 for line in found)


def test_the_status_is_from_before_the_first_byte_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rollout-a.jsonl", b"a\n", modified=1000)
    file, status = open_rollout(str(path))
    with file:
        write(path, b"a\nb\n", modified=2000)
        assert status.st_mtime == 1000


@pytest.mark.parametrize("name", ["rollout-a.jsonl", "rollout-a.jsonl.zst"])
def test_what_is_not_a_regular_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir()
    with pytest.raises(RolloutError, match=f"{name}: .*"):
        open_rollout(str(path))


def test_a_named_pipe_does_not_make_it_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rollout-a.jsonl")
    with pytest.raises(RolloutError, match="not a regular file"):
        open_rollout(str(tmp_path / "rollout-a.jsonl"))


@pytest.mark.parametrize("path", ["missing.jsonl", "nul\0.jsonl", "lone\ud800.jsonl"])
def test_what_cannot_be_opened_is_refused_by_name(tmp_path: Path, path: str) -> None:
    with pytest.raises(RolloutError, match="can't read the rollout"):
        open_rollout(str(tmp_path / path))


def test_permission_denied_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rollout-a.jsonl", b"")

    def refused(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(RolloutError, match=r"rollout-a\.jsonl: Permission denied"):
        open_rollout(str(path))


@pytest.mark.parametrize("content", [b"not compressed\n" * 9, compressed(b"x" * 9999)[:-30] + b"?" * 30])
def test_damaged_compression_is_an_error_of_reading(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "rollout-a.jsonl.zst", content)
    with pytest.raises(OSError, match="damaged compression"):
        lines(path)
