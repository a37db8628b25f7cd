"""What a worker of the chaos writes down beside the record of its calls."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Journal:
    """What the recorder doesn't know: other calls, and errors. Each line is one write, so it outlives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(self, **values: Any) -> None:
        os.write(self._file, json.dumps(values, default=str).encode() + b"\n")

    @contextmanager
    def timed(self, what: str) -> Iterator[dict[str, Any]]:
        """Note a call with its times and whatever the block adds."""
        start = time.monotonic_ns()
        values: dict[str, Any] = {}
        yield values
        self.note(what=what, start=start, end=time.monotonic_ns(), **values)
