"""The ioctls of btrfs: numbers as in the header, subvolumes, commits, quota groups, send streams."""

import os
import threading
from pathlib import Path
from typing import Final

import pytest

from tests.scratch import Scratch
from voldriverd.kernel import btrfs, fs, ioctl, qgroup, send

# As strace(1) and <linux/btrfs.h> have them on 64-bit: direction, size, magic 0x94, number.
_NUMBERS: Final = {
    btrfs.BTRFS_IOC_RESIZE: 0x50009403,
    btrfs.BTRFS_IOC_SYNC: 0x9408,
    btrfs.BTRFS_IOC_SNAP_DESTROY: 0x5000940F,
    btrfs.BTRFS_IOC_TREE_SEARCH: 0xD0009411,
    btrfs.BTRFS_IOC_INO_LOOKUP: 0xD0009412,
    btrfs.BTRFS_IOC_SNAP_CREATE_V2: 0x50009417,
    btrfs.BTRFS_IOC_SUBVOL_CREATE_V2: 0x50009418,
    btrfs.BTRFS_IOC_SUBVOL_GETFLAGS: 0x80089419,
    btrfs.BTRFS_IOC_SUBVOL_SETFLAGS: 0x4008941A,
    btrfs.BTRFS_IOC_FS_INFO: 0x8400941F,
    send.BTRFS_IOC_SEND: 0x40489426,
    qgroup.BTRFS_IOC_QUOTA_CTL: 0xC0109428,
    qgroup.BTRFS_IOC_QGROUP_CREATE: 0x4010942A,
    qgroup.BTRFS_IOC_QGROUP_LIMIT: 0x8030942B,
    qgroup.BTRFS_IOC_QUOTA_RESCAN_WAIT: 0x942E,
}


def test_requests_have_the_numbers_of_the_header() -> None:
    assert [hex(number) for number in _NUMBERS] == [hex(number) for number in _NUMBERS.values()]


@pytest.fixture
def place(session_scratch: Scratch, request: pytest.FixtureRequest) -> Path:
    """Return a new directory on btrfs."""
    name: str = request.node.name
    directory = session_scratch.shared("kernel-btrfs", "btrfs") / name
    directory.mkdir()
    return directory


def make(place: Path, name: str) -> Path:
    with btrfs.opened(place) as fd:
        btrfs.create(fd, name)
    return place / name


def snapshot(source: Path, name: str, *, read_only: bool) -> Path:
    with btrfs.opened(source) as fd, btrfs.opened(source.parent) as place:
        btrfs.snapshot(fd, place, name, read_only=read_only)
    return source.parent / name


def id_of(path: Path) -> int:
    with btrfs.opened(path) as fd:
        return btrfs.subvolume_id(fd)


@pytest.mark.root
def test_a_subvolume_has_the_inode_that_is_known_for_it(place: Path) -> None:
    assert make(place, "one").stat().st_ino == btrfs.BTRFS_FIRST_FREE_OBJECTID


@pytest.mark.root
def test_a_name_that_is_taken_is_an_error(place: Path) -> None:
    make(place, "one")
    with pytest.raises(FileExistsError):
        make(place, "one")
    with pytest.raises(FileExistsError):
        snapshot(place / "one", "one", read_only=True)


@pytest.mark.root
@pytest.mark.parametrize("read_only", [False, True])
def test_a_snapshot_has_its_flag_from_the_call_that_makes_it(place: Path, *, read_only: bool) -> None:
    (make(place, "one") / "file").write_bytes(b"content")
    copy = snapshot(place / "one", "copy", read_only=read_only)
    assert (copy / "file").read_bytes() == b"content"
    with btrfs.opened(copy) as fd:
        assert btrfs.is_read_only(fd) == read_only


@pytest.mark.root
def test_the_flag_can_be_changed(place: Path) -> None:
    copy = snapshot(make(place, "one"), "copy", read_only=True)
    with btrfs.opened(copy) as fd:
        btrfs.set_read_only(fd, read_only=False)
        (copy / "file").touch()
        btrfs.set_read_only(fd, read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        (copy / "more").touch()


@pytest.mark.root
def test_destroy_refuses_what_is_absent_or_holds_others(place: Path) -> None:
    make(make(place, "one"), "inner")
    with btrfs.opened(place) as fd:
        with pytest.raises(FileNotFoundError):
            btrfs.destroy(fd, "absent")
        with pytest.raises(OSError, match="not empty"):
            btrfs.destroy(fd, "one")
    with btrfs.opened(place / "one") as fd:
        btrfs.destroy(fd, "inner")
    with btrfs.opened(place) as fd:
        btrfs.destroy(fd, b"one")
    assert os.listdir(place) == []


@pytest.mark.root
def test_the_id_is_that_of_the_subvolume_that_holds_a_directory(place: Path) -> None:
    one, two = make(place, "one"), make(place, "two")
    (one / "directory").mkdir()
    assert id_of(one) == id_of(one / "directory") != id_of(two)
    with btrfs.opened(place) as fd:
        assert btrfs.exists(fd, id_of(one))
        assert not btrfs.exists(fd, 1 << 40)


@pytest.mark.root
def test_the_file_system_has_its_id_in_sysfs(place: Path) -> None:
    with btrfs.opened(place) as fd:
        assert Path(f"/sys/fs/btrfs/{btrfs.file_system_id(fd)}/devinfo").is_dir()


@pytest.mark.root
def test_children_are_found_however_many_there_are(place: Path) -> None:
    """More than one buffer of the search ioctl holds, each with the directory that it is in."""
    one = make(place, "one")
    (one / "directory").mkdir()
    names = {f"{number:03}".ljust(255, "x") for number in range(40)}
    for name in names:
        make(one / "directory", name)
    with btrfs.opened(one) as fd:
        found = btrfs.children(fd, id_of(one))
    assert {os.fsdecode(child.name) for child in found} == names
    assert {child.directory_inode for child in found} == {(one / "directory").stat().st_ino}
    assert {child.id for child in found} == {id_of(one / "directory" / name) for name in names}


@pytest.mark.root
def test_descendants_come_after_their_parents(place: Path) -> None:
    one = make(place, "one")
    make(make(make(one, "b"), "a"), "c")
    make(one, "z")
    with btrfs.opened(one) as fd:
        found = btrfs.descendants(fd, id_of(one))
    order = [id_of(one), *(nested.id for nested in found)]
    assert {nested.name for nested in found} == {b"a", b"b", b"c", b"z"}
    assert all(order.index(nested.parent_id) < order.index(nested.id) for nested in found)


@pytest.mark.root
def test_a_subvolume_without_others_inside_has_no_children(place: Path) -> None:
    one = make(place, "one")
    with btrfs.opened(one) as fd:
        assert btrfs.children(fd, id_of(one)) == []
        assert btrfs.descendants(fd, id_of(one)) == []


@pytest.mark.root
def test_a_directory_is_opened_by_tree_and_inode(place: Path) -> None:
    one = make(place, "one")
    (one / "directory" / "deep").mkdir(parents=True)
    with (
        btrfs.opened(place) as fd,
        btrfs.opened_inode(fd, id_of(one), (one / "directory").stat().st_ino) as inner,
        btrfs.opened_inode(fd, id_of(one)) as root,
    ):
        assert os.listdir(inner) == ["deep"]
        assert os.listdir(root) == ["directory"]
    with btrfs.opened(place) as fd, pytest.raises(OSError, match="Stale"), btrfs.opened_inode(fd, 1 << 40):
        pass


@pytest.mark.root
def test_a_link_is_not_opened(place: Path) -> None:
    make(place, "one")
    (place / "link").symlink_to("one")
    with pytest.raises(NotADirectoryError), btrfs.opened(place / "link"):
        pass


@pytest.mark.root
def test_a_commit_makes_everything_survive_power_loss(place: Path, scratch: Scratch, session_scratch: Scratch) -> None:
    (make(place, "one") / "empty").touch()
    with btrfs.opened(place) as fd:
        btrfs.commit(fd, "commit")
    after = scratch.power_cut(session_scratch.shared("kernel-btrfs", "btrfs"), of=session_scratch)
    assert os.listdir(after / place.name) == ["one"]
    assert os.listdir(after / place.name / "one") == ["empty"]


@pytest.mark.root
def test_a_file_system_shrinks_and_grows_while_it_is_mounted(scratch: Scratch) -> None:
    place = scratch.make("btrfs", size_bytes=1 << 30)
    with btrfs.opened(place) as fd:
        btrfs.resize(fd, str(512 << 20))
        assert fs.capacity(place)[0] == 512 << 20
        btrfs.resize(fd, "max")
        assert fs.capacity(place)[0] == 1 << 30
        with pytest.raises(OSError, match="Invalid"):
            btrfs.resize(fd, "nonsense")


# quota groups


@pytest.fixture(scope="session")
def quoted(session_scratch: Scratch) -> Path:
    """Return a btrfs with simple quotas."""
    place = session_scratch.shared("kernel-qgroup", "btrfs")
    with btrfs.opened(place) as fd:
        assert qgroup.mode(btrfs.file_system_id(fd)) is qgroup.Mode.OFF
        qgroup.enable(fd, qgroup.Mode.SIMPLE)
        assert qgroup.mode(btrfs.file_system_id(fd)) is qgroup.Mode.SIMPLE
    return place


def _group_of(path: Path) -> qgroup.Group | None:
    with btrfs.opened(path) as fd:
        return qgroup.group(btrfs.file_system_id(fd), btrfs.subvolume_id(fd))


@pytest.mark.root
def test_a_subvolume_has_its_limit_and_inheritance_from_the_call_that_makes_it(quoted: Path) -> None:
    with btrfs.opened(quoted) as place:
        btrfs.create(place, "limited", limit=qgroup.limit(size_bytes=8 << 20))
        with btrfs.opened("limited", directory_fd=place) as fd:
            limit = qgroup.limit(size_bytes=4 << 20, inherited_bytes=12_345)
            btrfs.snapshot(fd, place, "copy", read_only=True, limit=limit)
        group = _group_of(quoted / "copy")
        assert group is not None
        assert group.limit_bytes == 4 << 20
        assert qgroup.inherited(place, id_of(quoted / "copy")) == 12_345
        assert qgroup.inherited(place, id_of(quoted / "limited")) == 0


@pytest.mark.root
def test_what_was_inherited_limits_nothing(quoted: Path) -> None:
    with btrfs.opened(quoted) as place:
        btrfs.create(place, "heir", limit=qgroup.limit(size_bytes=None, inherited_bytes=1))
    (quoted / "heir" / "file").write_bytes(os.urandom(4 << 20))
    group = _group_of(quoted / "heir")
    assert group is not None
    assert group.limit_bytes is None


@pytest.mark.root
def test_size_and_inheritance_are_changed_each_for_itself(quoted: Path) -> None:
    with btrfs.opened(quoted) as place:
        btrfs.create(place, "changed", limit=qgroup.limit(size_bytes=1 << 20, inherited_bytes=7))
        subvolume_id = id_of(quoted / "changed")
        qgroup.set_size(place, subvolume_id, 2 << 20)
        assert qgroup.inherited(place, subvolume_id) == 7
        qgroup.set_inherited(place, subvolume_id, 8)
        assert qgroup.inherited(place, subvolume_id) == 8
    group = _group_of(quoted / "changed")
    assert group is not None
    assert group.limit_bytes == 2 << 20


@pytest.mark.root
def test_without_quotas_there_is_no_group(place: Path) -> None:
    assert _group_of(place) is None


# send


@pytest.mark.root
def test_steps_name_what_was_done_in_their_order(place: Path) -> None:
    one = make(place, "one")
    (one / "kept").mkdir()
    (one / "gone").touch()
    base = snapshot(one, "base", read_only=True)
    (one / "kept").rename(one / "moved")
    (one / "gone").rename(one / "moved" / "here")
    (one / "moved" / "here").write_bytes(b"new")
    tree = snapshot(one, "tree", read_only=True)
    with btrfs.opened(tree) as fd:
        steps = list(send.steps(fd, parent_id=id_of(base)))
    assert steps[0].command is send.Command.SNAPSHOT
    assert send.Step(send.Command.RENAME, b"kept", b"moved") in steps
    assert send.Step(send.Command.LINK, b"moved/here", b"gone") in steps
    assert send.Step(send.Command.UNLINK, b"gone", b"") in steps
    assert send.Step(send.Command.UPDATE_EXTENT, b"moved/here", b"") in steps


@pytest.mark.root
def test_a_failure_of_the_kernel_is_raised(place: Path) -> None:
    one = make(place, "one")
    with btrfs.opened(one) as fd, pytest.raises(PermissionError):
        list(send.steps(fd, parent_id=id_of(one)))


@pytest.mark.root
def test_a_reader_that_leaves_early_ends_the_sending(place: Path) -> None:
    one = make(place, "one")
    for number in range(10_000):
        (one / f"file{number}").touch()
    tree = snapshot(one, "tree", read_only=True)
    with btrfs.opened(tree) as fd:
        steps = send.steps(fd, parent_id=0)
        assert next(steps).command is send.Command.SUBVOL
        steps.close()
    assert "btrfs-send" not in {thread.name for thread in threading.enumerate()}


# ioctl


def test_an_ioctl_that_fails_has_its_errno(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(OSError, match="Inappropriate ioctl") as caught,
    ):
        ioctl.call(file.fileno(), btrfs.BTRFS_IOC_SNAP_DESTROY, btrfs._VolArgs(name=b"x"))
    assert caught.value.errno == 25
