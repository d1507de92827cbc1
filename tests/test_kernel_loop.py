"""Loop devices: one for each image, held until it is mounted, gone by itself."""

import ctypes
import errno
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.scratch import Scratch, loops_under, unmount_under
from voldriverd.kernel import fs, ioctl, loop, mount, run

pytestmark = pytest.mark.root

SIZE: Final = 16 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an image with an ext4 in it."""
    return _make_image(tmp_path / "image")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Return a mount point, free again at the end."""
    directory = tmp_path / "place"
    directory.mkdir()
    yield directory
    unmount_under(tmp_path)


def _make_image(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(SIZE)
    run.run(["mkfs.ext4", "-q", "-b", "4096", str(path)])
    return path


def _queue(device: loop.Device, name: str) -> str:
    return Path(f"/sys/block/loop{device.number}/queue/{name}").read_text().strip()


def _is_direct_says_the_kernel(device: loop.Device) -> bool:
    return Path(f"/sys/block/loop{device.number}/loop/dio").read_text().strip() == "1"


def test_the_structures_are_as_large_as_the_kernels() -> None:
    assert (ctypes.sizeof(loop._Info), ctypes.sizeof(loop._Config)) == (232, 304)


def test_an_image_at_rest_has_no_device(image: Path) -> None:
    assert loop.attached(image) is None


def test_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        loop.attached(tmp_path / "missing")
    with pytest.raises(FileNotFoundError), loop.held(tmp_path / "missing"):
        pass


def test_a_link_in_the_place_of_an_image_is_not_followed(image: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(image)
    with pytest.raises(OSError, match="symbolic links") as caught, loop.held(tmp_path / "link"):
        pass
    assert caught.value.errno == errno.ELOOP


def test_a_held_image_has_a_device_that_shows_all_of_it(image: Path) -> None:
    with loop.held(image) as device:
        assert loop.attached(image) == device
        assert device.is_whole
        assert Path(f"/sys/block/loop{device.number}/size").read_text() == f"{SIZE // 512}\n"
        assert os.stat(device.path).st_rdev == os.makedev(*map(int, device.numbers.split(":")))


def test_the_device_goes_when_it_is_not_held_any_more(image: Path) -> None:
    with loop.held(image):
        pass
    assert loop.wait_cleared(image, timeout_s=5)


def test_the_device_goes_when_the_block_raises(image: Path) -> None:
    with pytest.raises(KeyError), loop.held(image):
        raise KeyError
    assert loop.wait_cleared(image, timeout_s=5)


def test_the_mount_keeps_the_device_and_its_end_clears_it(image: Path, place: Path) -> None:
    with loop.held(image) as device:
        mount.mount(device.path, place, fs_type="ext4")
    assert loop.attached(image) == device
    mount.unmount(place)
    assert loop.wait_cleared(image, timeout_s=5)
    assert loops_under(image.parent) == {}


def test_a_held_image_gets_no_second_device(image: Path) -> None:
    with loop.held(image) as device, loop.held(image) as again:
        assert again == device
        assert list(loops_under(image.parent)) == [f"loop{device.number}"]


def test_the_device_stays_for_whoever_still_holds_it(image: Path) -> None:
    with ExitStack() as first:
        device = first.enter_context(loop.held(image))
        with loop.held(image):
            first.close()
            assert loop.attached(image) == device


def test_threads_that_want_one_image_get_one_device(image: Path) -> None:
    meeting = threading.Barrier(8)

    def hold(_: int) -> int:
        meeting.wait()
        with loop.held(image) as device:
            meeting.wait()
            return device.number

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(hold, range(8)))) == 1


def test_the_device_that_another_process_made_is_found(image: Path) -> None:
    number = run.run(["losetup", "--find", "--show", str(image)]).strip().removeprefix("/dev/loop")
    try:
        with loop.held(image) as device:
            assert device.number == int(number)
    finally:
        run.run(["losetup", "-d", f"/dev/loop{number}"])


def test_an_image_is_found_under_another_name(image: Path, tmp_path: Path) -> None:
    os.link(image, tmp_path / "other")
    with loop.held(image) as device:
        assert loop.attached(tmp_path / "other") == device


def test_an_image_is_found_when_it_was_bound_through_another_mount(image: Path, place: Path) -> None:
    mount.bind(image.parent, place, read_only=False)
    with loop.held(place / "image") as device:
        assert loop.attached(image) == device


def test_a_new_file_under_the_old_name_has_no_device(image: Path, tmp_path: Path) -> None:
    with loop.held(image):
        image.rename(tmp_path / "renamed")
        _make_image(image)
        assert loop.attached(image) is None
        with loop.held(image), loop.held(tmp_path / "renamed"):
            assert len(loops_under(tmp_path)) == 2


def test_a_deleted_image_has_its_device_still(image: Path, tmp_path: Path) -> None:
    os.link(image, tmp_path / "other")
    with loop.held(image) as device:
        image.unlink()
        assert loop.attached(tmp_path / "other") == device


@pytest.mark.parametrize("options", [["--read-only"], ["--offset", "4096"], ["--sizelimit", "8192"]])
def test_a_device_that_shows_a_part_or_cannot_be_written_is_refused(image: Path, options: list[str]) -> None:
    device = run.run(["losetup", "--find", "--show", *options, str(image)]).strip()
    try:
        with pytest.raises(OSError, match=f"{device} has it read-only or in part") as caught, loop.held(image):
            pass
        assert caught.value.errno == errno.EBUSY
    finally:
        run.run(["losetup", "-d", device])


def test_a_device_is_told_from_others_by_its_numbers(image: Path, tmp_path: Path) -> None:
    other = _make_image(tmp_path / "other")
    with loop.held(image) as device, loop.held(other) as second:
        assert loop.is_backed_by(device.numbers, image)
        assert not loop.is_backed_by(second.numbers, image)


def test_what_is_no_bound_loop_device_backs_nothing(image: Path) -> None:
    with loop.held(image) as device:
        numbers = device.numbers
    assert loop.wait_cleared(image, timeout_s=5)
    assert not loop.is_backed_by(numbers, image)
    assert not loop.is_backed_by(numbers.replace("7:", "8:"), image)
    assert not loop.is_backed_by("0:42", image)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_direct_io_is_used_on_ext4_and_xfs(scratch: Scratch, fs_type: str) -> None:
    with loop.held(_make_image(scratch.make(fs_type) / "image")) as device:
        assert device.is_direct
        assert _is_direct_says_the_kernel(device)
        assert _queue(device, "logical_block_size") == "512"


@pytest.mark.parametrize("has_checksums", [True, False])
def test_direct_io_is_used_on_btrfs_only_without_checksums(scratch: Scratch, *, has_checksums: bool) -> None:
    directory = scratch.make("btrfs")
    if not has_checksums:
        run.run(["chattr", "+C", str(directory)])
    with loop.held(_make_image(directory / "image")) as device:
        assert device.is_direct != has_checksums
        assert _is_direct_says_the_kernel(device) != has_checksums


def test_a_file_system_without_direct_io_does_without(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ioctl.call

    def refuse(fd: int, request: int, argument: ctypes.Structure | ctypes.c_uint64 | int = 0) -> int:
        if request == loop.LOOP_SET_DIRECT_IO:
            raise OSError(errno.EINVAL, "Invalid argument")
        if request == loop.LOOP_CONFIGURE:
            assert isinstance(argument, loop._Config)
            argument.info.lo_flags &= ~loop.LO_FLAGS_DIRECT_IO
        return call(fd, request, argument)

    monkeypatch.setattr(ioctl, "call", refuse)
    with loop.held(image) as device:
        assert not device.is_direct
        assert _queue(device, "logical_block_size") == "512"


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_on_a_disk_with_larger_blocks_the_device_has_them_too_and_direct_io(place: Path, fs_type: str) -> None:
    disk = run.run(
        ["losetup", "--find", "--show", "--sector-size", "4096", str(_sparse(place.parent / "disk"))]
    ).strip()
    run.run(["mkfs.xfs", "-q", disk] if fs_type == "xfs" else ["mkfs.ext4", "-q", "-b", "4096", disk])
    mount.mount(disk, place, fs_type=fs_type)
    run.run(["losetup", "-d", disk])  # when it is unmounted
    with loop.held(_make_image(place / "image")) as device:
        assert device.is_direct
        assert _is_direct_says_the_kernel(device)
        assert _queue(device, "logical_block_size") == "4096"


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(512 << 20)
    return path


def test_refreshing_makes_the_device_as_large_as_the_image(image: Path) -> None:
    with loop.held(image) as device:
        os.truncate(image, 2 * SIZE)
        loop.refresh_capacity(device)
        assert Path(f"/sys/block/loop{device.number}/size").read_text() == f"{2 * SIZE // 512}\n"


def test_waiting_ends_with_false_while_somebody_holds_the_device(image: Path) -> None:
    with loop.held(image):
        assert not loop.wait_cleared(image, timeout_s=0.01)


def test_waiting_ends_with_true_when_the_device_has_gone(image: Path) -> None:
    with ExitStack() as held:
        held.enter_context(loop.held(image))
        timer = threading.Timer(0.02, held.close)
        timer.start()
        assert loop.wait_cleared(image, timeout_s=5)
        timer.join()


def test_a_free_device_that_another_process_takes_is_passed_over(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loop.held(_make_image(tmp_path / "other")) as other:
        taken = [other.number, other.number]
        numbers = itertools.chain(taken, iter(loop._free_number, -1))
        monkeypatch.setattr(loop, "_free_number", numbers.__next__)
        with loop.held(image) as device:
            assert device.number != other.number


def test_a_free_device_that_has_been_removed_is_passed_over(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_device = loop._open
    errors = iter([errno.ENXIO, errno.ENODEV])

    def refuse(number: int, access: int) -> int:
        error = next(errors, None) if access == os.O_RDWR else None
        if error:
            raise OSError(error, os.strerror(error))
        return open_device(number, access)

    monkeypatch.setattr(loop, "_open", refuse)
    with loop.held(image) as device:
        assert loop.attached(image) == device


def test_when_all_devices_are_taken_by_others_it_gives_up(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loop.held(_make_image(tmp_path / "other")) as other:
        monkeypatch.setattr(loop, "_free_number", lambda: other.number)
        message = "other processes took each of 100 free loop devices"
        with pytest.raises(OSError, match=message) as caught, loop.held(image):
            pass
        assert caught.value.errno == errno.EBUSY


def test_a_device_that_goes_while_we_look_is_passed_over(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_number: int, _access: int) -> int:
        raise OSError(errno.ENXIO, "No such device or address")

    with loop.held(image):
        monkeypatch.setattr(loop, "_open", refuse)
        assert loop.attached(image) is None


def test_looking_for_a_device_opens_none_for_writing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_device = loop._open
    accesses = []

    def note(number: int, access: int) -> int:
        accesses.append(access)
        return open_device(number, access)

    with loop.held(image):
        monkeypatch.setattr(loop, "_open", note)
        loop.attached(image)
    assert set(accesses) == {os.O_RDONLY}


def test_a_missing_node_is_made(image: Path) -> None:
    script = f"""
import os, stat
from pathlib import Path
from voldriverd.kernel import loop, mount
mount.mount("none", Path("/dev"), fs_type="tmpfs", data="size=64k")
os.mknod("/dev/loop-control", stat.S_IFCHR | 0o600, os.makedev(10, 237))
with loop.held(Path({str(image)!r})) as device:
    assert stat.S_ISBLK(os.stat(device.path).st_mode)
    os.unlink(device.path)
    assert loop.attached(Path({str(image)!r})) == device
"""
    checkout = Path(__file__).parent.parent
    subprocess.run(["unshare", "-m", sys.executable, "-c", script], check=True, cwd=checkout)
    assert loop.wait_cleared(image, timeout_s=5)


def test_space_that_is_reserved_is_there_and_the_content_stays(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"content")
        file.flush()
        fs.allocate(file.fileno(), 1 << 20)
        status = os.fstat(file.fileno())
        assert (status.st_size, status.st_blocks * 512 >= 1 << 20) == (1 << 20, True)
        file.seek(0)
        assert file.read(8) == b"content\0"


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE])
def test_a_device_of_others_whose_file_system_died_is_passed_over(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with loop.held(_make_image(tmp_path / "other")) as other:
        status = loop._status

        def refuse(fd: int) -> loop._Info:
            if os.fstat(fd).st_rdev == os.makedev(loop.LOOP_MAJOR, other.number):
                raise OSError(number, os.strerror(number))
            return status(fd)

        monkeypatch.setattr(loop, "_status", refuse)
        with loop.held(image) as device:
            assert loop.attached(image) == device


def test_a_device_of_a_deleted_image_is_known_by_its_name(image: Path) -> None:
    with loop.held(image) as device:
        assert not loop.is_of_deleted(device.numbers, image)
        image.unlink()
        assert loop.is_of_deleted(device.numbers, image)
        assert not loop.is_of_deleted(device.numbers, image.with_name("another"))
    assert not loop.is_of_deleted("1:3", image)
