"""Connections to the database file, and what an error of one says."""

import errno
import os
import sqlite3
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_VFS: Final = "unix-excl"
"""For one process alone (sqlite.org/vfs.html): its index of the journal lies in the heap. As a shared mapping of a
file it kills the process with SIGBUS when a copy-on-write disk is full (btrfs, 6.18). A commit takes a fifth less."""
_PRAGMAS: Final = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000")
_JOURNAL_BYTES: Final = 32 + 1_000 * (24 + 4_096)
"""How long the journal grows before SQLite begins anew at its beginning: its header and `wal_autocheckpoint` frames of
a page (sqlite.org/fileformat2.html, 4)."""
_ZEROS: Final = bytes(1 << 16)
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection that any thread may use. Raises sqlite3.Error."""
    uri = f"file:{urllib.parse.quote(str(path))}?vfs={_VFS}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a connection that cannot write, to a file that is there. Raises sqlite3.Error."""
    uri = f"file:{urllib.parse.quote(str(path))}?vfs={_VFS}&mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def lengthen_journal(path: Path) -> None:
    """Write zeros after the end of the journal of a database that is open and idle, up to the length that it comes to.

    SQLite takes them for its end. A commit that makes the file longer waits for the file system's own journal as well:
    0.36 ms instead of 0.22 (ext4, 6.18). What fails, as on a full disk, leaves the file as it was.
    """
    try:
        fd = os.open(path.with_name(f"{path.name}-wal"), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return
    try:
        end = os.fstat(fd).st_size
        try:
            for missing in range(_JOURNAL_BYTES - end, 0, -len(_ZEROS)):
                _write_whole(fd, _ZEROS[:missing])
            os.fsync(fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, end)
    finally:
        os.close(fd)


def _write_whole(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def set_synced(connection: sqlite3.Connection, *, is_synced: bool) -> None:
    """Choose whether commits to come wait for the disk; those before, and checkpoints, do in any case."""
    connection.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")


@contextmanager
def unchecked(connection: sqlite3.Connection) -> Iterator[None]:
    """Have a connection not look for rows that point to deleted ones, for a block; no transaction may be open."""
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        connection.execute("PRAGMA foreign_keys = ON")


def is_damage(err: sqlite3.Error) -> bool:
    """Tell whether an error says that the file is not what it was written as."""
    return getattr(err, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_full(err: sqlite3.Error | OSError) -> bool:
    """Tell whether an error may come from a full disk; SQLite cannot always say."""
    if isinstance(err, OSError):
        return err.errno in {errno.ENOSPC, errno.EDQUOT}
    return getattr(err, "sqlite_errorcode", 0) & 0xFF in _FULL
