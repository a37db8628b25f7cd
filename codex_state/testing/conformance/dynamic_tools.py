"""Tools of threads: written once."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from codex_state.database import Database
from codex_state.errors import IntegrityViolationError
from codex_state.runtime import State
from codex_state.testing.samples import a_thread, a_tool


class TestDynamicTools:
    """``DynamicToolRepository``."""

    def test_a_thread_without_tools_has_none(self, state: State) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        state.dynamic_tools.persist([])
        assert state.dynamic_tools.get(thread.id) is None
        assert state.dynamic_tools.get(uuid4()) is None

    def test_tools_come_back_in_the_order_of_their_positions(self, state: State) -> None:
        thread, other = a_thread(), a_thread()
        state.threads.upsert_many([thread, other])
        tools = [a_tool(thread, position) for position in (10, 2, 1, 0)]
        state.dynamic_tools.persist([*tools, a_tool(other, 5)])
        assert state.dynamic_tools.get(thread.id) == sorted(tools, key=lambda tool: tool.position)
        assert state.dynamic_tools.get(other.id) == [a_tool(other, 5)]

    def test_a_stored_position_stays_as_it_is(self, state: State) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        first = [a_tool(thread, 0), a_tool(thread, 1)]
        state.dynamic_tools.persist(first)
        state.dynamic_tools.persist([a_tool(thread, 1, name="other"), a_tool(thread, 2)])
        assert state.dynamic_tools.get(thread.id) == [*first, a_tool(thread, 2)]

    @pytest.mark.parametrize(
        "schema",
        [
            None,
            {},
            [],
            "text",
            1.5,
            True,
            {"b": [1, None, {"ä": "\N{PILE OF POO}"}], "a": {"type": "object"}},
            {"deep": [[[[[[[[1]]]]]]]]},
        ],
    )
    def test_a_schema_is_any_json_value(self, state: State, schema: Any) -> None:
        thread = a_thread()
        state.threads.upsert(thread)
        tool = a_tool(thread, input_schema=schema, defer_loading=True, namespace="mcp")
        state.dynamic_tools.persist([tool])
        assert state.dynamic_tools.get(thread.id) == [tool]

    def test_a_tool_of_a_thread_without_a_row_is_refused_with_the_whole_batch(self, database: Database) -> None:
        """L5."""
        thread = a_thread()
        with database.autocommit() as session:
            state = State(session)
            state.threads.upsert(thread)
            with pytest.raises(IntegrityViolationError):
                state.dynamic_tools.persist([a_tool(thread), a_tool(a_thread())])
            assert state.dynamic_tools.get(thread.id) is None
