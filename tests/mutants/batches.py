"""Checks that a batch of a backfill and its checkpoint are one (law L5)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from rollout_files import write_rollout

from codex_state import StateRuntime, backfill
from codex_state.models import metadata
from codex_state.repositories import RolloutFileRepository
from codex_state.rollout.backfilling import BackfillOutcome
from tests.mutants.bench import Bench, Check

LEASE = timedelta(seconds=60)


def _a_batch_after_a_take_over_is_refused_as_a_whole(bench: Bench) -> None:
    with bench.runtime(backfill_batch_size=1) as runtime:
        for number in range(3):
            write_rollout(runtime.codex_home, number)
        stored = []

        def take_over_once(_progress: object) -> None:
            if not stored:
                with runtime.autocommit() as state:
                    state.backfill.take_over(runtime.home, owner="rival", lease=LEASE)
                stored.extend(_rows(runtime))

        report = backfill(runtime, on_progress=take_over_once, workers=0)
        assert report.status is BackfillOutcome.LEASE_LOST
        assert _rows(runtime) == stored


def _a_batch_that_fails_leaves_the_watermark_where_it_was(bench: Bench) -> None:
    with bench.runtime(backfill_batch_size=1) as runtime:
        for number in range(3):
            write_rollout(runtime.codex_home, number)
        watermarks = []

        def broken(_files: object, _threads: object) -> None:
            with runtime.read() as state:
                before = state.backfill.get(runtime.home)
            watermarks.append(before and before.last_watermark)
            raise ZeroDivisionError

        def break_once(_progress: object) -> None:
            RolloutFileRepository.upsert_threads = broken  # type: ignore[method-assign]

        intact = RolloutFileRepository.upsert_threads
        try:
            backfill(runtime, on_progress=break_once, workers=0)
        except ZeroDivisionError:
            pass
        finally:
            RolloutFileRepository.upsert_threads = intact  # type: ignore[method-assign]
        with runtime.read() as state:
            after = state.backfill.get(runtime.home)
            indexed = len(state.threads.list_ids())
        assert indexed == 1
        assert after is not None
        assert watermarks == [after.last_watermark]
        assert after.last_watermark is not None
        assert after.last_watermark.endswith(f"{0:012d}.jsonl")


def _rows(runtime: StateRuntime) -> list[Any]:
    with runtime.read() as state:
        connection = state.session.connection()
        return [
            tuple(row)
            for table in metadata.sorted_tables
            for row in connection.exec_driver_sql(f"SELECT * FROM {table.name} ORDER BY 1, 2")
        ]


def batch_checks() -> Iterator[Check]:
    """The checks of this module."""
    for check in (
        _a_batch_after_a_take_over_is_refused_as_a_whole,
        _a_batch_that_fails_leaves_the_watermark_where_it_was,
    ):
        yield Check(check.__name__.strip("_").replace("_", " "), check)
