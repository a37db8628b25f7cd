"""Calls as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from tests.history.calls import Answer, Call
from tests.history.seconds import Window

_HEADINGS = ("from ms", "to ms", "worker", "clock", "call", "answer")


def table_of(heading: str, calls: Sequence[Call], windows: Sequence[Window], origins: Sequence[Call]) -> str:
    """The calls, one per line, with times since the first of them, and before them where their tokens come from."""
    epoch = min(call.start for call in (*calls, *origins))
    lines = [_cells(call, epoch, _seconds(window)) for call, window in zip(calls, windows, strict=True)]
    before = [_cells(call, epoch, "") for call in origins]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *before, *lines, strict=True)]
    text = [heading, _line(_HEADINGS, widths)]
    if before:
        text += ["where its tokens come from:", *(_line(cells, widths) for cells in before), "the calls:"]
    return "\n".join([*text, *(_line(cells, widths) for cells in lines)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cells(call: Call, epoch: int, seconds: str) -> tuple[str, ...]:
    arguments = ", ".join(f"{name}={_short(name, value)}" for name, value in call.arguments.items())
    return (
        _milliseconds(call.start - epoch),
        "" if call.end is None else _milliseconds(call.end - epoch),
        call.worker,
        seconds,
        f"{call.verb}({arguments})",
        "none" if call.answer is None else _answer(call.answer),
    )


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.3f}"


def _seconds(window: Window) -> str:
    if window.first > window.last:
        return ""
    return f"{window.first}" if window.first == window.last else f"{window.first} to {window.last}"


def _short(name: str, value: object) -> str:
    return str(value)[:8] if name in {"token", "owner"} else str(value)


def _answer(answer: Answer) -> str:
    known = {
        "": answer.token and answer.token[:8],
        "at": answer.seconds,
        "attempt": answer.attempt,
        "failures": answer.failures or None,
        "watermark": answer.watermark,
        "row": answer.row and dict(answer.row),
    }
    told = (f"{name} {value}".strip() for name, value in known.items() if value is not None)
    return ", ".join([f"{answer.outcome} {next(told)}" if answer.token else answer.outcome, *told])
