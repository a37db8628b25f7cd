"""The claim of an extraction job as SQL: one statement, for one job or for a batch.

The rules of a claim, by the state of the job:

======================================================  =============================================
no row                                                  granted
failed, without a retry time                            ``TERMINAL_FAILURE``, even for a newer source
failed, with a retry time in the future / reached       ``RETRY_LATER`` / granted
succeeded, for this source or a newer one               ``UP_TO_DATE``
succeeded, for an older source                          granted
running, renewed less than ``lease`` ago                ``RUNNING``, whatever the source
running, not renewed for ``lease`` or longer            granted: the holder is taken over
running, by a dead process of the claimer's host        granted: the same, at once
======================================================  =============================================

A grant is one statement whose guard is this table (law L1). It resets the results of earlier attempts, counts the
attempt and installs a fresh token, after which no write of an earlier holder matches any more (law L2). For a newer
source, earlier failures no longer count. The last row is for claims that were refused before: see ``owners``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, and_, bindparam, case, func, literal_column, null, or_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from codex_state.clock import server_now
from codex_state.models import Phase1Job, Phase1Status
from codex_state.models.columns import text
from codex_state.repositories import owners
from codex_state.repositories.base import seconds_of, table_of

_jobs = table_of(Phase1Job)
_insert = insert(_jobs)

RUNNING, SUCCEEDED, FAILED = (literal_column(f"'{status.value}'", text) for status in Phase1Status)

_lease_seconds = bindparam("new_lease_seconds", type_=BigInteger())

CLAIMED_COLUMNS = [
    "thread_id",
    "scope_kind",
    "scope_key",
    "status",
    "owner_session_id",
    "started_at",
    "source_updated_at",
    "ownership_token",
    "attempt",
    *owners.OWNER_COLUMNS,
]
"""The columns that a claim inserts, in order."""

RETURNED_BY_A_CLAIM = (
    _jobs.c.thread_id,
    _jobs.c.scope_kind,
    _jobs.c.scope_key,
    _jobs.c.ownership_token,
    _jobs.c.attempt,
    _jobs.c.failures,
    _jobs.c.source_updated_at,
    _jobs.c.started_at,
)


def claimable(source_updated_at: ColumnElement[Any], *, from_the_dead: bool = False) -> ColumnElement[bool]:
    """Whether an existing job may be claimed for this version of the source: the table above as SQL.

    ``from_the_dead`` is its last row alone.
    """
    if from_the_dead:
        return and_(_jobs.c.status == RUNNING, owners.is_of_the_dead(_jobs.c.owner_process))
    return or_(
        and_(_jobs.c.status == FAILED, seconds_of(_jobs.c.retry_at) <= server_now()),
        and_(_jobs.c.status == SUCCEEDED, _jobs.c.source_updated_at < source_updated_at),
        and_(
            _jobs.c.status == RUNNING,
            or_(_jobs.c.started_at.is_(None), seconds_of(_jobs.c.started_at) <= server_now() - _lease_seconds),
        ),
    )


def is_claimable(source_updated_at: ColumnElement[Any], *, from_the_dead: bool = False) -> ColumnElement[bool]:
    """``claimable`` as a plain yes or no: a comparison with NULL (no retry time) counts as no, under NOT as well."""
    claim = claimable(source_updated_at, from_the_dead=from_the_dead)
    return func.coalesce(case((claim, 1), else_=0), 0) == literal_column("1")


_taken_over = {
    "status": _insert.excluded.status,
    "owner_session_id": _insert.excluded.owner_session_id,
    "started_at": _insert.excluded.started_at,
    "finished_at": null(),
    "failure_reason": null(),
    "source_updated_at": _insert.excluded.source_updated_at,
    "raw_memory_path": null(),
    "summary_hash": null(),
    "ownership_token": _insert.excluded.ownership_token,
    "attempt": _jobs.c.attempt + 1,
    "retry_at": null(),
    "failures": case((_jobs.c.source_updated_at < _insert.excluded.source_updated_at, 0), else_=_jobs.c.failures),
    **owners.excluded_owner(_insert),
}


def claim_from(source: Select[Any], *, from_the_dead: bool = False) -> ReturningInsert[Any]:
    """The claim of every row of ``source``, a query of ``CLAIMED_COLUMNS``."""
    return (
        _insert.from_select(CLAIMED_COLUMNS, source)
        .on_conflict_do_update(
            index_elements=["thread_id", "scope_kind", "scope_key"],
            set_=_taken_over,
            where=claimable(_insert.excluded.source_updated_at, from_the_dead=from_the_dead),
        )
        .returning(*RETURNED_BY_A_CLAIM)
    )
