"""The embedded image: whole or absent, recognised, mounted once, grown, released."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import pytest

from tests.running import Running
from tests.scratch import Scratch, loops_under, unmount_under
from voldriverd import embedded
from voldriverd.config import EMBEDDED_MIN_BYTES
from voldriverd.embedded import Embedded
from voldriverd.errors import Exists, InUse, Invalid, Unusable
from voldriverd.kernel import btrfs, fs, loop, mount, qgroup, run

pytestmark = pytest.mark.root

SIZE: Final = EMBEDDED_MIN_BYTES
GIB: Final = 1 << 30
OTHER: Final = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Return the root directory of a daemon; at the end nothing of it is mounted or immutable."""
    directory = tmp_path / "root"
    directory.mkdir()
    yield directory
    unmount_under(directory)
    _unprotect(directory / "embedded")


@pytest.fixture
def image(root: Path) -> Embedded:
    """Return an image that has just been made."""
    image = Embedded(root)
    image.make(SIZE)
    return image


def _unprotect(mount_point: Path) -> None:
    if mount_point.exists():
        fd = os.open(mount_point, os.O_RDONLY)
        fs.set_flags(fd, fs.get_flags(fd) & ~fs.FS_IMMUTABLE_FL)
        os.close(fd)


def _until_killed(root: Path, module: str, function: str, call: str) -> None:
    """Run a call in another process, which is killed when it comes to a function of the kernel layer."""
    script = f"""
import os, signal
from pathlib import Path
from voldriverd.embedded import Embedded
from voldriverd.kernel import {module}
def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{function} = die
Embedded(Path({str(root)!r})).{call}
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == -9


def _stack(image: Embedded) -> int:
    return sum(1 for entry in mount.table() if entry.mount_point == str(image.mount_point))


def test_there_is_no_image_at_first(root: Path) -> None:
    assert not Embedded(root).exists()


def test_make_reserves_all_of_its_space_for_root_alone(image: Embedded) -> None:
    status = image.path.stat()
    assert image.exists()
    assert status.st_size == SIZE
    assert status.st_blocks * 512 >= SIZE
    assert status.st_mode & 0o777 == 0o600


def test_make_needs_neither_loop_device_nor_mount(image: Embedded) -> None:
    assert loops_under(image.path.parent) == {}
    assert not image.mount_point.exists()


def test_make_returns_the_uuid_that_mount_finds(root: Path) -> None:
    image = Embedded(root)
    identity = image.make(SIZE)
    assert image.mount(identity) == identity
    assert Path(f"/sys/fs/btrfs/{identity}").exists()


def test_make_refuses_when_there_is_an_image_and_leaves_it(image: Embedded) -> None:
    before = image.path.stat()
    with pytest.raises(Exists, match=r"cannot make image .*embedded\.img: it exists already"):
        image.make(SIZE)
    assert image.path.stat() == before


def test_make_refuses_a_size_below_the_minimum_and_names_it(root: Path) -> None:
    with pytest.raises(Invalid, match=r"255 MiB are too small, it needs 256 MiB") as caught:
        Embedded(root).make(255 << 20)
    assert caught.value.field == "size"
    assert os.listdir(root) == []


def test_make_refuses_what_does_not_fit_with_the_figures(scratch: Scratch) -> None:
    root = scratch.make("ext4", size_bytes=GIB)
    with pytest.raises(Unusable, match=r"it needs 2,048 MiB, .* has 9\d\d(\.\d)? MiB free"):
        Embedded(root).make(2 * GIB)
    assert os.listdir(root) == ["lost+found"]


def test_make_leaves_nothing_when_the_space_ends_meanwhile(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    root = scratch.make("ext4", size_bytes=GIB)
    monkeypatch.setattr(fs, "capacity", lambda _: (4 * GIB, 4 * GIB))
    with pytest.raises(OSError, match="No space left") as caught:
        Embedded(root).make(2 * GIB)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(root) == ["lost+found"]


def test_make_says_when_the_file_system_cannot_reserve(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _size_bytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fs, "allocate", refuse)
    with pytest.raises(Unusable, match=r"of 256 MiB: the file system of the root directory cannot reserve space"):
        Embedded(root).make(SIZE)
    assert os.listdir(root) == []


def test_make_names_the_package_of_a_missing_tool(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(Unusable, match=r"mkfs\.btrfs is not installed \(Debian package btrfs-progs\)"):
        Embedded(root).make(SIZE)


def test_make_leaves_nothing_when_mkfs_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> str:
        raise run.ToolError(5, f"{argv[0]} ended with status 1: no")

    monkeypatch.setattr(run, "run", fail)
    with pytest.raises(run.ToolError):
        Embedded(root).make(SIZE)
    assert os.listdir(root) == []


@pytest.mark.parametrize(("module", "function"), [("fs", "allocate"), ("run", "run"), ("fs", "rename_durably")])
def test_a_make_that_was_killed_leaves_no_image_and_can_be_repeated(root: Path, module: str, function: str) -> None:
    _until_killed(root, module, function, f"make({SIZE})")
    image = Embedded(root)
    assert not image.exists()
    image.mount(image.make(SIZE))
    assert set(os.listdir(root)) == {"embedded", "embedded.img"}


def test_mount_makes_a_closed_directory_for_each_pool(image: Embedded) -> None:
    image.mount()
    assert {path.name: path.stat().st_mode & 0o777 for path in image.mount_point.iterdir()} == {
        "btrfs": 0o700,
        "loop": 0o700,
        "directory": 0o700,
    }


def test_mount_keeps_the_reservation_and_writes_nothing_on_reading(image: Embedded) -> None:
    image.mount()
    options = run.run(["findmnt", "-n", "-o", "OPTIONS", str(image.mount_point)]).strip().split(",")
    assert {"rw", "noatime"} <= set(options)
    assert not [option for option in options if option.startswith("discard")]


def test_mount_may_be_repeated_and_mounts_once(image: Embedded) -> None:
    assert image.mount() == image.mount()
    assert _stack(image) == 1
    assert len(loops_under(image.path.parent)) == 1


def test_another_instance_finds_the_mount(image: Embedded) -> None:
    identity = image.mount()
    again = Embedded(image.path.parent)
    assert again.mount(identity) == identity
    assert _stack(again) == 1


def test_another_process_finds_the_mount_and_can_release_it(image: Embedded) -> None:
    identity = image.mount()
    call = f"from voldriverd.embedded import Embedded; image = Embedded(Path({str(image.path.parent)!r})); "
    script = f"from pathlib import Path; {call}image.mount({identity!r}); image.release()"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)
    assert _stack(image) == 0


def test_a_root_directory_behind_a_link_is_mounted_once(image: Embedded, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(image.path.parent)
    image.mount()
    Embedded(tmp_path / "link").mount()
    assert _stack(image) == 1


@pytest.mark.parametrize(("module", "function"), [("loop", "_settled"), ("mount", "mount"), ("fs", "make_directory")])
def test_a_mount_that_was_killed_can_be_repeated(image: Embedded, module: str, function: str) -> None:
    _until_killed(image.path.parent, module, function, "mount()")
    image.mount()
    assert _stack(image) == 1
    assert {path.name for path in image.mount_point.iterdir()} == set(embedded.POOLS)
    assert len(loops_under(image.path.parent)) == 1


def test_mount_uses_the_loop_device_that_is_there(image: Embedded) -> None:
    with loop.held(image.path) as device:
        image.mount()
        assert loops_under(image.path.parent) == {f"loop{device.number}": str(image.path)}


def test_mount_of_a_missing_image_says_so_and_makes_none(root: Path) -> None:
    with pytest.raises(Unusable, match=r"cannot mount image .*embedded\.img: the file is missing"):
        Embedded(root).mount(OTHER)
    assert os.listdir(root) == []


def test_mount_refuses_an_image_with_another_uuid(image: Embedded) -> None:
    with pytest.raises(Unusable, match=f"its UUID is [0-9a-f-]{{36}}, expected was {OTHER}"):
        image.mount(OTHER)
    assert _stack(image) == 0


@pytest.mark.parametrize("content", [b"", bytes(1 << 20)])
def test_mount_refuses_a_file_that_is_no_btrfs(root: Path, content: bytes) -> None:
    image = Embedded(root)
    image.path.write_bytes(content)
    with pytest.raises(Unusable, match="it holds no btrfs"):
        image.mount()


def test_mount_refuses_when_something_else_is_mounted_there(image: Embedded) -> None:
    image.mount_point.mkdir()
    mount.mount("none", image.mount_point, fs_type="tmpfs", data="size=64k")
    with pytest.raises(Unusable, match=r"none \(tmpfs\) is mounted there"):
        image.mount()
    assert os.listdir(image.mount_point) == []


def test_mount_refuses_when_another_btrfs_is_mounted_there(image: Embedded, scratch: Scratch) -> None:
    image.mount_point.mkdir()
    mount.bind(scratch.make("btrfs"), image.mount_point, read_only=False)
    with pytest.raises(Unusable, match=r"/dev/loop\d+ \(btrfs\) is mounted there"):
        image.mount()


def test_mount_refuses_an_image_that_was_cut_short_with_the_figures(image: Embedded) -> None:
    os.truncate(image.path, SIZE // 2)
    with pytest.raises(Unusable, match=r"it was cut short, of its 256 MiB there are 128 MiB; put a whole copy"):
        image.mount()
    assert not image.mount_point.exists()


def test_an_image_that_another_file_has_replaced_under_its_mount_is_neither_used_nor_grown(image: Embedded) -> None:
    """What is written there is lost with the mount, and a copy has the same UUID."""
    image.mount()
    copy = image.path.with_suffix(".copy")
    copy.write_bytes(image.path.read_bytes())
    copy.rename(image.path)
    with pytest.raises(Unusable, match=r"\(btrfs\) is mounted there, and is not of this file"):
        image.mount()
    with pytest.raises(Unusable, match="it is not mounted"):
        image.grow(2 * SIZE)
    assert image.path.stat().st_size == SIZE


def test_a_copy_is_mounted_beside_its_origin_where_the_kernel_allows_it(image: Embedded, tmp_path: Path) -> None:
    """Linux gives the second one a UUID for as long as it is mounted (6.7); before, it refuses it."""
    image.mount()
    other = Embedded(tmp_path / "other")
    other.path.parent.mkdir()
    other.path.write_bytes(image.path.read_bytes())
    try:
        with nullcontext() if qgroup.has_simple() else pytest.raises(OSError, match="File exists"):  # both are of 6.7
            other.mount()
            other.mount()
    finally:
        other.release()
        _unprotect(other.mount_point)


def test_nothing_can_be_written_where_the_image_is_not_mounted(image: Embedded) -> None:
    image.mount()
    image.release()
    assert image.mount_point.stat().st_mode & 0o777 == 0
    with pytest.raises(PermissionError):
        (image.mount_point / "btrfs").mkdir()


def test_a_mount_point_that_is_already_there_is_protected_too(image: Embedded) -> None:
    image.mount_point.mkdir(0o755)
    image.mount()
    image.release()
    assert image.mount_point.stat().st_mode & 0o777 == 0
    with pytest.raises(PermissionError):
        (image.mount_point / "btrfs").mkdir()


def test_mount_goes_on_where_directories_have_no_flags(image: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int) -> int:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr(fs, "get_flags", refuse)
    monkeypatch.setattr(loop, "_is_direct_safe", lambda *_: True)
    image.mount()
    assert _stack(image) == 1


def test_grow_gives_the_space_to_the_mounted_file_system_and_keeps_it_reserved(image: Embedded) -> None:
    image.mount()
    image.grow(2 * SIZE)
    assert fs.capacity(image.mount_point)[0] == 2 * SIZE
    assert image.path.stat().st_blocks * 512 >= 2 * SIZE


def test_grow_may_be_repeated(image: Embedded) -> None:
    image.mount()
    image.grow(2 * SIZE)
    image.grow(2 * SIZE)
    assert fs.capacity(image.mount_point)[0] == 2 * SIZE


@pytest.mark.parametrize(("module", "function"), [("loop", "refresh_capacity"), ("btrfs", "resize")])
def test_a_grow_that_was_killed_is_ended_by_the_next(image: Embedded, module: str, function: str) -> None:
    image.mount()
    _until_killed(image.path.parent, module, function, f"grow({2 * SIZE})")
    assert fs.capacity(image.mount_point)[0] == SIZE
    image.grow(2 * SIZE)
    assert fs.capacity(image.mount_point)[0] == 2 * SIZE


def test_grow_refuses_to_shrink_and_names_the_present_size(image: Embedded) -> None:
    image.mount()
    with pytest.raises(Invalid, match=r"to 255 MiB: it has 256 MiB already and can only grow") as caught:
        image.grow(255 << 20)
    assert caught.value.field == "size"


def test_grow_refuses_what_does_not_fit_with_the_figures(scratch: Scratch) -> None:
    image = Embedded(scratch.make("ext4", size_bytes=GIB))
    image.mount(image.make(SIZE))
    with pytest.raises(Unusable, match=r"cannot grow image .*: it needs 1,792 MiB, .* has \d{3}(\.\d)? MiB free"):
        image.grow(2 * GIB)
    assert image.path.stat().st_size == SIZE
    image.release()
    _unprotect(image.mount_point)


def test_grow_keeps_the_length_when_the_space_ends_meanwhile(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Embedded(scratch.make("ext4", size_bytes=GIB))
    image.mount(image.make(SIZE))
    monkeypatch.setattr(fs, "capacity", lambda _: (4 * GIB, 4 * GIB))
    with pytest.raises(OSError, match="No space left"):
        image.grow(2 * GIB)
    assert image.path.stat().st_size == SIZE
    image.release()
    _unprotect(image.mount_point)


def test_grow_refuses_an_image_that_is_not_mounted(image: Embedded) -> None:
    with pytest.raises(Unusable, match=r"cannot grow image .*: it is not mounted"):
        image.grow(2 * SIZE)
    assert image.path.stat().st_size == SIZE


def test_grow_refuses_when_there_is_no_image(root: Path) -> None:
    with pytest.raises(Unusable, match="it is not mounted"):
        Embedded(root).grow(SIZE)


def test_release_unmounts_and_leaves_no_loop_device(image: Embedded) -> None:
    image.mount()
    image.release()
    assert _stack(image) == 0
    assert loops_under(image.path.parent) == {}


def test_release_may_be_repeated(image: Embedded) -> None:
    image.mount()
    image.release()
    image.release()


def test_release_without_an_image_is_no_error(root: Path) -> None:
    Embedded(root).release()


def test_release_refuses_while_a_file_is_open_and_names_who_has_it(image: Embedded) -> None:
    image.mount()
    with (image.mount_point / "directory" / "file").open("wb"):
        with pytest.raises(InUse, match=rf"cannot release image .*: .* \(pid {os.getpid()}\) has .*/file open"):
            image.release()
        assert _stack(image) == 1


def test_release_refuses_while_a_part_of_it_is_mounted_elsewhere(
    image: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_CLEAR_TIMEOUT_S", 0.01)
    image.mount()
    (tmp_path / "other").mkdir()
    mount.bind(image.mount_point / "directory", tmp_path / "other", read_only=False)
    with pytest.raises(InUse, match="volumes in it are mounted elsewhere"):
        image.release()
    mount.unmount(tmp_path / "other")


def test_what_was_written_is_there_after_the_next_mount(image: Embedded) -> None:
    image.mount()
    (image.mount_point / "directory" / "file").write_bytes(b"content")
    image.release()
    image.mount()
    assert (image.mount_point / "directory" / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("free_bytes", "size_bytes"),
    [(100 * GIB, 20 * GIB), (40 * GIB, 20 * GIB), (39 * GIB, 39 * GIB // 2), (512 << 20, 256 << 20)],
)
def test_the_default_size_is_half_of_what_is_free_and_20_gib_at_most(free_bytes: int, size_bytes: int) -> None:
    assert embedded.default_size(free_bytes) == size_bytes


def test_the_default_size_is_refused_below_the_minimum_with_the_figures() -> None:
    with pytest.raises(Unusable, match=r"500 MiB are free, .* at least 256 MiB; free 12 MiB more"):
        embedded.default_size(500 << 20)


def test_make_takes_the_default_size_of_what_is_free(scratch: Scratch) -> None:
    root = scratch.make("ext4", size_bytes=GIB)
    free_bytes = fs.capacity(root)[1]
    Embedded(root).make()
    assert (root / "embedded.img").stat().st_size == embedded.default_size(free_bytes)


@pytest.mark.parametrize("mode", ["simple", "full"])
def test_what_the_kernel_is_said_to_have_it_has(scratch: Scratch, mode: str) -> None:
    place = scratch.make("btrfs")
    with btrfs.opened(place) as top:
        try:
            qgroup.enable(top, qgroup.Mode(mode))
            is_there = True
        except OSError as err:
            assert err.errno == errno.EINVAL  # noqa: PT017 - either answer is right, if the other one agrees
            is_there = False
    assert is_there == (mode == "full" or qgroup.has_simple())


def test_a_kernel_without_simple_quotas_serves_the_image_without_sizes_and_says_so(tmp_path: Path) -> None:
    daemon = Running(tmp_path / "d")
    daemon.preamble = "from voldriverd.kernel import qgroup; qgroup.has_simple = lambda: False; "
    with daemon:
        assert daemon.cli("volume", "create", "db").stderr == ""
        refused = daemon.cli("volume", "create", "sized", "-d", "btrfs", "-o", "size=64M")
        assert (refused.returncode, "loop" in refused.stderr) == (1, True)
        assert daemon.cli("volume", "create", "sized", "-d", "loop", "-o", "size=64M").stderr == ""
    assert "no simple quotas before Linux 6.7: sizes are refused" in daemon.log
