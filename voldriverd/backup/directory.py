"""Objects as files in a directory. obstore's own (LocalStore) never calls fsync, so it is not used for this.

A file is written under a name of its own beside its place, made durable, and renamed. What a crash left of that is
listed as `.<name>.<16 hex digits>.part`. Links are followed nowhere below the directory.

From its first use on a store holds the directory open and goes by that, never by its path again: a disk that is
unmounted in the middle (lazily, for else it is busy) gets the rest too, and not the directory that was under it.
"""

import errno
import functools
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from voldriverd.backup import objects
from voldriverd.backup.faults import Kind
from voldriverd.backup.objects import Entry, Place
from voldriverd.backup.retries import Retries, Transient
from voldriverd.kernel import fs, tree

_NOT_OURS: Final = {"lost+found"}
"""The root of an ext4 has it; it does not make a place one that is in use."""

_T = TypeVar("_T")
_Found = list[tuple[str, os.stat_result]]
"""What is in a directory."""

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

    deletes_at_once = 1

    def __init__(self, place: Place, where: objects.Directory, retries: Retries) -> None:
        """Touch nothing yet."""
        self._place = place
        self._root = Path(where.path)
        self._retries = retries
        self._root_fd: int | None = None
        """None: it was not there yet."""
        self._lock = threading.Lock()
        self._unsettled: set[str] = set()
        """The folders in which names came, went or were listed."""

    def get(self, name: str, *, most: int) -> bytes:
        """Return an object, which is a file and nothing else."""

        def once() -> bytes:
            with self._folder(name) as folder:
                path = folder / Path(name).name
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
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
            return True

        return self._call("write", name, once)

    def list(self, folder: str) -> Iterator[Entry]:
        """Yield what is in a folder; what vanishes meanwhile is left out."""
        if not folder:
            self._call("list", folder, lambda: os.listdir(self._held()))  # a root that is not there is no empty one
        return self._walk(folder.rstrip("/"))

    def folders(self, folder: str) -> Iterator[str]:
        """Yield the names of folders."""
        found = self._call("list", folder, lambda: self._scan(folder.rstrip("/")))
        return (name for name, status in found if stat.S_ISDIR(status.st_mode))

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects."""
        for name in names:
            self._retries.check()
            self._call("delete", name, functools.partial(self._delete, name))

    def settle(self) -> None:
        """Write out the names, and of the file system nothing else; the data was written before it got them."""
        with self._lock:
            folders = sorted(self._unsettled)
        for folder in folders:
            self._call("write", folder, functools.partial(self._settle, folder))
        with self._lock:
            self._unsettled.difference_update(folders)

    def again(self, limits: objects.Limits, retries: Retries) -> "DirectoryStore":  # noqa: ARG002 - for buckets
        """Hold the same directory, wherever its path leads by now."""
        other = DirectoryStore(self._place, objects.Directory(str(self._root)), retries)
        with self._lock:
            other._root_fd = None if self._root_fd is None else os.dup(self._root_fd)
        return other

    def close(self) -> None:
        """Let go of the directory."""
        with self._lock:
            if self._root_fd is not None:
                os.close(self._root_fd)
            self._root_fd = None

    def _held(self) -> Path:
        """Return a path to the directory that is held; whatever is mounted or moved, it leads there. Raises OSError."""
        with self._lock:
            if self._root_fd is None:
                self._root_fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return Path(f"/proc/self/fd/{self._root_fd}")

    def _settle(self, folder: str) -> None:
        try:
            with self._folder(f"{folder}/x") as place:
                fs.sync_directory(place)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            fs.sync_file_system(self._held())  # what has no fsync of a directory, as CIFS

    def _note(self, folder: str) -> None:
        with self._lock:
            self._unsettled.add(folder)

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError), self._folder(name) as folder:
            (folder / Path(name).name).unlink()
            self._note(str(Path(name).parent))

    def _write(self, name: str, content: bytes, move: Callable[[Path, Path], object]) -> None:
        try:
            self._write_beside(name, content, move)
        except FileNotFoundError:
            self._make_folders(name)  # but not the root: it may be a disk that is not mounted
            self._write_beside(name, content, move)

    def _write_beside(self, name: str, content: bytes, move: Callable[[Path, Path], object]) -> None:
        with self._folder(name) as folder:
            path = folder / Path(name).name
            part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
            try:
                fs.write_data(part, content)
                move(part, path)
                self._note(str(Path(name).parent))
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _make_folders(self, name: str) -> None:
        for folder in reversed(Path(name).parents[:-1]):
            with self._folder(str(folder)) as above, suppress(FileExistsError):
                (above / folder.name).mkdir(0o700)
                self._note(str(folder.parent))

    @contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """Give the directory that an object is in, for the block; whoever has the target may put links in the way.

        Raises OSError (ELOOP: a link; EXDEV: something is mounted there).
        """
        root = os.open(self._held(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            inside = str(Path(name).parent)
            fd = tree.open_at(root, inside, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(root)
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _walk(self, folder: str) -> Iterator[Entry]:
        for base, found in self._call("list", folder, lambda: self._scan(folder)):
            if base in _NOT_OURS:
                continue
            name = f"{folder}/{base}" if folder else base
            if stat.S_ISDIR(found.st_mode):
                yield from self._walk(name)
                continue
            yield Entry(name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def _scan(self, folder: str) -> _Found:
        """Return what is in a directory; one that is not there has nothing, and neither has a link."""
        try:
            with self._folder(f"{folder}/x" if folder else "x") as place, os.scandir(place) as found:
                self._note(folder or ".")
                self._note(str(Path(folder).parent))  # which has its own name
                return sorted(_looked_at(found), key=lambda each: each[0])
        except (FileNotFoundError, NotADirectoryError):
            return []

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


def _looked_at(entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield names with what they are; what vanishes meanwhile is left out."""
    for entry in entries:
        with suppress(FileNotFoundError):
            yield entry.name, entry.stat(follow_symlinks=False)
