"""``codex-state doctor``: what is wrong, and mending it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codex_state.cli import FAILED
from codex_state.cli.context import CodexHome, Json, patiently, settings_for
from codex_state.cli.output import counted, note, one_line, write, write_json
from codex_state.errors import StateError

if TYPE_CHECKING:
    from codex_state.doctor import Finding
    from codex_state.runtime import StateRuntime
    from codex_state.settings import StateSettings


def doctor(
    context: typer.Context,
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended. Stop the workers first.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Hold indexes against their tables as well: slower.")] = False,
    codex_home: CodexHome = None,
    as_json: Json = False,
) -> None:
    """Check the state, its file and what is around it. Changes nothing without --repair.

    Exit status 1 when a problem is left.
    """
    from codex_state.database import file_of
    from codex_state.database.state_files import is_missing
    from codex_state.doctor import Severity, check_file

    settings = settings_for(context, codex_home)
    path, done = file_of(settings), list[str]()
    if path is not None and is_missing(path):
        raise StateError(f"there is no database at {path} yet; run `codex-state backfill`")
    found = [] if path is None else list(check_file(path, full=full))
    if repair and path is not None:
        done += _mend_file(path, found)
        found = list(check_file(path, full=full))
    if not any(finding.check == "integrity" and finding.severity is Severity.PROBLEM for finding in found):
        found += _findings_of_state(settings, done, repair=repair)
    if as_json:
        write_json({"ok": not _problems(found), "findings": [_as_json(each) for each in found], "repaired": done})
    else:
        for each in done:
            write(f"repaired  {one_line(each)}\n")
        for finding in found:
            advice = f" ({finding.advice})" if finding.advice else ""
            write(f"{finding.severity.value:<8}  {finding.check}: {one_line(finding.text + advice)}\n")
    if _problems(found):
        raise typer.Exit(FAILED)


def _mend_file(path: Path, found: list[Finding]) -> list[str]:
    from codex_state import doctor
    from codex_state.doctor import Severity
    from codex_state.doctor.checks import mend_permissions

    done = []
    for finding in found:
        if not finding.is_repairable:
            continue
        if finding.check == "permissions":
            if not (refused := mend_permissions(path)):
                done.append("the state's files are for their user alone")
            for each in refused:
                note(each)
        elif finding.check == "integrity" and finding.severity is Severity.PROBLEM:
            salvaged = doctor.salvage(path)
            done.append(f"the damaged file is set aside as {salvaged.set_aside}")
            for table, rows in salvaged.rows.items():
                lost = salvaged.incomplete.get(table)
                done.append(f"{table}: {counted(rows, 'row')} saved{f'; {lost}' if lost else ''}")
    return done


def _findings_of_state(settings: StateSettings, done: list[str], *, repair: bool) -> list[Finding]:
    from codex_state.doctor import check_state
    from codex_state.runtime import StateRuntime

    with patiently(settings, lambda: StateRuntime.open(settings, for_reading=not repair)) as runtime:
        found = list(check_state(runtime))
        if not repair:
            return found
        for check in dict.fromkeys(finding.check for finding in found if finding.is_repairable):
            done += [_REPAIRS[check](runtime)]
        return list(check_state(runtime))


def _take_in_files(runtime: StateRuntime) -> str:
    from codex_state.rollout import backfill

    report = backfill(runtime, refresh=True)
    if report.failed:
        note(f"{counted(report.failed, 'file')} can't be indexed; `codex-state backfill` says why")
    return f"the index is as the home's files are: {counted(report.upserted, 'thread')} taken in"


def _prune_logs(runtime: StateRuntime) -> str:
    return f"{counted(runtime.database.keep_logs_within_bounds(), 'log line')} deleted"


_REPAIRS: dict[str, Callable[[StateRuntime], str]] = {"files": _take_in_files, "logs": _prune_logs}


def _problems(found: list[Finding]) -> bool:
    from codex_state.doctor import Severity

    return any(finding.severity is Severity.PROBLEM for finding in found)


def _as_json(finding: Finding) -> dict[str, object]:
    return {
        "check": finding.check,
        "severity": finding.severity.value,
        "text": finding.text,
        "advice": finding.advice or None,
        "repairable": finding.is_repairable,
    }
