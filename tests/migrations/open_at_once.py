"""Many processes that open one database at the same moment.

    open_at_once.py URL COUNT

Forks COUNT children, lets them go together, and prints what each found, one line each: the revisions before and after,
or its error.
"""

from __future__ import annotations

import os
import sys
import traceback

from codex_state import migrations
from codex_state.database import Database, prepare_sqlite_file


def open_once(url: str) -> str:
    database = Database.open(url)
    try:
        if database.path is not None:
            prepare_sqlite_file(database)
        outcome = migrations.ensure_current(database.engine)
        return f"{outcome.before} {outcome.after}"
    finally:
        database.close()


def child(url: str, gate: int) -> None:
    os.read(gate, 1)  # returns when the parent closes its end
    try:
        line = open_once(url)
    except BaseException:  # noqa: BLE001 - the parent's caller shows it
        line = repr(traceback.format_exc())
    os.write(sys.stdout.fileno(), f"{line}\n".encode())
    os._exit(0)


def main(url: str, count: int) -> None:
    gate, opener = os.pipe()
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            child(url, gate)
        children.append(pid)
    os.close(opener)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
