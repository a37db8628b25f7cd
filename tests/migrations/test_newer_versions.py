"""A database that a newer version migrated: used when that version says so, and else left alone (law L7).

The newer version is this one with a revision more, which is all that an older one can see of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cli_process import InProcess
from migrations.rows import read, update

from codex_state import StateRuntime, StateSettings, migrations
from codex_state.database import Database
from codex_state.errors import SchemaTooNewError
from codex_state.migrations import environment
from codex_state.testing.samples import a_thread
from codex_state.transfer import copy_state

_REVISION = """
from alembic import op
revision, down_revision = {revision!r}, {before!r}
branch_labels = depends_on = None
COMPATIBLE = {compatible}

def upgrade():
    op.execute("ALTER TABLE threads ADD COLUMN colour{number} TEXT DEFAULT 'red' NOT NULL")
    op.execute("CREATE TABLE more{number} (id INTEGER)")
    op.execute("CREATE INDEX idx_threads_colour{number} ON threads (colour{number})")

def downgrade():
    op.execute("DROP INDEX idx_threads_colour{number}")
    op.execute("DROP TABLE more{number}")
    op.drop_column("threads", "colour{number}")
"""


@contextmanager
def newer_version(directory: Path, *compatible: bool) -> Iterator[list[str]]:
    """Within the block, this version has more revisions: for each whether the version before can go on beside it."""
    scripts = directory / "scripts"
    shutil.copytree(environment.scripts_directory(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    revisions = [migrations.HEAD]
    for number, is_compatible in enumerate(compatible, 1):
        revision = f"{9000 + number}_later"
        text = _REVISION.format(revision=revision, before=revisions[-1], compatible=is_compatible, number=number)
        (scripts / "versions" / f"later{number}.py").write_text(text)
        revisions.append(revision)
    environment.known_revisions.cache_clear()
    try:
        with patch.object(environment, "scripts_directory", lambda: scripts):
            yield revisions[1:]
    finally:
        environment.known_revisions.cache_clear()
        shutil.rmtree(scripts)


def migrate(url: str, directory: Path, *compatible: bool) -> str:
    """What a newer version makes of the database."""
    with newer_version(directory, *compatible) as revisions:
        database = Database.open(url)
        migrations.upgrade(database.engine)
        migrations.upgrade(database.engine, revisions[-1])
        database.close()
    return revisions[-1]


def noted(url: str) -> list[dict[str, Any]]:
    database = Database.open(url)
    with database.read() as session:
        found = read(session.connection(), "codex_state_readers")
    database.close()
    return found


def settings(url: str, tmp_path: Path, **values: Any) -> StateSettings:
    return StateSettings(codex_home=tmp_path, database_url=url, **values)


@pytest.mark.parametrize("compatible", [(True,), (True, True)])
def test_a_version_goes_on_beside_a_newer_one_that_admits_it(
    url: str, tmp_path: Path, compatible: tuple[bool, ...]
) -> None:
    newest = migrate(url, tmp_path, *compatible)
    assert noted(url) == [{"revision": newest, "oldest": migrations.HEAD}]
    thread = a_thread()
    with StateRuntime.open(settings(url, tmp_path)) as runtime:
        runtime.run(lambda state: state.threads.upsert(thread))
        assert runtime.run(lambda state: state.threads.set_name(thread.id, "mine"))
        assert runtime.run_read(lambda state: [each.name for each in state.threads.list().items]) == ["mine"]
        with runtime.read() as state:
            connection = state.session.connection()
            assert migrations.check(connection) == []
            assert migrations.current_revision(connection) == newest
    with (
        StateRuntime.open(settings(url, tmp_path, migrate=False), for_reading=True) as runtime,
        runtime.read() as state,
    ):
        assert state.threads.get(thread.id) is not None
    cli = InProcess(tmp_path)
    assert (
        cli.ok("threads", "show", str(thread.id), "--no-refresh", "--json", CODEX_STATE_DATABASE_URL=url).json["name"]
        == "mine"
    )
    cli.ok("db", "check", CODEX_STATE_DATABASE_URL=url)
    cli.ok("doctor", CODEX_STATE_DATABASE_URL=url)


@pytest.mark.parametrize("compatible", [(False,), (True, False), (False, True)])
def test_a_version_stops_with_an_error_and_a_status_of_their_own_where_a_newer_one_does_not_admit_it(
    url: str, tmp_path: Path, compatible: tuple[bool, ...]
) -> None:
    migrate(url, tmp_path, *compatible)
    with pytest.raises(SchemaTooNewError, match="upgrade codex-state"):
        StateRuntime.open(settings(url, tmp_path))
    for command in (("threads", "list"), ("db", "upgrade"), ("db", "downgrade", "-1"), ("logs",)):
        done = InProcess(tmp_path).refused(*command, CODEX_STATE_DATABASE_URL=url)
        assert done.status == 4, done


def test_what_was_noted_of_another_revision_admits_nobody(url: str, tmp_path: Path) -> None:
    migrate(url, tmp_path, True)
    database = Database.open(url)
    with database.engine.begin() as connection:
        update(connection, "UPDATE codex_state_version SET version_num = '9009_by_hand'")
    database.close()
    with pytest.raises(SchemaTooNewError, match="9009_by_hand"):
        StateRuntime.open(settings(url, tmp_path))


def test_a_version_that_goes_on_beside_a_newer_one_migrates_nothing(url: str, tmp_path: Path) -> None:
    newest = migrate(url, tmp_path, True)
    database = Database.open(url)
    for move in (migrations.upgrade, lambda engine: migrations.downgrade(engine, "-1", accept_loss=True)):
        with pytest.raises(SchemaTooNewError):
            move(database.engine)
    assert not migrations.ensure_current(database.engine).changed
    with database.engine.connect() as connection:
        assert migrations.current_revision(connection) == newest
    database.close()


def test_it_copies_none_of_it_since_it_would_leave_behind_what_it_does_not_know(url: str, tmp_path: Path) -> None:
    migrate(url, tmp_path, True)
    target = settings(f"sqlite:///{tmp_path / 'target.sqlite'}", tmp_path)
    with (
        StateRuntime.open(settings(url, tmp_path)) as source,
        StateRuntime.open(target) as copied,
        pytest.raises(SchemaTooNewError, match="can copy"),
    ):
        copy_state(source, copied)


def test_going_back_notes_who_is_admitted_again(url: str, tmp_path: Path) -> None:
    with newer_version(tmp_path, False, True) as (breaking, newest):
        database = Database.open(url)
        migrations.upgrade(database.engine, newest)
        assert noted(url) == [{"revision": newest, "oldest": breaking}]
        migrations.downgrade(database.engine, breaking)
        assert noted(url) == [{"revision": breaking, "oldest": breaking}]
        migrations.downgrade(database.engine, migrations.HEAD)
        database.close()
    assert noted(url) == [{"revision": migrations.HEAD, "oldest": migrations.HEAD}]
    StateRuntime.open(settings(url, tmp_path)).close()


def test_bringing_an_older_schema_up_to_date_is_said_aloud(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database.open(url)
    migrations.upgrade(database.engine)
    migrations.downgrade(database.engine, "0019_extractable_threads")
    assert not caplog.records, "what is asked for isn't"
    assert migrations.ensure_current(database.engine).changed
    assert f"was at revision 0019_extractable_threads and is at {migrations.HEAD} now" in caplog.text
    caplog.clear()
    migrations.ensure_current(database.engine)
    database.close()
    assert not caplog.records


def test_the_command_line_says_what_follows_from_going_back_and_when_it_came(tmp_path: Path) -> None:
    cli = InProcess(tmp_path)
    cli.ok("db", "upgrade")
    assert "CODEX_STATE_MIGRATE=false" in cli.ok("db", "downgrade", "0019_extractable_threads").stderr
    assert "0019_extractable_threads" in cli.refused("threads", "list", CODEX_STATE_MIGRATE="false").stderr
    assert "warning: " in cli.ok("threads", "list").stderr
    assert "warning: " not in cli.ok("threads", "list").stderr


def test_the_command_line_goes_back_with_a_loss_only_when_it_is_told(tmp_path: Path) -> None:
    cli = InProcess(tmp_path)
    thread = a_thread()
    with StateRuntime.open(StateSettings(codex_home=tmp_path)) as runtime:
        runtime.run(lambda state: state.threads.upsert(thread))
        runtime.run(lambda state: state.threads.set_name(thread.id, "mine"))
    done = cli.refused("db", "downgrade", "0014_listing_orders")
    assert (done.status, "threads.name of 1 row" in done.stderr) == (1, True)
    cli.ok("db", "downgrade", "0014_listing_orders", "--accept-loss")
