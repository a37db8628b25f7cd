"""The declarative base of all entities."""

from __future__ import annotations

from typing import Any, Self

from sqlalchemy import MetaData
from sqlalchemy.orm import registry
from sqlmodel import SQLModel

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


class StateModel(SQLModel, registry=registry(metadata=metadata)):
    """Base of the entities, with a registry and metadata of its own.

    A service can have its own ``Thread`` class and its own ``SQLModel.metadata`` beside these, and its Alembic
    autogeneration won't see our tables.

    As with every SQLModel table, the constructor doesn't validate: ``model_validate`` does, and the schema's CHECK
    constraints are the last word.
    """

    @classmethod
    def snapshot(cls, values: dict[str, Any]) -> Self:
        """An entity made from a row's values without validating them again. It belongs to no session.

        Args:
            values: one converted value for every column.
        """
        entity: Self = cls.__mapper__.class_manager.new_instance()  # type: ignore[attr-defined]
        entity.__dict__.update(values)
        return entity
