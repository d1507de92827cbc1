"""One file or folder out of a tree, as a tar stream in pax format (POSIX.1-2001).

Times are in ns, owners numeric, extended attributes in `SCHILY.xattr.*` as GNU tar, bsdtar and
docker have them (ACLs and capabilities among them, as they are stored). Hard links among what is
archived stay links, holes become zeros, sockets are left out.
"""

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from voldriverd.errors import Invalid, NotFound
from voldriverd.kernel import attributes, tree

_PATH_MAX: Final = 4_096
"""linux/limits.h; nobody could extract a longer one."""
_PIECE_BYTES: Final = 256 << 10
"""What a stream is cut into: worth a trip through a thread and a socket, and no burden in memory."""
_USTAR_SIZE_MAX: Final = 0o77777777777
_USTAR_ID_MAX: Final = 0o7777777
_USTAR_NAME_MAX: Final = 99
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def archive(root: Path, path: str) -> Iterator[bytes]:
    """Return the tar stream of a path beneath a tree's root; its entries begin with the path's last name, `.` if none.

    Symlinks on the way are followed as long as they stay beneath the root; one at the end is
    archived as such. Memory is bounded but for one entry for each file with several names. To
    stop early, close the iterator.

    Raises Invalid (it leads out) and NotFound at the call, OSError (it changes, something is mounted
    inside, a path is too long) while it is read.
    """
    names = [name for name in path.split("/") if name not in {"", "."}]
    inside = "/".join(names) or "."
    if ".." in names or "\0" in path:
        raise Invalid(f"cannot read path {path!r}: it must not contain .. or a zero byte", field="path")
    os.close(_find(root, inside))
    return _pieces(_entries(root, inside, names[-1] if names else "."))


def _find(root: Path, inside: str) -> int:
    """Look at a path beneath the root and nowhere else. Raises Invalid, NotFound."""
    root_fd = os.open(root, tree.READ | os.O_DIRECTORY)
    try:
        return tree.open_at(root_fd, inside, tree.LOOK, resolve=tree.RESOLVE_NO_XDEV | tree.RESOLVE_NO_MAGICLINKS)
    except OSError as err:
        if err.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise NotFound(f"cannot read path {inside}: there is no such file or directory") from err
        if err.errno in {errno.EXDEV, errno.ELOOP, errno.ENAMETOOLONG}:
            raise Invalid(f"cannot read path {inside}: it leads out of the tree or nowhere", field="path") from err
        raise
    finally:
        os.close(root_fd)


def _pieces(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Join blocks to pieces that are worth handing on."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for block in blocks:
        waiting.append(block)
        waiting_bytes += len(block)
        if waiting_bytes >= _PIECE_BYTES:
            yield b"".join(waiting)
            waiting.clear()
            waiting_bytes = 0
    yield b"".join([*waiting, bytes(2 * tarfile.BLOCKSIZE)])


def _entries(root: Path, inside: str, member: str) -> Iterator[bytes]:
    looked = _find(root, inside)
    try:
        archiver = _Archiver()
        if not stat.S_ISDIR(os.fstat(looked).st_mode):
            yield from archiver.entry(looked, member)
            return
        with tree.Cursor(Path(attributes.place(looked))) as cursor:
            yield from archiver.directory(cursor, member)
    finally:
        os.close(looked)


class _Archiver:
    """One run of archive: remembers where the files with several names are."""

    def __init__(self) -> None:
        self._first_names: dict[tuple[int, int], str] = {}

    def directory(self, cursor: tree.Cursor, member: str) -> Iterator[bytes]:
        """Yield a directory and all below it: of each directory first what is none itself."""
        pending = [[""]]
        paths = [member]
        while pending:
            if not pending[-1]:
                pending.pop()
                paths.pop()
                if cursor.depth:
                    cursor.up()
                continue
            name = pending[-1].pop()
            if name:
                cursor.down(name)
                paths.append(f"{paths[-1]}/{name}")
                pending.append([])
            yield from self.entry(cursor.fd, paths[-1])
            yield from self._files(cursor, paths[-1], pending[-1])

    def _files(self, cursor: tree.Cursor, path: str, directories: list[str]) -> Iterator[bytes]:
        """Yield what is no directory, and note the names of what is."""
        with os.scandir(cursor.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                    continue
                looked = cursor.look(entry.name)
                try:
                    yield from self.entry(looked, f"{path}/{entry.name}")
                finally:
                    os.close(looked)

    def entry(self, looked: int, member: str) -> Iterator[bytes]:
        """Yield the header of what a descriptor shows, and the content of a file. Raises OSError with the name."""
        try:
            yield from self._entry(looked, member)
        except OSError as err:
            raise OSError(err.errno, err.strerror, member[:_PATH_MAX]) from err

    def _entry(self, looked: int, member: str) -> Iterator[bytes]:
        if len(os.fsencode(member)) >= _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        status = os.fstat(looked)
        kind = _TYPES.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return  # a socket: there is no such type in tar
        if kind != tarfile.DIRTYPE and status.st_nlink > 1:
            first = self._first_names.setdefault((status.st_dev, status.st_ino), member)
            if first != member:
                yield _header(tarfile.LNKTYPE, member, status, link=first)
                return
        link = os.readlink("", dir_fd=looked) if kind == tarfile.SYMTYPE else ""
        xattrs = attributes.read_xattrs(attributes.place(looked))
        yield _header(kind, member, status, link=link, xattrs=xattrs)
        if kind == tarfile.REGTYPE:
            yield from _content(looked, status.st_size)


def _content(looked: int, size_bytes: int) -> Iterator[bytes]:
    fd = tree.reopen(looked, tree.READ)
    try:
        left = size_bytes
        while left:
            block = os.read(fd, min(left, _PIECE_BYTES))
            if not block:
                raise OSError(errno.ESTALE, "it shrank while it was read")
            left -= len(block)
            yield block
        yield bytes(-size_bytes % tarfile.BLOCKSIZE)
    finally:
        os.close(fd)


def _header(
    kind: bytes, member: str, status: os.stat_result, *, link: str = "", xattrs: attributes.Xattrs | None = None
) -> bytes:
    """Return the pax records of an entry and its header proper, which holds what has room in it."""
    path = f"{member}/" if kind == tarfile.DIRTYPE else member
    size_bytes = status.st_size if kind == tarfile.REGTYPE else 0
    records = [("path", os.fsencode(path)), ("mtime", _seconds(status.st_mtime_ns))]
    records.append(("atime", _seconds(status.st_atime_ns)))
    if link:
        records.append(("linkpath", os.fsencode(link)))
    for field, number, largest in (
        ("size", size_bytes, _USTAR_SIZE_MAX),
        ("uid", status.st_uid, _USTAR_ID_MAX),
        ("gid", status.st_gid, _USTAR_ID_MAX),
    ):
        if number > largest:
            records.append((field, b"%d" % number))
    # As GNU tar writes them: a name with "=" would end too early.
    records += [(f"SCHILY.xattr.{_escaped(name)}", value) for name, value in xattrs or ()]

    info = tarfile.TarInfo(_short(path))
    info.type, info.linkname = kind, _short(link)
    info.mode = stat.S_IMODE(status.st_mode)
    info.size = size_bytes if size_bytes <= _USTAR_SIZE_MAX else 0
    info.uid = status.st_uid if status.st_uid <= _USTAR_ID_MAX else 0
    info.gid = status.st_gid if status.st_gid <= _USTAR_ID_MAX else 0
    info.mtime = min(max(status.st_mtime_ns // 10**9, 0), _USTAR_SIZE_MAX)
    info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return _extended(records) + info.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace")


def _extended(records: list[tuple[str, bytes]]) -> bytes:
    content = b"".join(_record(os.fsencode(keyword), value) for keyword, value in records)
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "replace") + content + padding


def _record(keyword: bytes, value: bytes) -> bytes:
    """Return `length keyword=value newline`, where the length counts its own digits (pax(1))."""
    rest = b" %s=%s\n" % (keyword, value)
    length = len(rest) + 1
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return b"%d%s" % (length, rest)


def _short(text: str) -> str:
    """Return what fits into a header of 1988; the records say it in full."""
    return text.encode("ascii", "replace").decode()[-_USTAR_NAME_MAX:]


def _escaped(name: str) -> str:
    return name.replace("%", "%25").replace("=", "%3D")


def _seconds(time_ns: int) -> bytes:
    sign = "-" if time_ns < 0 else ""
    seconds, rest = divmod(abs(time_ns), 10**9)
    return f"{sign}{seconds}.{rest:09}".encode()
