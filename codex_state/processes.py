"""Which process holds a lease, and whether it is dead, so that nobody has to wait for a dead holder's lease to run out.

A host is a boot of a kernel and a PID namespace in it; a process is its id there and the time at which it started. A
dead process never comes back under the same four, so that somebody is dead is a fact that no later moment changes: it
may be found out in Python, before the statement that takes the work over and is guarded by exactly this process.

Only a process of this host can be judged. Where the four can't be read (without Linux's ``/proc``, or with one of
another namespace) a process has no identity, nobody judges it, and the lease alone decides. So it does for whoever
can't be seen: a process that another user hides, one in another container, one on another machine.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from sqlalchemy import Dialect, Engine

_PROCESSES_ATTRIBUTE = "codex_state_processes"

_PROC = Path("/proc")
_GONE = frozenset("ZXx")
"""States of a thread that runs no code any more."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process as a row names it."""

    name: str
    """For people: host and process."""
    process: str | None
    """For its neighbours: boot id, PID namespace, process id and start time, with colons in between. ``None``: nobody
    can tell whether it lives."""

    def known_as(self, what: str) -> str:
        """The name, with what the process says of itself."""
        return f"{self.name} ({what})" if what else self.name


class Processes(Protocol):
    """Who this process is, and which of its neighbours are dead. Tests have one of their own: see ``use_processes``."""

    def this(self) -> Owner:
        """This process."""

    def host(self) -> str | None:
        """What the identities of all processes of this host begin with, up to the colon; ``None`` if they have none."""

    def is_dead(self, process: str) -> bool:
        """Whether this process of this host surely is dead. Of any other it is never said."""


class ThisHost:
    """The processes that this one sees."""

    def this(self) -> Owner:
        """This process, also in a forked child."""
        return _owner_of(os.getpid())

    def host(self) -> str | None:
        """Boot id and PID namespace."""
        process = self.this().process
        return None if process is None else _host_of(process)

    def is_dead(self, process: str) -> bool:
        """No process has its id, or one that started at another time, or it is a zombie."""
        host = self.host()
        if host is None or _host_of(process) != host:
            return False
        pid, _, start = process.removeprefix(f"{host}:").partition(":")
        if not (pid.isdecimal() and start.isdecimal()):
            return False
        try:
            found = _Stat.of(int(pid))
        except (FileNotFoundError, ProcessLookupError):
            # Other users' processes may be hidden from /proc, but not from this.
            return not _takes_signals(int(pid))
        except OSError:
            return False
        return found.start != start or found.has_ended


THIS_HOST = ThisHost()


@dataclass(frozen=True, slots=True)
class _Stat:
    start: str
    """In ticks since the boot."""
    has_ended: bool
    """A zombie, which waits for its parent. A first thread that has ended while others go on looks like one."""

    @classmethod
    def of(cls, pid: int) -> _Stat:
        # The name, in parentheses, may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        state, threads, start = fields[0], fields[17], fields[19]
        return cls(start, state in _GONE and int(threads) <= 1)


def _host_of(process: str) -> str:
    return ":".join(process.split(":")[:2])


@lru_cache(maxsize=1)
def _owner_of(pid: int) -> Owner:
    name = f"{socket.gethostname()} process {pid}"
    with suppress(OSError, ValueError, IndexError):
        # One that was mounted for another namespace has other numbers.
        if (_PROC / "self").readlink() == Path(str(pid)):
            boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
            namespace = str((_PROC / "self/ns/pid").readlink()).strip("pid:[]")
            if boot and namespace.isdecimal():
                return Owner(name, f"{boot}:{namespace}:{pid}:{_Stat.of(pid).start}")
    return Owner(name, None)


# A child may even have its parent's id, in a namespace of its own.
os.register_at_fork(after_in_child=_owner_of.cache_clear)


def _takes_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def processes_of(dialect: Dialect) -> Processes:
    """Whom claims on this engine's connections ask."""
    processes: Processes = getattr(dialect, _PROCESSES_ATTRIBUTE, THIS_HOST)
    return processes


def use_processes(engine: Engine, processes: Processes) -> None:
    """Have claims on this engine ask ``processes``. For tests: see ``codex_state.testing``."""
    setattr(engine.dialect, _PROCESSES_ATTRIBUTE, processes)
