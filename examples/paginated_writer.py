"""Writes one rollout as the original does by November 2026.

Its lines are numbered, items stand in place of messages, and a fork or a reverted thread refers to its history instead
of copying it.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from conversations import Project, Run, Turn
from rollout_writer import INSTRUCTIONS, RolloutWriter, stamp, usage_of, uuid7

ORIGINATORS = {"cli": "codex-tui", "exec": "codex_exec", "vscode": "codex_vscode"}


@dataclass(frozen=True)
class Point:
    """A place in a rollout, after a line, where another rollout goes on."""

    thread_id: UUID
    ordinal: int
    offset: int
    tokens: dict[str, int]


class PaginatedWriter(RolloutWriter):
    """The lines of one rollout with paginated history."""

    def __init__(
        self,
        started: datetime,
        project: Project,
        *,
        seed: str,
        version: str = "0.171.0",
        model: str = "gpt-5.2",
        permissions: dict[str, Any] | None = None,
        session: UUID | None = None,
        **options: Any,
    ) -> None:
        super().__init__(started, project, seed=seed, version=version, model=model, **options)
        self.session = session or self.id
        self.permissions = permissions or workspace_profile(project)
        self.base: Point | None = None
        self.segment: UUID | None = None
        self._turn_id = self.id

    @property
    def name(self) -> str:
        """The file name. What is written after a revert is a segment of its own, with the thread's time and id."""
        whole = super().name
        return whole if self.segment is None else whole.replace(".jsonl", f"_{self.segment}.jsonl")

    @property
    def here(self) -> Point:
        """Where the rollout ends so far."""
        return Point(self.id, self._next_ordinal, len(self.text.encode()), dict(self._tokens))

    @property
    def _next_ordinal(self) -> int:
        return len(self.lines) + (0 if self.base is None else self.base.ordinal)

    def go_on_after(self, point: Point) -> None:
        """Begin with another rollout's history: what comes before the point isn't copied, only referred to."""
        self.base = point
        self._tokens = dict(point.tokens)

    def reverted(self, point: Point, moment: datetime) -> PaginatedWriter:
        """The thread's next segment: everything after the point was taken back."""
        later = copy.copy(self)
        later.lines = []
        later.now = moment
        later.segment = uuid7(moment, self._random)
        later.go_on_after(point)
        return later

    def meta(self, **more: Any) -> None:
        """The first line."""
        payload: dict[str, Any] = {
            "session_id": str(self.session),
            "id": str(self.id),
            "timestamp": stamp(self.now),
            "cwd": self.project.cwd,
            "runtime_workspace_roots": [self.project.cwd],
            "originator": ORIGINATORS.get(str(self.source), "codex-tui"),
            "cli_version": self.version,
            "source": self.source,
            "thread_source": "user",
            "model_provider": self.provider,
            "base_instructions": {"text": INSTRUCTIONS, "provenance": {"type": "custom"}},
            "history_mode": "paginated",
            "context_window": {"window_id": str(uuid7(self.now, self._random))},
        }
        if self.base is not None:
            payload["history_base"] = {
                "thread_id": str(self.base.thread_id),
                "end_ordinal_exclusive": self.base.ordinal,
                "end_byte_offset": self.base.offset,
            }
        if self.project.repository is not None:
            payload["git"] = {
                "commit_hash": f"{self._random.getrandbits(160):040x}",
                "branch": self.branch,
                "repository_url": self.project.repository,
            }
        self.line("session_meta", payload | more)

    def turn(self, turn: Turn) -> None:
        """A whole turn, from its start to its end."""
        self.start()
        self.request(turn.request)
        self.reasoning(turn.thought)
        for step in turn.steps:
            self.run(step)
        read = len(turn.request) + sum(len(step.output) for step in turn.steps)
        if turn.answer:
            self.answer(turn.answer)
        self.token_count(read, len(turn.answer))
        self.complete(turn.answer)

    def start(self) -> None:
        """A turn begins: what the model is told of its surroundings, and the settings."""
        self._turn_id = uuid7(self.now, self._random)
        self.event(
            "task_started",
            turn_id=str(self._turn_id),
            root_turn_id=str(self._turn_id),
            started_at=int(self.now.timestamp()),
            model_context_window=258400,
            collaboration_mode_kind="default",
        )
        today = f"{self.now:%Y-%m-%d}"
        surroundings = (
            f"<environment_context>\n  <cwd>{self.project.cwd}</cwd>\n  <shell>bash</shell>\n"
            f"  <current_date>{today}</current_date>\n</environment_context>"
        )
        self._message("developer", [{"type": "input_text", "text": INSTRUCTIONS}])
        self._message("user", [{"type": "input_text", "text": surroundings}])
        local = {"cwd": self.project.cwd, "status": "available", "shell": "bash"}
        environments = {"environments": {"local": local}, "current_date": today, "timezone": "Etc/UTC"}
        self.line("world_state", {"full": True, "state": {"environments": environments, "model": self.model}})
        self.context()
        self.settings()

    def context(self) -> None:
        """The settings of the turn that begins. The permission profile counts, the older policy stands beside it."""
        self.line(
            "turn_context",
            {
                "turn_id": str(self._turn_id),
                "root_turn_id": str(self._turn_id),
                "cwd": self.project.cwd,
                "approval_policy": self.approval,
                "approvals_reviewer": "user",
                "permission_profile": self.permissions,
                "model": self.model,
                "effort": self.effort,
                "summary": "auto",
                "sandbox_policy": self.sandbox,
            },
        )

    def settings(self) -> None:
        """The thread's settings from now on, which it may have without any turn."""
        mode = {"model": self.model, "reasoning_effort": self.effort, "developer_instructions": None}
        self.event(
            "thread_settings_applied",
            thread_id=str(self.id),
            thread_settings={
                "model": self.model,
                "model_provider_id": self.provider,
                "approval_policy": self.approval,
                "approvals_reviewer": "user",
                "permission_profile": self.permissions,
                "cwd": self.project.cwd,
                "runtime_workspace_roots": [self.project.cwd],
                "reasoning_effort": self.effort,
                "collaboration_mode": {"mode": "default", "settings": mode},
            },
        )

    def goal(self, objective: str) -> None:
        """What the thread is to reach, with or without a message."""
        now = int(self.now.timestamp())
        goal = {"threadId": str(self.id), "objective": objective, "status": "active", "tokensUsed": 0}
        goal |= {"timeUsedSeconds": 0, "createdAt": now, "updatedAt": now}
        self.event("thread_goal_updated", threadId=str(self.id), goal=goal)

    def request(self, text: str, *, images: list[str] | None = None) -> None:
        """What the user asked."""
        seen: list[dict[str, Any]] = [{"type": "input_text", "text": text}] if text else []
        seen += [{"type": "input_image", "image_url": image} for image in images or ()]
        shown: list[dict[str, Any]] = [{"type": "text", "text": text, "text_elements": []}] if text else []
        shown += [{"type": "image", "image_url": image} for image in images or ()]
        self._message("user", seen)
        self.item("UserMessage", id=str(uuid7(self.now, self._random)), content=shown)

    def reasoning(self, text: str) -> None:
        """What the agent thought."""
        own = f"rs_{self._random.getrandbits(64):016x}"
        self.item("Reasoning", id=own, summary_text=[text], raw_content=[])
        summary = [{"type": "summary_text", "text": text}]
        self.line("response_item", {"type": "reasoning", "id": own, "summary": summary, "content": None})

    def run(self, step: Run) -> None:
        """A command and its output."""
        call = self.call("exec_command", {"cmd": step.command})
        seconds = self._random.randint(20, 4000) / 1000
        self.now += timedelta(seconds=seconds)
        self.item(
            "CommandExecution",
            id=call,
            command=["/bin/bash", "-lc", step.command],
            cwd=f"file://{self.project.cwd}",
            source="unified_exec_startup",
            status="completed" if step.exit_code == 0 else "failed",
            aggregated_output=step.output,
            exit_code=step.exit_code,
            duration={"secs": int(seconds), "nanos": int(seconds * 1000) % 1000 * 1_000_000},
        )
        said = f"Wall time: {seconds:.4f} seconds\nProcess exited with code {step.exit_code}\nOutput:\n{step.output}"
        self.output(call, said)

    def spawn(self, child: RolloutWriter, nickname: str, role: str, prompt: str) -> None:
        """A sub-agent is sent off."""
        call = self.call("spawn_agent", {"message": prompt, "agent_type": role}, namespace="multi_agent_v1")
        receiver = {"thread_id": str(child.id), "agent_nickname": nickname, "agent_role": role}
        self.item(
            "CollabAgentToolCall",
            id=call,
            tool="spawn_agent",
            status="completed",
            sender_thread_id=str(self.id),
            receiver_thread_ids=[str(child.id)],
            receiver_agents=[receiver],
            prompt=prompt,
            model=self.model,
        )
        self.output(call, json.dumps({"agent_id": str(child.id), "nickname": nickname}))

    def use_tool(self, namespace: str, tool: str, arguments: dict[str, Any], answer: str) -> None:
        """A dynamic tool is called."""
        call = self.call(tool, arguments, namespace=namespace)
        self.item(
            "DynamicToolCall",
            id=call,
            namespace=namespace,
            tool=tool,
            arguments=arguments,
            status="completed",
            content_items=[{"type": "inputText", "text": answer}],
            success=True,
        )
        self.output(call, answer)

    def answer(self, text: str) -> None:
        """What the agent answered."""
        own = f"msg_{self._random.getrandbits(64):016x}"
        self.item("AgentMessage", id=own, content=[{"type": "Text", "text": text}])
        self._message("assistant", [{"type": "output_text", "text": text}], id=own)

    def token_count(self, read: int, written: int) -> None:
        """How many tokens the thread used so far, by a record for each response and by the older event."""
        last = self.spend(read, written)
        record = {"thread_id": str(self.id), "turn_id": str(self._turn_id), "session_id": str(self.session)}
        record |= {"response_id": f"resp_{self._random.getrandbits(64):016x}"}
        usage = {"usage": usage_of(last), "turn_token_usage": usage_of(last)}
        self.line("token_usage_record", record | usage | {"thread_token_usage": usage_of(self._tokens)})
        self.tokens_event(last)

    def complete(self, last_answer: str) -> None:
        """A turn ends."""
        self.event(
            "task_complete",
            turn_id=str(self._turn_id),
            root_turn_id=str(self._turn_id),
            last_agent_message=last_answer or None,
            completed_at=int(self.now.timestamp()),
        )

    def item(self, kind: str, **fields: Any) -> None:
        """Something that people see is complete: a message, a command, a call."""
        moment = int(self.now.timestamp() * 1000)
        self.event(
            "item_completed",
            thread_id=str(self.id),
            turn_id=str(self._turn_id),
            item={"type": kind, **fields},
            started_at_ms=moment,
            completed_at_ms=moment,
        )

    def call(self, tool: str, arguments: dict[str, Any], *, namespace: str | None = None) -> str:
        """The model calls a tool. Returns the id of the call."""
        call = f"call_{self._random.getrandbits(96):024x}"
        payload: dict[str, Any] = {"type": "function_call", "name": tool}
        if namespace is not None:
            payload["namespace"] = namespace
        self.line("response_item", payload | {"arguments": json.dumps(arguments), "call_id": call})
        return call

    def output(self, call: str, text: str) -> None:
        """What the tool answered to the model."""
        self.line("response_item", {"type": "function_call_output", "call_id": call, "output": text})

    def line(self, kind: str, payload: dict[str, Any]) -> None:
        """One numbered line. A fork's and a segment's numbers go on after their history's."""
        ordinal = self._next_ordinal
        super().line(kind, payload)
        timestamp, rest = self.lines[-1].split(",", 1)
        self.lines[-1] = f'{timestamp},"ordinal":{ordinal},{rest}'

    def _message(self, role: str, content: list[dict[str, Any]], **more: Any) -> None:
        self.line("response_item", {"type": "message", "role": role, "content": content, **more})


def workspace_profile(project: Project, *, network: bool = False) -> dict[str, Any]:
    """The profile of an agent that may write in its project."""
    entries = [
        {"path": {"type": "special", "value": {"kind": "root"}}, "access": "read"},
        {"path": {"type": "path", "path": project.cwd}, "access": "write"},
        {"path": {"type": "path", "path": f"{project.cwd}/.git"}, "access": "read", "missing_path_behavior": "skip"},
    ]
    return {
        "type": "managed",
        "file_system": {"type": "restricted", "entries": entries},
        "network": "enabled" if network else "restricted",
    }
