"""Why a pass claimed nothing: what there is in this home, and what stands in the way."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from codex_state.cli.output import counted

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from codex_state.memory import Phase1Options
    from codex_state.runtime import StateRuntime


def why_nothing(runtime: StateRuntime, options: Phase1Options) -> str:
    """The reasons as one line. A reading of its own, after the pass: nothing is decided by it."""
    from sqlalchemy import case, func, literal, or_, select, text

    from codex_state.database.sql import normal_path, server_now
    from codex_state.models import (
        EXTRACTABLE_THREADS,
        LOCAL_HOME,
        SCOPE_CWD,
        SCOPE_USER,
        Phase1Job,
        Phase1Status,
        Thread,
    )
    from codex_state.models.base import table_of
    from codex_state.repositories.base import seconds_of
    from codex_state.repositories.job_claims import is_job_of, key_of

    jobs, threads = table_of(Phase1Job), table_of(Thread)
    interesting = (
        text(EXTRACTABLE_THREADS),
        threads.c.source.in_(list(options.sources)),
        threads.c.home.in_([runtime.home, LOCAL_HOME]),
    )
    too_old: ColumnElement[bool] = seconds_of(threads.c.updated_at) < server_now() - literal(
        options.max_age // timedelta(seconds=1)
    )
    of_thread = or_(
        *(is_job_of(threads.c.id, kind, key_of(kind, normal_path(threads.c.cwd))) for kind in (SCOPE_CWD, SCOPE_USER))
    )
    obstacle = case(
        (jobs.c.status == Phase1Status.RUNNING, "held by others"),
        (jobs.c.status == Phase1Status.SUCCEEDED, "extracted already"),
        (jobs.c.retry_at.is_(None), "failed for good (codex-state jobs requeue)"),
        else_="waiting for a retry",
    )
    ages: Any = select(too_old.label("too_old"), func.count()).where(*interesting).group_by("too_old")
    # A label, because PostgreSQL wouldn't see that two expressions with parameters are the same.
    obstacles: Any = (
        select(obstacle.label("obstacle"), func.count().label("count"))
        .select_from(threads.join(jobs, of_thread))
        .where(*interesting, ~too_old)
        .group_by("obstacle")
        .order_by(func.count().desc(), "obstacle")
    )
    with runtime.read() as state:
        connection = state.session.connection()
        old = sum(count for is_old, count in connection.execute(ages) if is_old)
        reasons = [f"{counted(count, 'job')} {obstacle}" for obstacle, count in connection.execute(obstacles)]
    if old:
        reasons.append(f"{counted(old, 'thread')} older than {counted(options.max_age.days, 'day')} (--max-age)")
    return ", ".join(reasons) or "this home has no interactive thread that isn't archived and has memory enabled"
