"""Bounded concurrency for tasks whose middle is somebody else's code.

A task has three parts. ``prepare`` and what ``call`` returns, ``finish``, take as long as the database does; ``call``
runs the caller's function, for as long as that takes. The difference matters when a pass is interrupted, or when a
call takes too long: a function in a thread can't be stopped and is left behind, but what is under way in the database
is waited for. Whatever is left behind keeps its thread; its place in the pool is another one's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Protocol

from codex_state.memory.cancellation import StopReason, StopSignal


class Task(Protocol):
    """One piece of work of a pass."""

    @property
    def signal(self) -> StopSignal:
        """What stops it."""
        ...

    @property
    def overdue(self) -> StopSignal:
        """Given when the time of ``call`` is over. It gives the other signal before."""
        ...

    @property
    def interruptible(self) -> bool:
        """Whether ``call`` ends soon after the signal, because it is a task of an event loop."""
        ...

    def prepare(self) -> bool:
        """Get ready. False means that there is nothing to call; the task is finished then."""
        ...

    def call(self) -> Callable[[], None]:
        """Run the caller's function and return what is left to do. The caller's errors don't leave it."""
        ...

    def leave_behind(self) -> None:
        """Finish the task while its ``call``, which is overdue, still runs. What that returns is thrown away."""
        ...


class WorkerPool:
    """Runs tasks on a bounded number of threads, in order."""

    def __init__(self, tasks: Sequence[Task], concurrency: int) -> None:
        """Prepare to run ``tasks``, at most ``concurrency`` at a time."""
        self._changed = threading.Condition()
        self._waiting = deque(tasks)
        self._calling: dict[Task, threading.Thread] = {}
        self._storing: set[Task] = set()
        self._left_behind: set[threading.Thread] = set()
        self._context = copy_context()
        self._interrupted = False
        self._error: BaseException | None = None
        self._size = min(concurrency, len(tasks))

    @property
    def running(self) -> int:
        """How many tasks have begun and aren't finished."""
        return len(self._calling) + len(self._storing)

    def run(self) -> None:
        """Run all tasks, until they are finished or ``interrupt`` is called.

        Whatever ends it early, no task is at the database when it returns: a task is finished, or it never will be.

        Raises:
            BaseException: what ``finish`` of a task raised, and KeyboardInterrupt. The other tasks are interrupted.
        """
        for _ in range(self._size):
            self._start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._settled(idle=not self._interrupted))
        finally:
            self.interrupt()
            with self._changed:
                self._changed.wait_for(lambda: self._settled(idle=False))
        if self._error is not None:
            raise self._error

    def interrupt(self) -> None:
        """Start no more tasks and stop those that are running. Returns at once; ``run`` returns soon after."""
        with self._changed:
            self._interrupted = True
            self._waiting.clear()
            calling = list(self._calling)
            self._changed.notify_all()
        for task in calling:
            task.signal.stop(StopReason.INTERRUPTED)

    def _settled(self, *, idle: bool) -> bool:
        """Whether there is nothing left to wait for; when ``idle``, neither tasks nor calls that can't be stopped."""
        if self._storing:
            return False
        if idle and self._error is None:
            return not self._waiting and not self._calling
        return not any(task.interruptible for task in self._calling)

    def _start(self, overdue: Task | None = None) -> None:
        # Not a ThreadPoolExecutor: the interpreter waits for its threads at exit, also for a call that never returns.
        work = partial(self._context.copy().run, self._work, overdue)
        threading.Thread(target=work, name="codex-state-memory-pool", daemon=True).start()

    def _work(self, overdue: Task | None) -> None:
        if overdue is not None:
            self._carry_out(overdue, overdue.leave_behind)
        while (task := self._next()) is not None:
            self._carry_out(task, partial(self._run, task))

    def _carry_out(self, task: Task, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits in run()
            self._leave(task, error)
        else:
            self._leave(task)

    def _run(self, task: Task) -> None:
        if task.prepare() and self._may_call(task):
            forget = task.overdue.on_stop(partial(self._replace, task))
            finish = task.call()
            forget()
            if self._may_store(task):
                finish()

    def _replace(self, task: Task) -> None:
        """Give the place of a call that takes too long to another thread, which first finishes the task."""
        with self._changed:
            stuck = self._calling.get(task)
            if stuck is None or task.interruptible or self._interrupted:
                return
            self._start(task)
            self._left_behind.add(stuck)
            del self._calling[task]
            self._storing.add(task)

    def _next(self) -> Task | None:
        with self._changed:
            if self._interrupted or not self._waiting or threading.current_thread() in self._left_behind:
                return None
            task = self._waiting.popleft()
            self._storing.add(task)
            return task

    def _may_call(self, task: Task) -> bool:
        with self._changed:
            self._storing.discard(task)
            if not self._interrupted:
                self._calling[task] = threading.current_thread()
            self._changed.notify_all()
            return not self._interrupted

    def _may_store(self, task: Task) -> bool:
        with self._changed:
            may_store = self._calling.pop(task, None) is not None and not self._interrupted
            if may_store:
                self._storing.add(task)
            self._changed.notify_all()
            return may_store

    def _leave(self, task: Task, error: BaseException | None = None) -> None:
        with self._changed:
            if threading.current_thread() in self._left_behind:
                return
            self._calling.pop(task, None)
            self._storing.discard(task)
            self._error = self._error or error
            self._changed.notify_all()
        if error is not None:
            self.interrupt()
