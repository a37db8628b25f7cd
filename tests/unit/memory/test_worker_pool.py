"""Bounded concurrency for tasks whose middle is somebody else's code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from codex_state.memory.cancellation import StopReason, StopSignal
from codex_state.memory.worker_pool import WorkerPool


class Step:
    """A task that notes what is done with it."""

    interruptible = False

    def __init__(self, name: str, notes: list[str], call: Callable[[StopSignal], None] | None = None) -> None:
        self.signal = StopSignal()
        self.overdue = StopSignal()
        self.overdue.on_stop(lambda: self.signal.stop(StopReason.TIMED_OUT))
        self.name = name
        self.notes = notes
        self.does = call
        self.wanted = True
        self.finishes: Callable[[], None] = lambda: None
        self.leaves: Callable[[], None] = lambda: None

    def prepare(self) -> bool:
        self.notes.append(f"prepare {self.name}")
        return self.wanted

    def call(self) -> Callable[[], None]:
        self.notes.append(f"call {self.name}")
        if self.does is not None:
            self.does(self.signal)
        return self.finish

    def finish(self) -> None:
        self.finishes()
        self.notes.append(f"finish {self.name}")

    def leave_behind(self) -> None:
        self.leaves()
        self.notes.append(f"leave {self.name}")


def test_one_at_a_time_keeps_the_order() -> None:
    notes: list[str] = []
    WorkerPool([Step(name, notes) for name in "abc"], 1).run()
    assert notes == [f"{part} {name}" for name in "abc" for part in ("prepare", "call", "finish")]


def test_nothing_to_do_is_done_at_once() -> None:
    WorkerPool([], 64).run()


def test_no_more_tasks_run_at_once_than_allowed() -> None:
    notes: list[str] = []
    gate, lock, running, most = threading.Barrier(3), threading.Lock(), 0, 0

    def call(_signal: StopSignal) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(60)
        with lock:
            running -= 1

    WorkerPool([Step(str(number), notes, call) for number in range(9)], 3).run()
    assert most == 3
    assert len(notes) == 27


def test_a_task_that_needs_no_call_is_not_called() -> None:
    notes: list[str] = []
    unwanted = Step("a", notes)
    unwanted.wanted = False
    WorkerPool([unwanted, Step("b", notes)], 1).run()
    assert notes == ["prepare a", "prepare b", "call b", "finish b"]


def test_an_unexpected_error_stops_the_others_and_is_raised() -> None:
    notes: list[str] = []
    waiting = threading.Event()

    def patient(signal: StopSignal) -> None:
        waiting.set()
        signal.wait(60)

    broken = Step("broken", notes, lambda _signal: waiting.wait(60) and None)
    broken.finishes = lambda: (_ for _ in ()).throw(RuntimeError("no disk"))
    other, never = Step("other", notes, patient), Step("never", notes)
    with pytest.raises(RuntimeError, match="no disk"):
        WorkerPool([other, broken, never], 2).run()
    assert other.signal.reason is StopReason.INTERRUPTED
    assert "prepare never" not in notes


def test_an_interrupted_pool_leaves_calls_behind_and_waits_for_writes() -> None:
    notes: list[str] = []
    calling, storing, go_on = threading.Event(), threading.Event(), threading.Event()

    def hanging(_signal: StopSignal) -> None:
        calling.set()
        go_on.wait(60)

    hung, stored = Step("hung", notes, hanging), Step("stored", notes)

    def slow_write() -> None:
        storing.set()
        assert hung.signal.wait(60), "interrupted while it stores"
        time.sleep(0.2)

    stored.finishes = slow_write
    pool = WorkerPool([hung, stored, Step("never", notes)], 2)

    def interrupt() -> None:
        calling.wait(60)
        storing.wait(60)
        pool.interrupt()

    threading.Thread(target=interrupt).start()
    pool.run()
    assert "finish stored" in notes
    assert "prepare never" not in notes
    go_on.set()
    assert "finish hung" not in notes


def test_a_call_that_returns_after_the_interruption_is_not_finished() -> None:
    notes: list[str] = []
    calling, go_on, returned = threading.Event(), threading.Event(), threading.Event()

    def hanging(_signal: StopSignal) -> None:
        calling.set()
        go_on.wait(60)

    task = Step("late", notes, hanging)
    pool = WorkerPool([task], 1)
    original = task.call

    def call() -> Callable[[], None]:
        finish = original()
        returned.set()
        return finish

    task.call = call  # type: ignore[method-assign]
    threading.Thread(target=lambda: calling.wait(60) and pool.interrupt()).start()
    pool.run()
    go_on.set()
    assert returned.wait(60)
    for thread in threading.enumerate():
        if thread.name.startswith("codex-state-memory"):
            thread.join(60)
    assert notes == ["prepare late", "call late"]


def test_an_interruption_before_the_start_prevents_everything() -> None:
    notes: list[str] = []
    pool = WorkerPool([Step("a", notes)], 1)
    pool.interrupt()
    pool.run()
    assert notes == []


def pool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("codex-state-memory")]


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_a_call_that_is_overdue_is_left_behind_and_its_place_is_anothers(ends: str) -> None:
    notes: list[str] = []
    go_on = threading.Event()

    def hanging(_signal: StopSignal) -> None:
        stuck.overdue.stop(StopReason.TIMED_OUT)
        assert go_on.wait(60)
        if ends == "raises":
            raise SystemExit

    stuck = Step("stuck", notes, hanging)
    WorkerPool([stuck, Step("next", notes)], 1).run()
    told = ["prepare stuck", "call stuck", "leave stuck", "prepare next", "call next", "finish next"]
    assert notes == told
    go_on.set()
    for thread in pool_threads():
        thread.join(60)
    assert notes == told, "what it returns is thrown away, and its thread takes no other task"


def test_no_more_tasks_run_at_once_than_allowed_beside_what_is_left_behind() -> None:
    notes: list[str] = []
    go_on = threading.Event()

    def hanging(_signal: StopSignal) -> None:
        stuck.overdue.stop(StopReason.TIMED_OUT)
        assert go_on.wait(60)

    def returning(_signal: StopSignal) -> None:
        go_on.set()
        for thread in returned:
            thread.join(60)

    stuck = Step("stuck", notes, hanging)
    returned: list[threading.Thread] = []
    stuck.leaves = lambda: returned.extend(set(pool_threads()) - {threading.current_thread()})
    WorkerPool([stuck, *(Step(name, notes, returning) for name in "abc")], 1).run()
    assert notes[3:] == [f"{part} {name}" for name in "abc" for part in ("prepare", "call", "finish")]


def test_a_call_that_ends_before_its_time_is_over_is_finished_once() -> None:
    notes: list[str] = []
    task = Step("a", notes)
    task.finishes = lambda: task.overdue.stop(StopReason.TIMED_OUT)
    WorkerPool([task], 1).run()
    assert notes == ["prepare a", "call a", "finish a"]


def test_an_interrupted_pool_waits_until_an_overdue_task_is_stored_and_leaves_others_behind() -> None:
    notes: list[str] = []
    go_on = threading.Event()

    def hanging(_signal: StopSignal) -> None:
        stuck.overdue.stop(StopReason.TIMED_OUT)
        assert go_on.wait(60)

    def slow_write() -> None:
        pool.interrupt()
        time.sleep(0.2)

    stuck = Step("stuck", notes, hanging)
    stuck.leaves = slow_write
    pool = WorkerPool([stuck, Step("never", notes)], 1)
    pool.run()
    assert notes == ["prepare stuck", "call stuck", "leave stuck"]
    go_on.set()


def test_an_error_in_storing_an_overdue_task_is_raised() -> None:
    notes: list[str] = []
    go_on = threading.Event()

    def hanging(_signal: StopSignal) -> None:
        stuck.overdue.stop(StopReason.TIMED_OUT)
        assert go_on.wait(60)

    stuck = Step("stuck", notes, hanging)
    stuck.leaves = lambda: (_ for _ in ()).throw(RuntimeError("no disk"))
    with pytest.raises(RuntimeError, match="no disk"):
        WorkerPool([stuck, Step("never", notes)], 1).run()
    assert notes == ["prepare stuck", "call stuck"]
    go_on.set()


def test_what_an_event_loop_cancels_is_waited_for_and_not_left_behind() -> None:
    notes: list[str] = []

    def cancelled(_signal: StopSignal) -> None:
        task.overdue.stop(StopReason.TIMED_OUT)

    task = Step("a", notes, cancelled)
    task.interruptible = True
    WorkerPool([task], 1).run()
    assert notes == ["prepare a", "call a", "finish a"]
