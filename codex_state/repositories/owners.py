"""Who claims, and the take-over from the dead: what the statements on all tables of leases share.

A claim that is refused because somebody holds the work looks who that is. If it is a process of this host that is
dead, a claim is sent once more whose one reason to grant is that the row's process is this one. That it is dead can't
change meanwhile, and the row is judged by the statement: whoever claimed in between, or took the lease along into
another process and renewed it there, keeps it (law L1). A claim that is granted, or that is refused for another reason,
is one statement as ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, bindparam, literal_column, select
from sqlalchemy.dialects.postgresql import Insert

from codex_state.models.columns import text
from codex_state.processes import processes_of
from codex_state.repositories.base import whole_seconds
from codex_state.sql import json_item, json_rows, unindexed

OWNER_COLUMNS = ("owner_name", "owner_process", "lease_seconds")
"""The columns that a claim or renewal writes beside its token and its time."""

NEW_OWNER: dict[str, ColumnElement[Any]] = {
    "owner_name": bindparam("new_owner_name", type_=text),
    "owner_process": bindparam("new_owner_process", type_=text),
    "lease_seconds": bindparam("new_lease_seconds", type_=BigInteger()),
}
"""What it writes there. Its parameters are ``owner_parameters``."""


def excluded_owner(statement: Insert) -> dict[str, ColumnElement[Any]]:
    """The same for a row that is there already."""
    return {column: statement.excluded[column] for column in OWNER_COLUMNS}


def owner_parameters(connection: Connection, lease: timedelta, known_as: str = "") -> dict[str, Any]:
    """The parameters that name this process, what it says of itself, and for how long it is granted a lease."""
    owner = processes_of(connection.dialect).this()
    return {
        "new_owner_name": owner.known_as(known_as),
        "new_owner_process": owner.process,
        "new_lease_seconds": whole_seconds(lease),
    }


def is_of_the_dead(owner_process: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a row's process is one of the parameter ``dead_processes``."""
    # SQLite would otherwise go through all rows of these processes to find the one that was asked for.
    return are_the_dead(unindexed(owner_process))


def are_the_dead(owner_process: ColumnElement[Any]) -> ColumnElement[bool]:
    """The same, to look for all their rows."""
    row = json_rows(bindparam("dead_processes", type_=text)).table_valued("value", name="dead").c.value
    return owner_process.in_(select(json_item(row, literal_column("0")).label("process")))


def dead_parameters(connection: Connection, processes: Iterable[str | None]) -> dict[str, str]:
    """The parameter that names those of these processes that are dead; empty if none is."""
    judge = processes_of(connection.dialect)
    dead = [[process] for process in processes if process is not None and judge.is_dead(process)]
    return {"dead_processes": json.dumps(dead)} if dead else {}


def host_parameters(connection: Connection) -> dict[str, str]:
    """The parameters between which the processes of this host are; empty where they can't be known."""
    host = processes_of(connection.dialect).host()
    return {} if host is None else {"from_process": f"{host}:", "to_process": f"{host};"}
