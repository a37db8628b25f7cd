"""Many jobs finished in one statement, each guarded by its own lease's token."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import bindparam, cast, literal_column, null, select, update

from codex_state.clock import server_now
from codex_state.errors import InvalidInputError
from codex_state.models import Phase1Job
from codex_state.models.columns import UuidText, text
from codex_state.repositories.base import table_of
from codex_state.repositories.phase1_claims import RUNNING, SUCCEEDED
from codex_state.sql import json_item, json_rows, unindexed

_jobs = table_of(Phase1Job)

_row = json_rows(bindparam("finished", type_=text)).table_valued("value", name="finished").c.value
_finished = select(
    cast(json_item(_row, literal_column("0")), UuidText()).label("thread_id"),
    *(
        json_item(_row, literal_column(str(index))).label(name)
        for index, name in enumerate(("scope_kind", "scope_key", "token", "raw_memory_path", "summary_hash"), start=1)
    ),
).cte("finished_jobs")
SUCCEED_MANY = (
    update(_jobs)
    .where(
        _jobs.c.thread_id == _finished.c.thread_id,
        _jobs.c.scope_kind == _finished.c.scope_kind,
        _jobs.c.scope_key == _finished.c.scope_key,
        # SQLite would otherwise look through all running jobs, for each of them through all that are finished.
        unindexed(_jobs.c.status) == RUNNING,
        _jobs.c.ownership_token == _finished.c.token,
    )
    .values(
        status=SUCCEEDED,
        finished_at=server_now(),
        failure_reason=null(),
        raw_memory_path=_finished.c.raw_memory_path,
        summary_hash=_finished.c.summary_hash,
    )
    .returning(_jobs.c.ownership_token)
)


def parameters_of(rows: Sequence[Sequence[str | None]]) -> dict[str, str]:
    """The parameters of ``SUCCEED_MANY``.

    Args:
        rows: thread, kind and key of the scope, token, path and hash of each job.

    Raises:
        InvalidInputError: a path or hash holds a NUL, which JSON functions don't pass on.
    """
    for row in rows:
        if any(value is not None and "\x00" in value for value in row):
            raise InvalidInputError(f"a NUL character in what the job of thread {row[0]} produced")
    return {"finished": json.dumps(rows, ensure_ascii=False)}
