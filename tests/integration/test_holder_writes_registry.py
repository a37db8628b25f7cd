"""The registry of holder writes is complete: a write under a lease that isn't in it fails here by itself (law L2)."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import sqlite3
import time
import typing
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import cached_property, wraps
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from rollout_files import session_meta, thread_id, user_message, write_rollout
from sqlmodel import Session

import codex_state
from codex_state import ExtractedMemory, StateRuntime, Thread, backfill, consolidate_memories, repositories, run_phase1
from codex_state.models import BackfillLease, LockLease, NamedLease, Phase1Lease, ThreadQuery
from codex_state.repositories import LeaseRepository, Repository
from codex_state.repositories.leases import LeaseT
from codex_state.rollout.format import ToolSpec
from codex_state.runtime import State
from codex_state.testing.holder_writes import HOLDER_WRITES

OWNER = UUID(int=1)
LONG_AGO = time.time() - 3600
SECOND = timedelta(seconds=1)
LEASES = (Phase1Lease, LockLease, NamedLease, BackfillLease)
REGISTERED = {write.name: write for write in HOLDER_WRITES}

UNFENCED = {
    "ThreadMemoryRepository.invalidate": "in the transaction of the job's end",
    "DynamicToolRepository.persist": "in the transaction of the checkpoint",
    "RolloutFileRepository.upsert_threads": "in the transaction of the checkpoint",
    "RolloutFileRepository.put": "in the transaction of the checkpoint, or of a renewal",
    "RolloutFileRepository.drop": "in the transaction of the checkpoint",
    "ThreadRepository.mark_gone": "in the transaction of the checkpoint",
    "Phase1JobRepository.reopen_found": "in the transaction of the checkpoint",
    "RolloutFileRepository.read_again": "in the transaction of a renewal",
    "RolloutFileRepository.move_home": "in the transaction of a renewal",
    "ThreadRepository.take_names": "in the transaction of a renewal",
    "ThreadRepository.take_original_names": "in the transaction of a renewal",
}
"""Writes that say nothing about a lease themselves but are made under one, and what fences them."""

WITHOUT_A_LEASE = {
    "ThreadRepository.upsert",
    "ThreadRepository.set_memory_mode",
    "ThreadRepository.mark_archived",
    "ThreadRepository.mark_unarchived",
}
"""Writes of live threads and of look-ups, which hold nothing."""

CLAIMS = {
    "Phase1JobRepository.try_claim",
    "Phase1JobRepository.claim_candidates",
    "ConsolidationLockRepository.try_claim",
    "BackfillRepository.try_claim",
}

OF_ANY_LEASE = {name for name in REGISTERED if name.endswith((".renew", ".begin", ".release"))}
"""The keeper and leased work make these through whichever repository a lease is of, for services' own work too."""

FOR_BATCH_WORKERS = {"Phase1JobRepository.succeed_many"}
"""Registered writes that our own pipeline, which finishes each job as its extraction ends, has no use for."""

READS = {
    "ThreadRepository.get",
    "ThreadRepository.list",
    "ThreadRepository.list_texts",
    "ThreadRepository.find_rollout_path",
    "RolloutFileRepository.get",
    "RolloutFileRepository.homes_of",
    "RolloutFileRepository.of_threads",
    "RolloutFileRepository.page",
    "RolloutFileRepository.sample",
    "RolloutFileRepository.without_threads",
    "ConsolidationLockRepository.get",
    "ThreadMemoryRepository.last_n_for_scope",
    "Phase1JobRepository.get",
    "MemoryScopeRepository.get",
    "MemoryScopeRepository.list_dirty",
    "BackfillRepository.get",
    "BackfillRepository.is_complete",
}

# What takes a lease


def _repository_classes() -> list[type[Repository]]:
    for module in pkgutil.iter_modules(repositories.__path__):
        importlib.import_module(f"{repositories.__name__}.{module.name}")
    found, waiting = [], [Repository]
    while waiting:
        waiting.extend(below := waiting.pop().__subclasses__())
        found.extend(below)
    # Not what several of them share, which belongs to no kind of lease.
    shared = {LeaseRepository, *(each for each in found if each.__name__.startswith("_"))}
    return [each for each in found if each.__module__.startswith(repositories.__name__) and each not in shared]


def _lease_of(repository: type[Repository]) -> set[type]:
    """The kind of lease that a repository keeps, where it keeps one."""
    return {lease for base in getattr(repository, "__orig_bases__", ()) for lease in _leases_in(base)}


def _leases_in(hint: object) -> set[type]:
    if hint in LEASES:
        return {typing.cast("type", hint)}
    return {lease for part in typing.get_args(hint) for lease in _leases_in(part)}


def _verbs_that_take_a_lease(repository: type[Repository]) -> dict[str, set[type]]:
    """The public methods that get a lease, or a bare token, in any parameter and however optional."""
    found = {}
    for name, method in inspect.getmembers(repository, inspect.isfunction):
        if name.startswith("_"):
            continue
        hints = typing.get_type_hints(method)
        hints.pop("return", None)
        leases = {lease for hint in hints.values() for lease in _leases_in(hint)}
        if LeaseT in hints.values():
            leases |= _lease_of(repository)
        if leases or any("token" in parameter for parameter in inspect.signature(method).parameters):
            found[f"{repository.__name__}.{name}"] = leases
    return found


def test_every_repository_method_that_takes_a_lease_is_registered() -> None:
    found = {}
    for repository in _repository_classes():
        found |= _verbs_that_take_a_lease(repository)
    assert found == {name: {write.lease} for name, write in REGISTERED.items()}


def test_no_function_beside_the_repositories_takes_a_lease() -> None:
    found = []
    for info in pkgutil.iter_modules(repositories.__path__):
        module = importlib.import_module(f"{repositories.__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                hints = typing.get_type_hints(function)
                hints.pop("return", None)
                if any(_leases_in(hint) for hint in hints.values()):
                    found.append(f"{info.name}.{name}")
    assert found == []


class _Growing(Repository):
    def touch(self, _scope: str, lock: LockLease | None = None) -> None:
        """A new verb with an optional lease."""

    def poke(self, leases: list[Phase1Lease]) -> None:
        """A new verb with many leases."""

    def prod(self, ownership_token: str) -> None:
        """A new verb that got around the lease."""

    def look(self) -> Phase1Lease | None:
        """A new verb that only gives one."""


def test_a_new_method_is_found_however_it_takes_its_lease() -> None:
    assert _verbs_that_take_a_lease(_Growing) == {
        "_Growing.touch": {LockLease},
        "_Growing.poke": {Phase1Lease},
        "_Growing.prod": set(),
    }


# What the pipeline and the backfill write

_PACKAGE = Path(codex_state.__file__).parent


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    """The modules of the pipeline and of the backfill."""
    for package in ("memory", "rollout"):
        for path in sorted((_PACKAGE / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def _sources_with_leases() -> Iterator[tuple[Path, ast.Module]]:
    """Those that have to do with leases; maintaining a live thread's row has not."""
    return ((path, tree) for path, tree in _sources() if "lease" in path.read_text().lower())


def _repositories_of_a_state() -> dict[str, str]:
    return {
        name: typing.get_type_hints(attribute.func)["return"].__name__
        for name, attribute in vars(State).items()
        if isinstance(attribute, cached_property)
    }


def test_work_under_a_lease_calls_no_verb_that_nobody_has_judged() -> None:
    """A verb that the pipeline or the backfill starts to use must be judged here first."""
    attributes = _repositories_of_a_state()
    used = {
        f"{attributes[call.func.value.attr]}.{call.func.attr}"
        for _, tree in _sources()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Attribute)
        and call.func.value.attr in attributes
    }
    judged = CLAIMS | READS | WITHOUT_A_LEASE | UNFENCED.keys()
    assert (used | OF_ANY_LEASE) - judged == REGISTERED.keys() - FOR_BATCH_WORKERS


def test_work_under_a_lease_knows_no_sql() -> None:
    """Whatever the pipeline and the backfill write goes through a repository's verb."""
    forbidden = {"execute", "exec", "exec_driver_sql", "executemany", "add", "add_all", "merge"}
    found = [
        f"{path.relative_to(_PACKAGE)}:{call.lineno}"
        for path, tree in _sources_with_leases()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in forbidden
        and "session" in ast.unparse(call.func.value)
    ]
    imported = [
        f"{path.relative_to(_PACKAGE)}:{node.lineno}"
        for path, tree in _sources_with_leases()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module
        and (
            node.module.startswith("sqlmodel")
            or (node.module.startswith("sqlalchemy") and node.module != "sqlalchemy.pool")
            or (node.module.startswith("codex_state.repositories"))
        )
    ]
    assert (found, imported) == ([], [])


class _Units:
    """Which verbs each unit of work called, and whether it was one transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.verbs: dict[Session, list[str]] = defaultdict(list)
        self.alone: set[str] = set()
        for repository in _repository_classes():
            for name, method in inspect.getmembers(repository, inspect.isfunction):
                if not name.startswith("_"):
                    monkeypatch.setattr(repository, name, self._noting(f"{repository.__name__}.{name}", method))

    def _noting(self, name: str, method: FunctionType) -> Any:
        @wraps(method)
        def noted(repository: Repository, *arguments: Any, **options: Any) -> Any:
            answer = method(repository, *arguments, **options)
            session = repository._session
            if name not in REGISTERED or answer is not REGISTERED[name].refused:
                self.verbs[session].append(name)
            if not session.connection().connection.driver_connection.in_transaction:  # type: ignore[union-attr]
                self.alone.add(name)
            return answer

        return noted

    def with_verb(self, name: str) -> list[list[str]]:
        return [verbs for verbs in self.verbs.values() if name in verbs]


def _let_everything_happen_that_a_backfill_writes(runtime: StateRuntime) -> None:
    """A thread with tools comes and is named, one moves, one goes, the home is moved, and all are read again."""
    home = runtime.codex_home
    tools = [ToolSpec(name="t", description="d", input_schema=msgspec.Raw(b"{}"))]
    write_rollout(home, 3, session_meta(3, dynamic_tools=tools), user_message("hello"), modified=LONG_AGO)
    gone = write_rollout(home, 4, modified=LONG_AGO)
    moving = write_rollout(home, 5, modified=LONG_AGO)
    index = {"id": str(thread_id(3)), "thread_name": "Mine", "updated_at": "2026-01-02T03:04:05Z"}
    (home / "session_index.jsonl").write_text(json.dumps(index) + "\n")
    with closing(sqlite3.connect(home / "state_5.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY)")
        connection.execute("CREATE TABLE threads (id TEXT PRIMARY KEY, name TEXT, updated_at INTEGER)")
        connection.execute("INSERT INTO threads VALUES (?, 'Its name', 1)", (str(thread_id(5)),))
    assert backfill(runtime, refresh=True, workers=0).upserted == 3
    gone.unlink()
    moving.rename(moving.with_name(moving.name.replace("2026-01-02", "2026-01-03")))
    with runtime.begin() as state:
        state.session.connection().exec_driver_sql(
            "UPDATE threads SET rollout_path = replace(rollout_path, ?, '/elsewhere')", (str(home),)
        )
    assert backfill(runtime, again=True, workers=0).gone == 2
    with runtime.begin() as state:
        for number in (3, 4, 5):
            state.threads.delete(thread_id(number))
    for path in home.rglob("*-0000000[345]-*.jsonl"):
        path.unlink()


def test_what_is_written_under_a_lease_without_its_token_shares_a_transaction_with_a_fenced_write(
    sqlite_runtime: StateRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L2, L5: backfills, then passes whose extractions remember, fail, and find nothing to remember any more."""
    home = sqlite_runtime.codex_home
    for number in range(3):
        write_rollout(home, number, modified=LONG_AGO)
    units = _Units(monkeypatch)
    assert backfill(sqlite_runtime, workers=0).upserted == 3
    _let_everything_happen_that_a_backfill_writes(sqlite_runtime)
    with sqlite_runtime.read() as state:
        remembered, broken, _empty = state.threads.list(ThreadQuery(limit=3)).items

    def extract(thread: Thread) -> ExtractedMemory | None:
        if thread.id == broken.id:
            raise ValueError("broken")
        return ExtractedMemory("raw") if thread == remembered else None

    first = run_phase1(sqlite_runtime, extract, owner=OWNER)
    assert (first.succeeded, first.failed, first.nothing) == (2, 2, 2)
    consolidate_memories(sqlite_runtime, lambda scope, memories: None, owner=OWNER)
    with sqlite_runtime.begin() as state:
        state.threads.upsert(Thread(**remembered.model_dump() | {"updated_at": remembered.updated_at + SECOND}))
    assert run_phase1(sqlite_runtime, extract, owner=OWNER).nothing == 2

    for name in UNFENCED:
        together = units.with_verb(name)
        assert together, f"{name} was not called"
        assert name not in units.alone
        for verbs in together:
            assert REGISTERED.keys() & set(verbs), f"{name} is not fenced by {verbs}"
