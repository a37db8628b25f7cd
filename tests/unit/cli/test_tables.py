"""How listings fit, and how progress is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from codex_state.cli.entry import status_of
from codex_state.cli.output import Column, _widths, figures_of, short_key
from codex_state.errors import (
    BackfillTimeoutError,
    DatabaseBusyError,
    DatabaseCorruptError,
    InvalidInputError,
    SchemaTooNewError,
    StateError,
)
from codex_state.rollout.backfilling import BackfillProgress

COLUMNS: list[Column[str]] = [
    Column("ID", str),
    Column("A", str),
    Column("TITLE", str, takes_the_rest=True),
]


@given(st.lists(st.text(max_size=200), min_size=1, max_size=5), st.integers(40, 200))
def test_a_table_is_as_wide_as_it_may_be_and_never_wider(titles: list[str], width: int) -> None:
    widths = _widths(COLUMNS, [["x" * 20, "yy", title] for title in titles], width)
    assert widths[:2] == [20, 2]
    longest = max(cell_len(title) for title in titles)
    assert widths[2] == max(min(max(longest, len("TITLE")), width - 20 - 2 - 6), len("TITLE"))
    assert sum(widths) + 2 * len(widths) <= max(width, 20 + 2 + 5 + 6)


def test_wide_characters_count_as_the_cells_they_take() -> None:
    assert _widths(COLUMNS, [["1", "2", "日本語"]], 80) == [2, 1, 6]


@pytest.mark.parametrize(
    ("key", "shown"),
    [("/home/dev/orchard-api", "orchard-api"), ("user", "user"), ("/", "/"), ("/a/" + "b" * 40, "b" * 18), ("", "")],
)
def test_a_scope_is_shown_by_its_last_part(key: str, shown: str) -> None:
    assert short_key(key) == shown


@pytest.mark.parametrize(
    ("seconds", "figures"),
    [
        (0.0, "0/2,000 files, 0 MB/s, 0 failed"),
        (2.0, "500/2,000 files, 25 MB/s, 3 failed, 0:06 left"),
        (2000.0, "500/2,000 files, 0 MB/s, 3 failed, 1:40:00 left"),
    ],
)
def test_progress_is_told_in_one_line(seconds: float, figures: str) -> None:
    started = seconds > 0
    progress = BackfillProgress(
        files_done=500 if started else 0,
        files_total=2000,
        bytes_done=50_000_000 if started else 0,
        bytes_total=200_000_000,
        failed=3 if started else 0,
        seconds=seconds,
    )
    assert figures_of(progress) == figures


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StateError("x"), 1),
        (DatabaseCorruptError("x"), 1),
        (SchemaTooNewError("x"), 4),
        (InvalidInputError("x"), 2),
        (DatabaseBusyError("x"), 3),
        (BackfillTimeoutError("x"), 3),
    ],
)
def test_every_error_has_its_exit_status(error: StateError, status: int) -> None:
    assert status_of(error) == status
