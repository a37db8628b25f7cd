"""Checks that what concurrent workers were answered can be explained: is there a legal order?

Record a run of your own engine, in each process with a file and a name of its own::

    from tests.history import RecordedState, Recorder

    with Recorder(directory / f"{name}.jsonl", worker=name) as recorder, runtime.autocommit() as state:
        state = RecordedState(state, recorder)
        claim = state.phase1_jobs.try_claim(key, owner=me, source_updated_at=updated_at, lease=timedelta(seconds=1))

``RecordedState`` has the repositories that leases are about, with the same verbs. What they don't cover (your own
statements, a transaction of several calls) is recorded with ``Recorder.call``; ``Kind`` lists the verbs. Workers may be
killed, paused and delayed at will. Then put the files together::

    assert_legal(read_calls(directory.glob("*.jsonl")))

Of each job, lock and backfill the check looks for an order of all calls that the lease model allows and in which no
call comes before one that was over before it began (it is *linearizable*). A call without an answer may have happened
at any time after its start, or never. If there is no such order, ``IllegalHistoryError`` shows the smallest part of the
run that can't be explained, whatever became of the rest.

What is assumed:

- All processes run on one machine, whose monotonic clock they share.
- A recorded call contains all of its work: its transaction is opened and committed inside.
- The rows were changed by recorded calls only, and no thread was deleted.
- Each worker of the record is a process. One that died may be taken over at once: say so with ``Recorder.death``.
- The database's clock runs as fast as the machine's (up to 500 ppm) and isn't corrected meanwhile; say so with
  ``steps`` if it was. A clock that is moved by hand is recorded with ``Recorder.set_clock``, its first time included.

Under these a run that is legal is never reported. A run that is not legal can pass:

- Times are whole seconds. When a call lasts beyond the end of a second it may have happened in either, so a lease
  that is taken a second early is noticed only by calls that are clearly within one.
- A claim that is refused decides first and looks for the reason afterwards, as two steps. A wrong reason passes when
  overlapping calls can have changed the row in between.
- A database's times may lag behind the order in which its calls took effect while they overlap, as they do when
  PostgreSQL waits for a row. So what overlaps is not ordered by them.
- Nothing is said of what was never asked: end a run with ``get`` of every key to have the rows themselves checked.
- A claim need not have found a dead holder dead. It is only allowed to, from the moment when it was being killed.
- Scopes' dirty marks are not part of it, and ``claim_candidates`` is checked for what it granted, not for what it left.
"""

from tests.history.calls import ANY_KEY, APPLIED, LOST, READ, Answer, Call, Kind, read_calls
from tests.history.checking import IllegalHistoryError, Violation, assert_legal, find_violation
from tests.history.recorded import RecordedState, job_key
from tests.history.recorder import Pending, Recorder
from tests.history.search import UndecidedHistoryError
from tests.history.seconds import Window

__all__ = [
    "ANY_KEY",
    "APPLIED",
    "LOST",
    "READ",
    "Answer",
    "Call",
    "IllegalHistoryError",
    "Kind",
    "Pending",
    "RecordedState",
    "Recorder",
    "UndecidedHistoryError",
    "Violation",
    "Window",
    "assert_legal",
    "find_violation",
    "job_key",
    "read_calls",
]
