"""One spelling for a path, by Python and by either database."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import literal, select

from codex_state.models.columns import normal_path, normal_spelling, text
from tests import stores

PIECES = st.sampled_from(
    ["/", "/", "//", "/./", "/.", ".", "..", "a", "é", "C:\\", ":\\", "c:", "\\", "\\\\?\\", " ", "%"]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(st.lists(PIECES, max_size=9).map("".join), min_size=1, max_size=50))
def test_sql_and_python_spell_a_path_alike_and_once(clocked: stores.Clocked, paths: list[str]) -> None:
    spelled = [normal_spelling(path) for path in paths]
    with clocked.database.engine.connect() as connection:
        assert list(connection.execute(select(*(normal_path(literal(path, text)) for path in paths))).one()) == spelled
    assert [normal_spelling(path) for path in spelled] == spelled


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/a//b/./", "/a/b"),
        ("/a/b/.", "/a/b"),
        ("/a/..", "/a/.."),
        ("a/b/", "a/b"),
        ("\\\\?\\c:\\x\\", "C:\\x"),
        ("", ""),
    ],
)
def test_needless_parts_are_left_out(path: str, normal: str) -> None:
    assert normal_spelling(path) == normal
