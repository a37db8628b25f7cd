"""What is seen to at every step of a migration, whoever runs it: this package or the ``alembic`` command.

A revision may say two things of itself, beside what Alembic asks of it:

``LOSES``
    What its downgrade loses and nothing can rebuild: the condition in SQL under which a row has something to lose, by
    ``table.column`` or ``table``. Such a downgrade has to be asked for by name.

``COMPATIBLE = True``
    The version of the package that spoke the revision before can go on working: what is new has defaults and may be
    missing. A table says so to versions that don't know this revision. Those that it doesn't admit stop with
    ``SchemaTooNewError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationInfo, RevisionStep

from codex_state.database.state_files import READERS_TABLE
from codex_state.errors import DataLossError
from codex_state.migrations.revision import where

Steps = Callable[[Any, MigrationContext], Iterable[Any]]

_FIRST_WITH_READERS = "0022_readers"

_READERS = sa.table(READERS_TABLE, sa.column("revision", sa.Text()), sa.column("oldest", sa.Text()))


def without_loss(steps: Steps, *, accept_loss: bool) -> Steps:
    """The same steps, refused as a whole before the first of them when they lose what can't be rebuilt.

    Raises (when called):
        DataLossError: they do, and it isn't accepted.
    """

    def checked(current: Any, context: MigrationContext) -> Iterable[Any]:
        found = list(steps(current, context))
        if not accept_loss and not context.as_sql and context.connection is not None:
            _refuse_losses(context.connection, found)
        return found

    return checked


def note_readers(*, ctx: MigrationContext, step: MigrationInfo, **_: Any) -> None:
    """Note which version is the oldest that can use the schema. Called after each step."""
    if step.is_stamp or not step.destination_revisions:
        return
    now: Any = step.destination_revisions[0]  # our history has no branches
    if now.revision >= _FIRST_WITH_READERS:
        ctx.execute(_READERS.delete())
        ctx.execute(_READERS.insert().values(revision=now.revision, oldest=_oldest_reader(step, now).revision))


def _oldest_reader(step: MigrationInfo, revision: Any) -> Any:
    while getattr(revision.module, "COMPATIBLE", False):
        revision = step.revision_map.get_revision(revision.down_revision)
    return revision


def _refuse_losses(connection: sa.Connection, steps: Iterable[Any]) -> None:
    losses = {}
    for step in steps:
        if not isinstance(step, RevisionStep) or step.is_upgrade:
            continue
        for what, condition in getattr(step.revision.module, "LOSES", {}).items():
            table = what.partition(".")[0]
            count = connection.execute(sa.text(f"SELECT count(*) FROM {table} WHERE {condition}")).scalar_one()  # noqa: S608
            if count:
                losses[what] = int(count)
    if losses:
        told = ", ".join(f"{what} of {count:,} row{'s' * (count != 1)}" for what, count in losses.items())
        raise DataLossError(
            f"{where(connection)} would lose what nothing rebuilds: {told}; back up first (`codex-state backup FILE`) "
            "and say --accept-loss (to alembic: -x accept-loss=yes). Nothing was changed",
            losses,
        )
