"""Which row stands when both databases have one for the same key.

One rule: the later version wins where a row carries one. Where nothing tells, the target's row stays and is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from codex_state.models import BackfillStatus

Values = dict[str, Any]

SAME_MEMORIES = "same_memories"
"""What is told of a scope of the source beside its columns: whether the target has its memories, and no others."""

Rule = Callable[[Values, Values], Values | None]
"""Given the source's and the target's row, the one that shall stand; ``None`` when nothing tells."""


def _later(*version: str) -> Rule:
    def rule(source: Values, target: Values) -> Values | None:
        ours, theirs = (tuple(_number(row[name]) for name in version) for row in (source, target))
        if ours == theirs:
            return None
        return source if ours > theirs else target

    return rule


def _number(value: Any) -> int:
    # SQLite's columns can hold anything, but only numbers have an order that means something here.
    return value if isinstance(value, int) else -1


_later_thread = _later("updated_at")
# What a use of a memory counts, and that it was invalidated, doesn't move its time.
_later_memory = _later("updated_at", "used_count", "last_used_at", "invalidated_at")
# One attempt moves on from running to finished.
_later_job = _later("attempt", "finished_at", "started_at")
_later_row = _later("updated_at")


_GIVEN = {"name_at": "name", "memory_mode_chosen_at": "memory_mode"}
"""What somebody gave a thread, by the column that says when: it isn't in the rollouts and moves no other time."""


def _thread(source: Values, target: Values) -> Values | None:
    """The later rollout's row, with the name and the memory mode that were given last."""
    given: Values = {}
    for time, value in _GIVEN.items():
        ours, theirs = _number(source[time]), _number(target[time])
        if ours != theirs:
            later = source if ours > theirs else target
            given |= {time: later[time], value: later[value]}
        elif source[time] is not None and source[value] != target[value]:
            return None
    source, target = source | given, target | given
    return target if source == target else _later_thread(source, target)


def _scope(source: Values, target: Values) -> Values | None:
    """The target may have memories that the source doesn't know, so the source can't declare its scope clean."""
    if _number(source["updated_at"]) < _number(target["updated_at"]):
        return target
    if source["updated_at"] != target["updated_at"] and source[SAME_MEMORIES]:
        return source
    return source | {"dirty": max(_number(source["dirty"]), _number(target["dirty"]))}


def _lock(renewed_at: str) -> Rule:
    """A lock that somebody else took in the target since is theirs."""
    later = _later(renewed_at)

    def rule(source: Values, target: Values) -> Values | None:
        return later(source, target) if source["ownership_token"] == target["ownership_token"] else target

    return rule


def _backfill(source: Values, target: Values) -> Values | None:
    """Migrations insert a row that nobody has claimed yet, with the time of the migration."""
    placeholders = [row["status"] == BackfillStatus.PENDING and row["claimed_at"] is None for row in (source, target)]
    if placeholders[0] != placeholders[1]:
        return target if placeholders[0] else source
    return target if placeholders[0] else _later_row(source, target)


def _file(_source: Values, target: Values) -> Values | None:
    """What is known of a file can be read again from it."""
    return target | {"mtime_ns": None}


def _nothing_tells(_source: Values, _target: Values) -> Values | None:
    return None


_RULES: dict[str, Rule] = {
    "threads": _thread,
    "thread_memory": _later_memory,
    "memory_phase1_jobs": _later_job,
    "memory_scope_dirty": _scope,
    "memory_consolidation_locks": _lock("updated_at"),
    "codex_state_locks": _lock("renewed_at"),
    "backfill_state": _backfill,
    "rollout_files": _file,
}


def rule_of(table: str) -> Rule:
    """The rule of a table. Tools and log lines are written once, so nothing tells which of two is newer."""
    return _RULES.get(table, _nothing_tells)
