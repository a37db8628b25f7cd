"""The example home and the examples: what a newcomer runs first must work, and harm nothing."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cli_process import Cli, InProcess
from example_home import ARCHIVED, EXAMPLES, FILES, LISTED, THREADS, copy_of_the_example_home, make_home

HOME = make_home.HOME


def contents(home: Path) -> dict[str, bytes]:
    """Every file of a home, decompressed: compressors of different versions differ in their bytes."""
    found = {}
    for path in sorted(home.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".zst":
                data = zstandard.ZstdDecompressor().decompress(data)
            found[str(path.relative_to(home))] = data
    return found


def run_example(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / script],
        env={**Cli(cwd / "no-home").environment(), "CODEX_HOME": "", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_checked_in_home_is_what_the_generator_makes(tmp_path: Path) -> None:
    make_home.make_home(tmp_path / "home")
    assert contents(tmp_path / "home") == contents(HOME)


def test_a_home_made_elsewhere_is_ready_for_the_command_line(tmp_path: Path) -> None:
    make_home.main([str(tmp_path / "home")])
    report = InProcess(tmp_path / "home").ok("backfill", "--json").json
    assert (report["status"], report["failed"]) == ("complete", 1)
    for item in InProcess(tmp_path / "home").ok("threads", "list", "--json").json["items"]:
        assert item["created_at"] <= item["updated_at"] < "2026-12"
    with pytest.raises(SystemExit, match="already there"):
        make_home.main([str(tmp_path / "home")])


def test_the_home_is_small_and_holds_the_cases_that_real_homes_hold() -> None:
    files = contents(HOME)
    rollouts = [name for name in files if "rollout-" in name]
    assert len(rollouts) == FILES
    assert sum(map(len, files.values())) < 1_500_000
    assert sum(name.startswith("archived_sessions/") for name in rollouts) == ARCHIVED
    assert sum(name.endswith(".zst") for name in rollouts) == 2
    sources = {json.dumps(meta["source"]) for meta in metas()}
    assert {'"cli"', '"vscode"', '"exec"', '"mcp"', '{"subagent": "review"}'} <= sources
    assert any("thread_spawn" in source for source in sources)
    assert any("dynamic_tools" in meta for meta in metas())
    assert {meta.get("memory_mode") for meta in metas()} == {None, "disabled", "polluted"}
    assert any(meta["model_provider"] is None for meta in metas())
    assert any("git" not in meta for meta in metas())


def test_the_home_holds_what_the_newest_versions_write() -> None:
    newest = [meta for meta in metas() if meta.get("history_mode") == "paginated"]
    assert len(newest) == 15
    assert {meta["cli_version"] for meta in newest} == {"0.171.0"}
    (child,) = [meta for meta in newest if "parent_thread_id" in meta]
    assert child["parent_thread_id"] == child["source"]["subagent"]["thread_spawn"]["parent_thread_id"]
    fork, segment = sorted((meta for meta in newest if "history_base" in meta), key=lambda meta: meta["timestamp"])
    assert fork["history_base"]["thread_id"] == fork["forked_from_id"] != fork["id"]
    assert segment["history_base"]["thread_id"] == segment["id"]
    assert len(list(HOME.rglob(f"rollout-*-{segment['id']}_*.jsonl"))) == 1
    assert any(tool.get("type") == "namespace" for meta in newest for tool in meta.get("dynamic_tools", ()))
    events = {record["payload"]["type"] for record in records() if record["type"] == "event_msg"}
    assert {"item_completed", "thread_goal_updated", "thread_settings_applied"} <= events
    assert {"token_usage_record", "world_state"} <= {record["type"] for record in records()}
    names = [json.loads(line)["thread_name"] for line in (HOME / "session_index.jsonl").read_text("utf-8").splitlines()]
    assert names[-1] == "Importer: all or nothing"


def test_numbered_lines_go_on_where_the_history_that_they_refer_to_ends() -> None:
    for path in HOME.rglob("rollout-2026-11-*"):
        lines = list(make_home.records_of(path))
        base = lines[0]["payload"].get("history_base")
        start = base["end_ordinal_exclusive"] if base else 0
        assert [line["ordinal"] for line in lines] == list(range(start, start + len(lines)))
        if base:
            (earlier,) = (path for path in HOME.rglob(f"rollout-*-{base['thread_id']}.jsonl"))
            kept = earlier.read_bytes()[: base["end_byte_offset"]]
            assert kept.endswith(b"\n")
            assert kept.count(b"\n") == base["end_ordinal_exclusive"]


def metas() -> Iterator[dict[str, Any]]:
    yield from (record["payload"] for record in records() if record["type"] == "session_meta")


def records() -> Iterator[dict[str, Any]]:
    for path in HOME.rglob("rollout-*"):
        yield from make_home.records_of(path)


def test_the_story_runs_on_a_copy_of_the_example(tmp_path: Path) -> None:
    before = {path: hashlib.sha256(data).digest() for path, data in contents(HOME).items()}
    done = run_example("run.py", tmp_path, CODEX_SQLITE_HOME=str(tmp_path / "not-used"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"complete: {FILES} files" in done.stdout
    assert f"{LISTED} in all" in done.stdout
    assert "remembered: The stock importer leaves half of a file" in done.stdout
    assert "lease_lost, and nothing was changed" in done.stdout
    assert {path: hashlib.sha256(data).digest() for path, data in contents(HOME).items()} == before
    assert list(tmp_path.iterdir()) == []


def test_the_story_indexes_the_users_home_and_makes_up_nothing_in_it(tmp_path: Path) -> None:
    home = copy_of_the_example_home(tmp_path / "home")
    done = run_example("run.py", tmp_path, CODEX_HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Your Codex home.\n\n{home}" in done.stdout
    with closing(sqlite3.connect(home / "codex_state_4.sqlite")) as connection:
        counts = {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("threads", "thread_memory", "memory_phase1_jobs", "memory_scope_dirty")
        }
    assert counts == {"threads": THREADS, "thread_memory": 0, "memory_phase1_jobs": 0, "memory_scope_dirty": 0}


def test_the_story_leaves_a_postgresql_database_without_made_up_memories(tmp_path: Path, postgres_url: str) -> None:
    home = copy_of_the_example_home(tmp_path / "home")
    done = run_example("run.py", tmp_path, CODEX_HOME=str(home), CODEX_STATE_DATABASE_URL=postgres_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{THREADS} threads indexed" in done.stdout
    assert "Left out: it would write made-up memories" in done.stdout


def test_the_story_ends_with_a_clear_line_when_the_home_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_example("run.py", tmp_path, CODEX_HOME=str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.startswith("run: ")
    assert "is not a directory" in done.stderr


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    monkeypatch.setenv("CODEX_HOME", str(copy_of_the_example_home(tmp_path / "home")))
    monkeypatch.chdir(tmp_path)
    import service

    with TestClient(service.app) as client:
        yield client


def test_the_service_pages_and_names_in_its_own_transactions(service: Any) -> None:
    first = service.get("/threads", params={"limit": 20}).json()
    second = service.get("/threads", params={"limit": 20, "cursor": first["next"]}).json()
    assert (len(first["threads"]), len(second["threads"]), second["next"]) == (20, LISTED - 20, None)
    thread_id = first["threads"][0]["id"]
    assert service.put(f"/threads/{thread_id}/name", params={"name": "Ours"}).status_code == 200
    assert service.get("/threads").json()["threads"][0]["name"] == "Ours"
    unknown = "00000000-0000-7000-8000-000000000000"
    assert service.put(f"/threads/{unknown}/name", params={"name": "Ours"}).status_code == 404
    assert service.get("/threads", params={"cursor": "x"}).status_code == 422
