"""A stand-in for the model that extracts memories: it retells a rollout, and says the same thing every time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

_LONGEST_SUMMARY = 300


@dataclass(frozen=True)
class ExtractedMemory:
    """What is remembered of one rollout."""

    raw_memory: str
    summary: str


def extract(rollout: Path) -> ExtractedMemory:
    """Retell a rollout: what was asked, which commands ran, what came of it."""
    requests: list[str] = []
    answers: list[str] = []
    told: list[str] = []
    for record in records_of(rollout):
        payload = record["payload"]
        match record["type"], payload.get("type"):
            case "event_msg", "user_message":
                requests.append(_own_words(payload["message"]))
                told.append(f"- asked: {requests[-1]}")
            case "response_item", "function_call":
                told.append(f"- ran: `{json.loads(payload['arguments']).get('cmd', payload['name'])}`")
            case "event_msg", "agent_message":
                answers.append(payload["message"])
                told.append(f"- answered: {payload['message']}")
            case "event_msg", "item_completed":
                item = payload["item"]
                text = "".join(part.get("text", "") for part in item.get("content", ()))
                if item["type"] == "UserMessage":
                    requests.append(_own_words(text))
                    told.append(f"- asked: {requests[-1]}")
                elif item["type"] == "AgentMessage":
                    answers.append(text)
                    told.append(f"- answered: {text}")
    question = requests[0] if requests else "nothing was asked"
    outcome = _first_sentence(answers[-1]) if answers else "it was left unfinished"
    return ExtractedMemory(
        raw_memory="\n".join(told) or "- nothing happened",
        summary=f"{_first_sentence(question)} → {outcome}"[:_LONGEST_SUMMARY],
    )


def records_of(rollout: Path) -> Iterator[dict[str, Any]]:
    """The lines of a rollout that can be read, compressed or not."""
    content = rollout.read_bytes()
    if rollout.suffix == ".zst":
        content = zstandard.ZstdDecompressor().decompress(content)
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a broken line says nothing
        if isinstance(record, dict) and isinstance(record.get("payload"), dict) and "timestamp" in record:
            yield record


def _own_words(message: str) -> str:
    """What the user wrote, without the context that an editor put in front of it."""
    _, _, request = message.rpartition("## My request for Codex:")
    return request.strip() or "(a picture)"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?。])\s", text.strip(), maxsplit=1)[0].replace("\n", " ")
