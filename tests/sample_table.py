"""A table with a column of every type of the type map."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Column, MetaData, Table

from codex_state.models import columns


class Colour(StrEnum):
    """An enum whose names and values differ, as do those of the models."""

    RED = "rot"
    GREEN = "grün"


SAMPLES = Table(
    "samples",
    MetaData(),
    Column("id", columns.big_integer, primary_key=True),
    Column("uuid", columns.UuidText()),
    Column("seconds", columns.EpochSeconds()),
    Column("path", columns.PathText()),
    Column("optional", columns.OptionalText()),
    Column("flag", columns.IntegerFlag()),
    Column("json", columns.CompactJson()),
    Column("colour", columns.EnumText(Colour)),
    Column("text", columns.text),
    Column("number", columns.big_integer),
)
