"""The image files of one pool: made under another name and renamed, mounted aside, swept after a crash."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from voldriverd.driver import Key, TreeOptions
from voldriverd.errors import Unusable
from voldriverd.kernel import fs, image, loop, mount

CLEAR_TIMEOUT_S: Final = 2.0
"""For whoever looks at a loop device after its last umount, such as udev: some 10 ms each."""

_PART: Final = ".part."
_FULL_BYTES: Final = 8 << 20
"""What ext4 and xfs may still call free when they have nothing left for data (seen: 4 MiB)."""


class Images:
    """The directory of a pool's images; `has_reflinks` holds from `open` on."""

    def __init__(self, directory: Path, mounts: Path) -> None:
        self.directory = directory
        self.has_reflinks = False
        self._mounts = mounts
        self._mark = hashlib.blake2b(os.fsencode(directory.resolve()), digest_size=4).hexdigest()
        """What tells the places of this pool among `mounts` from those of others."""

    def open(self) -> None:
        """Make the directory, sweep, and find out whether the pool has reflinks."""
        fs.make_directory(self.directory, mode=0o700)
        self._sweep_stages()
        self._sweep_parts()
        self._set_nocow()
        self.has_reflinks = fs.has_reflinks(self.directory)

    def check_space(self, what: str, needed_bytes: int) -> None:
        """Raise Unusable if the pool has not so much free; `what` is "VERB THING NAME"."""
        _, free_bytes = fs.capacity(self.directory)
        if needed_bytes > free_bytes:
            raise Unusable(f"cannot {what}: it needs {mib(needed_bytes)}, the pool has {mib(free_bytes)} free")

    def is_full(self) -> bool:
        """Tell whether the pool has no room for data."""
        return fs.capacity(self.directory)[1] < _FULL_BYTES

    @contextmanager
    def part(self, key: Key, *, replaces: bool = False) -> Iterator[tuple[int, Path]]:
        """Yield a new file; it is durable under its key after the block, and gone if that raised.

        One that `replaces` another may have done so then: either is whole.
        """
        part = self.directory / f"{_PART}{key}"
        part.unlink(missing_ok=True)  # one that could not be removed when it failed
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with self.blaming_space():
                yield fd, part
                os.fsync(fd)
                fs.rename_durably(part, self.directory / key)
        except BaseException:
            part.unlink(missing_ok=True)
            if not replaces:  # its name could not be made durable
                (self.directory / key).unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """Mount the whole file system of an image aside for the block."""
        path = self.directory / name
        place = Path(tempfile.mkdtemp(dir=self._mounts, prefix=f".{name}-{self._mark}-"))
        try:
            with self.blaming_space(), image.mounted(path, place, read_only=is_read_only(path)):
                yield place
        except BaseException:
            with suppress(OSError):  # it could not be unmounted, which is what is told; `open` sweeps it
                place.rmdir()
            raise
        place.rmdir()

    @contextmanager
    def viewed(self, key: Key) -> Iterator[Path]:
        """Mount the whole file system of a tree aside for the block, without a change in its image if that can be."""
        with self.replica(key) as name, self.staged(name) as place:
            yield place

    @contextmanager
    def replica(self, name: str) -> Iterator[str]:
        """Yield the name of a clone whose journal may be replayed; of the image itself if the pool has no reflinks.

        The bytes of a base must stay those that were sent, or increments on it would be wrong.
        """
        if not self.has_reflinks:
            yield name
            return
        prefix = f"{_PART}{name.removeprefix(_PART)}-"
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix=prefix) as replica:
            with (self.directory / name).open("rb", buffering=0) as file:
                fs.reflink(file.fileno(), replica.fileno())
            os.fchmod(replica.fileno(), 0o400)
            yield Path(replica.name).name

    @contextmanager
    def blaming_space(self) -> Iterator[None]:
        """Raise ENOSPC instead of EIO if the pool is full: tools and loop devices know only that a write failed."""
        try:
            yield
        except OSError as err:
            if err.errno == errno.EIO and self.is_full():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from err
            raise

    def grow_mounted(self, path: Path, size_bytes: int, *, thick: bool) -> None:
        """Grow an image, its loop device if it has one, and its file system by the kernel."""
        device = loop.attached(path)
        image.lengthen(path, size_bytes, thick=thick)
        if device:
            loop.refresh_capacity(device)
        with self.staged(path.name) as place:
            image.grow_mounted(place)

    def _sweep_parts(self) -> None:
        """Remove what was half made; what is still mounted stays for the next time, or its mount would be forgotten."""
        for name in os.listdir(self.directory):
            path = self.directory / name
            if not name.startswith(_PART):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            elif loop.wait_cleared(path, timeout_s=CLEAR_TIMEOUT_S):
                path.unlink()

    def _sweep_stages(self) -> None:
        """Unmount what a crash left mounted aside; one in use, say by a shell in it, waits for the next time."""
        for place in self._mounts.glob(".*-*"):
            name, _, _ = place.name[1:].rpartition("-")
            is_marked = name.endswith(f"-{self._mark}")
            path = self.directory / name.removesuffix(f"-{self._mark}")
            entry = mount.at(place)
            is_ours = entry is not None and _is_of(entry.device, path)
            if not (is_marked or is_ours):
                continue  # of another pool
            try:
                if is_ours:
                    mount.unmount(place)
                place.rmdir()
            except OSError as err:
                if err.errno != errno.EBUSY:
                    raise

    def _set_nocow(self) -> None:
        """Let images be made without checksums and copies on write on btrfs, which direct I/O needs."""
        if fs.magic(self.directory) != fs.BTRFS_MAGIC or os.listdir(self.directory):
            return  # files that exist cannot change any more
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = fs.get_flags(fd) & ~fs.FS_COMPR_FL
            fs.set_flags(fd, flags)  # not both in one step: EINVAL (6.18)
            fs.set_flags(fd, flags | fs.FS_NOCOW_FL)
        finally:
            os.close(fd)


def make(fd: int, part: Path, options: TreeOptions) -> None:
    """Make of an empty file what completed options ask for."""
    assert options.fs is not None
    assert options.size_bytes is not None
    top = image.Top(options.uid or 0, options.gid or 0, 0o755 if options.mode is None else options.mode)
    os.ftruncate(fd, options.size_bytes)
    image.make(part, options.fs, top)
    if options.thick:
        image.make_thick(fd, options.size_bytes)


def is_read_only(path: Path) -> bool:
    """Tell whether an image is that of a read-only tree."""
    return not path.stat().st_mode & 0o200


def rounded(size_bytes: int) -> int:
    """Return a size in whole blocks."""
    return -(-size_bytes // loop.BLOCK_BYTES) * loop.BLOCK_BYTES


def mib(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / (1 << 20):,.1f} MiB".replace(".0 ", " ")


def _is_of(device: str, path: Path) -> bool:
    """Tell whether a mount's device is a loop device of an image, which may have been deleted."""
    return loop.is_of_deleted(device, path) or (path.exists() and loop.is_backed_by(device, path))
