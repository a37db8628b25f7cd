"""Listings: pages that neither lose nor repeat a row, whatever the filters."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import bindparam, text

from codex_state.errors import InvalidInputError
from codex_state.models import Anchor, SortKey, Thread, ThreadQuery, ThreadsPage, UnshownThreads
from codex_state.models.columns import UuidText
from codex_state.runtime import State
from codex_state.testing.samples import NOON, a_thread

_SECOND = timedelta(seconds=1)
_SOURCES = ["cli", "vscode", "exec", "mcp", '{"subagent":"review"}']
_PROVIDERS = ["openai", "azure", "ollama"]

# Up to twelve combinations are one branch each; 5 sources times 3 providers are more, and one query.
_SOME_SOURCES: list[list[str]] = [[], ["cli"], ["cli", "exec"], ["cli", "cli", "mcp"], ["nobody"], _SOURCES]
_SOME_PROVIDERS = [[], ["azure"], ["openai", "ollama"], ["openai", "openai"], ["nobody", "azure"], _PROVIDERS]


def _all_pages(state: State, page_size: int, **filters: Any) -> list[UUID]:
    """The ids of all pages, one after the other; what each page says about itself is checked on the way."""
    ids: list[UUID] = []
    anchor = None
    sort_key = filters.get("sort_key", SortKey.UPDATED_AT)
    while True:
        page = state.threads.list(ThreadQuery(limit=page_size, anchor=anchor, **filters))
        following = [thread.id for thread in page.items]
        assert state.threads.list_ids(ThreadQuery(limit=page_size, anchor=anchor, **filters)) == following
        _assert_texts(state, ThreadQuery(limit=page_size, anchor=anchor, **filters), page)
        ids += following
        if page.next_anchor is None:
            assert page.num_scanned_rows == len(page.items)
            return ids
        assert len(page.items) == page_size
        assert page.num_scanned_rows == page_size + 1
        last = page.items[-1]
        assert page.next_anchor == Anchor(getattr(last, sort_key.value), last.id)
        anchor = Anchor.parse(page.next_anchor.cursor())


def _assert_texts(state: State, query: ThreadQuery, page: ThreadsPage) -> None:
    """A search compares the threads that a listing shows."""
    texts, anchor = state.threads.list_texts(query)
    assert [(row.id, row.at, row.rollout_path, row.texts) for row in texts] == [
        (
            thread.id,
            getattr(thread, query.sort_key.value),
            thread.rollout_path,
            (thread.name, thread.title, thread.first_user_message, thread.preview),
        )
        for thread in page.items
    ]
    assert anchor == page.next_anchor


def _execute(state: State, statement: str, thread: Thread) -> None:
    bound = text(statement).bindparams(bindparam("id", thread.id, type_=UuidText()))
    state.session.connection().execute(bound)


def _in_order(threads: list[Thread], sort_key: SortKey = SortKey.UPDATED_AT) -> list[UUID]:
    def rank(thread: Thread) -> tuple[datetime, str]:
        return getattr(thread, sort_key.value), str(thread.id)

    return [thread.id for thread in sorted(threads, key=rank, reverse=True)]


def _many_threads(count: int = 60) -> list[Thread]:
    """Threads of all sources and providers, several to each second, whose two orders differ."""
    return [
        a_thread(
            updated_at=NOON + (number // 7) * _SECOND,
            created_at=NOON - (number % 5) * _SECOND,
            source=_SOURCES[number % 5],
            model_provider=_PROVIDERS[number % 3],
            home="laptop" if number % 3 else "server",
        )
        for number in range(count)
    ]


class TestListing:
    """``ThreadRepository.list``, ``list_ids`` and ``list_texts``."""

    def test_an_empty_index_is_one_empty_page(self, state: State) -> None:
        page = state.threads.list(ThreadQuery(limit=10))
        assert (list(page.items), page.next_anchor, page.num_scanned_rows) == ([], None, 0)
        assert state.threads.list_ids(ThreadQuery(limit=10)) == []

    @pytest.mark.parametrize("page_size", [0, -1])
    def test_a_page_of_nothing_is_empty_and_the_last(self, state: State, page_size: int) -> None:
        state.threads.upsert(a_thread())
        page = state.threads.list(ThreadQuery(limit=page_size))
        assert (list(page.items), page.next_anchor, page.num_scanned_rows) == ([], None, 0)
        assert state.threads.list_ids(ThreadQuery(limit=page_size)) == []

    def test_a_page_holds_whole_threads(self, state: State) -> None:
        thread = a_thread(git_sha="abc", tokens_used=7)
        state.threads.upsert(thread)
        assert list(state.threads.list(ThreadQuery(limit=1)).items) == [thread]

    @pytest.mark.parametrize("sort_key", SortKey)
    def test_pages_lose_and_repeat_nothing_at_borders_of_equal_seconds(self, state: State, sort_key: SortKey) -> None:
        threads = _many_threads()
        state.threads.upsert_many(threads)
        for page_size in (1, 2, 7, 10, 59, 60, 61):
            assert _all_pages(state, page_size, sort_key=sort_key) == _in_order(threads, sort_key), page_size

    def test_threads_all_of_one_second_are_paged_by_their_ids(self, state: State) -> None:
        threads = [a_thread() for _ in range(25)]
        state.threads.upsert_many(threads)
        assert _all_pages(state, 4) == _in_order(threads)

    def test_ids_are_told_by_their_shortest_beginnings(self, state: State) -> None:
        told = {
            "01a1f871-1d08-7e74-89ac-0b451812b675": "01a1f871-1d08-7e74-89ac-0b451812b675",
            "01a1f871-1d08-7e74-89ac-0b451812b674": "01a1f871-1d08-7e74-89ac-0b451812b674",
            "01a1f871-1d08-7e80-89ac-0b451812b674": "01a1f871-1d08-7e8",
            "01a1f871-1d18-7e80-89ac-0b451812b674": "01a1f871-1d1",
            "01a1f872-0000-7000-8000-000000000000": "01a1f872",
            "f0000000-0000-7000-8000-000000000000": "f0000000",
        }
        state.threads.upsert_many([a_thread(id=UUID(text)) for text in told])
        found = state.threads.shortest_beginnings([UUID(text) for text in told] + [UUID(int=7)])
        assert {str(thread_id): beginning for thread_id, beginning in found.items()} == told
        assert state.threads.shortest_beginnings([UUID("f" + "0" * 11 + "7" + "0" * 3 + "8" + "0" * 15)], digits=1) == {
            UUID("f0000000-0000-7000-8000-000000000000"): "f"
        }
        assert state.threads.shortest_beginnings([]) == {}

    def test_an_anchor_needs_no_row(self, state: State) -> None:
        threads = [a_thread(updated_at=NOON - number * _SECOND) for number in range(5)]
        state.threads.upsert_many(threads)
        middle = Anchor(NOON - 2 * _SECOND, UUID(int=0))
        assert state.threads.list_ids(ThreadQuery(limit=10, anchor=middle)) == [thread.id for thread in threads[3:]]
        assert state.threads.list_ids(ThreadQuery(limit=10, anchor=Anchor(NOON - timedelta(days=1), uuid4()))) == []

    def test_a_thread_that_changes_between_two_pages_does_not_disturb_the_others(self, state: State) -> None:
        threads = [a_thread(updated_at=NOON - number * _SECOND) for number in range(6)]
        state.threads.upsert_many(threads)
        page = state.threads.list(ThreadQuery(limit=3))
        state.threads.upsert(a_thread(**(threads[1].model_dump() | {"updated_at": NOON + _SECOND})))
        state.threads.upsert(a_thread(updated_at=NOON + _SECOND))
        assert state.threads.list_ids(ThreadQuery(limit=10, anchor=page.next_anchor)) == [
            thread.id for thread in threads[3:]
        ]

    @pytest.mark.parametrize(
        "given",
        [
            {"first_user_message": "hello"},
            {"name": "mine"},
            {"preview": "make all tests pass"},
            {"rollout_path": None},
            {"rollout_path": Path()},
        ],
    )
    def test_a_thread_is_shown_when_there_is_something_to_show_or_it_never_had_a_rollout(
        self, state: State, given: dict[str, Any]
    ) -> None:
        thread = a_thread(**({"first_user_message": None, "title": ""} | given))
        state.threads.upsert(thread)
        assert _all_pages(state, 10) == [thread.id]
        assert state.threads.count_unshown() == UnshownThreads(0, 0, complete=True)

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_other_threads_are_counted_and_listed_with_all(self, state: State, nothing: str | None) -> None:
        shown = [a_thread(updated_at=NOON - number * _SECOND) for number in range(5)]
        empty = [
            a_thread(
                updated_at=NOON - number * _SECOND,
                created_at=NOON - number * _SECOND,
                first_user_message=nothing,
                name=nothing,
                preview=nothing,
            )
            for number in range(3)
        ]
        state.threads.upsert_many([*shown, *empty])
        assert _all_pages(state, 2) == _in_order(shown)
        assert state.threads.count_unshown() == UnshownThreads(3, 0, complete=True)
        for sort_key in SortKey:
            assert _all_pages(state, 3, all=True, sort_key=sort_key) == _in_order([*shown, *empty], sort_key)

    def test_a_thread_whose_rollout_is_gone_is_listed_with_all_alone(self, state: State) -> None:
        gone, there = a_thread(name="kept"), a_thread()
        state.threads.upsert_many([gone, there])
        state.threads.mark_gone([gone.id], gone.home)
        assert _all_pages(state, 10) == [there.id]
        assert _all_pages(state, 10, all=True) == _in_order([gone, there])
        assert state.threads.count_unshown() == UnshownThreads(0, 1, complete=True)
        state.threads.upsert_from_rollouts([gone])
        assert _all_pages(state, 10) == _in_order([gone, there])

    @pytest.mark.parametrize("sources", [[], ["cli"], ["cli", "exec"], [*_SOURCES, *map(str, range(20))]])
    @pytest.mark.parametrize("archived", [False, True])
    def test_what_is_not_shown_is_counted_and_listed_by_the_same_filters(
        self, state: State, sources: list[str], archived: bool
    ) -> None:
        threads = _many_threads(120)
        for number, thread in enumerate(threads):
            thread.archived_at = NOON if number % 2 else None
            thread.first_user_message = None if number % 7 < 3 else "hello"
        state.threads.upsert_many(threads)
        wanted = [
            thread
            for thread in threads
            if thread.home == "server"
            and (thread.archived_at is not None) is archived
            and (not sources or thread.source in sources)
        ]
        filters: dict[str, Any] = {"sources": sources, "archived": archived, "home": "server"}
        assert _all_pages(state, 4, all=True, **filters) == _in_order(wanted)
        empty = sum(thread.first_user_message is None for thread in wanted)
        assert empty
        query = ThreadQuery(limit=1, anchor=Anchor(NOON - timedelta(days=9), uuid4()), **filters)
        assert state.threads.count_unshown(query) == UnshownThreads(empty, 0, complete=True)

    def test_counting_what_is_not_shown_ends_at_a_thousand(self, state: State) -> None:
        """L10."""
        state.threads.upsert_many([a_thread(first_user_message=None) for _ in range(999)])
        assert state.threads.count_unshown() == UnshownThreads(999, 0, complete=True)
        state.threads.upsert_many([a_thread(first_user_message=None) for _ in range(5)])
        assert state.threads.count_unshown() == UnshownThreads(1000, 0, complete=False)

    @pytest.mark.parametrize("directories", [1, 11, 12, 40])
    def test_a_directory_is_listed_with_those_below_it_however_many_they_are(
        self, state: State, directories: int
    ) -> None:
        """L10: a few are a seek each, more are looked for among the newest threads."""
        below = [f"/code/{number:02}/deep/" for number in range(directories)] + ["/code", "/code//./"]
        beside = ["/", "/codes", "/cod", "/code.", "/code0", "C:\\code", "", "code"]
        threads = [
            a_thread(cwd=Path(cwd), updated_at=NOON + timedelta(seconds=number % 7))
            for number, cwd in enumerate([*below, *beside, *below])
        ]
        state.threads.upsert_many(threads)
        wanted = [thread for thread in threads if str(thread.cwd).startswith("/code/") or thread.cwd == Path("/code")]
        assert len(wanted) == 2 * len(below)
        assert _all_pages(state, 5, cwd="/code/") == _in_order(wanted)
        assert state.threads.count(ThreadQuery(cwd="/code")) == min(len(wanted), 50)
        assert len(_all_pages(state, 50, cwd="/")) == len(wanted) + 5
        assert _all_pages(state, 50, cwd="/nowhere") == _all_pages(state, 50, cwd="/code/00/deep/er") == []

    def test_spawned_threads_can_be_left_out(self, state: State) -> None:
        parent = a_thread()
        children = [a_thread(parent_thread_id=parent.id, updated_at=NOON + _SECOND) for _ in range(5)]
        fork = a_thread(forked_from_id=parent.id)
        state.threads.upsert_many([parent, *children, fork])
        assert _all_pages(state, 3) == _in_order([parent, *children, fork])
        assert _all_pages(state, 1, children=False) == _in_order([parent, fork])
        assert _all_pages(state, 9, children=False, all=True, sources=["cli", "exec"]) == _in_order([parent, fork])

    @pytest.mark.parametrize("part", ["école", "École", "ÉCOLE", "ecole"])
    def test_parts_are_found_whatever_their_case_also_beyond_ascii(self, state: State, part: str) -> None:
        threads = [a_thread(title=title) for title in ("L'École maternelle", "ÉCOLES", "l'école", "Ecole")]
        state.threads.upsert_many(threads)
        wanted = threads[3:] if part == "ecole" else threads[:3]
        assert set(_all_pages(state, 2, text=part)) == {thread.id for thread in wanted}

    def test_a_part_is_looked_for_as_it_is_written(self, state: State) -> None:
        titles = ["50% off", "a_b", "axb", "500 off", "stop!", r"C:\new"]
        threads = {title: a_thread(title=title) for title in titles}
        state.threads.upsert_many(threads.values())
        for part, wanted in (("50%", "50% off"), ("A_B", "a_b"), ("p!", "stop!"), (r"c:\n", r"C:\new")):
            assert _all_pages(state, 9, text=part) == [threads[wanted].id]
        for part in ("x\0y", "x" * 10_001):
            with pytest.raises(InvalidInputError, match="no text is looked through for"):
                state.threads.list(ThreadQuery(text=part))

    @pytest.mark.parametrize(
        "damage",
        [
            "UPDATE threads SET updated_at = 9223372036854775807 WHERE id = :id",
            "UPDATE threads SET archived_at = -9223372036854775807 WHERE id = :id",
        ],
    )
    @pytest.mark.parametrize("page_size", [1, 2, 3, 10])
    def test_rows_that_can_not_be_read_are_named_and_cost_no_other_thread(
        self, state: State, damage: str, page_size: int
    ) -> None:
        threads = [a_thread(updated_at=NOON - number * _SECOND) for number in range(6)]
        state.threads.upsert_many(threads)
        broken = {str(threads[number].id) for number in (0, 1, 4)}
        for thread in threads:
            if str(thread.id) in broken:
                _execute(state, damage, thread)
        left = [thread.id for thread in threads if str(thread.id) not in broken]
        listed, named, anchor = [], set(), None
        while True:
            page = state.threads.list(ThreadQuery(limit=page_size, anchor=anchor))
            if damage.startswith("UPDATE threads SET updated_at"):
                _assert_texts(state, ThreadQuery(limit=page_size, anchor=anchor), page)
            listed += [thread.id for thread in page.items]
            named |= {row.key for row in page.unreadable}
            assert all("out of range" in row.reason for row in page.unreadable)
            anchor = page.next_anchor
            if anchor is None:
                break
            assert len(page.items) == page_size
        assert listed == left
        assert named == broken
        for filters in ({"sort_key": SortKey.CREATED_AT}, {"sources": ["cli", "exec"]}, {"all": True}):
            found = state.threads.list(ThreadQuery(**filters))
            assert {thread.id for thread in found.items} == set(left)
            assert {row.key for row in found.unreadable} == broken

    def test_a_page_of_rows_that_can_not_be_read_goes_on_to_those_that_can(self, state: State) -> None:
        readable = a_thread(updated_at=NOON - timedelta(days=1))
        state.threads.upsert_many([readable, *(a_thread() for _ in range(20))])
        _execute(state, "UPDATE threads SET archived_at = 9223372036854775807 WHERE id <> :id", readable)
        page = state.threads.list(ThreadQuery(limit=3))
        assert [thread.id for thread in page.items] == [readable.id]
        assert len(page.unreadable) == 20
        assert page.next_anchor is None
        assert page.num_scanned_rows == 21

    def test_archived_threads_have_a_listing_of_their_own(self, state: State) -> None:
        live = [a_thread(updated_at=NOON - number * _SECOND) for number in range(5)]
        archived = [a_thread(updated_at=NOON - number * _SECOND, archived_at=NOON) for number in range(5)]
        state.threads.upsert_many([*live, *archived])
        assert _all_pages(state, 2) == _in_order(live)
        assert _all_pages(state, 2, archived=True) == _in_order(archived)

    @pytest.mark.parametrize("sort_key", SortKey)
    def test_sources_and_providers_filter_without_losing_or_repeating(self, state: State, sort_key: SortKey) -> None:
        threads = _many_threads()
        state.threads.upsert_many(threads)
        for sources, providers, page_size in product(_SOME_SOURCES, _SOME_PROVIDERS, (7, 100)):
            wanted = [
                thread
                for thread in threads
                if (not sources or thread.source in sources) and (not providers or thread.model_provider in providers)
            ]
            found = _all_pages(state, page_size, sort_key=sort_key, sources=sources, providers=providers)
            assert found == _in_order(wanted, sort_key), (sources, providers, page_size)

    @pytest.mark.parametrize("sources", [[], ["cli", "exec"], [*_SOURCES, *map(str, range(20))]])
    @pytest.mark.parametrize("archived", [False, True])
    def test_a_home_filters_together_with_everything_else(
        self, state: State, sources: list[str], archived: bool
    ) -> None:
        threads = _many_threads()
        for thread in threads[::2]:
            thread.archived_at = NOON
        state.threads.upsert_many(threads)
        wanted = [
            thread
            for thread in threads
            if thread.home == "server"
            and (thread.archived_at is not None) is archived
            and (not sources or thread.source in sources)
        ]
        assert wanted
        assert _all_pages(state, 2, home="server", sources=sources, archived=archived) == _in_order(wanted)

    @pytest.mark.parametrize("value", ["%", "_li", "CLI", "cli ", "' OR 1=1 --", '"'])
    def test_filters_match_exactly(self, state: State, value: str) -> None:
        state.threads.upsert(a_thread())
        assert _all_pages(state, 10, sources=[value]) == []
        assert _all_pages(state, 10, providers=[value]) == []
        odd = a_thread(source=value, model_provider=value)
        state.threads.upsert(odd)
        assert _all_pages(state, 10, sources=[value], providers=[value]) == [odd.id]
