"""Every field of an entity says what it holds."""

from __future__ import annotations

import ast
import inspect
import pydoc
from pathlib import Path

import pytest

import codex_state.models
from codex_state.models import StateModel
from codex_state.models.base import entities

MODULES = sorted(Path(next(iter(codex_state.models.__path__))).glob("*.py"))

ENTITIES = [
    node
    for module in MODULES
    for node in ast.parse(module.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ClassDef) and any(keyword.arg == "table" for keyword in node.keywords)
]


@pytest.mark.parametrize("entity", ENTITIES, ids=lambda entity: entity.name)
def test_every_field_of_an_entity_is_documented(entity: ast.ClassDef) -> None:
    undocumented = [
        ast.unparse(node.target)
        for node, following in zip(entity.body, [*entity.body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign)
        and not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant))
    ]
    assert ENTITIES
    assert undocumented == []


@pytest.mark.parametrize(
    "entity",
    sorted((mapper.class_ for mapper in entities.mappers), key=lambda entity: entity.__name__),
    ids=lambda entity: entity.__name__,
)
def test_help_says_the_types_of_the_fields_and_not_how_they_are_stored(entity: type[StateModel]) -> None:
    told = pydoc.render_doc(entity, renderer=pydoc.plaintext)
    assert "FieldInfoMetadata" not in told
    assert list(inspect.signature(entity).parameters) == list(entity.model_fields)
