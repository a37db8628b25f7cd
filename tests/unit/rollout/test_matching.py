"""What is looked for in conversations, and the bytes that may hold it."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codex_state.errors import InvalidInputError
from codex_state.rollout.matching import Piece, Term, fold, parse_terms

LETTERS = st.sampled_from('asikAKİß\u212aéÉe\u0301åÅ日本パプ한국\u1112пП й И-"\\\n/ \U0001f600')
TEXTS = st.text(LETTERS, max_size=12)


def holds(words: str, text: str) -> bool:
    (term,) = parse_terms(words)
    return term.is_in(fold(text))


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
    # What folds to ASCII is looked for as it is written, not as an escape.
    keeps_to_ascii = data is not None and folded.isascii() is False and data.draw(st.booleans())
    line = json.dumps({"message": text}, ensure_ascii=keeps_to_ascii).encode()
    if term.is_in(fold(text)) and not (keeps_to_ascii and any(each in text for each in "İß\u212a")):
        piece = Piece(line)
        assert term.anchor.may_be_in(piece)
        assert any(True for _ in term.anchor.places(piece))


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
