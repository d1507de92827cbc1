"""The btrfs driver's own tricks; what all drivers must do is in tests/contract."""

import errno
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers import difference
from drivers.btrfs import Btrfs
from tests.contract import crash
from tests.scratch import Scratch, unmount_under
from voldriverd.driver import Change, ChangeKind, Key, TreeOptions
from voldriverd.engine.difference import compare
from voldriverd.errors import InUse, Invalid, NotFound, Unsupported, Unusable
from voldriverd.kernel import btrfs, fs, ioctl, mount, nested, pipe, qgroup, send

pytestmark = pytest.mark.root

_PLAIN: Final = TreeOptions()
_SIZED: Final = TreeOptions(size_bytes=64 << 20)
_numbers: Final = itertools.count()

Make = Callable[..., Btrfs]


@pytest.fixture
def make(session_scratch: Scratch, tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a new, open pool, on a file system of its own for each quota mode."""

    def make_pool(quota: str = "off") -> Btrfs:
        root = session_scratch.shared(f"own-{quota}", "btrfs") / f"pool{next(_numbers)}"
        root.mkdir(0o700)
        (tmp_path / "mounts").mkdir(exist_ok=True)
        driver = Btrfs(root, tmp_path / "mounts", quota=quota)
        driver.open()
        return driver

    yield make_pool
    unmount_under(tmp_path)


@pytest.fixture
def driver(make: Make) -> Btrfs:
    """Return an open pool without quotas."""
    return make()


def trees_of(driver: Btrfs) -> Path:
    return driver._trees


def path_of(driver: Btrfs, key: str) -> Path:
    return driver._trees / key


def make_subvolume(path: Path) -> Path:
    with btrfs.opened(path.parent) as fd:
        btrfs.create(fd, path.name)
    return path


def set_flag(path: Path, flag: int) -> None:
    with btrfs.opened(path) as fd:
        fs.set_flags(fd, fs.get_flags(fd) | flag)


# open


def test_a_pool_on_another_file_system_is_unusable_and_that_one_named(scratch: Scratch, tmp_path: Path) -> None:
    root = scratch.make("ext4", size_bytes=64 << 20)
    with pytest.raises(Unusable, match="it is on ext4, and the btrfs driver needs btrfs"):
        Btrfs(root, tmp_path).open()
    assert os.listdir(root) == ["lost+found"]


def test_open_sweeps_parts_with_what_is_nested_in_them(driver: Btrfs) -> None:
    part = make_subvolume(trees_of(driver) / ".part-v1.1")
    make_subvolume(part / "nested")
    (part / "file").write_bytes(b"content")
    driver.open()
    assert os.listdir(trees_of(driver)) == []


def test_open_leaves_other_names_alone(driver: Btrfs) -> None:
    make_subvolume(trees_of(driver) / "v1.1")
    make_subvolume(trees_of(driver) / ".snapshots")
    driver.open()
    assert set(os.listdir(trees_of(driver))) == {"v1.1", ".snapshots"}
    assert driver.trees() == {"v1.1"}


def test_only_root_can_look_at_the_trees(driver: Btrfs) -> None:
    assert trees_of(driver).stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("mode", ["simple", "full"])
def test_open_turns_the_configured_quotas_on(make: Make, mode: str) -> None:
    driver = make(mode)
    assert qgroup.mode(driver._file_system_id) == mode
    driver.open()


def test_quotas_of_another_mode_are_unusable(make: Make, tmp_path: Path) -> None:
    root = make("simple")._root
    with pytest.raises(Unusable, match="its quotas are simple, and full is configured"):
        Btrfs(root, tmp_path, quota="full").open()


def test_a_kernel_without_simple_quotas_is_unusable(
    scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(qgroup, "enable", refuse)
    with pytest.raises(Unusable, match=r"need Linux 6\.7\); set quota = \"off\""):
        Btrfs(scratch.make("btrfs"), tmp_path, quota="simple").open()


def test_open_sweeps_groups_of_trees_that_have_gone_and_no_others(make: Make) -> None:
    driver = make("simple")
    groups = Path(f"/sys/fs/btrfs/{driver._file_system_id}/qgroups")
    driver.create(Key("v1.1"), _SIZED)
    driver.create(Key("v2.1"), _SIZED)
    (path_of(driver, "v1.1") / "file").write_bytes(os.urandom(1 << 20))
    gone, kept = (_subvolume_id(driver, key) for key in ("v1.1", "v2.1"))
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    snapshot = _subvolume_id(driver, "s1")
    for key, subvolume_id in (("v1.1", gone), ("s1", snapshot)):
        driver.remove(Key(key))
        _wait_for_cleaner(driver, subvolume_id)
    assert (groups / f"0_{gone}").exists()
    driver.open()
    assert not (groups / f"0_{gone}").exists()
    assert (groups / f"0_{kept}").exists()


def _subvolume_id(driver: Btrfs, key: str) -> int:
    with btrfs.opened(path_of(driver, key)) as fd:
        return btrfs.subvolume_id(fd)


def _wait_for_cleaner(driver: Btrfs, subvolume_id: int) -> None:
    """Return when the kernel has given a removed subvolume's space back; each sync wakes it."""
    with btrfs.opened(trees_of(driver)) as fd:
        while btrfs.exists(fd, subvolume_id):
            subprocess.run(["btrfs", "filesystem", "sync", driver._root], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["btrfs", "filesystem", "sync", driver._root], check=True, stdout=subprocess.DEVNULL)


# complete


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (TreeOptions(thick=True), Unsupported, "thick: .*the loop driver does"),
        (TreeOptions(fs="ext4"), Unsupported, "fs=ext4: .*loop has"),
        (_SIZED, Unsupported, 'set quota = "simple" in the pool\'s section, or use the loop driver'),
        (TreeOptions(compression="lz4"), Invalid, "compression=lz4: btrfs has zstd, zlib, lzo"),
        (TreeOptions(nocow=True, compression="zstd"), Invalid, "nocow with compression"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(
    driver: Btrfs, options: TreeOptions, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        driver.complete(options)


def test_an_invalid_option_is_named(driver: Btrfs) -> None:
    with pytest.raises(Invalid) as caught:
        driver.complete(TreeOptions(compression="lz4"))
    assert caught.value.field == "compression"


# create


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_new_tree_has_its_mode_whatever_the_umask(driver: Btrfs, umask: int) -> None:
    before = os.umask(umask)
    try:
        driver.open()
        driver.create(Key("v1.1"), _PLAIN)
    finally:
        os.umask(before)
    assert path_of(driver, "v1.1").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("options", [_PLAIN, TreeOptions(uid=0, gid=0, mode=0o755), _SIZED])
def test_a_plain_tree_is_made_by_one_ioctl(make: Make, monkeypatch: pytest.MonkeyPatch, options: TreeOptions) -> None:
    driver = make("simple")
    requests = _requests(monkeypatch)
    driver.create(Key("v1.1"), options)
    assert requests == [btrfs.BTRFS_IOC_SUBVOL_CREATE_V2]


def _requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the number of each ioctl that changes something is added."""
    requests: list[int] = []
    original = ioctl.call
    reading = {btrfs.BTRFS_IOC_INO_LOOKUP, btrfs.BTRFS_IOC_TREE_SEARCH}

    def call(fd: int, request: int, argument: object = 0) -> int:
        if request not in reading:
            requests.append(request)
        return original(fd, request, argument)  # type: ignore[arg-type]  # whatever it was given

    monkeypatch.setattr(ioctl, "call", call)
    return requests


def test_nocow_is_set_on_the_tree_its_files_and_its_clones(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), TreeOptions(nocow=True))
    (path_of(driver, "v1.1") / "file").write_bytes(b"content")
    driver.clone(Key("v1.1"), Key("v2.1"), read_only=False)
    for path in (path_of(driver, "v1.1") / "file", path_of(driver, "v2.1") / "file"):
        with path.open("rb") as file:
            assert fs.get_flags(file.fileno()) & fs.FS_NOCOW_FL


@pytest.mark.parametrize("compression", ["zstd", "zlib", "lzo"])
def test_compression_is_set_on_the_tree_and_handed_down(driver: Btrfs, compression: str) -> None:
    driver.create(Key("v1.1"), TreeOptions(compression=compression))
    (path_of(driver, "v1.1") / "d").mkdir()
    assert os.getxattr(path_of(driver, "v1.1") / "d", "btrfs.compression") == compression.encode()


def test_a_create_that_fails_half_way_leaves_nothing(driver: Btrfs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(OSError, match="No space"):
        driver.create(Key("v1.1"), TreeOptions(compression="zstd"))
    assert os.listdir(trees_of(driver)) == []


# nested subvolumes


def _nest(driver: Btrfs, key: str) -> Path:
    """Make a tree with subvolumes in it as a container's root may leave them: deep, odd, read-only, immutable."""
    driver.create(Key(key), _PLAIN)
    root = path_of(driver, key)
    one = make_subvolume(root / "one")
    (one / "directory").mkdir()
    two = make_subvolume(one / "directory" / "two\n\udcff")
    three = make_subvolume(two / "three")
    for path in (root, one, two, three):
        (path / "file").write_bytes(path.name.encode(errors="surrogateescape"))
    with btrfs.opened(two) as two_fd, btrfs.opened(root) as root_fd:
        btrfs.snapshot(two_fd, root_fd, "frozen", read_only=True)
        _make_deep_subvolume(root_fd)
    set_flag(one / "directory", fs.FS_IMMUTABLE_FL)
    set_flag(three, fs.FS_APPEND_FL)
    os.utime(root, ns=(1, 2))
    return root


def _make_deep_subvolume(fd: int) -> None:
    """Make a subvolume whose path is longer than any call would take."""
    fd = os.dup(fd)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    btrfs.create(fd, "deep")
    os.close(fd)


def _nested_names(root: Path) -> set[bytes]:
    with btrfs.opened(root) as fd:
        return {inner.name for inner in btrfs.descendants(fd, btrfs.subvolume_id(fd))}


_NESTED: Final = {b"one", b"two\n\xff", b"three", b"frozen", b"deep"}


def _assert_whole(root: Path, *, read_only: bool) -> None:
    two = root / "one" / "directory" / "two\n\udcff"
    assert _nested_names(root) == _NESTED
    assert (root / "one" / "file").read_bytes() == b"one"
    assert (two / "file").read_bytes() == b"two\n\xff"
    assert (two / "three" / "file").read_bytes() == b"three"
    assert (root / "frozen" / "file").read_bytes() == b"two\n\xff"
    for path, is_read_only in ((root, read_only), (root / "frozen", True), (two, False)):
        with btrfs.opened(path) as fd:
            assert btrfs.is_read_only(fd) == is_read_only
    for path, flag in ((two.parent, fs.FS_IMMUTABLE_FL), (two / "three", fs.FS_APPEND_FL)):
        with btrfs.opened(path) as fd:
            assert fs.get_flags(fd) & flag
    assert root.stat().st_mtime_ns == 2


@pytest.mark.parametrize("read_only", [False, True])
def test_a_clone_takes_nested_subvolumes_along(driver: Btrfs, *, read_only: bool) -> None:
    root = _nest(driver, "v1.1")
    driver.clone(Key("v1.1"), Key("s1"), read_only=read_only)
    _assert_whole(path_of(driver, "s1"), read_only=read_only)
    _assert_whole(root, read_only=False)
    assert driver.trees() == {"v1.1", "s1"}


def test_a_clone_of_a_clone_takes_nested_subvolumes_along(driver: Btrfs) -> None:
    _nest(driver, "v1.1")
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    driver.remove(Key("v1.1"))
    driver.clone(Key("s1"), Key("v1.2"), read_only=False)
    _assert_whole(path_of(driver, "v1.2"), read_only=False)


def test_nested_subvolumes_of_a_clone_are_independent(driver: Btrfs) -> None:
    root = _nest(driver, "v1.1")
    driver.clone(Key("v1.1"), Key("v2.1"), read_only=False)
    (path_of(driver, "v2.1") / "one" / "file").write_bytes(b"other")
    assert (root / "one" / "file").read_bytes() == b"one"


@pytest.mark.parametrize("read_only", [False, True])
def test_removal_destroys_nested_subvolumes(driver: Btrfs, *, read_only: bool) -> None:
    _nest(driver, "v1.1")
    driver.clone(Key("v1.1"), Key("s1"), read_only=read_only)
    driver.remove(Key("s1"))
    assert os.listdir(trees_of(driver)) == ["v1.1"]
    driver.remove(Key("v1.1"))
    assert os.listdir(trees_of(driver)) == []


def test_a_nested_subvolume_that_is_mounted_is_a_user(driver: Btrfs, tmp_path: Path) -> None:
    root = _nest(driver, "v1.1")
    (tmp_path / "elsewhere").mkdir()
    mount.bind(root / "one", tmp_path / "elsewhere", read_only=False)
    assert [user.mount_point for user in driver.users(Key("v1.1"))] == [str(tmp_path / "elsewhere")]
    with pytest.raises(InUse):
        driver.remove(Key("v1.1"))
    _assert_whole(root, read_only=False)


def test_a_clone_with_nested_subvolumes_survives_power_loss(
    driver: Btrfs, scratch: Scratch, session_scratch: Scratch, tmp_path: Path
) -> None:
    _nest(driver, "v1.1")
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    place = session_scratch.shared("own-off", "btrfs")
    after = scratch.power_cut(place, of=session_scratch) / driver._root.relative_to(place)
    Btrfs(after, tmp_path).open()
    _assert_whole(after / "trees" / "s1", read_only=True)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_clone_with_nested_subvolumes_that_is_killed_is_whole_or_absent(driver: Btrfs, *, read_only: bool) -> None:
    _nest(driver, "v1.1")
    clone = partial(driver.clone, Key("v1.1"), Key("s1"), read_only=read_only)
    for step in range(crash.count(clone)):
        driver.remove(Key("s1"))
        crash.cut(clone, before=step)
        driver.open()
        assert set(os.listdir(trees_of(driver))) <= {"v1.1", "s1"}
        if "s1" in driver.trees():
            _assert_whole(path_of(driver, "s1"), read_only=read_only)


def test_a_removal_of_nested_subvolumes_that_is_killed_leaves_all_or_none(driver: Btrfs) -> None:
    _nest(driver, "v1.1")
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    for step in range(0, crash.count(partial(driver.remove, Key("s1"))), 2):
        driver.remove(Key("s1"))
        driver.clone(Key("v1.1"), Key("s1"), read_only=True)
        crash.cut(partial(driver.remove, Key("s1")), before=step)
        if "s1" in driver.trees():
            assert _nested_names(path_of(driver, "s1")) == _NESTED


def test_a_removal_that_was_killed_is_ended_by_the_next(driver: Btrfs) -> None:
    _nest(driver, "v1.1")
    os.rename(path_of(driver, "v1.1"), trees_of(driver) / ".part-v1.1")
    driver.remove(Key("v1.1"))
    assert os.listdir(trees_of(driver)) == []


def test_a_clone_that_fails_half_way_leaves_nothing(driver: Btrfs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    _nest(driver, "v1.1")
    monkeypatch.setattr(nested, "_put", refuse)
    with pytest.raises(OSError, match="No space"):
        driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    assert os.listdir(trees_of(driver)) == ["v1.1"]


# removal and clones that something stands in the way of


@pytest.mark.parametrize("flag", [fs.FS_IMMUTABLE_FL, fs.FS_APPEND_FL])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_tree_whose_root_directory_is_immutable_is_removed(driver: Btrfs, flag: int, *, read_only: bool) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    set_flag(path_of(driver, "v1.1"), flag)
    driver.clone(Key("v1.1"), Key("s1"), read_only=read_only)
    driver.remove(Key("s1"))
    driver.remove(Key("v1.1"))
    assert os.listdir(trees_of(driver)) == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_tree_with_nested_subvolumes_whose_root_directory_is_immutable_is_cloned_and_removed(
    driver: Btrfs, *, read_only: bool
) -> None:
    set_flag(_nest(driver, "v1.1"), fs.FS_IMMUTABLE_FL)
    driver.clone(Key("v1.1"), Key("s1"), read_only=read_only)
    _assert_whole(path_of(driver, "s1"), read_only=read_only)
    driver.remove(Key("s1"))
    driver.remove(Key("v1.1"))
    assert os.listdir(trees_of(driver)) == []


def test_a_tree_without_nested_subvolumes_is_removed_by_one_ioctl(
    driver: Btrfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    requests = _requests(monkeypatch)
    driver.remove(Key("v1.1"))
    assert requests == [btrfs.BTRFS_IOC_SNAP_DESTROY]


@pytest.fixture
def swapping(driver: Btrfs) -> Iterator[Btrfs]:
    """Return a pool with a tree in which a swap file is active."""
    driver.create(Key("v1.1"), TreeOptions(nocow=True))
    swap = path_of(driver, "v1.1") / "swap"
    with swap.open("wb") as file:
        fs.allocate(file.fileno(), 1 << 20)
    swap.chmod(0o600)
    subprocess.run(["mkswap", "-q", swap], check=True)
    subprocess.run(["swapon", swap], check=True)
    yield driver
    subprocess.run(["swapoff", swap], check=True)


def test_a_tree_with_an_active_swap_file_is_in_use(swapping: Btrfs) -> None:
    with pytest.raises(InUse, match=r"cannot clone tree v1\.1: a swap file in it is active"):
        swapping.clone(Key("v1.1"), Key("s1"), read_only=True)
    with pytest.raises(InUse, match=r"cannot remove tree v1\.1: .*a swap file in it is active"):
        swapping.remove(Key("v1.1"))
    assert os.listdir(trees_of(swapping)) == ["v1.1"]


def test_a_tree_that_is_being_sent_is_in_use(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    (path_of(driver, "v1.1") / "file").write_bytes(os.urandom(4 * pipe.BYTES))
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    with btrfs.opened(path_of(driver, "s1")) as fd, send.sending(fd, parent_id=0) as stream:
        assert stream.read(1)
        with pytest.raises(InUse, match="a send of it runs"):
            driver.remove(Key("s1"))
        with btrfs.opened(path_of(driver, "s1")) as again:
            assert btrfs.is_read_only(again)
    driver.remove(Key("s1"))


def test_what_is_no_subvolume_is_not_removed(driver: Btrfs) -> None:
    path_of(driver, "v1.1").mkdir()
    with pytest.raises(Unusable, match="no subvolume"):
        driver.remove(Key("v1.1"))
    with pytest.raises(NotFound):
        driver.attach(Key("v1.1"), read_only=False)


def test_a_mount_that_is_busy_for_a_moment_is_tried_again(driver: Btrfs, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.EBUSY, "busy")] * 2
    original = mount.unmount

    def unmount(target: Path) -> None:
        if failures:
            raise failures.pop()
        original(target)

    driver.create(Key("v1.1"), _PLAIN)
    path = driver.attach(Key("v1.1"), read_only=False)
    monkeypatch.setattr(mount, "unmount", unmount)
    driver.detach(Key("v1.1"))
    assert mount.at(path) is None


def test_a_mount_that_stays_busy_is_in_use(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    path = driver.attach(Key("v1.1"), read_only=False)
    (path / "inside").mkdir()
    mount.mount("none", path / "inside", fs_type="tmpfs", data="size=64k")
    with pytest.raises(InUse, match="something is mounted in it"):
        driver.detach(Key("v1.1"))


def test_a_busy_mount_names_who_has_what_open(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    path = driver.attach(Key("v1.1"), read_only=False)
    with (path / "file").open("w"), pytest.raises(InUse, match=rf"\(pid {os.getpid()}\) has {path}/file open"):
        driver.detach(Key("v1.1"))


# sizes and usage


def test_without_quotas_nothing_is_told(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    usage = driver.usage(Key("v1.1"))
    assert (usage.used_bytes, usage.exclusive_bytes, usage.limit_bytes) == (None, None, None)


def test_without_quotas_resize_names_the_line_to_set(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    with pytest.raises(Unsupported, match='set quota = "simple"'):
        driver.resize(Key("v1.1"), 1 << 30)


@pytest.mark.parametrize("mode", ["simple", "full"])
def test_a_limit_holds_from_the_first_write(make: Make, mode: str) -> None:
    driver = make(mode)
    driver.create(Key("v1.1"), TreeOptions(size_bytes=4 << 20))
    with pytest.raises(OSError, match="quota") as caught:
        (path_of(driver, "v1.1") / "file").write_bytes(os.urandom(5 << 20))
    assert caught.value.errno == errno.EDQUOT


@pytest.mark.parametrize("mode", ["simple", "full"])
def test_clones_carry_the_limit(make: Make, mode: str) -> None:
    driver = make(mode)
    driver.create(Key("v1.1"), _SIZED)
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    driver.clone(Key("s1"), Key("v1.2"), read_only=False)
    assert [driver.usage(Key(key)).limit_bytes for key in ("s1", "v1.2")] == [64 << 20, 64 << 20]


@pytest.mark.parametrize("mode", ["simple", "full"])
def test_a_clone_counts_also_what_was_still_dirty(make: Make, mode: str) -> None:
    driver = make(mode)
    driver.create(Key("v1.1"), _SIZED)
    (path_of(driver, "v1.1") / "file").write_bytes(os.urandom(8 << 20))
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    used = driver.usage(Key("s1")).used_bytes
    assert used is not None
    assert 8 << 20 <= used < 9 << 20


def test_with_simple_quotas_inheritance_adds_up_and_survives_power_loss(
    make: Make, scratch: Scratch, session_scratch: Scratch, tmp_path: Path
) -> None:
    driver = make("simple")
    driver.create(Key("v1.1"), _SIZED)
    (path_of(driver, "v1.1") / "one").write_bytes(os.urandom(4 << 20))
    driver.clone(Key("v1.1"), Key("v2.1"), read_only=False)
    (path_of(driver, "v2.1") / "two").write_bytes(os.urandom(4 << 20))
    driver.clone(Key("v2.1"), Key("s1"), read_only=True)
    driver.sync()
    btrfs_commit(driver)
    place = session_scratch.shared("own-simple", "btrfs")
    after = Btrfs(
        scratch.power_cut(place, of=session_scratch) / driver._root.relative_to(place), tmp_path, quota="simple"
    )
    after.open()
    for pool in (driver, after):
        used = pool.usage(Key("s1")).used_bytes
        assert used is not None
        assert 8 << 20 <= used < 9 << 20


def btrfs_commit(driver: Btrfs) -> None:
    with btrfs.opened(trees_of(driver)) as fd:
        btrfs.commit(fd, ".part-commit")


def test_full_quotas_tell_what_a_tree_has_alone(make: Make) -> None:
    driver = make("full")
    driver.create(Key("v1.1"), _SIZED)
    (path_of(driver, "v1.1") / "shared").write_bytes(os.urandom(4 << 20))
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    (path_of(driver, "v1.1") / "own").write_bytes(os.urandom(2 << 20))
    fs.sync_file_system(driver._root)
    usage = driver.usage(Key("v1.1"))
    assert usage.used_bytes is not None
    assert usage.exclusive_bytes is not None
    assert 6 << 20 <= usage.used_bytes < 7 << 20
    assert 2 << 20 <= usage.exclusive_bytes < 3 << 20


def test_resize_sees_what_was_written_a_moment_ago(make: Make) -> None:
    driver = make("simple")
    driver.create(Key("v1.1"), _SIZED)
    with (path_of(driver, "v1.1") / "file").open("wb") as file:
        for _ in range(3):  # the first fsync in a new subvolume commits everything, the next only their own log
            file.write(os.urandom(4 << 20))
            file.flush()
            os.fsync(file.fileno())
    with pytest.raises(Invalid, match="it is charged 12"):
        driver.resize(Key("v1.1"), 10 << 20)


def test_the_count_of_a_clone_stays_low_when_it_cannot_be_corrected(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    driver = make("simple")
    driver.create(Key("v1.1"), _SIZED)
    (path_of(driver, "v1.1") / "file").write_bytes(os.urandom(1 << 20))
    monkeypatch.setattr(qgroup, "set_inherited", refuse)
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    assert (path_of(driver, "s1") / "file").stat().st_size == 1 << 20


# changes


def _two_snapshots(driver: Btrfs, edit: Callable[[Path], object]) -> list[Change] | None:
    """Clone v1.1, edit it, clone it again and return what the driver says has changed."""
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    edit(path_of(driver, "v1.1"))
    driver.clone(Key("v1.1"), Key("s2"), read_only=True)
    found = driver.changes(Key("s1"), Key("s2"))
    return None if found is None else list(found)


def test_a_file_with_several_names_that_was_changed_must_be_searched_for(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    (path_of(driver, "v1.1") / "one").write_bytes(b"old")
    os.link(path_of(driver, "v1.1") / "one", path_of(driver, "v1.1") / "two")
    assert _two_snapshots(driver, lambda root: (root / "one").write_bytes(b"new")) is None


def test_several_names_are_no_hindrance_where_nothing_changed(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    (path_of(driver, "v1.1") / "one").write_bytes(b"old")
    found = _two_snapshots(driver, lambda root: os.link(root / "one", root / "two"))
    assert found == [Change("two", ChangeKind.ADDED)]


def test_changes_inside_nested_subvolumes_must_be_searched_for(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    assert _two_snapshots(driver, lambda root: make_subvolume(root / "nested")) is None


def test_changes_at_paths_that_are_too_long_must_be_searched_for(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)

    def dig(root: Path) -> None:
        fd = os.open(root, os.O_RDONLY)
        for _ in range(25):
            os.mkdir("d" * 200, dir_fd=fd)
            inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)

    assert _two_snapshots(driver, dig) is None


def test_changes_of_an_absent_tree_are_not_found(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    for pair in (("s1", "s9"), ("s9", "s1")):
        with pytest.raises(NotFound, match="cannot compare tree s9"):
            driver.changes(Key(pair[0]), Key(pair[1]))


def test_changes_of_a_writable_tree_are_an_error(driver: Btrfs) -> None:
    driver.create(Key("v1.1"), _PLAIN)
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    with pytest.raises(PermissionError):
        driver.changes(Key("s1"), Key("v1.1"))


def test_too_many_changes_are_refused_and_the_kernel_stops_sending(
    driver: Btrfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_many(root: Path) -> None:
        for number in range(3_000):
            (root / f"file{number}").touch()

    driver.create(Key("v1.1"), _PLAIN)
    monkeypatch.setattr(difference, "PATHS_MAX", 100)
    with pytest.raises(Unsupported, match="more than 100 paths differ"):
        _two_snapshots(driver, add_many)
    assert "btrfs-send" not in {thread.name for thread in threading.enumerate()}
    driver.remove(Key("s2"))


_names = st.sampled_from(["a", "b", "c"])
_paths = st.lists(_names, min_size=1, max_size=3).map(lambda names: Path(*names))
_edits = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _paths, st.binary(max_size=3)),
        st.tuples(st.just("mkdir"), _paths),
        st.tuples(st.just("remove"), _paths),
        st.tuples(st.just("rename"), _paths, _paths),
        st.tuples(st.just("symlink"), _paths, _names),
        st.tuples(st.just("chmod"), _paths, st.sampled_from([0o700, 0o755, 0o644])),
    ),
    max_size=12,
)


def _apply(root: Path, edits: list[tuple[object, ...]]) -> None:
    """Do what can be done of the edits."""
    for kind, path, *rest in edits:
        place = root / str(path)
        try:
            if kind == "write" and not place.is_symlink():
                place.write_bytes(bytes(rest[0]))  # type: ignore[call-overload]  # the strategy gives bytes
            elif kind == "mkdir":
                place.mkdir()
            elif kind == "remove":
                place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
            elif kind == "rename":
                place.rename(root / str(rest[0]))
            elif kind == "symlink":
                place.symlink_to(str(rest[0]))
            elif kind == "chmod" and not place.is_symlink():
                place.chmod(int(str(rest[0])))
        except OSError:  # no such file, not a directory, not empty: as it comes
            continue


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(before=_edits, after=_edits)
def test_changes_are_what_a_walk_finds(
    make: Make, before: list[tuple[object, ...]], after: list[tuple[object, ...]]
) -> None:
    driver = make()
    driver.create(Key("v1.1"), _PLAIN)
    _apply(path_of(driver, "v1.1"), before)
    found = _two_snapshots(driver, lambda root: _apply(root, after))
    assert found is not None
    walked = list(compare(path_of(driver, "s1"), path_of(driver, "s2")))
    assert set(walked) <= set(found)
    # Only the kernel knows of a file that was written or replaced and looks the same.
    assert all(change.kind is ChangeKind.CHANGED for change in set(found) - set(walked))
    assert found == sorted(found)


def test_the_writer_of_a_clone_is_stopped_by_nobody(driver: Btrfs) -> None:
    """A snapshot of much dirty data leaves the interpreter to the other threads."""
    driver.create(Key("v1.1"), _PLAIN)
    content = os.urandom(1 << 20)
    with (path_of(driver, "v1.1") / "file").open("wb") as file:
        for _ in range(64):
            file.write(content)
    ticks = [0]
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    before = ticks[0]
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    after = ticks[0]
    done.set()
    thread.join()
    assert after - before > 1_000
