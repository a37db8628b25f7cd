"""Mutants that can't be told from the original, and why. One that a check kills after all mustn't stand here."""

from __future__ import annotations

_SINGLETON = "a CHECK of the schema allows no other id"

_READ = "within one session a job is running still that was just read as running"

_HELD = "what the dead hold is running"

EQUIVALENT: dict[str, str] = {
    **{
        f"{claim} keeps the old status": _HELD
        for claim in (
            "jobs.claim_from_the_dead",
            "backfills.claim_from_the_dead",
            "backfills.claim_from_the_dead_again",
        )
    },
    **{f"backfills.{verb} without [id = ?]": _SINGLETON for verb in ("renew", "checkpoint", "complete_it", "release")},
    "backfills.checkpoint with [>=] in [last_watermark > ?]": "of two equal watermarks either may stay",
    "backfills.complete_it with [>=] in [last_watermark > ?]": "of two equal watermarks either may stay",
    "jobs.give_up without [status = 'running']": _READ,
    "jobs.requeue_over without [status = 'running']": _READ,
    "jobs.requeue_from_the_dead without [status = 'running']": _READ,
    "jobs.succeed keeps the old failure_reason": "the claim has removed it already",
    "jobs.succeed_many keeps the old failure_reason": "the claim has removed it already",
    "memory_scopes.mark_clean_if_locked without [ownership_token = ?]": "the IN compares the token as well",
}
