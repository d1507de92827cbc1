"""Trees as subvolumes of btrfs.

    <pool>/trees/<key>          one subvolume for each tree
    <pool>/trees/.part-<key>    one that is being made or removed in more than one step; `open` sweeps it
    <pool>/staging              what restores work in (btrfs_streams); `open` sweeps it

A key can hold no `-`, so no part is ever taken for a tree. Most calls are one ioctl: a subvolume
without options is made under its key at once, a snapshot takes its read-only flag and its limit in
the call that makes it, and a removal is one step unless a container has made subvolumes inside.

*Nested subvolumes.* A snapshot does not descend into them, so a clone of a tree that has some takes
them along one by one (each for itself is one instant, all together are not) and is renamed to its
key when it is complete. Only there a read-only flag is set afterwards: nobody can have opened what
lies under a part's name in a closed directory.

*Sizes* are limits of quota groups. With simple quotas a group counts what its tree wrote itself,
for as long as any clone of it holds that. A clone's group therefore begins at nothing and may write
the whole size again; how much the clone was born with is stored beside its limit, and `usage`
adds the two. What was received counts as born with, in each link of its chain.

*Durability.* A snapshot commits itself; fsync(2) of `trees` commits what was made or removed in it.
`detach` flushes nothing: the file system under a tree stays mounted, and syncfs(2) would wait for
what all other trees have dirty. What programs did not fsync is written within 30 s, as always.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

from drivers import binding, btrfs_streams, difference
from voldriverd.driver import (
    RECLAIM_S,
    Adopted,
    Capability,
    Change,
    Key,
    Stream,
    StreamFormat,
    TreeOptions,
    Usage,
    User,
)
from voldriverd.errors import Exists, InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.kernel import btrfs, fs, mount, nested, places, qgroup, send
from voldriverd.kernel.qgroup import Mode

SIZE_MIN_BYTES: Final = 1 << 20
"""An empty tree is charged 16 KiB; what is smaller than this is a mistake in the unit."""

COMPRESSIONS: Final = ("zstd", "zlib", "lzo")

_COMPRESSION: Final = "btrfs.compression"
_PART: Final = ".part-"
_MODE: Final = 0o755
_UMASK: Final = 0o777 & ~_MODE
_NOCOW_NOTE: Final = "only new files will be without copy on write: btrfs streams do not tell which files were"


class Btrfs:
    """Keeps the contract of voldriverd.driver in one directory of a btrfs; `quota` is the pool's configured mode."""

    def __init__(self, root: Path, mounts: Path, *, quota: str = "off") -> None:
        self._root = root
        self._trees = root / "trees"
        self._staging = root / "staging"
        self._mounts = mounts.resolve()  # as the mount table has it
        self._quota = Mode(quota)
        self._file_system_id = ""
        self._makes_right_mode = False
        has_size = self._quota is not Mode.OFF
        self.capabilities = Capability.COW | Capability.INSTANT | Capability.DELTA
        self.capabilities |= Capability.SIZE if has_size else Capability.NONE
        self.options = frozenset({"uid", "gid", "mode", "nocow", "compression"} | ({"size"} if has_size else set()))
        self.formats = btrfs_streams.FORMATS

    def open(self) -> None:
        """Check the file system, turn its quotas on if they are configured, sweep; nobody may work in the pool yet."""
        if fs.magic(self._root) != fs.BTRFS_MAGIC:
            found = mount.containing(self._root).fs_type
            raise Unusable(f"cannot open pool {self._root}: it is on {found}, and the btrfs driver needs btrfs")
        for directory in (self._trees, self._staging):
            fs.make_directory(directory, mode=0o700)
        btrfs_streams.sweep(self._staging)
        self._makes_right_mode = fs.umask() == _UMASK
        with btrfs.opened(self._trees) as trees:
            self._file_system_id = btrfs.file_system_id(trees)
            self._enable_quota(trees)
            if self._quota is not Mode.OFF:
                qgroup.sweep(trees, self._file_system_id)
            for name in os.listdir(trees):
                if name.startswith(_PART):
                    nested.destroy(trees, name)

    def complete(self, options: TreeOptions) -> TreeOptions:
        """Check the options; there are no defaults to fill in."""
        if options.thick:
            raise Unsupported("cannot honour thick: btrfs reserves no space for a tree; the loop driver does")
        if options.fs is not None:
            raise Unsupported(f"cannot honour fs={options.fs}: a btrfs tree has no file system of its own; loop has")
        if options.size_bytes is not None:
            self._check_size("honour", options.size_bytes)
        if options.compression is not None and options.compression not in COMPRESSIONS:
            choices = ", ".join(COMPRESSIONS)
            message = f"cannot honour compression={options.compression}: btrfs has {choices}"
            raise Invalid(message, field="compression")
        if options.nocow and options.compression is not None:
            raise Invalid("cannot honour nocow with compression: btrfs compresses only what it copies", field="nocow")
        return options

    def create(self, key: Key, options: TreeOptions) -> None:
        """Make a subvolume; it is not committed."""
        limit = None if options.size_bytes is None else qgroup.limit(size_bytes=options.size_bytes)
        with btrfs.opened(self._trees) as trees:
            if self._makes_right_mode and _is_plain(options):
                try:
                    btrfs.create(trees, key, limit=limit)
                except FileExistsError as err:
                    raise _exists("create", key) from err
                return
            self._check_absent("create", key)
            with _part(trees, key) as part:
                btrfs.create(trees, part, limit=limit)
                with btrfs.opened(part, directory_fd=trees) as fd:
                    _dress(fd, options)

    def clone(self, source: Key, target: Key, *, read_only: bool) -> None:
        """Snapshot a tree; the clone has its limit, and is committed when this returns."""
        with btrfs.opened(self._trees) as trees, self._tree("clone", source) as fd:
            subvolume_id = btrfs.subvolume_id(fd)
            charge = self._charge(subvolume_id)
            limit = None if charge is None else _limit_of_clone(trees, subvolume_id, charge)
            try:
                self._snapshot(fd, subvolume_id, trees, target, read_only=read_only, limit=limit)
            except FileExistsError as err:
                raise _exists("clone", target) from err
            except OSError as err:
                if err.errno != errno.ETXTBSY:
                    raise
                raise InUse(f"cannot clone tree {source}: a swap file in it is active") from err
            if charge is not None and limit is not None:
                self._correct_inherited(trees, subvolume_id, target, charge, limit)

    def adopt(
        self, key: Key, source: Path, options: TreeOptions, *, read_only: bool, advance: Callable[[int], None]
    ) -> Adopted:
        """Snapshot a subvolume of the pool's file system; of a plain directory there copy every file by reflink.

        A snapshot has no options of its own: with nocow, with compression, and with a size under full quotas, where
        the source would get the limit too, the files are copied.
        """
        with btrfs.opened(self._trees) as trees:
            self._check_absent("adopt", key)
            if not places.are_together(source, self._trees):
                return Adopted.NOT
            is_copied = options.nocow or options.compression or (options.size_bytes and self._quota is Mode.FULL)
            if _is_root(source) and not is_copied:
                fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    limit = self._limit_of_adopted(fd, options)
                    self._snapshot(fd, btrfs.subvolume_id(fd), trees, key, read_only=read_only, limit=limit)
                finally:
                    os.close(fd)
                return Adopted.INSTANT
            if _is_fixed(source):
                return Adopted.NOT
            with btrfs_streams.staged(self._staging, key) as place:
                built = btrfs_streams.copied(
                    place,
                    source,
                    self._file_system_id,
                    dress=lambda fd: _dress_data(fd, options),
                    advance=advance,
                )
                with btrfs.opened(place / built.name) as fd:
                    limit = self._limit_of_received(fd, built, options)
                    btrfs.snapshot(fd, trees, key, read_only=read_only, limit=limit)
            return Adopted.COPY

    def remove(self, key: Key) -> None:
        """Destroy a subvolume and those nested in it; not committed, and its space comes back later."""
        with btrfs.opened(self._trees) as trees:
            if not os.path.lexists(self._trees / key):
                _destroy_part(trees, key)
                return
            if not _is_subvolume(self._trees / key):
                raise Unusable(f"cannot remove tree {key}: what lies under its name is no subvolume")
            binding.check_unused(key, self._trees / key, self._mounts / key)
            binding.remove_point(self._mounts / key)
            try:
                btrfs.destroy(trees, key)
            except OSError as err:
                if err.errno not in {errno.ENOTEMPTY, errno.EPERM}:
                    raise
                self._remove_stubborn(trees, key)

    def attach(self, key: Key, *, read_only: bool) -> Path:
        """Bind-mount the subvolume; what else is mounted there is unmounted first."""
        with self._tree("attach", key):
            binding.attach(key, self._trees / key, self._mounts / key, read_only=read_only)
        return self._mounts / key

    def detach(self, key: Key) -> None:
        """Unmount; what is dirty is left to the file system."""
        binding.detach(key, self._mounts / key)

    def resize(self, key: Key, size_bytes: int) -> None:
        """Change the limit, from now on; committed when this returns."""
        self._check_size(f"resize tree {key} to", size_bytes)
        with btrfs.opened(self._trees) as trees, self._tree("resize", key) as fd:
            btrfs.commit(trees, _PART + key)  # brings the counts up to date
            subvolume_id = btrfs.subvolume_id(fd)
            group = qgroup.group(self._file_system_id, subvolume_id)
            if group is not None and group.referenced_bytes > size_bytes:
                message = f"cannot resize tree {key} to {size_bytes} bytes: it is charged {group.referenced_bytes}"
                raise Invalid(message, field="size")
            qgroup.set_size(fd, subvolume_id, size_bytes)
            btrfs.commit(trees, _PART + key)

    def trees(self) -> set[Key]:
        """Return the names of the subvolumes."""
        return {Key(name) for name in os.listdir(self._trees) if not name.startswith(".")}

    def usage(self, key: Key) -> Usage:
        """Return the counts of the tree's quota group as of the last commit; nothing without quotas."""
        with self._tree("measure", key) as fd:
            subvolume_id = btrfs.subvolume_id(fd)
            group = qgroup.group(self._file_system_id, subvolume_id) if self._quota is not Mode.OFF else None
            if group is None:
                return Usage(None, None, None)
            if self._quota is Mode.FULL:
                exclusive_bytes = qgroup.exclusive_bytes(self._file_system_id, subvolume_id)
                return Usage(group.referenced_bytes, exclusive_bytes, group.limit_bytes)
            inherited = qgroup.inherited(fd, subvolume_id)
            return Usage(inherited + group.referenced_bytes, None, group.limit_bytes)

    def users(self, key: Key) -> list[User]:
        """Return who has the subvolume, or a directory or subvolume in it, mounted."""
        return binding.users(self._trees / key, self._mounts / key)

    def changes(self, base: Key, key: Key) -> Iterator[Change] | None:
        """Return what the kernel's send finds; None if subvolumes are nested, or names are too long or too many for it.

        Raises NotFound, and Unsupported if a million paths differ.
        """
        with self._tree("compare", base) as base_fd, self._tree("compare", key) as fd:
            base_id, tree_id = btrfs.subvolume_id(base_fd), btrfs.subvolume_id(fd)
            if btrfs.children(fd, tree_id) or btrfs.children(fd, base_id):
                return None
            with closing(send.steps(fd, parent_id=base_id)) as steps:
                try:
                    found = difference.changes(self._trees / base, self._trees / key, steps)
                except OSError as err:
                    if err.errno != errno.ENAMETOOLONG:
                        raise
                    return None
        return None if found is None else iter(found)

    def sync(self) -> None:
        """Commit if a tree was made or removed since the last commit; callers at the same time share one."""
        fs.sync_directory(self._trees)

    def reclaim(self) -> bool:
        """Wake the cleaner and wait for it."""
        with btrfs.opened(self._trees) as trees:
            return btrfs.reclaim(trees, timeout_s=RECLAIM_S)

    @contextmanager
    def send(
        self,
        key: Key,
        base: Key | None = None,
        *,
        wanted: StreamFormat | None = None,
        is_thorough: bool = False,  # noqa: ARG002 - the kernel goes by checksummed metadata, there is nothing to doubt
    ) -> Iterator[Stream]:
        """Have the kernel write the tree; neither it nor its base can be removed meanwhile (InUse)."""
        if wanted not in {None, *self.formats}:
            raise Unsupported(f"cannot send tree {key} as {wanted}: btrfs writes {' and '.join(self.formats)}")
        with ExitStack() as stack:
            fd = stack.enter_context(self._tree("send", key))
            base_fd = None if base is None else stack.enter_context(self._tree("send", base))
            stream = btrfs_streams.sent(
                self._trees / key, fd, base_fd, wanted=wanted, used_bytes=lambda: self.usage(key).used_bytes
            )
            yield stack.enter_context(stream)

    def receive(self, key: Key, chain: Iterator[Stream], options: TreeOptions) -> tuple[str, ...]:
        """Make the links of the chain aside; the tree is a snapshot of the last one."""
        with btrfs.opened(self._trees) as trees:
            self._check_absent("receive", key)
            with btrfs_streams.staged(self._staging, key) as place:
                built = btrfs_streams.build(
                    place, chain, self._file_system_id, dress=lambda fd: _dress_data(fd, options)
                )
                with btrfs.opened(place / built.name) as fd:
                    return built.notes + self._adopt(trees, fd, key, built, options)

    def _adopt(
        self, trees: int, fd: int, key: Key, built: btrfs_streams.Built, options: TreeOptions
    ) -> tuple[str, ...]:
        """Make the tree from the last link of a chain; it is committed when this returns."""
        limit = self._limit_of_received(fd, built, options)
        if not built.is_from_btrfs or not (built.attributes or options.nocow or options.compression):
            btrfs.snapshot(fd, trees, key, read_only=False, limit=limit)
            return ()
        with _part(trees, key) as part:
            btrfs.snapshot(fd, trees, part, read_only=False, limit=limit)
            with btrfs.opened(part, directory_fd=trees) as root:
                for name, value in built.attributes.items():
                    os.setxattr(root, name, value)
                _dress_data(root, options)
        fs.sync_directory(self._trees)
        return (_NOCOW_NOTE,) if options.nocow else ()

    def _snapshot(
        self, fd: int, subvolume_id: int, trees: int, target: Key, *, read_only: bool, limit: btrfs.Limit | None
    ) -> None:
        """Snapshot a subvolume with those nested in it; committed when this returns. Raises Exists, OSError."""
        inside = btrfs.descendants(fd, subvolume_id)
        if not inside:
            btrfs.snapshot(fd, trees, target, read_only=read_only, limit=limit)
            return
        self._check_absent("clone", target)
        with _part(trees, target) as part:
            nested.snapshot(fd, inside, trees, part, read_only=read_only, limit=limit)
        fs.sync_directory(self._trees)

    @contextmanager
    def _tree(self, verb: str, key: Key) -> Iterator[int]:
        """Open a tree's root directory. Raises NotFound."""
        path = f"{self._trees}/{key}"
        if not _is_subvolume(path):
            raise NotFound(f"cannot {verb} tree {key}: there is none")
        with btrfs.opened(path) as fd:
            yield fd

    def _check_absent(self, verb: str, key: Key) -> None:
        if os.path.lexists(self._trees / key):
            raise _exists(verb, key)

    def _check_size(self, what: str, size_bytes: int) -> None:
        if self._quota is Mode.OFF:
            message = 'its quotas are off: set quota = "simple" in the pool\'s section, or use the loop driver'
            raise Unsupported(f"cannot {what} size {size_bytes} in pool {self._root}: {message}")
        if size_bytes < SIZE_MIN_BYTES:
            raise Invalid(f"cannot {what} size {size_bytes}: the minimum is {SIZE_MIN_BYTES} bytes", field="size")

    def _remove_stubborn(self, trees: int, key: Key) -> None:
        """Remove a tree that has others nested in it or that its flags or the kernel protect."""
        try:
            with btrfs.opened(key, directory_fd=trees) as fd:
                inside = btrfs.children(fd, btrfs.subvolume_id(fd))
                nested.unlock(fd)
            if inside:
                os.rename(key, _PART + key, src_dir_fd=trees, dst_dir_fd=trees)
            nested.destroy(trees, _PART + key if inside else key)
        except PermissionError as err:
            message = "the kernel still works on it: a send of it runs or a swap file in it is active"
            raise InUse(f"cannot remove tree {key}: {message}") from err

    def _enable_quota(self, trees: int) -> None:
        if self._quota is Mode.OFF:
            return
        found = qgroup.mode(self._file_system_id)
        if found is self._quota:
            return
        if found is not Mode.OFF:
            message = f"its quotas are {found}, and {self._quota} is configured"
            raise Unusable(f"cannot open pool {self._root}: {message}; say the same or run `btrfs quota disable`")
        try:
            qgroup.enable(trees, self._quota)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            message = f"this kernel cannot do {self._quota} quotas (simple ones need Linux 6.7)"
            raise Unusable(f'cannot open pool {self._root}: {message}; set quota = "off"') from err

    def _charge(self, subvolume_id: int) -> qgroup.Group | None:
        """Return what a clone is told of its source; None: the kernel copies the limit itself, or there is none."""
        return qgroup.group(self._file_system_id, subvolume_id) if self._quota is Mode.SIMPLE else None

    def _limit_of_adopted(self, fd: int, options: TreeOptions) -> btrfs.Limit | None:
        """Return the wanted size, or what a subvolume that is no tree of ours has already if that is more."""
        if self._quota is not Mode.SIMPLE:
            return None
        subvolume_id = btrfs.subvolume_id(fd)
        group = qgroup.group(self._file_system_id, subvolume_id)
        used_bytes = 0 if group is None else group.referenced_bytes
        size_bytes = None if options.size_bytes is None else max(options.size_bytes, used_bytes)
        return qgroup.limit(size_bytes=size_bytes, inherited_bytes=used_bytes)

    def _limit_of_received(self, fd: int, built: btrfs_streams.Built, options: TreeOptions) -> btrfs.Limit | None:
        """Return the wanted size, or what the tree has already if that is more; a group of full quotas has it then."""
        if self._quota is Mode.SIMPLE:
            used_bytes = sum(built.charges_bytes)
            size_bytes = None if options.size_bytes is None else max(options.size_bytes, used_bytes)
            return qgroup.limit(size_bytes=size_bytes, inherited_bytes=used_bytes)
        if self._quota is Mode.FULL and options.size_bytes is not None:  # the kernel copies that limit and no other
            qgroup.set_size(fd, btrfs.subvolume_id(fd), max(options.size_bytes, built.charges_bytes[-1]))
        return None

    def _correct_inherited(
        self, trees: int, source_id: int, target: Key, before: qgroup.Group, limit: btrfs.Limit
    ) -> None:
        """Store what the snapshot wrote out of the source's dirty data, which its group had not counted yet."""
        try:
            written_bytes = qgroup.referenced_bytes(self._file_system_id, source_id) - before.referenced_bytes
            if written_bytes == 0:
                return
            with btrfs.opened(target, directory_fd=trees) as fd:
                qgroup.set_inherited(fd, btrfs.subvolume_id(fd), limit.rsv_rfer + written_bytes)
        except OSError:  # the clone is there and right; only its usage is told a little low
            return


def _exists(verb: str, key: Key) -> Exists:
    return Exists(f"cannot {verb} tree {key}: it exists already")


def _limit_of_clone(trees: int, source_id: int, charge: qgroup.Group) -> btrfs.Limit:
    inherited_bytes = qgroup.inherited(trees, source_id) + charge.referenced_bytes
    return qgroup.limit(size_bytes=charge.limit_bytes, inherited_bytes=inherited_bytes)


def _is_plain(options: TreeOptions) -> bool:
    """Tell whether a tree needs nothing that a new subvolume has not by itself; a limit comes with its making."""
    return not (options.nocow or any((options.compression, options.uid, options.gid))) and options.mode in {None, _MODE}


def _is_subvolume(path: Path | str) -> bool:
    try:
        return os.lstat(path).st_ino == btrfs.BTRFS_FIRST_FREE_OBJECTID
    except FileNotFoundError:
        return False


def _is_root(path: Path) -> bool:
    """Tell whether a directory of a btrfs is the root of a subvolume; links are followed."""
    return path.stat().st_ino == btrfs.BTRFS_FIRST_FREE_OBJECTID


def _is_fixed(path: Path) -> bool:
    """Tell whether a directory's flags forbid to make something in it, as its copy's would."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return bool(fs.get_flags(fd) & (fs.FS_IMMUTABLE_FL | fs.FS_APPEND_FL))
    finally:
        os.close(fd)


def _dress(fd: int, options: TreeOptions) -> None:
    """Give a new subvolume's root directory what its options ask for."""
    _dress_data(fd, options)
    os.fchown(fd, 0 if options.uid is None else options.uid, 0 if options.gid is None else options.gid)
    os.fchmod(fd, _MODE if options.mode is None else options.mode)


def _dress_data(fd: int, options: TreeOptions) -> None:
    """Give a root directory what its options say of the data in files that will be made."""
    if options.compression is not None:
        os.setxattr(fd, _COMPRESSION, options.compression.encode())
    if options.nocow:
        if _COMPRESSION in os.listxattr(fd):  # both at once are refused
            os.removexattr(fd, _COMPRESSION)
        fs.set_flags(fd, fs.get_flags(fd) | fs.FS_NOCOW_FL)


@contextmanager
def _part(trees: int, key: Key) -> Iterator[str]:
    """Name a part that becomes the tree at the end, and is destroyed if that is not reached."""
    part = _PART + key
    _destroy_part(trees, key)  # one that could not be destroyed when it failed
    try:
        yield part
        os.rename(part, key, src_dir_fd=trees, dst_dir_fd=trees)
    except BaseException:
        _destroy_part(trees, key)
        raise


def _destroy_part(trees: int, key: Key) -> None:
    try:
        nested.destroy(trees, _PART + key)
    except FileNotFoundError:
        return
