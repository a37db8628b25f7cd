"""What docs/alembic.md shows works as it stands there, on both databases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import alembic
import pytest

from codex_state import StateSettings
from tests import scripts, stores

PAGE = (Path(__file__).parents[2] / "docs" / "alembic.md").read_text()
TABLE, STATEMENT, ENVIRONMENT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TEMPLATE = Path(next(iter(alembic.__path__))) / "templates" / "generic" / "script.py.mako"

STORE_AND_JOIN = """
from uuid import uuid4

from sqlalchemy import inspect
from sqlmodel import Session

from codex_state import StateRuntime, Thread
from tables import Message

with StateRuntime.open() as runtime:
    (key,) = inspect(runtime.engine).get_foreign_keys("message")
    assert key["referred_table"] == "threads", key
    found, archived = Thread(id=uuid4(), source="cli", name="found"), Thread(id=uuid4(), source="cli", archived_at=None)
    runtime.run(lambda state: state.threads.upsert_many([found, archived]))
    with Session(runtime.engine) as session:
        session.add_all(Message(thread_id=thread.id, text="hello") for thread in (found, archived))
        session.get(Thread, archived.id).archived = True
        session.commit()
        assert session.exec(statement).all() == [("hello", "found")]
"""


MORE_KEYS = """    text: str
    about_id: UUID | None = thread_key(nullable=True)
    only_id_of_a_column_whose_name_is_too_long_for_postgresql: UUID | None = thread_key(nullable=True, unique=True)
"""

SHOW_KEYS = """
from sqlalchemy import inspect

from codex_state import StateRuntime

with StateRuntime.open() as runtime:
    print(sorted(key["name"] for key in inspect(runtime.engine).get_foreign_keys("message")))
"""


class Service:
    """A directory with what the page shows in it."""

    def __init__(self, directory: Path, settings: StateSettings) -> None:
        self.directory = directory
        (directory / "migrations" / "versions").mkdir(parents=True)
        for name, text in {
            "alembic.ini": "[alembic]\nscript_location = migrations\n",
            "tables.py": TABLE,
            "join.py": f"from tables import Message\n{STATEMENT}\n{STORE_AND_JOIN}",
            "migrations/env.py": re.sub("# import your modules.*", "import tables", ENVIRONMENT),
            "migrations/script.py.mako": TEMPLATE.read_text(),
        }.items():
            (directory / name).write_text(text)
        self.environment = {"CODEX_HOME": str(settings.codex_home)}
        if settings.database_url is not None:
            self.environment["CODEX_STATE_DATABASE_URL"] = settings.database_url.get_secret_value()

    def run(self, text: str, *arguments: str) -> str:
        here = (
            "import os, sys, warnings; warnings.simplefilter('default')\n"
            f"os.chdir({self.directory.as_posix()!r}); sys.path.insert(0, '.')\n"
        )
        done = scripts.run(here + text, *arguments, environment=self.environment)
        assert done.status == 0, done.stderr
        return done.stdout

    def alembic(self, *arguments: str) -> str:
        return self.run("from alembic.config import main; main(sys.argv[1:])", *arguments)


@pytest.fixture(params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "home").mkdir()
    with stores.fresh_settings(request.param, tmp_path / "home", request) as settings:
        yield Service(tmp_path / "service", settings)


def test_the_page_leads_from_a_table_to_a_join(service: Service) -> None:
    service.alembic("revision", "--autogenerate", "-m", "first")
    (written,) = (service.directory / "migrations" / "versions").glob("*.py")
    assert "codex_state" not in written.read_text()
    service.alembic("upgrade", "head")
    assert "No new upgrade operations" in service.alembic("check")
    service.run((service.directory / "join.py").read_text())


def test_keys_are_added_to_a_table_that_is_there_and_dropped_again(service: Service) -> None:
    """The names that a revision needs for that are within PostgreSQL's bounds."""
    service.alembic("revision", "--autogenerate", "-m", "first")
    service.alembic("upgrade", "head")
    tables = service.directory / "tables.py"
    tables.write_text(tables.read_text().replace("    text: str\n", MORE_KEYS))
    service.alembic("revision", "--autogenerate", "-m", "second")
    service.alembic("upgrade", "head")
    assert "No new upgrade operations" in service.alembic("check")
    shown = service.run(SHOW_KEYS)
    assert "'fk_message_about_id_threads', 'fk_message_only_id_" in shown, shown
    service.alembic("downgrade", "-1")
    assert service.run(SHOW_KEYS) == "['fk_message_thread_id_threads']\n"
    service.alembic("upgrade", "head")
    service.alembic("downgrade", "base")
