"""Which functions one job for one scope passes, and how deep a claim is: ``python -m tests.path_of_a_job``.

Counted by ``sys.setprofile`` over all threads: every function of the package that a pass enters for one memory, but no
comprehensions and nothing that only compiles statements; and the frames from a repository's verb to the driver.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from uuid import UUID, uuid4

import codex_state
from codex_state import (
    ExtractedMemory,
    MemoryScope,
    Phase1Key,
    Phase1Options,
    StateRuntime,
    StateSettings,
    Thread,
    run_phase1,
)
from codex_state.testing.samples import a_thread

PACKAGE = str(Path(codex_state.__file__).parent)
OWNER = UUID(int=1)


def functions_of_a_pass(runtime: StateRuntime) -> set[tuple[str, str]]:
    """The module and the name of every function that one job passes: claimed, extracted, stored, rendered."""
    passed: set[CodeType] = set()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            passed.add(frame.f_code)

    options = Phase1Options(scope_kinds=("cwd",), concurrency=1)
    for profile in (nullcontext, lambda: _profiled(note)):  # the first pass compiles the statements
        changed_at = datetime.now(UTC) - timedelta(minutes=1)
        thread = a_thread(id=uuid4(), updated_at=changed_at, rollout_path=None)
        runtime.run(lambda state, thread=thread: state.threads.upsert(thread))
        with profile():
            report = run_phase1(runtime, _extract, owner=OWNER, options=options)
        assert report.succeeded == 1, report
    return {
        (Path(code.co_filename).relative_to(PACKAGE).as_posix(), code.co_qualname)
        for code in passed
        if not code.co_name.startswith("<")
    }


def _extract(_thread: Thread) -> ExtractedMemory:
    return ExtractedMemory("what was said", "a summary")


def frames_of_a_claim(runtime: StateRuntime) -> list[str]:
    """The functions from ``try_claim`` down to the driver's cursor, both of them included, at the deepest."""
    deepest: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event != "c_call" or not isinstance(getattr(argument, "__self__", None), sqlite3.Cursor | super):
            return
        if argument.__name__ != "execute":
            return
        names = []
        at: FrameType | None = frame
        while at is not None and at.f_code.co_name != "try_claim":
            names.append(at.f_code.co_qualname)
            at = at.f_back
        if at is not None and len(names) >= len(deepest):
            deepest[:] = ["try_claim", *reversed(names)]

    threads = [a_thread(id=UUID(int=number)) for number in (3, 4)]
    runtime.run(lambda state: state.threads.upsert_many(threads))
    with runtime.autocommit() as state:

        def claim(thread: Thread) -> object:
            return state.phase1_jobs.try_claim(
                Phase1Key(thread.id, MemoryScope.user()),
                owner=OWNER,
                source_updated_at=thread.updated_at,
                lease=timedelta(hours=1),
            )

        claim(threads[0])  # compiles the statement
        with _profiled(note):
            claim(threads[1])
    return deepest


@contextmanager
def _profiled(note: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def main() -> None:
    with tempfile.TemporaryDirectory() as home, StateRuntime.open(StateSettings(codex_home=Path(home))) as runtime:
        frames = frames_of_a_claim(runtime)
    print(f"a claim: {len(frames)} frames")
    for name in frames:
        print(f"  {name}")
    with tempfile.TemporaryDirectory() as home, StateRuntime.open(StateSettings(codex_home=Path(home))) as runtime:
        functions = functions_of_a_pass(runtime)
    modules = sorted({module for module, _name in functions})
    print(f"one job for one scope: {len(functions)} functions in {len(modules)} modules")
    for module in modules:
        print(f"  {module}: {', '.join(sorted(name for each, name in functions if each == module))}")


if __name__ == "__main__":
    main()
