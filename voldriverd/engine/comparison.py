"""Whether a copy is like what it was made from: every name, every attribute that a copy must keep, every byte.

Compared are types, modes, owners, mtimes in ns, extended attributes, sizes, contents, targets of symlinks, numbers of
devices, and which names are one file. Not compared is what no archive holds or a file system may lack: sockets, atimes,
inode flags, and how btrfs is to store a file (`btrfs.*`).
"""

import heapq
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from voldriverd.kernel import attributes, content, tree

_PIECE_BYTES: Final = 1 << 20
_STORAGE: Final = "btrfs."

Advance = Callable[[int], None]


def first_difference(source: Path, made: Path, *, advance: Advance) -> str | None:
    """Return the first path that differs, with what does, for people; None if none does.

    `advance` is called with the bytes read since; what it raises passes through. Memory is bounded but for the names
    of one directory and an entry for each file with several names. Raises OSError (EBUSY: something is mounted in it).
    """
    with tree.Cursor(source) as source_cursor, tree.Cursor(made) as made_cursor:
        return next(_Comparison(source_cursor, made_cursor, advance).differences(), None)


class _Comparison:
    """One run: two cursors that move together."""

    def __init__(self, source: tree.Cursor, made: tree.Cursor, advance: Advance) -> None:
        self._source = source
        self._made = made
        self._advance = advance
        self._links: dict[tuple[int, int], tuple[int, int]] = {}
        """Of files with several names: which one of the copy it is."""

    def differences(self) -> Iterator[str]:
        """Yield what differs; what lies below a name that the copy has not, or as something else, is not looked at."""
        levels = [[""]]
        while levels:
            if not levels[-1]:
                levels.pop()
                if levels and self._source.depth:
                    self._source.up()
                    self._made.up()
                continue
            name = levels[-1].pop()
            if name:
                self._source.down(name)
                self._made.down(name)
            directories: list[str] = []
            levels.append(directories)
            yield from self._directory(directories)

    def _directory(self, directories: list[str]) -> Iterator[str]:
        """Compare a directory and what is in it; those of both sides that are to be entered are noted."""
        if (fact := _unlike(self._source.fd, self._made.fd)) is not None:
            yield f"{self._source.path()}: {fact}"
        names, others = set(os.listdir(self._source.fd)), set(os.listdir(self._made.fd))
        for name in sorted(names | others):
            side = self._source if name in names else self._made
            looked = side.look(name)
            try:
                status = os.fstat(looked)
                if stat.S_ISSOCK(status.st_mode):
                    continue
                if name not in names or name not in others:
                    yield f"{side.path(name)}: it is in {'the source' if name in names else 'the copy'} only"
                    continue
                fact = self._compare(name, looked, status)
                if fact is not None:
                    yield f"{self._source.path(name)}: {fact}"
                elif stat.S_ISDIR(status.st_mode):
                    directories.append(name)
            finally:
                os.close(looked)

    def _compare(self, name: str, source_fd: int, status: os.stat_result) -> str | None:
        made_fd = self._made.look(name)
        try:
            made = os.fstat(made_fd)
            if stat.S_ISDIR(status.st_mode) and stat.S_ISDIR(made.st_mode):
                return None  # its own attributes are looked at when it is entered
            if status.st_nlink > 1:
                twin = (made.st_dev, made.st_ino)
                known = self._links.setdefault((status.st_dev, status.st_ino), twin)
                if known != twin:
                    return "it is not the same file as another name of it"
            fact = _unlike(source_fd, made_fd)
            if fact is None and stat.S_ISREG(status.st_mode):
                return self._compare_content(source_fd, made_fd, status.st_size)
            return fact
        finally:
            os.close(made_fd)

    def _compare_content(self, source_looked: int, made_looked: int, size_bytes: int) -> str | None:
        """Compare what is no hole on either side."""
        source_fd = tree.reopen(source_looked, tree.READ)
        try:
            made_fd = tree.reopen(made_looked, tree.READ)
            try:
                segments = heapq.merge(content.segments(source_fd, size_bytes), content.segments(made_fd, size_bytes))
                done = 0
                for start, end in segments:
                    position = max(start, done)
                    while position < end:
                        wanted = min(_PIECE_BYTES, end - position)
                        piece = os.pread(source_fd, wanted, position)
                        if not piece or piece != os.pread(made_fd, len(piece), position):
                            return f"its content differs, from byte {position} on"
                        position += len(piece)
                        self._advance(len(piece))
                    done = max(done, end)
            finally:
                os.close(made_fd)
        finally:
            os.close(source_fd)
        return None


def _unlike(source_fd: int, made_fd: int) -> str | None:
    """Return which attribute of two inodes differs, None if none does."""
    source, made = os.fstat(source_fd), os.fstat(made_fd)
    is_file, is_link = stat.S_ISREG(source.st_mode), stat.S_ISLNK(source.st_mode)
    pairs = [
        ("its type", stat.S_IFMT(source.st_mode), stat.S_IFMT(made.st_mode)),
        ("its mode", source.st_mode, made.st_mode),
        ("its owner", (source.st_uid, source.st_gid), (made.st_uid, made.st_gid)),
        ("its time", source.st_mtime_ns, made.st_mtime_ns),
        ("its device", source.st_rdev, made.st_rdev),
        ("its size", source.st_size if is_file else 0, made.st_size if is_file else 0),
    ]
    for fact, one, other in pairs:
        if one != other:
            return f"{fact} differs"
    if is_link and os.readlink("", dir_fd=source_fd) != os.readlink("", dir_fd=made_fd):
        return "its target differs"
    return None if _xattrs(source_fd) == _xattrs(made_fd) else "its extended attributes differ"


def _xattrs(fd: int) -> dict[str, bytes]:
    return {
        name: value for name, value in attributes.read_xattrs(attributes.place(fd)) if not name.startswith(_STORAGE)
    }
