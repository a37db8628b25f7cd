"""Which processes of this host are dead: real ones, in every state that Linux has for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codex_state import processes
from codex_state.processes import THIS_HOST, Owner

pytestmark = pytest.mark.skipif(THIS_HOST.host() is None, reason="processes have no identity here")

WITHOUT_ITS_FIRST_THREAD = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.readline).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@contextmanager
def a_process(code: str = "import sys; sys.stdin.readline()") -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def stat_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def identity_of(pid: int) -> str:
    return f"{THIS_HOST.host()}:{pid}:{stat_of(pid)[19]}"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def own_identity() -> Owner:
    return THIS_HOST.this()


def test_this_process_says_who_and_where_it_is_and_lives() -> None:
    this = THIS_HOST.this()
    assert this.process is not None
    boot, namespace, pid, start = this.process.split(":")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert f"pid:[{namespace}]" == str(Path("/proc/self/ns/pid").readlink())
    assert (pid, start) == (str(os.getpid()), stat_of(os.getpid())[19])
    assert this.name.endswith(f" process {os.getpid()}")
    assert this.known_as("the indexer") == f"{this.name} (the indexer)"
    assert not THIS_HOST.is_dead(this.process)


def test_a_forked_child_is_another_process() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        child = pool.apply(own_identity)
        assert child != THIS_HOST.this()
        assert child.process is not None
        assert not THIS_HOST.is_dead(child.process)
    assert THIS_HOST.is_dead(child.process)


def test_a_running_and_a_stopped_process_live_and_a_killed_one_is_dead() -> None:
    with a_process() as process:
        identity = identity_of(process.pid)
        assert not THIS_HOST.is_dead(identity)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: stat_of(process.pid)[0] == "T")
        assert not THIS_HOST.is_dead(identity)
        process.kill()
        process.wait()
        assert THIS_HOST.is_dead(identity)


def test_a_zombie_is_dead() -> None:
    with a_process() as process:
        identity = identity_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: stat_of(process.pid)[0] == "Z")
        assert THIS_HOST.is_dead(identity)


def test_a_process_whose_first_thread_has_ended_lives_while_another_goes_on() -> None:
    """It looks like a zombie."""
    with a_process(WITHOUT_ITS_FIRST_THREAD) as process:
        identity = identity_of(process.pid)
        wait_for(lambda: stat_of(process.pid)[0] == "Z")
        assert not THIS_HOST.is_dead(identity)


def test_a_process_whose_id_another_has_by_now_is_dead() -> None:
    host = THIS_HOST.host()
    assert THIS_HOST.is_dead(f"{host}:{os.getpid()}:1")


@pytest.mark.parametrize(
    "identity", ["", "boot", "boot:1:1:1", "{host}", "{host}:", "{host}:x:1", "{host}:1:x", "{host}:0:1", "{host}:-1:1"]
)
def test_who_is_elsewhere_or_nobody_is_not_called_dead(identity: str) -> None:
    assert not THIS_HOST.is_dead(identity.format(host=THIS_HOST.host()))


def test_who_is_hidden_is_not_called_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As other users' processes are where /proc is mounted with ``hidepid``: its files are missing, but not it."""
    with a_process() as process:
        identity, this = identity_of(process.pid), THIS_HOST.this()
        monkeypatch.setattr(processes, "_PROC", tmp_path)
        assert THIS_HOST.this() == this
        assert not THIS_HOST.is_dead(identity)
        process.kill()
        process.wait()
        assert THIS_HOST.is_dead(identity)


@pytest.mark.parametrize("missing", ["everything", "another namespace's"])
def test_where_proc_does_not_tell_nobody_has_an_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    identity = identity_of(os.getppid())
    if missing != "everything":
        (tmp_path / "self").symlink_to("1")
        (tmp_path / "1").symlink_to("/proc/self")
        (tmp_path / "sys").symlink_to("/proc/sys")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    processes._owner_of.cache_clear()
    try:
        assert THIS_HOST.this().process is None
        assert THIS_HOST.this().name.endswith(f" process {os.getpid()}")
        assert THIS_HOST.host() is None
        assert not THIS_HOST.is_dead(identity.rpartition(":")[0] + ":1")
    finally:
        processes._owner_of.cache_clear()
