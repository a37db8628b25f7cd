"""Which turns and tokens of a rollout are its thread's own: what a fork took over was counted where it was done.

A rollout's token counts are running totals, and a fork's go on from its parent's. Older forks begin with a copy of the
parent's lines, later ones only say what they go on from. So what is the thread's own is the last total less the one
that its history came with: the last among the copied lines, or what the first count had before it.

A turn was copied when its id is of an earlier time than the thread's. Versions before 0.102 gave turns no ids: there
the copied lines are those that were written in one go with the head, as nobody asks anything within a second of it.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from codex_state.drafts import ThreadDraft
from codex_state.rollout.format import SessionMeta, TokenUsage, TokenUsageInfo, canonical_uuid, parse_timestamp

_IN_ONE_GO_SECONDS = 1
_NOTHING = TokenUsage(total_tokens=0)
_usage = msgspec.json.Decoder(TokenUsage).decode


class OwnWork:
    """Counts the turns and tokens of one rollout as its lines come."""

    __slots__ = (
        "_copied",
        "_copied_until",
        "_goes_on",
        "_is_whole",
        "_turns_have_lines",
        "_usage",
        "inherited",
        "turns",
    )

    def __init__(self, row: ThreadDraft) -> None:
        """Begin, or go on from a row that has been counted so far."""
        self.turns = row.turns or 0
        """How many turns the thread itself took so far."""
        self.inherited = _NOTHING
        """The token usage that its history came with."""
        self._usage: TokenUsageInfo | None = None
        self._is_whole = not row.id
        self._copied: bool | None = None if self._is_whole else False
        """Whether the lines are a copy of another thread's; ``None`` until that is known."""
        self._copied_until = ""
        self._goes_on = row.tokens_used > 0
        """Whether the totals go on from what isn't in these lines."""
        self._turns_have_lines = self.turns > 0

    def begins(self, meta: SessionMeta) -> None:
        """The rollout is of this thread."""
        base = meta.history_base
        if base is not None:
            self._copied = False
            self._goes_on = canonical_uuid(base.thread_id) != meta.id

    def copies(self, timestamp: str) -> None:
        """There is another thread's head."""
        if self._copied is not False:
            self._copied, self._copied_until = True, timestamp

    def turn_started(self, turn_id: str | None, thread: ThreadDraft, timestamp: str) -> None:
        """A turn began, in versions that say so."""
        self._turns_have_lines = True
        if self._copied is not False:
            started = None if turn_id is None else _milliseconds(turn_id)
            if started is None:
                if self._copied and self._is_copied_at(timestamp):
                    return
            elif started < (_milliseconds(thread.id) or thread.created_at * 1000):
                self._copied = True
                return
            self._is_own_from_here()
        self.turns += 1

    def asked(self, timestamp: str) -> None:
        """The user asked something, which is a turn in versions that don't say when one begins."""
        if self._turns_have_lines or (self._copied and self._is_copied_at(timestamp)):
            return
        self._is_own_from_here()
        self.turns += 1

    def counted(self, usage: TokenUsageInfo, row: ThreadDraft, timestamp: str) -> None:
        """So many tokens were used so far."""
        if self._goes_on and self._usage is None:
            self.inherited = _before(usage, row)
        elif self._copied and not self._turns_have_lines:
            self._is_copied_at(timestamp)
        self._usage = usage

    def finish(self, draft: ThreadDraft) -> None:
        """Write what was counted to the thread's row."""
        if self.turns or self._is_whole:
            draft.turns = self.turns
        if self._usage is None:
            return
        usage = self._usage.total_token_usage
        if self._copied:
            self.inherited = usage
        draft.tokens_used = max(0, usage.total_tokens)
        draft.tokens_inherited = min(max(0, self.inherited.total_tokens), draft.tokens_used)
        draft.tokens_input = max(0, usage.input_tokens - self.inherited.input_tokens)
        draft.tokens_cached = max(0, usage.cached_input_tokens - self.inherited.cached_input_tokens)
        draft.tokens_output = max(0, usage.output_tokens - self.inherited.output_tokens)
        draft.tokens_reasoning = max(0, usage.reasoning_output_tokens - self.inherited.reasoning_output_tokens)

    def _is_own_from_here(self) -> None:
        if self._copied and self._usage is not None:
            self.inherited = self._usage.total_token_usage
        self._copied = False

    def _is_copied_at(self, timestamp: str) -> bool:
        now, until = parse_timestamp(timestamp), parse_timestamp(self._copied_until)
        if now is not None and until is not None and now - until > _IN_ONE_GO_SECONDS:
            return False
        self._copied_until = timestamp
        return True


def add_earlier(draft: ThreadDraft, earlier: ThreadDraft, inherited: TokenUsage) -> None:
    """Give a thread's last file what an earlier one of the same thread counted.

    Args:
        draft: the row by the thread's last file, whose totals go on from the earlier one's.
        earlier: the row by the earlier one.
        inherited: what that one's history came with.
    """
    draft.turns = (draft.turns or 0) + (earlier.turns or 0)
    if not draft.tokens_used:
        for name in _TOKENS:
            setattr(draft, name, getattr(earlier, name))
        return
    draft.tokens_inherited = min(draft.tokens_used, draft.tokens_inherited + max(0, inherited.total_tokens))
    draft.tokens_input = max(0, draft.tokens_input - inherited.input_tokens)
    draft.tokens_cached = max(0, draft.tokens_cached - inherited.cached_input_tokens)
    draft.tokens_output = max(0, draft.tokens_output - inherited.output_tokens)
    draft.tokens_reasoning = max(0, draft.tokens_reasoning - inherited.reasoning_output_tokens)


_TOKENS = ("tokens_used", "tokens_inherited", "tokens_input", "tokens_cached", "tokens_output", "tokens_reasoning")


def _before(counted: TokenUsageInfo, row: ThreadDraft) -> TokenUsage:
    """What was used before the response that this count came with, but for what the row has as its own."""
    total = counted.total_token_usage
    try:
        last = _usage(counted.last_token_usage) if isinstance(counted.last_token_usage, msgspec.Raw) else _NOTHING
    except ValueError:
        last = _NOTHING
    if last.input_tokens + last.output_tokens <= 0:
        last = _NOTHING  # no response: an estimate of what is left after the history was shortened
    return TokenUsage(
        total_tokens=row.tokens_inherited if row.tokens_used else total.total_tokens - last.total_tokens,
        input_tokens=total.input_tokens - last.input_tokens - row.tokens_input,
        cached_input_tokens=total.cached_input_tokens - last.cached_input_tokens - row.tokens_cached,
        output_tokens=total.output_tokens - last.output_tokens - row.tokens_output,
        reasoning_output_tokens=total.reasoning_output_tokens - last.reasoning_output_tokens - row.tokens_reasoning,
    )


def _milliseconds(identifier: str) -> int | None:
    """When an id was made, in milliseconds since 1970; ``None`` for one that doesn't say."""
    try:
        made = UUID(identifier)
    except ValueError:
        return None
    return made.int >> 80 if made.version == 7 else None
