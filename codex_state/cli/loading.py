"""Finding a function that was named on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from codex_state.errors import ConfigurationError, InvalidInputError


def function_of(text: str) -> Callable[..., Any]:
    """The function that ``module:function`` names. Modules of the working directory are found as well.

    Raises:
        InvalidInputError: there is no such module or function.
        ConfigurationError: the module is there and can't be imported.
    """
    module, _, name = text.strip().partition(":")
    if not module or not name:
        raise InvalidInputError(f"malformed function {text!r}; expected module:function, like my_agent.memory:extract")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise InvalidInputError(
                f"there is no module {error.name!r} in {here} or among the installed packages"
            ) from error
        raise ConfigurationError(f"can't import {module}: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InvalidInputError(f"{module} has no function {name!r}")
    function: Callable[..., Any] = found
    return function
