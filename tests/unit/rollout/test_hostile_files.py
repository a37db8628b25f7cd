"""Files whose reading would take long, or that nobody wrote: bounded work, and a named reason (laws L8 and L10)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard

from codex_state.errors import RolloutError
from codex_state.rollout import reading
from codex_state.rollout.fold import extract
from codex_state.rollout.names import session_index_names
from codex_state.rollout.reading import open_rollout, read_session_meta, skip_blank_lines
from codex_state.rollout.transcript import numbered_lines

THREAD = "0198c0de-0000-7000-8000-00000000abcd"
META: dict[str, Any] = {
    "timestamp": "2026-04-01T00:00:00.000Z",
    "type": "session_meta",
    "payload": {
        "id": THREAD,
        "timestamp": "2026-04-01T00:00:00.000Z",
        "cwd": "/x",
        "originator": "cli",
        "cli_version": "1",
    },
}
FIRST = json.dumps(META).encode() + b"\n"
NAME = f"rollout-2026-04-01T00-00-00-{THREAD}.jsonl"


def compressed(path: Path, *parts: tuple[bytes, int]) -> Path:
    with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as stream:
        for part, times in parts:
            for _ in range(times):
                stream.write(part)
    return path


@pytest.mark.parametrize("part", [b"\n" * 2**20, b"{}\n" * 2**18, b"\0" * 2**20, b" \n" * 2**19])
def test_a_few_bytes_that_stand_for_very_many_are_refused(tmp_path: Path, part: bytes) -> None:
    path = compressed(tmp_path / f"{NAME}.zst", (FIRST, 1), (part, 256))
    with pytest.raises(RolloutError, match="more than 256 times its size comes out of it"):
        extract(str(path), "openai")


def test_a_rollout_that_compresses_well_is_read(tmp_path: Path) -> None:
    path = compressed(tmp_path / f"{NAME}.zst", (FIRST, 1), (b'{"type":"other","payload":{}}\n', 100_000))
    assert extract(str(path), "openai").unknown_lines == 100_000


def test_a_rollout_of_thousands_of_equal_outputs_is_read(tmp_path: Path) -> None:
    payload = {"type": "function_call_output", "call_id": "c", "output": "nothing to do\n" * 400}
    output = json.dumps({"timestamp": META["timestamp"], "type": "response_item", "payload": payload}).encode() + b"\n"
    path = compressed(tmp_path / f"{NAME}.zst", (FIRST, 1), (output, 8000))
    assert path.stat().st_size * 1000 < len(output) * 8000
    assert extract(str(path), "openai").parse_errors == 0
    assert sum(1 for _ in numbered_lines(path)) == 8001


def test_a_rollout_that_compresses_to_nearly_nothing_is_read_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MORE_BYTES", 2**24)
    line = b'{"type":"other","payload":"' + b"x" * 2**20 + b'"}\n'
    assert extract(str(compressed(tmp_path / f"{NAME}.zst", (FIRST, 1), (line, 15))), "openai").unknown_lines == 15
    path = compressed(tmp_path / f"{NAME}.zst", (FIRST, 1), (line, 64))
    with pytest.raises(RolloutError, match="decompress it first"):
        extract(str(path), "openai")


def test_a_bomb_costs_its_own_row_only_and_is_named(tmp_path: Path) -> None:
    path = compressed(tmp_path / f"{NAME}.zst", (b"\n" * 2**20, 64))
    with pytest.raises(RolloutError, match="decompress it first"):
        read_session_meta(path)


def given_one_by_one(path: Path) -> int:
    """How many lines come one by one to who passes over the blank ones."""
    count = 0
    with open_rollout(str(path))[0] as file:
        for line in file:
            count += 1
            if line.isspace():
                skip_blank_lines(file)
    return count


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_blank_lines_are_passed_over_together(tmp_path: Path, suffix: str) -> None:
    content = b"\n" * 100_000 + FIRST + b"\r\n" * 100_000 + FIRST + b"\n\n"
    path = tmp_path / f"{NAME}{suffix}"
    if suffix:
        compressed(path, (content, 1))
    else:
        path.write_bytes(content)
    assert given_one_by_one(path) < 100
    extraction = extract(str(path), "openai")
    assert (extraction.parse_errors, extraction.unknown_lines, extraction.draft.id) == (0, 0, THREAD)


def test_a_pipe_in_the_place_of_the_names_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "session_index.jsonl")
    with pytest.raises(OSError, match="not a regular file"):
        list(session_index_names(tmp_path / "session_index.jsonl"))


def test_a_file_that_is_nearly_all_holes_is_refused_at_once(tmp_path: Path) -> None:
    """L10: a hundred bytes made a terabyte."""
    path = tmp_path / "rollout-2026-02-10T12-00-00-0198c0de-0000-7000-8000-000000000001.jsonl"
    path.write_bytes(b"{}\n" * 100)
    os.truncate(path, 2**40)
    if path.stat().st_blocks * 512 > 2**30:
        pytest.skip("a file system without holes")
    with pytest.raises(RolloutError, match="bytes are holes"):
        extract(str(path), "openai")
    with pytest.raises(OSError, match="bytes are holes"):
        list(session_index_names(path))
