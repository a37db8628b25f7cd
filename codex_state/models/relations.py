"""What belongs to a thread, as relationships of SQLAlchemy: for queries and sessions of a service's own.

They are for looking only. Repositories write, by guarded statements, and what they hand out belongs to no session.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import RelationshipProperty, foreign, relationship, remote
from sqlmodel import col

from codex_state.errors import UsageError
from codex_state.models.base import StateModel
from codex_state.models.memory import Phase1Job, ThreadMemory
from codex_state.models.thread import DynamicTool, Thread


def relate() -> None:
    """Map what the entities only name for type checkers."""
    key, parent = col(Thread.id), col(Thread.parent_thread_id)
    _add(
        Thread,
        dynamic_tools=relationship(DynamicTool, order_by=col(DynamicTool.position), viewonly=True),
        memories=relationship(
            ThreadMemory, order_by=[col(ThreadMemory.scope_kind), col(ThreadMemory.scope_key)], viewonly=True
        ),
        jobs=relationship(Phase1Job, order_by=[col(Phase1Job.scope_kind), col(Phase1Job.scope_key)], viewonly=True),
        parent=relationship(Thread, primaryjoin=foreign(parent) == remote(key), viewonly=True),
        children=relationship(
            Thread, primaryjoin=key == foreign(remote(parent)), order_by=[col(Thread.created_at), key], viewonly=True
        ),
    )
    for part in (DynamicTool, ThreadMemory, Phase1Job):
        _add(part, thread=relationship(Thread, viewonly=True))


def _add(entity: type[StateModel], **relations: RelationshipProperty[Any]) -> None:
    for name, relation in relations.items():
        setattr(entity, name, relation)
        event.listen(getattr(entity, name), "init_collection", _refuse_to_guess)
        event.listen(getattr(entity, name), "init_scalar", _refuse_to_guess)


def _refuse_to_guess(entity: StateModel, _value: object, _more: object) -> None:
    """SQLAlchemy would say that nothing belongs to an entity which no session has loaded."""
    if inspect(entity, raiseerr=True).key is None:
        name = type(entity).__name__
        raise UsageError(
            f"this {name} belongs to no session, so that what belongs to it isn't known; get it by "
            f"session.get({name}, …) in a session of your own, or ask the repository of what is wanted"
        )
