"""Threads know how many turns and which tokens are their own."""

from __future__ import annotations

from alembic import op

revision = "0023_own_work"
down_revision = "0022_readers"
branch_labels = None
depends_on = None

_TOKENS = ("tokens_inherited", "tokens_input", "tokens_cached", "tokens_output", "tokens_reasoning")


def upgrade() -> None:
    integer = "INTEGER" if op.get_context().dialect.name == "sqlite" else "BIGINT"
    # As text: for checks of its own, Alembic would rebuild the table on SQLite. Both databases add them without
    # writing a row. No number of turns says that a row's rollout has yet to be read for them.
    op.execute(f"ALTER TABLE threads ADD COLUMN turns {integer} CONSTRAINT ck_threads_turns CHECK (turns >= 0)")
    for name in _TOKENS:
        op.execute(
            f"ALTER TABLE threads ADD COLUMN {name} {integer} DEFAULT '0' NOT NULL "
            f"CONSTRAINT ck_threads_{name} CHECK ({name} >= 0)"
        )


def downgrade() -> None:
    for name in reversed(_TOKENS):
        op.drop_column("threads", name)
    op.drop_column("threads", "turns")
