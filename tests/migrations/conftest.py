"""Fresh databases without a schema, of both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import quick_schema
import stores

from codex_state.database import Database, prepare_sqlite_file
from tests.chaos.processes import WorkerHost
from tests.chaos.worlds import host
from tests.migrations.alembic_process import Alembic

__all__ = ["host"]


@pytest.fixture(autouse=True)
def made_by_alembic() -> Iterator[None]:
    """What is tested here is what Alembic makes."""
    with quick_schema.made_by_alembic():
        yield


@pytest.fixture
def alembic(host: WorkerHost) -> Alembic:
    """The command at the checkout's root."""
    return Alembic(host)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database."""
    if request.param == "postgresql":
        postgres_url: str = request.getfixturevalue("postgres_url")
        return postgres_url
    return f"sqlite:///{tmp_path / 'state.sqlite'}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A new, empty database."""
    with stores.opened(url) as opened:
        if opened.path is not None:
            prepare_sqlite_file(opened)
        yield opened
