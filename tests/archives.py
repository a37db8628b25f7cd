"""Homes and databases that are kept as archives."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack_archive(archive: tarfile.TarFile, into: Path) -> None:
    """Extract an archive of our own. The first releases of Python 3.11 know no filters, and need none."""
    if hasattr(tarfile, "tar_filter"):
        archive.extractall(into, filter="tar")
    else:
        archive.extractall(into)
