"""Whose the rows are in an SQLite file that several homes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import and_, bindparam, exists, select, update

from codex_state.models import LOCAL_HOME, BackfillState, Thread
from codex_state.models.base import table_of
from codex_state.models.columns import text
from codex_state.repositories.base import Repository

_threads, _backfills = table_of(Thread), table_of(BackfillState)

_UNNAMED = and_(
    _threads.c.home == LOCAL_HOME,
    # Not LIKE, in which a path's characters could mean something.
    _threads.c.rollout_path >= bindparam("first_path", type_=text),
    _threads.c.rollout_path < bindparam("after_paths", type_=text),
    # Looked for until the home is indexed: then it has what is its own.
    ~exists().where(_backfills.c.home == bindparam("of_home", type_=text)),
)
_HAS_UNNAMED = select(_threads.c.id).where(_UNNAMED).limit(1)
_NAME = update(_threads).where(_UNNAMED).values(home=bindparam("of_home", type_=text)).returning(_threads.c.id)


class HomeRepository(Repository):
    """Gives threads that were stored under no home's name to the home that their rollouts lie in."""

    def has_unnamed(self, home: str, directory: Path) -> bool:
        """Whether there are such threads with rollouts below ``directory``, and the home was never indexed."""
        return self._one(_HAS_UNNAMED, _below(home, directory)) is not None

    def name(self, home: str, directory: Path) -> int:
        """Give those threads to the home, and say how many they were."""
        return len(self._all(_NAME, _below(home, directory)))


def _below(home: str, directory: Path) -> dict[str, Any]:
    # "0" is the character after "/".
    return {"of_home": home, "first_path": f"{directory}/", "after_paths": f"{directory}0"}
