"""Write docs/reference.md: every public name with its signature and what its docstring says.

``python tests/reference.py``. It reads the sources, not the running package: attributes have docstrings only there.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "codex_state"
PAGE = ROOT / "docs" / "reference.md"

_HEAD = """# Reference

Every public name of `codex_state` with its signature, as the code says it. `make reference` writes this page.
"""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def reference() -> str:
    """The page."""
    places = _definitions()
    parts = [_HEAD]
    for imported in ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(imported, ast.ImportFrom):
            parts.append(f"## `codex_state.{imported.module}`\n")
            parts.extend("\n".join(_entry(alias.name, str(imported.module), places)) for alias in imported.names)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _definitions() -> dict[str, dict[str, list[ast.stmt]]]:
    """The statements that define each name, by name and module."""
    found: dict[str, dict[str, list[ast.stmt]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for position, statement in enumerate(body):
            if (name := _name(statement)) is not None:
                found.setdefault(name, {}).setdefault(module, body[position : position + 2])
    return found


def _name(statement: ast.stmt) -> str | None:
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return name
    return None


def _entry(name: str, prefix: str, places: dict[str, dict[str, list[ast.stmt]]]) -> Iterator[str]:
    modules = places[name]
    under = [module for module in modules if f"{module}.".startswith(f"{prefix}.")]
    statement, *after = modules[min(under, key=len)] if under else next(iter(modules.values()))
    if isinstance(statement, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in statement.bases)
        yield f"### {name}\n\n`class {name}{f'({bases})' if bases else ''}`\n"
        yield from _text(ast.get_docstring(statement))
        yield from _members(statement, places, set())
    elif isinstance(statement, Definition):
        yield f"### {name}\n\n`{_signature(statement)}`\n"
        yield from _text(ast.get_docstring(statement))
    else:
        yield f"### {name}\n\n`{ast.unparse(statement)}`\n"
        yield from _text(_docstring_after(after[0] if after else None))


def _members(owner: ast.ClassDef, places: dict[str, dict[str, list[ast.stmt]]], seen: set[str]) -> Iterator[str]:
    """What a class and its bases in this package have, each once."""
    body = [
        part for statement in owner.body for part in (statement.body if isinstance(statement, ast.If) else [statement])
    ]
    for statement, following in zip(body, [*body[1:], None], strict=True):
        name = _name(statement)
        if name is None or name.startswith("_") or name in seen:
            continue
        if isinstance(statement, Definition):
            text = ast.get_docstring(statement)
            shown = _signature(statement) if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) else name
        else:
            text, shown = _docstring_after(following), _field(statement)
        if text is None and not isinstance(statement, ast.AnnAssign):
            continue
        seen.add(name)
        if text is None:
            yield f"- `{shown}`"
            continue
        first, *more = "\n".join(_text(text)).rstrip().split("\n")
        yield f"- `{shown}`: {first}"
        yield from (f"  {line}" if line else "" for line in more)
    yield ""
    for base in owner.bases:
        named = ast.unparse(base).partition("[")[0]
        for above, *_ in places.get(named, {}).values():
            if isinstance(above, ast.ClassDef) and named != "StateModel":
                yield from _members(above, places, seen)


def _docstring_after(statement: ast.stmt | None) -> str | None:
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return inspect.cleandoc(text)
    return None


def _field(statement: ast.stmt) -> str:
    if isinstance(statement, ast.AnnAssign):
        default = "" if statement.value is None else f" = {ast.unparse(statement.value)}"
        # How a column is stored is in the schema; a reader wants what may be left out.
        if match := re.match(r" = Field\((?:default=([^(),]+(?:\(\))?))?", default):
            default = f" = {match[1]}" if match[1] else ""
        kind = re.sub(r"ClassVar\[Mapped\[(.+)\]\]", r"\1", ast.unparse(statement.annotation))
        return f"{ast.unparse(statement.target)}: {kind.replace('columns.Moment', 'datetime')}{default}"
    return ast.unparse(statement)


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = {ast.unparse(decorator) for decorator in function.decorator_list}
    answer = "" if function.returns is None else ast.unparse(function.returns)
    if decorators & {"property", "cached_property"}:
        return f"{function.name}: {answer}"
    arguments = re.sub(r"^(self|cls)(, /)?(, )?", "", ast.unparse(function.args))
    kind = "async def " if isinstance(function, ast.AsyncFunctionDef) else "def "
    block = "with " if {"contextmanager", "asynccontextmanager"} & decorators else ""
    return f"{block or kind}{function.name}({arguments}){f' -> {answer}' if answer else ''}"


def _text(docstring: str | None) -> Iterator[str]:
    """A docstring as Markdown, with its arguments and errors as lists."""
    text = re.sub(r"``(.+?)``", r"`\1`", docstring or "")
    for paragraph in re.split(r"\n\n+", text):
        head, _, rest = paragraph.partition("\n")
        if head not in {"Args:", "Raises:", "Returns:", "Yields:"}:
            yield paragraph + "\n"
            continue
        items = re.split(r"\n(?! )", inspect.cleandoc("\n" + rest))
        yield f"{head}\n"
        yield from (f"- {_item(' '.join(item.split()))}" for item in items)
        yield ""


def _item(text: str) -> str:
    name, colon, meaning = text.partition(": ")
    return f"`{name}`: {meaning}" if colon and " " not in name else text


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
