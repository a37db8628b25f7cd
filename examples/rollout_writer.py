"""Writes one rollout, line by line, as the original Codex CLI does. All times and ids come from a seed."""

from __future__ import annotations

import base64
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from conversations import Project, Run, Turn

INSTRUCTIONS = (
    "You are a coding agent that works in the user's repository. Read before you change, keep changes small, run the "
    "tests, and say plainly what you did."
)


def uuid7(moment: datetime, randomness: random.Random) -> UUID:
    """A UUID of version 7 for a moment, as the original gives its threads."""
    milliseconds = int(moment.timestamp() * 1000)
    value = (milliseconds << 80) | (7 << 76) | (randomness.getrandbits(12) << 64)
    return UUID(int=value | (0b10 << 62) | randomness.getrandbits(62))


def stamp(moment: datetime) -> str:
    """A time as rollouts spell it: UTC, milliseconds, ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RolloutWriter:
    """The lines of one rollout, and the clock that stamps them."""

    def __init__(
        self,
        started: datetime,
        project: Project,
        *,
        seed: str,
        source: Any = "cli",
        version: str = "0.129.0",
        model: str = "gpt-5.1-codex",
        effort: str | None = "medium",
        provider: str | None = "openai",
        approval: str = "on-request",
        sandbox: dict[str, Any] | None = None,
        branch: str = "main",
    ) -> None:
        self._random = random.Random(seed)
        self.started = started
        self.now = started
        self.id = uuid7(started, self._random)
        self.project = project
        self.source = source
        self.version = version
        self.model = model
        self.effort = effort
        self.provider = provider
        self.approval = approval
        self.sandbox = sandbox or {
            "type": "workspace-write",
            "network_access": False,
            "exclude_tmpdir_env_var": False,
            "exclude_slash_tmp": False,
        }
        self.branch = branch
        self.lines: list[str] = []
        self._tokens = {"input": 0, "cached": 0, "output": 0, "reasoning": 0}

    @property
    def name(self) -> str:
        """The file name: the time it was started at and the thread's id."""
        return f"rollout-{self.started:%Y-%m-%dT%H-%M-%S}-{self.id}.jsonl"

    @property
    def text(self) -> str:
        """The whole file."""
        return "".join(line + "\n" for line in self.lines)

    def meta(self, **more: Any) -> None:
        """The first line: who, where, with which tools."""
        originator = {"vscode": "codex_vscode", "exec": "codex_exec", "mcp": "codex_mcp"}.get(
            str(self.source), "codex_cli_rs"
        )
        payload: dict[str, Any] = {
            "id": str(self.id),
            "timestamp": stamp(self.started),
            "cwd": self.project.cwd,
            "originator": originator,
            "cli_version": self.version,
            "source": self.source,
            "model_provider": self.provider,
            "base_instructions": {"text": INSTRUCTIONS},
        }
        if self.project.repository is not None:
            payload["git"] = {
                "commit_hash": f"{self._random.getrandbits(160):040x}",
                "branch": self.branch,
                "repository_url": self.project.repository,
            }
        self.line("session_meta", payload | more)

    def turn(self, turn: Turn) -> None:
        """A whole turn: context, request, thoughts, commands, answer, tokens."""
        self.context()
        self.request(turn.request)
        self.reasoning(turn.thought)
        for step in turn.steps:
            self.run(step)
        if turn.answer:
            self.answer(turn.answer)
        self.token_count(len(turn.request) + sum(len(step.output) for step in turn.steps), len(turn.answer))

    def context(self) -> None:
        """The settings of the turn that begins."""
        self.line(
            "turn_context",
            {
                "turn_id": str(uuid7(self.now, self._random)),
                "cwd": self.project.cwd,
                "current_date": f"{self.now:%Y-%m-%d}",
                "timezone": "Etc/UTC",
                "approval_policy": self.approval,
                "sandbox_policy": self.sandbox,
                "model": self.model,
                "effort": self.effort,
                "summary": "auto",
                "truncation_policy": {"mode": "bytes", "limit": 10000},
            },
        )

    def request(self, text: str, *, images: list[str] | None = None) -> None:
        """What the user asked, as the model saw it and as the event that people saw."""
        content: list[dict[str, str]] = [{"type": "input_text", "text": text}] if text else []
        content += [{"type": "input_image", "image_url": image} for image in images or ()]
        self.line("response_item", {"type": "message", "role": "user", "content": content})
        self.event("user_message", message=text, images=images or [], local_images=[], text_elements=[])

    def reasoning(self, text: str) -> None:
        """What the agent thought, of which only a summary is readable."""
        self.event("agent_reasoning", text=text)
        sealed = base64.b64encode(self._random.randbytes(96)).decode()
        summary = [{"type": "summary_text", "text": text}]
        self.line(
            "response_item", {"type": "reasoning", "summary": summary, "content": None, "encrypted_content": sealed}
        )

    def run(self, step: Run) -> None:
        """A command and its output."""
        call = f"call_{self._random.getrandbits(96):024x}"
        arguments = json.dumps({"cmd": step.command, "workdir": self.project.cwd})
        self.line(
            "response_item", {"type": "function_call", "name": "exec_command", "arguments": arguments, "call_id": call}
        )
        seconds = self._random.uniform(0.02, 4)
        self.now += timedelta(seconds=seconds)
        output = f"Wall time: {seconds:.4f} seconds\nProcess exited with code {step.exit_code}\nOutput:\n{step.output}"
        self.line("response_item", {"type": "function_call_output", "call_id": call, "output": output})

    def answer(self, text: str) -> None:
        """What the agent answered."""
        self.event("agent_message", message=text)
        content = [{"type": "output_text", "text": text}]
        self.line("response_item", {"type": "message", "role": "assistant", "content": content})

    def token_count(self, read: int, written: int) -> None:
        """How many tokens the thread used so far."""
        self.tokens_event(self.spend(read, written))

    def spend(self, read: int, written: int) -> dict[str, int]:
        """Count the tokens of one response. Returns what it used alone."""
        last = {"input": 9000 + read // 3, "cached": 7680, "output": written // 4 + 40, "reasoning": 64}
        for kind, amount in last.items():
            self._tokens[kind] += amount
        return last

    def tokens_event(self, last: dict[str, int]) -> None:
        """The event that tells them."""
        self.event(
            "token_count",
            info={
                "total_token_usage": usage_of(self._tokens),
                "last_token_usage": usage_of(last),
                "model_context_window": 258400,
            },
            rate_limits=None,
        )

    def compact(self, summary: str) -> None:
        """The history was replaced by a summary."""
        self.line("compacted", {"message": summary})
        self.event("context_compacted")

    def event(self, kind: str, **fields: Any) -> None:
        """An event of the given type."""
        self.line("event_msg", {"type": kind, **fields})

    def line(self, kind: str, payload: dict[str, Any]) -> None:
        """One line. The clock moves on by up to a few seconds."""
        record = {"timestamp": stamp(self.now), "type": kind, "payload": payload}
        self.lines.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")))
        self.now += timedelta(milliseconds=self._random.randint(1, 4000))

    def pause(self, **duration: float) -> None:
        """The user was away."""
        self.now += timedelta(**duration)


def usage_of(tokens: dict[str, int]) -> dict[str, int]:
    """Counts as rollouts spell them."""
    return {
        "input_tokens": tokens["input"],
        "cached_input_tokens": tokens["cached"],
        "output_tokens": tokens["output"],
        "reasoning_output_tokens": tokens["reasoning"],
        "total_tokens": tokens["input"] + tokens["output"],
    }
