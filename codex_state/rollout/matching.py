"""What is looked for in conversations, and whether a text or a rollout holds it.

A search is words. Texts are compared without case, composed and decomposed accents alike (``fold``). Before a rollout
is decoded its bytes are asked whether they may hold a word at all, which is some hundred times cheaper: each term has
an *anchor*, a part of it that any text which holds the term must have, however JSON escapes it. Anchors let more
through than the terms do, and never less.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain

from codex_state.errors import InvalidInputError

_WORD = re.compile(r"""(?P<minus>-?)(?:"(?P<phrase>[^"]*)"?|(?P<word>\S+))""")
_SPACES = re.compile(r"\s+")

# What no encoder of JSON escapes; the rest of ASCII some do.
_PLAIN = re.compile(r"[a-z0-9_.,:+()\[\]{}@#$%^*!?~|=-]+")
# What else folds to ASCII letters.
_ALSO = {"k": ("\u212a",), "i": ("İ", "\u0307"), "s": ("ß", "ẞ")}
_ESCAPE = rb"\u"
_MOST_ESCAPES = 256
# Between the characters of these scripts words aren't told apart, nor is a word of another script beside them.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_INSIDE = f"[^\\W{_UNSPACED}]"


def fold(text: str) -> str:
    """The form in which texts are compared: composed, without case, ß as ss, one sigma, a Turkish İ undotted."""
    if text.isascii():
        return text.lower()
    composed = unicodedata.normalize("NFC", text)
    return composed.replace("İ", "i").lower().replace("ß", "ss").replace("ς", "\u03c3")


@dataclass(frozen=True)
class Term:
    """A word or a phrase, folded."""

    text: str
    begins_word: bool = False
    """It must begin where a word begins."""
    ends_word: bool = False
    excluded: bool = False
    """Nothing that holds it is wanted."""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = r"\s+".join(map(re.escape, self.text.split(" ")))
        before = f"(?<!{_INSIDE})" if self.begins_word and _is_word(self.text[0]) else ""
        after = f"(?!{_INSIDE})" if self.ends_word and _is_word(self.text[-1]) else ""
        return re.compile(before + words + after)

    def spans(self, folded: str) -> Iterator[tuple[int, int]]:
        """Where the folded text holds it."""
        return (match.span() for match in self._pattern.finditer(folded))

    def is_in(self, folded: str) -> bool:
        """Whether the folded text holds it."""
        return self._pattern.search(folded) is not None

    @cached_property
    def anchor(self) -> Anchor:
        """What the bytes of a rollout must hold if one of its texts holds the term."""
        return _anchor_of(self.text)


def _is_word(character: str) -> bool:
    """Whether it is part of a word that ends somewhere."""
    return re.match(_INSIDE, character) is not None


@lru_cache(maxsize=8)
def parse_terms(words: str) -> tuple[Term, ...]:
    """The terms of a search, as it is typed.

    ``lease`` is anywhere, also inside of a word; ``lease*`` where a word begins; ``"one update"`` are these words next
    to each other, whole; ``-word`` and ``-"a phrase"`` must be nowhere.

    Raises:
        InvalidInputError: nothing is looked for, or no text.
    """
    try:
        words.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InvalidInputError(f"what is looked for isn't text in Unicode: {words!a}") from None
    terms = []
    for match in _WORD.finditer(words):
        is_phrase = match["phrase"] is not None
        said = match["phrase"] if is_phrase else match["word"]
        begins = not is_phrase and len(said) > 1 and said.endswith("*")
        text = _SPACES.sub(" ", fold(said[:-1] if begins else said)).strip()
        if text:
            terms.append(Term(text, is_phrase or begins, is_phrase, bool(match["minus"])))
    if all(term.excluded for term in terms):
        raise InvalidInputError(f"nothing to look for in {words!r}: give at least one word that isn't excluded by a -")
    return tuple(dict.fromkeys(terms))


# Anchors

_LOWER = bytes(range(256)).lower()

try:
    # The extra ``search``: the same as ``bytes`` do, several times as fast.
    from stringzilla import find, translate
except ImportError:

    def find(content: bytes | bytearray, part: bytes, start: int = 0) -> int:
        """Where it is, or -1."""
        return content.find(part, start)

    def translate(content: bytearray, table: bytes, *, inplace: bool) -> None:  # noqa: ARG001
        """Replace each byte."""
        content[:] = content.translate(table)


class Piece:
    """Whole lines of a rollout, as terms look at them."""

    def __init__(self, data: bytes) -> None:
        """Look at it once."""
        self.data = data
        self.lowered = bytearray(data)
        translate(self.lowered, _LOWER, inplace=True)

    @cached_property
    def is_ascii(self) -> bool:
        """Whether there is nothing but ASCII."""
        return self.data.isascii()

    def may_hold(self, escape: bytes) -> bool:
        """Whether a character, escaped in lower case, may be there."""
        return self._escapes is None or escape in self._escapes

    @cached_property
    def _escapes(self) -> set[bytes] | None:
        """The characters that are escaped; ``None`` where many are."""
        found: set[bytes] = set()
        position = find(self.lowered, _ESCAPE)
        for _ in range(_MOST_ESCAPES):
            if position < 0:
                return found
            found.add(bytes(self.lowered[position : position + len(_ESCAPE) + 4]))
            position = find(self.lowered, _ESCAPE, position + 1)
        return None


@dataclass(frozen=True)
class Anchor:
    """Bytes of which lines hold one if they may hold a term."""

    plain: bytes | None = None
    """ASCII in lower case."""
    wide: tuple[bytes, ...] = ()
    """UTF-8 that isn't ASCII."""
    escaped: tuple[bytes, ...] = ()
    """The same as an encoder writes it that keeps to ASCII, in lower case."""

    def may_be_in(self, piece: Piece) -> bool:
        """Whether these lines may hold the term."""
        return any(find(content, part) >= 0 for part, content in self._parts(piece))

    def lines(self, piece: Piece) -> Iterator[tuple[int, int]]:
        """Where the lines begin and end that may hold it, each once, in any order."""
        seen: set[int] = set()
        for part, content in self._parts(piece):
            position, end = find(content, part), 0
            while position >= 0:
                # A line may have a million places: it is looked for as a whole, and gone on behind it.
                start = content.rfind(b"\n", end, position) + 1 or end
                end = content.find(b"\n", position)
                end = len(content) if end < 0 else end
                if start not in seen:
                    seen.add(start)
                    yield start, end
                position = find(content, part, end + 1)

    def _parts(self, piece: Piece) -> Iterator[tuple[bytes, bytes | bytearray]]:
        if self.plain is not None:
            yield self.plain, piece.lowered
        if self.wide and not piece.is_ascii:
            # A single byte is looked for ten times as fast as several.
            yield from ((part, piece.data) for part in self.wide if all(byte in piece.data for byte in part))
        yield from ((part, piece.lowered) for part in self.escaped if piece.may_hold(part))


_EVERY_LINE = Anchor(b"")


def _anchor_of(text: str) -> Anchor:
    plain = max(_PLAIN.findall(text), key=len, default="")
    rest = re.sub(r"[\x00-\x7f]+", " ", text).split()
    if len(plain) >= 3 or not rest:
        return _plain_anchor(plain)
    if unicodedata.combining(rest[0][0]):
        return _EVERY_LINE  # a mark alone, which may be a part of anything
    steady = max((run for part in rest for run in _steady_runs(part)), key=len, default="")
    if steady:
        return _of_forms([steady])
    # Of a cased script: its first letter in any form. All texts of that language pass, and are read.
    return _of_forms(_forms_of(rest[0][0]))


def _plain_anchor(plain: str) -> Anchor:
    if not plain:  # nothing but quotes and the like: every line with such a character in any spelling
        return _EVERY_LINE
    others = [form for letter, forms in _ALSO.items() if letter in plain for form in forms]
    if "ss" not in plain and not plain.startswith("s") and not plain.endswith("s"):
        others = [form for form in others if form not in _ALSO["s"]]
    return replace(_of_forms(others), plain=plain.encode())


def _of_forms(forms: list[str]) -> Anchor:
    # Escaped, the first unit of the first character is enough.
    units = {form.encode("utf-16-be", "surrogatepass")[:2] for form in forms}
    escaped = tuple(_ESCAPE + unit.hex().encode() for unit in sorted(units))
    return Anchor(wide=tuple(form.encode() for form in forms), escaped=escaped)


def _steady_runs(text: str) -> Iterator[str]:
    """The parts of a text whose characters have one form only."""
    run = ""
    for character in text:
        # Marks stand in any order, and may be a part of what comes before them.
        if _forms_of(character) == [character] and not unicodedata.combining(character):
            run += character
        elif run:
            yield run
            run = ""
    if run:
        yield run


def _forms_of(character: str) -> list[str]:
    """All that folds to a character, or to a text with it, and the marks that it may be composed of."""
    forms = {character, *_sources().get(character, ())}
    for form in tuple(forms):
        marks = {mark for mark in unicodedata.normalize("NFD", form) if unicodedata.combining(mark)}
        forms.update(marks, *(_sources().get(mark, ()) for mark in marks))
        if len(parts := unicodedata.normalize("NFD", form)) > 1:
            forms.add(parts[-1])  # of Hangul the last part, which is no combining mark
    return sorted(forms)


@lru_cache(maxsize=1)
def _sources() -> dict[str, list[str]]:
    """For each character, the others that fold to a text with it."""
    sources: dict[str, list[str]] = {}
    # Up to the last character with a case, and ideographs that are others in another spelling.
    for code in chain(range(0x80, 0x1E944), range(0x2F800, 0x2FA1E)):
        character = chr(code)
        if (folded := fold(character)) != character and not 0xD800 <= code < 0xE000:
            for each in folded:
                sources.setdefault(each, []).append(character)
    return sources
