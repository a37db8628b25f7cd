"""``codex-state backfill`` and ``homes``: bring the index up to date with the rollouts, and how far each home's is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from codex_state.cli import HELD
from codex_state.cli.context import CodexHome, Json, begun_backfills, holder_of, opened, quiet_log
from codex_state.cli.output import (
    Column,
    ago,
    counted,
    note,
    one_line,
    record_of,
    shown_progress,
    write,
    write_json,
    write_table,
)

if TYPE_CHECKING:
    from datetime import datetime

    from codex_state.rollout import BackfillReport


_NAMED_FAILURES = 20


def backfill(
    context: typer.Context,
    *,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Read again the files that failed before.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Read every file again, also when all were read.")] = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Index every rollout of the home, or what is new since the last time.

    Goes on where an interrupted run stopped. A file that can't be read is named and doesn't stop the rest.
    """
    from codex_state import rollout
    from codex_state.rollout import BackfillOutcome

    with opened(context, codex_home, writes=True) as runtime:
        try:
            with shown_progress() as on_progress, quiet_log():
                report = rollout.backfill(
                    runtime, on_progress=on_progress, refresh=True, again=again, retry_failed=retry_failed
                )
        except KeyboardInterrupt:
            note("interrupted; what was indexed is kept, and the next run goes on from there")
            raise
        held_by = None if report.status is BackfillOutcome.COMPLETE else holder_of(runtime)
    if as_json:
        write_json(_as_json(report))
    else:
        write(f"{_summary(report)}\n")
    _name_failures(report)
    if held_by is not None:
        note(f"the index is being built by {held_by}; wait for it, or run this again after that")
        raise typer.Exit(HELD)


def _as_json(report: BackfillReport) -> dict[str, Any]:
    return {
        "status": report.status.value,
        "scanned": report.scanned,
        "upserted": report.upserted,
        "failed": report.failed,
        "gone": report.gone,
        "parse_errors": report.parse_errors,
        "unknown_lines": report.unknown_lines,
        "watermark": report.watermark,
        "seconds": round(report.seconds, 3),
        "failures": [{"path": failure.path, "error": failure.error} for failure in report.failures],
        "skipped": [{"path": skipped.path, "reason": skipped.error} for skipped in report.skipped],
        "unseen": [
            {"path": place.path, "reason": place.error, "known_rollouts": place.rollouts} for place in report.unseen
        ],
    }


def _summary(report: BackfillReport) -> str:
    counts = [
        f"{report.upserted:,} indexed",
        f"{report.failed:,} failed",
        *([f"{report.gone:,} gone"] if report.gone else []),
        f"{counted(report.parse_errors, 'broken line')} skipped",
        *([f"{counted(report.unknown_lines, 'line')} of kinds that aren't read"] if report.unknown_lines else []),
    ]
    return (
        f"{report.status.value.replace('_', ' ')}: {counted(report.scanned, 'file')} in {report.seconds:.1f} s, "
        f"{', '.join(counts)}"
    )


def _name_failures(report: BackfillReport) -> None:
    places = {place.path: str(place) for place in report.unseen}
    for failure in report.failures[:_NAMED_FAILURES]:
        # Most errors name the file themselves.
        where = "" if failure.path in failure.error else f"{failure.path}: "
        note(f"failed: {one_line(places.get(failure.path) or where + failure.error)}")
    if report.failed > _NAMED_FAILURES:
        more = counted(report.failed - _NAMED_FAILURES, "more failure")
        note(f"and {more}; --json names the first {len(report.failures):,}")
    for skipped in report.skipped[:_NAMED_FAILURES]:
        note(f"passed over: {one_line(places.get(skipped.path) or f'{skipped.path}: {skipped.error}')}")


def homes(context: typer.Context, *, codex_home: CodexHome = None, as_json: Json = False) -> None:
    """List the homes that share the database: how far each is indexed, and by whom."""
    with opened(context, codex_home, needs_home=False) as runtime:
        backfills = begun_backfills(runtime)
        this = runtime.home
    if as_json:
        write_json({"items": [record_of(backfill) for backfill in backfills], "this_home": this})
        return
    write_table(
        [
            Column("HOME", lambda b: b.home, takes_the_rest=True, style="cyan"),
            Column("INDEX", lambda b: b.status.value),
            Column("COMPLETED", lambda b: b.last_success_at, lambda b: _ago(b.last_success_at), style="dim"),
            Column("MOVED", lambda b: b.updated_at, lambda b: ago(b.updated_at), style="dim"),
            Column("BY", lambda b: b.owner_name, lambda b: b.owner_name or "-", from_width=80),
            Column("SINCE", lambda b: b.claimed_at, lambda b: _ago(b.claimed_at), from_width=100, style="dim"),
        ],
        backfills,
    )
    if this not in {backfill.home for backfill in backfills}:
        note(f"this home, {this}, isn't indexed yet; run `codex-state backfill`")


def _ago(moment: datetime | None) -> str:
    return "-" if moment is None else ago(moment)
