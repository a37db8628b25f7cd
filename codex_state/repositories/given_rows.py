"""Many rows of values in one parameter, for constant statements that decide on each of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import CTE, bindparam, cast, literal_column, select
from sqlalchemy.types import TypeEngine

from codex_state.database.sql import json_item, json_rows
from codex_state.models.columns import text

_PARAMETER = "given"


def given_rows(**columns: TypeEngine[Any]) -> CTE:
    """The rows of a statement's one parameter as a table, which ``parameters_of`` fills.

    Args:
        columns: the name and type of each value of a row, in order.
    """
    row = json_rows(bindparam(_PARAMETER, type_=text)).table_valued("value", name="given_row").c.value
    return select(
        *(
            cast(json_item(row, literal_column(str(index))), type_).label(name)
            for index, (name, type_) in enumerate(columns.items())
        )
    ).cte("given_rows")


def parameters_of(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """The parameter of a statement over ``given_rows``; UUIDs as they are stored."""
    spelled = json.dumps([list(row) for row in rows], ensure_ascii=False, separators=(",", ":"), default=str)
    return {_PARAMETER: spelled}


def storable(words: str) -> str:
    """A text as both databases can store it: without NULs and halves of characters."""
    return words.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
