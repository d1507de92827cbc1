"""Whether a database is sound, found out without writing to it."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from voldriverd.store import connection

_FAULTS_MAX: Final = 3
"""How many are told; one is enough to refuse."""


def fault(path: Path) -> str | None:
    """Return what is wrong with a database, None if nothing is. Raises sqlite3.Error: it cannot be read at all.

    The journal beside it is read with it. Takes some 2 ms per MiB (`PRAGMA quick_check`).
    """
    try:
        with closing(connection.connect_to_read(path)) as database:
            found = [row[0] for row in database.execute(f"PRAGMA quick_check({_FAULTS_MAX})")]
    except sqlite3.DatabaseError as err:
        if connection.is_damage(err):
            return str(err)
        raise
    lines = [line for text in found for line in text.splitlines() if not line.startswith("***")]
    return None if found == ["ok"] else "; ".join(lines[:_FAULTS_MAX])
