"""The four views of one engine, and what both databases' engines share."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from sqlalchemy import Connection, Engine, ExceptionContext, event

from codex_state.database_errors import (
    ConnectionLostError,
    DatabaseError,
    SchemaChangedError,
    UnknownCommitOutcomeError,
    classify,
    classify_connecting,
    sqlstate_of,
)
from codex_state.errors import InvalidInputError, StateError

_COMMITS = frozenset({"do_commit", "do_commit_twophase"})
"""The methods by which an SQLAlchemy dialect commits."""

_ROLLED_BACK = frozenset({"25P03", "25P04"})
"""What a server says when it ended a session for its transaction's being idle, or lasting, for too long."""


class Views(NamedTuple):
    """One engine with one pool, by the mode of the transactions that are begun on it."""

    own: Engine
    """For a service's own sessions."""
    writer: Engine
    autocommit: Engine
    reader: Engine


def translate_errors(engine: Engine) -> None:
    """Make every driver error of ``engine`` surface as a ``StateError`` (law L8).

    Call it for a service's own engine, too.
    """

    @event.listens_for(engine, "handle_error")
    def _translate(context: ExceptionContext) -> StateError | None:
        url = engine.url
        if context.connection is None:
            # There was none to be lost: the server refused it, or there is no server.
            return classify_connecting(context.original_exception, url)
        error = classify(context.original_exception, url)
        if isinstance(error, SchemaChangedError):
            # Its connection, and those beside it, would go on refusing what they have prepared.
            context.is_disconnect = True
        elif isinstance(error, ConnectionLostError):
            # Whatever the driver thinks of it: nobody uses this connection again.
            context.is_disconnect = True
            if sqlstate_of(context.original_exception) not in _ROLLED_BACK:
                if _is_commit(context):
                    error = UnknownCommitOutcomeError(
                        "the connection broke during the commit; the unit of work may or may not have been kept "
                        f"({error})",
                        orig=context.original_exception,
                    )
                elif _commits_by_itself(context):
                    error = UnknownCommitOutcomeError(
                        f"{error} (the statement may or may not have been kept)", orig=context.original_exception
                    )
        if isinstance(error, DatabaseError):
            error.statement, error.params = context.statement, context.parameters
            error.connection_invalidated = context.is_disconnect
        return error


def _is_commit(context: ExceptionContext) -> bool:
    # Seen in the error itself, so that no statement and no commit pays for it: begin, commit and rollback alike come
    # without a statement, but only a commit went through the dialect's method of that name.
    frames = traceback.walk_tb(context.original_exception.__traceback__)
    return context.statement is None and any(frame.f_code.co_name in _COMMITS for frame, _line in frames)


def _commits_by_itself(context: ExceptionContext) -> bool:
    connection = context.connection
    if connection is None or connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        return False
    return not (context.statement or "").lstrip().upper().startswith("SELECT")


def refuse_savepoint(_connection: Connection, _name: str) -> None:
    """A listener of the autocommit view."""
    # On SQLite it would begin a transaction that isn't a writer's, whatever is written in it (L6).
    raise InvalidInputError("in autocommit there is no transaction to go back in; use begin()")
