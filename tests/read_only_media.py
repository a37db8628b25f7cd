"""A directory on a medium that can't be written, as a process in a mount namespace of its own sees it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

_REMOUNT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def run_with_read_only(
    directory: Path, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to which ``directory`` is read-only, for root as well; skips the test where that can't be made."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    within = ["unshare", "--mount", *user, "sh", "-c", _REMOUNT, str(directory)]
    try:
        possible = subprocess.run([*within, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("needs Linux's mount namespaces")
    return subprocess.run(
        [*within, *command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
