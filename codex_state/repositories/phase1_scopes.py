"""The jobs that a thread may have, as SQL: one for each scope."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, literal_column

from codex_state.models import SCOPE_CWD, SCOPE_USER, Phase1Job
from codex_state.models.columns import text
from codex_state.repositories.base import table_of
from codex_state.sql import byte_length

_jobs = table_of(Phase1Job)
_MAX_KEY_BYTES = 2000


def key_of(kind: str, cwd: ColumnElement[Any]) -> ColumnElement[Any]:
    """The key of a thread's scope of one kind, where ``cwd`` is its directory's normal spelling: ``normal_path``."""
    return cwd if kind == SCOPE_CWD else literal_column(f"'{SCOPE_USER}'", text)


def has_scope(kind: str, cwd: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a thread has a scope of one kind."""
    if kind != SCOPE_CWD:
        return literal_column("1") == literal_column("1")
    # A directory that isn't known has no scope, nor has one whose path PostgreSQL couldn't hold in a key.
    return and_(cwd != literal_column("''", text), byte_length(cwd) <= literal_column(str(_MAX_KEY_BYTES)))


def is_job_of(thread_id: ColumnElement[Any], kind: str, key: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a job is the thread's for this scope."""
    return and_(
        _jobs.c.thread_id == thread_id,
        _jobs.c.scope_kind == literal_column(f"'{kind}'", text),
        _jobs.c.scope_key == key,
    )
