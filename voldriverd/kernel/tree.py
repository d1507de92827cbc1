"""Trees of files that a container's root has written: a place in one, and the removal of a whole one.

Nothing in such a tree is trusted. Every step goes from a directory's descriptor to one name beneath
it, by openat2(2) (kernel 5.6): no symlink is followed, no mount is entered (a nested btrfs subvolume
is no mount), and neither fifos nor devices are ever opened, only looked at through O_PATH. Trees may
be nested deeper than PATH_MAX allows; the descriptors in use are bounded all the same.

Names are `str` with surrogate escapes, which is what os.scandir gives for a descriptor and what
carries any bytes there and back.
"""

import ctypes
import errno
import math
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from voldriverd.kernel import btrfs, fs

SYS_OPENAT2: Final = 437
"""asm-generic/unistd.h; the same on every architecture."""
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
"""linux/openat2.h"""

LOOK: Final = os.O_PATH | os.O_NOFOLLOW
READ: Final = os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC

_ENTER: Final = READ | os.O_DIRECTORY | os.O_NOFOLLOW
_PATH_SHOWN: Final = 4_096
"""PATH_MAX; a path of 100,000 directories helps nobody in an error text."""
_FDS_KEPT: Final = 16
"""Few trees are deeper, and six copies at once stay far below the usual limit of 1,024 descriptors."""
_ATTEMPTS: Final = 100
"""How often directories may turn out not to be empty in one removal; each time something was made in one."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how (linux/openat2.h)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_at(dir_fd: int, name: str, flags: int, *, resolve: int = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS) -> int:
    """Open a name beneath a directory and never anything outside of it (openat2(2), RESOLVE_BENEATH).

    Raises OSError: EXDEV if a mount (or, without RESOLVE_NO_SYMLINKS, a link) leads out; ELOOP for a symlink.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve | RESOLVE_BENEATH)
    fd = _libc.syscall(SYS_OPENAT2, dir_fd, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return int(fd)


def legible(path: str) -> str:
    r"""Return a path for people, databases and logs: what is no UTF-8 in it is written as `\udcff`."""
    return path.encode(errors="backslashreplace").decode()


def reopen(fd: int, flags: int) -> int:
    """Open exactly the file of an O_PATH descriptor, whatever its name leads to by now. Raises OSError."""
    return os.open(f"/proc/self/fd/{fd}", flags)


class Cursor:
    """A directory in a tree, moved one name at a time; keeps at most `_FDS_KEPT` descriptors at any depth."""

    def __init__(self, root: Path) -> None:
        """Stand at a directory; the path itself is trusted."""
        fd = os.open(root, READ | os.O_DIRECTORY)
        self._fds = deque([fd])
        self._steps = [_step("", os.fstat(fd))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    @property
    def fd(self) -> int:
        """The descriptor of the directory in which it stands; valid until the next move."""
        return self._fds[-1]

    @property
    def depth(self) -> int:
        """How many steps below the root it stands."""
        return len(self._steps) - 1

    def look(self, name: str) -> int:
        """Open a name of any type by O_PATH only, which touches nothing; to be closed. Raises OSError, as `down`."""
        return self._open(name, LOOK)

    def down(self, name: str) -> os.stat_result:
        """Enter a directory and return its status from before anything was read of it.

        Raises OSError with the path from the root; EBUSY: a mount lies there.
        """
        fd = self._open(name, _ENTER)
        self._fds.append(fd)
        status = os.fstat(fd)
        self._steps.append(_step(name, status))
        if len(self._fds) > _FDS_KEPT:
            os.close(self._fds.popleft())
        return status

    def up(self) -> str:
        """Go back to the parent directory and return the name of the one left.

        Raises OSError: ESTALE if the directory lies elsewhere by now; only close it then.
        """
        name = self._steps[-1][0]
        if len(self._fds) == 1:
            self._fds.appendleft(os.open("..", _ENTER, dir_fd=self.fd))
            if _step("", os.fstat(self._fds[0]))[1:] != self._steps[-2][1:]:
                raise OSError(errno.ESTALE, "it was moved meanwhile", self.path())
        self._steps.pop()
        os.close(self._fds.pop())
        return name

    def path(self, name: str = "") -> str:
        """Return the path from the root to a name in this directory, for people: cut if it is very long."""
        names = [step[0] for step in self._steps[1 : _PATH_SHOWN // 2]]
        return legible("/".join([*names, name] if name else names)[:_PATH_SHOWN]) or "."

    def error(self, err: OSError, name: str = "") -> OSError:
        """Return the error with the path from the root in it."""
        return OSError(err.errno, err.strerror, self.path(name))

    def _open(self, name: str, flags: int) -> int:
        try:
            return open_at(self.fd, name, flags)
        except OSError as err:
            if err.errno == errno.EXDEV:
                raise OSError(errno.EBUSY, "something is mounted there", self.path(name)) from err
            raise self.error(err, name) from err


def _step(name: str, status: os.stat_result) -> tuple[str, int, int]:
    return name, status.st_dev, status.st_ino


def vanish(path: Path, *, timeout_s: float = math.inf) -> None:
    """Remove a directory with whatever is in it; repeatable, so that a killed removal can be ended.

    Immutable and append-only flags are cleared, nested subvolumes removed, read-only ones too.
    Nothing is made durable. Raises OSError; EBUSY if something is mounted inside, which stays whole;
    TimeoutError if it would have taken longer, with the rest still there.
    """
    deadline_s = time.monotonic() + timeout_s
    with Cursor(path.parent) as cursor:
        levels = [[path.name]]  # the directories that are still there, one list for each level
        attempts = _ATTEMPTS
        while levels[-1] or cursor.depth:
            if not levels[-1]:
                levels.pop()
                name = cursor.up()
                if _removed(cursor, name, os.rmdir):
                    levels[-1].pop()
                    continue
                attempts -= 1
                if not attempts:
                    raise OSError(errno.ENOTEMPTY, "files are being made in it", cursor.path(name))
            elif _enter(cursor, levels[-1][-1]):
                levels.append(_empty(cursor, deadline_s))
            else:
                levels[-1].pop()


def _enter(cursor: Cursor, name: str) -> bool:
    """Go down and make the directory writable; False if it has gone."""
    try:
        status = cursor.down(name)
    except FileNotFoundError:
        return False
    if status.st_ino == btrfs.BTRFS_FIRST_FREE_OBJECTID:
        _make_writable(cursor.fd)
    return True


def _make_writable(fd: int) -> None:
    """Clear the read-only flag of a subvolume; anything else is left alone."""
    try:
        if btrfs.is_read_only(fd):
            btrfs.set_read_only(fd, read_only=False)
    except OSError as err:
        if err.errno != errno.ENOTTY:  # an ordinary directory of another file system
            raise


def _empty(cursor: Cursor, deadline_s: float) -> list[str]:
    """Remove all but the directories, and return their names. Raises TimeoutError."""
    directories = []
    _check_time(cursor, deadline_s)
    with os.scandir(cursor.fd) as entries:
        for entry in entries:
            _check_time(cursor, deadline_s)
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                _removed(cursor, entry.name, os.unlink)
    return directories


def _check_time(cursor: Cursor, deadline_s: float) -> None:
    if time.monotonic() > deadline_s:
        raise TimeoutError(errno.ETIMEDOUT, "it takes too long", cursor.path())


def _removed(cursor: Cursor, name: str, remove: Callable[..., None]) -> bool:
    """Remove a name; False if it is a directory that is not empty."""
    try:
        try:
            remove(name, dir_fd=cursor.fd)
        except PermissionError:
            _unfasten(cursor.fd, name)
            remove(name, dir_fd=cursor.fd)
    except FileNotFoundError:
        return True
    except OSError as err:
        if err.errno == errno.ENOTEMPTY:
            return False
        raise cursor.error(err, name) from err
    return True


def _unfasten(dir_fd: int, name: str) -> None:
    """Clear the flags that forbid the removal of a name: its directory's and its own."""
    _clear_flags(dir_fd)
    looked = open_at(dir_fd, name, LOOK)
    try:
        kind = stat.S_IFMT(os.fstat(looked).st_mode)
        if kind not in {stat.S_IFREG, stat.S_IFDIR}:
            return  # only these have flags that an ioctl can reach
        fd = reopen(looked, READ)
        try:
            _clear_flags(fd)
        finally:
            os.close(fd)
    finally:
        os.close(looked)


def _clear_flags(fd: int) -> None:
    flags = fs.get_flags(fd)
    if flags & (fs.FS_IMMUTABLE_FL | fs.FS_APPEND_FL):
        fs.set_flags(fd, flags & ~(fs.FS_IMMUTABLE_FL | fs.FS_APPEND_FL))
