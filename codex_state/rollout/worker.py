"""A child process that extracts rollouts for a backfill: see ``pool``."""

from __future__ import annotations

import msgspec

from codex_state.errors import RolloutError
from codex_state.rollout.fold import Extraction, extract
from codex_state.rollout.messages import serve
from codex_state.rollout.reading import may_pass


class NoProvider(msgspec.Struct, tag=True, frozen=True):
    """The provider of threads that name none isn't known."""

    why: str


DefaultProvider = str | NoProvider


class Job(msgspec.Struct):
    """Rollouts to extract, in order."""

    paths: list[str]
    default_provider: DefaultProvider


class Failed(msgspec.Struct, tag=True, gc=False):
    """A rollout that could not be extracted."""

    error: str
    may_pass: bool = False
    """Whether it may be readable later though nothing of it changes."""


class Extracted(msgspec.Struct, tag=True, gc=False):
    """A rollout that could."""

    extraction: Extraction


Result = Extracted | Failed


def extract_one(path: str, default_provider: DefaultProvider) -> Result:
    """Extract a rollout; one that can't be is a result as well."""
    unknown = default_provider if isinstance(default_provider, NoProvider) else None
    try:
        extraction = extract(path, default_provider if isinstance(default_provider, str) else "")
    except RolloutError as error:
        return Failed(str(error), may_pass(error))
    if unknown is not None and not extraction.draft.model_provider:
        return Failed(f"the rollout {path} names no provider, and {unknown.why}", may_pass=True)
    return Extracted(extraction)


def run_job(job: Job) -> list[Result]:
    """Extract each rollout of the job."""
    return [extract_one(path, job.default_provider) for path in job.paths]


if __name__ == "__main__":
    serve(Job, run_job)
