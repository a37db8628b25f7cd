"""Where the state lives and how it is opened: from arguments, the environment, or a file of variables that it names."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from codex_state.errors import ConfigurationError, did_you_mean

ENV_FILE_VARIABLE = "CODEX_STATE_ENV_FILE"

_LARGEST_FILE = 4 * 1024 * 1024
"""In bytes: what is larger isn't a file of settings."""

_SCHEME = re.compile("[a-z0-9+]{1,40}", re.ASCII)

STATE_DATABASE_NAME = "codex_state"
STATE_DATABASE_VERSION = 4
FALLBACK_PROVIDER = "openai"


def state_database_filename() -> str:
    """The name of the state file: ``codex_state_4.sqlite``. The original takes no file of that name for its own."""
    return f"{STATE_DATABASE_NAME}_{STATE_DATABASE_VERSION}.sqlite"


class StateSettings(BaseSettings):
    """Settings of one state runtime.

    Every field can be given as an argument (``StateSettings(codex_home=path)``), as an environment variable, or in the
    file of variables that ``CODEX_STATE_ENV_FILE`` names, in this order of strength. The variables are ``CODEX_HOME``,
    ``CODEX_SQLITE_HOME``, ``CODEX_STATE_DATABASE_URL``, and ``CODEX_STATE_<FIELD>`` for the others. A file is only read
    when it is named: an ``.env`` in a directory that somebody else made must not say where conversations are written.

    Raises:
        ConfigurationError: a value can't be used; the text names the setting.
    """

    model_config = SettingsConfigDict(
        env_prefix="CODEX_STATE_",
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    codex_home: Path = Field(default=Path("~/.codex"), validation_alias=AliasChoices("codex_home", "CODEX_HOME"))
    """The Codex home: it holds ``sessions/``, ``archived_sessions/`` and ``config.toml``. Made absolute."""

    sqlite_home: Path | None = Field(default=None, validation_alias=AliasChoices("sqlite_home", "CODEX_SQLITE_HOME"))
    """Where the SQLite file lies, when not in the Codex home (for homes on network file systems)."""

    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("database_url", "CODEX_STATE_DATABASE_URL")
    )
    """A SQLAlchemy URL that replaces the default SQLite file; as an argument also SQLAlchemy's or pydantic's object."""

    home: str | None = None
    """The name of this Codex home in a database that serves several. See ``StateRuntime.home``."""

    default_provider: str | None = None
    """The provider of threads that name none. See ``provider``."""

    busy_timeout: timedelta = Field(default=timedelta(seconds=5), ge=timedelta(0))
    """How long a statement waits, in total, for another process's write to end; at most 20 days."""

    retry_for: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))
    """How long a unit of work waits, in total, for a database server that is away: refused connections, a restart."""

    pool_size: int = Field(default=5, ge=1)
    """How many connections are kept open at most."""

    transaction_pooling: bool = False
    """Whether ``database_url`` leads to a pooler that gives each transaction another connection, as PgBouncer does with
    ``pool_mode = transaction``. Nothing is then kept in the server's session."""

    migrate: bool = True
    """Whether opening brings an older schema up to date; if not, an older schema is refused."""

    backfill_lease: timedelta = Field(default=timedelta(seconds=900), ge=timedelta(seconds=1))
    """How long a backfill worker may be silent before another takes over."""

    backfill_wait: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))
    """How long opening waits for another worker's backfill."""

    backfill_batch_size: int = Field(default=200, ge=1)
    """Rollouts per transaction of a backfill."""

    log_max_bytes: int | None = Field(default=64 * 1024 * 1024, ge=1024 * 1024)
    """What the log lines may take in the database, with their index entries and SQLite's write-ahead log."""

    log_max_rows: int | None = Field(default=None, ge=0)
    """How many log lines are kept at most."""

    log_max_age: timedelta | None = Field(default=timedelta(days=14), ge=timedelta(0))
    """How long a log line is kept after its insertion."""

    def __init__(self, **values: Any) -> None:
        known = {*type(self).model_fields, "CODEX_HOME", "CODEX_SQLITE_HOME", "CODEX_STATE_DATABASE_URL"}
        for name in values:
            # Those that begin with an underscore are pydantic's own.
            if name not in known and not name.startswith("_"):
                raise ConfigurationError(f"invalid settings: there is no {name!r}{did_you_mean(name, known)}")
        if "_env_file" not in values and (named := os.environ.get(ENV_FILE_VARIABLE)):
            values["_env_file"] = _checked_env_file(Path(named))
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = "; ".join(
                ": ".join([*map(str, problem["loc"]), problem["msg"].removeprefix("Value error, ")])
                for problem in error.errors()
            )
            raise ConfigurationError(f"invalid settings: {problems}") from None

    @field_validator("busy_timeout", "retry_for", "backfill_lease", "backfill_wait", "log_max_age", mode="before")
    @classmethod
    def _plain_numbers_are_seconds(cls, value: Any) -> Any:
        # In the environment everything is text, and "5" is what people write.
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    @field_validator("database_url", mode="before")
    @classmethod
    def _url_as_text(cls, value: Any) -> Any:
        if hasattr(value, "render_as_string"):  # SQLAlchemy's URL, which isn't imported for this
            return value.render_as_string(hide_password=False)
        # All of pydantic's: a dozen classes that have no public base.
        return value.unicode_string() if hasattr(value, "unicode_string") else value

    @field_validator("codex_home", "sqlite_home")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        if "\0" in str(path):
            raise ValueError("a path can't hold a NUL character")
        try:
            absolute = path.expanduser().absolute()
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} can't be made absolute: {error}") from None
        try:
            (str(absolute) + os.path.realpath(absolute)).encode()
        except UnicodeEncodeError:
            # Neither a database's texts nor SQLite's file names can hold it.
            raise ValueError(f"the path {os.fsencode(absolute)!r} isn't UTF-8; rename the directory") from None
        return absolute

    @model_validator(mode="after")
    def _known_database(self) -> Self:
        if self.database_url is not None:
            # Whatever is no URL may be a password, or hold one.
            scheme, separator, _ = self.database_url.get_secret_value().partition("://")
            is_ours = scheme.partition("+")[0].partition(":")[0] in {"sqlite", "postgresql", "postgres"}
            if not is_ours and not (separator and _SCHEME.fullmatch(scheme)):
                raise ValueError("database_url: not a URL; expected sqlite:///path or postgresql://user@host/name")
            if not is_ours:
                raise ValueError(f"database_url: {scheme!r} is neither sqlite nor postgresql")
        return self

    @property
    def database_path(self) -> Path:
        """The SQLite file that is used when no ``database_url`` is given."""
        return (self.sqlite_home or self.codex_home) / state_database_filename()

    @cached_property
    def provider(self) -> str:
        """The provider of threads that name none: this setting, else ``model_provider`` of the home's ``config.toml``.

        Raises:
            ConfigurationError: ``config.toml`` is there but can't be read. Guessing would write wrong rows.
        """
        if self.default_provider:
            return self.default_provider
        try:
            config = config_of(self.codex_home)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"the default provider isn't known: {error}; mend the file or set CODEX_STATE_DEFAULT_PROVIDER"
            ) from error
        # Whatever else the file holds is its program's business, even if it makes no sense.
        profiles, name = config.get("profiles"), config.get("profile")
        profile = profiles.get(name) if isinstance(profiles, dict) and isinstance(name, str) else None
        for table in (profile, config):
            provider = table.get("model_provider") if isinstance(table, dict) else None
            if isinstance(provider, str) and provider:
                return provider
        return FALLBACK_PROVIDER


def config_of(home: Path) -> dict[str, Any]:
    """What a home's ``config.toml`` says; nothing when there is none.

    Raises:
        ConfigurationError: it is there but can't be read.
    """
    path = home / "config.toml"
    try:
        return tomllib.loads(_text_of_small_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"can't read {path}: {_reason(error)}") from error


def _checked_env_file(path: Path) -> Path:
    try:
        _text_of_small_file(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"can't read the settings in {path}, which {ENV_FILE_VARIABLE} names: {_reason(error)}"
        ) from None
    return path


def _text_of_small_file(path: Path) -> str:
    """The text of a file that a program wrote, or anybody: never a pipe that nobody writes to, or a disk full of bytes.

    Raises:
        OSError: it can't be read, or isn't a regular file.
        ValueError: it is too large, or not UTF-8.
    """
    # Not blocking, because opening a named pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"larger than {_LARGEST_FILE:,} bytes")
    return content.decode("utf-8-sig")  # some editors begin a file with a byte order mark


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
