"""The directory driver's own tricks; what all drivers must do is in tests/contract."""

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers import directory
from drivers.directory import Directory
from tests.likeness import describe
from tests.scratch import Scratch, unmount_under
from tests.test_kernel_tree import add_flags, bound
from tests.watchers import Enough, Watcher
from voldriverd.driver import Capability, Key, StreamFormat, TreeOptions, Usage
from voldriverd.errors import InUse, NotFound, Unsupported, Unusable
from voldriverd.kernel import fs, mount, tree, watch
from voldriverd.kernel.content import Content

pytestmark = pytest.mark.root

_VOLUME = Key("v1.1")
_CLONE = Key("s1")


@pytest.fixture(params=["btrfs", "ext4"])
def root(request: pytest.FixtureRequest, session_scratch: Scratch) -> Iterator[Path]:
    """Return the empty root of a pool."""
    path = session_scratch.shared(f"directory-own-{request.param}", request.param) / "pool"
    path.mkdir(0o700)
    yield path
    unmount_under(path)
    tree.vanish(path)


@pytest.fixture
def driver(root: Path, tmp_path: Path) -> Iterator[Directory]:
    """Return an open driver with one tree, v1.1, which holds some files."""
    (tmp_path / "mounts").mkdir()
    driver = Directory(root, tmp_path / "mounts")
    driver.open()
    driver.create(_VOLUME, TreeOptions())
    files = root / "trees" / "v1.1" / "files"
    (files / "inner").mkdir()
    for number in range(20):
        (files / "inner" / str(number)).write_bytes(b"content" * number)
    yield driver
    unmount_under(tmp_path)


def _names(root: Path) -> list[str]:
    return sorted(os.listdir(root / "trees"))


def test_it_promises_nothing(driver: Directory) -> None:
    assert driver.capabilities is Capability.NONE
    assert driver.options == {"uid", "gid", "mode"}
    assert driver.formats == (StreamFormat.TAR,)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (TreeOptions(size_bytes=1 << 30), "cannot honour size 1073741824: .*loop driver"),
        (TreeOptions(thick=True), "cannot honour thick: .*loop driver"),
        (TreeOptions(fs="xfs"), "cannot honour fs=xfs: .*loop driver"),
        (TreeOptions(nocow=True), "cannot honour nocow: .*btrfs driver"),
        (TreeOptions(compression="zstd"), "cannot honour compression: .*btrfs driver"),
    ],
)
def test_an_option_that_a_directory_has_not_is_refused_with_who_has_it(
    driver: Directory, options: TreeOptions, text: str
) -> None:
    with pytest.raises(Unsupported, match=text):
        driver.complete(options)


def test_the_other_options_are_completed_as_they_are(driver: Directory) -> None:
    options = TreeOptions(uid=1, gid=2, mode=0o700)
    assert driver.complete(options) == options


def test_a_pool_that_is_no_directory_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"cannot open pool .*absent: there is no such directory"):
        Directory(tmp_path / "absent", tmp_path).open()


def test_resize_is_refused(driver: Directory) -> None:
    with pytest.raises(Unsupported, match=r"cannot resize tree v1\.1"):
        driver.resize(_VOLUME, 1 << 30)


def test_resize_of_an_absent_tree_is_not_found(driver: Directory) -> None:
    with pytest.raises(NotFound, match=r"cannot resize tree v9\.9"):
        driver.resize(Key("v9.9"), 1 << 30)


def test_usage_is_not_known(driver: Directory) -> None:
    assert driver.usage(_VOLUME) == Usage(None, None, None)


def test_usage_of_an_absent_tree_is_not_found(driver: Directory) -> None:
    with pytest.raises(NotFound, match=r"v9\.9"):
        driver.usage(Key("v9.9"))


def test_it_has_no_better_way_than_walking_both_trees(driver: Directory) -> None:
    driver.clone(_VOLUME, _CLONE, read_only=True)
    assert driver.changes(_CLONE, _VOLUME) is None


@pytest.mark.parametrize("read_only", [False, True])
def test_a_clone_is_like_its_source(driver: Directory, root: Path, *, read_only: bool) -> None:
    before = describe(root / "trees" / "v1.1" / "files")
    driver.clone(_VOLUME, _CLONE, read_only=read_only)
    assert describe(driver.attach(_CLONE, read_only=True)) == before
    assert describe(root / "trees" / "v1.1" / "files") == before


def test_a_read_only_tree_shows_no_mark_and_is_never_attached_for_writing(driver: Directory) -> None:
    driver.clone(_VOLUME, _CLONE, read_only=True)
    path = driver.attach(_CLONE, read_only=False)
    assert os.listdir(path) == ["inner"]
    assert os.statvfs(path).f_flag & os.ST_RDONLY


@pytest.mark.parametrize("flag", [fs.FS_IMMUTABLE_FL, fs.FS_APPEND_FL])
def test_a_tree_whose_root_directory_is_protected_is_cloned_and_removed(
    driver: Directory, root: Path, flag: int
) -> None:
    add_flags(root / "trees" / "v1.1" / "files", flag)
    before = describe(root / "trees" / "v1.1" / "files")
    driver.clone(_VOLUME, _CLONE, read_only=False)
    assert describe(root / "trees" / "s1" / "files") == before
    driver.remove(_VOLUME)
    driver.remove(_CLONE)
    assert _names(root) == []


def _meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen while a file is copied."""
    copy = Content.copy

    def disturbed(self: Content, source_fd: int, target_fd: int, size_bytes: int) -> None:
        copy(self, source_fd, target_fd, size_bytes)
        happens()

    monkeypatch.setattr(Content, "copy", disturbed)


def test_a_source_that_changes_though_nobody_has_it_mounted_is_an_error(
    driver: Directory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _meanwhile(monkeypatch, (root / "trees" / "v1.1" / "files" / "inner" / "7").touch)
    with pytest.raises(OSError, match="changed") as caught:
        driver.clone(_VOLUME, _CLONE, read_only=True)
    assert caught.value.errno == errno.ESTALE
    assert _names(root) == ["v1.1"]


def test_a_mounted_source_may_change_while_it_is_cloned(driver: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = driver.attach(_VOLUME, read_only=False)
    _meanwhile(monkeypatch, (path / "inner" / "7").touch)
    driver.clone(_VOLUME, _CLONE, read_only=True)
    assert len(os.listdir(driver.attach(_CLONE, read_only=True) / "inner")) == 20


def test_a_source_mounted_elsewhere_may_change_while_it_is_cloned(
    driver: Directory, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    with bound(root / "trees" / "v1.1" / "files" / "inner", tmp_path / "elsewhere"):
        _meanwhile(monkeypatch, (tmp_path / "elsewhere" / "7").touch)
        driver.clone(_VOLUME, _CLONE, read_only=True)
    assert driver.trees() == {"v1.1", "s1"}


def test_a_full_disk_fails_the_clone_and_leaves_nothing(scratch: Scratch, tmp_path: Path) -> None:
    root = scratch.make("ext4", size_bytes=16 << 20)
    driver = Directory(root, tmp_path)
    driver.open()
    driver.create(_VOLUME, TreeOptions())
    for name in ("one", "two", "three"):
        (root / "trees" / "v1.1" / "files" / name).write_bytes(os.urandom(3 << 20))
    with pytest.raises(OSError, match=r"No space left on device: '\w+'") as caught:
        driver.clone(_VOLUME, _CLONE, read_only=True)
    assert caught.value.errno == errno.ENOSPC
    assert _names(root) == ["v1.1"]


def test_a_create_that_fails_leaves_nothing(driver: Directory, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, f"{path} {uid} {gid}")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(PermissionError):
        driver.create(Key("v2.1"), TreeOptions(uid=1))
    assert _names(root) == ["v1.1"]


def test_remove_refuses_a_tree_in_which_something_is_mounted(driver: Directory, root: Path, tmp_path: Path) -> None:
    inner = root / "trees" / "v1.1" / "files" / "inner"
    before = describe(root)
    (tmp_path / "kept").mkdir()
    with bound(tmp_path / "kept", inner), pytest.raises(InUse, match=r"cannot remove tree v1\.1: .*inner"):
        driver.remove(_VOLUME)
    assert describe(root) == before


def test_a_removal_that_fails_has_taken_the_tree_away_and_can_be_repeated(
    driver: Directory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", _fail)
        with pytest.raises(OSError, match="broken"):
            driver.remove(_VOLUME)
    assert driver.trees() == set()
    driver.remove(_VOLUME)
    assert _names(root) == []


def _fail(name: str, *, dir_fd: int) -> None:
    raise OSError(errno.EIO, f"broken {name} {dir_fd}")


def test_a_key_may_be_used_again_after_a_removal_that_failed(
    driver: Directory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", _fail)
        with pytest.raises(OSError, match="broken"):
            driver.remove(_VOLUME)
    driver.create(_VOLUME, TreeOptions())
    driver.remove(_VOLUME)
    assert _names(root) == []


def _leave(root: Path, *names: str) -> None:
    """Leave what a crash leaves."""
    for name in names:
        (root / "trees" / name / "files" / "inner").mkdir(parents=True)
        (root / "trees" / name / "files" / "inner" / "file").write_bytes(b"content")


def test_open_sweeps_what_a_crash_left(driver: Directory, root: Path) -> None:
    _leave(root, ".part-s1", ".gone-v7.1", ".old-1234")
    driver.open()
    assert _names(root) == ["v1.1"]


def test_what_open_has_not_the_time_for_is_swept_at_the_next_removal(
    driver: Directory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave(root, ".part-s1", ".gone-s1")
    monkeypatch.setattr(directory, "_SWEEP_TIMEOUT_S", -1.0)
    driver.open()
    assert len(_names(root)) == 3
    assert driver.trees() == {"v1.1"}
    driver.clone(_VOLUME, _CLONE, read_only=True)
    driver.remove(Key("v9.9"))
    assert _names(root) == ["s1", "v1.1"]


def test_what_cannot_be_swept_stops_neither_open_nor_removal(driver: Directory, root: Path, tmp_path: Path) -> None:
    _leave(root, ".part-s1")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"content")
    mount.bind(tmp_path / "kept", root / "trees" / ".part-s1" / "files" / "inner", read_only=False)
    driver.open()
    driver.remove(_VOLUME)
    assert driver.trees() == set()
    assert (tmp_path / "kept" / "file").read_bytes() == b"content"
    unmount_under(root)
    driver.open()
    assert _names(root) == []


def test_what_is_half_made_of_a_tree_is_no_tree(driver: Directory, root: Path) -> None:
    _leave(root, ".part-s1", ".gone-v7.1", ".old-1234")
    assert driver.trees() == {"v1.1"}


def test_a_clone_replaces_what_is_left_of_an_earlier_one(driver: Directory, root: Path) -> None:
    _leave(root, ".part-s1")
    driver.clone(_VOLUME, _CLONE, read_only=True)
    assert os.listdir(driver.attach(_CLONE, read_only=True)) == ["inner"]
    assert _names(root) == ["s1", "v1.1"]


def test_removing_a_key_removes_what_is_left_of_its_making(driver: Directory, root: Path) -> None:
    _leave(root, ".part-s1")
    driver.remove(_CLONE)
    assert _names(root) == ["v1.1"]


def test_the_end_of_what_is_not_wanted_any_more_does_not_wait_for_all_of_its_files(
    driver: Directory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (driver.attach(_VOLUME, read_only=False) / str(number)).write_bytes(b"content")
    driver.detach(_VOLUME)
    monkeypatch.setattr(directory, "_UNDO_TIMEOUT_S", -1.0)
    with pytest.raises(Enough), watch.watched(Watcher(ends_after=20)):
        driver.clone(_VOLUME, _CLONE, read_only=True)
    assert driver.trees() == {"v1.1"}
    assert _names(root) == [".part-s1", "v1.1"]
    driver.remove(_CLONE)
    assert _names(root) == ["v1.1"]


def test_trees_are_cloned_and_removed_side_by_side(driver: Directory, root: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_number in range(3):
                key = Key(f"s{number}.{round_number}")
                driver.clone(_VOLUME, key, read_only=True)
                driver.remove(key)
        except BaseException as err:  # noqa: BLE001 - all that happens in a thread is to be seen
            failures.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert _names(root) == ["v1.1"]


_WORKS = """
import sys
from pathlib import Path
from drivers.directory import Directory
from voldriverd.driver import Key

driver = Directory(Path(sys.argv[1]), Path(sys.argv[2]))
print(flush=True)
while True:
    driver.clone(Key("v1.1"), Key("s1"), read_only=True)
    driver.remove(Key("s1"))
"""


@pytest.mark.parametrize("delay_s", [0.01, 0.017, 0.023, 0.031, 0.04])
def test_a_tree_is_whole_or_absent_whenever_its_maker_is_killed(
    driver: Directory, root: Path, tmp_path: Path, delay_s: float
) -> None:
    before = describe(root / "trees" / "v1.1" / "files")
    argv = [sys.executable, "-c", _WORKS, str(root), str(tmp_path / "mounts")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay_s)
        process.kill()
    driver.open()
    for key in driver.trees():
        assert describe(root / "trees" / key / "files") == before
    driver.remove(_CLONE)
    assert _names(root) == ["v1.1"]


@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_a_new_tree_survives_power_loss_at_once_whatever_was_synced_before(
    scratch: Scratch, tmp_path: Path, fs_type: str
) -> None:
    place = scratch.make(fs_type)
    (place / "pool").mkdir()
    driver = Directory(place / "pool", tmp_path)
    driver.open()
    for key in ("v1.1", "v2.1", "v3.1"):
        driver.create(Key(key), TreeOptions(uid=5, mode=0o2750))
    driver.remove(Key("v2.1"))
    after = Directory(scratch.power_cut(place, of=scratch) / "pool", tmp_path)
    after.open()
    assert after.trees() == {"v1.1", "v3.1"}
    for key in after.trees():
        status = after.attach(key, read_only=True).stat()
        assert (status.st_uid, status.st_mode & 0o7777) == (5, 0o2750)
        after.detach(key)


@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_a_clone_survives_power_loss_with_everything(scratch: Scratch, tmp_path: Path, fs_type: str) -> None:
    place = scratch.make(fs_type)
    (place / "pool").mkdir()
    driver = Directory(place / "pool", tmp_path)
    driver.open()
    driver.create(_VOLUME, TreeOptions())
    files = place / "pool" / "trees" / "v1.1" / "files"
    for number in range(50):
        (files / str(number)).write_bytes(os.urandom(10_000))
        os.setxattr(files / str(number), "user.number", str(number).encode())
    before = describe(files)
    driver.clone(_VOLUME, _CLONE, read_only=True)
    after = scratch.power_cut(place, of=scratch)
    assert describe(after / "pool" / "trees" / "s1" / "files") == before


def test_an_attachment_shows_the_tree_itself(driver: Directory, root: Path, tmp_path: Path) -> None:
    path = driver.attach(_VOLUME, read_only=False)
    entry = mount.at(path)
    assert path == tmp_path / "mounts" / "v1.1"
    assert entry is not None
    assert (entry.device, entry.root) == mount.location(root / "trees" / "v1.1" / "files")


def test_a_received_tree_has_all_that_a_copy_has_but_access_times(driver: Directory, root: Path) -> None:
    files = root / "trees" / "v1.1" / "files"
    (files / "link").symlink_to("/etc/passwd")
    os.setxattr(files / "inner", "trusted.name", b"value")
    add_flags(files / "inner" / "7", fs.FS_IMMUTABLE_FL)
    os.link(files / "inner" / "8", files / "eight")
    assert _copy_by_tar(driver) == ()
    before, after = (describe(root / "trees" / key / "files") for key in (_VOLUME, _CLONE))
    for facts in (*before.values(), *after.values()):
        facts["times"] = str(facts["times"]).split(",")[1]
    assert after == before
    assert _names(root) == ["s1", "v1.1"]


def _copy_by_tar(driver: Directory) -> tuple[str, ...]:
    with driver.send(_VOLUME) as stream:
        return driver.receive(_CLONE, iter([stream]), TreeOptions(uid=7, mode=0o700))


def test_a_socket_is_told_of_when_a_tree_is_sent(driver: Directory, root: Path) -> None:
    os.mknod(root / "trees" / "v1.1" / "files" / "socket", stat.S_IFSOCK | 0o600)
    with driver.send(_VOLUME) as stream:
        assert stream.notes == ("tar cannot hold sockets: socket",)


@pytest.mark.parametrize("root", ["btrfs"], indirect=True)
def test_a_received_tree_gets_no_flags_from_the_pool(driver: Directory, root: Path) -> None:
    add_flags(root / "trees", fs.FS_NOCOW_FL)
    _copy_by_tar(driver)
    received = describe(root / "trees" / "s1" / "files")
    assert {facts["flags"] for facts in received.values()} == {"0x0"}
