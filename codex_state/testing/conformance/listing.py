"""Listings: pages that neither lose nor repeat a row, whatever the filters."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import pytest

from codex_state.models import Anchor, SortKey, Thread, ThreadQuery
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
        ids += following
        if page.next_anchor is None:
            assert page.num_scanned_rows == len(page.items)
            return ids
        assert len(page.items) == page_size
        assert page.num_scanned_rows == page_size + 1
        last = page.items[-1]
        assert page.next_anchor == Anchor(getattr(last, sort_key.value), last.id)
        anchor = Anchor.parse(page.next_anchor.cursor())


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
    """``ThreadRepository.list`` and ``list_ids``."""

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

    @pytest.mark.parametrize("first_user_message", [None, ""])
    def test_a_thread_without_a_first_message_is_not_listed(self, state: State, first_user_message: str | None) -> None:
        state.threads.upsert(a_thread(first_user_message=first_user_message))
        listed = a_thread()
        state.threads.upsert(listed)
        assert _all_pages(state, 10) == [listed.id]

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
        for sources, providers, page_size in product(_SOME_SOURCES, _SOME_PROVIDERS, (3, 100)):
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
