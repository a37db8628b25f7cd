"""Every revision, up and down, with rows in the tables."""

from __future__ import annotations

import re
from itertools import pairwise, product
from typing import Any

import pytest
import quick_schema
from alembic.script import ScriptDirectory
from migrations.described import Schema, describe
from migrations.rows import (
    FIRST,
    SAMPLES,
    SECOND,
    SESSION,
    Rows,
    in_common,
    insert,
    insert_samples,
    read,
    read_all,
    update,
)

from codex_state import migrations
from codex_state.database import Database
from codex_state.errors import DatabaseError, DataLossError, SchemaError
from codex_state.migrations.environment import configuration
from codex_state.models import IS_SHOWN, open_threads

SCRIPTS = ScriptDirectory.from_config(configuration())
REVISIONS = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]
STEPS = list(pairwise(REVISIONS))

NAMES = ("name", "process")
THREAD_OF_DEFAULTS = (
    "INSERT INTO threads (id, rollout_path, created_at, updated_at, source, model_provider, cwd, title, "
    "sandbox_policy, approval_mode) "
    f"VALUES ('{FIRST}', 'a', 1, 1, 'cli', 'openai', '/', 't', '{{}}', 'never')"
)


def loses(revision: str) -> dict[str, str]:
    said: dict[str, str] = getattr(SCRIPTS.get_revision(revision).module, "LOSES", {})
    return said


def contents(database: Database) -> Rows:
    with database.engine.connect() as connection:
        return read_all(connection)


def schema(database: Database) -> Schema:
    with database.engine.connect() as connection:
        return describe(connection)


def row_of(database: Database, table: str, **key: Any) -> dict[str, Any]:
    with database.engine.connect() as connection:
        (row,) = [row for row in read(connection, table) if key.items() <= row.items()]
        return row


def at(database: Database, revision: str) -> None:
    with quick_schema.written_at_once():  # what is tested begins there
        migrations.upgrade(database.engine, revision)
    with database.engine.begin() as connection:
        insert_samples(connection)


def counts(rows: Rows, other: Rows) -> dict[str, int]:
    return {table: len(rows[table]) for table in rows.keys() & other.keys()}


def changed(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        update(connection, statement)


def test_the_history_is_one_line_that_ends_at_the_head_we_name() -> None:
    assert SCRIPTS.get_heads() == [migrations.HEAD]
    assert SCRIPTS.get_bases() == ["0001_baseline"]
    assert not [script for script in SCRIPTS.walk_revisions() if script.is_branch_point or script.is_merge_point]


def test_revisions_are_numbered_in_their_order_and_fit_the_version_table() -> None:
    assert [int(revision[:4]) for revision in REVISIONS] == list(range(1, len(REVISIONS) + 1))
    assert max(map(len, REVISIONS)) <= 32


@pytest.mark.parametrize(("before", "after"), STEPS, ids=[after for _, after in STEPS])
def test_rows_survive_each_revision_up_and_down_and_the_schema_comes_back(
    database: Database, before: str, after: str
) -> None:
    at(database, before)
    rows, tables = contents(database), schema(database)

    assert migrations.upgrade(database.engine, after) == migrations.Migrated(before, after)
    upgraded = contents(database)
    assert counts(rows, upgraded) == counts(upgraded, rows)
    assert in_common(upgraded, rows) == in_common(rows, upgraded)

    assert migrations.downgrade(database.engine, before, accept_loss=True) == migrations.Migrated(after, before)
    assert in_common(contents(database), upgraded) == in_common(rows, upgraded)
    assert schema(database) == tables


@pytest.mark.parametrize(("before", "after"), STEPS, ids=[after for _, after in STEPS])
def test_rows_written_at_a_revision_survive_its_downgrade(database: Database, before: str, after: str) -> None:
    at(database, after)
    rows = contents(database)
    migrations.downgrade(database.engine, before, accept_loss=True)
    older = contents(database)
    assert counts(older, rows) == counts(rows, older)
    assert in_common(older, rows) == in_common(rows, older)


CHEAP = {
    # What rollouts say, or the next look at the home: it is read again.
    *(f"threads.{name}" for name in ("agent_nickname", "agent_role", "agent_path", "model", "reasoning_effort")),
    *(f"threads.{name}" for name in ("preview", "thread_source", "originator", "parent_thread_id", "forked_from_id")),
    *(f"threads.{name}" for name in ("gone_at", "updated_ns")),
    *(f"threads.{name}" for name in ("turns", "tokens_inherited", "tokens_input", "tokens_cached")),
    *(f"threads.{name}" for name in ("tokens_output", "tokens_reasoning")),
    *(f"thread_dynamic_tools.{name}" for name in ("defer_loading", "namespace")),
    "rollout_files",
    # What goes with a name, which is named.
    "threads.name_at",
    # Who holds a lease, for people and for taking over at once; its token and its time stay.
    *(f"{table}.owner_{what}" for table in ("memory_phase1_jobs", "memory_consolidation_locks") for what in NAMES),
    *(
        f"backfill_state.{name}"
        for name in ("ownership_token", "owner", "claimed_at", "owner_process", "lease_seconds")
    ),
    "backfill_state.home",
    "memory_phase1_jobs.begun_at",
    "memory_phase1_jobs.source_ns",
    # Hints, and how old log lines are in their own database.
    "threads.cwd_settled_for",
    "threads.user_settled_for",
    "log_segments",
    "codex_state_readers",
}
"""What a downgrade may lose unasked: it comes again, or nobody misses it for long."""


def test_what_a_downgrade_loses_is_named_by_its_revision_or_comes_again(database: Database) -> None:
    at(database, REVISIONS[-1])
    for before, after in reversed(STEPS):
        newer = schema(database)
        migrations.downgrade(database.engine, before, accept_loss=True)
        older = schema(database)
        lost = {table for table in newer if table not in older}
        for table in older.keys() & newer.keys():
            lost |= {f"{table}.{name}" for name in set(newer[table]["columns"]) - set(older[table]["columns"])}
        if after == "0016_lease_owners":  # renames it
            lost.discard("backfill_state.owner_name")
        assert lost <= {*loses(after), *CHEAP}, f"say in LOSES of {after} what is lost, or why it may be"
        assert set(loses(after)) <= lost, f"{after} doesn't lose what it says"


@pytest.mark.parametrize(
    ("after", "before"),
    [step[::-1] for step in STEPS if loses(step[1])],
    ids=[after for _, after in STEPS if loses(after)],
)
def test_a_downgrade_that_loses_what_nothing_rebuilds_names_it_and_changes_nothing(
    database: Database, before: str, after: str
) -> None:
    at(database, after)
    if after == "0009_homes":
        changed(database, f"UPDATE threads SET home = 'otter:/home/a/.codex' WHERE id = '{FIRST}'")
    if "codex_state_locks" in loses(after):
        changed(
            database,
            "INSERT INTO codex_state_locks (name, renewed_at, ownership_token) VALUES ('nightly', 1770000000, 'f00d')",
        )
        changed(database, "UPDATE memory_phase1_jobs SET crashes = 2")
    rows, tables = contents(database), schema(database)
    with pytest.raises(DataLossError, match="--accept-loss") as refusal:
        migrations.downgrade(database.engine, before)
    assert set(refusal.value.losses) <= set(loses(after))
    assert refusal.value.losses
    for what, count in refusal.value.losses.items():
        assert f"{what} of {count} row" in str(refusal.value)
    assert (contents(database), schema(database)) == (rows, tables)
    migrations.downgrade(database.engine, before, accept_loss=True)
    assert migrations.ensure_current(database.engine).before == before


def test_all_that_many_steps_would_lose_is_told_at_once(database: Database) -> None:
    at(database, REVISIONS[-1])
    with pytest.raises(DataLossError) as refusal:
        migrations.downgrade(database.engine, "0001_baseline")
    assert {"threads.memory_mode", "threads.name", "threads.pinned", "memory_phase1_jobs.attempt"} <= set(
        refusal.value.losses
    )
    assert refusal.value.losses["threads.memory_mode"] == 2


def test_a_downgrade_that_loses_nothing_of_that_kind_needs_no_leave(database: Database) -> None:
    migrations.upgrade(database.engine)
    changed(database, THREAD_OF_DEFAULTS)
    migrations.downgrade(database.engine, "0001_baseline")
    assert len(contents(database)["threads"]) == 1


def test_rows_survive_all_the_way_up_and_down(database: Database) -> None:
    at(database, REVISIONS[0])
    rows = contents(database)
    migrations.upgrade(database.engine)
    migrations.downgrade(database.engine, REVISIONS[0], accept_loss=True)
    assert in_common(contents(database), rows) == rows


def test_deleting_a_thread_still_deletes_what_belongs_to_it_after_all_revisions(database: Database) -> None:
    at(database, REVISIONS[0])
    migrations.upgrade(database.engine)
    changed(database, f"DELETE FROM threads WHERE id = '{FIRST}'")
    left = contents(database)
    for table in ("thread_dynamic_tools", "thread_memory", "memory_phase1_jobs"):
        assert FIRST not in {row["thread_id"] for row in left[table]}
    assert len(left["thread_memory"]) == 2
    assert len(left["logs"]) == 1, "logs outlive threads"


def test_0001_brings_the_backfills_row(database: Database) -> None:
    migrations.upgrade(database.engine, "0001_baseline")
    row = row_of(database, "backfill_state", id=1)
    assert row["updated_at"] > 1_700_000_000
    assert row | {"updated_at": 0} == {
        "id": 1,
        "status": "pending",
        "last_watermark": None,
        "last_success_at": None,
        "updated_at": 0,
    }


def test_0001_has_the_originals_columns_in_their_order(database: Database) -> None:
    migrations.upgrade(database.engine, "0001_baseline")
    columns = {table: " ".join(description["columns"]) for table, description in schema(database).items()}
    assert columns == {
        "threads": "id rollout_path created_at updated_at source model_provider cwd title sandbox_policy approval_mode "
        "tokens_used has_user_event archived archived_at git_sha git_branch git_origin_url cli_version "
        "first_user_message",
        "logs": "id ts ts_nanos level target message module_path file line thread_id",
        "thread_dynamic_tools": "thread_id position name description input_schema",
        "thread_memory": "thread_id scope_kind scope_key raw_memory memory_summary updated_at last_used_at used_count "
        "invalidated_at invalid_reason",
        "memory_phase1_jobs": "thread_id scope_kind scope_key status owner_session_id started_at finished_at "
        "failure_reason source_updated_at raw_memory_path summary_hash ownership_token",
        "memory_scope_dirty": "scope_kind scope_key dirty updated_at",
        "memory_phase2_jobs": "scope_kind scope_key status owner_session_id agent_thread_id started_at "
        "last_heartbeat_at finished_at attempt failure_reason ownership_token",
        "memory_consolidation_locks": "cwd working_thread_id updated_at",
        "backfill_state": "id status last_watermark last_success_at updated_at",
    }


def test_downgrading_past_the_baseline_is_refused_while_there_are_rows(database: Database) -> None:
    migrations.upgrade(database.engine)
    for table in ("threads", "logs", "memory_scope_dirty", "memory_consolidation_locks"):
        with database.engine.begin() as connection:
            insert(connection, table, SAMPLES[table][0])
        rows = contents(database)
        with pytest.raises(SchemaError, match=f"{table} has rows"):
            migrations.downgrade(database.engine, "base", accept_loss=True)
        assert contents(database) == rows
        changed(database, f"DELETE FROM {table}")
    assert migrations.ensure_current(database.engine).changed is False


def test_an_empty_database_can_be_downgraded_to_nothing_and_upgraded_again(database: Database) -> None:
    migrations.upgrade(database.engine)
    assert migrations.downgrade(database.engine, "base", accept_loss=True) == migrations.Migrated(migrations.HEAD, None)
    assert schema(database) == {}
    assert migrations.ensure_current(database.engine) == migrations.Migrated(None, migrations.HEAD)


def test_0002_drops_the_dead_parts_and_its_downgrade_brings_them_back_empty(database: Database) -> None:
    at(database, "0002_drop_dead_parts")
    assert "memory_phase2_jobs" not in schema(database)
    assert "has_user_event" not in schema(database)["threads"]["columns"]
    migrations.downgrade(database.engine, "0001_baseline", accept_loss=True)
    assert contents(database)["memory_phase2_jobs"] == []
    assert row_of(database, "threads", id=FIRST)["has_user_event"] == 0


def test_0003_remembers_every_thread_that_was_there(database: Database) -> None:
    at(database, "0002_drop_dead_parts")
    migrations.upgrade(database.engine, "0003_thread_agents")
    row = row_of(database, "threads", id=SECOND)
    assert row["memory_mode"] == "enabled"
    assert (row["agent_nickname"], row["agent_role"], row["agent_path"]) == (None, None, None)


def test_0004_knows_no_model_of_a_thread_that_was_there(database: Database) -> None:
    at(database, "0003_thread_agents")
    migrations.upgrade(database.engine, "0004_thread_model")
    row = row_of(database, "threads", id=FIRST)
    assert (row["model"], row["reasoning_effort"]) == (None, None)


def test_0005_loads_at_once_the_tools_that_were_there(database: Database) -> None:
    at(database, "0004_thread_model")
    migrations.upgrade(database.engine, "0005_tool_namespaces")
    row = row_of(database, "thread_dynamic_tools", position=1)
    assert (row["defer_loading"], row["namespace"]) == (0, None)


def test_0006_starts_counting_attempts_and_keeps_failures_terminal(database: Database) -> None:
    at(database, "0005_tool_namespaces")
    migrations.upgrade(database.engine, "0006_phase1_retries")
    row = row_of(database, "memory_phase1_jobs", status="failed")
    assert (row["attempt"], row["retry_at"]) == (0, None)


def test_0007_gives_every_held_lock_a_token_of_its_own(database: Database) -> None:
    at(database, "0006_phase1_retries")
    migrations.upgrade(database.engine, "0007_lock_tokens")
    tokens = {row["ownership_token"] for row in contents(database)["memory_consolidation_locks"]}
    assert len(tokens) == 2
    assert {len(token) for token in tokens} == {32}


def test_0007_refuses_locks_without_a_token_from_then_on(database: Database) -> None:
    migrations.upgrade(database.engine, "0007_lock_tokens")
    with pytest.raises(DatabaseError):
        changed(
            database,
            "INSERT INTO memory_consolidation_locks (cwd, working_thread_id, updated_at) "
            f"VALUES ('/c', '{SESSION}', 1)",
        )


def test_0008_leaves_a_running_backfill_to_be_taken_over(database: Database) -> None:
    at(database, "0007_lock_tokens")
    migrations.upgrade(database.engine, "0008_backfill_owner")
    row = row_of(database, "backfill_state", id=1)
    assert (row["status"], row["last_watermark"]) == ("running", "sessions/x.jsonl")
    assert (row["ownership_token"], row["owner"], row["claimed_at"]) == (None, None, None)


def test_0009_puts_all_there_is_into_the_local_home(database: Database) -> None:
    at(database, "0008_backfill_owner")
    migrations.upgrade(database.engine, "0009_homes")
    rows = contents(database)
    assert {row["home"] for table in ("threads", "backfill_state") for row in rows[table]} == {"local"}


def test_0009_gives_each_home_one_backfill(database: Database) -> None:
    migrations.upgrade(database.engine, "0009_homes")
    other = "INSERT INTO backfill_state (home, status, updated_at) VALUES ('other', 'complete', 5)"
    changed(database, other)
    with pytest.raises(DatabaseError):
        changed(database, other)


def test_0009_downgraded_with_several_homes_starts_the_backfill_over(database: Database) -> None:
    migrations.upgrade(database.engine, "0009_homes")
    changed(database, "UPDATE backfill_state SET status = 'complete', last_watermark = 'x', last_success_at = 4")
    changed(
        database,
        "INSERT INTO backfill_state (home, status, last_watermark, updated_at) VALUES ('other', 'running', 'y', 5)",
    )
    migrations.downgrade(database.engine, "0008_backfill_owner", accept_loss=True)
    row = row_of(database, "backfill_state", id=1)
    assert (row["status"], row["last_watermark"], row["last_success_at"]) == ("pending", None, None)


def test_0010_mends_what_the_checks_would_refuse(database: Database) -> None:
    at(database, "0009_homes")
    changed(database, f"UPDATE threads SET tokens_used = -5, archived = 1 WHERE id = '{FIRST}'")
    changed(database, f"UPDATE threads SET archived = 0 WHERE id = '{SECOND}'")
    changed(database, f"UPDATE thread_memory SET used_count = -1 WHERE thread_id = '{FIRST}'")
    changed(database, "UPDATE memory_phase1_jobs SET attempt = -2 WHERE status = 'running'")
    changed(database, "UPDATE memory_phase1_jobs SET status = 'paused', retry_at = NULL WHERE status = 'failed'")
    changed(database, "UPDATE memory_scope_dirty SET dirty = 7")
    changed(database, "UPDATE backfill_state SET status = 'resting'")
    count = {table: len(found) for table, found in contents(database).items()}

    migrations.upgrade(database.engine, "0010_checks")

    rows = contents(database)
    assert {table: len(found) for table, found in rows.items()} == count
    first, second = row_of(database, "threads", id=FIRST), row_of(database, "threads", id=SECOND)
    assert (first["tokens_used"], first["archived"], first["archived_at"]) == (0, 0, None)
    assert (second["archived"], second["archived_at"]) == (1, 1770000070)
    assert {row["used_count"] for row in rows["thread_memory"] if row["thread_id"] == FIRST} == {0}
    assert row_of(database, "memory_phase1_jobs", status="running")["attempt"] == 0
    failed = row_of(database, "memory_phase1_jobs", status="failed")
    assert failed["failure_reason"] == "no model; unknown status: paused"
    assert failed["retry_at"] == failed["finished_at"]
    assert [row["dirty"] for row in rows["memory_scope_dirty"]] == [1]
    backfill = row_of(database, "backfill_state", id=1)
    assert (backfill["status"], backfill["last_watermark"]) == ("pending", "sessions/x.jsonl")


def test_0010_refuses_such_rows_from_then_on(database: Database) -> None:
    at(database, "0010_checks")
    for statement in (
        "UPDATE threads SET archived = 2",
        "UPDATE threads SET tokens_used = -1",
        "UPDATE thread_memory SET used_count = -1",
        "UPDATE memory_phase1_jobs SET status = 'paused'",
        "UPDATE memory_phase1_jobs SET attempt = -1",
        "UPDATE memory_scope_dirty SET dirty = 2",
        "UPDATE backfill_state SET status = 'resting'",
        "UPDATE backfill_state SET id = 2",
    ):
        with pytest.raises(DatabaseError):
            changed(database, statement)


def plan_of(database: Database, query: str) -> str:
    """How the database reads what is asked for, when it may neither read a whole table nor sort."""
    with database.engine.connect() as connection:
        if database.dialect == "sqlite":
            return str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all())
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        connection.exec_driver_sql("SET LOCAL enable_sort = off")
        return str(connection.exec_driver_sql(f"EXPLAIN {query}").all())


def check_it_is_read_in_its_order(plan: str) -> None:
    assert "idx_threads_" in plan
    assert "TEMP B-TREE" not in plan, "SQLite would sort"
    assert "Sort" not in plan, "PostgreSQL would sort"


def test_0011_lets_filtered_listings_read_their_order_from_an_index(database: Database) -> None:
    migrations.upgrade(database.engine, "0011_listing_indexes")
    for condition in ("archived = 0", "source = 'cli'", "model_provider = 'openai'"):
        query = f"SELECT id FROM threads WHERE {condition} ORDER BY updated_at DESC, id DESC LIMIT 50"
        check_it_is_read_in_its_order(plan_of(database, query))


def test_0012_has_counted_no_failures_yet_and_refuses_negative_counts(database: Database) -> None:
    at(database, "0011_listing_indexes")
    migrations.upgrade(database.engine, "0012_phase1_failures")
    assert {row["failures"] for row in contents(database)["memory_phase1_jobs"]} == {0}
    with pytest.raises(DatabaseError):
        changed(database, "UPDATE memory_phase1_jobs SET failures = -1")


def test_0013_has_every_thread_looked_at_and_walks_the_open_ones_by_an_index(database: Database) -> None:
    at(database, "0012_phase1_failures")
    migrations.upgrade(database.engine, "0013_open_threads")
    threads = contents(database)["threads"]
    assert {(row["cwd_settled_for"], row["user_settled_for"]) for row in threads} == {(None, None)}
    for kinds, index in (
        (("cwd", "user"), "idx_threads_open"),
        (("cwd",), "idx_threads_open_cwd"),
        (("user",), "idx_threads_open_user"),
    ):
        were_open = open_threads(kinds).replace(" AND gone_at IS NULL", "")  # which 0019 adds
        query = f"SELECT id FROM threads WHERE {were_open} ORDER BY updated_at DESC, id DESC LIMIT 64"
        assert re.search(rf"\b{index}\b", plan_of(database, query))


CONDITIONS = ("archived = 0", "source = 'cli' AND archived = 1", "model_provider = 'a' AND archived = 0")
ORDERS = ("updated_at", "created_at")


def test_0014_lets_every_listing_read_its_order_from_an_index(database: Database) -> None:
    at(database, "0013_open_threads")
    migrations.upgrade(database.engine, "0014_listing_orders")
    for condition, order in product(CONDITIONS, ORDERS):
        query = f"SELECT id FROM threads WHERE {condition} ORDER BY {order} DESC, id DESC LIMIT 50"
        check_it_is_read_in_its_order(plan_of(database, query))


def test_0017_lets_shown_threads_and_the_others_be_read_in_their_order(database: Database) -> None:
    at(database, "0016_lease_owners")
    migrations.upgrade(database.engine, "0017_shown_threads")
    for condition, shown, order in product(CONDITIONS, ("true", "false"), ORDERS):
        wanted = f"{condition} AND {IS_SHOWN} = {shown}"
        plan = plan_of(database, f"SELECT id FROM threads WHERE {wanted} ORDER BY {order} DESC, id DESC LIMIT 50")
        check_it_is_read_in_its_order(plan)
        if database.dialect == "sqlite":
            assert "<expr>=?" in plan


def test_a_title_that_a_user_gave_becomes_a_name_and_back(database: Database) -> None:
    at(database, "0014_listing_orders")
    changed(database, f"UPDATE threads SET title = ' Mine ', first_user_message = 'hello' WHERE id = '{FIRST}'")
    migrations.upgrade(database.engine, "0015_rollout_inventory")
    named, other = (row_of(database, "threads", id=thread) for thread in (FIRST, SECOND))
    assert (named["name"], named["name_at"], named["title"]) == ("Mine", named["updated_at"], "hello")
    assert (other["name"], other["name_at"], other["title"]) == (None, None, "hello")
    migrations.downgrade(database.engine, "0014_listing_orders", accept_loss=True)
    assert row_of(database, "threads", id=FIRST)["title"] == "Mine"


def test_0016_keeps_who_works_on_a_backfill_and_leaves_what_nobody_knows_open(database: Database) -> None:
    at(database, "0015_rollout_inventory")
    changed(database, "UPDATE backfill_state SET owner = 'otter process 7'")
    migrations.upgrade(database.engine, "0016_lease_owners")
    row = row_of(database, "backfill_state", id=1)
    assert (row["owner_name"], row["owner_process"], row["lease_seconds"]) == ("otter process 7", None, None)
    for table in ("memory_phase1_jobs", "memory_consolidation_locks"):
        owners = {(row["owner_name"], row["owner_process"], row["lease_seconds"]) for row in contents(database)[table]}
        assert owners == {(None, None, None)}
    migrations.downgrade(database.engine, "0015_rollout_inventory", accept_loss=True)
    assert row_of(database, "backfill_state", id=1)["owner"] == "otter process 7"
