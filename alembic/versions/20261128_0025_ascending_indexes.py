"""Indexes ascend: rows come in the order of time, and only at its right end does a database fill an index's pages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025_ascending_indexes"
down_revision = "0024_directories"
branch_labels = None
depends_on = None

_SHOWN = (
    "(coalesce(gone_at IS NULL AND "
    "(name <> '' OR first_user_message <> '' OR preview <> '' OR rollout_path = ''), false))"
)
_DRIVE = r"CASE WHEN substr(cwd, 1, 4) = '\\?\' THEN substr(cwd, 5) ELSE cwd END"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

_OPEN_FOR_CWD = "cwd_settled_for IS NULL OR cwd_settled_for <> updated_at"
_OPEN_FOR_USER = "user_settled_for IS NULL OR user_settled_for <> updated_at"
_EXTRACTABLE = "archived = 0 AND memory_mode = 'enabled' AND gone_at IS NULL"


def _normal_path(position: str) -> str:
    spelled = "cwd || '/'"
    for _ in range(4):
        spelled = f"replace(replace({spelled}, '/./', '/'), '//', '/')"
    return (
        f"CASE WHEN substr(cwd, 1, 1) = '/' AND {position}(cwd || '/', '//') + {position}(cwd || '/', '/./') = 0 "
        f"THEN cwd WHEN substr({_DRIVE}, 2, 2) = ':\\' AND {position}('{_LETTERS}', substr({_DRIVE}, 1, 1)) > 0 "
        f"THEN upper(substr({_DRIVE}, 1, 1)) || rtrim(substr({_DRIVE}, 2), '\\') "
        f"WHEN cwd = '' THEN '' ELSE coalesce(nullif(rtrim({spelled}, '/'), ''), '/') END"
    )


def _threads(path: str) -> dict[str, tuple[list[str], str | None]]:
    """The columns of each index, those that turn around with a ``*``, and its condition."""
    by_update = ["archived", _SHOWN, "updated_at*", "id*"]
    open_ones = ["archived", "updated_at*", "id*", "source", "home"]
    return {
        "idx_threads_archived": (by_update, None),
        "idx_threads_created_at": (["archived", _SHOWN, "created_at*", "id*"], None),
        "idx_threads_source": (["source", *by_update], None),
        "idx_threads_provider": (["model_provider", *by_update], None),
        "idx_threads_cwd": ([f"substr({path}, 1, 500)", *by_update], None),
        "idx_threads_open": (
            [*open_ones, "cwd_settled_for", "user_settled_for"],
            f"{_EXTRACTABLE} AND ({_OPEN_FOR_CWD} OR {_OPEN_FOR_USER})",
        ),
        "idx_threads_open_cwd": ([*open_ones, "cwd_settled_for"], f"{_EXTRACTABLE} AND ({_OPEN_FOR_CWD})"),
        "idx_threads_open_user": ([*open_ones, "user_settled_for"], f"{_EXTRACTABLE} AND ({_OPEN_FOR_USER})"),
    }


_OTHERS = {
    "logs": {"idx_logs_ts": ["ts*", "ts_nanos*", "id*"]},
    "thread_memory": {
        "idx_thread_memory_scope_last_used_at": ["scope_kind", "scope_key", "last_used_at*", "thread_id*"],
        "idx_thread_memory_scope_updated_at": ["scope_kind", "scope_key", "updated_at*", "thread_id*"],
    },
    "memory_phase1_jobs": {"idx_memory_phase1_jobs_status_started_at": ["status", "started_at*"]},
    "memory_scope_dirty": {"idx_memory_scope_dirty_dirty": ["dirty", "updated_at*"]},
    "memory_consolidation_locks": {"idx_memory_consolidation_locks_updated_at": ["updated_at*"]},
}


def _make(turned: str) -> None:
    position = "instr" if op.get_context().dialect.name == "sqlite" else "strpos"
    for name, (columns, condition) in _threads(_normal_path(position)).items():
        where = None if condition is None else sa.text(condition)
        _make_one("threads", name, columns, turned, where)
    for table, indexes in _OTHERS.items():
        for name, columns in indexes.items():
            _make_one(table, name, columns, turned, None)


def _make_one(table: str, name: str, columns: list[str], turned: str, where: sa.TextClause | None) -> None:
    op.drop_index(name, table, if_exists=True)  # one that somebody dropped is made again
    spelled = [
        column if column.isidentifier() else sa.text(column.removesuffix("*") + turned * column.endswith("*"))
        for column in columns
    ]
    op.create_index(name, table, spelled, sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    _make("")


def downgrade() -> None:
    _make(" DESC")
