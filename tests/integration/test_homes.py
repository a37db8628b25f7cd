"""Several homes in one database: each judges its own rows, and a thread that was seen in two has its row by a rule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from rollout_files import (
    rollout_path,
    session_meta,
    thread_id,
    token_count,
    user_message,
    write_rollout,
)

from codex_state import StateRuntime, StateSettings, Thread, ThreadNotFoundError
from codex_state.models import LOCAL_HOME, BackfillStatus, ThreadQuery
from codex_state.models.columns import from_epoch_seconds
from codex_state.rollout import (
    ToolSpec,
    apply_rollout_items,
    archive_thread,
    backfill,
    builder_from_items,
    extract_metadata,
    find_thread_path,
    list_threads,
    unarchive_thread,
)
from codex_state.testing.samples import a_thread
from tests import scripts

MODIFIED = 1_767_400_000
TOOL = ToolSpec(name="t", description="d", input_schema=msgspec.Raw(b"{}"))

_BACKFILL_ON_A_HOST = """
import socket, sys
from pathlib import Path
socket.gethostname = lambda: sys.argv[1]
from codex_state import StateRuntime, StateSettings
from codex_state.rollout import backfill
settings = StateSettings(codex_home=Path(sys.argv[2]), database_url=sys.argv[3], backfill_batch_size=5, busy_timeout=60)
with StateRuntime.open(settings) as runtime:
    report = backfill(runtime, workers=0)
print(report.status.value, report.scanned, report.failed, runtime.home)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def homes(
    request: pytest.FixtureRequest, tmp_path: Path, opened: Callable[[StateSettings], StateRuntime]
) -> list[StateRuntime]:
    """Two homes that share a database."""
    base: StateSettings = request.getfixturevalue("settings_of_" + request.param)
    url = base.database_url or f"sqlite:///{base.database_path}"
    return [
        opened(base.model_copy(update={"codex_home": tmp_path / name, "home": name, "database_url": url}))
        for name in ("laptop", "server")
    ]


@pytest.fixture
def settings_of_sqlite(sqlite_settings: StateSettings) -> StateSettings:
    return StateSettings(
        codex_home=sqlite_settings.codex_home, database_url=f"sqlite:///{sqlite_settings.database_path}"
    )


@pytest.fixture
def settings_of_postgresql(postgres_settings: StateSettings) -> StateSettings:
    return postgres_settings


def row(runtime: StateRuntime, number: int = 1) -> Thread | None:
    with runtime.read() as state:
        return state.threads.get(thread_id(number))


def write_in(runtime: StateRuntime, age: int, tokens: int) -> Path:
    """The thread's rollout in a home, last written so many seconds before a fixed time."""
    items = (session_meta(dynamic_tools=[TOOL]), user_message("hello"), token_count(tokens))
    return write_rollout(runtime.codex_home, 1, *items, modified=MODIFIED - age)


def test_a_thread_belongs_to_the_home_whose_rollout_was_written_last(homes: list[StateRuntime]) -> None:
    older, newer = homes
    write_in(older, 10, tokens=1)
    path = write_in(newer, 0, tokens=2)
    for runtime in (older, newer, older):
        backfill(runtime, again=True)
        backfill(runtime, refresh=True)
    found = row(older)
    assert found is not None
    assert (found.home, found.rollout_path, found.tokens_used) == (newer.home, path, 2)


def test_copies_of_one_age_do_not_take_the_row_from_each_other_at_every_refresh(homes: list[StateRuntime]) -> None:
    for runtime in homes:
        write_in(runtime, 0, tokens=1)
        backfill(runtime, refresh=True)
    first, second = homes
    assert row(first).home == second.home, "a home that is indexed for the first time may have got the thread moved"  # type: ignore[union-attr]
    for runtime in (first, second, first):
        assert backfill(runtime, refresh=True).scanned == 0
        assert row(first).home == second.home  # type: ignore[union-attr]


@pytest.mark.parametrize("refresh", [False, True])
def test_an_older_copy_adds_no_tools_to_another_homes_thread(homes: list[StateRuntime], refresh: bool) -> None:
    older, newer = homes
    write_rollout(newer.codex_home, 1, session_meta(), user_message("hello"), modified=MODIFIED)
    write_in(older, 10, tokens=1)
    for runtime in (newer, older):
        backfill(runtime, refresh=refresh)
    with newer.read() as state:
        assert state.dynamic_tools.get(thread_id(1)) is None


def test_archiving_touches_neither_another_homes_file_nor_its_row(homes: list[StateRuntime]) -> None:
    mine, theirs = homes
    path = write_in(theirs, 0, tokens=2)
    backfill(theirs)
    before = row(theirs)
    for change in (archive_thread, unarchive_thread):
        with pytest.raises(ThreadNotFoundError):
            change(mine, thread_id(1))
    own = write_in(mine, 10, tokens=1)
    assert archive_thread(mine, thread_id(1)) == rollout_path(mine.codex_home, 1, archived=True)
    assert not own.exists()
    assert path.is_file()
    assert row(theirs) == before
    unarchive_thread(mine, thread_id(1))
    assert row(theirs) == before


def test_a_lookup_takes_the_row_over_when_the_own_rollout_was_written_later(homes: list[StateRuntime]) -> None:
    mine, theirs = homes
    gone = write_in(theirs, 10, tokens=1)
    backfill(theirs)
    gone.unlink()
    path = write_in(mine, 0, tokens=2)
    assert find_thread_path(mine, thread_id(1)) == path
    found = row(mine)
    assert found is not None
    assert (found.home, found.rollout_path, found.tokens_used) == (mine.home, path, 2)


@pytest.mark.parametrize(("age", "moves"), [(0, True), (20, False), (None, False)])
def test_items_that_are_written_in_another_home_move_the_row_whole_or_not_at_all(
    homes: list[StateRuntime], age: int | None, moves: bool
) -> None:
    """L5: its home and its path say the same."""
    here, there = homes
    write_in(there, 10, tokens=1)
    backfill(there)
    archive_thread(there, thread_id(1))
    before = row(there)
    path = rollout_path(here.codex_home, 1)
    builder = builder_from_items([session_meta()], path)
    assert builder is not None
    moment = None if age is None else from_epoch_seconds(MODIFIED - age)
    applied = apply_rollout_items(here, builder, [token_count(9)], updated_at=moment)
    found = row(here)
    assert applied == found
    assert found is not None
    if moves:
        assert (found.home, found.rollout_path, found.archived, found.tokens_used) == (here.home, path, False, 9)
    else:
        assert found == before


@pytest.mark.parametrize("listed", [True, False])
def test_a_thread_that_its_home_deleted_comes_back_by_another_homes_refresh(
    homes: list[StateRuntime], listed: bool
) -> None:
    older, newer = homes
    for runtime, age in ((older, 10), (newer, 0)):
        write_in(runtime, age, tokens=age)
        backfill(runtime)
    rollout_path(newer.codex_home, 1).unlink()
    judge = newer if listed else older
    list_threads(judge, page_size=5)
    backfill(older, refresh=True)
    found = row(older)
    assert found is not None
    assert found.home == (older.home if listed else newer.home)


@given(
    ages=st.permutations(range(4)),
    steps=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from(["write", "build", "rebuild", "refresh", "retry"])), max_size=12
    ),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_order_two_homes_write_and_index_in_the_row_is_the_last_written_rollouts(
    homes: list[StateRuntime], ages: list[int], steps: list[tuple[int, str]]
) -> None:
    with homes[0].begin() as state:
        state.threads.delete(thread_id(1))
    versions = {0: iter(sorted(ages[:2], reverse=True)), 1: iter(sorted(ages[2:], reverse=True))}
    youngest = {}
    for number, runtime in enumerate(homes):
        youngest[number] = next(versions[number])
        write_in(runtime, youngest[number], tokens=youngest[number])
    for number, step in steps:
        match step:
            case "write":
                age = next(versions[number], None)
                if age is not None:
                    youngest[number] = age
                    write_in(homes[number], age, tokens=age)
            case "build":
                backfill(homes[number])
            case "rebuild":
                backfill(homes[number], again=True)
            case "refresh":
                backfill(homes[number], refresh=True)
            case _:
                backfill(homes[number], retry_failed=True)
    for runtime in homes:
        backfill(runtime, refresh=True)
    winner = min(youngest, key=lambda number: youngest[number])
    found = row(homes[0])
    assert found is not None
    assert (found.home, found.rollout_path, found.tokens_used) == (
        homes[winner].home,
        rollout_path(homes[winner].codex_home, 1),
        youngest[winner],
    )
    for runtime in homes:
        assert backfill(runtime, refresh=True).scanned == 0


def test_hosts_that_index_their_homes_at_the_same_time_do_not_disturb_each_other(
    postgres_settings: StateSettings, opened: Callable[[StateSettings], StateRuntime], tmp_path: Path
) -> None:
    url = postgres_settings.database_url
    assert url is not None
    hosts = ["alpha", "beta", "gamma", "delta"]
    for place, host in enumerate(hosts):
        for number in range(40):
            write_rollout(tmp_path / host, place * 100 + number, modified=MODIFIED)
    programs = [scripts.start(_BACKFILL_ON_A_HOST, host, tmp_path / host, url.get_secret_value()) for host in hosts]
    answers = [program.wait().stdout for program in programs]
    assert answers == [f"complete 40 0 {host}:{tmp_path / host}\n" for host in hosts]
    with opened(postgres_settings).read() as state:
        states = {stored.home: stored.status for stored in state.backfill.list() if stored.home != LOCAL_HOME}
        assert states == {f"{host}:{tmp_path / host}": BackfillStatus.COMPLETE for host in hosts}
        for place, host in enumerate(hosts):
            listed = set(state.threads.list_ids(ThreadQuery(limit=1000, home=f"{host}:{tmp_path / host}")))
            assert listed == {thread_id(place * 100 + number) for number in range(40)}
        assert len(state.threads.list_ids(ThreadQuery(limit=1000))) == 160


# Files that several homes share, and files that are one home's


@pytest.fixture
def work_and_personal(tmp_path: Path) -> dict[str, StateSettings]:
    """Two homes whose states lie in one directory, as ``CODEX_SQLITE_HOME`` makes it for every home."""
    for number, name in enumerate(("work", "personal")):
        write_rollout(tmp_path / name, number, session_meta(number), user_message(name))
    return {
        name: StateSettings(codex_home=tmp_path / name, sqlite_home=tmp_path / "databases")
        for name in ("work", "personal")
    }


def listed(runtime: StateRuntime) -> list[str]:
    page = list_threads(runtime, ThreadQuery(home=runtime.home))
    return [thread.display_name for thread in page.items]


@pytest.mark.parametrize("by_url", [False, True])
def test_two_homes_under_one_sqlite_home_are_kept_apart(
    work_and_personal: dict[str, StateSettings],
    opened: Callable[[StateSettings], StateRuntime],
    tmp_path: Path,
    by_url: bool,
) -> None:
    if by_url:
        url = SecretStr(f"sqlite:///{tmp_path / 'shared.sqlite'}")
        changes = {"sqlite_home": None, "database_url": url}
        work_and_personal = {name: each.model_copy(update=changes) for name, each in work_and_personal.items()}
    runtimes = {name: opened(each) for name, each in work_and_personal.items()}
    for name, runtime in runtimes.items():
        assert runtime.home == str(tmp_path / name)
        assert not runtime.has_own_database
        assert backfill(runtime).upserted == 1
    for name, runtime in runtimes.items():
        assert listed(runtime) == [name]
    with pytest.raises(ThreadNotFoundError):
        archive_thread(runtimes["personal"], thread_id(0))
    assert rollout_path(tmp_path / "work", 0).is_file()


def test_a_home_is_known_by_where_links_to_it_lead(
    work_and_personal: dict[str, StateSettings], opened: Callable[[StateSettings], StateRuntime], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "work")
    settings = work_and_personal["work"]
    backfill(opened(settings))
    runtime = opened(settings.model_copy(update={"codex_home": tmp_path / "link"}))
    assert runtime.home == str(tmp_path / "work")
    assert listed(runtime) == ["work"]


def test_a_setting_names_a_home_on_sqlite_as_well(
    work_and_personal: dict[str, StateSettings], opened: Callable[[StateSettings], StateRuntime]
) -> None:
    assert opened(work_and_personal["work"].model_copy(update={"home": "mine"})).home == "mine"


@pytest.mark.parametrize("copied", [shutil.copytree, shutil.move])
@pytest.mark.parametrize("below", ["", "sqlite"])
def test_a_home_that_is_moved_or_copied_keeps_the_rows_of_a_file_inside_it(
    tmp_path: Path, opened: Callable[[StateSettings], StateRuntime], copied: Callable[[Path, Path], object], below: str
) -> None:
    home, moved = tmp_path / "home", tmp_path / "elsewhere" / "home"
    moved.parent.mkdir()
    home.mkdir()
    with StateRuntime.open(StateSettings(codex_home=home, sqlite_home=home / below)) as runtime:
        assert runtime.has_own_database
        assert runtime.home == LOCAL_HOME
        with runtime.begin() as state:
            state.threads.upsert(a_thread(title="a service's own", home=runtime.home))
    copied(home, moved)
    runtime = opened(StateSettings(codex_home=moved, sqlite_home=moved / below))
    assert runtime.home == LOCAL_HOME
    with runtime.read() as state:
        page = state.threads.list(ThreadQuery(home=runtime.home))
    assert [thread.title for thread in page.items] == ["a service's own"]


def test_a_file_in_another_home_is_not_this_homes_alone(
    tmp_path: Path, opened: Callable[[StateSettings], StateRuntime]
) -> None:
    theirs = opened(StateSettings(codex_home=tmp_path / "theirs"))
    mine = opened(StateSettings(codex_home=tmp_path / "mine", sqlite_home=tmp_path / "theirs"))
    assert theirs.home == LOCAL_HOME
    assert mine.home == str(tmp_path / "mine")


def test_rows_from_before_homes_had_names_in_a_shared_file_go_to_the_home_that_their_rollouts_lie_in(
    work_and_personal: dict[str, StateSettings], opened: Callable[[StateSettings], StateRuntime], tmp_path: Path
) -> None:
    """L7: whichever home opens the file first gets none of another's rows."""
    with runtime_of_nobody(tmp_path) as runtime, runtime.begin() as state:
        for number, name in enumerate(("work", "personal")):
            thread = extract_metadata(rollout_path(tmp_path / name, number), "openai").thread
            assert thread.home == LOCAL_HOME
            state.threads.upsert(thread)
            state.threads.set_name(thread.id, f"named in {name}")
    with runtime_of_nobody(tmp_path) as runtime, runtime.begin() as state:
        # A home whose path begins alike, and rows that lie in no home of today.
        state.threads.upsert(a_thread(id=thread_id(7), rollout_path=tmp_path / "work-2" / "a.jsonl"))
        state.threads.upsert(a_thread(id=thread_id(8), rollout_path=Path("/gone/a.jsonl")))
    for name in ("personal", "work"):
        assert listed(opened(work_and_personal[name])) == [f"named in {name}"]
    with opened(work_and_personal["work"]).read() as state:
        homes = {number: state.threads.get(thread_id(number)).home for number in (0, 1, 7, 8)}  # type: ignore[union-attr]
    assert homes == {0: str(tmp_path / "work"), 1: str(tmp_path / "personal"), 7: LOCAL_HOME, 8: LOCAL_HOME}


def test_an_indexed_home_takes_in_no_unnamed_row_any_more(
    work_and_personal: dict[str, StateSettings], opened: Callable[[StateSettings], StateRuntime], tmp_path: Path
) -> None:
    backfill(opened(work_and_personal["work"]))
    with runtime_of_nobody(tmp_path) as runtime, runtime.begin() as state:
        state.threads.upsert(a_thread(id=thread_id(7), rollout_path=tmp_path / "work" / "a.jsonl"))
    with opened(work_and_personal["work"]).read() as state:
        assert state.threads.get(thread_id(7)).home == LOCAL_HOME  # type: ignore[union-attr]


def runtime_of_nobody(tmp_path: Path) -> StateRuntime:
    return StateRuntime.open(StateSettings(codex_home=tmp_path / "nobody", sqlite_home=tmp_path / "databases"))


def test_a_home_that_is_being_indexed_keeps_no_other_home_from_it(homes: list[StateRuntime]) -> None:
    busy, free = homes
    with busy.autocommit() as state:
        state.backfill.try_claim(busy.home, owner="somebody", lease=timedelta(hours=1))
    write_rollout(free.codex_home, 2)
    assert backfill(free).upserted == 1
    assert backfill(busy).status.value == "running"
