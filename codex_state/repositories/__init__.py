"""One repository per family of tables; every write is a guarded statement that was built once."""

from codex_state.repositories.backfills import BackfillRepository
from codex_state.repositories.base import Repository
from codex_state.repositories.jobs import Phase1JobRepository
from codex_state.repositories.leases import LeaseRepository
from codex_state.repositories.locks import ConsolidationLockRepository, NamedLockRepository
from codex_state.repositories.logs import LogFollower, LogRepository
from codex_state.repositories.memory_scopes import MemoryScopeRepository
from codex_state.repositories.rollout_files import RolloutFileRepository
from codex_state.repositories.thread_memories import ThreadMemoryRepository
from codex_state.repositories.threads import DynamicToolRepository, HomeRepository, ThreadRepository
from codex_state.repositories.work import WorkRepository

__all__ = [
    "BackfillRepository",
    "ConsolidationLockRepository",
    "DynamicToolRepository",
    "HomeRepository",
    "LeaseRepository",
    "LogFollower",
    "LogRepository",
    "MemoryScopeRepository",
    "NamedLockRepository",
    "Phase1JobRepository",
    "Repository",
    "RolloutFileRepository",
    "ThreadMemoryRepository",
    "ThreadRepository",
    "WorkRepository",
]
