"""Durable files, inode flags, reflinks, what a file system is."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.contract import crash
from tests.scratch import Scratch
from voldriverd.kernel import fs

_LARGE = os.urandom(300_000)


@pytest.fixture(scope="session", params=["btrfs", "ext4", "xfs"])
def any_fs(request: pytest.FixtureRequest, session_scratch: Scratch) -> tuple[str, Path]:
    """Return the type of a file system and where it is mounted."""
    return request.param, session_scratch.shared(f"fs-{request.param}", request.param)


@pytest.fixture
def place(any_fs: tuple[str, Path], request: pytest.FixtureRequest) -> Path:
    """Return a new directory on each kind of file system."""
    name: str = request.node.name
    directory = any_fs[1] / name.partition("[")[0]
    directory.mkdir()
    return directory


def test_a_file_is_written_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        fs.write_durably(tmp_path / "file", b"content", mode=0o644)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_its_owners_alone_by_default(tmp_path: Path) -> None:
    fs.write_durably(tmp_path / "file", b"content")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_part_that_a_crash_left_is_no_hindrance_and_its_mode_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(b"longer than the content")
    (tmp_path / ".file.part").chmod(0o666)
    fs.write_durably(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_link_in_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / ".file.part").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"):
        fs.write_durably(tmp_path / "file", b"content")
    assert (tmp_path / "victim").read_bytes() == b"kept"


def test_a_write_that_fails_leaves_the_old_content_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    fs.write_durably(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        fs.write_durably(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_is_killed_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write() -> None:
        fs.write_durably(path, _LARGE)

    found = set()
    for step in range(crash.count(write) + 1):
        fs.write_durably(path, b"old")
        crash.cut(write, before=step)
        found.add(path.read_bytes())
    assert found == {b"old", _LARGE}


@pytest.mark.root
@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_a_file_that_was_written_durably_survives_power_loss(
    scratch: Scratch, session_scratch: Scratch, fs_type: str
) -> None:
    place = session_scratch.shared(f"fs-{fs_type}", fs_type)
    fs.make_directory(place / "d", mode=0o700)
    fs.write_durably(place / "d" / "file", b"old")
    fs.write_durably(place / "d" / "file", _LARGE)
    fs.rename_durably(place / "d" / "file", place / "moved")
    after = scratch.power_cut(place, of=session_scratch)
    assert (after / "moved").read_bytes() == _LARGE
    assert os.listdir(after / "d") == []
    (place / "moved").unlink()
    (place / "d").rmdir()


def test_data_is_written_to_a_new_file_only(tmp_path: Path) -> None:
    fs.write_data(tmp_path / "file", _LARGE)
    (tmp_path / "link").symlink_to("nothing")
    for taken in ("file", "link"):
        with pytest.raises(FileExistsError):
            fs.write_data(tmp_path / taken, b"other")
    assert (tmp_path / "file").read_bytes() == _LARGE
    assert not (tmp_path / "nothing").exists()


@pytest.mark.root
@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_data_survives_power_loss_where_its_name_does(scratch: Scratch, fs_type: str) -> None:
    place = scratch.make(fs_type)
    fs.write_data(place / "part", _LARGE)
    (place / "part").rename(place / "file")
    fs.sync_directory(place)
    after = scratch.power_cut(place, of=scratch)
    assert (after / "file").read_bytes() == _LARGE


def test_a_directory_gets_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        fs.make_directory(tmp_path / "d", mode=0o755)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755


def test_a_directory_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(0o711)
    (tmp_path / "d" / "file").touch()
    fs.make_directory(tmp_path / "d", mode=0o700)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o711
    assert os.listdir(tmp_path / "d") == ["file"]


def test_a_file_in_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "d").touch()
    with pytest.raises(FileExistsError):
        fs.make_directory(tmp_path / "d", mode=0o700)


@pytest.mark.root
def test_magic_tells_the_file_system(any_fs: tuple[str, Path]) -> None:
    fs_type, place = any_fs
    expected = {"btrfs": fs.BTRFS_MAGIC, "ext4": fs.EXT4_MAGIC, "xfs": fs.XFS_MAGIC}
    assert fs.magic(place) == expected[fs_type]


def test_magic_of_an_absent_path_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fs.magic(tmp_path / "absent")
    assert caught.value.filename == str(tmp_path / "absent")


@pytest.mark.root
def test_flags_are_set_and_read_back(place: Path) -> None:
    with (place / "file").open("wb") as file:
        before = fs.get_flags(file.fileno())
        fs.set_flags(file.fileno(), before | fs.FS_IMMUTABLE_FL)
        assert fs.get_flags(file.fileno()) == before | fs.FS_IMMUTABLE_FL
        with pytest.raises(PermissionError):
            (place / "file").unlink()
        fs.set_flags(file.fileno(), before)
    (place / "file").unlink()


@pytest.mark.root
def test_reflinks_are_told_as_they_are(any_fs: tuple[str, Path], place: Path) -> None:
    fs_type, _ = any_fs
    assert fs.has_reflinks(place) == (fs_type != "ext4")
    assert os.listdir(place) == []


@pytest.mark.root
def test_a_reflink_shares_the_content_or_is_an_error(any_fs: tuple[str, Path], place: Path) -> None:
    (place / "source").write_bytes(_LARGE)
    with (place / "source").open("rb") as source, (place / "target").open("wb") as target:
        if any_fs[0] == "ext4":
            with pytest.raises(OSError, match="not supported"):
                fs.reflink(source.fileno(), target.fileno())
            return
        fs.reflink(source.fileno(), target.fileno())
    assert (place / "target").read_bytes() == _LARGE


@pytest.mark.root
def test_allocate_reserves_space_and_keeps_the_content(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    with (place / "file").open("r+b") as file:
        fs.allocate(file.fileno(), 1 << 20)
    status = (place / "file").stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20
    assert (place / "file").read_bytes().startswith(b"content")


@pytest.mark.root
def test_capacity_falls_by_what_is_written(place: Path) -> None:
    total, free = fs.capacity(place)
    (place / "file").write_bytes(os.urandom(8 << 20))
    fs.sync_file_system(place)
    total_after, free_after = fs.capacity(place)
    assert total_after == total
    assert 8 << 20 <= free - free_after < 16 << 20
    (place / "file").unlink()


@pytest.mark.root
@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_nothing_of_a_full_file_system_is_free(scratch: Scratch, fs_type: str) -> None:
    place = scratch.make(fs_type, size_bytes=300 << 20)
    fd = os.open(place / "file", os.O_WRONLY | os.O_CREAT)
    step = 64 << 20
    position = 0
    while step >= 4_096:
        try:
            os.posix_fallocate(fd, position, step)
            position += step
        except OSError:  # ENOSPC: a smaller piece may fit
            step //= 2
    os.close(fd)
    fs.sync_file_system(place)
    assert fs.capacity(place)[1] < 8 << 20


def test_the_umask_is_read_without_being_changed() -> None:
    before = os.umask(0o027)
    try:
        assert fs.umask() == 0o027
        assert os.umask(before) == 0o027
    finally:
        os.umask(before)


@pytest.mark.parametrize("function", [fs.sync_directory, fs.sync_file_system, fs.capacity])
def test_an_absent_path_is_an_error_that_names_it(tmp_path: Path, function: object) -> None:
    assert callable(function)
    with pytest.raises(FileNotFoundError) as caught:
        function(tmp_path / "absent")
    assert caught.value.filename in {str(tmp_path / "absent"), tmp_path / "absent"}


def test_a_handle_is_of_an_inode_and_not_of_a_name(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.touch()
    same.hardlink_to(one)
    other.touch()
    assert handle_of(one) == handle_of(same) != b""
    assert handle_of(one) != handle_of(other)
    assert handle_of(Path("/proc/self/status")) == b"", "a file system without any"


def handle_of(path: Path) -> bytes:
    fd = os.open(path, os.O_PATH)
    try:
        return fs.handle(fd)
    finally:
        os.close(fd)


def test_another_name_is_only_given_to_what_the_disk_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_bytes(b"content")
    synced: list[bool] = []

    def sync(fd: int) -> None:
        synced.append(stat.S_ISREG(os.fstat(fd).st_mode))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="Input/output error"):
        fs.link_durably(tmp_path / "one", tmp_path / "two")
    assert synced == [True]
    assert os.listdir(tmp_path) == ["one"]
