"""What is looked for in conversations, and the bytes that may hold it."""

from __future__ import annotations

import json
import runpy
import sys
import unicodedata
from collections.abc import Iterator

import pytest
import stringzilla
from hypothesis import example, given
from hypothesis import strategies as st

from codex_state.errors import InvalidInputError
from codex_state.rollout import matching
from codex_state.rollout.matching import Piece, Term, fold, parse_terms
from codex_state.rollout.scanning import snippet

LETTERS = st.sampled_from(
    'asikAKİßΣ\u03c3ς\u212aéÉe\u0301åÅ日本パプ한국\u1112пП й И-"\\\n/ \U0001f600'
    # Marks in either order, others that fold to them, and another spelling of an ideograph.
    "\u014d\u1ecd\u0304\u0323\u0341\u0344\u0390\U0002f800\u4e3d"
)
TEXTS = st.text(LETTERS, max_size=12)


def holds(words: str, text: str) -> bool:
    (term,) = parse_terms(words)
    return term.is_in(fold(text))


@pytest.fixture(scope="module", params=["with stringzilla", "without"], autouse=True)
def _extra(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bytes are looked through by the extra where it is installed, and by Python where it isn't."""
    if request.param == "with stringzilla":
        assert matching.find is stringzilla.find
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "stringzilla", None)
        alone = runpy.run_path(matching.__file__)
        patch.setattr(matching, "find", alone["find"])
        patch.setattr(matching, "translate", alone["translate"])
        yield


@given(word=st.text(LETTERS, min_size=1, max_size=4), before=TEXTS, after=TEXTS, data=st.data())
@example(word="\u212a", before="", after="", data=None)
def test_bytes_without_an_anchor_hold_no_text_with_the_term(
    word: str, before: str, after: str, data: st.DataObject | None
) -> None:
    """However the text is composed and written: what is dropped undecoded holds nothing."""
    folded = " ".join(fold(word).split())
    if not folded:
        return
    term = Term(folded)
    form = "NFC" if data is None else data.draw(st.sampled_from(["NFC", "NFD"]))
    text = unicodedata.normalize(form, before + word + after) if data is None or data.draw(st.booleans()) else before
    keeps_to_ascii = data is not None and data.draw(st.booleans())
    line = json.dumps({"message": text}, ensure_ascii=keeps_to_ascii).encode()
    if term.is_in(fold(text)):
        piece = Piece(line)
        assert term.anchor.may_be_in(piece)
        assert list(term.anchor.lines(piece)) == [(0, len(line))]


@given(lines=st.lists(st.text("abé\\", max_size=6), max_size=5), word=st.sampled_from(["a", "ab", "é", "\\", "éa"]))
def test_each_line_that_may_hold_a_term_is_given_once(lines: list[str], word: str) -> None:
    data = "\n".join(lines).encode()
    (term,) = parse_terms(word)
    ends = [len("\n".join(lines[: place + 1]).encode()) for place in range(len(lines))]
    starts = [0, *(end + 1 for end in ends)]
    may_hold = {
        (start, end) for start, end in zip(starts, ends, strict=False) if term.anchor.may_be_in(Piece(data[start:end]))
    }
    given_lines = list(term.anchor.lines(Piece(data)))
    assert len(given_lines) == len(set(given_lines))
    assert {each for each in given_lines if each[0] < each[1]} == {each for each in may_hold if each[0] < each[1]}


def test_a_line_full_of_a_word_is_looked_at_once() -> None:
    """As often as it holds the word, it would take many minutes."""
    (term,) = parse_terms("x")
    assert list(term.anchor.lines(Piece(b"x" * 30_000_000 + b"\nx"))) == [(0, 30_000_000), (30_000_001, 30_000_002)]


@given(before=st.text("aß İe\u0301\u1112\u1161é", max_size=30), word=st.sampled_from(["needle", "ßab"]))
def test_a_snippet_shows_what_was_found_whatever_its_text_folds_to(before: str, word: str) -> None:
    text = before * 400 + word + " and more"
    assert word in snippet(text, [Term(fold(word))]) or fold(word) in fold(before * 400)


def test_a_snippet_of_a_long_text_is_found_in_its_length() -> None:
    """Not in its square: that would take hours."""
    assert snippet("ß " + "a " * 2_000_000 + "needle", parse_terms("needle")).endswith("a needle")


@pytest.mark.parametrize("words", ["\udcff", "a \ud800", 5, None])
def test_what_is_no_text_is_refused(words: str) -> None:
    with pytest.raises(InvalidInputError, match="isn't text"):
        parse_terms(words)


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        ("lease", "All LEASES end", True),
        ("lease*", "the leased lock", True),
        ("lease*", "a release", False),
        ('"one update"', "in one\n  UPDATE, guarded", True),
        ('"one update"', "none update", False),
        ('"one update"', "one updated", False),
        ("STRASSE", "die Straße", True),
        ("straße", "DIE STRASSE", True),
        ("istanbul", "İstanbul", True),
        ("café", "un cafe\u0301", True),
        ("cafe\u0301", "un CAFÉ", True),
        ("cafe", "un café", False),
        ("日本", "これは日本語です", True),
        ('"update"', "日本update語", True),
        ("привет", "ПРИВЕТ, мир", True),
        ("\u03bfδός", "ΟΔ\u03bfΣ, οδό\u03c2", True),
        ("οδος", "text ΟΔΟΣ more", True),
        ("λόγο\u03c3", "λόγος", True),
        ("c++", "C++ and C", True),
        ("a.b", "axb", False),
    ],
)
def test_words_are_found_by_the_rules_of_a_search(words: str, text: str, found: bool) -> None:
    assert holds(words, text) is found


def test_words_phrases_beginnings_and_exclusions_are_told_apart() -> None:
    assert parse_terms('Lease "One  update" gra* -draft -"not yet" lease') == (
        Term("lease"),
        Term("one update", begins_word=True, ends_word=True),
        Term("gra", begins_word=True),
        Term("draft", excluded=True),
        Term("not yet", begins_word=True, ends_word=True, excluded=True),
    )


@pytest.mark.parametrize("words", ["", "  ", '""', "-draft"])
def test_a_search_for_nothing_is_refused(words: str) -> None:
    with pytest.raises(InvalidInputError, match="nothing to look for"):
        parse_terms(words)
