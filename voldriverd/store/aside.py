"""Copies of the database that are put aside, beside it, before its tables change.

    voldriver.db.v1.20261122T010203Z       version 1 as it was at that time (UTC), mode 0600, as whole as the original

A copy is checked and durable before it has its name, and it has it before the first change. A try that came to nothing
leaves one, and the next one takes that for its own. The newest COPIES_MAX are kept.
"""

import filecmp
import itertools
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from voldriverd.errors import Unusable
from voldriverd.kernel import fs
from voldriverd.store import check
from voldriverd.store import connection as connecting

COPIES_MAX: Final = 3
"""Enough to go back over three upgrades; each is as large as the database was."""
_NAME: Final = re.compile(r"\.v(?P<version>\d+)\.(?P<time>\d{8}T\d{6}Z(?:-\d+)?)")


def keep(database: sqlite3.Connection, path: Path, found: int, now: datetime) -> Path:
    """Copy an open database of a version with its journal, and return where the copy lies.

    Raises Unusable, and nothing has changed: there is no room for it, or the disk does not hold what was written.
    """
    what = f"cannot upgrade database {path} of version {found}"
    part = path.with_name(f".{path.name}.aside.part")
    part.unlink(missing_ok=True)  # of one that was cut off
    try:
        _copy(database, part)
        damage = check.fault(part)
        if damage is not None:
            raise Unusable(f"{what}: the copy of it in {path.parent} is damaged ({damage}); it is left as it was")
        newest = next(_of_version(path, found), None)
        if newest is not None and filecmp.cmp(part, newest, shallow=False):
            return newest
        copy = _free_name(path, found, now)
        fs.rename_durably(part, copy)
    except (sqlite3.Error, OSError) as err:
        if not connecting.is_full(err):
            raise
        needed_bytes = path.stat().st_size
        raise Unusable(
            f"{what}: there is no room in {path.parent} for a copy of it ({needed_bytes / (1 << 20):.1f} MiB); "
            "free some and start again, it is left as it was"
        ) from err
    finally:
        part.unlink(missing_ok=True)
    return copy


def prune(path: Path, latest: Path) -> None:
    """Delete the oldest copies of a database but for COPIES_MAX; never the latest, whatever the clock said."""
    older = [copy for copy in copies(path) if copy != latest]
    for copy in older[COPIES_MAX - 1 :]:
        with suppress(OSError):  # an immutable file, for one: no reason not to serve, and the next upgrade tries again
            copy.unlink()


def copies(path: Path) -> list[Path]:
    """Return the copies of a database, newest first."""
    named = ((_NAME.fullmatch(copy.name.removeprefix(path.name)), copy) for copy in path.parent.glob(f"{path.name}.v*"))
    return [copy for _, copy in sorted(((match["time"], copy) for match, copy in named if match), reverse=True)]


def version(path: Path, copy: Path) -> int:
    """Return the version of a copy."""
    match = _NAME.fullmatch(copy.name.removeprefix(path.name))
    assert match is not None, f"{copy} is no copy of {path}"
    return int(match["version"])


def _copy(database: sqlite3.Connection, part: Path) -> None:
    """Write all pages to a new file, and wait until the disk has them."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with closing(sqlite3.connect(part, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")  # what is cut off is begun anew
            copy.execute("PRAGMA synchronous = OFF")
            database.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # or whoever reads it would need a journal beside it
        os.fsync(fd)
    finally:
        os.close(fd)


def _of_version(path: Path, wanted: int) -> Iterator[Path]:
    return (copy for copy in copies(path) if version(path, copy) == wanted)


def _free_name(path: Path, found: int, now: datetime) -> Path:
    name = f"{path.name}.v{found}.{now:%Y%m%dT%H%M%SZ}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(free for free in map(path.with_name, names) if not free.exists())
