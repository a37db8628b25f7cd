"""Finding threads by what was said in them: over the rollouts themselves.

There is no index of their words. It would cost every backfill, take a fifth of the home's size or more than all of it,
and be stale; a scan finds what is on disk now, on either database alike, at some 400 MB a second for each core. So a
search costs in proportion to what it looks through: newest first, and no further than its limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

from codex_state.errors import InvalidInputError, one_of, required
from codex_state.models import Anchor, RolloutFileState, Thread, ThreadQuery
from codex_state.rollout.matching import fold, parse_terms
from codex_state.rollout.pool import Pool, usable_cores
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
    parse_terms(required(words, str))
    where = [_kind(kind) for kind in kinds]
    if not where:
        raise InvalidInputError(f"nowhere to look: give kinds, of {', '.join(TranscriptKind)}")
    return _search(runtime, words, query, where, workers)


def _kind(kind: str) -> TranscriptKind:
    return TranscriptKind(one_of(kind, [known.value for known in TranscriptKind], "kind"))


def _search(
    runtime: StateRuntime, words: str, query: ThreadQuery, kinds: list[TranscriptKind], workers: int | None
) -> Iterator[FoundThread]:
    if query.limit <= 0:
        return
    with closing(_scanned(_jobs(runtime, words, query, kinds), workers)) as all_scanned:
        matches = ((thread, scanned) for thread, scanned in all_scanned if scanned.matches)
        for thread, scanned in islice(matches, query.limit):
            anchor = Anchor(getattr(thread, query.sort_key.value), thread.id)
            yield FoundThread(thread, tuple(scanned.hits), anchor, scanned.unreadable)


def _scanned(
    jobs: Iterator[tuple[Thread, Scan, int]], workers: int | None
) -> Generator[tuple[Thread, Scanned], None, None]:
    """What was found of each thread, in order: by this process first, then by children, which end with this."""
    children = usable_cores() if workers is None else workers
    looked_through = 0
    for thread, job, size in jobs:
        yield thread, scan(job)
        looked_through += size
        if children and looked_through >= _HERE_BYTES:
            break
    else:
        return
    waiting: deque[tuple[Thread, Future[Scanned]]] = deque()
    with closing(Pool("codex_state.rollout.scanning", scan, Scanned, children)) as pool:
        for thread, job, _ in jobs:
            waiting.append((thread, pool.submit(job)))
            while len(waiting) > _JOBS_AHEAD or (waiting and waiting[0][1].done()):
                oldest, scanned = waiting.popleft()
                yield oldest, scanned.result()
        for oldest, scanned in waiting:
            yield oldest, scanned.result()


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
