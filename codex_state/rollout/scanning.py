"""What threads' rollouts hold of what is looked for, in bounded memory; also as a child process: see ``pool``."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple

from msgspec import Struct

from codex_state.errors import RolloutError
from codex_state.rollout.files import COMPRESSED_SUFFIX
from codex_state.rollout.matching import Piece, Term, fold, parse_terms
from codex_state.rollout.messages import serve
from codex_state.rollout.reading import MAX_LINE_BYTES, open_rollout
from codex_state.rollout.transcript import TranscriptItem, TranscriptKind, items_of

_PIECE_BYTES = 8 * 1024 * 1024
_MOST_HITS = 3
_MOST_COMPARED = 20
"""So many messages with a word are compared, to show those that hold most of the words."""
_SNIPPET_LENGTH = 160


class Conversation(Struct):
    """The rollouts of one thread, to be looked through."""

    paths: list[str]
    known: list[int]
    """Which terms the thread holds elsewhere, by their place: in its name."""


class Scan(Struct):
    """What is looked for, and where."""

    words: str
    kinds: list[TranscriptKind]
    """In which kinds of items."""
    conversations: list[Conversation]


@dataclass(slots=True)
class Hit:
    """One message, command or output that was found."""

    kind: TranscriptKind
    snippet: str
    """What is around the words found, on one line."""
    at: datetime | None
    line: int | None
    terms: int
    """How many of the words it holds."""


class Scanned(Struct):
    """What was found of one thread."""

    matches: bool = False
    """Whether it holds every term, and none that is excluded."""
    hits: list[Hit] = []
    unreadable: str | None = None
    """What kept it from being read to its end."""


def scan(job: Scan) -> list[Scanned]:
    """Look through conversations. One that can't be read further is said, and what was found before counts."""
    terms, kinds = parse_terms(job.words), frozenset(job.kinds)
    return [_scan(conversation, terms, kinds) for conversation in job.conversations]


def _scan(conversation: Conversation, terms: tuple[Term, ...], kinds: frozenset[TranscriptKind]) -> Scanned:
    unreadable = None
    wanted = [term for place, term in enumerate(terms) if not term.excluded and place not in conversation.known]
    search = _Search(terms, kinds)
    # A file is nearly always one piece, and a thread one file: then it need not be looked at any closer.
    is_one_file = len(conversation.paths) == 1
    for path in conversation.paths:
        try:
            for number, lines, is_all in _pieces_of(path):
                piece = Piece(lines)
                must_hold = wanted if is_one_file and is_all else ()
                if not all(term.anchor.may_be_in(piece) for term in must_hold):
                    return Scanned()
                if not search.look_through(piece, number, must_hold):
                    return Scanned()
        except (RolloutError, OSError) as error:
            unreadable = str(error)
    found = {*search.found, *(terms[place] for place in conversation.known)}
    matches = all(term in found for term in terms if not term.excluded)
    return Scanned(matches, search.best() if matches else [], unreadable)


def _pieces_of(path: str) -> Iterator[tuple[int, bytes, bool]]:
    """The whole lines of a rollout in pieces: the number of the line before each, and whether it is all there is."""
    file, status = open_rollout(path)
    with file:
        # No more memory than it needs: what isn't touched the system takes back, and gives anew for the next file.
        size = _PIECE_BYTES if path.endswith(COMPRESSED_SUFFIX) else min(_PIECE_BYTES, status.st_size + 1)
        lines, first = 0, True
        while piece := file.read(size):
            is_all = first and len(piece) < size
            if not piece.endswith(b"\n"):
                piece += file.readline(MAX_LINE_BYTES)
            yield lines, piece, is_all
            first = False
            lines += piece.count(b"\n")


class _Search:
    """What was found so far."""

    def __init__(self, terms: Iterable[Term], kinds: frozenset[TranscriptKind]) -> None:
        # What is excluded first: it decides alone.
        self._terms = sorted(terms, key=lambda term: not term.excluded)
        self._kinds = kinds
        self.found: set[Term] = set()
        self._best: list[_Found] = []

    def look_through(self, piece: Piece, line_before: int, must_hold: Collection[Term] = ()) -> bool:
        """Look through whole lines; ``False`` when they hold what is excluded, or not what they must hold."""
        lines: dict[int, list[_Text]] = {}
        held: dict[int, None] = {}
        for term in self._terms:
            compared = 0
            for start, end in term.anchor.lines(piece):
                if start not in lines:
                    lines[start] = self._texts_of(piece.data[start:end])
                if any(term.is_in(text.folded) for text in lines[start]):
                    if term.excluded:
                        return False
                    self.found.add(term)
                    held[start] = None
                    compared += 1
                if compared == _MOST_COMPARED:
                    break
            if term in must_hold and not compared:
                return False
        for start in sorted(held):
            for text in lines[start]:
                terms = [term for term in self._terms if not term.excluded and term.is_in(text.folded)]
                self._keep(text.item, terms, line_before + piece.data.count(b"\n", 0, start) + 1)
        return True

    def _texts_of(self, line: bytes) -> list[_Text]:
        return [_Text(item, fold(item.text)) for item in items_of(line) if item.kind in self._kinds]

    def _keep(self, item: TranscriptItem, terms: list[Term], line: int) -> None:
        if terms and not any(item.kind is found.item.kind and item.text == found.item.text for found in self._best):
            self._best.append(_Found(len(terms), line, item, terms))
            self._best.sort(key=lambda found: -found.held)  # stable: the earlier one of two that hold as many
            del self._best[_MOST_HITS:]

    def best(self) -> list[Hit]:
        """Those that hold most of the terms, as they are shown."""
        return [
            Hit(found.item.kind, snippet(found.item.text, found.terms), found.item.at, found.line, found.held)
            for found in self._best
        ]


class _Text(NamedTuple):
    item: TranscriptItem
    folded: str


class _Found(NamedTuple):
    held: int
    line: int
    item: TranscriptItem
    terms: list[Term]


_ASCII = re.compile(r"[\x00-\x7f]")
_STEP = 4096


def _unfolded(text: str, place: int) -> int:
    """Where in a text that comes from what is at a place of its folded form: a character may fold to several."""
    start = 0
    while start < len(text):
        # Before ASCII nothing is composed with what comes before it, so the parts fold as the whole does.
        following = _ASCII.search(text, start + _STEP)
        end = len(text) if following is None else following.start()
        width = len(fold(text[start:end]))
        if width > place:
            return bisect_left(range(start, end), place, key=partial(_width, text, start)) + start
        place -= width
        start = end
    return start


def _width(text: str, start: int, end: int) -> int:
    return len(fold(text[start:end]))


def snippet(text: str, terms: Iterable[Term]) -> str:
    """What is around the first place where a text holds one of the terms, on one line."""
    folded = fold(text)
    first = min((begin for term in terms for begin, _ in term.spans(folded)), default=0)
    if len(folded) != len(text):
        first = _unfolded(text, first)
    begin = max(0, first - _SNIPPET_LENGTH // 4)
    shown = " ".join(text[begin : begin + 2 * _SNIPPET_LENGTH].split())
    cut = shown if len(shown) <= _SNIPPET_LENGTH else shown[: _SNIPPET_LENGTH - 1].rstrip() + "…"
    return f"…{cut}" if begin else cut


if __name__ == "__main__":
    serve(Scan, scan)
