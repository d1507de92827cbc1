"""Scratch file systems: sparse images in a temporary directory, mounted through loop devices.

A loop device of our own takes a moment to make (mkfs and mount: 20 to 60 ms), so those that tests
share are made once a session by `shared`. Everything is gone after `close`.
"""

import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from voldriverd.kernel import mount, run

SIZE_BYTES: Final = 2 << 30
"""Sparse; the tests write a few dozen MiB into each."""

_BUSY_S: Final = 5.0

_MKFS: Final = {
    "btrfs": ("mkfs.btrfs", "-q", "-K"),
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1"),
    "xfs": ("mkfs.xfs", "-q"),
}
_COPY_OPTIONS: Final = {"btrfs": "loop", "ext4": "loop", "xfs": "loop,nouuid"}


class Scratch:
    """Makes file systems under one directory; `close` unmounts them and whatever is mounted inside them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._images: dict[Path, tuple[str, Path]] = {}
        self._shared: dict[str, Path] = {}

    def make(self, fs_type: str, *, size_bytes: int = SIZE_BYTES, mkfs_args: Sequence[str] = ()) -> Path:
        """Make a file system (btrfs, ext4, xfs or tmpfs) and return where it is mounted."""
        image, place = self._next()
        with image.open("wb") as file:
            file.truncate(size_bytes)
        if fs_type == "tmpfs":
            return self._mount(fs_type, image, place, f"size={size_bytes}")
        run.run([*_MKFS[fs_type], *mkfs_args, str(image)])
        return self._mount(fs_type, image, place, "loop")

    def shared(self, name: str, fs_type: str) -> Path:
        """Return the file system of that name, made at the first call."""
        if name not in self._shared:
            self._shared[name] = self.make(fs_type)
        return self._shared[name]

    def power_cut(self, place: Path, *, of: "Scratch") -> Path:
        """Mount what the disk under a file system of a Scratch holds now, as after a power cut, and return where.

        The image is what the file system has handed to its device; nothing is flushed for the copy.
        """
        fs_type, image = of._images[place]
        copy, copy_place = self._next()
        _copy_data(image, copy)
        return self._mount(fs_type, copy, copy_place, _COPY_OPTIONS[fs_type])

    def close(self) -> None:
        """Unmount everything under the directory, deepest first, and delete the images."""
        unmount_under(self._directory)
        for place, (_, image) in self._images.items():
            image.unlink()
            place.rmdir()
        self._images.clear()
        self._shared.clear()

    def _next(self) -> tuple[Path, Path]:
        self._directory.mkdir(exist_ok=True)
        number = sum(1 for _ in self._directory.glob("*.img"))
        place = self._directory / f"fs{number}"
        place.mkdir()
        return self._directory / f"fs{number}.img", place

    def _mount(self, fs_type: str, image: Path, place: Path, options: str) -> Path:
        self._images[place] = (fs_type, image)
        run.run(["mount", "-t", fs_type, "-o", options, str(image), str(place)])
        return place


def unmount_under(directory: Path) -> None:
    """Unmount everything that is mounted below a directory in our namespace, newest first."""
    inside = [entry.mount_point for entry in mount.table() if Path(entry.mount_point).is_relative_to(directory)]
    for mount_point in reversed(inside):
        _unmount(Path(mount_point))


def _unmount(place: Path) -> None:
    """Unmount; what is busy may be so for a moment: any process that looks through the loop devices keeps theirs."""
    end_s = time.monotonic() + _BUSY_S
    while True:
        try:
            mount.unmount(place)
        except OSError as err:
            if err.errno != errno.EBUSY or time.monotonic() > end_s:
                raise
            time.sleep(0.05)
        else:
            return


def loops_under(directory: Path) -> dict[str, str]:
    """Return the loop devices whose backing file lies below a directory, each with that file."""
    found = {}
    for name in os.listdir("/sys/block"):
        if not name.startswith("loop") or not os.path.exists(f"/sys/block/{name}/loop"):  # not bound to a file
            continue
        try:
            backing = Path(f"/sys/block/{name}/loop/backing_file").read_text(errors="surrogateescape").strip()
        except OSError:  # not bound any more
            continue
        if backing.startswith(f"{directory}/"):
            found[name] = backing
    return found


def _copy_data(source: Path, target: Path) -> None:
    """Copy a sparse file, its data only."""
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        end = os.fstat(reader.fileno()).st_size
        writer.truncate(end)
        position = 0
        while position < end:
            try:
                start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole follows
                break
            position = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            os.lseek(writer.fileno(), start, os.SEEK_SET)
            while start < position:
                start += os.sendfile(writer.fileno(), reader.fileno(), start, position - start)


def count_ext4_error(device: str) -> None:
    """Have the ext4 on a device (`loop7`) count an error; it does so a moment later (fs/ext4/super.c, s_error_work)."""
    place = Path("/sys/fs/ext4") / device
    before = (place / "errors_count").read_text()
    (place / "trigger_fs_error").write_text("made for a test")
    deadline_s = time.monotonic() + _BUSY_S
    while (place / "errors_count").read_text() == before:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"ext4 on {device} has not counted its error")
        time.sleep(0.001)
