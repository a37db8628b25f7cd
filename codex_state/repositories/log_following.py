"""Following log lines, each shown once, also those of a transaction that ends after later ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from codex_state.models import LogEntry, LogQuery
from codex_state.repositories.logs import LogRepository

WINDOW = 100_000
"""So many ids before the newest are looked at again on PostgreSQL, at most (law L10). A line is missed only when its
transaction is open while more than that many lines are written."""


class LogFollower:
    """Lines that match, as they become visible.

    SQLite has one writer at a time, so ids become visible in their order. PostgreSQL gives a line its id before its
    transaction commits: ids below the newest may still come. They are looked for until every transaction that could
    have such an id has ended.
    """

    def __init__(self, query: LogQuery) -> None:
        """Follow what ``query`` asks for. Its ``limit``, ``after_id`` and ``descending`` don't count."""
        self._query = replace(query, limit=None, after_id=None, descending=False)
        self._settled = self._last = 0
        """No line comes any more with an id up to the first; all that are visible up to the second are told."""
        self._told: set[int] = set()
        """Ids above ``_settled``."""
        self._marks: deque[tuple[int, int]] = deque()
        """An id, after the first transaction's number that wasn't given when it had long been told."""

    def begin(self, logs: LogRepository) -> None:
        """Take the lines that are visible now for told."""
        self._last = self._settled = logs.max_id()
        if logs.open_transactions() is not None:
            self._settled = max(0, self._last - WINDOW)
            self._told = set(logs.ids(self._query, after=self._settled, up_to=self._last))

    def read(self, logs: LogRepository, limit: int) -> list[LogEntry]:
        """The lines that became visible since the last time, in one snapshot: late ones, then up to ``limit`` others.

        When it raises, nothing counts as told, and it can be called again.
        """
        late, before = self._late(logs), self._last
        new = logs.query(replace(self._query, after_id=before, limit=limit))
        last = (new[-1].id or before) if len(new) == limit else max(logs.max_id(), before)
        open_transactions = logs.open_transactions()
        # From here on nothing can fail.
        self._last = last
        if open_transactions is None:
            self._settled = last
            return list(new)
        oldest, next_one = open_transactions
        # One look late: a transaction is given its number a moment after its first line's id.
        if before > (self._marks[-1][1] if self._marks else self._settled):
            self._marks.append((next_one, before))
        while self._marks and (self._marks[0][0] <= oldest or self._marks[0][1] < last - WINDOW):
            self._settled = self._marks.popleft()[1]
        self._settled = max(self._settled, last - WINDOW)
        found = [*late, *new]
        self._told.update(entry.id for entry in found if entry.id is not None)
        self._told = {each for each in self._told if each > self._settled}
        return found

    def _late(self, logs: LogRepository) -> Sequence[LogEntry]:
        if self._settled == self._last:
            return ()
        missing = deque(
            each for each in logs.ids(self._query, after=self._settled, up_to=self._last) if each not in self._told
        )
        late: list[LogEntry] = []
        while missing:
            page = logs.query(replace(self._query, after_id=missing[0] - 1, limit=min(len(missing), 1000)))
            if not page:
                break
            wanted = set(missing)
            late += [entry for entry in page if entry.id in wanted]
            while missing and missing[0] <= (page[-1].id or 0):
                missing.popleft()
        return late
