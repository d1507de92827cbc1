"""Trees as tar archives: what GNU tar reads by hand, with everything of a tree that tar can say.

Types, modes, numeric owners, mtimes in ns, extended attributes of all namespaces with ACLs and capabilities, hard
links, holes, fifos, devices, inode flags, and the root directory itself as `./`. Not held: sockets, atimes, birth
times, project ids, verity, encryption; a space that is reserved becomes a hole; nested subvolumes become directories.
The same tree gives the same bytes again. In each directory what is no directory comes first, both sorted by name.

Written here and not by GNU tar, which (1.34) puts its process id into the names of sparse files, makes two of a fifo
or device that has two names, and gives up at paths of 4,096 bytes (nobody extracts those by hand). Extracted here
because what a file system cannot hold is to be told by errno and not by text.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drivers import unpacking
from voldriverd.driver import PART_MAX, Part, Stream, StreamFormat
from voldriverd.kernel import attributes, content, sparse, tar, tree, watch

_PIECE_BYTES: Final = 1 << 20
"""How much is read and handed on at once; a part may be longer by the headers before it."""
_AHEAD_FILES: Final = 16
"""For how many files the disk is asked before their turn: of small ones it serves several in the time of one."""
_AHEAD_BYTES: Final = 256 << 10
"""Of each; the rest the kernel reads ahead itself."""
_HEADERS_BYTES: Final = 3 * tar.BLOCK_BYTES
"""Of most members: an extended header, its records, the header itself."""
_KINDS: Final = {
    stat.S_IFREG: tar.Kind.FILE,
    stat.S_IFDIR: tar.Kind.DIRECTORY,
    stat.S_IFLNK: tar.Kind.SYMLINK,
    stat.S_IFIFO: tar.Kind.FIFO,
    stat.S_IFCHR: tar.Kind.CHARACTER,
    stat.S_IFBLK: tar.Kind.BLOCK,
}


@contextmanager
def stream(place: Path, *, notes: tuple[str, ...] = ()) -> Iterator[Stream]:
    """Yield a directory as a stream of its own, whose notes tell also what tar cannot hold.

    Walks the tree once before, for the notes and the size, and tells `watch` how much it has found. Raises OSError, as
    the parts do.
    """
    expected_bytes, sockets = _survey(place)
    if sockets:
        more = f" and {len(sockets) - 1} more" if len(sockets) > 1 else ""
        notes = (*notes, f"tar cannot hold sockets: {sockets[0]}{more}")
    with write(place) as parts:
        yield Stream(
            format=StreamFormat.TAR,
            version=1,
            is_incremental=False,
            image_bytes=None,
            expected_bytes=expected_bytes,
            parts=parts,
            notes=notes,
        )


@contextmanager
def write(place: Path) -> Iterator[Iterator[Part]]:
    """Yield the parts of a directory as a tar archive; nothing is open after the block.

    Memory is bounded but for the names in one directory and an entry for each file with names still to come. `watch` is
    told of each file, for a part may hold hundreds. The parts raise OSError with the path inside the tree: EBUSY
    (something is mounted there), ESTALE (a file shrinks meanwhile), E2BIG (more names and attributes than HEADERS_MAX).
    """
    with tree.Cursor(place) as cursor:
        parts = _parts(_Writer(cursor).members())
        try:
            yield parts
        finally:
            parts.close()


def extract(parts: Iterator[Part], into: Path) -> tuple[str, ...]:
    """Make an archived tree in an empty directory and return what this file system could not keep, for people.

    Nothing is made outside of it, whatever the archive says. ACLs that `into` would hand down are taken from it; the
    flags that it hands down are kept. Nothing is made durable. Zeros where a header should be count as a lost part,
    which is told. Raises Unusable (no archive of ours, or not all of it), OSError with the path in the archive, and
    what the parts raise.
    """
    with tree.Cursor(into) as cursor:
        root_fd = os.dup(cursor.fd)
        try:
            return unpacking.Unpacker(parts, cursor, root_fd).run()
        finally:
            os.close(root_fd)


@dataclass(slots=True)
class _Link:
    """The first name of a file with several, and how many are still to come."""

    path: bytes
    names_left: int


class _Writer:
    """One run of write."""

    def __init__(self, cursor: tree.Cursor) -> None:
        self._cursor = cursor
        self._path = bytearray(b".")
        self._links: dict[tuple[int, int], _Link] = {}

    def members(self) -> Generator[bytes, None, None]:
        """Yield headers and contents, a block or more at a time, and the end."""
        levels = [list[str]()]
        yield from self._directory(levels[-1])
        while levels:
            if levels[-1]:
                name = levels[-1].pop()
                self._cursor.down(name)
                self._path += b"/" + os.fsencode(name)
                levels.append([])
                yield from self._directory(levels[-1])
            else:
                levels.pop()
                if levels:
                    del self._path[-1 - len(os.fsencode(self._cursor.up())) :]
        yield bytes(2 * tar.BLOCK_BYTES)

    def _directory(self, directories: list[str]) -> Iterator[bytes]:
        """Yield a directory and what is in it but directories, whose names are noted, the last one first."""
        fd = self._cursor.fd
        try:
            yield tar.header(_member(b"%s/" % self._path, os.fstat(fd), fd, flags=attributes.read_flags(fd)))
        except OSError as err:
            raise self._cursor.error(err) from err
        names: list[str] = []
        with os.scandir(self._cursor.fd) as entries:
            for entry in entries:
                watch.advance()
                (directories if entry.is_dir(follow_symlinks=False) else names).append(entry.name)
        directories.sort(reverse=True)
        names.sort()
        with closing(self._opened(names)) as opened:
            for name, fd, status in opened:
                try:
                    yield from self._file(fd, status, b"%s/%s" % (self._path, os.fsencode(name)))
                except OSError as err:
                    raise self._cursor.error(err, name) from err

    def _opened(self, names: list[str]) -> Generator[tuple[str, int, os.stat_result], None, None]:
        """Yield files, each open until the next: to be read if it is a regular one, else to be looked at.

        Those that follow are open already, and the disk reads their beginnings.
        """
        ahead: deque[tuple[str, int, os.stat_result]] = deque()
        try:
            for name in names:
                ahead.append((name, *self._open(name)))
                if len(ahead) == _AHEAD_FILES:
                    yield ahead[0]
                    os.close(ahead.popleft()[1])
            while ahead:
                yield ahead[0]
                os.close(ahead.popleft()[1])
        finally:
            for _, fd, _ in ahead:
                os.close(fd)

    def _open(self, name: str) -> tuple[int, os.stat_result]:
        looked = self._cursor.look(name)
        try:
            status = os.fstat(looked)
            if not stat.S_ISREG(status.st_mode):
                return os.dup(looked), status
            fd = tree.reopen(looked, tree.READ)
        except OSError as err:
            raise self._cursor.error(err, name) from err
        finally:
            os.close(looked)
        os.posix_fadvise(fd, 0, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        return fd, status

    def _file(self, fd: int, status: os.stat_result, path: bytes) -> Iterator[bytes]:
        if stat.S_ISSOCK(status.st_mode):
            return
        if status.st_nlink > 1 and (first := self._first_name(status, path)) is not None:
            yield tar.header(_member(path, status, None, link=first))
        elif stat.S_ISREG(status.st_mode):
            yield from _regular_file(fd, path, status)
        else:
            link = os.fsencode(os.readlink("", dir_fd=fd)) if stat.S_ISLNK(status.st_mode) else b""
            yield tar.header(_member(path, status, attributes.place(fd), link=link))

    def _first_name(self, status: os.stat_result, path: bytes) -> bytes | None:
        """Return the name under which a file is in the archive, None if it is not yet."""
        key = status.st_dev, status.st_ino
        link = self._links.setdefault(key, _Link(path, status.st_nlink))
        link.names_left -= 1
        if link.names_left <= 0:
            del self._links[key]
        return None if link.path == path else link.path


def _member(
    path: bytes,
    status: os.stat_result,
    where: int | str | None,
    *,
    link: bytes = b"",
    flags: int = 0,
    size_bytes: int = 0,
    sparse_bytes: int | None = None,
) -> tar.Member:
    """Describe an inode; where it is None, another name of one that is in the archive already."""
    xattrs = [] if where is None else attributes.read_xattrs(where)
    return tar.Member(
        path=path,
        kind=tar.Kind.LINK if where is None else _KINDS[stat.S_IFMT(status.st_mode)],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size_bytes=size_bytes,
        link=link,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        xattrs=tuple(sorted((os.fsencode(name), value) for name, value in xattrs)),
        flags=flags,
        sparse_bytes=sparse_bytes,
    )


def _regular_file(fd: int, path: bytes, status: os.stat_result) -> Iterator[bytes]:
    """Yield the headers of a file and what it holds."""
    size_bytes = status.st_size
    segments = _segments(fd, size_bytes)
    is_sparse = segments != [(0, size_bytes)] and size_bytes > 0
    before = sparse.write(segments, size_bytes) if is_sparse else b""
    archived_bytes = len(before) + sum(length for _, length in segments)
    flags, sparse_bytes = attributes.read_flags(fd), size_bytes if is_sparse else None
    member = _member(path, status, fd, flags=flags, size_bytes=archived_bytes, sparse_bytes=sparse_bytes)
    yield tar.header(member) + before
    for offset, length in segments:
        position, end = offset, offset + length
        while position < end:
            piece = os.pread(fd, min(end - position, _PIECE_BYTES), position)
            if not piece:
                raise OSError(errno.ESTALE, "it shrank while it was read")
            position += len(piece)
            yield piece
    yield bytes(tar.padding(archived_bytes))


def _segments(fd: int, size_bytes: int) -> sparse.Segments:
    """Return what is no hole; of very many the last one takes all that follow."""
    found: sparse.Segments = []
    for start, end in content.segments(fd, size_bytes):
        if len(found) == sparse.SEGMENTS_MAX - 1:
            found.append((start, size_bytes - start))
            break
        found.append((start, end - start))
    return found


def _parts(blocks: Generator[bytes, None, None]) -> Generator[Part, None, None]:
    """Join blocks to parts that are worth handing on."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    with closing(blocks):
        for block in blocks:
            watch.advance()
            waiting.append(block)
            waiting_bytes += len(block)
            if waiting_bytes >= _PIECE_BYTES:
                yield from _cut(b"".join(waiting))
                waiting.clear()
                waiting_bytes = 0
        yield from _cut(b"".join(waiting))


def _cut(data: bytes) -> Iterator[Part]:
    """Yield parts of the size that they may have: the headers of one member can be longer."""
    for start in range(0, len(data), PART_MAX):
        piece = data[start : start + PART_MAX]
        yield Part(piece, len(piece))


def _survey(place: Path) -> tuple[int, list[str]]:
    """Return how many bytes an archive will have, roughly, and the sockets' paths."""
    watch.prepare("looks how much there is")
    size_bytes = 0
    sockets = []
    pending = [[""]]
    with tree.Cursor(place) as cursor:
        while pending:
            if not pending[-1]:
                pending.pop()
                if cursor.depth:
                    cursor.up()
                continue
            if name := pending[-1].pop():
                cursor.down(name)
                pending.append([])
            with os.scandir(cursor.fd) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    more_bytes = _HEADERS_BYTES
                    if stat.S_ISREG(status.st_mode):
                        more_bytes += min(status.st_size, status.st_blocks * 512)
                    elif stat.S_ISDIR(status.st_mode):
                        pending[-1].append(entry.name)
                    elif stat.S_ISSOCK(status.st_mode):
                        sockets.append(cursor.path(entry.name))
                    size_bytes += more_bytes
                    watch.advance(more_bytes)
    return size_bytes, sockets
