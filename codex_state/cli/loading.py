"""Finding a function that was named on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from codex_state.errors import ConfigurationError, InvalidInputError


def function_of(text: str, directory: Path | None = None) -> Callable[..., Any]:
    """The function that ``module:function`` names, of an installed module or of one in ``directory``.

    The working directory is no place to look unless it is named: it may be a repository of somebody else's.

    Raises:
        InvalidInputError: there is no such module or function.
        ConfigurationError: the module is there and can't be imported.
    """
    module, _, name = text.strip().partition(":")
    if not module or not name:
        raise InvalidInputError(f"malformed function {text!r}; expected module:function, like my_agent.memory:extract")
    place = None if directory is None else str(directory.absolute())
    if place is not None and place not in sys.path:
        sys.path.append(place)  # after all others: nothing there is taken for a module of Python's
    try:
        found: Any = import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            where = "" if place is None else f" in {place} or"
            advice = "; name its directory by --import-from" if place is None else ""
            raise InvalidInputError(
                f"there is no module {error.name!r}{where} among the installed packages{advice}"
            ) from error
        raise ConfigurationError(f"can't import {module}: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InvalidInputError(f"{module} has no function {name!r}")
    function: Callable[..., Any] = found
    return function
