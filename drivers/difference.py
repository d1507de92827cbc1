"""The paths that differ between two snapshots of one btrfs tree, from the steps of a send stream.

The steps are played on names only: a place knows which path of the older snapshot its inode comes
from, and directories that no step mentions are not looked at, but for those that were renamed with
all they hold. That gives the paths that may differ; then both snapshots are asked about each.

A path is changed if its type, mode, owner or extended attributes are others, the size, mtime or
inode of a file, the target of a symlink, the number of a device; and a file also if the kernel says
that its content is another. A directory is not changed by what is made or removed in it.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from voldriverd.driver import Change, ChangeKind
from voldriverd.errors import Unsupported
from voldriverd.kernel.send import Command, Step

PATHS_MAX: Final = 1_000_000
"""More than a person reads, and a bound to the memory."""

_MAKES: Final = frozenset(
    {Command.MKFILE, Command.MKDIR, Command.MKNOD, Command.MKFIFO, Command.MKSOCK, Command.SYMLINK}
)
_REMOVES: Final = frozenset({Command.UNLINK, Command.RMDIR})
_CONTENT: Final = frozenset({Command.UPDATE_EXTENT, Command.WRITE, Command.CLONE, Command.TRUNCATE})
_SEEN: Final = frozenset({Command.UTIMES, Command.CHMOD, Command.CHOWN, Command.SET_XATTR, Command.REMOVE_XATTR})
"""Sent also for what only got a new name or neighbour, or was read: the snapshots tell better."""


class _Place:
    """An inode as the steps have left it."""

    __slots__ = ("below", "is_touched", "origin")

    def __init__(self, origin: bytes | None) -> None:
        self.origin = origin
        """Its path in the older snapshot; None: it is new."""
        self.below: dict[bytes, _Place | None] = {}
        """Names that steps mentioned; None: nothing is there any more."""
        self.is_touched = False
        """Its content was written."""


def changes(base: Path, tree: Path, steps: Iterable[Step]) -> list[Change] | None:
    """Return what differs, sorted by path; None: a changed file has several names, and the steps tell only one.

    Raises Unsupported (more than PATHS_MAX paths) and OSError (ENAMETOOLONG).
    """
    names = _Names()
    for step in steps:
        names.play(step)
    before, after = _Snapshot(base), _Snapshot(tree)
    touched = dict.fromkeys(names.origins, False)
    for path, place, is_moved in names.final():
        touched[path] = place.is_touched
        if is_moved and place.origin is not None:
            touched.update((below, False) for below in before.below(place.origin) if below not in touched)
            touched.update((below, False) for below in after.below(path) if below not in touched)
        _check_number(touched)
    found = []
    for path, is_touched in touched.items():
        old, new = before.facts(path), after.facts(path)
        if old is not None and new is not None and (old != new or is_touched):
            if new.has_other_names:
                return None
            found.append(Change(os.fsdecode(path or b"."), ChangeKind.CHANGED))
        elif (old is None) != (new is None):
            found.append(Change(os.fsdecode(path), ChangeKind.ADDED if old is None else ChangeKind.REMOVED))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What two paths must have in common to be the same."""

    mode: int
    uid: int
    gid: int
    xattrs: tuple[tuple[str, bytes], ...]
    rest: tuple[object, ...]
    links: int = field(compare=False)

    @property
    def has_other_names(self) -> bool:
        """Tell whether this is a file whose content is found under other paths too."""
        return self.links > 1 and not stat.S_ISDIR(self.mode)


class _Names:
    """The names of the newer snapshot, as far as the steps mention them."""

    def __init__(self) -> None:
        self._root = _Place(b"")
        self.origins: list[bytes] = []
        """The paths of the older snapshot that steps mentioned."""

    def play(self, step: Step) -> None:
        """Do to the names what a step does."""
        if step.command in _MAKES:
            self._put(step.path, _Place(None))
        elif step.command is Command.RENAME:
            self._put(step.other, self._take(step.path))
        elif step.command is Command.LINK:
            self._put(step.path, self._find(step.other))
        elif step.command in _REMOVES:
            self._take(step.path)
        elif step.command in _SEEN:
            self._find(step.path)
        elif step.command in _CONTENT:
            self._find(step.path).is_touched = True
        _check_number(self.origins)

    def final(self) -> Iterator[tuple[bytes, _Place, bool]]:
        """Yield (path, place, whether it came here otherwise than with its directory) of all that is left."""
        yield b"", self._root, False
        waiting = [(b"", self._root)]
        while waiting:
            path, place = waiting.pop()
            for name, below in place.below.items():
                if below is None:
                    continue
                where = _join(path, name)
                is_moved = place.origin is None or below.origin != _join(place.origin, name)
                yield where, below, is_moved
                waiting.append((where, below))

    def _find(self, path: bytes) -> _Place:
        place = self._root
        for name in path.split(b"/") if path else ():
            below = place.below.get(name)
            if below is None:
                origin = None if place.origin is None or name in place.below else _join(place.origin, name)
                below = place.below[name] = _Place(origin)
                if origin is not None:
                    self.origins.append(origin)
            place = below
        return place

    def _take(self, path: bytes) -> _Place:
        place = self._find(path)
        directory, _, name = path.rpartition(b"/")
        self._find(directory).below[name] = None
        return place

    def _put(self, path: bytes, place: _Place) -> None:
        directory, _, name = path.rpartition(b"/")
        self._find(directory).below[name] = place


class _Snapshot:
    """Answers what lies at a path of a snapshot, never through a symlink."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._directories = {b"": True}

    def facts(self, path: bytes) -> "_Facts | None":
        """Return what makes a difference at a path, None if nothing is there. Raises OSError."""
        status = self._status(path)
        if status is None:
            return None
        where = _join(self._root, path)
        rest: tuple[object, ...] = (status.st_rdev,)
        if stat.S_ISREG(status.st_mode):
            rest = status.st_size, status.st_mtime_ns, status.st_ino
        elif stat.S_ISLNK(status.st_mode):
            rest = (os.readlink(where),)
        return _Facts(status.st_mode, status.st_uid, status.st_gid, _xattrs(where), rest, status.st_nlink)

    def below(self, path: bytes) -> Iterator[bytes]:
        """Yield all paths below a directory; nothing if it is none. Raises OSError."""
        found = self._status(path)
        waiting = [path] if found is not None and stat.S_ISDIR(found.st_mode) else []
        while waiting:
            directory = waiting.pop()
            with os.scandir(_join(self._root, directory)) as entries:
                for entry in entries:
                    yield _join(directory, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(_join(directory, entry.name))

    def _status(self, path: bytes) -> os.stat_result | None:
        end = path.find(b"/")
        while end >= 0:
            if not self._is_directory(path[:end]):
                return None
            end = path.find(b"/", end + 1)
        return self._lstat(path)

    def _is_directory(self, path: bytes) -> bool:
        known = self._directories.get(path)
        if known is None:
            found = self._lstat(path)
            known = self._directories[path] = found is not None and stat.S_ISDIR(found.st_mode)
        return known

    def _lstat(self, path: bytes) -> os.stat_result | None:
        try:
            return os.lstat(_join(self._root, path))
        except FileNotFoundError:
            return None


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def _join(directory: bytes, name: bytes) -> bytes:
    if not directory or not name:
        return directory or name
    return directory + b"/" + name


def _check_number(paths: "dict[bytes, bool] | list[bytes]") -> None:
    if len(paths) > PATHS_MAX:
        raise Unsupported(f"cannot list changes: more than {PATHS_MAX} paths differ")
