"""An upgrade whose process is killed in the middle.

    upgrade_and_die.py URL FRAGMENT

Kills itself right after the first statement that contains FRAGMENT.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sqlalchemy import event

from codex_state import migrations
from codex_state.database import Database


def main(url: str, fragment: str) -> None:
    database = Database.open(url)

    def die(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if fragment in statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(database.engine, "after_cursor_execute", die)
    migrations.upgrade(database.engine)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
