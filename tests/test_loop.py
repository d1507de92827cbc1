"""What only the loop driver does: images, loop devices, ext4 and xfs, thick ones, growing."""

import errno
import itertools
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Final

import pytest

from drivers.loop import Loop
from tests.scratch import Scratch, loops_under, unmount_under
from voldriverd.driver import Capability, Key, TreeOptions
from voldriverd.errors import InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.kernel import fs, image, loop, mount, run

pytestmark = pytest.mark.root

MIB: Final = 1 << 20
GIB: Final = 1 << 30
SIZE: Final = 320 * MIB
"""Enough for xfs too."""
TREE: Final = Key("v1.1")
SNAPSHOT: Final = Key("s1")
COPY: Final = Key("v2.1")
BASE: Final = Key("b1")

_numbers: Final = itertools.count()
fs_types = pytest.mark.parametrize("fs_type", ["ext4", "xfs"])


class Pool:
    """A pool directory and the driver on it."""

    def __init__(self, root: Path, mounts: Path) -> None:
        self.root = root
        self.mounts = mounts
        self.images = root / "trees"
        self.driver = Loop(root, mounts)
        self.driver.open()

    def create(self, fs_type: str = "ext4", *, size_bytes: int = SIZE, thick: bool = False) -> Path:
        """Make the tree and return its image."""
        options = TreeOptions(fs=fs_type, size_bytes=size_bytes, thick=thick)
        self.driver.create(TREE, self.driver.complete(options))
        return self.images / TREE

    def attach(self, key: Key = TREE) -> Path:
        """Attach a tree for writing."""
        return self.driver.attach(key, read_only=False)

    def write(self, content: bytes, key: Key = TREE) -> None:
        """Attach the tree, write a file, detach."""
        (self.attach(key) / "file").write_bytes(content)
        self.driver.detach(key)

    def read(self, key: Key) -> bytes:
        """Attach a tree, read the file, detach."""
        content = (self.driver.attach(key, read_only=True) / "file").read_bytes()
        self.driver.detach(key)
        return content


@pytest.fixture
def make_pool(session_scratch: Scratch, tmp_path: Path) -> Iterator["MakePool"]:
    """Return what makes pools; whatever is mounted at the end is unmounted."""
    make = MakePool(session_scratch, tmp_path)
    yield make
    make.close()


class MakePool:
    """Makes pools on file systems that the session shares."""

    def __init__(self, scratch: Scratch, directory: Path) -> None:
        self._scratch = scratch
        self._directory = directory
        self._mounts = directory / "mounts"
        self._mounts.mkdir()
        self.roots: list[Path] = []

    def __call__(self, host: str) -> Pool:
        """Make an empty, open pool on this type of file system."""
        root = self._scratch.shared(f"loop-{host}", host) / f"own{next(_numbers)}"
        self.roots.append(root)
        return self.at(root)

    def at(self, root: Path) -> Pool:
        """Make an empty, open pool at this place."""
        root.mkdir(0o700)
        return Pool(root, self._mounts)

    def close(self) -> None:
        """Unmount everything, and remove the pools on shared file systems, which thick trees would fill."""
        unmount_under(self._directory)
        for root in self.roots:
            for path in (root / "trees").iterdir():
                loop.wait_cleared(path, timeout_s=5)  # others on this machine may be looking at all loop devices
            shutil.rmtree(root)


@pytest.fixture
def pool(make_pool: MakePool) -> Pool:
    """Return a pool with reflinks."""
    return make_pool("btrfs")


@pytest.fixture
def plain(make_pool: MakePool) -> Pool:
    """Return a pool without reflinks."""
    return make_pool("ext4")


@pytest.fixture
def small(scratch: Scratch, make_pool: MakePool) -> Pool:
    """Return a pool with reflinks on a file system of 512 MiB."""
    return make_pool.at(scratch.make("xfs", size_bytes=512 * MIB) / "pool")


@contextmanager
def _holder(source: Path, place: Path) -> Iterator[None]:
    """Keep `source` mounted at `place` in another mount namespace, where it is not at `source`."""
    place.mkdir(exist_ok=True)
    script = 'mount --bind "$0" "$1" && umount "$0" && exec cat'
    argv = ["unshare", "-m", "sh", "-c", script, str(source), str(place)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.stdin.close()


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _fail_with(number: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# complete


def test_a_tree_is_ext4_of_10_gib_unless_options_say_otherwise(pool: Pool) -> None:
    completed = pool.driver.complete(TreeOptions())
    assert (completed.fs, completed.size_bytes) == ("ext4", 10 * GIB)


def test_the_default_size_is_the_pools(pool: Pool) -> None:
    driver = Loop(pool.root, pool.mounts, default_size_bytes=GIB)
    assert driver.complete(TreeOptions()).size_bytes == GIB


def test_a_size_is_rounded_up_to_a_block(pool: Pool) -> None:
    assert pool.driver.complete(TreeOptions(size_bytes=GIB + 1)).size_bytes == GIB + 4096


@pytest.mark.parametrize(("fs_type", "minimum"), [("ext4", 16), ("xfs", 300)])
def test_a_size_below_the_minimum_of_its_fs_is_refused(pool: Pool, fs_type: str, minimum: int) -> None:
    with pytest.raises(Invalid, match=rf"the smallest {fs_type} volume has {minimum} MiB") as caught:
        pool.driver.complete(TreeOptions(fs=fs_type, size_bytes=minimum * MIB - 4096))
    assert caught.value.field == "size"


@pytest.mark.parametrize(("fs_type", "minimum"), [("ext4", 16), ("xfs", 300)])
@pytest.mark.parametrize("thick", [False, True])
def test_the_smallest_volume_works_with_all_options(pool: Pool, fs_type: str, minimum: int, *, thick: bool) -> None:
    options = TreeOptions(size_bytes=minimum * MIB, fs=fs_type, thick=thick, uid=1000, gid=50, mode=0o7751)
    pool.driver.create(TREE, pool.driver.complete(options))
    status = pool.attach().stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 50, 0o7751)
    (pool.attach() / "file").write_bytes(bytes(MIB))


def test_a_size_above_the_maximum_is_refused(pool: Pool) -> None:
    with pytest.raises(Invalid, match=r"the largest volume of the loop driver has 15,728,640 MiB") as caught:
        pool.driver.complete(TreeOptions(size_bytes=(15 << 40) + 1))
    assert caught.value.field == "size"


@fs_types
def test_the_largest_size_fits_a_pool_on_ext4(plain: Pool, fs_type: str) -> None:
    with (plain.images / ".part.largest").open("wb") as file:
        file.truncate(15 << 40)
    assert plain.driver.complete(TreeOptions(fs=fs_type, size_bytes=15 << 40)).size_bytes == 15 << 40


def test_an_unknown_fs_is_refused_with_the_choices(pool: Pool) -> None:
    with pytest.raises(Invalid, match=r"cannot use fs 'btrfs': valid are ext4, xfs") as caught:
        pool.driver.complete(TreeOptions(fs="btrfs"))
    assert caught.value.field == "fs"


@pytest.mark.parametrize("options", [TreeOptions(nocow=True), TreeOptions(compression="zstd")])
def test_options_of_btrfs_are_refused_with_the_driver_named(pool: Pool, options: TreeOptions) -> None:
    with pytest.raises(Unsupported, match="the btrfs driver has"):
        pool.driver.complete(options)


def test_xfs_without_its_tools_is_refused_with_the_package_named(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match=r"cannot use fs xfs: mkfs\.xfs is not installed \(Debian package xfsprogs\)"):
        pool.driver.complete(TreeOptions(fs="xfs"))


# open


def test_a_pool_without_the_tools_of_ext4_is_unusable(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unusable, match=r"mkfs\.ext4 is not installed \(Debian package e2fsprogs\)"):
        pool.driver.open()


def test_a_pool_that_is_not_there_is_unusable_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"cannot open pool .*/missing: there is no such directory"):
        Loop(tmp_path / "missing", tmp_path).open()
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(("host", "has_reflinks"), [("btrfs", True), ("xfs", True), ("ext4", False)])
def test_clones_are_promised_to_be_instant_where_there_are_reflinks(
    make_pool: MakePool, host: str, *, has_reflinks: bool
) -> None:
    wanted = Capability.COW | Capability.INSTANT | Capability.DELTA if has_reflinks else Capability.NONE
    assert make_pool(host).driver.capabilities == Capability.SIZE | wanted


def test_xfs_made_without_reflinks_has_none(scratch: Scratch, make_pool: MakePool) -> None:
    root = scratch.make("xfs", mkfs_args=["-m", "reflink=0"]) / "pool"
    assert make_pool.at(root).driver.capabilities == Capability.SIZE


@pytest.mark.parametrize("host", ["btrfs", "xfs", "ext4"])
def test_a_full_pool_can_be_opened_and_trees_removed(scratch: Scratch, make_pool: MakePool, host: str) -> None:
    directory = scratch.make(host, size_bytes=512 * MIB)
    pool = make_pool.at(directory / "pool")
    pool.create(size_bytes=16 * MIB)
    _fill(directory / "filler")
    again = Loop(pool.root, pool.mounts)
    again.open()
    assert again.capabilities == pool.driver.capabilities
    again.remove(TREE)
    assert pool.driver.trees() == set()


def _fill(path: Path) -> None:
    """Write a file until its file system is full, to the last KiB."""
    with path.open("wb", buffering=0) as file:
        for piece in (MIB, 4096, 1024):
            with pytest.raises(OSError, match="No space left"):
                _write_for_ever(file, bytes(piece))


def _write_for_ever(file: RawIOBase, piece: bytes) -> None:
    while True:
        file.write(piece)


def test_images_lie_in_a_closed_directory_without_copy_on_write(pool: Pool) -> None:
    assert stat.S_IMODE(pool.images.stat().st_mode) == 0o700
    assert "C" in _flags(pool.images)
    assert "C" in _flags(pool.create())


def test_a_directory_of_images_that_a_crash_left_with_copy_on_write_is_mended(make_pool: MakePool) -> None:
    pool = make_pool("btrfs")
    run.run(["chattr", "-C", str(pool.images)])
    pool.driver.open()
    assert "C" in _flags(pool.images)


def test_images_that_were_made_with_copy_on_write_can_still_be_cloned(make_pool: MakePool) -> None:
    pool = make_pool("btrfs")
    run.run(["chattr", "-C", str(pool.images)])
    pool.create()
    pool.write(b"content")
    pool.driver.open()
    pool.driver.clone(TREE, COPY, read_only=False)
    assert pool.read(COPY) == b"content"


def test_a_pool_in_a_compressed_directory_has_images_without_copy_on_write(make_pool: MakePool) -> None:
    pool = make_pool("btrfs")
    pool.images.rmdir()
    run.run(["chattr", "+c", str(pool.root)])
    pool.driver.open()
    assert "C" in _flags(pool.create())


def _flags(path: Path) -> str:
    return run.run(["lsattr", "-d", str(path)]).split()[0]


def test_open_sweeps_half_made_images_and_leaves_the_rest(pool: Pool) -> None:
    pool.create()
    (pool.images / ".part.v9.1").write_bytes(b"x")
    (pool.images / ".part.v9.1.abc" / "data").mkdir(parents=True)
    pool.driver.open()
    assert os.listdir(pool.images) == [TREE]


def stage(pool: Pool, rest: str, *, name: str = TREE) -> Path:
    """Return a path under which a crash may leave an image mounted aside."""
    return pool.mounts / f".{name}-{pool.driver._images._mark}-{rest}"


def test_open_unmounts_what_a_crash_left_mounted_aside(pool: Pool) -> None:
    path = pool.create()
    place = stage(pool, "abc")
    place.mkdir()
    with loop.held(path) as device:
        mount.mount(device.path, place, fs_type="ext4")
    stage(pool, "empty").mkdir()
    stage(pool, "empty", name=".part.v9.1-x").mkdir()  # of an image that has gone
    pool.driver.open()
    assert os.listdir(pool.mounts) == []
    assert loop.wait_cleared(path, timeout_s=5)


def test_open_unmounts_what_a_crash_left_mounted_aside_of_a_clone_that_has_gone(pool: Pool) -> None:
    clone = pool.create().rename(pool.images / ".part.v9.1-x")
    place = stage(pool, "abc", name=clone.name)
    place.mkdir()
    with loop.held(clone) as device:
        mount.mount(device.path, place, fs_type="ext4")
    clone.unlink()
    pool.driver.open()
    assert os.listdir(pool.mounts) == []


def test_open_unmounts_what_an_older_release_left_mounted_aside(pool: Pool) -> None:
    place = pool.mounts / f".{TREE}-abc"
    place.mkdir()
    with loop.held(pool.create()) as device:
        mount.mount(device.path, place, fs_type="ext4")
    pool.driver.open()
    assert os.listdir(pool.mounts) == []


def test_open_leaves_what_is_mounted_aside_and_in_use(pool: Pool) -> None:
    path = pool.create()
    place = stage(pool, "abc")
    place.mkdir()
    with loop.held(path) as device:
        mount.mount(device.path, place, fs_type="ext4")
    with (place / "file").open("wb"):
        pool.driver.open()
        assert mount.at(place) is not None


def test_open_leaves_what_is_no_image_of_the_pool(pool: Pool) -> None:
    pool.create()
    place = stage(pool, "abc")
    place.mkdir()
    mount.mount("none", place, fs_type="tmpfs", data="size=64k")
    pool.driver.open()
    assert mount.at(place) is not None


def test_open_leaves_what_another_pool_has_mounted_aside(make_pool: MakePool) -> None:
    pool, other = make_pool("btrfs"), make_pool("xfs")
    place = stage(pool, "abc")
    place.mkdir()
    with loop.held(pool.create()) as device:
        mount.mount(device.path, place, fs_type="ext4")
    stage(pool, "empty").mkdir()
    other.driver.open()
    assert mount.at(place) is not None
    assert stage(pool, "empty").exists()


# create


@fs_types
def test_create_needs_neither_loop_device_nor_mount(pool: Pool, fs_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount, "mount", _fail_with(errno.EPERM))
    monkeypatch.setattr(loop, "held", _fail_with(errno.EPERM))
    assert image.type_of(pool.create(fs_type)) == fs_type


@pytest.mark.parametrize(("fs_type", "most"), [("ext4", 8 * MIB), ("xfs", 72 * MIB)])
def test_a_new_sparse_image_occupies_little(pool: Pool, fs_type: str, most: int) -> None:
    path = pool.create(fs_type, size_bytes=100 * GIB)
    assert path.stat().st_size == 100 * GIB
    assert _allocated(path) < most
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@fs_types
def test_a_new_tree_shows_its_size_as_free_space(pool: Pool, fs_type: str) -> None:
    pool.create(fs_type, size_bytes=GIB)
    total, free = fs.capacity(pool.attach())
    assert GIB * 85 // 100 < total <= GIB
    assert free > total * 90 // 100


@fs_types
def test_a_new_tree_looks_empty(pool: Pool, fs_type: str) -> None:
    pool.create(fs_type)
    assert os.listdir(pool.attach()) == []


@pytest.mark.parametrize("mode", [0o1777, 0o2770, 0o4711, 0o6755, 0o3777, 0])
def test_xfs_gets_every_mode(pool: Pool, mode: int) -> None:
    pool.driver.create(TREE, pool.driver.complete(TreeOptions(fs="xfs", size_bytes=SIZE, mode=mode, uid=3)))
    status = pool.attach().stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, 3)


@fs_types
def test_a_new_file_system_is_in_order(pool: Pool, fs_type: str) -> None:
    pool.driver.create(TREE, pool.driver.complete(TreeOptions(fs=fs_type, size_bytes=SIZE, mode=0o1777)))
    argv = ["e2fsck", "-f", "-n"] if fs_type == "ext4" else ["xfs_repair", "-n"]
    run.run([*argv, str(pool.images / TREE)])


def test_access_lists_of_the_pools_directory_do_not_get_into_the_tree(pool: Pool) -> None:
    run.run(["setfacl", "-d", "-m", "u:1000:rwx", str(pool.images)])
    pool.create()
    assert os.listxattr(pool.attach()) == []


def test_a_mkfs_that_fails_leaves_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run", _fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        pool.create()
    assert os.listdir(pool.images) == []


@fs_types
def test_a_create_in_a_full_pool_leaves_nothing(small: Pool, fs_type: str) -> None:
    _fill(small.root / "filler")
    with pytest.raises(OSError, match=r"."):
        small.create(fs_type)
    assert os.listdir(small.images) == []


@fs_types
def test_trees_work_on_a_disk_with_larger_blocks(make_pool: MakePool, tmp_path: Path, fs_type: str) -> None:
    (tmp_path / "disk").write_bytes(b"")
    os.truncate(tmp_path / "disk", GIB)
    (tmp_path / "place").mkdir()
    disk = run.run(["losetup", "--find", "--show", "--sector-size", "4096", str(tmp_path / "disk")]).strip()
    run.run(["mkfs.ext4", "-q", "-b", "4096", disk])
    mount.mount(disk, tmp_path / "place", fs_type="ext4")
    run.run(["losetup", "-d", disk])  # when it is unmounted
    pool = make_pool.at(tmp_path / "place" / "pool")
    path = pool.create(fs_type, size_bytes=image.FORMATS[fs_type].minimum_bytes)
    pool.write(b"content")
    assert pool.read(TREE) == b"content"
    pool.attach()
    device = loop.attached(path)
    assert device is not None
    assert device.is_direct


# thick


@fs_types
@pytest.mark.parametrize("host", ["btrfs", "xfs", "ext4"])
def test_a_thick_tree_has_all_its_space_reserved_also_after_use(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    path = pool.create(fs_type, thick=True)
    assert _allocated(path) >= SIZE
    pool.write(os.urandom(8 * MIB))
    (pool.attach() / "file").unlink()
    pool.driver.detach(TREE)
    assert _allocated(path) >= SIZE


def test_the_kernel_does_not_initialise_the_inode_tables_of_ext4(pool: Pool) -> None:
    pool.create()
    device = Path(mount.containing(pool.attach()).source).name
    assert "noinit_itable" in Path(f"/proc/fs/ext4/{device}/options").read_text().split()


def _super_options(path: Path) -> list[str]:
    return run.run(["findmnt", "-n", "-o", "OPTIONS", str(path)]).strip().split(",")


def test_neither_kind_is_mounted_with_discard(pool: Pool) -> None:
    pool.create(thick=True)
    assert "discard" not in _super_options(pool.attach())


def test_a_thick_tree_that_does_not_fit_is_refused_with_the_figures(small: Pool) -> None:
    with pytest.raises(
        Unusable, match=r"cannot create tree v1\.1: it needs 600 MiB, the pool has 4\d\d(\.\d)? MiB free"
    ):
        small.create(size_bytes=600 * MIB, thick=True)
    assert os.listdir(small.images) == []


def test_a_sparse_tree_may_be_larger_than_the_pool(small: Pool) -> None:
    small.create(size_bytes=10 * GIB)
    assert small.driver.usage(TREE).limit_bytes == 10 * GIB


@pytest.mark.parametrize("host", ["btrfs", "xfs", "ext4"])
def test_a_writable_clone_of_a_thick_tree_or_of_its_snapshot_is_thick(make_pool: MakePool, host: str) -> None:
    pool = make_pool(host)
    pool.create(thick=True)
    pool.write(b"content")
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    pool.driver.clone(SNAPSHOT, COPY, read_only=False)
    assert image.is_thick(pool.images / SNAPSHOT)
    assert image.is_thick(pool.images / COPY)
    assert _allocated(pool.images / COPY) >= SIZE
    assert pool.read(COPY) == b"content"


def test_a_clone_of_a_sparse_tree_is_sparse(pool: Pool) -> None:
    pool.create()
    pool.driver.clone(TREE, COPY, read_only=False)
    assert not image.is_thick(pool.images / COPY)
    assert _allocated(pool.images / COPY) < SIZE // 4


@pytest.mark.parametrize("read_only", [False, True])
def test_a_thick_tree_is_not_cloned_without_space_to_overwrite_it(small: Pool, *, read_only: bool) -> None:
    small.create(size_bytes=300 * MIB, thick=True)
    with pytest.raises(Unusable, match=r"cannot clone tree v1\.1 to s1: it needs 300 MiB, the pool has 1\d\d"):
        small.driver.clone(TREE, SNAPSHOT, read_only=read_only)
    assert os.listdir(small.images) == [TREE]


def test_a_writable_clone_of_a_thick_snapshot_needs_its_whole_size(small: Pool) -> None:
    small.create(size_bytes=200 * MIB, thick=True)
    small.driver.clone(TREE, SNAPSHOT, read_only=True)
    (small.root / "filler").write_bytes(bytes(100 * MIB))
    with pytest.raises(Unusable, match=r"cannot clone tree s1 to v2\.1: it needs 200 MiB, the pool has 1\d\d"):
        small.driver.clone(SNAPSHOT, COPY, read_only=False)
    assert small.driver.trees() == {TREE, SNAPSHOT}


def test_an_unknown_attribute_error_is_not_taken_for_sparse(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pool.create()
    monkeypatch.setattr(os, "getxattr", _fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        image.is_thick(path)


# clone


@fs_types
@pytest.mark.parametrize("host", ["btrfs", "xfs"])
def test_a_clone_of_an_attached_tree_has_what_was_written_without_sync(
    make_pool: MakePool, host: str, fs_type: str
) -> None:
    pool = make_pool(host)
    pool.create(fs_type)
    content = os.urandom(4 * MIB)
    (pool.attach() / "file").write_bytes(content)
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    (pool.attach() / "file").write_bytes(b"later")
    assert pool.read(SNAPSHOT) == content


@fs_types
def test_a_clone_has_what_a_tree_mounted_only_elsewhere_was_written_to(
    pool: Pool, tmp_path: Path, fs_type: str
) -> None:
    pool.create(fs_type)
    with _holder(pool.attach(), tmp_path / "other"):
        (pool.attach() / "file").write_bytes(b"content")
        mount.unmount(pool.mounts / TREE)
        pool.driver.clone(TREE, SNAPSHOT, read_only=True)
        assert pool.read(SNAPSHOT) == b"content"


@fs_types
def test_clones_are_mounted_beside_their_origin_and_each_other(pool: Pool, fs_type: str) -> None:
    pool.create(fs_type)
    pool.write(b"content")
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    pool.driver.clone(SNAPSHOT, COPY, read_only=False)
    paths = [pool.attach(), pool.driver.attach(SNAPSHOT, read_only=True), pool.attach(COPY)]
    assert [(path / "file").read_bytes() for path in paths] == [b"content"] * 3
    assert len({path.stat().st_dev for path in paths}) == 3


@fs_types
def test_a_read_only_clone_cannot_be_written_even_when_attached_for_writing(pool: Pool, fs_type: str) -> None:
    pool.create(fs_type)
    (pool.attach() / "file").write_bytes(b"content")
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    assert stat.S_IMODE((pool.images / SNAPSHOT).stat().st_mode) == 0o400
    path = pool.driver.attach(SNAPSHOT, read_only=False)
    with pytest.raises(OSError, match="Read-only file system"):
        (path / "more").write_bytes(b"")
    mount.set_read_only(path, read_only=False)
    with pytest.raises(OSError, match="Read-only file system"):
        (path / "more").write_bytes(b"")


def test_a_copy_without_reflinks_stays_sparse(plain: Pool) -> None:
    path = plain.create()
    plain.write(b"content")
    plain.driver.clone(TREE, COPY, read_only=False)
    assert _allocated(plain.images / COPY) <= _allocated(path) + MIB
    assert plain.read(COPY) == b"content"


def test_without_reflinks_a_tree_mounted_for_writing_is_not_cloned(plain: Pool) -> None:
    plain.create()
    path = plain.attach()
    message = rf"cannot clone tree v1\.1: mounted for writing by .* \(pid {os.getpid()}\) at {path}, and .* no reflinks"
    with pytest.raises(InUse, match=message):
        plain.driver.clone(TREE, SNAPSHOT, read_only=True)
    assert plain.driver.trees() == {TREE}


def test_without_reflinks_a_tree_mounted_for_reading_is_cloned(plain: Pool) -> None:
    plain.create()
    plain.write(b"content")
    plain.driver.attach(TREE, read_only=True)
    plain.driver.clone(TREE, SNAPSHOT, read_only=True)
    assert plain.read(SNAPSHOT) == b"content"


def test_without_reflinks_a_snapshot_is_cloned_however_it_is_attached(plain: Pool) -> None:
    plain.create()
    plain.write(b"content")
    plain.driver.clone(TREE, SNAPSHOT, read_only=True)
    plain.driver.attach(SNAPSHOT, read_only=False)
    plain.driver.clone(SNAPSHOT, COPY, read_only=False)
    assert plain.read(COPY) == b"content"


def test_a_copy_that_does_not_fit_is_refused_with_the_figures(scratch: Scratch, make_pool: MakePool) -> None:
    pool = make_pool.at(scratch.make("ext4", size_bytes=256 * MIB) / "pool")
    pool.create()
    pool.write(os.urandom(150 * MIB))
    with pytest.raises(Unusable, match=r"cannot clone tree v1\.1 to v2\.1: it needs 1\d\d(\.\d)? MiB, the pool has"):
        pool.driver.clone(TREE, COPY, read_only=False)
    assert os.listdir(pool.images) == [TREE]


def test_a_read_only_clone_of_a_snapshot_is_its_image_by_another_name(pool: Pool) -> None:
    path = pool.create()
    pool.write(b"then")
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    pool.driver.clone(SNAPSHOT, BASE, read_only=True)
    first, second = pool.images / SNAPSHOT, pool.images / BASE
    assert first.samefile(second)
    assert not first.samefile(path)
    pool.write(b"now")
    pool.driver.remove(SNAPSHOT)
    pool.driver.clone(BASE, COPY, read_only=False)
    assert not second.samefile(pool.images / COPY)
    pool.write(b"other", COPY)
    assert [pool.read(key) for key in (TREE, BASE, COPY)] == [b"now", b"then", b"other"]


def test_a_snapshot_that_is_mounted_has_an_image_of_its_own(pool: Pool) -> None:
    pool.create(thick=True)
    pool.write(b"then")
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    pool.driver.clone(SNAPSHOT, BASE, read_only=True)
    first, second = pool.images / SNAPSHOT, pool.images / BASE
    place = pool.driver.attach(SNAPSHOT, read_only=True)
    assert not first.samefile(second)
    assert (stat.S_IMODE(first.stat().st_mode), image.is_thick(first)) == (0o400, True)
    pool.driver.remove(BASE)  # what is mounted does not keep it
    pool.driver.clone(SNAPSHOT, BASE, read_only=True)
    assert not first.samefile(second)
    assert (place / "file").read_bytes() == b"then"


def test_an_image_with_as_many_names_as_can_be_is_copied(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.create()
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    monkeypatch.setattr(fs, "link_durably", _fail_with(errno.EMLINK))
    pool.driver.clone(SNAPSHOT, BASE, read_only=True)
    assert not (pool.images / SNAPSHOT).samefile(pool.images / BASE)


def test_a_snapshot_that_is_just_being_mounted_is_copied(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.create()
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    mounted = image.mounted

    def clone_before(path: Path, place: Path, *, read_only: bool) -> AbstractContextManager[None]:
        pool.driver.clone(SNAPSHOT, BASE, read_only=True)
        return mounted(path, place, read_only=read_only)

    monkeypatch.setattr(image, "mounted", clone_before)
    pool.driver.attach(SNAPSHOT, read_only=True)
    assert not (pool.images / SNAPSHOT).samefile(pool.images / BASE)


def test_a_snapshot_is_not_mounted_that_cannot_have_an_image_of_its_own(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.create()
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    pool.driver.clone(SNAPSHOT, BASE, read_only=True)
    monkeypatch.setattr(fs, "reflink", _fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        pool.driver.attach(SNAPSHOT, read_only=True)
    assert (pool.images / SNAPSHOT).samefile(pool.images / BASE)
    assert set(os.listdir(pool.images)) == {TREE, SNAPSHOT, BASE}


def test_without_reflinks_a_snapshot_of_a_snapshot_is_a_copy(plain: Pool) -> None:
    plain.create()
    plain.driver.clone(TREE, SNAPSHOT, read_only=True)
    plain.driver.clone(SNAPSHOT, BASE, read_only=True)
    assert not (plain.images / SNAPSHOT).samefile(plain.images / BASE)


def test_a_name_that_cannot_be_made_durable_is_taken_back(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.create()
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    monkeypatch.setattr(fs, "sync_directory", _fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        pool.driver.clone(SNAPSHOT, BASE, read_only=True)
    assert set(os.listdir(pool.images)) == {TREE, SNAPSHOT}


@pytest.mark.parametrize("function", ["reflink", "rename_durably"])
def test_a_clone_that_fails_leaves_nothing(pool: Pool, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.create()
    monkeypatch.setattr(fs, function, _fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        pool.driver.clone(TREE, COPY, read_only=False)
    assert os.listdir(pool.images) == [TREE]


# attach, detach


def test_nothing_stays_mounted_but_the_directory(pool: Pool) -> None:
    path = pool.create()
    pool.attach()
    device = loop.attached(path)
    assert device is not None
    shown = [entry for entry in mount.table() if entry.device == device.numbers]
    assert [(entry.mount_point, entry.root) for entry in shown] == [(str(pool.mounts / TREE), "/data")]
    assert os.listdir(pool.mounts) == [TREE]


def test_a_tree_that_is_still_mounted_elsewhere_gets_no_second_device(pool: Pool, tmp_path: Path) -> None:
    path = pool.create()
    with _holder(pool.attach(), tmp_path / "other"):
        before = loop.attached(path)
        pool.driver.detach(TREE)
        pool.attach()
        assert loop.attached(path) == before
        assert list(loops_under(pool.root).values()) == [str(path)]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_tree_mounted_elsewhere_can_be_attached_the_other_way(pool: Pool, tmp_path: Path, *, read_only: bool) -> None:
    pool.create()
    with _holder(pool.driver.attach(TREE, read_only=not read_only), tmp_path / "other"):
        pool.driver.detach(TREE)
        path = pool.driver.attach(TREE, read_only=read_only)
        assert bool(os.statvfs(path).f_flag & os.ST_RDONLY) == read_only


def test_a_whole_file_system_at_the_mount_point_is_replaced_by_its_directory(pool: Pool) -> None:
    path = pool.create()
    (pool.mounts / TREE).mkdir()
    with loop.held(path) as device:
        mount.mount(device.path, pool.mounts / TREE, fs_type="ext4")
    assert os.listdir(pool.attach()) == []


def test_an_attach_beside_a_busy_foreign_mount_is_refused(pool: Pool) -> None:
    pool.create()
    place = pool.mounts / TREE
    place.mkdir()
    mount.mount("none", place, fs_type="tmpfs", data="size=64k")
    with (place / "file").open("wb"), pytest.raises(InUse, match=r"cannot attach tree v1\.1"):
        pool.attach()


def test_an_image_without_a_file_system_is_not_attached_and_leaves_nothing(pool: Pool) -> None:
    pool.create().write_bytes(bytes(MIB))
    with pytest.raises(OSError, match="holds neither ext4 nor xfs"):
        pool.attach()
    assert os.listdir(pool.mounts) == []
    assert loop.wait_cleared(pool.images / TREE, timeout_s=5)


@fs_types
def test_a_mount_that_the_kernel_refuses_leaves_nothing(pool: Pool, fs_type: str) -> None:
    with pool.create(fs_type).open("r+b") as file:
        file.truncate(64 * 1024)
    with pytest.raises(OSError, match=r"."):
        pool.attach()
    assert os.listdir(pool.mounts) == []
    assert loop.wait_cleared(pool.images / TREE, timeout_s=5)


def test_the_loop_device_has_gone_when_detach_returns(pool: Pool) -> None:
    path = pool.create()
    for _ in range(20):
        pool.attach()
        pool.driver.detach(TREE)
        assert loop.attached(path) is None


def test_detach_does_not_wait_for_others_that_have_the_tree_mounted(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pool.create()
    monkeypatch.setattr(loop, "wait_cleared", _fail_with(errno.ETIMEDOUT))
    with _holder(pool.attach(), tmp_path / "other"):
        pool.driver.detach(TREE)
        assert loop.attached(path) is not None


def test_detach_makes_what_was_written_durable_for_others_too(pool: Pool, tmp_path: Path) -> None:
    path = pool.create()
    content = os.urandom(4 * MIB)
    with _holder(pool.attach(), tmp_path / "other"):
        (pool.attach() / "file").write_bytes(content)
        pool.driver.detach(TREE)
        subprocess.run(["cp", "--reflink=always", path, pool.images / COPY], check=True)
        assert pool.read(COPY) == content


def test_mounts_below_a_link_are_found_again(pool: Pool, tmp_path: Path) -> None:
    pool.create()
    (tmp_path / "link").symlink_to(pool.mounts)
    driver = Loop(pool.root, tmp_path / "link")
    pool.attach()
    assert driver.attach(TREE, read_only=False) == pool.mounts / TREE
    assert sum(1 for entry in mount.table() if entry.mount_point == str(pool.mounts / TREE)) == 1


# users, remove


def test_remove_says_that_the_tree_is_attached(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "wait_cleared", _fail_with(errno.ETIMEDOUT))
    pool.create()
    pool.attach()
    with pytest.raises(InUse, match=r"cannot remove tree v1\.1: it is attached"):
        pool.driver.remove(TREE)


def test_a_loop_device_without_a_mount_keeps_its_image(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.loop.CLEAR_TIMEOUT_S", 0.01)
    path = pool.create()
    with loop.held(path), pytest.raises(InUse, match=r"cannot remove tree v1\.1: its loop device is in use"):
        pool.driver.remove(TREE)
    pool.driver.remove(TREE)
    assert not path.exists()


def test_what_is_mounted_aside_for_a_moment_is_no_user(pool: Pool) -> None:
    pool.create()
    with pool.driver._images.staged(TREE):
        assert pool.driver.users(TREE) == []


def test_the_mount_of_another_directory_of_the_file_system_is_a_user(pool: Pool, tmp_path: Path) -> None:
    path = pool.create()
    (tmp_path / "whole").mkdir()
    with loop.held(path) as device:
        mount.mount(device.path, tmp_path / "whole", fs_type="ext4")
    assert [user.mount_point for user in pool.driver.users(TREE)] == [str(tmp_path / "whole")]


# resize


@fs_types
@pytest.mark.parametrize("host", ["btrfs", "xfs", "ext4"])
def test_a_tree_at_rest_grows(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    path = pool.create(fs_type)
    pool.write(b"content")
    pool.driver.resize(TREE, GIB)
    assert path.stat().st_size == GIB
    assert fs.capacity(pool.attach())[0] > GIB * 85 // 100
    assert (pool.attach() / "file").read_bytes() == b"content"


def test_an_attached_xfs_grows(pool: Pool) -> None:
    pool.create("xfs")
    path = pool.attach()
    with (path / "file").open("wb") as file:
        pool.driver.resize(TREE, GIB)
        file.write(b"content")
    assert fs.capacity(path)[0] > GIB * 85 // 100


def test_an_xfs_that_is_mounted_only_elsewhere_grows(pool: Pool, tmp_path: Path) -> None:
    pool.create("xfs")
    with _holder(pool.attach(), tmp_path / "other"):
        pool.driver.detach(TREE)
        pool.driver.resize(TREE, GIB)
    assert fs.capacity(pool.attach())[0] > GIB * 85 // 100


def test_an_attached_ext4_without_the_capability_is_refused_before_anything_changes(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "may_grow_mounted_ext4", lambda: False)
    path = pool.create()
    pool.attach()
    with pytest.raises(Unsupported, match="unmount the volume first, or give the daemon CAP_SYS_RESOURCE"):
        pool.driver.resize(TREE, GIB)
    assert path.stat().st_size == SIZE


def test_an_attached_ext4_that_has_the_size_is_no_error(pool: Pool) -> None:
    pool.create()
    pool.attach()
    pool.driver.resize(TREE, SIZE)


def test_an_attached_ext4_grows_by_the_kernel(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pool.create()
    pool.attach()
    device = loop.attached(path)
    assert device is not None
    tools: list[Sequence[str]] = []
    monkeypatch.setattr(image, "may_grow_mounted_ext4", lambda: True)
    monkeypatch.setattr(run, "run", lambda argv, **_: tools.append(argv))
    pool.driver.resize(TREE, GIB)
    assert tools == [["resize2fs", device.path]]
    assert Path(f"/sys/block/loop{device.number}/size").read_text() == f"{GIB // 512}\n"


def test_the_capability_is_read_from_the_kernel() -> None:
    effective = int(run.run(["grep", "CapEff", "/proc/self/status"]).split()[1], 16)
    assert image.may_grow_mounted_ext4() == bool(effective & 1 << 24)


@fs_types
@pytest.mark.parametrize("host", ["btrfs", "ext4"])
def test_a_growth_that_a_crash_cut_is_ended_by_the_next_call(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    path = pool.create(fs_type)
    image.lengthen(path, GIB, thick=False)
    pool.driver.resize(TREE, GIB)
    assert fs.capacity(pool.attach())[0] > GIB * 85 // 100


def test_a_growth_of_an_attached_tree_that_a_crash_cut_is_ended_by_the_next_call(pool: Pool) -> None:
    path = pool.create("xfs")
    pool.attach()
    image.lengthen(path, GIB, thick=False)
    pool.driver.resize(TREE, GIB)
    assert fs.capacity(pool.mounts / TREE)[0] > GIB * 85 // 100


@fs_types
def test_a_clone_with_a_journal_to_replay_grows(pool: Pool, fs_type: str) -> None:
    pool.create(fs_type)
    (pool.attach() / "file").write_bytes(b"content")
    pool.driver.clone(TREE, COPY, read_only=False)
    pool.driver.resize(COPY, GIB)
    assert pool.read(COPY) == b"content"


def test_where_reflinks_are_an_ext4_at_rest_is_replaced_whole(pool: Pool) -> None:
    path = pool.create()
    before = path.stat().st_ino
    pool.driver.resize(TREE, GIB)
    assert path.stat().st_ino != before
    assert os.listdir(pool.images) == [TREE]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_grown_tree_keeps_its_mode(pool: Pool, *, read_only: bool) -> None:
    pool.create()
    pool.driver.clone(TREE, COPY, read_only=read_only)
    before = (pool.images / COPY).stat().st_mode
    pool.driver.resize(COPY, GIB)
    assert (pool.images / COPY).stat().st_mode == before


def test_a_failed_growth_of_a_tree_at_rest_leaves_it_as_it_was(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pool.create()
    pool.write(b"content")
    monkeypatch.setattr(image, "grow_unmounted_ext4", _fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        pool.driver.resize(TREE, GIB)
    assert path.stat().st_size == SIZE
    assert pool.read(TREE) == b"content"
    assert os.listdir(pool.images) == [TREE]


@fs_types
@pytest.mark.parametrize("host", ["btrfs", "ext4"])
def test_a_thick_tree_stays_thick_when_it_grows(make_pool: MakePool, host: str, fs_type: str) -> None:
    pool = make_pool(host)
    path = pool.create(fs_type, thick=True)
    pool.driver.resize(TREE, 2 * SIZE)
    assert image.is_thick(path)
    assert _allocated(path) >= 2 * SIZE


@fs_types
def test_a_thick_tree_that_does_not_fit_does_not_grow(small: Pool, fs_type: str) -> None:
    path = small.create(fs_type, thick=True)
    with pytest.raises(Unusable, match=r"cannot resize tree v1\.1: it needs 7\d\d(\.\d)? MiB, the pool has"):
        small.driver.resize(TREE, GIB)
    assert path.stat().st_size == SIZE


@fs_types
def test_a_thick_tree_keeps_its_size_when_the_space_ends_meanwhile(
    small: Pool, fs_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small.create(fs_type, thick=True)
    monkeypatch.setattr(fs, "capacity", lambda _: (4 * GIB, 4 * GIB))
    with pytest.raises(OSError, match="No space left"):
        small.driver.resize(TREE, GIB)
    assert path.stat().st_size == SIZE
    assert os.listdir(small.images) == [TREE]


def test_a_smaller_size_is_refused_and_the_present_one_named(pool: Pool) -> None:
    pool.create()
    with pytest.raises(Invalid, match=r"cannot resize tree v1\.1 to 300 MiB: it has 320 MiB already") as caught:
        pool.driver.resize(TREE, 300 * MIB)
    assert caught.value.field == "size"


def test_a_size_above_the_maximum_is_refused_by_resize_too(pool: Pool) -> None:
    path = pool.create()
    with pytest.raises(Invalid, match="the largest volume of the loop driver"):
        pool.driver.resize(TREE, 16 << 40)
    assert path.stat().st_size == SIZE


def test_a_size_that_is_no_whole_block_is_rounded_up_and_may_be_repeated(pool: Pool) -> None:
    path = pool.create()
    pool.driver.resize(TREE, GIB + 1)
    pool.driver.resize(TREE, GIB + 1)
    assert path.stat().st_size == GIB + 4096


# usage, changes


@pytest.mark.parametrize("is_attached", [False, True])
def test_usage_is_what_the_image_occupies(pool: Pool, *, is_attached: bool) -> None:
    path = pool.create()
    if is_attached:
        pool.attach()
    usage = pool.driver.usage(TREE)
    assert (usage.used_bytes, usage.exclusive_bytes, usage.limit_bytes) == (_allocated(path), None, SIZE)


def test_changes_are_left_to_the_caller(pool: Pool) -> None:
    pool.create()
    pool.driver.clone(TREE, SNAPSHOT, read_only=True)
    assert pool.driver.changes(SNAPSHOT, TREE) is None


@pytest.mark.parametrize("verb", ["attach", "clone", "resize"])
def test_what_is_not_there_is_not_found(pool: Pool, verb: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "attach": lambda: pool.driver.attach(TREE, read_only=False),
        "clone": lambda: pool.driver.clone(TREE, COPY, read_only=False),
        "resize": lambda: pool.driver.resize(TREE, GIB),
    }
    with pytest.raises(NotFound, match=rf"cannot {verb} tree v1\.1: there is no such tree"):
        calls[verb]()
