"""What a server says is told apart by its SQLSTATE, whatever language it speaks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from codex_state import DatabaseUnavailableError, ServerUnavailableError, StateRuntime, StateSettings
from codex_state.errors import classify_connecting

SERVER = Path(__file__).parents[1] / "refusing_server.py"


@contextmanager
def refusing(state: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, str(SERVER), state], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.kill()


def test_a_server_that_starts_and_says_so_in_another_language_may_be_waited_for(tmp_path: Path) -> None:
    with refusing("57P03") as port:
        url = f"postgresql://user:secret@127.0.0.1:{port}/database"
        settings = StateSettings(codex_home=tmp_path, database_url=url, retry_for=timedelta(0))
        with pytest.raises(ServerUnavailableError) as told:
            StateRuntime.open(settings)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(("state", "kind"), [("57P03", ServerUnavailableError), ("28P01", DatabaseUnavailableError)])
def test_a_refusal_with_a_mark_of_its_severity_is_told_apart_by_its_state(state: str, kind: type[Exception]) -> None:
    """As in German, whose word for FATAL is the same: the rest of the text is no English."""
    import psycopg

    with refusing(state) as port:
        with pytest.raises(psycopg.OperationalError) as raised:
            psycopg.connect(f"host=127.0.0.1 port={port} user=u dbname=d")
        told = psycopg.OperationalError("FATAL:  das Datenbanksystem startet", pgconn=raised.value.pgconn)
        assert type(classify_connecting(told)) is kind
