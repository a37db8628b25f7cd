"""SQL is made of constants and the schema's names: no value of anybody's is in the text of a statement.

Every statement is recorded at the drivers, below everything of ours and of SQLAlchemy, while all that stores or looks
for something is called with values that would do harm in SQL, and that can be recognised.
"""

from __future__ import annotations

import inspect
import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import psycopg
import psycopg.sql
import pytest

from codex_state import (
    Anchor,
    Claimed,
    LogEntry,
    LogQuery,
    MemoryScope,
    Phase1Key,
    SortKey,
    State,
    StateRuntime,
    StateSettings,
    ThreadQuery,
    backfill,
    repositories,
)
from codex_state.database.sqlite import StateCursor
from codex_state.doctor import check_state, salvage
from codex_state.models import JobQuery, Lease, Product, StatisticsQuery
from codex_state.repositories import HomeRepository, LogFollower
from codex_state.testing.samples import a_log_line, a_thread, a_tool
from codex_state.transfer import back_up_file, copy_state

MARK = "q7zk"
HOSTILE = f"{MARK}'; DROP TABLE threads; --\" %s %(x)s :name $1 ? \\ \u202e\n`{{}}[]"
NUMBER = 1_234_567_891
MOMENT = datetime.fromtimestamp(NUMBER, UTC)
DURATION = timedelta(seconds=7_654_321)
PATH = Path("/", HOSTILE.replace("/", ""))
SCOPE = MemoryScope.cwd(PATH)


class Recorder:
    """The texts of all statements that were executed."""

    def __init__(self) -> None:
        self.texts: set[str] = set()

    def note(self, statement: Any) -> None:
        if isinstance(statement, psycopg.sql.Composable):
            statement = statement.as_string(None)
        self.texts.add(statement if isinstance(statement, str) else bytes(statement).decode())


@contextmanager
def recorded() -> Iterator[Recorder]:
    """What is executed within the block, by whichever driver and connection."""
    recorder = Recorder()

    def noting(method: Any) -> Any:
        @wraps(method)
        def noted(self: Any, statement: Any, *arguments: Any, **options: Any) -> Any:
            recorder.note(statement)
            return method(self, statement, *arguments, **options)

        return noted

    class Plain(sqlite3.Connection):
        execute = noting(sqlite3.Connection.execute)
        executemany = noting(sqlite3.Connection.executemany)
        executescript = noting(sqlite3.Connection.executescript)

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return plain_connect(*arguments, **{"factory": Plain} | options)

    plain_connect = sqlite3.connect
    with ExitStack() as patches:
        for cursor, names in (
            (StateCursor, ("execute", "executemany")),
            (psycopg.Cursor, ("execute", "executemany", "copy")),
        ):
            for name in names:
                patches.enter_context(patch.object(cursor, name, noting(getattr(cursor, name))))
        patches.enter_context(patch("sqlite3.connect", connect))
        yield recorder


def verbs() -> dict[str, Any]:
    """Every public method of every repository."""
    kinds = [getattr(repositories, name) for name in repositories.__all__ if name.endswith("Repository")]
    return {
        f"{kind.__name__}.{name}": (kind, name)
        for kind in kinds
        if kind not in (repositories.Repository, repositories.LeaseRepository)
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


@contextmanager
def called() -> Iterator[set[str]]:
    """Which of them are called within the block."""
    seen: set[str] = set()

    def telling(label: str, method: Any) -> Any:
        @wraps(method)
        def told(self: Any, *arguments: Any, **options: Any) -> Any:
            seen.add(label)
            return method(self, *arguments, **options)

        return told

    with ExitStack() as patches:
        for label, (kind, name) in verbs().items():
            patches.enter_context(patch.object(kind, name, telling(label, getattr(kind, name))))
        yield seen


def lease_of(outcome: object) -> Any:
    assert isinstance(outcome, Claimed), outcome
    return outcome.lease


def use(state: State, home: str) -> None:
    """Call every verb of every repository with hostile values."""
    threads, thread = state.threads, hostile_thread(home)
    threads.upsert(thread)
    threads.upsert_many([hostile_thread(home), hostile_thread(home)])
    threads.upsert_from_rollouts([hostile_thread(home)])
    threads.insert_if_absent(hostile_thread(home))
    assert threads.set_name(thread.id, HOSTILE)
    assert threads.set_memory_mode(thread.id, "enabled")
    threads.take_names([(thread.id, HOSTILE + "2", NUMBER)])
    threads.take_original_names([(thread.id, HOSTILE + "3", NUMBER)])
    threads.mark_archived(thread.id, PATH, MOMENT, updated_at=MOMENT, home=home)
    threads.mark_unarchived(thread.id, PATH, updated_at=MOMENT, home=home)
    for key in SortKey:
        query = ThreadQuery(
            sort_key=key, sources=(HOSTILE, "a"), providers=(HOSTILE, "b"), home=home, anchor=Anchor(MOMENT, uuid4())
        )
        threads.list(query)
        threads.list_ids(query)
        threads.list_texts(query)
        threads.count_unshown(query)
        threads.count(query)
    threads.list(
        ThreadQuery(
            sources=("subagent", HOSTILE), since=MOMENT, until=MOMENT, cwd=PATH, branch=HOSTILE, repository=HOSTILE,
            model=HOSTILE, name=HOSTILE, text=HOSTILE, children=False,
        )
    )  # fmt: skip
    threads.ids_between(thread.id, thread.id, limit=NUMBER)
    threads.shortest_beginnings([thread.id])
    threads.count_by_home(Path(HOSTILE))
    threads.statistics(StatisticsQuery(providers=(HOSTILE,), limit=NUMBER))
    state.work.jobs(JobQuery(reason=HOSTILE, holder=HOSTILE, scope_key=HOSTILE, limit=NUMBER))
    state.work.holdings(limit=NUMBER)
    state.work.overview(sources=(HOSTILE,))
    found = threads.get(thread.id)
    assert found is not None
    assert (found.name, found.cwd, found.title) == (HOSTILE + "2" if found.name != HOSTILE else HOSTILE, PATH, HOSTILE)
    threads.find_rollout_path(thread.id, archived=False)

    state.dynamic_tools.persist([a_tool(thread, name=HOSTILE, description=HOSTILE, input_schema={HOSTILE: HOSTILE})])
    assert state.dynamic_tools.get(thread.id)

    files = state.rollout_files
    row = {
        "home": home, "path": HOSTILE, "thread_id": str(thread.id), "size": NUMBER, "mtime_ns": NUMBER,
        "state": "failed", "error": HOSTILE, "parse_errors": 0, "unknown_lines": 0,
    }  # fmt: skip
    files.put([row])
    assert files.get(HOSTILE, home) is not None
    files.homes_of([thread.id])
    files.of_threads([str(thread.id)], home)
    assert [*files.page(home, after="", limit=NUMBER)]
    files.sample(home)
    files.without_threads(home)
    files.read_again(home, failed=True)
    files.move_home(HOSTILE, HOSTILE + "2", home)
    files.drop([HOSTILE], home)
    files.count_again(home)
    HomeRepository(state.session).has_unnamed(home, PATH)
    HomeRepository(state.session).name(home, PATH)

    lines = [a_log_line(HOSTILE, level=HOSTILE, target=HOSTILE, ts=NUMBER, module_path=HOSTILE, file=HOSTILE)]
    state.logs.insert_many(lines)
    state.logs.insert(LogEntry(ts=NUMBER, ts_nanos=0, level="INFO", target=HOSTILE, thread_id=HOSTILE))
    for wanted in (
        LogQuery(level=HOSTILE, from_ts=NUMBER, to_ts=NUMBER, module_like=(HOSTILE, "x"), file_like=(HOSTILE,)),
        LogQuery(thread_ids=(HOSTILE, "x"), include_threadless=True, search=HOSTILE, after_id=NUMBER),
    ):
        state.logs.query(wanted)
        state.logs.max_id(wanted)
        state.logs.ids(wanted, after=0, up_to=NUMBER)
    assert [line.message for line in state.logs.query(LogQuery(search=HOSTILE))] == [HOSTILE]
    LogFollower(LogQuery(search=HOSTILE)).read(state.logs, NUMBER)
    state.logs.stats()
    state.logs.open_transactions()

    memories = state.thread_memories
    memories.upsert(thread.id, HOSTILE, HOSTILE)
    memories.upsert_for_scope(thread.id, SCOPE, HOSTILE, HOSTILE)
    assert memories.get(thread.id)
    assert memories.last_n_for_cwd(PATH, NUMBER)
    assert memories.last_n_for_scope(SCOPE, NUMBER)
    memories.record_use(thread.id, SCOPE)
    state.memory_scopes.mark_dirty(SCOPE)
    state.memory_scopes.mark_dirty_of(thread.id)
    state.memory_scopes.mark_dirty_of_changed([(str(thread.id), "disabled")])
    state.memory_scopes.list_dirty(limit=NUMBER)

    jobs, owner = state.phase1_jobs, uuid4()
    for finish in ("succeed", "fail", "release", "succeed_many"):
        other = hostile_thread(home)
        threads.upsert(other)
        key = Phase1Key(other.id, SCOPE)
        lease = lease_of(jobs.try_claim(key, owner=owner, source_updated_at=MOMENT, lease=DURATION))
        assert jobs.begin(lease)
        assert jobs.renew(lease)
        assert memories.upsert_if_owner(lease, HOSTILE, HOSTILE)
        assert {
            "succeed": lambda held: jobs.succeed(held, raw_memory_path=PATH, summary_hash=HOSTILE),
            "fail": lambda held: jobs.fail(held, HOSTILE, retry_after=DURATION),
            "release": lambda held: jobs.release(held, HOSTILE),
            "succeed_many": lambda held: jobs.succeed_many({held: Product(PATH, HOSTILE)})[held],
        }[finish](lease)
        jobs.requeue(key, lease=DURATION)
        jobs.get(key)
        jobs.reopen_found([str(other.id)])
    jobs.claim_candidates(owner=owner, lease=DURATION, sources=(HOSTILE,), home=home)
    jobs.list(limit=NUMBER)
    jobs.count_by_status()
    memories.invalidate(thread.id, SCOPE, HOSTILE)

    lock = lease_of(state.consolidation_locks.try_claim(PATH, owner=owner, lease=DURATION))
    state.memory_scopes.mark_clean(SCOPE, seen=state.memory_scopes.mark_dirty(SCOPE), lock=lock)
    state.memory_scopes.get(SCOPE)
    state.consolidation_locks.get(PATH)
    finish_any(state.consolidation_locks, lock)
    finish_any(state.named_locks, lease_of(state.named_locks.try_claim(HOSTILE, owner=HOSTILE, lease=DURATION)))
    state.named_locks.get(HOSTILE)
    backfills, of_home = state.backfill, HOSTILE + "home"
    held = lease_of(backfills.try_claim(of_home, owner=HOSTILE, lease=DURATION))
    assert backfills.checkpoint(held, HOSTILE)
    finish_any(backfills, held)
    held = backfills.take_over(of_home, owner=HOSTILE, lease=DURATION, from_the_start=True)
    assert backfills.complete(held, HOSTILE)
    backfills.get(of_home)
    backfills.is_complete(of_home)

    threads.mark_gone([thread.id], home)
    threads.delete_gone([thread.id], home)
    threads.delete(thread.id)
    state.logs.delete_before(NUMBER - 1)
    state.logs.retain(max_age=timedelta(days=365_000), max_rows=NUMBER, max_bytes=NUMBER)


def finish_any(leases: Any, lease: Lease[Any]) -> None:
    assert leases.list()
    assert leases.begin(lease)
    assert leases.renew(lease)
    assert leases.release(lease, HOSTILE)


def hostile_thread(home: str) -> Any:
    texts = ("title", "first_user_message", "source", "model_provider", "approval_mode", "git_branch", "git_sha")
    more = ("agent_nickname", "agent_role", "model", "preview", "originator", "cli_version", "git_origin_url")
    values: dict[str, Any] = dict.fromkeys([*texts, *more], HOSTILE)
    return a_thread(
        **values, home=home, cwd=PATH, rollout_path=PATH, created_at=MOMENT, updated_at=MOMENT, tokens_used=NUMBER,
        sandbox_policy=json.dumps({HOSTILE: NUMBER}),
    )  # fmt: skip


def hostile_home(directory: Path) -> Path:
    """A home with a rollout whose every text is hostile, and whose name and place are as well."""
    home = directory / f"home {MARK}'\";--%s"
    folder = home / "sessions" / "2026" / "02" / f"{MARK}'; --"
    folder.mkdir(parents=True)
    thread = uuid4()
    meta = {"id": str(thread), "timestamp": "2026-02-10T12:00:00Z", "cwd": str(PATH), "originator": HOSTILE}
    meta |= {"cli_version": HOSTILE, "source": HOSTILE, "model_provider": HOSTILE, "agent_nickname": HOSTILE}
    meta["dynamic_tools"] = [{"name": HOSTILE, "description": HOSTILE, "inputSchema": {HOSTILE: HOSTILE}}]  # type: ignore[assignment]
    lines: list[tuple[str, object]] = [("session_meta", meta)]
    lines += [("event_msg", {"type": "user_message", "message": HOSTILE})]
    stamp = meta["timestamp"]
    text = "".join(json.dumps({"timestamp": stamp, "type": kind, "payload": said}) + "\n" for kind, said in lines)
    (folder / f"rollout-2026-02-10T12-00-00-{thread}.jsonl").write_text(text)
    (folder / f"rollout-{MARK}'; --.jsonl").write_text("broken")
    names = {"id": str(thread), "thread_name": HOSTILE, "updated_at": "2026-02-10T12:00:00Z"}
    (home / "session_index.jsonl").write_text(json.dumps(names) + "\n")
    return home


def suspicious(texts: set[str]) -> list[str]:
    """The statements that hold something of a value: a text, a number, a duration, an id."""
    return [
        text
        for text in texts
        if MARK in text.lower()
        or str(NUMBER) in text
        or str(int(DURATION.total_seconds())) in text
        or any(_is_id(word) for word in text.replace("'", " ").split())
    ]


def _is_id(word: str) -> bool:
    try:
        UUID(word)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_no_value_is_ever_in_the_text_of_a_statement(
    dialect: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    home = hostile_home(tmp_path)
    url = request.getfixturevalue("postgres_url") if dialect == "postgresql" else None
    settings = StateSettings(codex_home=home, database_url=url, home=HOSTILE, log_max_age=None)
    with recorded() as recorder, called() as seen:
        with StateRuntime.open(settings) as runtime:
            report = backfill(runtime)
            assert (report.upserted, report.failed) == (1, 1)
            runtime.run(lambda state: use(state, HOSTILE))
            list(check_state(runtime))
            target = StateSettings(codex_home=home, database_url=f"sqlite:///{tmp_path / MARK}.sqlite", home=HOSTILE)
            with StateRuntime.open(target) as copied:
                assert copy_state(runtime, copied).complete
        if dialect == "sqlite":
            back_up_file(settings.database_path, tmp_path / f"{MARK} backup'.sqlite")
            assert salvage(settings.database_path).rows["logs"] == 2
    assert len(recorder.texts) > 150, "they are recorded"
    assert suspicious(recorder.texts) == []
    assert sorted(verbs().keys() - seen) == [], "call the new verb in `use`"


def test_a_value_in_the_text_of_a_statement_is_noticed(tmp_path: Path) -> None:
    settings = StateSettings(codex_home=tmp_path)
    with recorded() as recorder, StateRuntime.open(settings) as runtime, runtime.read() as state:
        for value in (f"'{MARK}'", f"{NUMBER}", f"'{uuid4()}'", "1"):
            state.session.connection().exec_driver_sql(f"SELECT {value}")
    assert len(suspicious(recorder.texts)) == 3
