"""Trees as image files with a file system inside, each mounted through a loop device of its own.

    <root>/trees/<key>          the image: mode 0600, or 0400 for a read-only tree; no-CoW on btrfs
    <root>/trees/.part.<key>…   one being made, or a clone that is looked at; swept by `open`
    <mounts>/<key>              the directory `data` of its file system, bind-mounted
    <mounts>/.<key>-…           the whole file system, for as long as that is arranged; swept by `open`

A *thick* image has all its space reserved and is marked with an extended attribute, which clones
inherit. Neither kind is mounted with `discard`: a thick one would lose its reservation, and for a
sparse one each deletion would punch holes into the image while somebody waits; `fstrim` on a timer
costs less and does the same.

A read-only tree is never mounted for writing, but the loop device below it is writable: a clone
made under a writer has a journal to replay, which happens when it is first mounted. Several
read-only trees may be names of one image for as long as it is not mounted: `attach` gives its tree
an image of its own first.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from drivers import archive, binding, blocks, receiving
from drivers.images import CLEAR_TIMEOUT_S, Images, is_read_only, make, mib, rounded
from voldriverd.driver import Adopted, Capability, Change, Key, Stream, StreamFormat, TreeOptions, Usage, User
from voldriverd.errors import Exists, InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.kernel import content, extents, fs, image, loop, mount, run

DEFAULT_SIZE_BYTES: Final = 10 << 30


class Loop:
    """The loop driver; `capabilities` holds from `open` on."""

    options: frozenset[str] = frozenset({"size", "thick", "fs", "uid", "gid", "mode"})
    formats: tuple[StreamFormat, ...] = (StreamFormat.BLOCKS, StreamFormat.TAR)

    def __init__(self, root: Path, mounts: Path, *, default_size_bytes: int = DEFAULT_SIZE_BYTES) -> None:
        self.capabilities = Capability.SIZE
        self._trees = root / "trees"
        self._mounts = mounts.resolve()  # as the mount table has it
        self._images = Images(self._trees, self._mounts)
        self._default_size_bytes = default_size_bytes
        self._mounting = threading.Lock()
        """Held while a read-only image is mounted, or gets another name."""

    def open(self) -> None:
        """Make the directory of images, sweep, and find out whether the pool has reflinks."""
        pool = self._trees.parent
        if not pool.is_dir():
            raise Unusable(f"cannot open pool {pool}: there is no such directory")
        missing = _missing("ext4")
        if missing:
            raise Unusable(f"cannot open pool {pool}: {missing}")
        self._images.open()
        if self._images.has_reflinks:
            self.capabilities = Capability.SIZE | Capability.COW | Capability.INSTANT
            if extents.has_map(self._trees):
                self.capabilities |= Capability.DELTA

    def complete(self, options: TreeOptions) -> TreeOptions:
        """Fill in fs and size, which is rounded up to a block."""
        if options.nocow or options.compression is not None:
            name = "nocow" if options.nocow else "compression"
            raise Unsupported(f"cannot use option {name}: the loop driver has none of that name, the btrfs driver has")
        fs_type = options.fs or "ext4"
        if fs_type not in image.FORMATS:
            raise Invalid(f"cannot use fs {fs_type!r}: valid are {', '.join(image.FORMATS)}", field="fs")
        missing = _missing(fs_type)
        if missing:
            raise Unsupported(f"cannot use fs {fs_type}: {missing}")
        size_bytes = rounded(self._default_size_bytes if options.size_bytes is None else options.size_bytes)
        minimum_bytes = image.FORMATS[fs_type].minimum_bytes
        if size_bytes < minimum_bytes:
            cause = f"the smallest {fs_type} volume has {mib(minimum_bytes)}"
            raise Invalid(f"cannot use size {mib(size_bytes)}: {cause}", field="size")
        _check_maximum(size_bytes)
        return replace(options, fs=fs_type, size_bytes=size_bytes)

    def create(self, key: Key, options: TreeOptions) -> None:
        """Make an image and the file system in it. Raises also Unusable: no space for a thick one."""
        if (self._trees / key).exists():
            raise Exists(f"cannot create tree {key}: it exists already")
        assert options.size_bytes is not None
        if options.thick:
            self._images.check_space(f"create tree {key}", options.size_bytes)
        with self._images.part(key) as (fd, part):
            make(fd, part, options)

    def clone(self, source: Key, target: Key, *, read_only: bool) -> None:
        """Share the extents of an image where the pool has reflinks, else copy what is no hole.

        What is mounted is flushed first, so that the clone is what a power cut would have left.

        Raises also InUse (without reflinks: the source is mounted for writing) and Unusable: there is
        not the space for a copy, or not for a thick tree. A thick clone shares extents with its source
        as well, and what either overwrites needs new space once; a writable one therefore needs its
        whole size free, a read-only one what its source has allocated. That is checked here and not
        kept free.

        With reflinks a read-only clone of a read-only image that is not mounted is another name of it, for neither
        changes: to share the extents of one with 20,000 files took 19 ms, and doubled what the pool keeps of them.
        """
        origin = self._existing(source, "clone")
        if (self._trees / target).exists():
            raise Exists(f"cannot clone tree {source} to {target}: {target} exists already")
        if read_only and self._is_named(origin, self._trees / target):
            return
        is_thick = image.is_thick(origin)
        status = origin.stat()
        needed_bytes = status.st_size if is_thick and not read_only else status.st_blocks * 512
        if is_thick or not self._images.has_reflinks:
            self._images.check_space(f"clone tree {source} to {target}", needed_bytes)
        self._flush(source, origin)
        with origin.open("rb", buffering=0) as file, self._images.part(target) as (fd, _):
            if self._images.has_reflinks:
                fs.reflink(file.fileno(), fd)
            else:
                content.Content().copy(file.fileno(), fd, status.st_size)
            if is_thick:
                image.make_thick(fd, 0 if read_only else status.st_size)
            if read_only:
                os.fchmod(fd, 0o400)

    def adopt(
        self,
        key: Key,
        source: Path,  # noqa: ARG002 - the contract's signature, as all that follows
        options: TreeOptions,  # noqa: ARG002
        *,
        read_only: bool,  # noqa: ARG002
        advance: Callable[[int], None],  # noqa: ARG002
    ) -> Adopted:
        """Do nothing: what goes into a new file system is read and written, whichever way."""
        if (self._trees / key).exists():
            raise Exists(f"cannot adopt tree {key}: it exists already")
        return Adopted.NOT

    def remove(self, key: Key) -> None:
        """Unlink the image, which no loop device has."""
        path = self._trees / key
        if not path.exists():
            return
        if self._is_served(key, path):
            raise InUse(f"cannot remove tree {key}: it is attached")
        binding.check_no_users(key, self.users(key))
        if not loop.wait_cleared(path, timeout_s=CLEAR_TIMEOUT_S):
            raise InUse(f"cannot remove tree {key}: its loop device is in use")
        binding.remove_point(self._mounts / key)
        path.unlink()

    def attach(self, key: Key, *, read_only: bool) -> Path:
        """Mount the file system aside and bind its directory to the mount point; the bind alone stays.

        The file system of a read-only tree is mounted read-only, whatever the bind allows. Raises also Unusable: its
        image has other names, and there is no space for one of its own.
        """
        path = self._existing(key, "attach")
        target = self._mounts / key
        is_new = binding.make_point(target)
        try:
            if not binding.uncover(key, target, lambda: self._is_served(key, path)):
                with _blaming_image(path), self._alone(key, path), self._images.staged(key) as place:
                    mount.bind(place / image.DATA, target, read_only=read_only)
            elif bool(os.statvfs(target).f_flag & os.ST_RDONLY) != read_only:
                mount.set_read_only(target, read_only=read_only)
        except OSError:
            if is_new:
                binding.remove_point(target)
            raise
        return target

    def detach(self, key: Key) -> None:
        """Unmount, and return when the loop device has gone too unless somebody else has it mounted."""
        path = self._trees / key
        target = self._mounts / key
        if target.is_mount():
            _flush_what_can_be(target)
        binding.detach(key, target)
        if path.exists() and loop.attached(path) and not self.users(key):
            loop.wait_cleared(path, timeout_s=CLEAR_TIMEOUT_S)

    def resize(self, key: Key, size_bytes: int) -> None:
        """Grow the image, then its loop device, then its file system. Raises also Unusable: no space for a thick one.

        Unsupported: ext4 that is mounted, without CAP_SYS_RESOURCE.
        """
        path = self._existing(key, "resize")
        fs_type = image.type_of(path)
        size_bytes = rounded(size_bytes)
        status = path.stat()
        if size_bytes < status.st_size:
            cause = f"it has {mib(status.st_size)} already and can only grow"
            raise Invalid(f"cannot resize tree {key} to {mib(size_bytes)}: {cause}", field="size")
        _check_maximum(size_bytes)
        if fs_type == "ext4" and image.is_ext4_grown(path, size_bytes):
            return
        device = loop.attached(path)
        may_grow_mounted = fs_type != "ext4" or image.may_grow_mounted_ext4()
        if device and not may_grow_mounted:
            cause = "ext4 does not grow while mounted; unmount the volume first, or give the daemon CAP_SYS_RESOURCE"
            raise Unsupported(f"cannot resize tree {key}: {cause}")
        is_thick = image.is_thick(path)
        if is_thick:
            self._images.check_space(f"resize tree {key}", size_bytes - status.st_blocks * 512)
        if not device and fs_type == "ext4" and (self._images.has_reflinks or not may_grow_mounted):
            self._grow_aside(key, path, size_bytes, thick=is_thick)
            return
        self._images.grow_mounted(path, size_bytes, thick=is_thick)

    def trees(self) -> set[Key]:
        """Return the names of the images."""
        return {Key(name) for name in os.listdir(self._trees) if not name.startswith(".")}

    def usage(self, key: Key) -> Usage:
        """Return the space that the image occupies, also what it shares with clones; attached or not."""
        status = self._existing(key, "look at").stat()
        return Usage(used_bytes=status.st_blocks * 512, exclusive_bytes=None, limit_bytes=status.st_size)

    def users(self, key: Key) -> list[User]:
        """Return who has the image's loop device mounted."""
        path = self._trees / key
        device = loop.attached(path) if path.exists() else None
        if device is None:
            return []
        stages = f"{self._mounts}/.{key}-"
        return [
            User(pid, mount.process_name(pid), entry.mount_point)
            for pid, entry in mount.elsewhere(device.numbers, "/", own=self._mounts / key)
            if not entry.mount_point.startswith(stages)
        ]

    def changes(self, base: Key, key: Key) -> Iterator[Change] | None:  # noqa: ARG002 - the contract's signature
        """Return None: images know of blocks, not of paths."""
        return None

    def sync(self) -> None:
        """Write out the pool's file system."""
        fs.sync_file_system(self._trees)

    def reclaim(self) -> bool:
        """Write out the pool's file system, for btrfs gives nothing back before a commit."""
        fs.sync_file_system(self._trees)
        return True

    @contextmanager
    def send(
        self, key: Key, base: Key | None = None, *, wanted: StreamFormat | None = None, is_thorough: bool = False
    ) -> Iterator[Stream]:
        """Write down the image, or as TAR what is served of its file system, which is always whole."""
        path = self._existing(key, "send")
        if wanted is StreamFormat.BTRFS:
            raise Unsupported(f"cannot send tree {key}: the loop driver writes no stream of format {wanted}")
        if base is None and wanted is StreamFormat.TAR:
            with self._images.viewed(key) as place, archive.stream(place / image.DATA) as stream:
                yield stream
        elif base is None:
            with blocks.whole(path) as stream:
                yield stream
        else:
            base_path = self._existing(base, "send")
            if wanted is StreamFormat.TAR or Capability.DELTA not in self.capabilities:
                cause = "an archive is always whole" if wanted is StreamFormat.TAR else "the pool has no reflinks"
                raise Unsupported(f"cannot send tree {key} as what changed since {base}: {cause}")
            with blocks.changed(path, base_path, is_thorough=is_thorough) as stream:
                yield stream

    def receive(self, key: Key, chain: Iterator[Stream], options: TreeOptions) -> tuple[str, ...]:
        """Make an image from its blocks, or one as `create` does and unpack an archive in it.

        An image made from blocks is what was sent to the last byte, but that it is thick if the options say so, and
        grown if they have a larger size, and that a pool without reflinks replays its journal. Errors in a file system
        that can be mounted are told and do not hinder. Raises also Unusable: what is to come is larger than what is
        free, or than the size of a tree made from an archive.
        """
        if (self._trees / key).exists():
            raise Exists(f"cannot receive tree {key}: it exists already")
        first = next(chain, None)
        if first is None or first.is_incremental:
            raise Unusable(f"cannot receive tree {key}: the chain does not begin with a whole stream")
        if first.format not in self.formats:
            raise Unsupported(f"cannot receive tree {key}: the loop driver takes no stream of format {first.format}")
        receive = receiving.from_archive if first.format is StreamFormat.TAR else receiving.from_blocks
        return receive(self._images, key, first, chain, options)

    def _existing(self, key: Key, verb: str) -> Path:
        path = self._trees / key
        if not path.exists():
            raise NotFound(f"cannot {verb} tree {key}: there is no such tree")
        return path

    def _is_named(self, origin: Path, target: Path) -> bool:
        """Give a read-only image another name; False: it has to be copied, for it is mounted or about to be."""
        if not (self._images.has_reflinks and is_read_only(origin)) or not self._mounting.acquire(blocking=False):
            return False
        try:
            if loop.attached(origin):
                return False
            fs.link_durably(origin, target)
        except OSError as err:
            if err.errno != errno.EMLINK:  # btrfs: 65,535 names
                raise
            return False
        finally:
            self._mounting.release()
        return True

    @contextmanager
    def _alone(self, key: Key, path: Path) -> Iterator[None]:
        """Have the image of a tree be that of no other for the block: to mount it may replay its journal.

        The bytes of a base must stay those that were sent, or increments on it would be wrong.
        """
        if not is_read_only(path) and path.stat().st_nlink == 1:
            yield
            return
        with self._mounting:
            if path.stat().st_nlink > 1:
                with path.open("rb", buffering=0) as file, self._images.part(key, replaces=True) as (fd, _):
                    self._copy(f"attach tree {key}", file.fileno(), fd)
                    if image.is_thick(path):
                        image.make_thick(fd, 0)
                    os.fchmod(fd, path.stat().st_mode)
            yield

    def _grow_aside(self, key: Key, path: Path, size_bytes: int, *, thick: bool) -> None:
        """Grow a copy of an ext4 image that takes its place when it is done. Raises also Unusable: no space for one.

        What resize2fs has begun in place cannot be taken back. When it was killed, e2fsck -p did not mend 15 of 115
        images; a growth from 64 MiB to 100 GiB it gave up itself, and left errors (e2fsprogs 1.47).
        """
        with path.open("rb", buffering=0) as file, self._images.part(key, replaces=True) as (fd, part):
            self._copy(f"resize tree {key}", file.fileno(), fd)
            os.fchmod(fd, path.stat().st_mode)
            if thick:
                image.make_thick(fd, size_bytes)
            else:
                os.ftruncate(fd, size_bytes)
            image.grow_unmounted_ext4(part)

    def _copy(self, what: str, source_fd: int, target_fd: int) -> None:
        """Share the extents of an image where the pool has reflinks, else copy what is no hole. Raises Unusable."""
        if self._images.has_reflinks:
            fs.reflink(source_fd, target_fd)
            return
        status = os.fstat(source_fd)
        self._images.check_space(what, status.st_blocks * 512)
        content.Content().copy(source_fd, target_fd, status.st_size)

    def _is_served(self, key: Key, path: Path) -> bool:
        """Tell whether it is the directory of this image that one sees at the mount point."""
        target = self._mounts / key
        try:
            device = target.stat().st_dev
        except OSError:  # absent, or a dead file system is mounted there
            return False
        if not loop.is_backed_by(f"{os.major(device)}:{os.minor(device)}", path):
            return False  # mostly: nothing is mounted, and the mount table may be long
        entry = mount.at(target)
        return entry is not None and entry.root == f"/{image.DATA}"

    def _flush(self, key: Key, path: Path) -> None:
        """Make everything that was written to a tree so far part of its image."""
        device = loop.attached(path)
        if device is None:
            return
        if Capability.INSTANT not in self.capabilities:
            for pid, entry in mount.everywhere():
                if entry.device == device.numbers and "rw" in entry.options.split(","):
                    cause = f"mounted for writing by {mount.process_name(pid)} (pid {pid}) at {entry.mount_point}"
                    raise InUse(f"cannot clone tree {key}: {cause}, and the pool has no reflinks")
        with self._images.staged(key) as place:
            fs.sync_file_system(place)


@contextmanager
def _blaming_image(path: Path) -> Iterator[None]:
    """Say that an image is damaged where the kernel says that it is no file system, or not all of one."""
    try:
        yield
    except OSError as err:
        if err.errno not in image.DAMAGED:
            raise
        cause = f"its image is damaged or cut short: {err.strerror or err}; it has {mib(path.stat().st_size)}"
        raise OSError(errno.EUCLEAN, cause, str(path)) from err


def _flush_what_can_be(target: Path) -> None:
    """Write out a file system, unless it failed before (its pool is full, its disk dies): who wrote was told then."""
    try:
        fs.sync_file_system(target)
    except OSError as err:
        if err.errno not in {errno.EIO, errno.ENOSPC, errno.EROFS}:
            raise


def _missing(fs_type: str) -> str | None:
    """Return what is missing to make and grow such file systems, None if nothing is."""
    tools = run.missing(image.FORMATS[fs_type].tools)
    return f"{tools[0]} is not installed (Debian package {image.FORMATS[fs_type].package})" if tools else None


def _check_maximum(size_bytes: int) -> None:
    if size_bytes > blocks.IMAGE_MAX_BYTES:
        cause = f"the largest volume of the loop driver has {mib(blocks.IMAGE_MAX_BYTES)}"
        raise Invalid(f"cannot use size {mib(size_bytes)}: {cause}", field="size")
