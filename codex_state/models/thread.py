"""Threads and the tools they were started with."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Table,
    UniqueConstraint,
    event,
    inspect,
    text,
    update,
)
from sqlalchemy.orm import Mapped, Mapper
from sqlalchemy.schema import conv
from sqlmodel import Field

from codex_state.drafts import DEFAULT_APPROVAL, DEFAULT_SANDBOX
from codex_state.models import columns
from codex_state.models.base import StateModel, table_of
from codex_state.models.comparisons import FlagColumn

if TYPE_CHECKING:
    from codex_state.models.memory import Phase1Job, ThreadMemory

LOCAL_HOME = "local"
"""The ``home`` of every row in a database that serves one Codex home, which an SQLite file always does."""

MEMORY_MODES = ("enabled", "disabled", "polluted")
"""What may be chosen for a thread. Rollouts may say anything else, which is kept; nothing is remembered then."""

EXTRACTABLE_THREADS = "archived = 0 AND memory_mode = 'enabled' AND gone_at IS NULL"
"""The threads whose memories may be extracted, as SQL."""

SHOWN_THREADS = "gone_at IS NULL AND (name <> '' OR first_user_message <> '' OR preview <> '' OR rollout_path = '')"
"""The threads that listings show, as SQL: those with something to show, and a service's own, which have no rollout."""

IS_SHOWN = f"coalesce({SHOWN_THREADS}, false)"
"""Whether a thread is shown, as SQL: an index that has it serves the shown threads and the others alike.

As a truth value, not a number: without statistics PostgreSQL takes one of two hundred threads for that of a number, and
half of them for true, so that it doesn't take every index with a filter for equally good.
"""

_OPEN_FOR = {
    "cwd": "cwd_settled_for IS NULL OR cwd_settled_for <> updated_at",
    "user": "user_settled_for IS NULL OR user_settled_for <> updated_at",
}


def open_threads(scope_kinds: Collection[str]) -> str:
    """As SQL: whether a batch claim for scopes of these kinds may find something in a thread.

    An index serves each choice of kinds: a query says it in these words, or none does.
    """
    for_one = " OR ".join(condition for kind, condition in _OPEN_FOR.items() if kind in scope_kinds)
    return f"{EXTRACTABLE_THREADS} AND ({for_one})"


# Indexes ascend, and newest first they are read backwards: rows come in the order of time, and it is only at an index's
# right end that databases fill its pages. Descending ones are nearly twice as large.
_BY_UPDATED_AT = "archived", text(f"({IS_SHOWN})"), "updated_at", "id"
_BY_CREATED_AT = "archived", text(f"({IS_SHOWN})"), "created_at", "id"

_IS_CHILD = text("parent_thread_id IS NOT NULL")


_COUNTS_OF_TOKENS = ("tokens_inherited", "tokens_input", "tokens_cached", "tokens_output", "tokens_reasoning")


def _count_of_tokens() -> Column[int]:
    return Column(columns.big_integer, nullable=False, server_default="0")


class MemoryMode(StrEnum):
    """What may be remembered of a thread. Rollouts may carry other texts; they are kept and count as not enabled."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    POLLUTED = "polluted"


def _this_second() -> datetime:
    """Now, as it will be read back."""
    return datetime.now(UTC).replace(microsecond=0)


class Thread(StateModel, table=True):
    """One agent session, as its rollout file tells it. The rollout is the truth; this row can be rebuilt from it.

    Not so the name, a chosen memory mode and the pin, which somebody gave it: those are primary data. A service may
    also store threads that have no rollout, which are primary data as a whole: an id and a source are enough for one.
    """

    __tablename__ = "threads"
    __table_args__ = (
        CheckConstraint("archived IN (0, 1)", name="archived"),
        CheckConstraint("tokens_used >= 0", name="tokens_used"),
        CheckConstraint("pinned IN (0, 1)", name="pinned"),
        CheckConstraint("updated_ns >= 0", name="updated_ns"),
        *(CheckConstraint(f"{name} >= 0", name=name) for name in ("turns", *_COUNTS_OF_TOKENS)),
        # What a page may ask for, and its order: each listing has an index that is best by any estimate.
        Index("idx_threads_archived", *_BY_UPDATED_AT),
        Index("idx_threads_created_at", *_BY_CREATED_AT),
        Index("idx_threads_source", "source", *_BY_UPDATED_AT),
        Index("idx_threads_provider", "model_provider", *_BY_UPDATED_AT),
        Index("idx_threads_parent", "parent_thread_id", sqlite_where=_IS_CHILD, postgresql_where=_IS_CHILD),
    )

    id: UUID = Field(sa_column=Column(columns.UuidText(), primary_key=True))
    """Its id. ``thread_key()`` is a column of a service's own that refers to it."""
    rollout_path: Path | None = Field(
        default=None, sa_column=Column(columns.OptionalPath(), nullable=False, default=Path())
    )
    """Where the rollout lies; ``None``, or the empty path, when it isn't known: a service's own threads have none."""
    created_at: columns.Moment = Field(
        default_factory=_this_second, sa_column=Column(columns.EpochSeconds(), nullable=False)
    )
    """When it was started; now, unless it is given. Stored in whole seconds, as every time here."""
    updated_at: columns.Moment = Field(
        default_factory=_this_second, sa_column=Column(columns.EpochSeconds(), nullable=False)
    )
    """When something last happened in it; now, unless it is given. Memories are extracted again when it is later."""
    source: str = Field(sa_column=Column(columns.text, nullable=False))
    """Who started it: ``cli``, ``vscode``, ``exec``, ``mcp``, ``unknown``, or compact JSON for sub-agents."""
    model_provider: str = Field(default="", sa_column=Column(columns.text, nullable=False))
    """Who serves its model, such as ``openai``; the empty text when it isn't known."""
    cwd: Path = Field(default=Path(), sa_column=Column(columns.PathText(), nullable=False))
    """The normalised working directory; the empty path when it isn't known."""
    title: str = Field(default="", sa_column=Column(columns.text, nullable=False))
    """What the thread is about by its rollout: the first message. ``name`` is what a user called it."""
    sandbox_policy: str = Field(default=DEFAULT_SANDBOX, sa_column=Column(columns.text, nullable=False))
    """Compact JSON, for example ``{"type":"read-only"}``."""
    approval_mode: str = Field(default=DEFAULT_APPROVAL, sa_column=Column(columns.text, nullable=False))
    """When the user is asked: ``untrusted``, ``on-failure``, ``on-request``, ``never``."""
    tokens_used: int = Field(default=0, ge=0, sa_column=Column(columns.big_integer, nullable=False, server_default="0"))
    """How many tokens its turns have taken, as its rollout counts them: a fork's count goes on from its parent's."""
    archived: bool = Field(
        default=False, sa_column=FlagColumn(columns.IntegerFlag(), nullable=False, server_default="0")
    )
    """Whether ``archived_at`` is set; every write of a repository derives it from there."""
    archived_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """Since when it is archived; ``None`` when it isn't."""
    git_sha: str | None = Field(default=None, sa_column=Column(columns.text))
    """The commit that was checked out when it was started."""
    git_branch: str | None = Field(default=None, sa_column=Column(columns.text))
    """The branch at that time."""
    git_origin_url: str | None = Field(default=None, sa_column=Column(columns.text))
    """The remote ``origin`` at that time."""
    cli_version: str = Field(default="", sa_column=Column(columns.text, nullable=False, server_default=""))
    """Which version of the client started it; the empty text when it isn't known."""
    first_user_message: str | None = Field(
        default=None, sa_column=Column(columns.OptionalText(), nullable=False, server_default="")
    )
    """What the user first asked."""
    agent_nickname: str | None = Field(default=None, sa_column=Column(columns.text))
    """What a spawned thread's agent is called among others."""
    agent_role: str | None = Field(default=None, sa_column=Column(columns.text))
    """What a spawned thread's agent is there for."""
    agent_path: str | None = Field(default=None, sa_column=Column(columns.text))
    """Where a spawned thread's agent stands in the tree of agents."""
    memory_mode: str = Field(
        default=MemoryMode.ENABLED.value,
        sa_column=Column(columns.text, nullable=False, server_default=MemoryMode.ENABLED.value),
    )
    """What may be remembered of it: a ``MemoryMode``. Any other text counts as not enabled."""
    model: str | None = Field(default=None, sa_column=Column(columns.text))
    """The model of its latest turn."""
    reasoning_effort: str | None = Field(default=None, sa_column=Column(columns.text))
    """How hard that model was asked to think."""
    home: str = Field(default=LOCAL_HOME, sa_column=Column(columns.text, nullable=False, server_default=LOCAL_HOME))
    """Which Codex home owns the rollout: only that home may judge that the file is gone."""
    name: str | None = Field(default=None, sa_column=Column(columns.text))
    """What a user called it, here or in Codex; shown in place of the title."""
    name_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When the name was given. Of two names the newer one stays."""
    original_name: str | None = Field(default=None, sa_column=Column(columns.text))
    """What the original's own database called it when that was last read: only another name there is news."""
    preview: str | None = Field(default=None, sa_column=Column(columns.text))
    """What a list can show of a thread without a first message: its goal, or a text that it took over from a parent."""
    thread_source: str | None = Field(default=None, sa_column=Column(columns.text))
    """Why it was started, as its rollout says: ``user``, ``subagent`` and others."""
    originator: str | None = Field(default=None, sa_column=Column(columns.text))
    """Which client started it."""
    parent_thread_id: UUID | None = Field(default=None, sa_column=Column(columns.UuidText()))
    """The thread that spawned this one as a sub-agent."""
    forked_from_id: UUID | None = Field(default=None, sa_column=Column(columns.UuidText()))
    """The thread whose history this one began with."""
    memory_mode_chosen_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """When somebody chose the memory mode here; ``None`` when it is the rollout's. A rebuild keeps a choice."""
    gone_at: columns.Moment | None = Field(default=None, sa_column=Column(columns.EpochSeconds()))
    """Since when its home misses the rollout. Such threads aren't listed, and their rows stay."""
    pinned: bool = Field(default=False, sa_column=FlagColumn(columns.IntegerFlag(), nullable=False, server_default="0"))
    """Whether a user pinned it."""

    updated_ns: int = Field(default=0, ge=0, sa_column=Column(columns.big_integer, nullable=False, server_default="0"))
    """The nanoseconds of ``updated_at`` within its second, which tell two versions in one second apart; 0 when they
    aren't known. Writes take them from a time that has them."""

    turns: int | None = Field(default=None, ge=0, sa_column=Column(columns.big_integer))
    """How many turns it took itself; ``None`` when nobody has counted them yet."""
    tokens_inherited: int = Field(default=0, ge=0, sa_column=_count_of_tokens())
    """How many of ``tokens_used`` were used before it began, by the thread that it was forked from."""
    tokens_input: int = Field(default=0, ge=0, sa_column=_count_of_tokens())
    """What it sent to models itself, with what was cached."""
    tokens_cached: int = Field(default=0, ge=0, sa_column=_count_of_tokens())
    """How many of these had been cached."""
    tokens_output: int = Field(default=0, ge=0, sa_column=_count_of_tokens())
    """What it had from models itself, with their reasoning."""
    tokens_reasoning: int = Field(default=0, ge=0, sa_column=_count_of_tokens())
    """How many of these were reasoning."""

    @property
    def display_name(self) -> str:
        """What people are shown of it in one line: its name, else its title, first message or preview, else nothing."""
        return self.name or self.title or self.first_user_message or self.preview or ""

    if (
        TYPE_CHECKING
    ):  # mapped by models.relations: in a class SQLAlchemy and pydantic would have their own ideas of them
        dynamic_tools: ClassVar[Mapped[list[DynamicTool]]]
        """The tools that it was started with, in their order."""
        memories: ClassVar[Mapped[list[ThreadMemory]]]
        """What was remembered of it: one for each scope."""
        jobs: ClassVar[Mapped[list[Phase1Job]]]
        """The extractions of its memory: one for each scope."""
        parent: ClassVar[Mapped[Thread | None]]
        """The thread that spawned it as a sub-agent, where that is known."""
        children: ClassVar[Mapped[list[Thread]]]
        """The sub-agents that it spawned, in the order of their start."""


def thread_key(
    *,
    ondelete: Literal["CASCADE", "RESTRICT", "SET NULL"] | None = None,
    nullable: bool = False,
    primary_key: bool = False,
    unique: bool = False,
    index: bool = True,
) -> Any:
    """A field of a service's own table that refers to a thread.

    ``thread_id: UUID = thread_key()`` has the type in which both databases store our ids, so that it joins with
    ``Thread.id``, and a foreign key to it. What the metadata's naming convention gives no name has
    ``fk_<table>_<column>_threads``, ``uq_<table>_<column>`` or ``ix_<table>_<column>``, so that Alembic can change it.

    Args:
        ondelete: what becomes of the row when its thread is deleted. By default a thread that rows refer to can't be.
        nullable: whether there are rows without a thread: ``thread_id: UUID | None = thread_key(nullable=True)``.
        primary_key: whether it is the table's key, or a part of it.
        unique: whether a thread has one row at most.
        index: whether the rows of a thread are looked up, as a foreign key does when its thread is deleted.
    """
    threads: Table = Thread.__table__  # type: ignore[attr-defined]
    column: Column[UUID] = Column(
        columns.UuidText(),
        # The column itself: its table is in other metadata than the service's, where its name means nothing.
        ForeignKey(threads.c.id, ondelete=ondelete),
        nullable=nullable,
        primary_key=primary_key,
        unique=unique or None,
        index=(index and not (primary_key or unique)) or None,
    )
    event.listen(column, "after_parent_attach", _name_unnamed, propagate=True)  # to copies of it, in other tables
    return Field(default=None, sa_column=column) if nullable else Field(sa_column=column)


_NAMES: dict[type[ForeignKeyConstraint | UniqueConstraint | Index], str] = {
    ForeignKeyConstraint: "fk_{}_{}_threads",
    UniqueConstraint: "uq_{}_{}",
    Index: "ix_{}_{}",
}


def _name_unnamed(key: Column[UUID], table: Table) -> None:
    for kind, name in _NAMES.items():
        for each in (*table.constraints, *table.indexes):
            if isinstance(each, kind) and each.name is None and each.columns.keys() == [key.key]:
                each.name = conv(name.format(table.name, key.name))  # shortened for a database that needs it


def _add_settled_columns(threads: Table) -> None:
    """Columns of the table that are no part of the entity: where batch claims have nothing to look for.

    Each names the ``updated_at`` as of which the thread's job of one scope is finished or in somebody's hands, so that
    only its job's own row can make it claimable again. Batch claims keep them up to date and walk an index of the
    other threads, one for each choice of scopes: what they cost doesn't grow with what is done. They are hints, and
    ``NULL`` is always right. A statement of a service's own that changes ``cwd`` has to clear ``cwd_settled_for``.
    """
    for name in ("cwd_settled_for", "user_settled_for"):
        threads.append_column(Column(name, columns.EpochSeconds()))
    settled_for = {"cwd": threads.c.cwd_settled_for, "user": threads.c.user_settled_for}
    for name, kinds in (("", ("cwd", "user")), ("_cwd", ("cwd",)), ("_user", ("user",))):
        where = text(open_threads(kinds))
        Index(
            f"idx_threads_open{name}",
            threads.c.archived,
            threads.c.updated_at,
            threads.c.id,
            threads.c.source,
            threads.c.home,
            *(settled_for[kind] for kind in kinds),
            sqlite_where=where,
            postgresql_where=where,
        )


_add_settled_columns(Thread.__table__)  # type: ignore[attr-defined]


@event.listens_for(Thread, "before_insert")
def _note_nanoseconds(_mapper: Mapper[Thread], _connection: Connection, thread: Thread) -> None:
    if nanoseconds := nanoseconds_of(thread.updated_at):
        thread.updated_ns = nanoseconds


@event.listens_for(Thread, "before_update")
def _open_for_its_new_version(mapper: Mapper[Thread], connection: Connection, thread: Thread) -> None:
    """Another directory is another scope, and one second may bring two versions, also where a service writes them."""
    changed = inspect(thread).attrs
    if changed.updated_at.history.has_changes() and not changed.updated_ns.history.has_changes():
        thread.updated_ns = nanoseconds_of(thread.updated_at)
    else:
        _note_nanoseconds(mapper, connection, thread)
    if changed.cwd.history.has_changes() or changed.updated_ns.history.has_changes():
        threads: Table = Thread.__table__  # type: ignore[attr-defined]
        anew = {"cwd_settled_for": None, "user_settled_for": None}
        connection.execute(update(threads).where(threads.c.id == thread.id).values(anew))


def nanoseconds_of(moment: object) -> int:
    """The nanoseconds of a time within its second; none of what is no time, which its column refuses."""
    return moment.microsecond * 1000 if isinstance(moment, datetime) else 0


_threads = table_of(Thread)
Index("idx_threads_cwd", columns.directory_key(_threads.c.cwd), _threads.c.archived, *_BY_UPDATED_AT[1:])


class DynamicTool(StateModel, table=True):
    """A tool that was defined for one thread when it started. Written once: a position never changes."""

    __tablename__ = "thread_dynamic_tools"
    __table_args__ = (Index("idx_thread_dynamic_tools_thread", "thread_id"),)

    thread_id: UUID = Field(
        sa_column=Column(columns.UuidText(), ForeignKey("threads.id", ondelete="CASCADE"), primary_key=True)
    )
    """The thread that was started with it."""
    position: int = Field(ge=0, sa_column=Column(columns.big_integer, primary_key=True, autoincrement=False))
    """Its place among the thread's tools, from 0 on."""
    name: str = Field(sa_column=Column(columns.text, nullable=False))
    """What a model calls it by."""
    description: str = Field(sa_column=Column(columns.text, nullable=False))
    """What a model is told of it."""
    input_schema: Any = Field(sa_column=Column(columns.CompactJson(), nullable=False))
    """Any JSON value; usually a JSON Schema object."""
    defer_loading: bool = Field(
        default=False, sa_column=FlagColumn(columns.IntegerFlag(), nullable=False, server_default="0")
    )
    """Whether a model is told of it only when it looks for it."""
    namespace: str | None = Field(default=None, sa_column=Column(columns.text))
    """The group that its name belongs to, if any."""

    if TYPE_CHECKING:  # mapped by models.relations
        thread: ClassVar[Mapped[Thread]]
        """The thread that it belongs to."""
