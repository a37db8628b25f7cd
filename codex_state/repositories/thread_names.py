"""Names of many threads at once: of two names of a thread the one that was given later stays.

A line of ``session_index.jsonl`` says when a name was given. The original's database doesn't: all that is known is the
time of the thread's last change, which moves on while the name stays. Taken as the name's, it would make an old name
win over one that was given here, as soon as the thread goes on in the original. So the row notes what that database
said last, and only another name there is news.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, and_, case, or_, update

from codex_state.models import Thread
from codex_state.models.base import table_of
from codex_state.models.columns import UuidText, text
from codex_state.repositories.base import seconds_of
from codex_state.repositories.given_rows import given_rows

_threads = table_of(Thread)
_given = given_rows(thread_id=UuidText(), name=text, name_at=BigInteger())

_IS_OLDER = or_(_threads.c.name_at.is_(None), seconds_of(_threads.c.name_at) < _given.c.name_at)
_IS_NEWS = and_(_threads.c.id == _given.c.thread_id, _threads.c.original_name.is_distinct_from(_given.c.name))
_BY_ID = _threads.c.id == _given.c.thread_id

TAKE_NAMES = (
    update(_threads)
    .where(_BY_ID, _IS_OLDER)
    .values(name=_given.c.name, name_at=_given.c.name_at)
    .returning(_threads.c.id)
)
TAKE_NAMES_OF_THE_ORIGINAL = (
    update(_threads)
    # A name that came from there is replaced whatever the times say: renaming doesn't have to move the thread's.
    .where(_IS_NEWS, or_(_IS_OLDER, _threads.c.name == _threads.c.original_name))
    .where(_threads.c.name.is_distinct_from(_given.c.name))
    .values(
        name=_given.c.name,
        name_at=case((_IS_OLDER, _given.c.name_at), else_=_threads.c.name_at),
        original_name=_given.c.name,
    )
    .returning(_threads.c.id)
)
NOTE_NAMES_OF_THE_ORIGINAL = (
    update(_threads).where(_IS_NEWS).values(original_name=_given.c.name).returning(_threads.c.id)
)
