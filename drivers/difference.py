"""The paths that differ between two snapshots of one btrfs tree, from the steps of a send stream.

The steps are played on names only: a place knows which path of the older snapshot its inode comes
from, and directories that no step mentions are not looked at, but for those that were renamed with
all they hold. That gives the paths that may differ; then both snapshots are asked about each.

A directory is changed if its mode, owner or extended attributes are, not if what it holds is.
Anything else is changed if it is another inode than before, has another mode, owner or time of
modification, or if the kernel says that its content, size or extended attributes are others.
"""

import os
import stat
from collections.abc import Iterable, Iterator
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
_SEEN_IN_STAT: Final = frozenset({Command.UTIMES, Command.CHMOD, Command.CHOWN})
"""Sent also for what only got a new name or neighbour, or was read: stat(2) tells better."""
_ABOUT_THE_WHOLE: Final = frozenset({Command.SUBVOL, Command.SNAPSHOT})


class _Place:
    """An inode as the steps have left it."""

    __slots__ = ("below", "is_touched", "origin")

    def __init__(self, origin: bytes | None) -> None:
        self.origin = origin
        """Its path in the older snapshot; None: it is new."""
        self.below: dict[bytes, _Place | None] = {}
        """Names that steps mentioned; None: nothing is there any more."""
        self.is_touched = False
        """The kernel told of a change that stat(2) does not show."""


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
    for path in sorted(touched):
        old, new = before.status(path), after.status(path)
        kind = _kind(old, new, is_touched=touched[path])
        if kind is ChangeKind.CHANGED and new is not None and new.st_nlink > 1 and not stat.S_ISDIR(new.st_mode):
            return None
        if kind is not None and path:
            found.append(Change(os.fsdecode(path), kind))
    return sorted(found)


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
        elif step.command in _SEEN_IN_STAT:
            self._find(step.path)
        elif step.command not in _ABOUT_THE_WHOLE:
            self._find(step.path).is_touched = True
        _check_number(self.origins)

    def final(self) -> Iterator[tuple[bytes, _Place, bool]]:
        """Yield (path, place, whether it came here otherwise than with its directory) of all that is left."""
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

    def status(self, path: bytes) -> os.stat_result | None:
        """Return the status of a path, None if nothing is there. Raises OSError."""
        end = path.find(b"/")
        while end >= 0:
            if not self._is_directory(path[:end]):
                return None
            end = path.find(b"/", end + 1)
        return self._lstat(path)

    def below(self, path: bytes) -> Iterator[bytes]:
        """Yield all paths below a directory; nothing if it is none. Raises OSError."""
        found = self.status(path)
        waiting = [path] if found is not None and stat.S_ISDIR(found.st_mode) else []
        while waiting:
            directory = waiting.pop()
            with os.scandir(_join(self._root, directory)) as entries:
                for entry in entries:
                    yield _join(directory, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(_join(directory, entry.name))

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


def _kind(old: os.stat_result | None, new: os.stat_result | None, *, is_touched: bool) -> ChangeKind | None:
    if old is None or new is None:
        return ChangeKind.ADDED if new else ChangeKind.REMOVED if old else None
    differs = (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid)
    if not stat.S_ISDIR(new.st_mode):
        differs = differs or (old.st_ino, old.st_mtime_ns) != (new.st_ino, new.st_mtime_ns)
    return ChangeKind.CHANGED if differs or is_touched else None


def _join(directory: bytes, name: bytes) -> bytes:
    if not directory or not name:
        return directory or name
    return directory + b"/" + name


def _check_number(paths: "dict[bytes, bool] | list[bytes]") -> None:
    if len(paths) > PATHS_MAX:
        raise Unsupported(f"cannot list changes: more than {PATHS_MAX} paths differ")
