"""A faithful copy of a tree of files: everything that stat(1), getfattr(1) and lsattr(1) show but inode numbers.

That is: types, modes, numeric owners, atime and mtime in ns, extended attributes of all namespaces
with ACLs and capabilities, hard links, holes, fifos, sockets, devices, symlinks, and the inode flags
that can be carried. Not carried: birth time, ctime, project ids, verity, encryption, reservations.
Nested btrfs subvolumes become directories.
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.kernel import attributes, fs, tree
from voldriverd.kernel.content import Advance, Content

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""A directory that has vanished since it was listed, or another file has taken its place."""


def copy_tree(source: Path, target: Path, *, live: bool) -> None:
    """Copy a directory to a path that does not exist; while it runs, `.<name>.links` lies beside that.

    With `live` the source may be in use: what vanishes before its turn is left out, and a file that
    is being written is copied as it is found. Otherwise any change that is noticed is an error
    (ESTALE). Raises OSError with the path inside the tree; the half copy is left to the caller then.

    Nothing is made durable: sync the file system once before the copy is given its name, which costs
    one commit instead of one fsync for each file. Memory is bounded by the largest number of
    subdirectories on one path and by the number of files with several names.
    """
    target.mkdir(0o700)
    fill(source, target, links=target.with_name(f".{target.name}.links"), live=live)


def fill(source: Path, target: Path, *, links: Path, live: bool, advance: Advance | None = None) -> None:
    """Copy a directory into one that is there and empty; else as `copy_tree`. What `advance` raises passes through.

    `links` is a path that does not exist, in the same subvolume; the mtime of its directory changes with it.
    """
    links.mkdir(0o700)
    with tree.Cursor(source) as source_cursor, tree.Cursor(target) as target_cursor, tree.Cursor(links) as linked:
        _Copy(source_cursor, target_cursor, _Links(linked.fd), Content(advance), live=live).run()
    links.rmdir()


@dataclass(slots=True)
class _Level:
    """A directory being copied: those of its subdirectories that are still to come, and its ctime when entered."""

    directories: list[str]
    changed_ns: int


class _Copy:
    """One run of copy_tree: two cursors that move together."""

    def __init__(
        self, source: tree.Cursor, target: tree.Cursor, links: "_Links", content: Content, *, live: bool
    ) -> None:
        self._source = source
        self._target = target
        self._links = links
        self._live = live
        self._content = content

    def run(self) -> None:
        """Copy everything; a directory gets its times and flags when all below it is done."""
        attributes.strip(self._target.fd)
        levels = [self._copy_files()]
        while levels:
            if levels[-1].directories:
                if self._enter(levels[-1].directories.pop()):
                    levels.append(self._copy_files())
            else:
                self._finish(levels.pop())
                if levels:
                    self._target.up()
                    self._source.up()
        self._links.finish()

    def _enter(self, name: str) -> bool:
        """Go down on both sides; False if there is nothing to copy any more."""
        try:
            self._source.down(name)
        except OSError as err:
            if self._live and err.errno in _GONE:
                return False
            raise
        os.mkdir(name, 0o700, dir_fd=self._target.fd)
        self._target.down(name)
        return True

    def _finish(self, level: _Level) -> None:
        status = os.fstat(self._source.fd)
        try:
            self._expect_unchanged(status, level.changed_ns)
            flags = attributes.read_flags(self._source.fd)
            attributes.add_flags(self._target.fd, flags & attributes.STORAGE_FLAGS)
            attributes.write(self._target.fd, status, attributes.read_xattrs(self._source.fd))
            attributes.add_flags(self._target.fd, flags & attributes.OTHER_FLAGS)
        except OSError as err:
            raise self._source.error(err) from err

    def _copy_files(self) -> _Level:
        """Copy what is no directory, and return what is."""
        level = _Level([], os.fstat(self._source.fd).st_ctime_ns)
        with os.scandir(self._source.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    level.directories.append(entry.name)
                else:
                    self._copy_name(entry.name, level)
        return level

    def _copy_name(self, name: str, level: _Level) -> None:
        try:
            looked = self._source.look(name)
        except FileNotFoundError:
            if self._live:
                return
            raise
        try:
            status = os.fstat(looked)
            if stat.S_ISDIR(status.st_mode):
                level.directories.append(name)  # since it was listed
            else:
                self._copy_inode(name, looked, status)
        except OSError as err:
            raise self._source.error(err, name) from err
        finally:
            os.close(looked)

    def _copy_inode(self, name: str, looked: int, status: os.stat_result) -> None:
        if self._links.use(status, looked, name, self._target.fd):
            return
        flags = 0
        if stat.S_ISREG(status.st_mode):
            flags = self._copy_file(name, looked, status)
        else:
            self._copy_special(name, looked, status)
        if status.st_nlink > 1:
            self._links.add(status, looked, name, self._target.fd, flags)

    def _copy_file(self, name: str, looked: int, status: os.stat_result) -> int:
        """Copy a regular file; returns the flags that must wait until it has all its names."""
        source_fd = tree.reopen(looked, tree.READ)
        try:
            target_fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._target.fd)
            try:
                flags = attributes.read_flags(source_fd)
                attributes.add_flags(target_fd, flags & attributes.STORAGE_FLAGS)
                self._content.copy(source_fd, target_fd, status.st_size)
                attributes.write(target_fd, status, attributes.read_xattrs(source_fd))
                flags &= attributes.OTHER_FLAGS
                if status.st_nlink == 1:
                    attributes.add_flags(target_fd, flags)
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)
        self._expect_unchanged(os.fstat(looked), status.st_ctime_ns)
        return flags

    def _copy_special(self, name: str, looked: int, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink("", dir_fd=looked), name, dir_fd=self._target.fd)
        else:
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=self._target.fd)
        made = tree.open_at(self._target.fd, name, tree.LOOK)
        try:
            xattrs = attributes.read_xattrs(attributes.place(looked))
            attributes.write(attributes.place(made), status, xattrs)
        finally:
            os.close(made)

    def _expect_unchanged(self, status: os.stat_result, changed_ns: int) -> None:
        if status.st_ctime_ns != changed_ns and not self._live:
            raise OSError(errno.ESTALE, "it changed while it was copied")


@dataclass(slots=True)
class _Link:
    """A file with names still to come, and the flags (immutable) that would forbid them."""

    names_left: int
    flags: int
    handle: bytes
    """A file that is made while a live tree is copied may get the inode number of one that has gone."""


class _Links:
    """Further names of files already copied.

    Until its last name is made, such a file has one more in a flat directory: the place of its
    first name may be deeper than any path can say. The last name takes that one away, so that no
    file ever has more names than in the source, where it may have as many as there can be.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._links: dict[tuple[int, int], _Link] = {}

    def add(self, status: os.stat_result, looked: int, name: str, dir_fd: int, flags: int) -> None:
        """Remember a file that has been copied to `name`; its flags are set after its last name."""
        key = status.st_dev, status.st_ino
        os.link(name, _link_name(key), src_dir_fd=dir_fd, dst_dir_fd=self._fd, follow_symlinks=False)
        self._links[key] = _Link(status.st_nlink - 1, flags, fs.handle(looked))

    def use(self, status: os.stat_result, looked: int, name: str, dir_fd: int) -> bool:
        """Make `name` a link if the file was remembered; False if it was not."""
        key = status.st_dev, status.st_ino
        link = self._links.get(key)
        if link is None:
            return False
        if link.handle != fs.handle(looked):
            self._free(key, None, dir_fd)
            return False
        if link.names_left > 1:
            os.link(_link_name(key), name, src_dir_fd=self._fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            link.names_left -= 1
        else:
            self._free(key, name, dir_fd)
        return True

    def finish(self) -> None:
        """End with those files that have names outside of the tree, or lost some meanwhile."""
        for key in list(self._links):
            self._free(key, None, self._fd)

    def _free(self, key: tuple[int, int], name: str | None, dir_fd: int) -> None:
        """Move the spare name to `name`, or drop it, and set the flags."""
        link = self._links.pop(key)
        fd = os.open(_link_name(key), tree.READ | os.O_NOFOLLOW, dir_fd=self._fd) if link.flags else None
        try:
            if name is None:
                os.unlink(_link_name(key), dir_fd=self._fd)
            else:
                os.rename(_link_name(key), name, src_dir_fd=self._fd, dst_dir_fd=dir_fd)
            if fd is not None:
                attributes.add_flags(fd, link.flags)
        finally:
            if fd is not None:
                os.close(fd)


def _link_name(key: tuple[int, int]) -> str:
    return f"{key[0]}.{key[1]}"
