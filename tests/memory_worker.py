"""A worker of the memory pipeline in a process of its own, which can be told to die or to pause at any step.

A ``WorkerHost`` starts it with its orders as JSON. It answers with the outcomes that it reports.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from codex_state import (
    ConsolidationOptions,
    ExtractedMemory,
    MemoryScope,
    Phase1Options,
    RetryPolicy,
    StateRuntime,
    StateSettings,
    Thread,
    ThreadMemory,
    consolidate_memories,
    run_phase1,
)
from codex_state.memory.leases import KeptLease
from codex_state.runtime import State
from tests.chaos.channel import Channel

STEPS = {
    "claim": ("codex_state.repositories.jobs", "Phase1JobRepository.claim_candidates"),
    "store": ("codex_state.memory.extraction", "_store_memory"),
    "begin": ("codex_state.repositories.jobs", "Phase1JobRepository.begin"),
    "upsert": ("codex_state.repositories.thread_memories", "ThreadMemoryRepository.upsert_if_owner"),
    "succeed": ("codex_state.repositories.jobs", "Phase1JobRepository.succeed"),
    "mark": ("codex_state.repositories.memory_scopes", "MemoryScopeRepository.mark_dirty"),
    "render": ("codex_state.memory.files", "render"),
    "write": ("codex_state.memory.files", "_write_all"),
    "acquire": ("codex_state.repositories.locks", "ConsolidationLockRepository.try_claim"),
    "clean": ("codex_state.repositories.memory_scopes", "MemoryScopeRepository.mark_clean"),
    "release": ("codex_state.repositories.locks", "ConsolidationLockRepository.release"),
}
"""The steps at which something can happen, before or after."""


@dataclasses.dataclass(frozen=True)
class Orders:
    """What a worker does."""

    home: Path
    database_url: str | None
    owner: UUID
    phase: str = "extract"
    lease: float = 3600
    concurrency: int = 1
    attempts: int = 3
    """How often a job may crash."""
    log: Path | None = None
    """Gets a line for each call of the worker's function."""
    pause_for: Path | None = None
    """The function waits until this file is there."""
    at: str | None = None
    """At which step something happens: ``before <step>`` or ``after <step>``, or ``within`` the function."""
    happens: str = "SIGKILL"
    """Which signal the worker sends to itself there."""

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def loads(cls, text: str) -> Orders:
        values = json.loads(text)
        for field in ("home", "log", "pause_for"):
            values[field] = values[field] and Path(values[field])
        return cls(**(values | {"owner": UUID(values["owner"])}))


def _arm(orders: Orders) -> None:
    if orders.happens == "SIGSTOP":
        _keep_renewals_apart()
    if orders.at is None or orders.at == "within":
        return
    moment, _, step = orders.at.partition(" ")
    module, path = STEPS[step]
    owner: Any = __import__(module, fromlist=["_"])
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        if moment == "before":
            _strike(orders)
        result = original(*arguments, **options)
        if moment == "after":
            _strike(orders)
        return result

    setattr(owner, name, wrapped)


_striking, _struck = threading.Lock(), threading.Event()
_arrived: list[threading.Thread] = []


def _strike(orders: Orders) -> None:
    """Once, by whichever thread comes first, and the others wait.

    A process is stopped when all its threads have come, so that none is stopped amid a write, whose locks would be held
    until it goes on.
    """
    if orders.happens == "SIGSTOP":
        _arrived.append(threading.current_thread())
        while len(set(_arrived)) < orders.concurrency:
            time.sleep(0.001)
    with _striking:
        if not _struck.is_set():
            _struck.set()
            # To this thread, which then doesn't run on. One to the process may be taken by a thread that sleeps.
            signal.pthread_kill(threading.get_ident(), getattr(signal, orders.happens))


def _keep_renewals_apart() -> None:
    """No renewal is under way when the process is stopped."""
    renew = KeptLease.renew

    def apart(self: KeptLease[Any], state: State) -> None:
        with _striking:
            renew(self, state)

    KeptLease.renew = apart  # type: ignore[method-assign]


def _called(orders: Orders, what: object) -> None:
    if orders.log is not None:
        with orders.log.open("a") as log:
            log.write(f"{what} {orders.owner}\n")
    if orders.at == "within":
        _strike(orders)
    while orders.pause_for is not None and not orders.pause_for.exists():
        time.sleep(0.01)


def _run(orders: Orders) -> Any:
    def extract(thread: Thread) -> ExtractedMemory:
        _called(orders, thread.id)
        return ExtractedMemory(f"of {thread.id} by {orders.owner}", f"by {orders.owner}")

    def consolidate(scope: MemoryScope, memories: Sequence[ThreadMemory]) -> None:
        _called(orders, f"{scope.kind} {len(memories)}")

    settings = StateSettings(
        codex_home=orders.home, database_url=orders.database_url, busy_timeout=timedelta(seconds=20)
    )
    lease = timedelta(seconds=orders.lease)
    with StateRuntime.open(settings) as runtime:
        if orders.phase == "extract":
            retry = RetryPolicy(attempts=orders.attempts)
            options = Phase1Options(lease=lease, concurrency=orders.concurrency, retry=retry)
            return run_phase1(runtime, extract, owner=orders.owner, options=options)
        return consolidate_memories(
            runtime,
            consolidate,
            owner=orders.owner,
            options=ConsolidationOptions(lease=lease, concurrency=orders.concurrency),
        )


def work(channel: Channel, orders: str) -> None:
    given = Orders.loads(orders)
    _arm(given)
    channel.send([result.outcome for result in _run(given).results])
