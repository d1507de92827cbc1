"""File systems inside image files: made, mounted, grown (mke2fs(8), mkfs.xfs(8), resize2fs(8), xfs_growfs(8)).

What such a file system serves is its directory `DATA`, which looks empty when new: the root of ext4
has a `lost+found`. mkfs puts that directory there, so that neither a loop device nor a mount is
needed to make one (mount, mkdir and unmount would add 5 ms to the 16 of ext4, 10 ms to the 5 of xfs).

A *thick* image has all its space reserved, and an extended attribute that says so.

All have blocks (ext4) and sectors (xfs) of 4096 bytes and so work on loop devices of either block size.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voldriverd.kernel import fs, loop, mount, run, watch

DATA: Final = "data"

CAP_SYS_RESOURCE: Final = 24
"""linux/capability.h; ext4 asks for it when it grows while mounted."""

DAMAGED: Final = frozenset({errno.EINVAL, errno.EUCLEAN, errno.EBADMSG, errno.EIO, errno.EFBIG})
"""What mount(2) answers for a file system that is broken or cut off; EBADMSG and EUCLEAN are xfs's words for it."""

_THICK: Final = "user.voldriver.thick"
_XFS_MAGIC: Final = b"XFSB"
"""At the start; fs/xfs/libxfs/xfs_format.h."""
_EXT4_MAGIC: Final = b"\x53\xef"
_EXT4_SUPERBLOCK: Final = 1024
_EXT4_MAGIC_AT: Final = 0x38
_EXT4_BLOCKS_LOW_AT: Final = 0x04
_EXT4_BLOCKS_HIGH_AT: Final = 0x150
"""Documentation/filesystems/ext4/super.rst"""

_REPAIRED: Final = 1
"""e2fsck(8): errors were found and corrected."""
_GROW_TIMEOUT_S: Final = 900.0
"""e2fsck -f reads all metadata: some 10 s per TiB in use on a slow disk."""


@dataclass(frozen=True, slots=True)
class Format:
    """What there is to know about one type of file system."""

    minimum_bytes: int
    tools: tuple[str, ...]
    package: str
    """The Debian package with the tools."""
    mount_options: str


FORMATS: Final[Mapping[str, Format]] = {
    # Without noinit_itable the kernel writes zeros to all inode tables after the first mount: a
    # sparse image of 1 GiB grew by 16 MiB, a reserved one lost 16 MiB of its reservation (6.18).
    # An image reads as zeros wherever nobody wrote, so there is nothing to initialise.
    "ext4": Format(16 << 20, ("mkfs.ext4", "e2fsck", "resize2fs"), "e2fsprogs", "errors=remount-ro,noinit_itable"),
    # A clone has the UUID of its origin, beside which only nouuid lets it be mounted.
    "xfs": Format(300 << 20, ("mkfs.xfs", "xfs_db", "xfs_growfs", "xfs_repair"), "xfsprogs", "nouuid"),
}


@dataclass(frozen=True, slots=True)
class Top:
    """Owner and mode of the directory that is served."""

    uid: int
    gid: int
    mode: int


def make(image: Path, fs_type: str, top: Top) -> None:
    """Make a file system in an empty image of the right size; the caller syncs it.

    Files made on the way are beside the image and have names that begin with its own. Raises OSError.
    """
    if fs_type == "ext4":
        _make_ext4(image, top)
    else:
        _make_xfs(image, top)


def type_of(image: Path) -> str:
    """Return the name of the format. Raises OSError (EINVAL: none of ours)."""
    with image.open("rb", buffering=0) as file:
        start = file.read(_EXT4_SUPERBLOCK + _EXT4_MAGIC_AT + len(_EXT4_MAGIC))
    if start.startswith(_XFS_MAGIC):
        return "xfs"
    if not start.endswith(_EXT4_MAGIC):
        message = "it holds neither ext4 nor xfs"
        raise OSError(errno.EINVAL, message, str(image))
    return "ext4"


@contextmanager
def mounted(image: Path, place: Path, *, read_only: bool) -> Iterator[None]:
    """Mount the whole file system of an image for the block, wherever else it is mounted.

    The loop device below is writable even so: the journal of an image copied under a writer is
    replayed by its first mount. Raises OSError (EBUSY: mounted elsewhere, but not `read_only` alike).
    """
    fs_type = type_of(image)
    flags = mount.MS_RDONLY if read_only else 0
    with loop.held(image) as device:
        mount.mount(device.path, place, fs_type=fs_type, flags=flags, data=FORMATS[fs_type].mount_options)
    try:
        yield
    finally:
        mount.unmount(place)


def is_thick(image: Path) -> bool:
    """Tell whether an image is marked as having its space reserved. Raises OSError."""
    try:
        return os.getxattr(image, _THICK) == b"1"
    except OSError as err:
        if err.errno == errno.ENODATA:
            return False
        raise


def make_thick(fd: int, reserved_bytes: int) -> None:
    """Mark an image and reserve its space from the start on, 0 for none. Raises OSError (ENOSPC)."""
    os.setxattr(fd, _THICK, b"1")
    if reserved_bytes:
        fs.allocate(fd, reserved_bytes)


def lengthen(image: Path, size_bytes: int, *, thick: bool) -> None:
    """Make an image longer, durably, and not its file system. Raises OSError (ENOSPC: it is as long as before)."""
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        before_bytes = os.fstat(fd).st_size
        try:
            if thick:
                fs.allocate(fd, size_bytes)
            else:
                os.ftruncate(fd, size_bytes)
        except OSError:
            os.ftruncate(fd, before_bytes)
            raise
        os.fsync(fd)
    finally:
        os.close(fd)


def is_ext4_grown(image: Path, size_bytes: int) -> bool:
    """Tell whether the ext4 file system in an image fills this size already. Raises OSError."""
    with image.open("rb", buffering=0) as file:
        file.seek(_EXT4_SUPERBLOCK)
        superblock = file.read(1024)
    low, high = (
        int.from_bytes(superblock[at : at + 4], "little") for at in (_EXT4_BLOCKS_LOW_AT, _EXT4_BLOCKS_HIGH_AT)
    )
    return (high << 32 | low) >= size_bytes // loop.BLOCK_BYTES


def faults(image: Path) -> str | None:
    """Check a file system that was unmounted cleanly, without changing it; `watch` is told, and may end it.

    Returns what its tool says, or that there is no tool; None if nothing is wrong. Raises OSError.
    """
    argv = ["e2fsck", "-f", "-n"] if type_of(image) == "ext4" else ["xfs_repair", "-n"]
    watch.prepare("checks its file system")
    try:
        run.watched([*argv, str(image)], timeout_s=_GROW_TIMEOUT_S)
    except run.ToolError as err:
        return err.strerror
    except FileNotFoundError:
        return f"they are not known, for {argv[0]} is not installed"
    return None


def grow_unmounted_ext4(image: Path) -> None:
    """Check an ext4 image, replay its journal and grow the file system to the image's size. Raises OSError.

    `watch` is told, and may end it; what was begun cannot be taken back then, nor after an error. It is checked again
    at the end, for resize2fs (1.47.0) may end well although writes of it have failed.
    """
    watch.prepare("grows its file system")
    run.watched(["e2fsck", "-f", "-p", str(image)], timeout_s=_GROW_TIMEOUT_S, good=(0, _REPAIRED))
    run.watched(["resize2fs", str(image)], timeout_s=_GROW_TIMEOUT_S)
    run.watched(["e2fsck", "-f", "-n", str(image)], timeout_s=_GROW_TIMEOUT_S)


def grow_mounted(place: Path) -> None:
    """Grow the file system mounted at a place to the size of its device. Raises OSError (EINVAL: no mount is there)."""
    entry = mount.at(place)
    if entry is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(place))
    argv = ["resize2fs", entry.source] if entry.fs_type == "ext4" else ["xfs_growfs", "-d", str(place)]
    run.run(argv, timeout_s=_GROW_TIMEOUT_S)


def may_grow_mounted_ext4() -> bool:
    """Tell whether this process has the capability that ext4 asks for."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_SYS_RESOURCE & 1)


def _make_ext4(image: Path, top: Top) -> None:
    extended = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,no_copy_xattrs"
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=f"{image.name}.") as template:
        data = Path(template) / DATA
        data.mkdir()
        os.chown(data, top.uid, top.gid)
        data.chmod(top.mode)  # after chown, which clears setuid and setgid
        argv = [
            "mkfs.ext4",
            "-q",
            "-F",
            "-b",
            str(loop.BLOCK_BYTES),
            "-m",
            "0",
            "-E",
            extended,
            "-d",
            template,
            str(image),
        ]
        run.run(argv)


def _make_xfs(image: Path, top: Top) -> None:
    """Make it from a prototype (mkfs.xfs(8), -p), which cannot tell the sticky bit; xfs_db adds that."""
    bits = f"d{'u' if top.mode & stat.S_ISUID else '-'}{'g' if top.mode & stat.S_ISGID else '-'}{top.mode & 0o777:03o}"
    prototype = f"/\n0 0\nd--755 0 0\n{DATA} {bits} {top.uid} {top.gid}\n$\n$\n"
    fd = os.memfd_create("prototype", os.MFD_CLOEXEC)
    try:
        os.write(fd, prototype.encode())
        argv = ["mkfs.xfs", "-q", "-K", "-s", f"size={loop.BLOCK_BYTES}", "-p", f"/proc/self/fd/{fd}", str(image)]
        run.run(argv, pass_fds=[fd])
    finally:
        os.close(fd)
    if top.mode & stat.S_ISVTX:
        mode = f"write core.mode 0{stat.S_IFDIR | top.mode:o}"
        run.run(["xfs_db", "-x", "-c", f"path /{DATA}", "-c", mode, str(image)])
