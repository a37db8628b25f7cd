"""The main job, told as a story: index a Codex home, list its threads, remember one of them.

    python examples/run.py

works on a scratch copy of the example home. With ``CODEX_HOME`` set it indexes that home instead, where the settings
say; the memory part then works on a scratch copy of the database, because what the stand-in extractor remembers has no
place in anybody's real state.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from extractor import extract
from make_home import HOME, copy_home

from codex_state import Claimed, Phase1Lease, StateError, StateRuntime, StateSettings, ThreadQuery, rollout

LEASE = timedelta(hours=1)
"""How long a worker may be silent before another takes over."""

ANY_AGE = timedelta(days=36500)
"""The example's threads are older than the 30 days that a real worker goes back."""


def main() -> None:
    """Tell the story on the user's home, or on a copy of the example's."""
    logging.getLogger("codex_state").setLevel(logging.ERROR)  # the story itself names what failed
    with tempfile.TemporaryDirectory(prefix="codex-state-") as directory:
        scratch = Path(directory)
        if os.environ.get("CODEX_HOME"):
            tell_about_home(StateSettings(), scratch)
        else:
            tell_about_example(scratch)


def tell_about_example(scratch: Path) -> None:
    """All of it on a copy of the example home, whatever databases the environment names."""
    home = scratch / "home"
    copy_home(HOME, home)
    settings = StateSettings(codex_home=home, sqlite_home=home, database_url=None)
    print(f"A scratch copy of the example home. Set CODEX_HOME to index your own.\n\n{home}")
    with StateRuntime.open(settings) as runtime:
        index(runtime)
        show_threads(runtime)
        remember(runtime, max_age=ANY_AGE)


def tell_about_home(settings: StateSettings, scratch: Path) -> None:
    """The index in the user's own state, the memory on a copy of it."""
    print(f"Your Codex home.\n\n{settings.codex_home}")
    with StateRuntime.open(settings) as runtime:
        index(runtime)
        show_threads(runtime)
        database = runtime.database.path
    if database is None:
        print("\n3. Remember\n   Left out: it would write made-up memories to your PostgreSQL database.")
        return
    with (
        closing(sqlite3.connect(database)) as source,
        closing(sqlite3.connect(scratch / database.name)) as copy,
    ):
        source.backup(copy)
    print("\n(From here on a scratch copy of the database, so that nothing made up gets into yours.)")
    on_the_copy = StateSettings(codex_home=settings.codex_home, sqlite_home=scratch, database_url=None)
    with StateRuntime.open(on_the_copy) as runtime:
        remember(runtime)


def index(runtime: StateRuntime) -> None:
    """Read every rollout once, and store what it says about its thread."""
    print("\n1. Index the rollouts")
    report = rollout.backfill(runtime)
    print(
        f"   {report.status}: {report.scanned} files in {report.seconds:.2f} s, {report.upserted} threads indexed, "
        f"{report.failed} failed, {report.parse_errors} broken lines passed over"
    )
    for failure in report.failures[:5]:
        print(f"   failed: {failure.error.replace(str(runtime.codex_home), '…')}")
    again = rollout.backfill(runtime)
    print(f"   once more: {again.scanned} files to read, for the index is complete")


def show_threads(runtime: StateRuntime) -> None:
    """The newest threads, and how many there are of which source."""
    print("\n2. List the threads")
    sources: Counter[str] = Counter()
    anchor = None
    while True:
        page = rollout.list_threads(runtime, ThreadQuery(limit=20, anchor=anchor))
        if anchor is None:
            for thread in page.items[:8]:
                name = " ".join(thread.display_name.split())
                print(f"   {thread.updated_at:%Y-%m-%d %H:%M}  {thread.cwd.name or '-':<12.12}  {name:.50}")
        sources.update("sub-agent" if thread.source.startswith("{") else thread.source for thread in page.items)
        anchor = page.next_anchor
        if anchor is None:
            break
    print(f"   {sources.total()} in all: {', '.join(f'{count} {source}' for source, count in sources.most_common())}")


def remember(runtime: StateRuntime, *, max_age: timedelta = timedelta(days=30)) -> None:
    """Claim the newest threads, extract one, lose the lease of another."""
    print("\n3. Remember")
    worker = uuid4()
    with runtime.autocommit() as state:
        leases = state.phase1_jobs.claim_candidates(
            owner=worker, lease=LEASE, limit=2, max_age=max_age, scope_kinds=("cwd",)
        )
    for lease in leases:
        print(f"   claimed {lease.key.thread_id} for {lease.key.scope.key}")
    if not leases:
        print("   nothing to claim: no recent interactive thread has anything new")
        return
    finish(runtime, leases[0])
    if len(leases) > 1:
        lose(runtime, leases[1])


def finish(runtime: StateRuntime, lease: Phase1Lease) -> None:
    """Do the job of a lease. The memory, the mark for consolidation and the end of the job commit together."""
    path = rollout.find_thread_path(runtime, lease.key.thread_id)
    if path is None:
        with runtime.begin() as state:
            state.phase1_jobs.fail(lease, "the rollout is gone")
        print("   its rollout is gone; the job is failed")
        return
    memory = extract(path)
    fingerprint = hashlib.sha256(memory.summary.encode()).hexdigest()
    with runtime.begin() as state:
        stored = state.thread_memories.upsert_if_owner(lease, memory.raw_memory, memory.summary)
        state.memory_scopes.mark_dirty(lease.key.scope)
        outcome = state.phase1_jobs.succeed(lease, raw_memory_path=path, summary_hash=fingerprint)
    assert outcome, stored
    with runtime.read() as state:
        (newest, *_) = state.thread_memories.last_n_for_scope(lease.key.scope, 1)
        dirty = state.memory_scopes.list_dirty()
    print(f"   remembered: {newest.memory_summary}")
    print(f"   {len(dirty)} scope waits for its consolidation")


def lose(runtime: StateRuntime, lease: Phase1Lease) -> None:
    """A worker is paused past its lease, another takes over, and the first one wakes up."""
    print(f"   the worker on {lease.key.thread_id} is paused past its lease;")
    with runtime.autocommit() as state:
        taken = state.phase1_jobs.try_claim(
            lease.key, owner=uuid4(), source_updated_at=lease.source_updated_at, lease=timedelta(0)
        )
        assert isinstance(taken, Claimed)
        print(f"   another takes over (attempt {taken.lease.attempt}); the first wakes up and wants to write:")
        outcome = state.thread_memories.upsert_if_owner(lease, "stale", "stale")
        print(f"   {outcome}, and nothing was changed")


if __name__ == "__main__":
    try:
        main()
    except StateError as error:
        sys.exit(f"run: {error}")
