"""The inventory of rollout files, and the rows of threads that come from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec.structs import fields
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    and_,
    bindparam,
    case,
    delete,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.types import TypeEngine

from codex_state.database.execute import atomically, by_index, execute
from codex_state.database.sql import among
from codex_state.drafts import ThreadDraft
from codex_state.models import LOCAL_HOME, FileRow, RolloutFile, RolloutFileState, Thread
from codex_state.models.base import table_of
from codex_state.models.columns import UuidText, big_integer, stored_type, text
from codex_state.repositories.base import Repository, given_rows, parameters_of, seconds_of
from codex_state.repositories.memory_scopes import MemoryScopeRepository

_threads = table_of(Thread)
_files = table_of(RolloutFile)

ROLLOUT_COLUMNS = tuple(field.name for field in fields(ThreadDraft))
"""The columns of ``threads`` that rollouts decide. An upsert from rollouts touches no other that a caller can set."""


def still_settled(new: Any) -> dict[str, ColumnElement[Any]]:
    """What an upsert leaves of the hints that a thread is settled: see ``job_hints``.

    Another directory is another scope, and of two versions within one second their times don't tell.
    """
    is_new = and_(_threads.c.updated_at == new.updated_at, _threads.c.updated_ns != new.updated_ns)
    return {
        "cwd_settled_for": case((or_(_threads.c.cwd != new.cwd, is_new), null()), else_=_threads.c.cwd_settled_for),
        "user_settled_for": case((is_new, null()), else_=_threads.c.user_settled_for),
    }


def _from_rollouts(type_of: Callable[[TypeEngine[Any]], TypeEngine[Any]]) -> Insert:
    """Insert a thread, or replace of its row what its rollout decides."""
    written = (*ROLLOUT_COLUMNS, "home")
    statement = insert(_threads).values(
        {name: bindparam(name, type_=type_of(_threads.c[name].type)) for name in written}
    )
    row, new = _threads.c, statement.excluded
    said_at = bindparam("memory_mode_said_at", type_=BigInteger())
    is_chosen = and_(
        row.memory_mode_chosen_at.is_not(None), or_(said_at.is_(None), said_at <= row.memory_mode_chosen_at)
    )
    has_newer_name = or_(new.name_at.is_(None), row.name_at > new.name_at)
    rules: dict[str, ColumnElement[Any]] = {
        # A rollout tells where its repository stood at first; a row may know better.
        **{name: func.coalesce(row[name], new[name]) for name in ("git_sha", "git_branch", "git_origin_url")},
        # Of two names the newer one stays, wherever it was given.
        "name": case((has_newer_name, row.name), else_=new.name),
        "name_at": case((has_newer_name, row.name_at), else_=new.name_at),
        # What somebody chose here stays until the rollout says something later.
        "memory_mode": case((is_chosen, row.memory_mode), else_=new.memory_mode),
        "memory_mode_chosen_at": case((is_chosen, row.memory_mode_chosen_at), else_=null()),
        # When it was archived is known only if that was done here; else the time of its last write stands for it.
        "archived_at": case(
            (new.archived == literal_column("0"), null()),
            (row.archived_at != row.updated_at, row.archived_at),
            else_=new.archived_at,
        ),
        # Another directory is another scope, which nobody has settled.
        **still_settled(new),
        "gone_at": null(),
    }
    return statement.on_conflict_do_update(
        index_elements=["id"],
        set_={name: new[name] for name in written if name != "id"} | rules,
        # A thread that was seen in two homes belongs to the one whose rollout was written last, and is there.
        where=or_(row.home == new.home, row.updated_at <= new.updated_at, row.gone_at.is_not(None)),
    )


_UPSERT_DRAFTS = _from_rollouts(stored_type)
UPSERT_FROM_ROLLOUTS = _from_rollouts(lambda kind: kind)
"""The same for threads as entities hold them."""


def _stored(column: Any) -> ColumnElement[Any]:
    return type_coerce(column, stored_type(column.type)).label(column.key)


_OF_HOME = _files.c.home == bindparam("of_home", type_=text)
_rows = select(*(_stored(_files.c[name]) for name in FileRow._fields))
_PAGE = (
    _rows.where(_OF_HOME, _files.c.path > bindparam("after", type_=text))
    .order_by(_files.c.path)
    .limit(bindparam("row_limit", type_=big_integer))
)
_given_ids = select(given_rows(thread_id=UuidText()).c.thread_id)
# By the threads' index: all files of a home are more than theirs, which PostgreSQL can't know of a home that is new.
_OF_THREADS = _rows.where(func.coalesce(_OF_HOME, false()), among(_files.c.thread_id, _given_ids))
_AT = _rows.where(_OF_HOME, _files.c.path == bindparam("of_path", type_=text))
_insert_file = insert(_files).values(
    {column.key: bindparam(column.key, type_=stored_type(column.type)) for column in _files.columns}
)
_PUT = _insert_file.on_conflict_do_update(
    index_elements=["home", "path"],
    set_={
        column.key: _insert_file.excluded[column.key] for column in _files.columns if column.key not in ("home", "path")
    },
)
_DROP = delete(_files).where(_OF_HOME, _files.c.path == bindparam("of_path", type_=text))
_FORGET = update(_files).where(_OF_HOME).values(mtime_ns=null()).returning(_files.c.path)
_FORGET_FAILED = _FORGET.where(_files.c.state == literal_column(f"'{RolloutFileState.FAILED.value}'", text))
_is_indexed = _files.c.state == literal_column(f"'{RolloutFileState.INDEXED.value}'", text)
_FORGET_UNCOUNTED = _FORGET.where(
    _is_indexed,
    _files.c.thread_id.in_(
        select(_threads.c.id).where(_threads.c.turns.is_(None), _threads.c.home == bindparam("of_home", type_=text))
    ),
)
# The row was lost, or another home has it, which lost its file or whose file was written earlier than this one.
_WITHOUT_THREADS = (
    select(_files.c.path)
    .select_from(_files.outerjoin(_threads, _threads.c.id == _files.c.thread_id))
    .where(
        _OF_HOME,
        _is_indexed,
        _files.c.thread_id.is_not(None),
        or_(
            _threads.c.id.is_(None),
            and_(
                _threads.c.home != _files.c.home,
                or_(
                    _threads.c.gone_at.is_not(None),
                    seconds_of(_threads.c.updated_at) < _files.c.mtime_ns.op("/")(literal_column("1000000000")),
                ),
            ),
        ),
    )
)
_WITH_SEVERAL = (
    select(_stored(_files.c.thread_id))
    .where(
        _OF_HOME,
        _files.c.thread_id.is_not(None),
        _files.c.state != literal_column(f"'{RolloutFileState.GONE.value}'", text),
    )
    .group_by(_files.c.thread_id)
    .having(func.count() > literal_column("1"))
    .order_by(_files.c.thread_id)
)
_stored_path = type_coerce(_threads.c.rollout_path, text)
_SAMPLE = (
    select(_files.c.path, _stored(_threads.c.rollout_path))
    .join(_threads, _threads.c.id == _files.c.thread_id)
    .where(
        _OF_HOME,
        _is_indexed,
        _threads.c.home == _files.c.home,
        # Not where a file was moved within the home, which is for the next refresh.
        func.substr(_stored_path, func.length(_stored_path) - func.length(_files.c.path))
        == literal_column("'/'").concat(_files.c.path),
    )
    .order_by(_files.c.path)
    .limit(literal_column("1"))
)
_old_root = bindparam("old_root", type_=text)
_MOVE_HOME = (
    update(_threads)
    .where(
        _threads.c.home == bindparam("of_home", type_=text),
        func.substr(_stored_path, literal_column("1"), func.length(_old_root)) == _old_root,
    )
    .values(
        rollout_path=type_coerce(
            bindparam("new_root", type_=text).concat(func.substr(_stored_path, func.length(_old_root) + 1)),
            _threads.c.rollout_path.type,
        )
    )
    .returning(_threads.c.id)
)
_HOMES = select(_threads.c.id, _threads.c.home).where(among(_threads.c.id, _given_ids))


class RolloutFileRepository(Repository):
    """The inventory of a home's files (``rollout_files``), and what it makes of the ``threads`` table."""

    def page(self, home: str = LOCAL_HOME, *, after: str = "", limit: int = 5000) -> Iterator[FileRow]:
        """The next files of a home in the order of their paths. Read at once, and each made when it is asked for."""
        parameters = {"of_home": home, "after": after, "row_limit": limit}
        return map(FileRow._make, execute(self._connection, _PAGE, parameters, tuple))

    def get(self, path: str, home: str = LOCAL_HOME) -> FileRow | None:
        """What is known of one file."""
        row = self._one(_AT, {"of_home": home, "of_path": path})
        return None if row is None else FileRow(*row)

    def of_threads(self, thread_ids: Collection[str], home: str = LOCAL_HOME) -> dict[str, list[FileRow]]:
        """The files of each of these threads, for a few hundred at once. Ids are texts, as they are stored."""
        found: dict[str, list[FileRow]] = {}
        if thread_ids:
            parameters = parameters_of((thread_id,) for thread_id in thread_ids) | {"of_home": home}
            connection = self._connection
            # PostgreSQL takes a table for small that was nearly empty when it was last analysed.
            with by_index(connection):
                rows = execute(connection, _OF_THREADS, parameters, FileRow._make)
            for row in rows:
                found.setdefault(row.thread_id or "", []).append(row)
        return found

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what is known of files, by all columns of the table in their stored form."""
        self._many(_PUT, rows)

    def drop(self, paths: Collection[str], home: str = LOCAL_HOME) -> None:
        """Forget files that aren't there any more and whose threads have others."""
        self._many(_DROP, [{"of_home": home, "of_path": path} for path in paths])

    def read_again(self, home: str = LOCAL_HOME, *, failed: bool = False) -> int:
        """Have the next refresh read files though they look unchanged: all, or those that failed.

        Returns:
            How many.
        """
        return len(self._all(_FORGET_FAILED if failed else _FORGET, {"of_home": home}))

    def count_again(self, home: str = LOCAL_HOME) -> int:
        """Have the next refresh read the files of threads whose turns and tokens by kind nobody has counted.

        These were indexed by versions that didn't. ``ThreadStatistics.uncounted`` tells whether there are any.

        Returns:
            How many.
        """
        return len(self._all(_FORGET_UNCOUNTED, {"of_home": home}))

    def without_threads(self, home: str = LOCAL_HOME) -> Sequence[str]:
        """Indexed files whose thread has no row, or another home's by a file that is gone or was written earlier."""
        return [row.path for row in self._all(_WITHOUT_THREADS, {"of_home": home})]

    def with_several(self, home: str = LOCAL_HOME) -> Sequence[str]:
        """The threads that have more than one file, as ids are stored."""
        return [row.thread_id for row in self._all(_WITH_SEVERAL, {"of_home": home})]

    def sample(self, home: str = LOCAL_HOME) -> tuple[str, str] | None:
        """One indexed file, and where its thread's row says that it lies, in some home."""
        row = self._one(_SAMPLE, {"of_home": home})
        return None if row is None else (row.path, row.rollout_path)

    def move_home(self, old_root: str, new_root: str, home: str = LOCAL_HOME) -> int:
        """Have the rows of a home that was moved or copied say where their files lie now. Returns how many changed."""
        return len(self._all(_MOVE_HOME, {"of_home": home, "old_root": old_root, "new_root": new_root}))

    def upsert_threads(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what rollouts say of threads, keeping everything else that their rows hold: all or none.

        A row has the fields of ``ThreadDraft``, ``home``, and ``memory_mode_said_at``: when the rollout said so. A row
        of another home stays as it is when its rollout was written later than this one: the thread has moved there.
        """
        with atomically(self._connection):
            scopes = MemoryScopeRepository(self._session)
            scopes.mark_dirty_of_changed((row["id"], row["memory_mode"]) for row in rows)
            self._many(_UPSERT_DRAFTS, rows)

    def homes_of(self, thread_ids: Collection[UUID]) -> dict[UUID, str]:
        """Which home the row of each of these threads belongs to."""
        if not thread_ids:
            return {}
        return {row.id: row.home for row in self._all(_HOMES, parameters_of((each,) for each in thread_ids))}
