"""Threads are listed by their directory. Those of a source or provider, by the time of creation, lose their index."""

from __future__ import annotations

from alembic import op

revision = "0024_directories"
down_revision = "0023_own_work"
branch_labels = None
depends_on = None

_ORDER = (
    "archived, (coalesce(gone_at IS NULL AND "
    "(name <> '' OR first_user_message <> '' OR preview <> '' OR rollout_path = ''), false)), "
    "{time} DESC, id DESC"
)
_DRIVE = r"CASE WHEN substr(cwd, 1, 4) = '\\?\' THEN substr(cwd, 5) ELSE cwd END"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BY_CREATION = {"idx_threads_source_created_at": "source", "idx_threads_provider_created_at": "model_provider"}


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


def upgrade() -> None:
    for name in _BY_CREATION:
        op.drop_index(name, "threads")
    path = _normal_path("instr" if op.get_context().dialect.name == "sqlite" else "strpos")
    op.execute(f"CREATE INDEX idx_threads_cwd ON threads (substr({path}, 1, 500), {_ORDER.format(time='updated_at')})")


def downgrade() -> None:
    op.drop_index("idx_threads_cwd", "threads")
    for name, column in _BY_CREATION.items():
        op.execute(f"CREATE INDEX {name} ON threads ({column}, {_ORDER.format(time='created_at')})")
