"""kernel/copying: a copy has everything its source has, however hostile that is."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.likeness import data_mebibytes, describe
from tests.scratch import Scratch
from tests.test_kernel_tree import add_flags, bound, few_descriptors, nest
from voldriverd.kernel import attributes, copying, fs, mount, run, tree
from voldriverd.kernel.content import Content

pytestmark = pytest.mark.root

_CAPABILITY: Final = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw=ep as setcap(8) stores it (linux/capability.h, struct vfs_cap_data)."""
_HOUR_NS: Final = 3_600 * 10**9
"""An access time so far ahead is later than any change, so that reading a symlink does not move it (relatime)."""
_DATA: Final = os.urandom(300_000)
_NEEDS_REFLINKS: Final = pytest.mark.parametrize("place", ["btrfs", "xfs"], indirect=True)


@pytest.fixture(params=["btrfs", "ext4", "xfs"])
def place(request: pytest.FixtureRequest, session_scratch: Scratch) -> Iterator[Path]:
    """Return a directory on each kind of file system that holds an empty directory `source`."""
    path = session_scratch.shared(f"tree-{request.param}", request.param) / "copies"
    (path / "source").mkdir(parents=True)
    yield path
    tree.vanish(path)


def copy(place: Path, *, live: bool = False) -> Path:
    """Copy `source` to `target`."""
    copying.copy_tree(place / "source", place / "target", live=live)
    return place / "target"


def test_a_copy_has_everything(place: Path) -> None:
    _make_everything(place / "source")
    before = describe(place / "source")
    assert describe(copy(place)) == before
    assert describe(place / "source") == before
    assert sorted(os.listdir(place)) == ["source", "target"]


def test_tar_sees_no_difference(place: Path) -> None:
    _make_everything(place / "source")
    copy(place)
    options = ["--sort=name", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*", "--format=posix"]
    options += ["--pax-option=exthdr.name=%d/p/%f,delete=atime,delete=ctime", "--warning=no-file-ignored"]
    archives = {}
    for name in ("source", "target"):
        run.run(["tar", "-cf", str(place / f"{name}.tar"), *options, "-C", str(place / name), "."])
        archives[name] = (place / f"{name}.tar").read_bytes()
    assert archives["source"] == archives["target"]


def _make_everything(root: Path) -> None:
    """Make one of everything that a file system can hold."""
    (root / "directory" / "inner").mkdir(parents=True)
    (root / "closed").mkdir(0)
    _make_files(root)
    _make_special_files(root)
    _make_attributes(root)
    _make_odd_names(root)
    _make_links(root)
    _make_times(root)
    _make_flags(root)


def _make_files(root: Path) -> None:
    (root / "empty").write_bytes(b"")
    (root / "tiny").write_bytes(b"x")
    (root / "large").write_bytes(_DATA * 10)
    (root / "suid").write_bytes(b"#!/bin/sh\n")
    os.chown(root / "suid", 1234, 56)
    (root / "suid").chmod(0o6755)
    (root / "unreadable").write_bytes(b"secret")
    (root / "unreadable").chmod(0)
    with (root / "sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(1 << 20)
        file.write(_DATA)
        file.seek(3 << 20)
        file.write(_DATA)


def _make_special_files(root: Path) -> None:
    os.mkfifo(root / "fifo", 0o640)
    os.chown(root / "fifo", 7, 8)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 200_000))
    os.mknod(root / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    (root / "link").symlink_to("/etc/passwd")
    os.chown(root / "link", 7, 8, follow_symlinks=False)
    (root / "dangling").symlink_to(os.fsdecode(b"no\xffwhere\n"))


def _make_attributes(root: Path) -> None:
    os.setxattr(root / "tiny", "user.empty", b"")
    os.setxattr(root / "tiny", "user.binary", bytes(range(256)))
    os.setxattr(root / "tiny", os.fsdecode(b"user.\xff=\n"), b"odd name")
    os.setxattr(root / "large", "security.capability", _CAPABILITY)
    for name in ("directory", "link", "fifo", "null", "tiny"):
        os.setxattr(root / name, "trusted.overlay.opaque", b"y", follow_symlinks=False)
    run.run(["setfacl", "-m", "u:1000:rwx,g:50:r-x,m::r-x", str(root / "tiny"), str(root / "directory")])
    run.run(["setfacl", "-d", "-m", "u:1000:rwx,g:50:r-x", str(root / "directory"), str(root)])


def _make_odd_names(root: Path) -> None:
    base = os.fsencode(root)
    for name in (b"new\nline", b"\xff\xfe", b"-rf", b" ", b"n" * 255):
        Path(os.fsdecode(os.path.join(base, name))).write_bytes(name)
    os.mkdir(os.path.join(base, b"directory \xff\n"))


def _make_links(root: Path) -> None:
    os.link(root / "tiny", root / "tiny again")
    os.link(root / "tiny", root / "directory" / "inner" / "tiny")
    os.link(root / "link", root / "directory" / "link", follow_symlinks=False)
    os.link(root / "fifo", root / "directory" / "fifo")
    for name in ("immutable", "append"):
        (root / name).write_bytes(b"content")
        os.link(root / name, root / "directory" / name)


def _make_times(root: Path) -> None:
    old = [0, 1, 999_999_999, 1_234_567_890_123_456_789, 4_102_444_800_000_000_001]
    for name in ("link", "dangling"):
        os.utime(root / name, ns=(time.time_ns() + _HOUR_NS, 0), follow_symlinks=False)
    for number, name in enumerate(["tiny", "large", "fifo", "directory/inner", "directory"]):
        os.utime(root / name, ns=(old[number], old[-1 - number]))


def _make_flags(root: Path) -> None:
    add_flags(root / "suid", attributes.FS_NODUMP_FL | attributes.FS_NOATIME_FL)
    add_flags(root / "directory" / "inner", fs.FS_APPEND_FL)
    add_flags(root / "closed", fs.FS_IMMUTABLE_FL)
    add_flags(root / "immutable", fs.FS_IMMUTABLE_FL)
    add_flags(root / "append", fs.FS_APPEND_FL | attributes.FS_SYNC_FL)


def test_symlinks_keep_their_times(place: Path) -> None:
    (place / "source" / "link").symlink_to("nowhere")
    os.utime(place / "source" / "link", ns=(123_456_789, 987_654_321), follow_symlinks=False)
    status = (copy(place) / "link").lstat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (123_456_789, 987_654_321)


@pytest.mark.parametrize("place", ["btrfs"], indirect=True)
def test_nocow_and_compression_stay_with_their_files_and_directories(place: Path) -> None:
    source = place / "source"
    for name in ("cow", "nocow", "zstd", "zlib"):
        (source / name).mkdir()
    add_flags(source / "nocow", fs.FS_NOCOW_FL)
    for name in ("zstd", "zlib"):
        run.run(["btrfs", "property", "set", str(source / name), "compression", name])
    for name in ("nocow", "zstd", "zlib"):
        (source / name / "file").write_bytes(_DATA)
        (source / name / "plain").mkdir()
        os.rename(source / name / "file", source / "cow" / name)
    (source / "cow" / "plain").write_bytes(_DATA)
    os.rename(source / "cow" / "plain", source / "nocow" / "plain" / "file")
    before = describe(source)
    assert before[b"./cow/nocow"]["flags"] == hex(fs.FS_NOCOW_FL)
    assert describe(copy(place)) == before


@pytest.mark.parametrize("place", ["btrfs"], indirect=True)
def test_nothing_is_inherited_from_where_the_copy_is_made(place: Path) -> None:
    (place / "source" / "inner").mkdir()
    (place / "source" / "inner" / "file").write_bytes(_DATA)
    before = describe(place / "source")
    add_flags(place, fs.FS_NOCOW_FL)
    run.run(["setfacl", "-d", "-m", "u:1000:rwx", str(place)])
    assert describe(copy(place)) == before


@_NEEDS_REFLINKS
def test_a_copy_shares_its_data_where_the_file_system_can(place: Path) -> None:
    (place / "source" / "large").write_bytes(os.urandom(32 << 20))
    fs.sync_file_system(place)
    _, before = fs.capacity(place)
    copy(place)
    fs.sync_file_system(place)
    _, after = fs.capacity(place)
    assert before - after < 8 << 20


@pytest.mark.parametrize("place", ["ext4"], indirect=True)
def test_where_there_are_no_reflinks_that_is_tried_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _count(monkeypatch, fs, "reflink")
    _make_three_files(place / "source")
    before = describe(place / "source")
    assert describe(copy(place)) == before
    assert len(calls) == 1


@_NEEDS_REFLINKS
def test_a_file_that_cannot_be_shared_is_copied_and_the_next_one_shared(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _count(monkeypatch, fs, "reflink", fails=OSError(errno.EINVAL, "one has no checksums"))
    _make_three_files(place / "source")
    before = describe(place / "source")
    assert describe(copy(place)) == before
    assert len(calls) == 3


def test_without_copy_file_range_that_is_tried_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _count(monkeypatch, fs, "reflink", fails=OSError(errno.EXDEV, ""))
    calls = _count(monkeypatch, os, "copy_file_range", fails=OSError(errno.EXDEV, ""))
    _make_three_files(place / "source")
    before = describe(place / "source")
    assert describe(copy(place)) == before
    assert len(calls) == 1


@pytest.mark.parametrize(("module", "name"), [(fs, "reflink"), (os, "copy_file_range")])
def test_a_failing_disk_is_no_reason_to_try_another_way(
    place: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    _count(monkeypatch, fs, "reflink", fails=OSError(errno.EXDEV, ""))
    _count(monkeypatch, module, name, fails=OSError(errno.EIO, "broken"))
    _make_three_files(place / "source")
    with pytest.raises(OSError, match=r"broken: '\w+'") as caught:
        copy(place)
    assert caught.value.errno == errno.EIO


def _make_three_files(root: Path) -> None:
    for name in ("one", "two", "three"):
        with (root / name).open("wb") as file:
            file.write(_DATA)
            file.truncate(1 << 20)
            file.seek(2 << 20)
            file.write(_DATA)
            file.truncate(4 << 20)


def _count(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, *, fails: OSError | None = None
) -> list[tuple[object, ...]]:
    """Count the calls of a function, and let all of them fail if an error is given."""
    calls: list[tuple[object, ...]] = []
    call: Callable[..., object] = getattr(module, name)

    def counted(*args: object) -> object:
        calls.append(args)
        if fails is not None:
            raise fails
        return call(*args)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_holes_stay_holes_without_reflinks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _count(monkeypatch, fs, "reflink", fails=OSError(errno.EXDEV, ""))
    with (place / "source" / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(_DATA)
    (target,) = copy(place).iterdir()
    assert data_mebibytes(target) == data_mebibytes(place / "source" / "sparse")
    assert target.stat().st_blocks * 512 < 4 << 20


def test_a_file_with_names_outside_of_the_tree_keeps_those_inside(place: Path) -> None:
    for path in ("source/one", "source/inner/two", "outside"):
        (place / path).parent.mkdir(exist_ok=True)
    (place / "source" / "one").write_bytes(b"content")
    os.link(place / "source" / "one", place / "source" / "inner" / "two")
    os.link(place / "source" / "one", place / "outside")
    add_flags(place / "outside", fs.FS_IMMUTABLE_FL)
    before = describe(place / "source")
    target = copy(place)
    assert describe(target) == before
    assert (target / "one").stat().st_nlink == 2


def test_a_copied_file_never_has_more_names_than_its_source(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "source" / "0").write_bytes(b"content")
    for number in range(1, 20):
        os.link(place / "source" / "0", place / "source" / str(number))
    link, counts = os.link, []

    def counting_link(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
        counts.append(os.stat(target, dir_fd=dst_dir_fd).st_nlink)

    monkeypatch.setattr(os, "link", counting_link)
    target = copy(place)
    assert max(counts) == 20
    assert (target / "7").stat().st_nlink == 20


def test_an_existing_target_is_left_alone(place: Path) -> None:
    (place / "target").mkdir()
    (place / "target" / "file").write_bytes(b"content")
    with pytest.raises(FileExistsError):
        copy(place)
    assert (place / "target" / "file").read_bytes() == b"content"


def test_an_absent_source_is_an_error(place: Path) -> None:
    (place / "source").rmdir()
    with pytest.raises(FileNotFoundError):
        copy(place)


def test_a_mount_in_the_source_is_refused_by_its_path(place: Path) -> None:
    (place / "source" / "inner" / "mounted").mkdir(parents=True)
    (place / "other").mkdir()
    with (
        bound(place / "other", place / "source" / "inner" / "mounted"),
        pytest.raises(OSError, match=r"mounted.*inner/mounted") as caught,
    ):
        copy(place)
    assert caught.value.errno == errno.EBUSY


@pytest.mark.parametrize("place", ["btrfs"], indirect=True)
def test_a_nested_subvolume_becomes_a_directory_with_its_content(place: Path) -> None:
    run.run(["btrfs", "subvolume", "create", str(place / "source" / "sub")])
    (place / "source" / "sub" / "file").write_bytes(_DATA)
    run.run(["btrfs", "property", "set", str(place / "source" / "sub"), "ro", "true"])
    before = describe(place / "source")
    target = copy(place)
    assert describe(target) == before
    assert (target / "sub").stat().st_dev == place.stat().st_dev


@pytest.mark.parametrize("place", ["btrfs"], indirect=True)
def test_the_placeholder_of_a_nested_subvolume_becomes_an_empty_directory(place: Path) -> None:
    for path in ("sub", "sub/nested"):
        run.run(["btrfs", "subvolume", "create", str(place / path)])
    run.run(["btrfs", "subvolume", "snapshot", str(place / "sub"), str(place / "source" / "snapshot")])
    assert os.listdir(copy(place) / "snapshot" / "nested") == []


def _meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen while the content of each file is copied."""
    copy_content = Content.copy

    def disturbed(self: Content, source_fd: int, target_fd: int, size_bytes: int) -> None:
        copy_content(self, source_fd, target_fd, size_bytes)
        happens()

    monkeypatch.setattr(Content, "copy", disturbed)


def test_a_file_that_changes_meanwhile_is_an_error_that_names_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place / "source" / "file"
    file.write_bytes(b"old")
    _meanwhile(monkeypatch, lambda: os.truncate(file, 1))
    with pytest.raises(OSError, match=r"changed.*file") as caught:
        copy(place)
    assert caught.value.errno == errno.ESTALE


def test_a_file_that_changes_meanwhile_is_copied_from_a_live_tree(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place / "source" / "file"
    file.write_bytes(b"old")
    _meanwhile(monkeypatch, lambda: os.truncate(file, 1))
    assert (copy(place, live=True) / "file").read_bytes() == b"old"


def test_a_directory_that_changes_meanwhile_is_an_error_that_names_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "source" / "inner").mkdir()
    (place / "source" / "inner" / "file").write_bytes(b"content")
    _meanwhile(monkeypatch, (place / "source" / "inner" / "new").mkdir)
    with pytest.raises(OSError, match=r"changed.*inner") as caught:
        copy(place)
    assert caught.value.errno == errno.ESTALE


def _vanishing(monkeypatch: pytest.MonkeyPatch, victim: Path) -> None:
    """Let a file or empty directory vanish between its listing and its turn."""
    open_at = tree.open_at

    def vanishing(dir_fd: int, name: str, flags: int) -> int:
        if name == victim.name and victim.exists():
            victim.rmdir() if victim.is_dir() else victim.unlink()
        return open_at(dir_fd, name, flags)

    monkeypatch.setattr(tree, "open_at", vanishing)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_vanishes_meanwhile_is_an_error_that_names_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    make(place / "source" / "victim")
    _vanishing(monkeypatch, place / "source" / "victim")
    with pytest.raises(FileNotFoundError, match="victim"):
        copy(place)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_vanishes_meanwhile_from_a_live_tree_is_left_out(
    place: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    make(place / "source" / "victim")
    (place / "source" / "kept").write_bytes(b"content")
    _vanishing(monkeypatch, place / "source" / "victim")
    assert os.listdir(copy(place, live=True)) == ["kept"]


def _replacing(monkeypatch: pytest.MonkeyPatch, victim: Path, make: Callable[[Path], object]) -> None:
    """Let something else take the place of a name between its listing and its turn."""
    open_at = tree.open_at
    done: list[str] = []

    def replacing(dir_fd: int, name: str, flags: int) -> int:
        if name == victim.name and not done:
            done.append(name)
            victim.rmdir() if victim.is_dir() else victim.unlink()
            make(victim)
        return open_at(dir_fd, name, flags)

    monkeypatch.setattr(tree, "open_at", replacing)


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("."), os.mkfifo])
def test_a_directory_whose_place_is_taken_meanwhile_is_left_out_of_a_live_copy(
    place: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    (place / "source" / "victim").mkdir()
    (place / "source" / "kept").write_bytes(b"content")
    _replacing(monkeypatch, place / "source" / "victim", make)
    assert os.listdir(copy(place, live=True)) == ["kept"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_live_copy_has_what_has_taken_the_place_of_a_file(
    place: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    (place / "source" / "victim").write_bytes(b"content")
    _replacing(monkeypatch, place / "source" / "victim", make)
    assert not (copy(place, live=True) / "victim").is_file()


@pytest.mark.parametrize("place", ["ext4"], indirect=True)
@pytest.mark.parametrize("names", [1, 2])
def test_a_live_copy_takes_no_file_for_another_that_had_its_inode(
    place: Path, monkeypatch: pytest.MonkeyPatch, names: int
) -> None:
    inner = place / "source" / "x" / "y"
    inner.mkdir(parents=True)
    (place / "source" / "old").write_text("old")
    (inner / "two").hardlink_to(place / "source" / "old")
    (inner.parent / "trigger").write_text("trigger")
    freed = (inner / "two").stat().st_ino
    copy_content = Content.copy

    def replace_old(self: Content, source_fd: int, target_fd: int, size_bytes: int) -> None:
        copy_content(self, source_fd, target_fd, size_bytes)
        if size_bytes == len("trigger"):
            (place / "source" / "old").unlink()
            (inner / "two").unlink()
            late = inner / "late"
            late.write_text("late")
            for number in range(1_000):
                if late.stat().st_ino == freed:
                    break
                late.rename(place / str(number))
                late.write_text("late")
            assert late.stat().st_ino == freed, "the test has shown nothing"
            for number in range(1, names):
                (inner / f"late{number}").hardlink_to(late)

    monkeypatch.setattr(Content, "copy", replace_old)
    target = copy(place, live=True)
    assert (target / "old").read_text() == "old"
    made = [path.stat() for path in sorted((target / "x" / "y").iterdir())]
    assert (target / "x" / "y" / "late").read_text() == "late"
    assert [(each.st_ino, each.st_nlink) for each in made] == names * [(made[0].st_ino, names)]
    assert (target / "old").stat().st_nlink == 1
    assert not list(target.parent.glob(".target*"))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_file_whose_place_is_taken_meanwhile_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    (place / "source" / "victim").write_bytes(b"content")
    _replacing(monkeypatch, place / "source" / "victim", make)
    with pytest.raises(OSError, match="changed") as caught:
        copy(place)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("has_ranges", [False, True])
def test_a_file_that_is_cut_off_before_it_is_read_has_zeros_instead(
    place: Path, monkeypatch: pytest.MonkeyPatch, *, has_ranges: bool
) -> None:
    source = place / "source" / "file"
    source.write_bytes(_DATA)
    _count(monkeypatch, fs, "reflink", fails=OSError(errno.EXDEV, ""))
    if not has_ranges:
        _count(monkeypatch, os, "copy_file_range", fails=OSError(errno.EXDEV, ""))
    name = "copy_file_range" if has_ranges else "sendfile"
    call: Callable[..., int] = getattr(os, name)

    def cutting(*args: int) -> int:
        os.truncate(source, 10_000)
        return call(*args)

    monkeypatch.setattr(os, name, cutting)
    assert (copy(place, live=True) / "file").read_bytes() == _DATA[:10_000] + bytes(len(_DATA) - 10_000)


def test_a_file_system_without_extended_attributes_has_none() -> None:
    assert attributes.read_xattrs("/proc/self/status") == []


def test_an_extended_attribute_that_vanishes_meanwhile_is_left_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "source" / "file").write_bytes(b"content")
    os.setxattr(place / "source" / "file", "user.kept", b"value")
    listxattr = os.listxattr
    monkeypatch.setattr(os, "listxattr", lambda where: [*listxattr(where), "user.gone"])
    assert listxattr(copy(place) / "file") == ["user.kept"]


def test_a_live_copy_never_follows_a_symlink_that_takes_a_directorys_place(place: Path) -> None:
    (place / "outside").mkdir()
    (place / "outside" / "secret").write_bytes(b"secret")
    (place / "source" / "one").mkdir()
    (place / "source" / "other").symlink_to("../outside")
    for found in _copies_under_attack(place):
        assert not any(path.endswith(b"/secret") for path in found)


def test_a_live_copy_never_opens_a_fifo_that_takes_a_files_place(place: Path) -> None:
    (place / "source" / "one").write_bytes(b"content")
    os.mkfifo(place / "source" / "other")
    for found in _copies_under_attack(place):
        assert {b"."} <= found <= {b".", b"./one", b"./other", b"./aside"}


def _copies_under_attack(place: Path) -> Iterator[set[bytes]]:
    """Yield what copies hold that were made while `one` and `other` changed places again and again."""
    stop = threading.Event()
    attacker = threading.Thread(target=_swap, args=(place / "source", stop))
    attacker.start()
    try:
        for _ in range(50):
            try:
                copy(place, live=True)
            except OSError:  # a symlink where a directory was listed
                pass
            else:
                yield set(describe(place / "target"))
            finally:
                tree.vanish(place / "target")
                tree.vanish(place / ".target.links")
    finally:
        stop.set()
        attacker.join()


def _swap(root: Path, stop: threading.Event) -> None:
    one, other, aside = (str(root / name) for name in ("one", "other", "aside"))
    while not stop.is_set():
        os.rename(one, aside)
        os.rename(other, one)
        os.rename(aside, other)


def test_a_hundred_thousand_nested_directories_are_copied_and_removed(tmp_path: Path) -> None:
    mount.mount("tmpfs", tmp_path, fs_type="tmpfs", data="size=1m,nr_inodes=0")  # a third of the time on btrfs
    try:
        (tmp_path / "source").mkdir()
        nest(tmp_path / "source", 100_000)
        with few_descriptors(2 * tree._FDS_KEPT + 8):
            target = copy(tmp_path)
            assert _depth(target) == 100_000
            tree.vanish(target)
        assert os.listdir(tmp_path) == ["source"]
    finally:
        mount.unmount(tmp_path)


def _depth(root: Path) -> int:
    with tree.Cursor(root) as cursor:
        while os.listdir(cursor.fd):
            cursor.down("d")
        return cursor.depth


_NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in {b".", b".."}
)
_MODES = st.integers(min_value=0, max_value=0o7777)
_FILES = st.tuples(st.just("file"), _MODES, st.binary(max_size=10_000), st.integers(min_value=0, max_value=3))
_OTHERS = st.tuples(st.sampled_from(["link", "fifo", "socket", "device", "hard link"]), _MODES)
_TREES = st.recursive(
    st.dictionaries(_NAMES, _FILES | _OTHERS, max_size=5),
    lambda inner: st.dictionaries(_NAMES, _FILES | _OTHERS | inner, max_size=5),
    max_leaves=8,
)


@given(content=_TREES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_is_copied_with_all_it_has(place: Path, content: dict[bytes, object]) -> None:
    tree.vanish(place / "target")
    tree.vanish(place / "source")
    (place / "source").mkdir()
    _make(os.fsencode(place / "source"), content, [])
    before = describe(place / "source")
    assert describe(copy(place)) == before


def _make(directory: bytes, content: dict[bytes, object], files: list[bytes]) -> None:
    for name, what in content.items():
        path = os.path.join(directory, name)
        match what:
            case dict():
                os.mkdir(path)
                _make(path, what, files)
            case ("file", int(mode), bytes(data), int(holes)):
                with open(path, "wb") as file:
                    file.truncate(holes << 20)
                    file.seek(0, os.SEEK_END)
                    file.write(data)
                os.chmod(path, mode)
                files.append(path)
            case ("link", int(mode)):
                os.symlink(b"x" * (mode % 1_000 + 1), path)  # xfs: at most 1,024
                os.utime(path, ns=(time.time_ns() + _HOUR_NS, 0), follow_symlinks=False)
            case ("hard link", _) if files:
                os.link(files[0], path)
            case (kind, int(mode)):
                kinds = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}
                os.mknod(path, kinds.get(str(kind), stat.S_IFREG) | mode, mode)
    os.utime(directory, ns=(len(content), 10**18 + len(content)))
