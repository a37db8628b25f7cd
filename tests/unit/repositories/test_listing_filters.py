"""Filters of listings: what they let through, page by page, and how much they look at (law L10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codex_state.errors import InvalidInputError
from codex_state.models import SUBAGENT, SortKey, StatisticsQuery, Thread, ThreadQuery
from codex_state.repositories import thread_listing
from codex_state.runtime import State
from codex_state.testing.samples import NOON, a_thread
from tests import stores


@pytest.fixture
def state(clocked: stores.Clocked) -> Iterator[State]:
    with clocked.database.autocommit() as session:
        yield State(session)


def minute(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


CWDS = ("/w", "/w/a", "/w/a//b/", "/w/ab", "C:\\w\\a", "")
SOURCES = ("cli", "exec", '{"subagent":"review"}')

FILTERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Thread, Any], bool]]] = {
    "cwd": (
        st.sampled_from(["/w", "/w/a", "/w/a/", "C:\\w", "/nowhere"]),
        lambda thread, cwd: f"{spelled(str(thread.cwd))}/".startswith(f"{spelled(cwd)}/"),
    ),
    "branch": (st.sampled_from(["main", "dev"]), lambda thread, branch: thread.git_branch == branch),
    "model": (st.sampled_from(["gpt", "5.1", "mini"]), lambda thread, part: part in (thread.model or "")),
    "text": (st.sampled_from(["alpha", "BETA"]), lambda thread, part: part.lower() in thread.title),
    "since": (st.integers(0, 12).map(minute), lambda thread, moment: thread.updated_at >= moment),
    "until": (st.integers(0, 12).map(minute), lambda thread, moment: thread.updated_at <= moment),
    "children": (st.just(False), lambda thread, _: thread.parent_thread_id is None),
    "sources": (
        st.lists(st.sampled_from([SUBAGENT, "cli", "exec"]), min_size=1, max_size=2),
        lambda thread, sources: thread.source in sources or (SUBAGENT in sources and thread.source.startswith("{")),
    ),
}


def spelled(cwd: str) -> str:
    return cwd.replace("\\", "/").replace("//", "/").rstrip("/")


@st.composite
def threads(draw: st.DrawFn) -> Thread:
    return a_thread(
        updated_at=minute(draw(st.integers(0, 12))),
        cwd=Path(draw(st.sampled_from(CWDS))),
        source=draw(st.sampled_from(SOURCES)),
        git_branch=draw(st.sampled_from([None, "main", "dev"])),
        model=draw(st.sampled_from([None, "gpt-5.1-codex", "gpt-5-mini"])),
        title=draw(st.sampled_from(["alpha", "beta"])),
        first_user_message="asked",
        parent_thread_id=draw(st.sampled_from([None, a_thread().id])),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    stored=st.lists(threads(), max_size=12),
    filters=st.fixed_dictionaries({}, optional={name: values for name, (values, _) in FILTERS.items()}),
    look_at=st.sampled_from([1, 2, 3, 100]),
    limit=st.integers(1, 5),
)
def test_pages_hold_what_the_filters_let_through_each_once_in_order(
    clocked: stores.Clocked, stored: list[Thread], filters: dict[str, Any], look_at: int, limit: int
) -> None:
    """However few rows a page looks at."""
    wanted = [thread for thread in stored if all(FILTERS[name][1](thread, value) for name, value in filters.items())]
    wanted.sort(key=lambda thread: (thread.updated_at, str(thread.id)), reverse=True)
    query = ThreadQuery(limit=limit, **filters)
    with pytest.MonkeyPatch.context() as patched, clocked.database.autocommit() as session:
        patched.setattr(thread_listing, "LOOK_AT", look_at)
        repository = State(session).threads
        for thread in repository.list(ThreadQuery(limit=1000)).items:
            repository.delete(thread.id)
        repository.upsert_many(stored)
        listed: list[Thread] = []
        anchor = None
        for _ in range(len(stored) + 2):
            page = repository.list(ThreadQuery(limit=limit, anchor=anchor, **filters))
            assert len(page.items) <= limit
            listed += page.items
            anchor = page.next_anchor
            if anchor is None:
                break
        assert anchor is None
        assert [thread.id for thread in listed] == [thread.id for thread in wanted]
        assert repository.count(query) == min(limit, len(wanted))


def test_a_page_looks_at_so_many_rows_and_tells_where_it_stopped(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    state.threads.upsert_many(a_thread(updated_at=minute(number), git_branch="main") for number in range(10))
    monkeypatch.setattr(thread_listing, "LOOK_AT", 4)
    page = state.threads.list(ThreadQuery(branch="dev"))
    assert page.items == []
    assert page.next_anchor is not None
    assert page.next_anchor.ts == minute(6)


def test_parts_have_no_wildcards_and_no_case(state: State) -> None:
    state.threads.upsert(a_thread(name="Release Plan", git_origin_url="git@example.org:ours/lantern.git"))
    for found, filters in [
        (1, {"name": "release"}),
        (0, {"name": "r%plan"}),
        (0, {"name": "plan release"}),
        (1, {"repository": "OURS/lantern"}),
        (1, {"text": "plan"}),
    ]:
        assert state.threads.count(ThreadQuery(**filters)) == found, filters  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "filters",
    [{"since": datetime(2026, 1, 1)}, {"until": "yesterday"}, {"since": 5}],  # noqa: DTZ001
)
def test_times_without_a_zone_are_refused(filters: dict[str, Any]) -> None:
    for query in (ThreadQuery, StatisticsQuery):
        with pytest.raises(InvalidInputError, match="not a time with a zone"):
            query(**filters)


@pytest.mark.parametrize("others", [0, 20], ids=["by the index", "among the newest"])
def test_a_directory_is_found_through_a_link_in_either_spelling(state: State, tmp_path: Path, others: int) -> None:
    real, link = tmp_path.resolve() / "real", tmp_path.resolve() / "link"
    (real / "code").mkdir(parents=True)
    link.symlink_to(real)
    inside = [real / "code", link / "code", real / "code" / "deep", link / "code" / "gone"]
    inside += [link / "code" / str(number) for number in range(others)]
    threads = [a_thread(cwd=cwd) for cwd in inside]
    state.threads.upsert_many([*threads, a_thread(cwd=real), a_thread(cwd=link / "codes"), a_thread(cwd=Path("code"))])
    query = ThreadQuery(cwd=link / "code")
    assert set(state.threads.list_ids(query)) == {thread.id for thread in threads}
    assert len(state.threads.list(query).items) == state.threads.count(query) == len(threads)
    by_creation = ThreadQuery(cwd=f"{link}/code/", sort_key=SortKey.CREATED_AT)
    assert set(state.threads.list_ids(by_creation)) == {thread.id for thread in threads}
    assert state.threads.statistics(StatisticsQuery(cwd=link / "code")).total.threads == len(threads)
    link.unlink()
    assert state.threads.count(query) == len(threads) - 2, "links are followed when the query is run"
