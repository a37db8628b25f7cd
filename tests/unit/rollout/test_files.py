from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_files import rollout_name, thread_id, write, write_rollout

from codex_state.rollout.files import (
    WalkProblem,
    find_rollouts,
    is_archived_path,
    is_rollout_name,
    modified_seconds,
    parse_rollout_name,
    rollout_date_parts,
    walk_rollouts,
    watermark_of,
)

ID = "01a1fa5e-e5b9-7e73-bdf5-fc089a684a3d"


def watermarks(home: Path, **options: object) -> list[str]:
    return [file.watermark for file in walk_rollouts(home, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("spelled", [ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}"], ids=str)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_rollouts_name_tells_its_time_as_utc_and_its_id(spelled: str, suffix: str) -> None:
    name = parse_rollout_name(f"rollout-2026-01-02T03-04-05-{spelled}{suffix}")
    assert name == (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), UUID(ID))


@pytest.mark.parametrize(
    "name",
    [
        "rollout-.jsonl",
        "rollout-foo.jsonl",
        f"Rollout-2026-01-02T03-04-05-{ID}.jsonl",
        f"2026-01-02T03-04-05-{ID}.jsonl",
        f"rollout-2026-01-02T03-04-05-{ID}.jsonl.bak",
        f"rollout-2026-01-02T03-04-05-{ID}-copy.jsonl",
        f"rollout-2026-13-45T99-99-99-{ID}.jsonl",
        f"rollout-2026-02-30T03-04-05-{ID}.jsonl",
        f"rollout-2026-01-02T03-04-60-{ID}.jsonl",
        f"rollout-20260102T030405-{ID}.jsonl",
        f"rollout-2026-01-02T03:04:05-{ID}.jsonl",
        f"rollout-2026-01-02T03-04-05-x-{ID}.jsonl",
        f"rollout-2026-1-2T3-4-5-{ID}.jsonl",
        "rollout-2026-01-02T03-04-05.jsonl",
    ],
)
def test_other_names_tell_nothing(name: str) -> None:
    assert parse_rollout_name(name) is None


@given(st.text())
def test_no_name_makes_the_parser_fail(name: str) -> None:
    parse_rollout_name(name)
    parse_rollout_name(f"rollout-{name}.jsonl")
    rollout_date_parts(name)


def test_the_date_parts_of_a_name_are_taken_by_position() -> None:
    assert rollout_date_parts(f"rollout-2026-01-02T03-04-05-{ID}.jsonl") == ("2026", "01", "02")
    assert rollout_date_parts("rollout-abcd_ef_gh") == ("abcd", "ef", "gh")
    assert rollout_date_parts("rollout-2026") is None
    assert rollout_date_parts("2026-01-02") is None


def test_only_regular_files_with_a_rollouts_name_are_met(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    home = tmp_path / "home"
    write(outside / "rollout-c.jsonl", b"")
    for name in (
        "sessions/2026/01/02/rollout-a.jsonl",
        "sessions/rollout-.jsonl",
        "sessions/.hidden/rollout-b.jsonl",
        "sessions/2026/01/02/rollout-a.jsonl.bak",
        "sessions/2026/01/02/Rollout-a.jsonl",
        "sessions/2026/01/02/notes.jsonl",
        "elsewhere/rollout-a.jsonl",
        "rollout-a.jsonl",
    ):
        write(home / name, b"")
    (home / "sessions/rollout-directory.jsonl").mkdir()
    (home / "sessions/rollout-link.jsonl").symlink_to(outside / "rollout-c.jsonl")
    (home / "sessions/rollout-broken.jsonl").symlink_to(outside / "nothing")
    (home / "sessions/linked").symlink_to(outside)
    assert watermarks(home) == [
        "sessions/.hidden/rollout-b.jsonl",
        "sessions/2026/01/02/rollout-a.jsonl",
        "sessions/rollout-.jsonl",
    ]


def test_a_root_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    write(tmp_path / "disk/2026/rollout-a.jsonl", b"")
    home = tmp_path / "home"
    home.mkdir()
    (home / "sessions").symlink_to(tmp_path / "disk")
    assert watermarks(home) == ["sessions/2026/rollout-a.jsonl"]


def test_a_home_without_rollouts_has_none(tmp_path: Path) -> None:
    assert watermarks(tmp_path) == []
    assert watermarks(tmp_path / "missing") == []


_SEGMENT = st.text(st.sampled_from("ab-/.0Zé"), min_size=1, max_size=4).filter(
    lambda text: "/" not in text and text.strip(".")
)


@given(
    st.sets(
        st.tuples(st.sampled_from(["sessions", "archived_sessions"]), st.lists(_SEGMENT, max_size=3), _SEGMENT).map(
            lambda parts: "/".join([parts[0], *parts[1], f"rollout-{parts[2]}.jsonl"])
        ),
        max_size=12,
    ),
    st.data(),
)
def test_the_walk_is_in_the_order_of_watermarks_and_resumes_after_any(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str], data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("home")
    for path in paths:
        write(home / path, b"")
    met = watermarks(home)
    assert met == sorted(paths)
    border = data.draw(st.sampled_from(met) | st.text(max_size=9) if met else st.text(max_size=9))
    assert watermarks(home, after=border) == [watermark for watermark in met if watermark > border]


def test_resuming_does_not_open_directories_that_are_done(tmp_path: Path) -> None:
    for day in ("01", "02", "03"):
        write(tmp_path / "sessions/2026/01" / day / "rollout-a.jsonl", b"")
    opened: list[str] = []
    scandir = os.scandir

    def recorded(path: str) -> object:
        opened.append(path)
        return scandir(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", recorded)
        assert watermarks(tmp_path, after="sessions/2026/01/02/rollout-a.jsonl") == [
            "sessions/2026/01/03/rollout-a.jsonl"
        ]
    assert not any(path.endswith("2026/01/01") for path in opened)
    assert any(path.endswith("2026/01/02") for path in opened)


def test_archived_rollouts_come_first_and_can_be_told_apart(tmp_path: Path) -> None:
    write_rollout(tmp_path, 1)
    write_rollout(tmp_path, 2, archived=True)
    assert [(file.watermark.split("/")[0], file.archived) for file in walk_rollouts(tmp_path)] == [
        ("archived_sessions", True),
        ("sessions", False),
    ]
    assert len(watermarks(tmp_path, archived=True)) == len(watermarks(tmp_path, archived=False)) == 1


def test_a_compressed_rollout_counts_when_the_plain_one_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "sessions"
    write(directory / "rollout-a.jsonl", b"")
    write(directory / "rollout-a.jsonl.zst", b"")
    write(directory / "rollout-b.jsonl.zst", b"")
    (directory / "rollout-c.jsonl").mkdir()
    write(directory / "rollout-c.jsonl.zst", b"")
    files = [(Path(file.path).name, file.watermark) for file in walk_rollouts(tmp_path)]
    assert files == [
        ("rollout-a.jsonl", "sessions/rollout-a.jsonl"),
        ("rollout-b.jsonl.zst", "sessions/rollout-b.jsonl"),
        ("rollout-c.jsonl.zst", "sessions/rollout-c.jsonl"),
    ]


def test_compressing_a_rollout_keeps_its_watermark(tmp_path: Path) -> None:
    plain = tmp_path / "sessions/2026/rollout-a.jsonl"
    assert watermark_of(tmp_path, plain) == "sessions/2026/rollout-a.jsonl"
    assert watermark_of(tmp_path, plain.with_name("rollout-a.jsonl.zst")) == "sessions/2026/rollout-a.jsonl"
    assert watermark_of(tmp_path / "other", plain) == plain.as_posix()


def test_a_name_that_is_not_utf8_is_reported_and_passed_over(tmp_path: Path) -> None:
    write_rollout(tmp_path, 1)
    directory = tmp_path / "sessions/2026/01/02"
    try:
        (directory / os.fsdecode(b"rollout-\xff.jsonl")).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    problems: list[WalkProblem] = []
    assert len(list(walk_rollouts(tmp_path, on_problem=problems.append))) == 1
    assert [problem.error for problem in problems] == ["the name is not UTF-8"]
    assert problems[0].path.isascii()


def test_a_directory_that_cannot_be_read_is_reported_and_the_walk_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "sessions/a/rollout-a.jsonl", b"")
    write(tmp_path / "sessions/b/rollout-b.jsonl", b"")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    problems: list[WalkProblem] = []
    found = [file.watermark for file in walk_rollouts(tmp_path, on_problem=problems.append)]
    assert found == ["sessions/b/rollout-b.jsonl"]
    assert problems == [WalkProblem(f"{tmp_path}/sessions/a", "Permission denied")]


def test_a_rollout_is_found_by_its_exact_id_only_the_latest_first(tmp_path: Path) -> None:
    early = write_rollout(tmp_path, 1)
    late = write_rollout(tmp_path, 1, time="2026-02-02T03-04-05")
    archived = write_rollout(tmp_path, 1, archived=True)
    write_rollout(tmp_path, 11)
    write(early.with_name(rollout_name(1).replace(".jsonl", "-copy.jsonl")), b"")
    assert find_rollouts(tmp_path, thread_id(1)) == [late, early, archived]
    assert find_rollouts(tmp_path, thread_id(1), archived=True) == [archived]
    assert find_rollouts(tmp_path, thread_id(1), archived=False) == [late, early]
    assert find_rollouts(tmp_path, thread_id(2)) == []


def test_gitignore_files_do_not_hide_rollouts(tmp_path: Path) -> None:
    rollout = write_rollout(tmp_path, 1)
    write(tmp_path / ".gitignore", b"*.jsonl\nsessions\n")
    (tmp_path / ".git").mkdir()
    assert find_rollouts(tmp_path, thread_id(1)) == [rollout]


def test_a_path_is_archived_by_where_it_lies(tmp_path: Path) -> None:
    assert is_archived_path(tmp_path, tmp_path / "archived_sessions/x/rollout-a.jsonl")
    assert not is_archived_path(tmp_path, tmp_path / "sessions/archived_sessions/rollout-a.jsonl")


@pytest.mark.parametrize(
    ("modified", "seconds"), [(1.999, 1), (0.0, 0), (-0.5, -1), (-1.5, -2), (1_767_400_000.999, 1_767_400_000)]
)
def test_modification_times_are_rounded_down(tmp_path: Path, modified: float, seconds: int) -> None:
    path = write(tmp_path / "file", b"", modified=modified)
    assert modified_seconds(path.stat()) == seconds


def test_rollout_names_are_plain_or_compressed() -> None:
    assert is_rollout_name("rollout-a.jsonl")
    assert is_rollout_name("rollout-a.jsonl.zst")
    assert not is_rollout_name("rollout-a.json")
    assert not is_rollout_name("a.jsonl")
