"""Processes for tests in place of the host's.

A claim notes which process it is made by, and takes work over from a process of its host that is dead. A test that
wants a holder to die would have to kill one. With ``ManualProcesses`` it says who it is, and who is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from codex_state.database import Database
from codex_state.models.columns import whole_seconds
from codex_state.processes import THIS_HOST, Owner, use_processes

HERE = "here:1"
"""A host."""

ELSEWHERE = "elsewhere:1"
"""Another one."""


def owner_columns(lease: timedelta, known_as: str = "") -> dict[str, Any]:
    """What a claim of this process writes of itself into a row."""
    this = THIS_HOST.this()
    return {
        "owner_name": this.known_as(known_as),
        "owner_process": this.process,
        "lease_seconds": whole_seconds(lease) or None,
    }


def a_process(number: int, host: str | None = HERE) -> Owner:
    """The process of this number on a host; one of no host has no identity."""
    if host is None:
        return Owner(f"nowhere process {number}", None)
    return Owner(f"{host.partition(':')[0]} process {number}", f"{host}:{number}:0")


class ManualProcesses:
    """Who claims, as a test says: process 1 of ``HERE`` at first."""

    def __init__(self) -> None:
        self._this = a_process(1)
        self._dead: set[str] = set()
        self.meanwhile: Callable[[], object] | None = None
        """What happens once, between the next judgement and what is done about it."""

    @contextmanager
    def installed(self, *databases: Database) -> Iterator[None]:
        """Have claims on these databases ask this within the block, in this process."""
        for database in databases:
            use_processes(database.engine, self)
        try:
            yield
        finally:
            for database in databases:
                use_processes(database.engine, THIS_HOST)

    def become(self, number: int, host: str | None = HERE) -> Owner:
        """Be the process of this number from now on. One of no host has no identity."""
        self._this = a_process(number, host)
        return self._this

    def kill(self, owner: Owner) -> None:
        """Have a process die. Of one that has no identity nobody learns."""
        if owner.process is not None:
            self._dead.add(owner.process)

    def this(self) -> Owner:
        """Who the test is."""
        return self._this

    def host(self) -> str | None:
        """Where it is."""
        process = self._this.process
        return None if process is None else process.rsplit(":", 2)[0]

    def is_dead(self, process: str) -> bool:
        """Whether it was killed, and on the host where the test is."""
        host = self.host()
        is_dead = host is not None and process.startswith(f"{host}:") and process in self._dead
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return is_dead
