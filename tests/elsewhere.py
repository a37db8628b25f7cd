"""Running something on a thread of its own, which is what another caller is to this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ResultT = TypeVar("ResultT")


def elsewhere(function: Callable[[], ResultT]) -> ResultT:
    """What ``function`` returns, or raises, on another thread."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()
