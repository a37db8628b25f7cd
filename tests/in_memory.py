"""Where tests have their files: in memory, where there is room, and else where the system wants temporary files.

What a disk costs the tests is mostly computing of the kernel. None of them takes a power away, so they see no
difference.
"""

from __future__ import annotations

import os
import shutil
import tempfile

_MEMORY = "/dev/shm"
_ENOUGH = 2**30


def have_temporary_files_in_memory() -> None:
    """Choose the place for this process and its children, unless somebody chose one."""
    if "TMPDIR" in os.environ or not _is_fit():
        return
    os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY


def _is_fit() -> bool:
    try:
        free, flags = shutil.disk_usage(_MEMORY).free, os.statvfs(_MEMORY).f_flag
    except OSError:
        return False
    return free >= _ENOUGH and os.access(_MEMORY, os.W_OK) and not flags & getattr(os, "ST_NOEXEC", 0)
