"""The declarative base of all entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from inspect import Parameter, Signature
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from sqlalchemy import Column, ColumnElement, Connection, MetaData, Table, event
from sqlalchemy.orm import Mapper, registry
from sqlmodel import SQLModel

from codex_state.models.comparisons import Moments, as_seconds

metadata = MetaData(
    # Every constraint has a name, or Alembic can't change it in a batch on SQLite.
    naming_convention={
        "ix": "idx_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


entities = registry(metadata=metadata)


def _instrumented(entity: Any) -> Any:
    """A validated entity as SQLAlchemy makes them: it can be added to a session."""
    mapper = getattr(type(entity), "__mapper__", None)
    if mapper is None or "_sa_instance_state" in vars(entity):
        return entity
    made = mapper.class_manager.new_instance()
    vars(made).update({name: value for name, value in vars(entity).items() if name in type(entity).model_fields})
    object.__setattr__(made, "__pydantic_fields_set__", entity.__pydantic_fields_set__)
    return made


class _PlainSignature:
    """The fields of an entity and their types. Made when it is asked for, so that no start waits for it."""

    def __get__(self, _entity: object, entity: type[SQLModel]) -> Signature:
        return Signature(
            [
                Parameter(
                    name,
                    Parameter.KEYWORD_ONLY,
                    default=Parameter.empty if field.is_required() else ... if field.default_factory else field.default,
                    annotation=field.annotation,
                )
                for name, field in entity.model_fields.items()
            ]
        )


class StateModel(SQLModel, registry=entities):
    """Base of the entities, with a registry and metadata of its own.

    A service can have its own ``Thread`` class and its own ``SQLModel.metadata`` beside these. If its tables are in the
    same database, its Alembic autogeneration finds ours there and would drop them, unless its ``env.py`` says
    ``include_name=codex_state.migrations.except_codex_state``.

    As with every SQLModel table, the constructor doesn't validate: ``model_validate`` and ``model_validate_json`` do,
    as FastAPI does with a body, and the schema's CHECK constraints are the last word.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate what comes as JSON or in a request's body: SQLModel leaves tables to their constructor there."""
        schema = handler(source)
        model: Any = handler.resolve_ref_schema(schema)
        while model["type"] != "model":
            model = model["schema"]
        model["custom_init"] = False
        return core_schema.no_info_after_validator_function(_instrumented, schema)

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        """For ``help``, in place of a signature that says how each column is stored."""
        cls.__signature__ = _PlainSignature()  # type: ignore[assignment]

    @classmethod
    def snapshot(cls, values: Sequence[Any]) -> Self:
        """An entity made from a row's converted values, one for each column in order, without validating them again.

        It belongs to no session.
        """
        entity: Self = cls.__mapper__.class_manager.new_instance()  # type: ignore[attr-defined]
        entity.__dict__.update(zip(cls.column_names(), values, strict=True))
        # Every field was given, which is what pydantic's `exclude_unset` asks.
        object.__setattr__(entity, "__pydantic_fields_set__", cls._all_fields())
        return entity

    @classmethod
    @cache
    def column_names(cls) -> tuple[str, ...]:
        """The names of the entity's columns, which are those of the attributes, in order.

        A table may have more: columns that only its repository knows.
        """
        return tuple(cls.model_fields)

    def column_values(self) -> Mapping[str, Any]:
        """The value of every column, by name. A view: don't keep it."""
        values = self.__dict__
        if values.keys() >= self._column_set():
            return values
        # Something isn't loaded: an entity of a session of the caller's own, or one that was built by hand.
        return {name: getattr(self, name) for name in self.column_names()}

    @classmethod
    @cache
    def _all_fields(cls) -> set[str]:
        return set(cls.column_names())

    @classmethod
    @cache
    def _column_set(cls) -> frozenset[str]:
        return frozenset(cls.column_names())


@event.listens_for(StateModel, "before_insert", propagate=True)
@event.listens_for(StateModel, "before_update", propagate=True)
def _take_the_databases_time(mapper: Mapper[Any], _connection: Connection, entity: StateModel) -> None:
    """``entity.some_time = func.now()``: the seconds of what the database says, not the text that SQLite has for it."""
    for name in entity.column_names():
        given = vars(entity).get(name)
        if isinstance(given, ColumnElement) and isinstance(kind := mapper.columns[name].type, Moments):
            setattr(entity, name, as_seconds(given, kind))


def table_of(model: type[StateModel]) -> Table:
    """The table of an entity."""
    table: Table = model.__table__  # type: ignore[attr-defined]
    return table


def columns_of(model: type[StateModel]) -> list[Column[Any]]:
    """All columns of an entity, in the order of a snapshot."""
    return [table_of(model).c[name] for name in model.column_names()]
