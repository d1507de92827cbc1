"""The making of a tree from the tar archive that drivers/archive.py wrote, or somebody who wishes us ill.

Every step goes from a directory's descriptor to one name in it: no absolute name, no `..`, no symlink and no mount on
the way. A directory gets its attributes when the archive leaves it, so that what is made in it inherits nothing and
its times stay; flags that forbid changes to a file are set at the end, for it may get more names.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from drivers.inodes import Inodes, shown
from voldriverd.driver import Part
from voldriverd.errors import Unusable
from voldriverd.kernel import attributes, content, fs, sparse, tar, tree
from voldriverd.kernel.reader import Reader

_ZEROS: Final = bytes(tar.BLOCK_BYTES)
_END_BLOCKS: Final = 2
_END_BLOCKS_MAX: Final = 21
"""GNU tar fills its last record of 20 blocks."""
_LATE_FLAGS: Final = fs.FS_IMMUTABLE_FL | fs.FS_APPEND_FL
_NO_WAY: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.EBUSY})
_TYPES: Final = {
    tar.Kind.CHARACTER: stat.S_IFCHR,
    tar.Kind.BLOCK: stat.S_IFBLK,
    tar.Kind.FIFO: stat.S_IFIFO,
}
_PATH_MAX: Final = 4_095
"""linux/limits.h, less the zero at the end."""


class Unpacker:
    """One run of archive.extract."""

    def __init__(self, parts: Iterator[Part], cursor: tree.Cursor, root_fd: int) -> None:
        """Stand in an empty directory, which `root_fd` is too."""
        self._source = Reader(part.data or bytes(part.length) for part in parts)
        self._cursor = cursor
        self._root_fd = root_fd
        self._inodes = Inodes(root_fd)
        self._at = bytearray()
        self._levels: list[_Level] = []
        self._late_flags: list[tuple[bytes, int]] = []
        self._lost_bytes = 0

    def run(self) -> tuple[str, ...]:
        """Extract everything; see archive.extract."""
        try:
            _strip_acls(self._root_fd)
            self._levels.append(_Level.of(self._root_fd, None))
            for member in self._members():
                self._take(member)
            self._climb(b"")
            self._leave()
            for path, flags in self._late_flags:
                self._add_late_flags(path, flags)
        except EOFError as err:
            if err is self._source.failure:
                raise
            raise Unusable(f"cannot extract the archive: {err}") from err
        notes = self._inodes.notes()
        if self._lost_bytes:
            notes = (*notes, f"{self._lost_bytes} bytes of the archive are lost, with whatever files began there")
        return notes

    def _members(self) -> Iterator[tar.Member]:
        """Yield what the archive has; the content of each must have been read when the next one is asked for."""
        headers = tar.Headers()
        zeros = 0
        while piece := self._source.read(headers.wanted):
            if piece == _ZEROS and headers.is_between:
                zeros += 1
                continue
            if zeros:
                self._lost_bytes += zeros * tar.BLOCK_BYTES
                zeros = 0
            try:
                member = headers.take(piece)
            except tar.Malformed as err:
                if self._source.read(tar.BLOCK_BYTES) != _ZEROS:
                    raise Unusable(f"cannot extract the archive: {err}, at byte {self._source.position}") from err
                zeros = 1 + len(piece) // tar.BLOCK_BYTES  # what follows was lost
                continue
            if member is not None:
                yield member
        if zeros < _END_BLOCKS or not headers.is_between:
            raise Unusable(f"cannot extract the archive: it ends too early, at byte {self._source.position}")
        if zeros > _END_BLOCKS_MAX:
            self._lost_bytes += zeros * tar.BLOCK_BYTES

    def _take(self, member: tar.Member) -> None:
        try:
            self._make(member)
        except OSError as err:
            if err is self._source.failure:
                raise
            if err.errno == errno.EEXIST:
                raise Unusable(f"cannot extract {shown(member.path)}: the archive has two of it") from err
            raise OSError(err.errno, err.strerror, shown(member.path)) from err

    def _make(self, member: tar.Member) -> None:
        if member.is_foreign:
            raise Unusable(f"cannot extract {shown(member.path)}: it is of a kind that no archive of ours has")
        path = member.path.removeprefix(b"./").rstrip(b"/")
        if path in {b"", b"."} and member.kind == tar.Kind.DIRECTORY:
            self._climb(b"")
            self._levels[0].member = member
            return
        parent, _, last = path.rpartition(b"/")
        name = _checked(last, member.path)
        self._go(parent, member)
        match member.kind:
            case tar.Kind.DIRECTORY:
                self._descend(name, member)
            case tar.Kind.LINK:
                self._link(name, member)
            case tar.Kind.FILE:
                self._make_file(name, path, member)
            case _:
                self._make_special(name, member)

    def _go(self, directory: bytes, member: tar.Member) -> None:
        """Move to a directory; one that the archive has not told of is made."""
        if directory == self._at:
            return
        self._climb(directory)
        rest = directory[len(self._at) :]
        for name in rest.split(b"/"):
            if name:
                self._descend(_checked(name, member.path), None)

    def _climb(self, directory: bytes) -> None:
        """Leave directories until this path lies beneath."""
        while self._at and not (directory == self._at or directory.startswith(bytes(self._at) + b"/")):
            self._leave()
            name = os.fsencode(self._cursor.up())
            del self._at[max(len(self._at) - len(name) - 1, 0) :]

    def _descend(self, name: str, member: tar.Member | None) -> None:
        """Enter a directory, which is made if it is not there."""
        with suppress(FileExistsError):  # told of twice, or left and entered again
            os.mkdir(name, 0o755 if member is None else 0o700, dir_fd=self._cursor.fd)
        try:
            self._cursor.down(name)
        except OSError as err:
            if err.errno in _NO_WAY:
                raise Unusable(f"cannot extract into {shown(os.fsencode(name))}: it is no directory") from err
            raise
        self._at += (b"/" if self._at else b"") + os.fsencode(name)
        self._levels.append(_Level.of(self._cursor.fd, member))

    def _leave(self) -> None:
        """Give the directory in which the cursor stands its attributes."""
        level = self._levels.pop()
        fd = self._cursor.fd
        if level.member is None:
            os.utime(fd, ns=level.times_ns)
            return
        path = bytes(self._at) or b"."
        self._inodes.add_flags(fd, level.member.flags & attributes.STORAGE_FLAGS, path)
        self._inodes.set(fd, level.member, path)
        self._inodes.add_flags(fd, level.member.flags & attributes.OTHER_FLAGS, path)

    def _make_file(self, name: str, path: bytes, member: tar.Member) -> None:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._cursor.fd)
        try:
            self._inodes.add_flags(fd, member.flags & attributes.STORAGE_FLAGS, path)
            self._write(fd, member)
            self._inodes.set(fd, member, path)
            self._inodes.add_flags(fd, member.flags & attributes.OTHER_FLAGS & ~_LATE_FLAGS, path)
        finally:
            os.close(fd)
        if late := member.flags & _LATE_FLAGS:
            self._late_flags.append((path, late))

    def _write(self, fd: int, member: tar.Member) -> None:
        """Fill a file with what follows in the archive, the padding too."""
        end = self._source.position + member.size_bytes + tar.padding(member.size_bytes)
        segments = [(0, member.size_bytes)]
        size_bytes = member.size_bytes
        if member.sparse_bytes is not None:
            size_bytes = member.sparse_bytes
            segments = self._read_map(member, end)
        for offset, length in segments:
            position = offset
            for piece in self._source.pieces(length):
                position += _write_all(fd, piece, position)
        os.ftruncate(fd, size_bytes)
        self._source.skip(end - self._source.position)

    def _read_map(self, member: tar.Member, end: int) -> sparse.Segments:
        """Return where the content of a sparse file lies; nowhere if that was lost."""
        try:
            segments = sparse.read(self._source.blocks(end, block_bytes=tar.BLOCK_BYTES), member)
        except tar.Malformed as err:
            self._inodes.note(f"its content is lost, {err}", member.path)
            return []
        return segments

    def _make_special(self, name: str, member: tar.Member) -> None:
        if member.kind == tar.Kind.SYMLINK:
            os.symlink(member.link, os.fsencode(name), dir_fd=self._cursor.fd)
        else:
            kind = _TYPES[tar.Kind(member.kind)]
            os.mknod(name, kind | 0o600, os.makedev(*member.device), dir_fd=self._cursor.fd)
        made = self._cursor.look(name)
        try:
            self._inodes.set(attributes.place(made), member, member.path)
        finally:
            os.close(made)

    def _link(self, name: str, member: tar.Member) -> None:
        """Give a file that is there another name."""
        parent, _, last = member.link.removeprefix(b"./").rpartition(b"/")
        first = _checked(last, member.link)
        try:
            source_fd = self._open_directory(parent)
            try:
                self._link_or_copy(source_fd, first, name, member.path)
            finally:
                os.close(source_fd)
        except FileNotFoundError as err:
            if not self._lost_bytes:
                raise Unusable(f"cannot extract {shown(member.path)}: it links to what is not there") from err
            self._inodes.note("it is lost with the first name of its file", member.path)

    def _link_or_copy(self, source_fd: int, first: str, name: str, path: bytes) -> None:
        try:
            os.link(first, name, src_dir_fd=source_fd, dst_dir_fd=self._cursor.fd, follow_symlinks=False)
        except OSError as err:
            if err.errno != errno.EMLINK:
                raise
            self._copy(source_fd, first, name)
            self._inodes.note("a copy, for its file has as many names as this file system allows", path)

    def _copy(self, source_dir_fd: int, first: str, name: str) -> None:
        source_fd = os.open(first, tree.READ | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source_dir_fd)
        try:
            status = os.fstat(source_fd)
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._cursor.fd)
            try:
                content.Content().copy(source_fd, fd, status.st_size)
                attributes.write(fd, status, attributes.read_xattrs(source_fd))
            finally:
                os.close(fd)
        finally:
            os.close(source_fd)

    def _open_directory(self, path: bytes) -> int:
        """Open a directory beneath the root, be its path longer than the kernel takes at once."""
        names = [_checked(name, path) for name in path.split(b"/") if name]
        fd = os.dup(self._root_fd)
        try:
            while names:
                count = 1
                while count < len(names) and len(os.fsencode("/".join(names[: count + 1]))) <= _PATH_MAX:
                    count += 1
                inner = tree.open_at(fd, "/".join(names[:count]), tree.READ | os.O_DIRECTORY | os.O_NOFOLLOW)
                os.close(fd)
                fd = inner
                del names[:count]
        except OSError as err:
            os.close(fd)
            if err.errno in _NO_WAY:
                raise Unusable(f"cannot extract a link to {shown(path)}: there is no such directory") from err
            raise
        return fd

    def _add_late_flags(self, path: bytes, flags: int) -> None:
        parent, _, last = path.rpartition(b"/")
        dir_fd = self._open_directory(parent)
        try:
            fd = os.open(last, tree.READ | os.O_NOFOLLOW, dir_fd=dir_fd)
            try:
                self._inodes.add_flags(fd, flags, path)
            finally:
                os.close(fd)
        finally:
            os.close(dir_fd)


@dataclass(slots=True)
class _Level:
    """A directory that is being filled."""

    member: tar.Member | None
    """None if the archive has not told of it, or was in it before: its times stay."""
    times_ns: tuple[int, int]

    @classmethod
    def of(cls, fd: int, member: tar.Member | None) -> Self:
        status = os.fstat(fd)
        return cls(member, (status.st_atime_ns, status.st_mtime_ns))


def _checked(name: bytes, path: bytes) -> str:
    """Return one step of a path. Raises Unusable if it is none."""
    if name in {b"", b".", b".."} or b"\0" in name:
        raise Unusable(f"cannot extract {shown(path)}: it leads out of the tree")
    return os.fsdecode(name)


def _write_all(fd: int, piece: memoryview, position: int) -> int:
    written = 0
    while written < len(piece):
        written += os.pwrite(fd, piece[written:], position + written)
    return written


def _strip_acls(fd: int) -> None:
    for name, _ in attributes.read_xattrs(fd):
        if name.startswith("system.posix_acl_"):
            os.removexattr(fd, name)
