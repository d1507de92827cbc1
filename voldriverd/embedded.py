"""The pools of a host where nothing is configured: one btrfs image with a pool for each driver.

    <root>/embedded.img   the image, all its space reserved: a sparse one loses writes when its host fills up
    <root>/embedded       where it is mounted; the directory beneath is immutable, so that nothing is
                          ever written there while the image is not mounted

The image is recognised by the UUID in its superblock. It is never checked by `btrfs check`, which
takes minutes and is refused by old tools, and never made anew in the place of one that is missing.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from voldriverd.config import EMBEDDED_MIN_BYTES
from voldriverd.errors import Exists, InUse, Invalid, Unsupported, Unusable
from voldriverd.kernel import btrfs, fs, image, loop, mount, process, run

POOLS: Final = ("btrfs", "loop", "directory")
DEFAULT_MAX_BYTES: Final = 20 << 30

_SUPERBLOCK_AT: Final = 0x10000
_FSID_AT: Final = 0x20
_MAGIC_AT: Final = 0x40
_TOTAL_AT: Final = 0x70
_MAGIC: Final = b"_BHRfS_M"
"""linux/btrfs_tree.h, struct btrfs_super_block"""
_MIB: Final = 1 << 20
_OPTIONS: Final = "nodiscard"
"""A discard would punch holes into the reservation."""
_CLEAR_TIMEOUT_S: Final = 5.0
"""For whoever looks at the loop device after the umount, such as udev."""


class Embedded:
    """The image under one root directory, mounted or not; holds no state of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()  # as the mount table has it
        self.path = self._root / "embedded.img"
        self.mount_point = self._root / "embedded"

    def exists(self) -> bool:
        """Tell whether there is an image, mounted or not."""
        return self.path.exists()

    def make(self, size_bytes: int | None = None) -> str:
        """Make the image, whole or not at all, and return its UUID; None: `default_size` of what is free.

        Raises Exists, Invalid (too small), Unusable (no space for it, mkfs.btrfs not installed, or a
        file system that cannot reserve space).
        """
        if self.exists():
            raise Exists(f"cannot make image {self.path}: it exists already")
        if run.missing(["mkfs.btrfs"]):
            raise Unusable(f"cannot make image {self.path}: mkfs.btrfs is not installed (Debian package btrfs-progs)")
        if size_bytes is None:
            size_bytes = default_size(fs.capacity(self._root)[1])
        if size_bytes < EMBEDDED_MIN_BYTES:
            cause = f"{_mib(size_bytes)} are too small, it needs {_mib(EMBEDDED_MIN_BYTES)}"
            raise Invalid(f"cannot make image {self.path}: {cause}", field="size")
        self._check_space("make", size_bytes)
        identity = str(uuid.uuid4())
        part = self.path.with_suffix(".part")
        part.unlink(missing_ok=True)
        try:
            self._fill(part, size_bytes, identity)
            fs.rename_durably(part, self.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return identity

    def mount(self, expected: str | None = None) -> str:
        """Mount the image, if it is not, and return its UUID. Repeatable, also after a crash anywhere in between.

        Raises Unusable: the image is missing, was cut short, is no btrfs or not the one with the expected UUID, or
        something else is mounted in its place, such as the file that it has replaced.
        """
        identity = self._identity()
        if expected not in {None, identity}:
            raise self._not_mounted(f"its UUID is {identity}, expected was {expected}")
        entry = mount.at(self.mount_point)
        if entry is None:
            self._ensure_whole()
            self._protect_mount_point()
            with loop.held(self.path) as device:
                # Without noatime each file read after a snapshot would make the volume differ from it.
                mount.mount(device.path, self.mount_point, fs_type="btrfs", flags=mount.MS_NOATIME, data=_OPTIONS)
        elif not self._is_served():
            raise self._not_mounted(f"{entry.source} ({entry.fs_type}) is mounted there, and is not of this file")
        for name in POOLS:
            fs.make_directory(self.mount_point / name, mode=0o700)
        return identity

    def grow(self, size_bytes: int) -> None:
        """Reserve more space and give it to the mounted file system. Repeatable: a second call ends what a crash left.

        Raises Invalid (smaller than it is) and Unusable (not mounted, or the space is not there).
        """
        if not self.exists() or not self._is_served():
            raise Unusable(f"cannot grow image {self.path}: it is not mounted")
        status = self.path.stat()
        if size_bytes < status.st_size:
            cause = f"it has {_mib(status.st_size)} already and can only grow"
            raise Invalid(f"cannot grow image {self.path} to {_mib(size_bytes)}: {cause}", field="size")
        self._check_space("grow", size_bytes - status.st_blocks * 512)
        image.lengthen(self.path, size_bytes, thick=True)
        with loop.held(self.path) as device, btrfs.opened(self.mount_point) as fd:
            loop.refresh_capacity(device)
            btrfs.resize(fd, "max")

    def release(self) -> None:
        """Unmount the image and return when its loop device has gone. Repeatable. Raises InUse."""
        while mount.at(self.mount_point):
            try:
                mount.unmount(self.mount_point)
            except OSError as err:
                if err.errno != errno.EBUSY:
                    raise
                raise InUse(f"cannot release image {self.path}: {_openers(self.mount_point)}") from err
        if self.exists() and not loop.wait_cleared(self.path, timeout_s=_CLEAR_TIMEOUT_S):
            raise InUse(f"cannot release image {self.path}: volumes in it are mounted elsewhere")

    def _fill(self, part: Path, size_bytes: int, identity: str) -> None:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fs.allocate(fd, size_bytes)
            run.run(["mkfs.btrfs", "-q", "-K", "-U", identity, str(part)])
            os.fsync(fd)
        except OSError as err:
            if err.errno == errno.EOPNOTSUPP:
                cause = "the file system of the root directory cannot reserve space; configure [pools] instead"
                raise Unusable(f"cannot make image {self.path} of {_mib(size_bytes)}: {cause}") from err
            if err.errno == errno.ENOSPC:  # somebody else took it meanwhile
                self._check_space("make", size_bytes)
            raise
        finally:
            os.close(fd)

    def _check_space(self, verb: str, needed_bytes: int) -> None:
        _, free_bytes = fs.capacity(self._root)
        if needed_bytes > free_bytes:
            cause = f"it needs {_mib(needed_bytes)}, {self._root} has {_mib(free_bytes)} free"
            raise Unusable(f"cannot {verb} image {self.path}: {cause}")

    def _identity(self) -> str:
        """Read the UUID from the superblock."""
        superblock = self._superblock()
        return str(uuid.UUID(bytes=superblock[_FSID_AT : _FSID_AT + 16]))

    def _ensure_whole(self) -> None:
        """Refuse an image that ends before its file system: the kernel gives no more than EINVAL as the reason."""
        fs_bytes, size_bytes = int.from_bytes(self._superblock()[_TOTAL_AT:], "little"), self.path.stat().st_size
        if size_bytes < fs_bytes:
            cause = f"it was cut short, of its {_mib(fs_bytes)} there are {_mib(size_bytes)}"
            raise self._not_mounted(f"{cause}; put a whole copy in its place")

    def _superblock(self) -> bytes:
        """Return the beginning of the first superblock, up to its total_bytes."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(_SUPERBLOCK_AT)
                superblock = file.read(_TOTAL_AT + 8)
        except FileNotFoundError as err:
            raise self._not_mounted("the file is missing") from err
        if superblock[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            raise self._not_mounted("it holds no btrfs")
        return superblock

    def _is_served(self) -> bool:
        """Tell whether it is this very file that one sees at the mount point; a copy of it has the same UUID."""
        entry = mount.at(self.mount_point)
        number = "" if entry is None else entry.source.removeprefix("/dev/loop")
        return number.isdecimal() and loop.is_backed_by(f"{loop.LOOP_MAJOR}:{number}", self.path)

    def _not_mounted(self, cause: str) -> Unusable:
        return Unusable(f"cannot mount image {self.path}: {cause}")

    def _protect_mount_point(self) -> None:
        """Make the directory if it is missing, and see that not even root can write into it."""
        self.mount_point.mkdir(0, exist_ok=True)
        fd = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = fs.get_flags(fd)
            if not flags & fs.FS_IMMUTABLE_FL:
                os.fchmod(fd, 0)
                fs.set_flags(fd, flags | fs.FS_IMMUTABLE_FL)
        except OSError as err:
            if err.errno not in {errno.ENOTTY, errno.EOPNOTSUPP}:  # no flags there: all but root are kept out
                raise
        finally:
            os.close(fd)


@contextmanager
def temporary(directory: Path, what: str) -> Iterator[Path]:
    """Mount a new btrfs for the block, in a sparse image that a directory on another file system holds; give the place.

    It can take all that is free below it. Raises Unsupported, beginning with `what`: this kernel knows no btrfs, or
    mkfs.btrfs is not installed. What a crash leaves is for whoever sweeps the directory.
    """
    if run.missing(["mkfs.btrfs"]):
        raise Unsupported(f"{what}: mkfs.btrfs is not installed (Debian package btrfs-progs)")
    path, place = directory / "image", directory / "fs"
    _, free_bytes = fs.capacity(directory)
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(max(EMBEDDED_MIN_BYTES, free_bytes // _MIB * _MIB))
    run.run(["mkfs.btrfs", "-q", "-K", str(path)])
    place.mkdir(0o700)
    try:
        with loop.held(path) as device:
            mount.mount(device.path, place, fs_type="btrfs", flags=mount.MS_NOATIME)
    except OSError as err:
        if err.errno == errno.ENODEV:
            raise Unsupported(f"{what}: this kernel knows no btrfs") from err
        raise
    try:
        yield place
    finally:
        mount.unmount(place)
        loop.wait_cleared(path, timeout_s=_CLEAR_TIMEOUT_S)


def default_size(free_bytes: int) -> int:
    """Return the size of an image where so much is free: half of it, 20 GiB at most. Raises Unusable."""
    size_bytes = min(DEFAULT_MAX_BYTES, free_bytes // 2 // _MIB * _MIB)
    if size_bytes < EMBEDDED_MIN_BYTES:
        needed_bytes = 2 * EMBEDDED_MIN_BYTES
        cause = f"{_mib(free_bytes)} are free, and half of that must be at least {_mib(EMBEDDED_MIN_BYTES)}"
        raise Unusable(f"cannot make the embedded image: {cause}; free {_mib(needed_bytes - free_bytes)} more")
    return size_bytes


def _openers(mount_point: Path) -> str:
    found = [f"{name} (pid {pid}) has {path} open" for pid, name, path in process.openers(mount_point)]
    return "; ".join(found) or "volumes in it are mounted"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:,.1f} MiB".replace(".0 ", " ")
