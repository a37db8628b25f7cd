"""How often and when a failed extraction is tried again."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from codex_state.errors import InvalidInputError
from codex_state.memory import ConsolidationOptions, Phase1Options, RetryPolicy
from codex_state.memory.leases import trust_window
from codex_state.models import Phase1Key

HOUR = timedelta(hours=1)


def test_by_default_the_first_failure_is_terminal() -> None:
    assert RetryPolicy().retry_after(1) is None


def test_attempts_include_the_first_one() -> None:
    policy = RetryPolicy(attempts=3)
    assert [policy.retry_after(failures) is None for failures in (1, 2, 3, 4)] == [False, False, True, True]


def test_waits_grow_by_the_factor_up_to_the_longest() -> None:
    policy = RetryPolicy(attempts=9, backoff=HOUR, factor=3, longest=timedelta(hours=20))
    assert [policy.retry_after(failures) for failures in (1, 2, 3, 4)] == [HOUR, 3 * HOUR, 9 * HOUR, 20 * HOUR]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("factor", [1.0 + 1e-9, 2.0, 3, 1e10, 1e300])
def test_endless_retries_do_not_overflow(factor: float) -> None:
    policy = RetryPolicy(attempts=10**12, factor=factor)
    waits = [policy.retry_after(10**power) for power in range(12)]
    assert waits[0] == HOUR
    assert waits[-1] == timedelta(days=1)
    assert all(wait is not None and HOUR <= wait <= timedelta(days=1) for wait in waits)


def test_no_wait_stays_none_however_often_it_fails() -> None:
    assert RetryPolicy(attempts=10**9, backoff=timedelta(0), factor=1e10).retry_after(10**6) == timedelta(0)


@pytest.mark.parametrize(
    "values",
    [
        {"attempts": 0},
        {"attempts": math.nan},
        {"backoff": timedelta(seconds=-1)},
        {"longest": -HOUR},
        {"factor": 0.5},
        {"factor": math.nan},
        {"factor": math.inf},
        {"factor": "2"},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        RetryPolicy(**values)


@pytest.mark.parametrize(
    "made",
    [
        lambda: Phase1Options(lease=60),  # type: ignore[arg-type]
        lambda: Phase1Options(timeout=60),  # type: ignore[arg-type]
        lambda: Phase1Options(max_age=60),  # type: ignore[arg-type]
        lambda: ConsolidationOptions(lease=60),  # type: ignore[arg-type]
        lambda: RetryPolicy(backoff=60),  # type: ignore[arg-type]
        lambda: trust_window(60),  # type: ignore[arg-type]
    ],
)
def test_a_number_is_no_duration(made: Callable[[], object]) -> None:
    with pytest.raises(InvalidInputError, match=r"not a duration: 60; give .*seconds=60"):
        made()


@pytest.mark.parametrize("value", ["4", 4.0, True, math.nan])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Phase1Options, "limit"),
        (Phase1Options, "concurrency"),
        (Phase1Options, "max_running"),
        (ConsolidationOptions, "limit"),
        (ConsolidationOptions, "concurrency"),
        (RetryPolicy, "attempts"),
    ],
)
def test_a_text_or_a_fraction_is_no_number_of_things(kind: Callable[..., object], name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}: not a whole number: {value!r}"):
        kind(**{name: value})


@pytest.mark.parametrize("name", ["sources", "scope_kinds"])
@pytest.mark.parametrize("value", ["cwd", [5], None])
def test_what_is_no_list_of_texts_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}: "):
        Phase1Options(**{name: value})  # type: ignore[arg-type]


def test_a_text_is_no_scope() -> None:
    with pytest.raises(InvalidInputError, match=r"MemoryScope\.user\(\)"):
        Phase1Key(uuid4(), "user")  # type: ignore[arg-type]
