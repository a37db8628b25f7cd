"""Bugs planted in the SQL of the lease core, made from the statements themselves.

Every guarded statement of the repositories that leases live in is taken apart, and each part gives a mutant: a
condition that is dropped, a border that moves by one, an assignment that keeps the old value, the client's clock in
place of the database's. A new statement, or a new condition in an old one, is mutated from its first day on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, Executable, UpdateBase, event
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from codex_state.repositories import backfills, job_claims, jobs, locks, memory_scopes, thread_memories
from codex_state.repositories.job_claims import search_of

MODULES = (jobs, thread_memories, memory_scopes, locks, backfills)

NOW = "CAST(strftime('%s', 'now') AS INTEGER)"
_MANUAL_NOW = "codex_state_manual_now()"
_COLUMN = r"[a-z0-9_]+\.[a-z0-9_]+"
_GRANTED = r"CASE WHEN \(\? > 0\) THEN .*? END"
_COMPARISON = re.compile(
    rf"{_COLUMN} (?P<operator>=|!=|<=|<|>=|>) (?:NOW(?: - (?:\?|{_GRANTED}))?|\?|'[a-z]+'|[0-9]+|{_COLUMN})"
    rf"|{_COLUMN} IS NULL"
)
_AMONG = re.compile(rf"{_COLUMN} IN \([^()]*\)")
_MEMBERSHIP = re.compile(r"\? IN \(SELECT.*?\)", re.DOTALL)
_OF_THE_DEAD = re.compile(r"\+[a-z0-9_]+\.owner_process IN \(SELECT .*? AS dead\)", re.DOTALL)
_FRESH_TOKEN = "lower(hex(randomblob(16)))"
_OWN_TABLES = re.compile(
    r"\b(?:memory_phase1_jobs|memory_consolidation_locks|codex_state_locks|backfill_state|memory_scope_dirty|thread_memory)\."
)
_CORE = (
    "without [ownership_token",
    "without [status = 'running'",
    "without [? IN",
    "<] in [",
    ">] in [",
    "keeps the old attempt",
    "keeps the old ownership_token",
    "without [excluded.updated_at",
    "client's clock",
    "same token",
    "without [+owner_process IN",
)
_MOVED = {"<=": "<", "<": "<=", ">=": ">", ">": ">="}


@dataclass(frozen=True)
class Statement:
    """One statement of the lease core."""

    name: str
    is_this: Callable[[Executable, str], bool]
    """Whether an executed statement, with its text, is this one."""
    text: str
    """Its SQL, in which ``NOW`` stands for the database's clock."""
    only: re.Pattern[str] | None = None
    """Which conditions are mutated, if not all of it: the rest is made by the code of another statement."""


@dataclass(frozen=True)
class SqlMutant:
    """One bug in one statement."""

    statement: Statement
    change: str
    rewrite: Callable[[str], str]

    @property
    def name(self) -> str:
        return f"{self.statement.name} {self.change}"

    @property
    def is_core(self) -> bool:
        """Whether the bug is about who holds what since when, which every run of the tests tries."""
        return any(part in self.change for part in _CORE)

    @contextmanager
    def planted(self) -> Iterator[Callable[[], bool]]:
        """Plant the bug in every engine. Gives a function that tells whether it was ever met."""
        met = False

        def rewrite(
            _connection: Any, _cursor: Any, text: str, parameters: Any, context: Any, _many: bool
        ) -> tuple[str, Any]:
            nonlocal met
            if context is None or not self.statement.is_this(context.invoked_statement, text):
                return text, parameters
            clock = _MANUAL_NOW if _MANUAL_NOW in text else NOW
            changed = re.sub(r"\bNOW\b", lambda _: clock, self.rewrite(_marked(text)))
            met = met or changed != text
            return changed, parameters

        event.listen(Engine, "before_cursor_execute", rewrite, retval=True)
        try:
            yield lambda: met
        finally:
            event.remove(Engine, "before_cursor_execute", rewrite)


def _marked(text: str) -> str:
    return text.replace(_MANUAL_NOW, "NOW").replace(NOW, "NOW")


def statements() -> Iterator[Statement]:
    """The guarded statements of the lease core, the batch claim included."""
    for module in MODULES:
        for name, value in vars(module).items():
            if isinstance(value, UpdateBase) and name.isupper():
                yield Statement(f"{_short(module)}.{name.lower().strip('_')}", _exactly(value), _compiled(value))
    search, _ = search_of(scope_kinds=["cwd", "user"], max_age_seconds=1, sources=["cli"], home="home")
    for from_the_dead in (False, True):
        batch, _ = job_claims.statement_of(
            search,
            owner=UUID(int=1),
            max_threads=1,
            limit=None,
            exclude=UUID(int=1),
            max_running=1,
            from_the_dead=from_the_dead,
        )
        name = "job_claims.claim_from_the_dead" if from_the_dead else "job_claims.claim"
        only = _OF_THE_DEAD if from_the_dead else None
        yield Statement(name, _is_batch(from_the_dead=from_the_dead), _compiled(batch), only)


@contextmanager
def noting_statements() -> Iterator[set[str]]:
    """The names of the lease core's statements that are executed within the block."""
    executed: set[str] = set()

    def note(_connection: Any, _cursor: Any, text: str, _parameters: Any, context: Any, _many: bool) -> None:
        if context is not None:
            executed.update(each.name for each in _statements() if each.is_this(context.invoked_statement, text))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield executed
    finally:
        event.remove(Engine, "before_cursor_execute", note)


@cache
def _statements() -> tuple[Statement, ...]:
    return tuple(statements())


def _short(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _is_batch(*, from_the_dead: bool) -> Callable[[Executable, str], bool]:
    return lambda _, text: "WITH candidates" in text and (" AS dead)" in text) is from_the_dead


def _exactly(statement: Executable) -> Callable[[Executable, str], bool]:
    return lambda executed, _: executed is statement


def _compiled(statement: Any) -> str:
    return _marked(str(statement.compile(dialect=SQLiteDialect_pysqlite())))


@cache
def sql_mutants() -> tuple[SqlMutant, ...]:
    """Every mutant of every statement."""
    return tuple(mutant for statement in statements() for mutant in _mutants_of(statement))


def _mutants_of(statement: Statement) -> Iterator[SqlMutant]:
    body = statement.text.partition(" RETURNING ")[0]
    for pattern in (_COMPARISON, _MEMBERSHIP, _OF_THE_DEAD) if statement.only is None else (statement.only,):
        for fragment in dict.fromkeys(match.group() for match in pattern.finditer(body)):
            yield SqlMutant(
                statement, f"without [{_plain(fragment)}]", _substitution(pattern, fragment, f"({fragment} OR 1)")
            )
            if " OR " in body:  # elsewhere a condition that never holds leaves nothing that works
                yield SqlMutant(
                    statement,
                    f"never for [{_plain(fragment)}]",
                    _substitution(pattern, fragment, f"({fragment} AND 0)"),
                )
    if statement.only is not None:
        return
    for column in dict.fromkeys(match.group().partition("(")[0] for match in _AMONG.finditer(body)):
        yield SqlMutant(statement, f"without [{column}…]", _among_anything(column))
    for match in {match.group(): match for match in _COMPARISON.finditer(body)}.values():
        moved = _MOVED.get(match["operator"] or "")
        if moved:
            fragment = match.group()
            changed = fragment.replace(f" {match['operator']} ", f" {moved} ")
            yield SqlMutant(
                statement,
                f"with [{moved}] in [{_plain(fragment)}]",
                _substitution(_COMPARISON, fragment, changed),
            )
    for column, expression, whole in _assignments(body):
        table = _table_of(body)
        kept = f"{column} = CASE WHEN 0 THEN {expression} ELSE {table}.{column} END"
        yield SqlMutant(statement, f"keeps the old {column}", _replacement(whole, kept))
    if "NOW" in body:
        yield SqlMutant(
            statement, "asks the client's clock", lambda text: re.sub(r"\bNOW\b", lambda _: str(int(time.time())), text)
        )
    if _FRESH_TOKEN in body:
        yield SqlMutant(statement, "gives everybody the same token", _replacement(_FRESH_TOKEN, "'same'"))


def _plain(fragment: str) -> str:
    """A fragment as one short line, without the names of tables."""
    return _OWN_TABLES.sub("", " ".join(fragment.split()))


def _substitution(pattern: re.Pattern[str], fragment: str, changed: str) -> Callable[[str], str]:
    return lambda text: pattern.sub(lambda match: changed if match.group() == fragment else match.group(), text)


def _among_anything(column: str) -> Callable[[str], str]:
    def anything(match: re.Match[str]) -> str:
        return f"({match.group()} OR 1)" if match.group().startswith(column) else match.group()

    return lambda text: _AMONG.sub(anything, text)


def _replacement(fragment: str, changed: str) -> Callable[[str], str]:
    return lambda text: text.replace(fragment, changed)


def _table_of(body: str) -> str:
    found = re.search(r"(?:INSERT INTO|UPDATE) ([a-z0-9_]+)", body)
    assert found is not None
    return found.group(1)


def _assignments(body: str) -> Iterator[tuple[str, str, str]]:
    """Column, expression and whole text of each assignment to an existing row."""
    _, found, rest = body.rpartition(" SET ")
    if not found:
        return
    for part in _split(rest):
        column, _, expression = (word.strip() for word in part.partition("="))
        yield column, expression, part.strip()


def _split(assignments: str) -> Iterator[str]:
    """The assignments of a SET clause, up to its WHERE."""
    depth, start = 0, 0
    for index, character in enumerate(assignments):
        depth += (character == "(") - (character == ")")
        if depth == 0 and assignments.startswith(" WHERE ", index):
            yield assignments[start:index]
            return
        if depth == 0 and character == ",":
            yield assignments[start:index]
            start = index + 1
    yield assignments[start:]
