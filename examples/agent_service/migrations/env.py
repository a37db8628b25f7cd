"""Where the service's revisions run: in the state's own database, after the state's own."""

from __future__ import annotations

import warnings

from agent_service.tables import Message
from alembic import context
from sqlalchemy.exc import SAWarning

from codex_state import StateRuntime
from codex_state.migrations import except_codex_state, render_item

# Alembic reads the indexes of all tables, and says of some of the state's that it can't.
warnings.filterwarnings("ignore", "Skipped unsupported reflection", SAWarning)

with StateRuntime.open() as runtime, runtime.engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Message.metadata,
        include_name=except_codex_state,
        render_item=render_item,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
