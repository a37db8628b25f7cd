"""Finding threads by what was said in them: over the rollouts themselves.

There is no index of their words. It would cost every backfill, take a fifth of the home's size or more than all of it,
and be stale; a scan finds what is on disk now, on either database alike, at some 2 GB a second for each core. So a
search costs in proportion to what it looks through: newest first, and no further than its limit.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic
from typing import NamedTuple
from uuid import UUID

from codex_state.errors import InvalidInputError, InvalidRowError, one_of, required
from codex_state.models import Anchor, RolloutFileState, Thread, ThreadQuery
from codex_state.repositories.threads import ThreadTexts
from codex_state.rollout.matching import fold, parse_terms
from codex_state.rollout.pool import Pool, usable_cores
from codex_state.rollout.scanning import Conversation, Hit, Scan, Scanned, scan
from codex_state.rollout.transcript import TranscriptKind
from codex_state.runtime import StateRuntime

SAID = (TranscriptKind.USER, TranscriptKind.AGENT, TranscriptKind.REASONING)
"""What a search looks through unless told otherwise: what people and agents said."""

_HOLD_A_THREAD = frozenset({RolloutFileState.INDEXED, RolloutFileState.SUPERSEDED})
_PAGE = 250
_ALONE_SECONDS = 0.05
"""So long this process looks through rollouts before it starts others, which may not pay."""
_START_SECONDS = 0.15
"""So long it goes on while they start."""
_JOB_BYTES = 4 * 1024 * 1024
_JOB_THREADS = 64
_JOBS_AHEAD = 16


@dataclass(frozen=True, slots=True)
class FoundThread:
    """A thread that holds what was looked for."""

    thread: Thread
    hits: tuple[Hit, ...]
    """The messages that hold most of the words, the best first; none when its name says it all."""
    anchor: Anchor
    """Where a search for the rest goes on: the ``anchor`` of its ``ThreadQuery``."""
    unreadable: str | None = None
    """What kept its rollout from being read to its end."""


def search(
    runtime: StateRuntime,
    words: str,
    threads: ThreadQuery | None = None,
    *,
    kinds: Collection[TranscriptKind] = SAID,
    workers: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Iterator[FoundThread]:
    """Threads that hold all the words, and none that is excluded, in their name, title or messages; newest first.

    They come as they are found. Words may be in different messages of a thread. What is typed how: ``parse_terms``.
    Case doesn't count, accents do.

    Args:
        runtime: the open state.
        words: what is looked for.
        threads: among which threads, in which order; its limit is how many are found at most.
        kinds: in which kinds of items.
        workers: how many child processes help when there is much to look through; as many as pay by default.
        on_progress: is told now and then how many threads were looked through.

    Raises:
        InvalidInputError: nothing is looked for, or in no kind that there is.
    """
    query = threads or ThreadQuery()
    parse_terms(required(words, str))
    where = [_kind(kind) for kind in kinds]
    if workers is not None and workers < 0:
        raise InvalidInputError(f"workers: not a number of processes: {workers}")
    if not where:
        raise InvalidInputError(f"nowhere to look: give kinds, of {', '.join(TranscriptKind)}")
    scanned = _scanned(_places(runtime, words, query), words, where, workers)
    return _search(runtime, query, scanned, on_progress or (lambda _: None))


def _kind(kind: str) -> TranscriptKind:
    return TranscriptKind(one_of(kind, [known.value for known in TranscriptKind], "kind"))


def _search(
    runtime: StateRuntime,
    query: ThreadQuery,
    all_scanned: Generator[list[_Result], None, None],
    on_progress: Callable[[int], object],
) -> Iterator[FoundThread]:
    if query.limit <= 0:
        return
    missing, looked_through = query.limit, 0
    with closing(all_scanned):
        for batch in all_scanned:
            for found in islice(_found(runtime, batch), missing):
                missing -= 1
                yield found
            looked_through += len(batch)
            on_progress(looked_through)
            if not missing:
                return


def _found(runtime: StateRuntime, scanned: Iterable[_Result]) -> Iterator[FoundThread]:
    """The threads that match, as they are now. Those that can't be read are left out, as by ``threads.list``."""
    for row, result in scanned:
        if result.matches and (thread := _thread(runtime, row.id)) is not None:
            yield FoundThread(thread, tuple(result.hits), Anchor(row.at, row.id), result.unreadable)


def _thread(runtime: StateRuntime, thread_id: UUID) -> Thread | None:
    with runtime.read() as state, suppress(InvalidRowError):
        return state.threads.get(thread_id)
    return None


def _scanned(
    places: Iterator[_Place], words: str, kinds: list[TranscriptKind], workers: int | None
) -> Generator[list[_Result], None, None]:
    """What was found of each thread, in order: by this process first, then by children, which end with this."""
    children = usable_cores() if workers is None else workers
    with ExitStack() as stack:
        pool, begun = None, monotonic()
        for place in places:
            yield [(place.thread, scan(Scan(words, kinds, [place.conversation]))[0])]
            elapsed = monotonic() - begun
            if children and pool is None and elapsed >= _ALONE_SECONDS:
                pool = Pool("codex_state.rollout.scanning", scan, list[Scanned], children)
                stack.enter_context(closing(pool))
            if pool is not None and elapsed >= _ALONE_SECONDS + _START_SECONDS:
                yield from _by_children(pool, places, words, kinds)
                return


def _by_children(
    pool: Pool[Scan, list[Scanned]], places: Iterator[_Place], words: str, kinds: list[TranscriptKind]
) -> Iterator[list[_Result]]:
    """What children found of the rest."""
    waiting: deque[tuple[list[_Place], Future[list[Scanned]]]] = deque()
    for batch in _batches(places):
        job = Scan(words, kinds, [place.conversation for place in batch])
        waiting.append((batch, pool.submit(job)))
        while len(waiting) > _JOBS_AHEAD or (waiting and waiting[0][1].done()):
            yield _results(*waiting.popleft())
    for oldest in waiting:
        yield _results(*oldest)


def _results(batch: list[_Place], scanned: Future[list[Scanned]]) -> list[_Result]:
    return [(place.thread, result) for place, result in zip(batch, scanned.result(), strict=True)]


_Result = tuple[ThreadTexts, Scanned]


class _Place(NamedTuple):
    """A thread that may hold what is looked for."""

    thread: ThreadTexts
    conversation: Conversation
    size: int


def _batches(places: Iterator[_Place]) -> Iterator[list[_Place]]:
    """As much at once as a message to a child pays for."""
    batch: list[_Place] = []
    size = 0
    for place in places:
        batch.append(place)
        size += place.size
        if size >= _JOB_BYTES or len(batch) == _JOB_THREADS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _places(runtime: StateRuntime, words: str, query: ThreadQuery) -> Iterator[_Place]:
    """What there is to look through, and how much of it."""
    terms = parse_terms(words)
    for threads, files in _pages(runtime, query):
        for thread in threads:
            names = [fold(text) for text in {*thread.texts} if text]  # often all the same
            if any(term.excluded and term.is_in(name) for term in terms for name in names):
                yield _Place(thread, Conversation([], []), 0)  # nothing to look for it in
                continue
            known = [place for place, term in enumerate(terms) if any(term.is_in(name) for name in names)]
            paths = files.get(str(thread.id), {})
            if thread.rollout_path is not None:
                paths.setdefault(str(thread.rollout_path), 0)
            yield _Place(thread, Conversation([*paths], known), sum(paths.values()))


def _pages(
    runtime: StateRuntime, query: ThreadQuery
) -> Iterator[tuple[Sequence[ThreadTexts], dict[str, dict[str, int]]]]:
    """Pages of threads, and the files of each with their sizes."""
    anchor, home = query.anchor, str(runtime.codex_home)
    while True:
        with runtime.read() as state:
            threads, anchor = state.threads.list_texts(replace(query, anchor=anchor, limit=_PAGE))
            known = state.rollout_files.of_threads([str(thread.id) for thread in threads], runtime.home)
        files = {
            thread_id: {
                os.path.join(home, row.path): row.size  # noqa: PTH118 - ten times as fast
                for row in rows
                if row.state in _HOLD_A_THREAD
            }
            for thread_id, rows in known.items()
        }
        yield threads, files
        if anchor is None:
            return
