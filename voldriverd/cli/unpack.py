"""A tar stream of the daemon made into one file or folder, safely: a container's root wrote what is in it.

Everything is made in a new directory that only we can enter, beside the target, and renamed once it is complete. A
name must be relative, without `..`, and its directory must have been made by this very archive, so that nothing is
ever written through a symbolic link. Python's own filters are not relied on: Debian 12 has none (3.11.2).
"""

import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Protocol

from voldriverd.errors import Exists, Unusable

_PIECE_BYTES: Final = 256 << 10
_MODE: Final = 0o1777
"""Set-user-id and its like served the programs of the container, and would serve anybody here: they go."""
_KINDS: Final = {tarfile.FIFOTYPE: "a fifo", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device"}
_TIME: Final = re.compile(r"(-?)([0-9]{1,10})(?:\.([0-9]+))?", re.ASCII)
_UNSOUND: Final = frozenset({"", ".", ".."})


class Source(Protocol):
    """Where the stream comes from."""

    def read(self, size: int, /) -> bytes:
        """Return at least one byte and at most so many, none at the end."""
        ...


def copy(source: Source, target: IO[bytes]) -> None:
    """Write the stream as it is."""
    while piece := source.read(_PIECE_BYTES):
        target.write(piece)
    target.flush()


def unpack(source: Source, target: str, *, name: str) -> Iterator[str]:
    """Copy the one file or folder of a stream to a target: into it, under `name`, if it is a directory.

    A file that is there is replaced, as cp does; a folder is not. Yields a line for each thing that is left out.
    Raises Exists, and Unusable: the stream is not what it should be, or the disk says no.
    """
    place = Path(target)
    final = place / name if place.is_dir() else place
    try:
        with tempfile.TemporaryDirectory(prefix=".voldriver-", dir=final.parent) as work:
            made = Path(work) / "content"
            yield from _Unpacking(made).read(source)
            _move(made, final)
    except tarfile.TarError as err:
        raise Unusable(f"cannot unpack: {err}") from err
    except OSError as err:
        raise Unusable(f"cannot write {final}: {err.strerror or err}") from err


class _Unpacking:
    """One run of unpack; the archive's first entry becomes `made`, all others must lie below it."""

    def __init__(self, made: Path) -> None:
        self._made = made
        self._top: str | None = None
        self._directories: dict[str, tarfile.TarInfo] = {}
        self._files: set[str] = set()

    def read(self, source: Source) -> Iterator[str]:
        """Make everything, the directories' own modes and times last; yield what is left out."""
        with tarfile.open(fileobj=io.BufferedReader(_Raw(source), _PIECE_BYTES), mode="r|", errorlevel=1) as archive:
            for member in archive:
                path = self._place(member)
                if not self._make(archive, member, path):
                    yield f"left out: {member.name} is {_KINDS.get(member.type, 'of an unknown kind')}"
        if not os.path.lexists(self._made):
            raise Unusable("cannot unpack: there is neither a file nor a folder nor a link in it")
        for name, member in reversed(self._directories.items()):
            _dress(self._path(name), member)

    def _place(self, member: tarfile.TarInfo) -> Path:
        """Return where an entry goes. Raises Unusable: it does not lie in a directory that this archive has made."""
        name = member.name
        parent, _, last = name.rpartition("/")
        is_first = self._top is None
        if is_first:
            self._top = name
        elif last in _UNSOUND or parent not in self._directories or name in self._directories or name in self._files:
            raise Unusable(f"cannot unpack: {name!r} is no sound name in it")
        return self._path(name)

    def _path(self, name: str) -> Path:
        assert self._top is not None, "the first entry has come"
        return self._made if name == self._top else self._made / name[len(self._top) + 1 :]

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bool:
        """Make one entry; tells whether it is of a kind that we make."""
        if member.isdir():
            path.mkdir(0o700)
            self._directories[member.name] = member
            return True
        if member.islnk():
            if member.linkname not in self._files:
                raise Unusable(f"cannot unpack: {member.name!r} is a link to nothing that came before it")
            os.link(self._path(member.linkname), path, follow_symlinks=False)
        elif member.issym():
            path.symlink_to(member.linkname)
            _set_times(path, member)
        elif member.isreg():
            _write(archive, member, path)
        else:
            return False
        self._files.add(member.name)
        return True


class _Raw(io.RawIOBase):
    """The stream as a file, for a buffer that gives tarfile as much as it asks for."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:  # Buffer has no name before Python 3.12
        """Fill the beginning of a buffer."""
        place = memoryview(buffer)
        piece = self._source.read(len(place))
        place[: len(piece)] = piece
        return len(piece)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    with path.open("xb") as file:
        shutil.copyfileobj(content, file, _PIECE_BYTES)
    _dress(path, member)


def _dress(path: Path, member: tarfile.TarInfo) -> None:
    """Set the owner (as root), the mode and the times."""
    if os.geteuid() == 0:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
    path.chmod(member.mode & _MODE)
    _set_times(path, member)


def _set_times(path: Path, member: tarfile.TarInfo) -> None:
    """Set the time of the last change, to the nanosecond; one that no clock shows becomes 1970."""
    found = _TIME.fullmatch(member.pax_headers.get("mtime", f"{member.mtime:.0f}"))
    sign, seconds, rest = found.groups(default="") if found else ("", "0", "")
    time_ns = int(seconds) * 10**9 + int(rest.ljust(9, "0")[:9])
    time_ns = -time_ns if sign else time_ns
    os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def _move(made: Path, final: Path) -> None:
    """Rename what is complete to its place. Raises Exists: a folder is in the way, or a folder would replace it."""
    is_folder = made.is_dir() and not made.is_symlink()
    if os.path.lexists(final) and (is_folder or (final.is_dir() and not final.is_symlink())):
        raise Exists(f"cannot write {final}: it exists")
    made.rename(final)
