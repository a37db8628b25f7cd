"""What the package uses of others that they don't promise to keep: this, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import codex_state

PACKAGE = Path(codex_state.__file__).parent

USED = {
    # The prepared statements: how SQLAlchemy handles a driver's error, and whether a block's transaction is over. A
    # version of it that does this otherwise fails test_statement_listeners, test_server_away and test_own_transactions.
    "database/execute.py": {
        "_handle_dbapi_exception",
        "_has_events",
        "_trans_context_manager",
        "_transaction_is_active",
        "_in_transaction",
    },
    # The pool is one of SQLAlchemy's, and hands on what they have: test_runtime_faults, test_server_away.
    "database/engine.py": {"_creator", "_dialect", "_orig_logging_name", "_pre_ping", "_recycle", "_reset_on_return"},
    # What SQLAlchemy compares a truth value with: test_entities_in_services.
    "models/comparisons.py": {"_asbool"},
    # Alembic's commands by hand, under our lock: test_revisions, test_concurrency.
    "migrations/runner.py": {"_downgrade_revs", "_upgrade_revs"},
    "migrations/environment.py": {"_migrations_fn"},
}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_of_others_are_these() -> None:
    trees = {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
        if "testing" not in path.parts
    }
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    ours = {
        *(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)),
        *(node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)),
        *(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)),
        *("_make", "_fields", "_replace", "_asdict", "_mapping"),  # public, of named tuples and rows
    } - {"_migrations_fn"}
    used = {
        path: found
        for path, tree in trees.items()
        if (
            found := {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in ours
            }
        )
    }
    assert used == USED
