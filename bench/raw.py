"""The raw work that a verb cannot do without, timed by itself: kernel calls and full-sync SQLite commits."""

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from voldriverd.kernel import btrfs, fs, mount

_numbers = itertools.count()
_ROW = "x" * 400
"""About what the row of a volume takes."""


def timed(work: Callable[[], object]) -> float:
    """Return how long something took, in ms."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1e3


@contextmanager
def database(path: Path) -> Iterator[Callable[[], None]]:
    """Give a function that makes one full-sync commit of one row, in WAL as ours."""
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT)")

    def commit() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows (text) VALUES (?)", (_ROW,))
        connection.execute("COMMIT")

    yield commit
    connection.close()


def create(directory: Path) -> Path:
    """Create one subvolume."""
    name = f"raw{next(_numbers)}"
    with btrfs.opened(directory) as fd:
        btrfs.create(fd, name)
    return directory / name


def create_durably(directory: Path) -> Path:
    """Create one subvolume that survives power loss, as what `Create` has answered does."""
    made = create(directory)
    fs.sync_directory(directory)
    return made


def snapshot(source: Path, directory: Path) -> None:
    """Take one read-only snapshot; it commits by itself."""
    with btrfs.opened(source) as origin, btrfs.opened(directory) as fd:
        btrfs.snapshot(origin, fd, f"raw{next(_numbers)}", read_only=True)


def attach(source: Path, point: Path) -> None:
    """Commit a new subvolume, so that what is written into it can be, and bind-mount it."""
    fs.sync_directory(source.parent)
    point.mkdir()
    mount.bind(source, point, read_only=False)


def detach(point: Path) -> None:
    """Unmount again."""
    mount.unmount(point)
    point.rmdir()


def bind(source: Path, point: Path) -> None:
    """Bind-mount."""
    point.mkdir()
    mount.bind(source, point, read_only=False)
