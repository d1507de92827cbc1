"""Files and directories made durable, reflinks, inode flags, free space.

Durable means: fsync the file, rename, fsync the directory. That order stands here and nowhere else.
"""

import ctypes
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from voldriverd.kernel import ioctl

FS_IOC_GETFLAGS: Final = ioctl.ior(ord("f"), 1, 8)
FS_IOC_SETFLAGS: Final = ioctl.iow(ord("f"), 2, 8)
FS_COMPR_FL: Final = 0x4
FS_IMMUTABLE_FL: Final = 0x10
FS_APPEND_FL: Final = 0x20
FS_NOCOW_FL: Final = 0x800000
FICLONE: Final = ioctl.iow(0x94, 9, 4)
"""linux/fs.h"""

BTRFS_MAGIC: Final = 0x9123683E
XFS_MAGIC: Final = 0x58465342
EXT4_MAGIC: Final = 0xEF53
"""linux/magic.h"""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


AT_EMPTY_PATH: Final = 0x1000
"""linux/fcntl.h"""
_HANDLE_MAX_BYTES: Final = 128
"""MAX_HANDLE_SZ of linux/exportfs.h"""


class _FileHandle(ctypes.Structure):
    """struct file_handle (open_by_handle_at(2))."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint32),
        ("handle_type", ctypes.c_int32),
        ("f_handle", ctypes.c_char * _HANDLE_MAX_BYTES),
    )


class _Statfs(ctypes.Structure):
    """The part of struct statfs that we read (statfs(2)); padded to its size on 64-bit."""

    _fields_ = (
        ("f_type", ctypes.c_long),
        ("f_bsize", ctypes.c_long),
        ("f_blocks", ctypes.c_uint64),
        ("f_bfree", ctypes.c_uint64),
        ("f_bavail", ctypes.c_uint64),
        ("counts_and_id", ctypes.c_uint64 * 3),
        ("f_namelen", ctypes.c_long),
        ("f_frsize", ctypes.c_long),
        ("rest", ctypes.c_char * 176),
    )


def magic(path: Path) -> int:
    """Return the file system's magic number (statfs(2)). Raises OSError."""
    return int(_statfs(path).f_type)


def sync_file_system(path: Path) -> None:
    """Write out everything dirty of the file system that holds `path` (syncfs(2)). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file: after a crash it has its old content or the new one, whole. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)  # the umask does not apply, nor the mode of a part that a crash left
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(fd)
    except OSError:
        part.unlink()
        raise
    finally:
        os.close(fd)
    rename_durably(part, path)


def write_data(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make a new file and its data durable; its name is so after `sync_directory`. Raises OSError (EEXIST).

    When it raises, what it made may be there.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(fd, "wb", buffering=0, closefd=False) as file:
            left = memoryview(content)
            while left:
                left = left[file.write(left) :]
        if content:
            os.fdatasync(fd)
    finally:
        os.close(fd)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one file system and make both directories durable; replaces a file of that name."""
    source.rename(target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def link_durably(source: Path, target: Path) -> None:
    """Give a file, as it is, another name, which is gone again if it could not be made durable.

    Raises OSError (EEXIST; EMLINK: it has too many).
    """
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    target.hardlink_to(source)
    try:
        sync_directory(target.parent)
    except OSError:
        target.unlink()
        raise


def make_directory(path: Path, *, mode: int) -> None:
    """Make a directory durable; one that exists already is left with its mode. Raises OSError."""
    try:
        path.mkdir(mode)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    path.chmod(mode)  # the umask does not apply
    sync_directory(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have a file, made if need be, locked for the block (flock(2): the lock goes with the process).

    Raises BlockingIOError (another has it locked) and OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Tell whether somebody has a file locked by `locked`; one that is not there is not. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def reflink(source_fd: int, target_fd: int) -> None:
    """Share all extents of a file with an empty one (ioctl_ficlone(2)). Raises OSError (EOPNOTSUPP, EXDEV, EINVAL)."""
    ioctl.call(target_fd, FICLONE, source_fd)


def has_reflinks(directory: Path) -> bool:
    """Try `reflink` with two nameless, empty files. Raises OSError.

    A full xfs has no place for them: then btrfs and xfs are taken to have reflinks (mkfs.xfs gives them since 5.1).
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as one, tempfile.TemporaryFile(dir=directory) as other:
            reflink(one.fileno(), other.fileno())
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            return magic(directory) in {BTRFS_MAGIC, XFS_MAGIC}
        if err.errno in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV}:
            return False
        raise
    return True


def get_flags(fd: int) -> int:
    """Return the inode flags (ioctl_iflags(2)). Raises OSError (ENOTTY: the file system has none)."""
    value = ctypes.c_uint64(0)
    ioctl.call(fd, FS_IOC_GETFLAGS, value)
    return int(value.value) & 0xFFFFFFFF


def set_flags(fd: int, flags: int) -> None:
    """Set the inode flags (ioctl_iflags(2)). Raises OSError."""
    ioctl.call(fd, FS_IOC_SETFLAGS, ctypes.c_uint64(flags))


def handle(fd: int) -> bytes:
    """Return what one inode is known by and none that has its number later (name_to_handle_at(2)); O_PATH will do.

    Empty where the file system has no such thing. Raises OSError.
    """
    found, mount_id = _FileHandle(handle_bytes=_HANDLE_MAX_BYTES), ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", ctypes.byref(found), ctypes.byref(mount_id), AT_EMPTY_PATH) < 0:
        number = ctypes.get_errno()
        if number in {errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS, errno.EPERM}:  # the last two: of a sandbox
            return b""
        raise OSError(number, os.strerror(number))
    start = _FileHandle.f_handle.offset
    return bytes(found)[start : start + found.handle_bytes]


def allocate(fd: int, size_bytes: int) -> None:
    """Reserve the space of a file from its start to this size and make it that long (fallocate(2)); keeps its content.

    Raises OSError (ENOSPC; EOPNOTSUPP: this file system cannot; posix_fallocate(3) would write zeros instead).
    """
    if _libc.fallocate(fd, 0, 0, size_bytes) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def umask() -> int:
    """Return the umask of this process without changing it for the other threads (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)


def capacity(path: Path | str) -> tuple[int, int]:
    """Return (total, available to root) bytes of the file system that holds `path`. Raises OSError.

    On btrfs f_bfree counts what only metadata may take: a full one of 300 MiB has 74 MiB of it.
    """
    state = _statfs(path)
    free = state.f_bavail if state.f_type == BTRFS_MAGIC else state.f_bfree
    return state.f_blocks * state.f_frsize, free * state.f_frsize


def _statfs(path: Path | str) -> _Statfs:
    result = _Statfs()
    if _libc.statfs(os.fsencode(path), ctypes.byref(result)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return result
