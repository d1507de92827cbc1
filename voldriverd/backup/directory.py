"""Objects as files in a directory. obstore's own (LocalStore) never calls fsync, so it is not used for this.

A file is written under a name of its own beside its place, made durable, and renamed. What a crash left of that is
listed as `.<name>.<16 hex digits>.part`. Links are followed nowhere below the directory.
"""

import errno
import functools
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from voldriverd.backup import objects
from voldriverd.backup.faults import Kind
from voldriverd.backup.objects import Entry, Place
from voldriverd.backup.retries import Retries, Transient
from voldriverd.kernel import fs

_NOT_OURS: Final = {"lost+found"}
"""The root of an ext4 has it; it does not make a place one that is in use."""

_T = TypeVar("_T")

_KINDS: Final = {
    errno.ENOENT: Kind.MISSING,
    errno.ENOSPC: Kind.FULL,
    errno.EDQUOT: Kind.FULL,
    errno.EACCES: Kind.PERMISSION,
    errno.EPERM: Kind.PERMISSION,
    errno.EROFS: Kind.PERMISSION,
    errno.EIO: Kind.FAILING,
}
_BROKEN: Final = {errno.EIO, errno.ELOOP, errno.EISDIR, errno.ENXIO}
"""Of one object: a bad sector or checksum, a link, a directory, a socket."""
_PASSING: Final = {
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ENOTCONN,
}
"""What a network file system says when it does not reach its server."""


class DirectoryStore:
    """A Store in a directory, which exists."""

    def __init__(self, place: Place, where: objects.Directory, retries: Retries) -> None:
        """Touch nothing yet."""
        self._place = place
        self._root = Path(where.path)
        self._retries = retries

    def get(self, name: str, *, most: int) -> bytes:
        """Return an object, which is a file and nothing else."""

        def once() -> bytes:
            fd = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb", buffering=0) as file:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise objects.Unreadable(name, self._place, "it is no file")
                if found.st_size > most:
                    raise objects.oversized(name, self._place, found.st_size, most)
                return file.read(most)

        return self._call("read", name, once)

    def put(self, name: str, content: bytes) -> None:
        """Write an object: its data is durable, its name after `settle`."""
        self._call("write", name, lambda: self._write(name, content, os.replace))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one; the file system must know hard links."""

        def link(part: Path, path: Path) -> None:
            os.link(part, path)
            part.unlink()

        def once() -> bool:
            try:
                self._write(name, content, link)
            except FileExistsError:
                return False
            fs.sync_directory((self._root / name).parent)
            return True

        return self._call("write", name, once)

    def list(self, folder: str) -> Iterator[Entry]:
        """Yield what is in a folder; what vanishes meanwhile is left out."""
        start = self._root / folder
        if not folder:
            self._call("list", folder, lambda: os.listdir(start))  # a root that is not there is no empty one
        return self._walk(start)

    def folders(self, folder: str) -> Iterator[str]:
        """Yield the names of folders."""
        found = self._call("list", folder, lambda: _scan(self._root / folder))
        return (entry.name for entry in found if entry.is_dir(follow_symlinks=False))

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects."""
        for name in names:
            self._retries.check()
            self._call("delete", name, functools.partial((self._root / name).unlink, missing_ok=True))

    def settle(self) -> None:
        """Write out the names; the data was written before it got them."""
        self._call("write", "", lambda: fs.sync_file_system(self._root))

    def close(self) -> None:
        """Nothing is held."""

    def _write(self, name: str, content: bytes, move: Callable[[Path, Path], object]) -> None:
        path = self._root / name
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        try:
            try:
                fs.write_data(part, content)
            except FileNotFoundError:
                self._root.stat()  # nobody makes the root: it may be a disk that is not mounted
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fs.write_data(part, content)
            move(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _walk(self, directory: Path) -> Iterator[Entry]:
        folder = str(directory.relative_to(self._root))
        for entry in self._call("list", folder, lambda: _scan(directory)):
            if entry.name in _NOT_OURS:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(directory / entry.name)
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            name = str((directory / entry.name).relative_to(self._root))
            yield Entry(name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def _call(self, verb: str, name: str, once: Callable[[], _T]) -> _T:
        """Do one thing, again while that may help."""

        def attempt() -> _T:
            try:
                return once()
            except OSError as err:
                cause = (os.strerror(err.errno) if err.errno else str(err)).lower()
                if err.errno in _PASSING:
                    where = f"{name} in {self._place.url}" if name else self._place.url
                    raise Transient(f"cannot {verb} {where}: {cause}", kind=Kind.UNREACHABLE) from err
                if verb == "read" and err.errno in _BROKEN:
                    raise objects.Unreadable(name, self._place, cause) from err
                kind = _KINDS.get(err.errno or 0, Kind.FAILING)
                if kind is Kind.MISSING and not self._root.is_dir():
                    kind, cause = Kind.BUCKET, "there is no such directory"
                raise objects.fault(verb, name, self._place, cause, kind) from err

        return self._retries.call(attempt)


def _scan(directory: Path) -> list[os.DirEntry[str]]:
    """Return what is in a directory; one that is not there has nothing."""
    try:
        with os.scandir(directory) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
