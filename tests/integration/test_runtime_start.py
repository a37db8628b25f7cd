"""Opening a state: what is made, what is cleaned away, what is refused, and what is counted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from codex_state import ThreadQuery, telemetry
from codex_state.errors import (
    ConfigurationError,
    DatabaseCorruptError,
    DatabaseUnavailableError,
    NotADatabaseError,
    SchemaError,
    StateError,
)
from codex_state.runtime import StateRuntime
from codex_state.settings import StateSettings
from codex_state.testing.samples import a_thread


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("CODEX_"):
            monkeypatch.delenv(name)
    elsewhere = tmp_path / "working directory"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "codex" / "home"


# Files


def test_the_first_start_makes_the_home_and_the_file(home: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime:
        assert runtime.codex_home == home
        assert runtime.database.path == home / "codex_state_4.sqlite"
        with runtime.begin() as state:
            state.threads.upsert(a_thread())
    assert (home / "codex_state_4.sqlite").exists()


def test_a_later_start_finds_what_was_stored(home: Path) -> None:
    thread = a_thread()
    for _ in range(2):
        with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.begin() as state:
            state.threads.insert_if_absent(thread)
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.read() as state:
        assert state.threads.get(thread.id) == thread


def test_the_file_is_in_wal_mode_and_can_give_space_back(home: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.autocommit() as state:
        connection = state.session.connection()
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "auto_vacuum", "synchronous", "foreign_keys", "busy_timeout")
        }
    # Waiting is the queue's, not SQLite's; 2 is INCREMENTAL, 1 is NORMAL.
    assert pragmas == {
        "journal_mode": "wal", "auto_vacuum": 2, "synchronous": 1, "foreign_keys": 1, "busy_timeout": 0
    }  # fmt: skip


def test_the_file_may_lie_elsewhere(home: Path, tmp_path: Path) -> None:
    settings = StateSettings(codex_home=home, sqlite_home=tmp_path / "local disk")
    with StateRuntime.open(settings) as runtime:
        assert runtime.database.path == tmp_path / "local disk" / "codex_state_4.sqlite"
    assert list(home.iterdir()) == []


def test_the_side_files_of_the_current_file_stay(home: Path) -> None:
    """L7: they may hold the last commits of a process that was killed."""
    thread = a_thread()
    settings = StateSettings(codex_home=home)
    with StateRuntime.open(settings) as runtime:
        with runtime.begin() as state:
            state.threads.upsert(thread)
        killed = home.parent / "as after a kill"
        killed.mkdir()
        for path in home.iterdir():
            (killed / path.name).write_bytes(path.read_bytes())
    assert (killed / "codex_state_4.sqlite-wal").stat().st_size > 0
    with StateRuntime.open(StateSettings(codex_home=killed)) as runtime, runtime.read() as state:
        assert state.threads.get(thread.id) == thread


# Refusals


def test_a_home_that_is_a_file_is_refused_and_kept(home: Path) -> None:
    """L8."""
    home.parent.mkdir()
    home.write_text("precious")
    for settings in (StateSettings(codex_home=home), StateSettings(codex_home=home / "below")):
        with pytest.raises(ConfigurationError, match=f"{home}.*not a directory.*CODEX_HOME"):
            StateRuntime.open(settings)
    assert home.read_text() == "precious"


def test_a_home_that_cannot_be_made_is_refused() -> None:
    # Not even root can make directories there.
    with pytest.raises(ConfigurationError, match="can't create the directory /proc/codex"):
        StateRuntime.open(StateSettings(codex_home=Path("/proc/codex")))


def test_a_directory_that_cannot_be_written_is_refused(home: Path) -> None:
    unwritable = Path("/proc/self")
    with pytest.raises(DatabaseUnavailableError, match="permissions"):
        StateRuntime.open(StateSettings(codex_home=home, sqlite_home=unwritable))


def test_a_directory_in_the_files_place_is_refused(home: Path) -> None:
    (home / "codex_state_4.sqlite").mkdir(parents=True)
    with pytest.raises(NotADatabaseError, match="is a directory, where a file should be"):
        StateRuntime.open(StateSettings(codex_home=home))


@pytest.mark.parametrize("content", [b"not a database\n" * 1000, b"SQLite format 4\0" + bytes(5000)])
def test_a_file_that_is_no_database_is_refused_and_kept(home: Path, content: bytes) -> None:
    """L7, L8."""
    home.mkdir(parents=True)
    path = home / "codex_state_4.sqlite"
    path.write_bytes(content)
    with pytest.raises(NotADatabaseError, match="not an SQLite database"):
        StateRuntime.open(StateSettings(codex_home=home))
    assert path.read_bytes() == content


def test_an_empty_file_is_a_new_database(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "codex_state_4.sqlite").touch()
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.begin() as state:
        state.threads.upsert(a_thread())


def test_a_database_of_another_program_is_refused_and_kept(home: Path) -> None:
    """L7."""
    import sqlite3

    home.mkdir(parents=True)
    path = home / "codex_state_4.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE threads (mine TEXT)")
    connection.execute("INSERT INTO threads VALUES ('precious')")
    connection.commit()
    connection.close()
    with pytest.raises(SchemaError):
        StateRuntime.open(StateSettings(codex_home=home))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT mine FROM threads").fetchall() == [("precious",)]
    connection.close()


def _filled(home: Path) -> Path:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.begin() as state:
        state.threads.upsert_many([a_thread(title="x" * 500) for _ in range(200)])
    path = home / "codex_state_4.sqlite"
    assert path.stat().st_size > 50 * 4096
    return path


def test_damaged_pages_are_reported_as_corruption_and_the_file_is_kept(home: Path) -> None:
    """L7, L8."""
    path = _filled(home)
    with path.open("r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xa5" * 4096 * 30)
    damaged = path.read_bytes()
    with pytest.raises(DatabaseCorruptError, match="doctor --repair`, which saves what can be read"):
        _look_at_all_threads(home)
    assert path.read_bytes()[20 * 4096 :] == damaged[20 * 4096 :]


def _look_at_all_threads(home: Path) -> None:
    with StateRuntime.open(StateSettings(codex_home=home)) as runtime, runtime.read() as state:
        state.threads.list(ThreadQuery(limit=1000))


def test_a_file_that_was_cut_off_is_reported_as_corruption(home: Path) -> None:
    path = _filled(home)
    with path.open("r+b") as file:
        file.truncate(30 * 4096)
    with pytest.raises(DatabaseCorruptError):
        _look_at_all_threads(home)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://localhost/x", "mysql"),
        ("state.sqlite", "not a URL"),
        ("postgresql://localhost:not-a-port/x", "malformed"),
        ("", None),
    ],
)
def test_a_database_url_that_cannot_be_used_is_refused(home: Path, url: str, says: str | None) -> None:
    if says is None:  # an empty text is no setting
        assert StateSettings(codex_home=home).database_url is None
        return
    with pytest.raises(ConfigurationError, match=says):
        StateRuntime.open(StateSettings(codex_home=home, database_url=url))


def test_a_server_that_does_not_answer_is_reported(home: Path, tmp_path: Path) -> None:
    url = f"postgresql://nobody:secret@/nothing?host={tmp_path}"
    with pytest.raises(DatabaseUnavailableError) as refusal:
        StateRuntime.open(StateSettings(codex_home=home, database_url=url))
    assert "secret" not in str(refusal.value)


def test_a_database_that_does_not_exist_on_the_server_is_reported(home: Path, postgres_url: str) -> None:
    with pytest.raises(DatabaseUnavailableError, match="no_such_database"):
        StateRuntime.open(StateSettings(codex_home=home, database_url=_with_database(postgres_url, "no_such_database")))


def _with_database(url: str, name: str) -> str:
    from sqlalchemy import make_url

    return make_url(url).set(database=name).render_as_string(hide_password=False)


# Telemetry


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the counters say so far, as ``{(name, attributes…): sum}``."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    telemetry._counter.cache_clear()
    telemetry._histogram.cache_clear()

    def sums() -> dict[tuple[str, ...], float]:
        data = reader.get_metrics_data()
        points: dict[tuple[str, ...], float] = {}
        if data is None:
            return points
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        attributes = (f"{key}={value}" for key, value in sorted((point.attributes or {}).items()))
                        value = point.sum if hasattr(point, "sum") else point.value
                        points[metric.name, *attributes] = value
        return points

    yield sums
    provider.shutdown()
    telemetry._counter.cache_clear()
    telemetry._histogram.cache_clear()


def test_starts_are_counted_by_their_outcome(home: Path, counted: Any) -> None:
    StateRuntime.open(StateSettings(codex_home=home)).close()
    StateRuntime.open(StateSettings(codex_home=home)).close()
    with pytest.raises(StateError):
        StateRuntime.open(StateSettings(codex_home=home / "codex_state_4.sqlite"))
    assert counted() == {
        ("codex.db.init", "status=created"): 1,
        ("codex.db.init", "status=opened"): 2,
        ("codex.db.init", "status=open_error"): 1,
    }


def test_other_counters_and_durations_go_the_same_way(counted: Any) -> None:
    telemetry.count(telemetry.DB_ERROR, stage="lookup")
    telemetry.count(telemetry.DB_BACKFILL, 3, status="upserted")
    telemetry.record_milliseconds(telemetry.DB_BACKFILL_DURATION, 12.5, status="success")
    assert counted() == {
        ("codex.db.error", "stage=lookup"): 1,
        ("codex.db.backfill", "status=upserted"): 3,
        ("codex.db.backfill.duration_ms", "status=success"): 12.5,
    }


def test_without_opentelemetry_nothing_is_counted_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    telemetry._counter.cache_clear()
    telemetry._histogram.cache_clear()
    try:
        StateRuntime.open(StateSettings(codex_home=home)).close()
        telemetry.record_milliseconds(telemetry.DB_BACKFILL_DURATION, 1.0)
    finally:
        telemetry._counter.cache_clear()
        telemetry._histogram.cache_clear()


# Settings


def test_arguments_are_stronger_than_the_environment_and_that_than_the_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("vars").write_text("CODEX_HOME=/from/file\nCODEX_STATE_POOL_SIZE=3\nCODEX_STATE_BUSY_TIMEOUT=7\nOTHER=x\n")
    monkeypatch.setenv("CODEX_STATE_ENV_FILE", "vars")
    monkeypatch.setenv("CODEX_HOME", "/from/environment")
    monkeypatch.setenv("CODEX_STATE_POOL_SIZE", "4")
    settings = StateSettings(pool_size=5)
    assert settings.codex_home == Path("/from/environment")
    assert settings.pool_size == 5
    assert settings.busy_timeout == timedelta(seconds=7)
    assert StateSettings(codex_home=tmp_path).codex_home == tmp_path


def test_every_place_can_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_SQLITE_HOME", "relative/place")
    monkeypatch.setenv("CODEX_STATE_DATABASE_URL", "postgresql://user:secret@host/db")
    settings = StateSettings()
    assert settings.sqlite_home == Path.cwd() / "relative" / "place"
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://user:secret@host/db"
    assert "secret" not in repr(settings)


def test_without_settings_the_home_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert StateSettings().codex_home == tmp_path / ".codex"
    assert StateSettings(codex_home=Path("~/other")).codex_home == tmp_path / "other"


@pytest.mark.parametrize("variable", ["CODEX_HOME", "CODEX_SQLITE_HOME", "CODEX_STATE_DATABASE_URL"])
def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "")
    assert StateSettings() == StateSettings()
    assert StateSettings().database_url is None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"pool_size": 0}, "pool_size"),
        ({"pool_size": "many"}, "pool_size"),
        ({"busy_timeout": -1}, "busy_timeout"),
        ({"backfill_lease": 0}, "backfill_lease"),
        ({"backfill_batch_size": 0}, "backfill_batch_size"),
        ({"database_url": "mysql://host/db"}, "database_url"),
        ({"codex_home": 7}, "codex_home"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    """L8."""
    with pytest.raises(ConfigurationError, match=named):
        StateSettings(**values)


def test_a_bad_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_STATE_MIGRATE", "perhaps")
    with pytest.raises(ConfigurationError, match="migrate"):
        StateSettings()


def test_an_env_file_that_nobody_named_is_not_read() -> None:
    """A cloned repository may hold one, and would say where conversations are written."""
    Path(".env").write_text("CODEX_HOME=/from/file\nCODEX_STATE_DATABASE_URL=sqlite:////tmp/stolen\n")
    settings = StateSettings()
    assert settings.database_url is None
    assert settings.codex_home != Path("/from/file")


def _broken_env_file(how: str) -> None:
    path = Path("vars")
    match how:
        case "not text":
            path.write_bytes(b"CODEX_HOME=\xff\xfe\n")
        case "a pipe":
            os.mkfifo(path)
        case "a directory":
            path.mkdir()
        case "large":
            with path.open("wb") as file:
                file.truncate(5 * 1024 * 1024)


@pytest.mark.parametrize("how", ["not text", "a pipe", "a directory", "large", "missing"])
def test_an_env_file_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    _broken_env_file(how)
    monkeypatch.setenv("CODEX_STATE_ENV_FILE", "vars")
    with pytest.raises(ConfigurationError, match=r"settings in vars, which CODEX_STATE_ENV_FILE names"):
        StateSettings()


@pytest.mark.parametrize("url", ["host=db user=u password=hunter2 dbname=x", "hunter2", "My Scheme hunter2://x"])
def test_what_is_no_url_is_not_repeated_since_it_may_hold_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="invalid settings: database_url: not a URL") as refused:
        StateSettings(database_url=url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("home", ["/a\0b", "~nobody-of-this-name/x"])
def test_a_home_that_is_no_path_is_refused(home: str) -> None:
    with pytest.raises(ConfigurationError, match="codex_home"):
        StateSettings(codex_home=home)


def test_a_config_file_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    with pytest.raises(ConfigurationError, match=r"config\.toml: not a regular file"):
        StateSettings(codex_home=tmp_path).provider  # noqa: B018


def test_a_config_file_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigurationError, match=r"config\.toml"):
        StateSettings(codex_home=tmp_path).provider  # noqa: B018


@pytest.mark.parametrize(
    ("config", "setting", "provider"),
    [
        (None, None, "openai"),
        ("", None, "openai"),
        ('model_provider = "azure"', None, "azure"),
        ('model_provider = "azure"', "ollama", "ollama"),
        ("model_provider = 7", None, "openai"),
        ('model_provider = ""', None, "openai"),
        ('profile = "p"\nmodel_provider = "azure"\n[profiles.p]\nmodel_provider = "mine"', None, "mine"),
        ('profile = "p"\nmodel_provider = "azure"\n[profiles.p]\nmodel = "x"', None, "azure"),
        ('profile = "missing"\nmodel_provider = "azure"\n[profiles.p]\nmodel_provider = "mine"', None, "azure"),
        ('profile = "p"\nprofiles = 7\nmodel_provider = "azure"', None, "azure"),
        ('profile = "p"\nmodel_provider = "azure"\n[profiles]\np = "x"', None, "azure"),
        ('profile = ["p"]\nmodel_provider = "azure"', None, "azure"),
    ],
)
def test_the_default_provider_comes_from_the_setting_else_the_homes_config_else_openai(
    home: Path, config: str | None, setting: str | None, provider: str
) -> None:
    home.mkdir(parents=True)
    if config is not None:
        (home / "config.toml").write_text(config)
    with StateRuntime.open(StateSettings(codex_home=home, default_provider=setting)) as runtime:
        assert runtime.default_provider == provider


def test_files_may_begin_with_a_byte_order_mark(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home.mkdir(parents=True)
    (home / "config.toml").write_bytes(b'\xef\xbb\xbfmodel_provider = "azure"\n')
    variables = tmp_path / "variables"
    variables.write_bytes(b"\xef\xbb\xbfCODEX_STATE_POOL_SIZE=3\n")
    monkeypatch.setenv("CODEX_STATE_ENV_FILE", str(variables))
    settings = StateSettings(codex_home=home)
    assert (settings.provider, settings.pool_size) == ("azure", 3)


@pytest.mark.parametrize("content", [b"model_provider = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_config_that_cannot_be_read_is_refused_rather_than_guessed_at(home: Path, content: bytes) -> None:
    home.mkdir(parents=True)
    (home / "config.toml").write_bytes(content)
    settings = StateSettings(codex_home=home)
    with pytest.raises(ConfigurationError, match=r"config\.toml.*CODEX_STATE_DEFAULT_PROVIDER"):
        _ = settings.provider
    assert StateSettings(codex_home=home, default_provider="mine").provider == "mine"
