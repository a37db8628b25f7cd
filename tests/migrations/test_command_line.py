"""``alembic`` at the checkout's root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import stores
from migrations.described import describe
from migrations.rows import insert_samples, read_all, update
from sqlalchemy import create_engine

from codex_state import migrations
from codex_state.database import Database
from codex_state.migrations import locking
from codex_state.migrations.environment import known_revisions
from tests.migrations.alembic_process import ROOT, Alembic

REVISIONS = sorted(known_revisions())


def test_upgrade_check_current_and_downgrade_work_on_the_configured_database(alembic: Alembic, url: str) -> None:
    alembic.ok("upgrade", "head", CODEX_STATE_DATABASE_URL=url)
    assert alembic.ok("current", CODEX_STATE_DATABASE_URL=url) == f"{migrations.HEAD} (head)\n"
    assert alembic.ok("check", CODEX_STATE_DATABASE_URL=url) == "No new upgrade operations detected.\n"
    alembic.ok("downgrade", "-1", CODEX_STATE_DATABASE_URL=url)
    assert alembic.ok("current", CODEX_STATE_DATABASE_URL=url) == f"{REVISIONS[-2]}\n"
    assert alembic("check", CODEX_STATE_DATABASE_URL=url).returncode != 0


def test_history_lists_every_revision() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "alembic", "history"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert re.findall(r"-> (\w+)", answer.stdout) == REVISIONS[::-1]


def test_the_default_is_the_state_file_of_the_home(alembic: Alembic, tmp_path: Path) -> None:
    home = tmp_path / "homes" / "new"
    alembic.ok("upgrade", "head", CODEX_HOME=str(home))
    assert [path.name for path in home.iterdir()] == ["codex_state_4.sqlite"]
    with (
        stores.opened(f"sqlite:///{home / 'codex_state_4.sqlite'}") as database,
        database.engine.connect() as connection,
    ):
        assert migrations.check(connection) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() == 2


def test_check_fails_when_the_schema_differs(alembic: Alembic, database: Database, url: str) -> None:
    migrations.upgrade(database.engine)
    with database.engine.begin() as connection:
        update(connection, "DROP INDEX idx_threads_source")
    answer = alembic("check", CODEX_STATE_DATABASE_URL=url)
    assert answer.returncode != 0
    assert "idx_threads_source" in answer.stdout + answer.stderr


@pytest.mark.parametrize("arguments", ["upgrade head", "check", "stamp head"])
def test_a_newer_database_is_refused_in_a_sentence(
    alembic: Alembic, database: Database, url: str, arguments: str
) -> None:
    migrations.upgrade(database.engine)
    with database.engine.begin() as connection:
        insert_samples(connection)
        update(connection, "UPDATE codex_state_version SET version_num = '0099_from_the_future'")
    with database.engine.connect() as connection:
        before = describe(connection), read_all(connection)
    answer = alembic(*arguments.split(), CODEX_STATE_DATABASE_URL=url)
    assert answer.returncode != 0
    assert "is at revision '0099_from_the_future'" in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    with database.engine.connect() as connection:
        assert (describe(connection), read_all(connection)) == before
        assert migrations.current_revision(connection) == "0099_from_the_future"


def test_a_home_that_is_a_file_is_refused_in_a_sentence(alembic: Alembic, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    answer = alembic("upgrade", "head", CODEX_HOME=str(tmp_path / "home"))
    assert answer.returncode != 0
    assert "is not a directory" in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr


def test_it_waits_for_a_migration_that_is_under_way(alembic: Alembic, database: Database, url: str) -> None:
    answers = []
    with database.engine.connect() as connection, locking.exclusive_transaction(connection):
        command = threading.Thread(
            target=lambda: answers.append(alembic("upgrade", "head", CODEX_STATE_DATABASE_URL=url))
        )
        command.start()
        command.join(1)
        assert command.is_alive()
        assert not answers
    command.join(60)
    assert answers[0].returncode == 0, answers[0].stderr
    assert not migrations.ensure_current(database.engine).changed


def test_the_sql_of_an_upgrade_can_be_written_out_and_run_by_hand(alembic: Alembic, postgres_url: str) -> None:
    sql = alembic.ok("upgrade", "head", "--sql", CODEX_STATE_DATABASE_URL=postgres_url)
    assert "alembic_version" not in sql
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.connection.cursor().execute(sql)
        assert migrations.check(connection) == []
    engine.dispose()


def test_a_new_revision_is_made_from_the_template(alembic: Alembic, tmp_path: Path) -> None:
    # In a copy, or everybody else would find it among the revisions.
    shutil.copytree(ROOT / "alembic", tmp_path / "alembic")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    versions = tmp_path / "alembic" / "versions"
    before = set(versions.glob("*.py"))
    url = f"sqlite:///{tmp_path / 'x.sqlite'}"
    alembic.ok("upgrade", "head", cwd=tmp_path, CODEX_STATE_DATABASE_URL=url)
    alembic.ok("revision", "--rev-id", "9999_trial", "-m", "A trial", cwd=tmp_path, CODEX_STATE_DATABASE_URL=url)
    (made,) = set(versions.glob("*.py")) - before
    assert re.fullmatch(r"\d{8}_9999_trial\.py", made.name)
    assert f"down_revision = '{migrations.HEAD}'" in made.read_text()
