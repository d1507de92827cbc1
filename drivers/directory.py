"""Trees as plain directories, on any file system.

    <pool>/trees/<key>/files        the tree
    <pool>/trees/<key>/read_only    there if the tree is read-only, which attach sees to
    <pool>/trees/.part-<key>        one that is being made, until it is renamed to its key
    <pool>/trees/.gone-<key>        one that is being removed
    <pool>/trees/.old-…             what a crash left of either

What marks a tree as read-only lies beside its files, where no container can change it. A key can
hold no `-`, so that none of the other names is ever taken for a tree.

A clone copies every file, by reflink where the file system can: that shares the data but takes as
long as there are files. If the source is mounted meanwhile, it is copied as it is found, file by
file: what vanishes is left out, a file that is being written may be half old and half new, and the
files are not of one instant. Otherwise a source that changes is an error.

Removing a tree with a million files takes minutes. Its first step, a rename, takes the whole tree
away at once, so that a key is never half there. `open` puts aside what was cut off and removes it,
but gives that only a moment; the rest is removed by the next `remove`, which nobody waits for.

A backup of a tree is a tar archive, always whole.

Every call is durable when it returns, `create` as well: on btrfs an fsync of `trees` for another key
would keep the name of a new tree and not what is in it (seen in 6.18), which is half a tree.
"""

import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from drivers import archive, binding
from voldriverd.driver import Adopted, Capability, Change, Key, Stream, StreamFormat, TreeOptions, Usage, User
from voldriverd.errors import Exists, InUse, NotFound, Unsupported, Unusable
from voldriverd.kernel import attributes, copying, fs, mount, places, tree

_PART: Final = ".part-"
_GONE: Final = ".gone-"
_OLD: Final = ".old-"
_FILES: Final = "files"
_LINKS: Final = "links"
_READ_ONLY: Final = "read_only"
_SWEEP_TIMEOUT_S: Final = 0.5
"""At the daemon's start, which is to take 3 s; some 20,000 files go in that time."""
_UNDO_TIMEOUT_S: Final = 1.0
"""Of what is half made, where somebody waits for the end of a restore that was cancelled."""


class Directory:
    """Keeps the contract of voldriverd.driver in one directory of any file system."""

    capabilities: Capability = Capability.NONE
    options: frozenset[str] = frozenset({"uid", "gid", "mode"})
    formats: tuple[StreamFormat, ...] = (StreamFormat.TAR,)

    def __init__(self, root: Path, mounts: Path) -> None:
        self._root = root
        self._trees = root / "trees"
        self._mounts = mounts.resolve()  # as the mount table has it
        self._sweeping = threading.Lock()

    def open(self) -> None:
        """Make the directory of trees and sweep, not for long; nobody may work in the pool yet."""
        if not self._root.is_dir():
            raise Unusable(f"cannot open pool {self._root}: there is no such directory")
        fs.make_directory(self._trees, mode=0o700)
        for name in os.listdir(self._trees):
            if name.startswith((_PART, _GONE)):
                (self._trees / name).rename(self._trees / f"{_OLD}{uuid.uuid4()}")
        self._sweep(timeout_s=_SWEEP_TIMEOUT_S)

    def complete(self, options: TreeOptions) -> TreeOptions:
        """Refuse what a directory has not; there are no defaults to fill in."""
        if options.size_bytes is not None:
            message = "a directory cannot be limited; the loop driver can, and the btrfs driver with quotas"
            raise Unsupported(f"cannot honour size {options.size_bytes}: {message}")
        if options.thick:
            raise Unsupported("cannot honour thick: no space is reserved for a directory; the loop driver does that")
        if options.fs is not None:
            message = "a directory has no file system of its own; a tree of the loop driver has"
            raise Unsupported(f"cannot honour fs={options.fs}: {message}")
        if options.nocow or options.compression is not None:
            name = "nocow" if options.nocow else "compression"
            raise Unsupported(f"cannot honour {name}: the directory driver knows no such thing; the btrfs driver does")
        return options

    def create(self, key: Key, options: TreeOptions) -> None:
        """Make an empty directory, durably."""
        self._check_absent("create", key)
        with self._part(key) as part:
            files = part / _FILES
            files.mkdir(0o700)
            os.chown(files, options.uid or 0, options.gid or 0)
            files.chmod(0o755 if options.mode is None else options.mode)
            fs.sync_directory(files)
            fs.sync_directory(part)

    def clone(self, source: Key, target: Key, *, read_only: bool) -> None:
        """Copy every file. Raises also OSError ESTALE: the source changes although nobody has it mounted."""
        origin = self._existing("clone", source)
        self._check_absent("clone", target)
        with self._part(target) as part:
            copying.copy_tree(origin, part / _FILES, live=self._is_mounted(origin))
            if read_only:
                (part / _READ_ONLY).touch(0o600)
            fs.sync_file_system(part)

    def adopt(
        self,
        key: Key,
        source: Path,
        options: TreeOptions,  # noqa: ARG002 - the contract's signature
        *,
        read_only: bool,
        advance: Callable[[int], None],
    ) -> Adopted:
        """Copy every file as a clone does, if the directory lies on the pool's file system."""
        self._check_absent("adopt", key)
        if not places.are_together(source, self._trees):
            return Adopted.NOT
        with self._part(key) as part:
            (part / _FILES).mkdir(0o700)
            copying.fill(source, part / _FILES, links=part / _LINKS, live=False, advance=advance)
            if read_only:
                (part / _READ_ONLY).touch(0o600)
            fs.sync_file_system(part)
        return Adopted.COPY

    def remove(self, key: Key) -> None:
        """Take the tree away at once, then remove its files, and whatever a crash left of others."""
        if (self._trees / key).exists():
            self._check_unused(key)
            binding.remove_point(self._mounts / key)
            tree.vanish(self._trees / f"{_GONE}{key}")
            fs.rename_durably(self._trees / key, self._trees / f"{_GONE}{key}")
        tree.vanish(self._trees / f"{_GONE}{key}")
        tree.vanish(self._trees / f"{_PART}{key}")
        self._sweep()

    def attach(self, key: Key, *, read_only: bool) -> Path:
        """Bind-mount the directory; what else is mounted there is unmounted first."""
        files = self._existing("attach", key)
        is_read_only = read_only or (self._trees / key / _READ_ONLY).exists()
        binding.attach(key, files, self._mounts / key, read_only=is_read_only)
        return self._mounts / key

    def detach(self, key: Key) -> None:
        """Unmount; what is dirty is left to the file system, which stays mounted."""
        binding.detach(key, self._mounts / key)

    def resize(self, key: Key, size_bytes: int) -> None:
        """Refuse."""
        self._existing("resize", key)
        message = "a directory cannot be limited; clone its files into a volume of the loop driver"
        raise Unsupported(f"cannot resize tree {key} to {size_bytes} bytes: {message}")

    def trees(self) -> set[Key]:
        """Return the names of the directories."""
        return {Key(name) for name in os.listdir(self._trees) if not name.startswith(".")}

    def usage(self, key: Key) -> Usage:
        """Return nothing: a directory's space is only known by walking it."""
        self._existing("measure", key)
        return Usage(None, None, None)

    def users(self, key: Key) -> list[User]:
        """Return who has the directory, or something in it, mounted."""
        return binding.users(self._files(key), self._mounts / key)

    def changes(self, base: Key, key: Key) -> Iterator[Change] | None:  # noqa: ARG002 - the contract's signature
        """Return None: there is no better way than walking both."""
        return None

    def sync(self) -> None:
        """Do nothing: every creation and removal was durable when its call returned."""

    def reclaim(self) -> bool:
        """Write out the pool's file system, for btrfs gives nothing back before a commit."""
        fs.sync_file_system(self._trees)
        return True

    @contextmanager
    def send(
        self,
        key: Key,
        base: Key | None = None,
        *,
        wanted: StreamFormat | None = None,
        is_thorough: bool = False,  # noqa: ARG002 - the contract's signature: every byte is read anyway
    ) -> Iterator[Stream]:
        """Write down everything as a tar archive; there are no increments."""
        if base is not None:
            raise Unsupported(f"cannot send what changed in tree {key} since {base}: a directory is always sent whole")
        if wanted not in {None, StreamFormat.TAR}:
            raise Unsupported(f"cannot send tree {key} as {wanted}: a directory is sent as {StreamFormat.TAR}")
        with archive.stream(self._existing("send", key)) as stream:
            yield stream

    def receive(self, key: Key, chain: Iterator[Stream], options: TreeOptions) -> tuple[str, ...]:  # noqa: ARG002
        """Extract an archive, durably; owner and mode come from there."""
        self._check_absent("receive", key)
        stream = next(chain, None)
        if stream is None:
            raise Unusable(f"cannot receive tree {key}: there is no stream")
        if stream.format is not StreamFormat.TAR:
            raise Unsupported(f"cannot receive tree {key}: a directory takes {StreamFormat.TAR}, not {stream.format}")
        with self._part(key) as part:
            _make_plain(part / _FILES)
            notes = archive.extract(stream.parts, part / _FILES)
            if next(chain, None) is not None:
                raise Unusable(f"cannot receive tree {key}: nothing can follow an archive, which is always whole")
            fs.sync_file_system(part)
        return notes

    def _files(self, key: Key) -> Path:
        return self._trees / key / _FILES

    def _existing(self, verb: str, key: Key) -> Path:
        files = self._files(key)
        if not files.is_dir():
            raise NotFound(f"cannot {verb} tree {key}: there is none")
        return files

    def _check_absent(self, verb: str, key: Key) -> None:
        if (self._trees / key).exists():
            raise Exists(f"cannot {verb} tree {key}: it exists already")

    def _check_unused(self, key: Key) -> None:
        """Raise InUse if the tree is mounted anywhere, or something is mounted inside it."""
        files = self._files(key)
        binding.check_unused(key, files, self._mounts / key)
        inside = [entry.mount_point for entry in mount.table() if entry.mount_point.startswith(f"{files.resolve()}/")]
        if inside:
            raise InUse(f"cannot remove tree {key}: something is mounted at {inside[0]}")

    def _is_mounted(self, files: Path) -> bool:
        device, inside = mount.location(files)
        return any(mount.covers(entry, device, inside) for _, entry in mount.everywhere())

    @contextmanager
    def _part(self, key: Key) -> Iterator[Path]:
        """Yield a new directory that becomes the tree after the block, durably, and is no tree if that raised.

        What of it cannot be removed in a moment is left to `remove` of that key, or the next `open`.
        """
        part = self._trees / f"{_PART}{key}"
        tree.vanish(part)
        try:
            part.mkdir(0o700)
            yield part
            fs.rename_durably(part, self._trees / key)
        except BaseException:
            if (self._trees / key).exists():  # its name could not be made durable
                (self._trees / key).rename(part)
            with suppress(TimeoutError):
                tree.vanish(part, timeout_s=_UNDO_TIMEOUT_S)
            raise

    def _sweep(self, *, timeout_s: float = math.inf) -> None:
        """Remove what `open` put aside, unless another thread is at it."""
        if not self._sweeping.acquire(blocking=False):
            return
        deadline_s = time.monotonic() + timeout_s
        try:
            for name in os.listdir(self._trees):
                if name.startswith(_OLD):
                    tree.vanish(self._trees / name, timeout_s=deadline_s - time.monotonic())
        except OSError:  # too much for now, or not to be removed: it harms nobody, and the next sweep tries again
            return
        finally:
            self._sweeping.release()


def _make_plain(path: Path) -> None:
    """Make a directory that hands down nothing of what its parent would."""
    path.mkdir(0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes.strip(fd)
    finally:
        os.close(fd)
