"""Judges the database's own record of a run: every change of every row must be one that the laws allow.

Each change is held against the lease model, by the database's time of that change. Nothing here trusts what a worker
says about itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from codex_state.models import SkipReason
from codex_state.processes import Owner
from codex_state.testing import lease_model as model
from tests.chaos.audit import BACKFILLS, JOBS, LOCKS, MEMORIES, SCOPES, THREADS, Record
from tests.chaos.worker import HOMES

Row = Mapping[str, Any]

_RESULTS = ("finished_at", "failure_reason", "raw_memory_path", "summary_hash", "retry_at")


@dataclass
class Replay:
    """What the record shows."""

    ended: Mapping[int, int | None] = field(default_factory=dict)
    """The ids of processes that ended. What they hold may be taken over at once after the record of this number, or,
    where it is ``None``, after the last one of theirs."""
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    granted: dict[str, int] = field(default_factory=dict)
    """The number of the record in which each token was given."""
    void: dict[str, int] = field(default_factory=dict)
    """The number of the record after which each token was good for nothing."""
    _last: dict[str, int] = field(default_factory=dict)
    written: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """What was done under each token."""

    def of(self, records: Iterable[Record]) -> Replay:
        """Go through a record."""
        rows: dict[tuple[str, tuple[Any, ...]], Row | None] = {}
        judges: dict[str, Callable[[Record], str | None]] = {
            JOBS: self._job,
            LOCKS: self._lock,
            BACKFILLS: self._backfill,
            MEMORIES: self._memory,
            SCOPES: self._scope,
            THREADS: self._thread,
        }
        records = list(records)
        for record in records:
            if record.new is not None and (process := record.new.get("owner_process")) is not None:
                self._last[process] = record.number
        for record in records:
            place = (record.table, record.key)
            if record.table != THREADS and record.old != rows.get(place):
                self._complain(record, "it starts from a row that no recorded change has left")
            rows[place] = record.new
            problem = judges[record.table](record)
            if problem is not None:
                self._complain(record, problem)
        return self

    def _complain(self, record: Record, what: str) -> None:
        self.problems.append(f"{what}: change {record.number} of {record.table} at {record.now}: {_shown(record)}")

    def _grant(self, record: Record, kind: str, *, stolen: bool) -> str | None:
        assert record.new is not None
        token = record.new["ownership_token"]
        self.counts[f"{kind} claimed"] += 1
        self.counts[f"{kind} stolen"] += stolen
        if record.old is not None and record.old["ownership_token"] is not None:
            self.void.setdefault(record.old["ownership_token"], record.number)
        if token in self.granted:
            return "a token was given twice"
        self.granted[token] = record.number
        return None

    def _dead(self, old: Row, number: int) -> Set[str]:
        """The process that held the row, if it may have been dead by this record."""
        process = old["owner_process"]
        pid = 0 if process is None else int(process.split(":")[2])
        if process is None or pid not in self.ended:
            return frozenset()
        killed = self.ended[pid]
        return {process} if number > (self._last[process] if killed is None else killed) else frozenset()

    def _done(self, record: Record, what: str, *, ends: bool = False) -> None:
        assert record.old is not None
        token = record.old["ownership_token"]
        self.written[token].add(what)
        self.counts[what] += 1
        if ends:
            self.void.setdefault(token, record.number)

    # Extraction jobs

    def _job(self, record: Record) -> str | None:
        old, new = record.old, record.new
        if new is None:
            return "a job was deleted"
        if old is None:
            if (new["status"], new["attempt"], new["failures"]) != (model.RUNNING, 1, 0):
                return "a job began otherwise than by a claim"
            return self._grant(record, "job", stolen=False)
        if new["ownership_token"] is None and old["ownership_token"] is not None:
            return self._left_behind(record, old, new)
        if new["ownership_token"] != old["ownership_token"]:
            return self._job_grant(record, old, new)
        if old["status"] != model.RUNNING:
            return "a finished job was changed by its holder"
        if new["status"] == model.RUNNING:
            self._done(record, "job renewed")
            return _only(old, new, "started_at", "begun_at")
        self._done(record, f"job {new['status']}", ends=True)
        return _only(old, new, "status", "failures", *_RESULTS)

    def _left_behind(self, record: Record, old: Row, new: Row) -> str | None:
        """Work that crashed too often is given up, and an operator may take out what was left behind."""
        if new["status"] != model.FAILED or self._refusal(record, old, new["source_updated_at"], 3600) is not None:
            return "a job was taken from its holder before its lease was over"
        self._done(record, "job left behind", ends=True)
        return _only(old, new, "status", "failures", "crashes", "ownership_token", *_RESULTS)

    def _refusal(self, record: Record, old: Row, source: int, lease: int) -> SkipReason | None:
        earlier = model.Job(
            old["status"],
            old["owner_session_id"],
            old["ownership_token"],
            old["started_at"],
            old["source_updated_at"],
            retry_at=old["retry_at"],
            by=_owner_of(old),
            lease_seconds=old["lease_seconds"],
        )
        return model.refusal_of(earlier, source, lease, record.now, self._dead(old, record.number))

    def _job_grant(self, record: Record, old: Row, new: Row) -> str | None:
        refusal = self._refusal(record, old, new["source_updated_at"], new["lease_seconds"] or 0)
        is_another = old["source_updated_at"] == new["source_updated_at"] and old.get("source_ns") != new.get(
            "source_ns"
        )
        if refusal is SkipReason.UP_TO_DATE and is_another:
            refusal = None
        if refusal is not None:
            return f"double grant: it had to be refused as {refusal}"
        if new["status"] != model.RUNNING or new["attempt"] != old["attempt"] + 1:
            return "a claim didn't count"
        if any(new[column] is not None for column in _RESULTS):
            return "a claim left results of an earlier attempt"
        return self._grant(record, "job", stolen=old["status"] == model.RUNNING)

    # Locks and scopes

    def _lock(self, record: Record) -> str | None:
        old, new = record.old, record.new
        if new is None:
            self._done(record, "lock released", ends=True)
            return None
        if old is None:
            return self._grant(record, "lock", stolen=False)
        if new["ownership_token"] == old["ownership_token"]:
            self._done(record, "lock renewed")
            return _only(old, new, "updated_at")
        lock = model.Lock(
            old["working_thread_id"], old["ownership_token"], old["updated_at"], _owner_of(old), old["lease_seconds"]
        )
        _, outcome = model.acquire_lock(
            lock,
            owner=new["working_thread_id"],
            token="",
            lease=new["lease_seconds"] or 0,
            now=record.now,
            dead=self._dead(old, record.number),
        )
        if outcome != model.GRANTED:
            return "double grant: the lock was held"
        return self._grant(record, "lock", stolen=True)

    def _scope(self, record: Record) -> str | None:
        old, new = record.old, record.new
        assert new is not None
        if new["dirty"]:
            return None if old is None or new["updated_at"] > old["updated_at"] else "a mark's time didn't increase"
        if old is None or not old["dirty"] or old["updated_at"] != new["updated_at"]:
            return "a scope became clean otherwise than by mark_clean"
        if record.fence is None:
            return "a scope was marked clean while nobody held its lock"
        self.written[record.fence].add("scope cleaned")
        self.counts["scope cleaned"] += 1
        return None

    # Memories

    def _memory(self, record: Record) -> str | None:
        old, new = record.old, record.new
        assert new is not None
        if old is not None and new["invalidated_at"] is not None:
            # By the end of a job that found nothing, in whose transaction the job isn't running any more.
            self.counts["memory invalidated"] += 1
            return _only(old, new, "invalidated_at", "invalid_reason")
        if new["raw_memory"] != record.fence:
            return f"a memory was written under {new['raw_memory']} while {record.fence} held the job"
        self.written[new["raw_memory"]].add("memory written")
        self.counts["memory written"] += 1
        if old is not None and new["updated_at"] <= old["updated_at"]:
            return "a memory's time didn't increase"
        return None

    # Backfills

    def _backfill(self, record: Record) -> str | None:
        old, new = record.old, record.new
        assert new is not None
        if old is None:
            return self._grant(record, "backfill", stolen=False)
        if new["status"] == model.RUNNING and new["ownership_token"] != old["ownership_token"]:
            return self._backfill_grant(record, old, new)
        if old["status"] != model.RUNNING:
            return "a finished backfill was changed by its holder"
        if (new["last_watermark"] or "") < (old["last_watermark"] or ""):
            return "a watermark went back"
        if new["status"] == model.RUNNING:
            moved = new["last_watermark"] != old["last_watermark"]
            self._done(record, "backfill checkpointed" if moved else "backfill renewed")
            return _only(old, new, "last_watermark", "updated_at")
        self._done(record, f"backfill {new['status']}", ends=True)
        return None

    def _backfill_grant(self, record: Record, old: Row, new: Row) -> str | None:
        running = old["status"] == model.RUNNING
        lease = new["lease_seconds"] or 0
        is_over = old["updated_at"] <= record.now - (lease and (old["lease_seconds"] or lease))
        if running and not is_over and old["owner_process"] not in self._dead(old, record.number):
            return "double grant: the backfill was held"
        return self._grant(record, "backfill", stolen=running)

    def _thread(self, record: Record) -> str | None:
        new = record.new
        if new is None:
            return "a thread was deleted"
        if new["home"] not in HOMES:
            return None  # one of those that jobs are about
        if new["title"] != record.fence:
            return f"a batch was stored under {new['title']} while {record.fence} held the backfill"
        self.written[new["title"]].add("batch stored")
        self.counts["batch stored"] += 1
        return None


def _owner_of(row: Row) -> Owner:
    return Owner(row["owner_name"], row["owner_process"])


def _only(old: Row, new: Row, *columns: str) -> str | None:
    changed = {column for column in new if new[column] != old[column]} - set(columns)
    return f"it changed {sorted(changed)} as well" if changed else None


def _shown(record: Record) -> str:
    old, new = record.old or {}, record.new or {}
    differing = [column for column in {**old, **new} if old.get(column) != new.get(column)]
    return f"{record.key} " + ", ".join(f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in differing)


def finished_twice(records: Iterable[Record]) -> list[str]:
    """Jobs that were finished more than once for the same version of their source.

    A job that failed or was left behind may be claimed for an older version again; then that one counts anew.
    """
    found = []
    finished: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    for record in records:
        if record.table != JOBS or record.new is None or record.old is None:
            continue
        source = record.new["source_updated_at"]
        if source < record.old["source_updated_at"]:
            finished[record.key] = {done for done in finished[record.key] if done < source}
        if record.new["status"] == model.SUCCEEDED != record.old["status"]:
            if source in finished[record.key]:
                found.append(f"finished twice for the source of {source}: {_shown(record)}")
            finished[record.key].add(source)
    return found
