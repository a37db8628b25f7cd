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
    RolloutName,
    WalkProblem,
    find_rollouts,
    is_archived,
    is_rollout_name,
    modified_seconds,
    parse_any_name,
    parse_rollout_name,
    plain_name,
    rank,
    relative_to,
    rollout_date_parts,
    walk_rollouts,
)

ID = "01a1fa5e-e5b9-7e73-bdf5-fc089a684a3d"
ID_OF_ONE = str(thread_id(1))
SEGMENT = "01a1fb00-0000-7e73-bdf5-fc089a684a3d"
NAMED_TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PROPER = f"rollout-2026-01-02T03-04-05-{ID}"


def paths_of(home: Path, *, archived: bool | None = None) -> list[str]:
    return [file.path for file in walk_rollouts(home, archived=archived)]


@pytest.mark.parametrize("spelled", [ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}"], ids=str)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_rollouts_name_tells_its_time_as_utc_and_its_id(spelled: str, suffix: str) -> None:
    name = f"rollout-2026-01-02T03-04-05-{spelled}{suffix}"
    assert parse_rollout_name(name) == parse_any_name(name) == RolloutName(NAMED_TIME, UUID(ID))


@pytest.mark.parametrize("spelled", [SEGMENT, SEGMENT.upper(), SEGMENT.replace("-", "")], ids=str)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_the_name_of_a_later_segment_tells_which(spelled: str, suffix: str) -> None:
    name = parse_rollout_name(f"{PROPER}_{spelled}{suffix}")
    assert name == RolloutName(NAMED_TIME, UUID(ID), UUID(SEGMENT))


_COPIES = [" (1)", "(1)", " 2", " copy", ".sync-conflict-20260102-030405-ABCDEFG", " (conflicted copy)", "~", ".1"]


@pytest.mark.parametrize("segment", ["", f"_{SEGMENT}"])
@pytest.mark.parametrize("made", _COPIES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_copys_name_is_no_rollouts_but_tells_of_which_it_is_one(made: str, segment: str, suffix: str) -> None:
    name = f"{PROPER}{segment}{made}{suffix}"
    assert parse_rollout_name(name) is None
    expected = RolloutName(NAMED_TIME, UUID(ID), UUID(SEGMENT) if segment else None, is_copy=True)
    assert parse_any_name(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "rollout-.jsonl",
        "rollout-foo.jsonl",
        f"Rollout-2026-01-02T03-04-05-{ID}.jsonl",
        f"2026-01-02T03-04-05-{ID}.jsonl",
        f"rollout-2026-01-02T03-04-05-{ID}.jsonl.bak",
        f"{PROPER}-copy.jsonl",
        f"{PROPER}0.jsonl",
        f"{PROPER}_.jsonl",
        f"{PROPER}_2.jsonl",
        f"{PROPER}_{ID}_{ID}.jsonl",
        f"{PROPER}_{ID}0.jsonl",
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
    assert parse_any_name(name) is None


@given(st.text())
def test_no_name_makes_the_parsers_fail(name: str) -> None:
    for each in (name, f"rollout-{name}.jsonl", f"{PROPER}{name}.jsonl", f"{PROPER}_{name}.jsonl.zst"):
        parse_rollout_name(each)
        parse_any_name(each)
        rollout_date_parts(each)


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
    assert paths_of(home) == [
        "sessions/.hidden/rollout-b.jsonl",
        "sessions/2026/01/02/rollout-a.jsonl",
        "sessions/rollout-.jsonl",
    ]


def test_a_root_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    write(tmp_path / "disk/2026/rollout-a.jsonl", b"")
    home = tmp_path / "home"
    home.mkdir()
    (home / "sessions").symlink_to(tmp_path / "disk")
    assert paths_of(home) == ["sessions/2026/rollout-a.jsonl"]


def test_a_home_without_rollouts_has_none(tmp_path: Path) -> None:
    assert paths_of(tmp_path) == []
    assert paths_of(tmp_path / "missing") == []


_SEGMENT = st.text(st.sampled_from("ab-/.0Zé"), min_size=1, max_size=4).filter(
    lambda text: "/" not in text and text.strip(".")
)


@given(
    st.sets(
        st.tuples(st.sampled_from(["sessions", "archived_sessions"]), st.lists(_SEGMENT, max_size=3), _SEGMENT).map(
            lambda parts: "/".join([parts[0], *parts[1], f"rollout-{parts[2]}.jsonl"])
        ),
        max_size=12,
    )
)
def test_the_walk_is_in_the_order_of_whole_paths(tmp_path_factory: pytest.TempPathFactory, paths: set[str]) -> None:
    home = tmp_path_factory.mktemp("home")
    for path in paths:
        write(home / path, b"")
    assert paths_of(home) == sorted(paths)


def test_archived_rollouts_come_first_and_can_be_told_apart(tmp_path: Path) -> None:
    write_rollout(tmp_path, 1)
    write_rollout(tmp_path, 2, archived=True)
    assert [path.split("/")[0] for path in paths_of(tmp_path)] == ["archived_sessions", "sessions"]
    assert len(paths_of(tmp_path, archived=True)) == len(paths_of(tmp_path, archived=False)) == 1


def test_a_file_is_met_with_its_path_inside_the_home_its_size_and_its_exact_time(tmp_path: Path) -> None:
    path = write_rollout(tmp_path, 1)
    os.utime(path, ns=(5, 1_767_400_000_123_456_789))
    (found,) = walk_rollouts(tmp_path)
    assert found.path == f"sessions/2026/01/02/{rollout_name(1)}"
    assert found.mtime_ns == path.stat().st_mtime_ns
    assert found.size == path.stat().st_size


def test_a_plain_rollout_and_its_compressed_form_are_both_met(tmp_path: Path) -> None:
    directory = tmp_path / "sessions"
    write(directory / "rollout-a.jsonl", b"")
    write(directory / "rollout-a.jsonl.zst", b"")
    (directory / "rollout-c.jsonl").mkdir()
    write(directory / "rollout-c.jsonl.zst", b"")
    assert paths_of(tmp_path) == [
        "sessions/rollout-a.jsonl",
        "sessions/rollout-a.jsonl.zst",
        "sessions/rollout-c.jsonl.zst",
    ]


def test_the_plain_name_is_the_one_without_the_compression(tmp_path: Path) -> None:
    assert plain_name("rollout-a.jsonl.zst") == plain_name("rollout-a.jsonl") == "rollout-a.jsonl"
    assert plain_name("notes.zst") == "notes.zst"


def test_symbolic_links_are_passed_over_and_named(tmp_path: Path) -> None:
    write_rollout(tmp_path, 1)
    outside = write(tmp_path / "outside/rollout-b.jsonl", b"")
    sessions = tmp_path / "sessions"
    (sessions / "rollout-link.jsonl").symlink_to(outside)
    (sessions / "rollout-broken.jsonl.zst").symlink_to(tmp_path / "nothing")
    (sessions / "linked").symlink_to(outside.parent)
    (sessions / "notes.txt").symlink_to(outside)
    (sessions / "broken").symlink_to(tmp_path / "nothing")
    for number in range(9):  # some of them come before the others, whatever the order of the directory
        (sessions / f"circle{number}").symlink_to(f"circle{number}")
    problems: list[WalkProblem] = []
    found = [file.path.rpartition("/")[2] for file in walk_rollouts(tmp_path, on_problem=problems.append)]
    assert found == [rollout_name(1)]
    assert all(problem.is_link and "symbolic link" in problem.error for problem in problems)
    assert {Path(problem.path).name for problem in problems} == {
        "rollout-link.jsonl",
        "rollout-broken.jsonl.zst",
        "linked",
        "broken",  # it may lead to a disk that isn't mounted
        *(f"circle{number}" for number in range(9)),
    }


def test_a_path_is_relative_to_its_home_also_when_that_is_reached_by_a_link(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    assert relative_to(tmp_path / "link", tmp_path / "link/sessions/a") == "sessions/a"
    assert relative_to(tmp_path / "link", home / "sessions/a") == "sessions/a"
    assert relative_to(home, tmp_path / "homes/sessions/a") is None


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
    found = [file.path for file in walk_rollouts(tmp_path, on_problem=problems.append)]
    assert found == ["sessions/b/rollout-b.jsonl"]
    assert problems == [WalkProblem(f"{tmp_path}/sessions/a", "Permission denied")]


def test_a_threads_rollouts_are_found_by_its_exact_id_the_one_that_counts_first(tmp_path: Path) -> None:
    early = write_rollout(tmp_path, 1)
    late = write_rollout(tmp_path, 1, time="2026-02-02T03-04-05")
    segment = write_rollout(tmp_path, 1, segment=1)
    archived = write_rollout(tmp_path, 1, archived=True)
    copy = write(late.with_name(late.name.replace(".jsonl", " (1).jsonl")), b"")
    write_rollout(tmp_path, 11)
    write(early.with_name(rollout_name(1).replace(".jsonl", "-copy.jsonl")), b"")
    assert find_rollouts(tmp_path, thread_id(1)) == [late, segment, early, archived, copy]
    assert find_rollouts(tmp_path, thread_id(1), archived=True) == [archived]
    assert find_rollouts(tmp_path, thread_id(1), archived=False) == [late, segment, early, copy]
    assert find_rollouts(tmp_path, thread_id(2)) == []


_PLACES = ["sessions/2026/01/02", "sessions", "archived_sessions"]
_SUFFIXES = [".jsonl", ".jsonl.zst"]


def _path(place: str, time: str, segment: int | None, suffix: str, made: str = "") -> str:
    stem = rollout_name(1, time, segment=segment).removesuffix(".jsonl")
    return f"{place}/{stem}{made}{suffix}"


_TIMES = ["2026-01-02T03-04-05", "2026-01-02T03-04-06", "2027-01-01T00-00-00"]
_proper = st.builds(
    _path,
    st.sampled_from(_PLACES),
    st.sampled_from(_TIMES),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(_SUFFIXES),
)
_copies = st.builds(
    _path,
    st.sampled_from(_PLACES),
    st.sampled_from(_TIMES),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(_SUFFIXES),
    st.sampled_from([*_COPIES, "-copy", "-copy-2"]),
)
_strangers = st.sampled_from(
    ["sessions/rollout-mine.jsonl", f"sessions/2027/{rollout_name(2, _TIMES[2])}", f"archived_sessions/{PROPER}.jsonl"]
)


def _two_orders(paths: set[str]) -> st.SearchStrategy[tuple[list[str], list[str]]]:
    return st.tuples(st.permutations(sorted(paths)), st.permutations(sorted(paths)))


class TestWhichFileCounts:
    """Whatever happens to the order in which files are met, and to their times, the same one counts."""

    @given(st.sets(_proper | _copies | _strangers, min_size=1, max_size=8).flatmap(_two_orders))
    def test_the_winner_is_the_same_in_any_order(self, orders: tuple[list[str], list[str]]) -> None:
        first, second = (sorted(order, key=lambda path: rank(path, ID_OF_ONE)) for order in orders)
        assert first == second

    @given(st.sets(_proper | _copies | _strangers, min_size=2, max_size=8))
    def test_no_two_files_are_equal(self, paths: set[str]) -> None:
        assert len({rank(path, ID_OF_ONE) for path in paths}) == len(paths)

    @given(_proper, _copies | _strangers)
    def test_a_copy_or_a_file_of_another_name_never_beats_a_proper_one(self, proper: str, other: str) -> None:
        assert rank(proper, ID_OF_ONE) > rank(other, ID_OF_ONE)

    @given(_proper, _proper)
    def test_the_time_in_the_name_decides_then_the_segment_then_the_place_then_the_form(
        self, one: str, other: str
    ) -> None:
        def plainly(path: str) -> tuple[object, ...]:
            name = path.rpartition("/")[2]
            after_time = name.removesuffix(".zst").removesuffix(".jsonl")[len("rollout-") + 19 :]
            return name[:27], after_time, path.startswith("sessions/"), not name.endswith(".zst"), path

        assert (rank(one, ID_OF_ONE) > rank(other, ID_OF_ONE)) is (plainly(one) > plainly(other))

    @pytest.mark.parametrize(
        ("winner", "loser"),
        [
            pytest.param(
                _path("archived_sessions", _TIMES[1], None, ".jsonl.zst"),
                _path("sessions", _TIMES[0], 2, ".jsonl"),
                id="a later time beats a segment, the place and the form",
            ),
            pytest.param(
                _path("archived_sessions", _TIMES[0], 1, ".jsonl.zst"),
                _path("sessions", _TIMES[0], None, ".jsonl"),
                id="a segment beats what it goes on from",
            ),
            pytest.param(
                _path("sessions", _TIMES[0], 1, ".jsonl.zst"),
                _path("archived_sessions", _TIMES[0], 1, ".jsonl"),
                id="sessions before archived",
            ),
            pytest.param(
                _path("sessions", _TIMES[0], 1, ".jsonl"),
                _path("sessions", _TIMES[0], 1, ".jsonl.zst"),
                id="plain before compressed",
            ),
            pytest.param(
                _path("archived_sessions", _TIMES[0], None, ".jsonl.zst"),
                _path("sessions", _TIMES[2], 2, ".jsonl", ".sync-conflict-20270101-000000-ABCDEFG"),
                id="any proper file before any copy",
            ),
            pytest.param(
                _path("sessions", _TIMES[0], None, ".jsonl", " (1)"),
                f"sessions/{rollout_name(2, _TIMES[2])}",
                id="a copy before what is named after another thread",
            ),
        ],
    )
    def test_each_rule(self, winner: str, loser: str) -> None:
        assert rank(winner, ID_OF_ONE) > rank(loser, ID_OF_ONE)


def test_gitignore_files_do_not_hide_rollouts(tmp_path: Path) -> None:
    rollout = write_rollout(tmp_path, 1)
    write(tmp_path / ".gitignore", b"*.jsonl\nsessions\n")
    (tmp_path / ".git").mkdir()
    assert find_rollouts(tmp_path, thread_id(1)) == [rollout]


def test_a_path_is_archived_by_where_it_lies() -> None:
    assert is_archived("archived_sessions/x/rollout-a.jsonl")
    assert not is_archived("sessions/archived_sessions/rollout-a.jsonl")


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
