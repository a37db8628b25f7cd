"""Keeping leases alive, and stopping the work in time when that fails."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from memory_support import OWNER

from codex_state import (
    DatabaseBusyError,
    HolderWrite,
    MemoryScope,
    Phase1Key,
    Phase1Lease,
    State,
    StateRuntime,
    WorkStoppedError,
)
from codex_state.errors import InvalidInputError
from codex_state.memory import KeptLease, LeaseKeeper, StopReason, StopSignal, trust_clock, trust_window

Renewal = Callable[[State, Phase1Lease], HolderWrite]

SECONDS = 4
WINDOW = 2.6
EARLIEST_END = SECONDS - 1.0
"""Rows store whole seconds, so this long after its claim a lease may be somebody else's."""


def a_lease(seconds: float = SECONDS, token: str = "token") -> Phase1Lease:
    moment = datetime(2026, 2, 10, tzinfo=UTC)
    key = Phase1Key(uuid4(), MemoryScope.user())
    return Phase1Lease(
        key=key,
        owner=OWNER,
        token=token,
        granted_at=moment,
        duration=timedelta(seconds=seconds),
        requested_at=trust_clock(),
        source_updated_at=moment,
    )


def granted(_state: State, lease: Phase1Lease) -> HolderWrite:
    return HolderWrite.APPLIED


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Told:
    """Notes when a signal was given."""

    def __init__(self, kept: KeptLease[Phase1Lease]) -> None:
        self.at: float | None = None
        self.kept = kept
        kept.signal.on_stop(self.note)

    def note(self) -> None:
        self.at = trust_clock()

    def wait(self) -> float:
        assert self.kept.signal.wait(30)
        while self.at is None:
            time.sleep(0.001)
        return self.at


@pytest.fixture
def keeper(sqlite_runtime: StateRuntime) -> Iterator[LeaseKeeper]:
    with LeaseKeeper(sqlite_runtime) as opened:
        yield opened


@pytest.mark.parametrize(
    ("lease", "window"),
    [(2, 0.8), (3, 1.7), (3.9, 1.7), (10, 8.0), (60, 53.0), (600, 589.0), (3600, 3589.0), (10**6, 10**6 - 11.0)],
)
def test_the_window_leaves_out_the_whole_second_and_a_margin_that_scales(lease: float, window: float) -> None:
    assert trust_window(timedelta(seconds=lease)) == pytest.approx(window)


@pytest.mark.parametrize("lease", [1.9, 1, 0, -5])
def test_a_lease_that_may_end_as_it_begins_is_refused(keeper: LeaseKeeper, lease: float) -> None:
    with pytest.raises(InvalidInputError, match="at least 2 s"):
        keeper.keep(a_lease(lease), requested_at=trust_clock())


@pytest.mark.skipif(sys.platform != "linux", reason="the clock that counts sleep is another one elsewhere")
def test_the_trust_clock_counts_the_time_for_which_the_machine_sleeps() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= trust_clock() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_kept_lease_is_renewed_well_before_its_window_ends(keeper: LeaseKeeper) -> None:
    sent: list[float] = []
    enough = threading.Event()

    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        sent.append(trust_clock())
        if len(sent) == 4:
            enough.set()
        return HolderWrite.APPLIED

    start = trust_clock()
    kept = keeper.keep(a_lease(), requested_at=start, renewal=renewal)
    assert enough.wait(30)
    assert kept.trusted
    assert kept.signal.reason is None
    assert all(later - earlier >= WINDOW / 3 for earlier, later in zip([start, *sent], sent, strict=False))
    assert kept.trusted_until >= sent[2] + WINDOW, "counted from when the renewal was sent"


def test_a_lease_is_trusted_from_before_its_claim_was_sent(keeper: LeaseKeeper) -> None:
    """The claim has noted that moment: nobody has to pass it on."""
    lease = replace(a_lease(), requested_at=trust_clock() - 1)
    assert keeper.keep(lease, renewal=granted).trusted_until == lease.requested_at + WINDOW


def test_a_refused_renewal_stops_the_work_at_once(keeper: LeaseKeeper) -> None:
    start = trust_clock()
    kept = keeper.keep(a_lease(), requested_at=start, renewal=lambda _state, _lease: HolderWrite.LEASE_LOST)
    told = Told(kept).wait()
    assert kept.signal.reason is StopReason.REFUSED
    assert not kept.trusted
    assert told < start + EARLIEST_END


def test_renewals_that_fail_are_repeated_and_the_work_stops_before_the_lease_can_end(
    keeper: LeaseKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []

    def renewal(_state: State, _lease: Phase1Lease) -> HolderWrite:
        tries.append(trust_clock())
        raise DatabaseBusyError("locked")

    start = trust_clock()
    with caplog.at_level(logging.WARNING):
        kept = keeper.keep(a_lease(), requested_at=start, renewal=renewal)
        told = Told(kept).wait()
    assert kept.signal.reason is StopReason.LATE
    assert isinstance(kept.last_error, DatabaseBusyError)
    assert start + WINDOW <= told < start + EARLIEST_END
    assert len(tries) > 1
    assert "could not be renewed" in caplog.text


def test_a_renewal_that_fails_once_costs_nothing(keeper: LeaseKeeper) -> None:
    tries: list[float] = []
    enough = threading.Event()

    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        tries.append(trust_clock())
        if len(tries) == 1:
            raise RuntimeError("not even one of ours")
        if len(tries) == 4:
            enough.set()
        return HolderWrite.APPLIED

    kept = keeper.keep(a_lease(), requested_at=trust_clock(), renewal=renewal)
    assert enough.wait(30)
    assert kept.trusted
    assert kept.last_error is None


def test_however_many_renewals_fail_it_is_told_once_that_they_do_and_once_that_it_is_over(
    keeper: LeaseKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    failed, succeeded = Counter[str](), Counter[str]()
    over = threading.Event()

    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        if lease.token == "fine":
            return HolderWrite.APPLIED
        if not over.is_set():
            failed[lease.token] += 1
            raise DatabaseBusyError("locked")
        succeeded[lease.token] += 1
        return HolderWrite.APPLIED

    def told() -> list[tuple[str, str]]:
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    with caplog.at_level(logging.INFO, "codex_state"):
        for token in ("one", "another", "fine"):
            keeper.keep(a_lease(60, token), requested_at=trust_clock() - 30, renewal=renewal)
        wait_for(lambda: failed["one"] > 1 and failed["another"] > 1)
        begun = told()
        over.set()
        wait_for(lambda: bool(succeeded["one"] and succeeded["another"]))
        keeper.close()
    assert [level for level, _text in begun] == ["WARNING"]
    assert "a lease could not be renewed; each is tried again" in begun[0][1]
    assert told() == [*begun, ("INFO", "leases are renewed again")]


def test_a_lease_that_fails_and_is_given_up_is_no_failure_any_more(
    keeper: LeaseKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        if lease.token == "broken":
            raise DatabaseBusyError("locked")
        return HolderWrite.APPLIED

    with caplog.at_level(logging.INFO, "codex_state"):
        broken = keeper.keep(a_lease(600, "broken"), requested_at=trust_clock() - 300, renewal=renewal)
        wait_for(lambda: len(caplog.records) == 1)
        broken.signal.stop(StopReason.TIMED_OUT)
        keeper.keep(a_lease(2), requested_at=trust_clock(), renewal=renewal)
        wait_for(lambda: len(caplog.records) > 1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_renewal_that_never_answers_stops_the_work_before_the_lease_can_end(keeper: LeaseKeeper) -> None:
    answer = threading.Event()

    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        answer.wait(60)
        return HolderWrite.APPLIED

    start = trust_clock()
    kept = keeper.keep(a_lease(), requested_at=start, renewal=renewal)
    told = Told(kept).wait()
    answer.set()
    assert kept.signal.reason is StopReason.LATE
    assert start + WINDOW <= told < start + EARLIEST_END


def test_a_late_confirmation_does_not_bring_trust_back(keeper: LeaseKeeper) -> None:
    answer, answered = threading.Event(), threading.Event()

    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        answer.wait(60)
        answered.set()
        return HolderWrite.APPLIED

    kept = keeper.keep(a_lease(2), requested_at=trust_clock(), renewal=renewal)
    assert kept.signal.wait(30)
    answer.set()
    assert answered.wait(30)
    time.sleep(0.05)
    assert not kept.trusted
    assert kept.signal.reason is StopReason.LATE


def test_a_slow_confirmation_counts_from_when_it_was_asked_for(keeper: LeaseKeeper) -> None:
    sent: list[float] = []
    answered = threading.Event()

    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        sent.append(trust_clock())
        if len(sent) > 1:
            answered.set()
        time.sleep(0.3)
        return HolderWrite.APPLIED

    kept = keeper.keep(a_lease(), requested_at=trust_clock(), renewal=renewal)
    assert answered.wait(30)
    assert kept.trusted_until <= sent[0] + WINDOW


def test_a_claim_that_took_long_to_answer_gives_less_trust(keeper: LeaseKeeper) -> None:
    hanging = threading.Event()
    start = trust_clock() - 1.0
    kept = keeper.keep(
        a_lease(),
        requested_at=start,
        renewal=lambda *_: HolderWrite.APPLIED if hanging.wait(60) else HolderWrite.LEASE_LOST,
    )
    assert kept.trusted_until == pytest.approx(start + WINDOW)
    told = Told(kept).wait()
    hanging.set()
    assert told < start + EARLIEST_END


def test_a_claim_that_took_longer_than_the_window_gives_none(keeper: LeaseKeeper) -> None:
    kept = keeper.keep(a_lease(), requested_at=trust_clock() - WINDOW, renewal=granted)
    assert kept.signal.reason is StopReason.LATE
    assert not kept.trusted


def test_one_lost_lease_hurts_no_other(keeper: LeaseKeeper) -> None:
    renewed: set[str] = set()
    lock = threading.Lock()

    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        with lock:
            renewed.add(str(lease.key))
        if lease.token == "lost":
            return HolderWrite.LEASE_LOST
        if lease.token == "broken":
            raise DatabaseBusyError("locked")
        return HolderWrite.APPLIED

    def keep(token: str) -> KeptLease[Phase1Lease]:
        return keeper.keep(a_lease(token=token), requested_at=trust_clock(), renewal=renewal)

    lost, broken, others = keep("lost"), keep("broken"), [keep("fine") for _ in range(126)]
    assert lost.signal.wait(30)
    assert broken.signal.wait(30)
    time.sleep(WINDOW)
    assert len(renewed) == 128
    assert all(kept.trusted for kept in others)


def test_a_forgotten_lease_is_left_alone(keeper: LeaseKeeper) -> None:
    renewals: list[Phase1Lease] = []

    def renewal(_state: State, lease: Phase1Lease) -> HolderWrite:
        renewals.append(lease)
        return HolderWrite.APPLIED

    kept = keeper.keep(a_lease(2), requested_at=trust_clock(), renewal=renewal)
    keeper.forget(kept)
    keeper.forget(kept)
    time.sleep(1.2)
    assert not kept.signal.stopped
    assert renewals == []


def test_a_signal_can_be_given_after_a_time(keeper: LeaseKeeper) -> None:
    signal, later = StopSignal(), StopSignal()
    keeper.stop_after(later, 3600)
    keeper.stop_after(signal, 0.1)
    assert signal.wait(30)
    assert signal.reason is StopReason.TIMED_OUT
    assert not later.stopped


def test_work_under_asyncio_is_cancelled_when_its_lease_is_lost(keeper: LeaseKeeper) -> None:
    async def main() -> None:
        kept = keeper.keep(a_lease(), requested_at=trust_clock(), renewal=lambda _state, _lease: HolderWrite.LEASE_LOST)
        with pytest.raises(WorkStoppedError, match="refused"):
            async with kept.signal.cancelling():
                await asyncio.sleep(60)

    asyncio.run(main())


def test_a_busy_event_loop_costs_no_lease(keeper: LeaseKeeper) -> None:
    async def main() -> None:
        kept = keeper.keep(a_lease(), requested_at=trust_clock(), renewal=granted)
        time.sleep(SECONDS)  # noqa: ASYNC251 - that is the point
        kept.signal.check()
        assert kept.trusted

    asyncio.run(main())
