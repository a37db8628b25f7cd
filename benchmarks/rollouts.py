"""Synthetic homes: rollouts with the mix of lines that real sessions have."""

from __future__ import annotations

import json
import random
from pathlib import Path
from uuid import UUID

_WORDS = (
    *("the", "test", "fails", "because", "session", "state", "file", "index", "when", "reading", "rollout", "we"),
    *("should", "check", "path", "before", "writing", "result", "error", "function", "returns", "value", "of"),
    *("module", "import", "async", "await", "lease", "token", "database", "commit"),
)


def _text(rng: random.Random, size: int) -> str:
    # One text in eight has something beyond ASCII, as prose with dashes, arrows and names has.
    words: list[str] = ["naïve → 数据"] if rng.random() < 0.125 else []
    length = 0
    while length < size:
        word = rng.choice(_WORDS)
        words.append(word)
        length += len(word) + 1
    return " ".join(words)


def _line(kind: str, payload: object) -> str:
    return json.dumps({"timestamp": "2026-01-02T03:04:05.678Z", "type": kind, "payload": payload}, ensure_ascii=False)


def rollout_lines(number: int, size: int) -> list[str]:
    """The lines of one rollout of about ``size`` bytes."""
    rng = random.Random(number)
    thread_id = str(UUID(int=(0x01A0 << 112) + (0x7 << 76) + (0x8 << 60) + number))
    lines = [
        _line(
            "session_meta",
            {
                "id": thread_id,
                "timestamp": f"2026-01-{number % 28 + 1:02d}T03:04:05.678Z",
                "cwd": f"/projects/{number % 40}",
                "originator": "codex_cli_rs",
                "cli_version": "0.99.0",
                "source": rng.choice(["cli", "vscode", "exec"]),
                "model_provider": "openai",
                "base_instructions": {"text": _text(rng, 12_000)},
                "git": {"commit_hash": f"{number:040x}", "branch": "main"},
            },
        ),
        _line("event_msg", {"type": "user_message", "message": _text(rng, 300), "images": []}),
    ]
    total = sum(map(len, lines))
    turn = 0
    while total < size:
        turn += 1
        batch = [
            _line(
                "turn_context",
                {
                    "cwd": f"/projects/{number % 40}",
                    "approval_policy": "on-request",
                    "sandbox_policy": {"type": "workspace-write", "network_access": False},
                    "model": "gpt-5.1-codex",
                    "effort": "medium",
                    "summary": "auto",
                },
            ),
            _line(
                "response_item",
                {"type": "reasoning", "summary": [], "encrypted_content": rng.randbytes(900).hex(), "content": None},
            ),
            _line(
                "response_item",
                {
                    "type": "function_call",
                    "name": "shell",
                    "arguments": json.dumps({"command": ["bash", "-lc", _text(rng, 200)]}),
                    "call_id": f"call_{turn}",
                },
            ),
            _line(
                "response_item",
                {
                    "type": "function_call_output",
                    "call_id": f"call_{turn}",
                    "output": _text(rng, rng.randint(200, 5000)),
                },
            ),
            _line(
                "response_item",
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": _text(rng, rng.randint(100, 1500))}],
                },
            ),
            _line("event_msg", {"type": "agent_message", "message": _text(rng, 400)}),
            _line(
                "event_msg",
                {
                    "type": "token_count",
                    "info": {
                        kind: {
                            "input_tokens": 1000 * turn,
                            "cached_input_tokens": 800 * turn,
                            "output_tokens": 90 * turn,
                            "reasoning_output_tokens": 20 * turn,
                            "total_tokens": 1090 * turn,
                        }
                        for kind in ("total_token_usage", "last_token_usage")
                    },
                    "rate_limits": None,
                },
            ),
        ]
        lines += batch
        total += sum(map(len, batch))
    return lines


def make_home(home: Path, count: int, size: int) -> int:
    """Write ``count`` rollouts of about ``size`` bytes each and return how many bytes they are.

    A few dozen different ones are made; the rest differ in their first line, which is what a thread is known by.
    """
    templates = [rollout_lines(number, size) for number in range(min(count, 24))]
    written = 0
    for number in range(count):
        lines = templates[number % len(templates)]
        head = json.loads(lines[0])
        thread_id = str(UUID(int=(0x01A0 << 112) + (0x7 << 76) + (0x8 << 60) + number))
        head["payload"]["id"] = thread_id
        body = "\n".join([json.dumps(head, ensure_ascii=False), *lines[1:], ""]).encode()
        day = f"{number * 28 // count + 1:02d}"
        directory = home / "sessions" / "2026" / "01" / day
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"rollout-2026-01-{day}T03-04-05-{thread_id}.jsonl"
        path.write_bytes(body)
        written += len(body)
    return written
