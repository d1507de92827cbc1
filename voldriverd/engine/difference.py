"""What differs between two trees, found by walking both: for drivers that have no better way.

Compared are the type, mode, owner and extended attributes of everything, and besides: size and
mtime of a file, target of a symlink, number of a device. No content is read. So a file that has its
size and its mtime (in ns) counts as the same, and one that was only touched as changed; ctime and
inode numbers differ between a tree and its copy and tell nothing. A directory is not changed by
what is made or removed in it. A path that is of another type now is changed, and all below it is
added or removed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.driver import Change, ChangeKind
from voldriverd.kernel import attributes, tree

_PATH_MAX: Final = 4_096
"""linux/limits.h; no program could use a longer path, and a hostile tree has some 100,000 bytes long."""
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

Facts = tuple[object, ...]


def compare(old: Path, new: Path) -> Iterator[Change]:
    """Yield the paths that differ between two directories, sorted; the root itself is `.`.

    What comes or goes while it is looked at is taken for absent. Directories whose path is longer
    than PATH_MAX are not entered. Raises OSError (EBUSY: something is mounted inside).
    """
    with tree.Cursor(old) as old_cursor, tree.Cursor(new) as new_cursor:
        sides = _Side(old_cursor), _Side(new_cursor)
        levels = [_enter(*sides, "")]
        levels[0].names.append(".")
        levels[0].names.sort(reverse=True)
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop()
                for side in sides if levels else ():
                    side.up()
                continue
            name = level.names.pop()
            if name.endswith("/"):
                for side, directories in zip(sides, level.directories, strict=True):
                    side.down(name[:-1], is_there=name[:-1] in directories)
                levels.append(_enter(*sides, level.prefix + name))
            else:
                kind = _kind(*(side.facts(name) for side in sides))
                if kind is not None:
                    yield Change(level.prefix + name, kind)


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory on both sides: what is still to be done in it, last first, and which names are directories.

    A name stands for itself; with a slash behind it, for what is below it. Sorted together, they
    give the order of whole paths: `a`, `a.txt`, `a/b`.
    """

    prefix: str
    names: list[str]
    directories: tuple[set[str], set[str]]


class _Side:
    """One of both trees; where it has not the directory that the other one is in, it is empty."""

    def __init__(self, cursor: tree.Cursor) -> None:
        self._cursor = cursor
        self._levels_absent = 0

    def down(self, name: str, *, is_there: bool) -> None:
        """Go down, if only in thought."""
        if self._levels_absent or not is_there:
            self._levels_absent += 1
            return
        try:
            self._cursor.down(name)
        except OSError as err:
            if err.errno not in _GONE:
                raise
            self._levels_absent = 1

    def up(self) -> None:
        """Go back to the parent directory."""
        if self._levels_absent:
            self._levels_absent -= 1
        else:
            self._cursor.up()

    def list(self) -> tuple[set[str], set[str]]:
        """Return all names in the directory and those of them that are directories."""
        names: set[str] = set()
        directories: set[str] = set()
        if not self._levels_absent:
            with os.scandir(self._cursor.fd) as entries:
                for entry in entries:
                    names.add(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        directories.add(entry.name)
        return names, directories

    def facts(self, name: str) -> Facts | None:
        """Return what is compared of a name, None if it is absent."""
        if self._levels_absent:
            return None
        try:
            looked = self._cursor.look(name)
        except FileNotFoundError:
            return None
        try:
            return _facts(looked)
        finally:
            os.close(looked)


def _enter(old: _Side, new: _Side, prefix: str) -> _Level:
    old_names, old_directories = old.list()
    new_names, new_directories = new.list()
    names = old_names | new_names
    inner = {f"{name}/" for name in old_directories | new_directories if len(prefix) + len(name) < _PATH_MAX}
    return _Level(prefix, sorted(names | inner, reverse=True), (old_directories, new_directories))


def _facts(looked: int) -> Facts:
    status = os.fstat(looked)
    common = status.st_mode, status.st_uid, status.st_gid, sorted(attributes.read_xattrs(attributes.place(looked)))
    if stat.S_ISREG(status.st_mode):
        return *common, status.st_size, status.st_mtime_ns
    if stat.S_ISLNK(status.st_mode):
        return *common, os.readlink("", dir_fd=looked)
    return *common, status.st_rdev


def _kind(old: Facts | None, new: Facts | None) -> ChangeKind | None:
    """Return how a path differs, None if it does not."""
    if old == new:
        return None
    if old is None:
        return ChangeKind.ADDED
    return ChangeKind.REMOVED if new is None else ChangeKind.CHANGED
