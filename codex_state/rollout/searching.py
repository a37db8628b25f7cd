"""Finding threads by what was said in them: over the rollouts themselves.

There is no index of their words. It would cost every backfill, be a third as large as the home, and be stale; a scan
finds what is on disk now, on either database alike, at about a gigabyte a second on two cores. So a search costs in
proportion to what it looks through: newest first, and no further than its limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice

from codex_state.errors import InvalidInputError, did_you_mean
from codex_state.models import Anchor, RolloutFileState, Thread, ThreadQuery
from codex_state.rollout.extractors import worker_count
from codex_state.rollout.matching import fold, parse_terms
from codex_state.rollout.pool import Pool
from codex_state.rollout.scanning import Hit, Scan, Scanned, scan
from codex_state.rollout.transcript import TranscriptKind
from codex_state.runtime import StateRuntime

SAID = (TranscriptKind.USER, TranscriptKind.AGENT, TranscriptKind.REASONING)
"""What a search looks through unless told otherwise: what people and agents said."""

_PAGE = 250
_HERE_BYTES = 24 * 1024 * 1024
"""So much is looked through by this process before it starts others."""
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

    Raises:
        InvalidInputError: nothing is looked for, or in no kind that there is.
    """
    query = threads or ThreadQuery()
    parse_terms(words)
    where = [_kind(kind) for kind in kinds]
    if not where:
        raise InvalidInputError(f"nowhere to look: give kinds, of {', '.join(TranscriptKind)}")
    return islice(_search(runtime, words, query, where, workers), max(0, query.limit))


def _kind(kind: str) -> TranscriptKind:
    try:
        return TranscriptKind(kind)
    except ValueError:
        kinds = [known.value for known in TranscriptKind]
        raise InvalidInputError(f"no kind: {kind!r}; there are {', '.join(kinds)}{did_you_mean(kind, kinds)}") from None


def _search(
    runtime: StateRuntime, words: str, query: ThreadQuery, kinds: list[TranscriptKind], workers: int | None
) -> Iterator[FoundThread]:
    waiting: deque[tuple[Thread, Future[Scanned]]] = deque()
    looked_through = 0
    pool = None
    with ExitStack() as held:
        for thread, job, size in _jobs(runtime, words, query, kinds):
            if pool is None and looked_through < _HERE_BYTES:
                looked_through += size
                yield from _found(thread, scan(job), query)
                continue
            if pool is None:
                pool = Pool("codex_state.rollout.scanning", scan, Scanned, _children(workers))
                held.callback(pool.close)
            waiting.append((thread, pool.submit(job)))
            while len(waiting) > _JOBS_AHEAD or (waiting and waiting[0][1].done()):
                oldest, scanned = waiting.popleft()
                yield from _found(oldest, scanned.result(), query)
        for thread, scanned in waiting:
            yield from _found(thread, scanned.result(), query)


def _children(workers: int | None) -> int:
    return worker_count(_HERE_BYTES * 2) if workers is None else workers


def _found(thread: Thread, scanned: Scanned, query: ThreadQuery) -> Iterator[FoundThread]:
    if scanned.matches:
        anchor = Anchor(getattr(thread, query.sort_key.value), thread.id)
        yield FoundThread(thread, tuple(scanned.hits), anchor, scanned.unreadable)


def _jobs(
    runtime: StateRuntime, words: str, query: ThreadQuery, kinds: list[TranscriptKind]
) -> Iterator[tuple[Thread, Scan, int]]:
    """What there is to look through, and how much of it."""
    terms = parse_terms(words)
    for threads, files in _pages(runtime, query):
        for thread in threads:
            shown = (thread.name, thread.title, thread.first_user_message, thread.preview)
            names = [fold(text) for text in shown if text]
            if any(term.excluded and term.is_in(name) for term in terms for name in names):
                continue
            known = [place for place, term in enumerate(terms) if any(term.is_in(name) for name in names)]
            paths = files.get(str(thread.id), {})
            if thread.rollout_path is not None:
                paths.setdefault(str(thread.rollout_path), 0)
            yield thread, Scan([*paths], words, kinds, known), sum(paths.values())


def _pages(runtime: StateRuntime, query: ThreadQuery) -> Iterator[tuple[list[Thread], dict[str, dict[str, int]]]]:
    """Pages of threads, and the files of each with their sizes."""
    anchor = query.anchor
    while True:
        with runtime.read() as state:
            page = state.threads.list(replace(query, anchor=anchor, limit=_PAGE))
            known = state.rollout_files.of_threads([str(thread.id) for thread in page.items], runtime.home)
        files = {
            thread_id: {
                str(runtime.codex_home / row.path): row.size
                for row in rows
                if row.state in (RolloutFileState.INDEXED, RolloutFileState.SUPERSEDED)
            }
            for thread_id, rows in known.items()
        }
        yield page.items, files
        anchor = page.next_anchor
        if anchor is None:
            return
