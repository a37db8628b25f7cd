"""What an extractor gives back, made fit to be stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256

from codex_state.errors import InvalidInputError

RAW_MEMORY_BYTES = 300_000
"""A raw memory is at most this long, in bytes of UTF-8. The original's limit."""

SUMMARY_BYTES = 1_200
"""A summary is at most this long, in bytes of UTF-8. The original's limit."""

RAW_MEMORY_CUT = "\n\n[... raw memory truncated ...]"
SUMMARY_CUT = " [...]"

_REASON_BYTES = 2_000

_NUL = "\x00"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ExtractedMemory:
    r"""What is to be remembered of one thread.

    The texts are normalised: line ends are ``\n``, white space at both ends is gone, and so is what a database can't
    store (NUL; lone surrogates become U+FFFD). The summary is one line. A text over its limit keeps its beginning, cut
    at a character, with a mark at its end that says so. Without a summary, the raw memory's beginning is the summary.

    Secrets are not looked for: an extractor whose model may repeat them removes them first.

    Raises:
        InvalidInputError: a value isn't text, or the raw memory is empty. An extractor that finds nothing worth
            remembering returns ``None`` instead.
    """

    raw_memory: str
    """The full text, Markdown by custom, at most ``RAW_MEMORY_BYTES``."""
    memory_summary: str = ""
    """One line for lists, at most ``SUMMARY_BYTES``."""

    def __post_init__(self) -> None:
        if not isinstance(self.raw_memory, str) or not isinstance(self.memory_summary, str):
            raise InvalidInputError("an extracted memory consists of two texts")
        raw = _storable(self.raw_memory).strip()
        if not raw:
            raise InvalidInputError("the raw memory is empty; an extractor that finds nothing returns None")
        summary = " ".join(_storable(self.memory_summary).split()) or " ".join(raw.split())
        object.__setattr__(self, "raw_memory", truncated(raw, RAW_MEMORY_BYTES, RAW_MEMORY_CUT))
        object.__setattr__(self, "memory_summary", truncated(summary, SUMMARY_BYTES, SUMMARY_CUT))

    @property
    def summary_hash(self) -> str:
        """The SHA-256 of the summary, in lower-case hexadecimal."""
        return sha256(self.memory_summary.encode()).hexdigest()


def truncated(text: str, limit: int, mark: str) -> str:
    """``text`` when it has at most ``limit`` bytes of UTF-8, else as much of its beginning as fits before ``mark``."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    # A character that the cut falls into goes as a whole.
    return encoded[: limit - len(mark.encode())].decode(errors="ignore").rstrip() + mark


def described(error: BaseException) -> str:
    """An error as a reason to be stored."""
    return truncated(_storable(f"{type(error).__name__}: {error}".rstrip(": ")), _REASON_BYTES, SUMMARY_CUT)


def _storable(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_NUL, "")
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
