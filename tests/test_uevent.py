"""What the kernel says of devices and file systems: events, states, counters; real ones, and in copies of sysfs."""

import errno
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.scratch import Scratch, count_ext4_error
from voldriverd.kernel import block, counters, loop, mount, run, uevent

SIZE_BYTES: Final = 8 << 20
PATIENCE_MS: Final = 20_000
CHANGE: Final = (
    b"change@/devices/virtual/block/loop3\0ACTION=change\0DEVPATH=/devices/virtual/block/loop3\0SUBSYSTEM=block\0"
    b"RESIZE=1\0MAJOR=7\0MINOR=3\0DEVNAME=loop3\0DEVTYPE=disk\0SEQNUM=8\0"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"")
    os.truncate(path, SIZE_BYTES)
    return path


@pytest.fixture
def device(image: Path) -> Iterator[loop.Device]:
    with loop.held(image) as device:
        yield device


@pytest.fixture
def listener() -> Iterator[uevent.Listener]:
    with uevent.Listener() as listener:
        yield listener


def taken(listener: uevent.Listener, numbers: str) -> uevent.Uevent:
    """Wait for an event of a device; others on this host have theirs."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while poll.poll(PATIENCE_MS):
        events, _ = listener.take()
        for event in events:
            if event.numbers == numbers:
                return event
    raise AssertionError(f"the kernel says nothing of {numbers}")


def announce(device: loop.Device, count: int) -> None:
    """Have the kernel say so many times that a device has changed (Documentation/ABI/testing/sysfs-uevent)."""
    with Path(f"/sys/block/loop{device.number}/uevent").open("wb", buffering=0) as file:
        file.writelines(b"change" for _ in range(count))


def write_tree(sysfs: Path, **files: str) -> None:
    """Write files below a copy of sysfs; `/` in a name is `__`."""
    for name, text in files.items():
        path = sysfs / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def link(sysfs: Path, numbers: str, target: str) -> None:
    place = sysfs / "dev" / "block" / numbers
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(sysfs / target)


def test_an_event_is_read() -> None:
    assert uevent.parse(CHANGE) == uevent.Uevent("change", "7:3", "loop3")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"add@/devices/virtual/bdi/btrfs-1\0ACTION=add\0SUBSYSTEM=bdi\0SEQNUM=9\0",
        CHANGE.replace(b"MINOR=3\0", b""),
        CHANGE.replace(b"MINOR=3", b"MINOR=three"),
        CHANGE.replace(b"DEVNAME=loop3\0", b""),
        CHANGE.replace(b"block\0RESIZE", b"blocks\0RESIZE"),
    ],
)
def test_what_is_no_event_of_a_block_device_is_passed_over(message: bytes) -> None:
    assert uevent.parse(message) is None


@pytest.mark.root
def test_a_device_that_is_resized_is_heard_of(listener: uevent.Listener, device: loop.Device, image: Path) -> None:
    listener.take()
    os.truncate(image, 2 * SIZE_BYTES)
    loop.refresh_capacity(device)
    assert taken(listener, device.numbers) == uevent.Uevent("change", device.numbers, f"loop{device.number}")


@pytest.mark.root
def test_nothing_is_waited_for(listener: uevent.Listener) -> None:
    listener.take()
    assert listener.take()[1] is False


@pytest.mark.root
def test_what_was_lost_is_told(device: loop.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uevent, "_BUFFER_BYTES", 1)
    with uevent.Listener() as listener:
        announce(device, 20)
        events, is_lossy = listener.take()
        assert is_lossy
        assert len(events) < 20
        announce(device, 1)
        assert taken(listener, device.numbers).action == "change"


@pytest.mark.root
def test_more_than_can_be_taken_at_once_counts_as_lost(
    listener: uevent.Listener, device: loop.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uevent, "_TAKEN_MAX", 3)
    announce(device, 5)
    assert listener.take()[1]


@pytest.mark.root
def test_who_is_not_the_kernel_is_not_believed(listener: uevent.Listener, device: loop.Device) -> None:
    forged = CHANGE.replace(b"MINOR=3", b"MINOR=1048575")
    port = listener._socket.getsockname()[0]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, uevent.NETLINK_KOBJECT_UEVENT) as other:
        other.sendto(forged, (port, 0))
    announce(device, 1)
    seen: list[uevent.Uevent] = []
    while not any(event.numbers == device.numbers for event in seen):
        seen += listener.take()[0]
    assert all(event.numbers != "7:1048575" for event in seen)


def test_a_container_without_netlink_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(socket.socket):
        def bind(self, _address: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Forbidden)
    with pytest.raises(PermissionError):
        uevent.Listener()


@pytest.mark.root
def test_a_loop_device_is_looked_at(device: loop.Device, image: Path) -> None:
    found = block.look(device.numbers)
    backing = block.Backing(str(image), is_deleted=False, size_bytes=SIZE_BYTES)
    assert found == block.Device(device.numbers, f"loop{device.number}", SIZE_BYTES, False, None, None, backing)
    assert list(block.below(device.numbers)) == [(device.numbers, found)]
    os.truncate(image, SIZE_BYTES // 2)
    found = block.look(device.numbers)
    assert found is not None
    assert found.backing is not None
    assert (found.size_bytes, found.backing.size_bytes) == (SIZE_BYTES, SIZE_BYTES // 2)
    image.unlink()
    found = block.look(device.numbers)
    assert found is not None
    assert found.backing == block.Backing(str(image), is_deleted=True, size_bytes=None)


@pytest.mark.root
def test_a_device_that_is_read_only_says_so(device: loop.Device) -> None:
    run.run(["blockdev", "--setro", device.path])
    found = block.look(device.numbers)
    run.run(["blockdev", "--setrw", device.path])
    assert found is not None
    assert found.is_read_only


@pytest.mark.root
def test_an_image_that_cannot_be_seen_from_here_has_no_size(device: loop.Device, image: Path) -> None:
    image.rename(image.with_name("moved"))
    assert block.look(device.numbers).backing.size_bytes == SIZE_BYTES  # type: ignore[union-attr]
    cover = image.parent
    mount.mount("tmpfs", cover, fs_type="tmpfs")
    found = block.look(device.numbers)
    mount.unmount(cover)
    assert found is not None
    assert found.backing is not None
    assert (found.backing.is_deleted, found.backing.size_bytes) == (False, None)


def test_a_device_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert block.look("7:1048575") is None
    link(tmp_path, "8:0", "devices/sda")  # the link stays for a moment
    assert block.look("8:0", sysfs=str(tmp_path)) is None


def test_a_partition_has_the_state_of_its_disk(tmp_path: Path) -> None:
    disk = "devices__sda"
    write_tree(tmp_path, **{f"{disk}__device__state": "offline", f"{disk}__size": "99", f"{disk}__ro": "0"})
    write_tree(tmp_path, **{f"{disk}__sda1__size": "8", f"{disk}__sda1__ro": "1", f"{disk}__sda1__partition": "1"})
    link(tmp_path, "8:1", "devices/sda/sda1")
    found = block.look("8:1", sysfs=str(tmp_path))
    assert found == block.Device("8:1", "sda1", 4096, is_read_only=True, state="offline", missing=None, backing=None)


def test_an_array_tells_what_it_lacks_and_what_it_is_made_of(tmp_path: Path) -> None:
    for number, name in enumerate(("sda", "sdb")):
        write_tree(tmp_path, **{f"devices__{name}__size": "8", f"devices__{name}__dev": f"8:{number * 16}"})
        link(tmp_path, f"8:{number * 16}", f"devices/{name}")
    write_tree(tmp_path, devices__md0__size="8", devices__md0__md__degraded="1", devices__md0__dev="9:0")
    link(tmp_path, "9:0", "devices/md0")
    slaves = tmp_path / "devices" / "md0" / "slaves"
    slaves.mkdir()
    for name in ("sda", "sdb"):
        (slaves / name).symlink_to(tmp_path / "devices" / name)
    found = block.look("9:0", sysfs=str(tmp_path))
    assert found is not None
    assert found.missing == 1
    assert [number for number, _ in block.below("9:0", sysfs=str(tmp_path))] == ["9:0", "8:0", "8:16"]


def test_devices_that_seem_to_lie_on_each_other_are_looked_at_once(tmp_path: Path) -> None:
    write_tree(tmp_path, devices__dm__size="8", devices__dm__dev="253:0", devices__dm__slaves__dm__dev="253:0")
    link(tmp_path, "253:0", "devices/dm")
    assert [number for number, _ in block.below("253:0", sysfs=str(tmp_path))] == ["253:0"]


@pytest.mark.root
def test_ext4_counts_its_errors(scratch: Scratch) -> None:
    entry = mount.at(scratch.make("ext4", size_bytes=64 << 20))
    assert entry is not None
    name = Path(entry.source).name
    assert counters.of_ext4(name) == (
        counters.Count(name, "errors_count", 0),
        counters.Count(name, "warning_count", 0),
    )
    count_ext4_error(name)
    assert counters.of_ext4(name)[0] == counters.Count(name, "errors_count", 1)
    assert counters.of_ext4("none") == ()


@pytest.mark.root
def test_btrfs_counts_the_errors_of_each_device(scratch: Scratch) -> None:
    place = scratch.make("btrfs", size_bytes=256 << 20)
    entry = mount.at(place)
    assert entry is not None
    identity = counters.file_system_id(str(place))
    kinds = ["write_errs", "read_errs", "flush_errs", "corruption_errs", "generation_errs"]
    assert counters.of_btrfs(identity) == tuple(counters.Count("1", kind, 0) for kind in kinds)
    numbers = Path(f"/sys/block/{Path(entry.source).name}/dev").read_text().strip()
    assert counters.members(identity) == counters.Members((numbers,), ())


def test_a_btrfs_that_lacks_a_device_tells_which(tmp_path: Path) -> None:
    write_tree(tmp_path, fs__btrfs__id__devinfo__1__missing="0", fs__btrfs__id__devinfo__2__missing="1")
    write_tree(tmp_path, fs__btrfs__id__devinfo__1__error_stats="write_errs 3\nread_errs 0")
    write_tree(tmp_path, fs__btrfs__id__devinfo__2__error_stats="invalid")
    write_tree(tmp_path, fs__btrfs__id__devices__sda__dev="8:0")
    assert counters.members("id", sysfs=str(tmp_path)) == counters.Members(("8:0",), ("2",))
    assert counters.of_btrfs("id", sysfs=str(tmp_path)) == (
        counters.Count("1", "write_errs", 3),
        counters.Count("1", "read_errs", 0),
    )
    assert counters.of_btrfs("another", sysfs=str(tmp_path)) == ()
    assert counters.members("another", sysfs=str(tmp_path)) == counters.Members((), ())
