from __future__ import annotations

import json
import string
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_files import session_meta, thread_id, turn_context

from codex_state.errors import RolloutError
from codex_state.rollout.lines import SessionMeta, TurnContext, decode_line
from codex_state.rollout.policies import approval_text, canonical_uuid, sandbox_text, source_text

PARENT = str(thread_id(9))


def _with(field: str, value: object, item: SessionMeta | TurnContext) -> bytes:
    kind = "session_meta" if isinstance(item, SessionMeta) else "turn_context"
    payload = msgspec.to_builtins(item) | {field: value}
    return json.dumps({"timestamp": "t", "type": kind, "payload": payload}).encode()


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        ("cli", "cli"),
        ("vscode", "vscode"),
        ("exec", "exec"),
        ("mcp", "mcp"),
        ("unknown", "unknown"),
        ("appServer", "unknown"),
        ("CLI", "unknown"),
        ({"subagent": "review"}, {"subagent": "review"}),
        ({"subagent": "compact"}, {"subagent": "compact"}),
        ({"subagent": "memory_consolidation"}, {"subagent": "memory_consolidation"}),
        ({"subagent": {"other": "guardian"}}, {"subagent": {"other": "guardian"}}),
        ({"custom": "atlas"}, {"custom": "atlas"}),
        ({"internal": "memory_consolidation"}, {"internal": "memory_consolidation"}),
        (
            {"subagent": {"thread_spawn": {"parent_thread_id": PARENT.upper(), "depth": 2, "agent_type": "worker"}}},
            {
                "subagent": {
                    "thread_spawn": {
                        "parent_thread_id": PARENT,
                        "depth": 2,
                        "agent_path": None,
                        "agent_nickname": None,
                        "agent_role": "worker",
                    }
                }
            },
        ),
    ],
    ids=str,
)
def test_a_source_is_stored_as_its_tag_or_as_json(source: object, stored: object) -> None:
    item = decode_line(_with("source", source, session_meta()))
    assert isinstance(item, SessionMeta)
    text = source_text(item.source)
    assert (text if isinstance(stored, str) else json.loads(text)) == stored


@pytest.mark.parametrize(
    "source",
    [
        None,
        5,
        "subagent",
        "custom",
        {},
        {"subagent": "brand_new"},
        {"subagent": {}},
        {"subagent": {"other": 5}},
        {"subagent": {"brand_new": 1}},
        {"subagent": {"thread_spawn": {"parent_thread_id": "not-a-uuid", "depth": 1}}},
        {"subagent": {"thread_spawn": {"parent_thread_id": PARENT}}},
        {"subagent": "review", "custom": "atlas"},
        {"brand_new": 1},
        {"internal": "brand_new"},
    ],
    ids=str,
)
def test_a_source_that_cannot_be_one_makes_the_line_an_error(source: object) -> None:
    with pytest.raises(RolloutError):
        decode_line(_with("source", source, session_meta()))


@pytest.mark.parametrize(
    ("policy", "stored"),
    [
        ({"type": "read-only"}, {"type": "read-only"}),
        ({"type": "read-only", "network_access": False}, {"type": "read-only"}),
        ({"type": "read-only", "network_access": True}, {"type": "read-only", "network_access": True}),
        ({"type": "read-only", "access": {"type": "restricted"}}, {"type": "read-only"}),
        ({"type": "danger-full-access", "extra": 1}, {"type": "danger-full-access"}),
        ({"type": "external-sandbox"}, {"type": "external-sandbox", "network_access": "restricted"}),
        (
            {"type": "workspace-write", "writable_roots": []},
            {
                "type": "workspace-write",
                "network_access": False,
                "exclude_tmpdir_env_var": False,
                "exclude_slash_tmp": False,
            },
        ),
        (
            {"type": "workspace-write", "writable_roots": ["/a", "/b"], "network_access": True},
            {
                "type": "workspace-write",
                "writable_roots": ["/a", "/b"],
                "network_access": True,
                "exclude_tmpdir_env_var": False,
                "exclude_slash_tmp": False,
            },
        ),
    ],
    ids=str,
)
def test_a_sandbox_policy_is_stored_as_json_with_its_defaults(policy: object, stored: object) -> None:
    item = decode_line(_with("sandbox_policy", policy, turn_context()))
    assert isinstance(item, TurnContext)
    assert json.loads(sandbox_text(item.sandbox_policy)) == stored


@pytest.mark.parametrize("tag", ["untrusted", "on-failure", "on-request", "never"])
def test_a_plain_approval_policy_is_stored_as_its_tag(tag: str) -> None:
    item = decode_line(_with("approval_policy", tag, turn_context()))
    assert isinstance(item, TurnContext)
    assert approval_text(item.approval_policy) == tag


def test_a_granular_approval_policy_is_stored_with_its_defaults() -> None:
    given_policy = {"granular": {"sandbox_approval": True, "rules": False, "mcp_elicitations": True}}
    item = decode_line(_with("approval_policy", given_policy, turn_context()))
    assert isinstance(item, TurnContext)
    assert json.loads(approval_text(item.approval_policy)) == {
        "granular": {
            "sandbox_approval": True,
            "rules": False,
            "skill_approval": False,
            "request_permissions": False,
            "mcp_elicitations": True,
        }
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sandbox_policy", "read-only"),
        ("sandbox_policy", {"mode": "workspace-write"}),
        ("sandbox_policy", {"type": "brand-new"}),
        ("sandbox_policy", {"type": "external-sandbox", "network_access": "maybe"}),
        ("approval_policy", "unless-trusted"),
        ("approval_policy", None),
        ("approval_policy", {"granular": {"sandbox_approval": True}}),
        ("approval_policy", {"granular": {}, "extra": 1}),
        ("effort", "odd"),
        ("summary", "odd"),
        ("summary", None),
        ("model", None),
        ("cwd", 5),
    ],
)
def test_an_unknown_setting_makes_the_line_an_error(field: str, value: object) -> None:
    with pytest.raises(RolloutError):
        decode_line(_with(field, value, turn_context()))


@given(st.uuids())
def test_every_spelling_of_a_uuid_is_made_the_lower_case_hyphenated_one(value: UUID) -> None:
    text = str(value)
    for spelling in (text, text.upper(), value.hex, value.hex.upper(), f"{{{text}}}", value.urn):
        assert canonical_uuid(spelling) == text


@given(st.text(string.hexdigits + "-{}urnid:", max_size=50))
def test_what_is_not_a_uuid_has_no_canonical_form(text: str) -> None:
    canonical = canonical_uuid(text)
    if canonical is not None:
        assert UUID(text) == UUID(canonical)


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "{" + "0" * 32 + "}", "00000000-0000-0000-00000000000000-00"])
def test_a_lax_spelling_of_a_uuid_is_refused(text: str) -> None:
    assert canonical_uuid(text) is None
