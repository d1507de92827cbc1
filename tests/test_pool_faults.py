"""What lies below a pool goes away, becomes read-only, fails or is cut short, under a daemon that serves it."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.running import Answer, Running, pools_config
from tests.scratch import Scratch, loops_under, unmount_under
from tests.world import until
from voldriverd.kernel import mount, run

pytestmark = pytest.mark.root

MIB: Final = 1 << 20
DRIVERS: Final = ("btrfs", "loop", "directory")
INTERVAL: Final = 'reconcile_interval = "1s"\n'


@dataclass(frozen=True, slots=True)
class Host:
    """A daemon with a pool of each driver on a file system of its own, and one of directories, `good`, elsewhere."""

    daemon: Running
    place: Path
    image: Path
    device: str

    def ask(self, method: str, name: str, **fields: object) -> Answer:
        """Ask the plugin about a volume."""
        return self.daemon.plugin(f"VolumeDriver.{method}", Name=name, **fields)

    def create(self, name: str, pool: str) -> Answer:
        """Make a volume, a small one."""
        return self.ask("Create", name, Opts={"pool": pool, **({"size": "16M"} if pool == "loop" else {})})

    def mount(self, name: str) -> Path:
        """Mount a volume."""
        answer = self.ask("Mount", name, ID="c1")
        assert answer.body["Err"] == "", answer.body
        return Path(answer.body["Mountpoint"])

    def unmount(self, name: str) -> str:
        """Unmount a volume, and return what is said."""
        said: str = self.ask("Unmount", name, ID="c1").body["Err"]
        return said

    def read(self, name: str) -> str:
        """Return what a volume holds."""
        text = (self.mount(name) / "file").read_text()
        assert self.unmount(name) == ""
        return text

    def names(self) -> set[str]:
        """Return the volumes that are listed."""
        return {each["Name"] for each in self.daemon.plugin("VolumeDriver.List").body["Volumes"]}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Make a host on which each pool has a volume of its name, with its name in it."""
    memory = tmp_path / "memory"
    memory.mkdir()
    mount.mount("tmpfs", memory, fs_type="tmpfs", data="size=160m")
    scratch = Scratch(memory / "scratch")
    try:
        place = scratch.make("btrfs", size_bytes=256 * MIB)
        entry = mount.at(place)
        assert entry is not None
        pools = {driver: (driver, place / driver) for driver in DRIVERS} | {"good": ("directory", tmp_path / "good")}
        config = f'reserve = "0%"\n{INTERVAL}{pools_config(**pools)}'
        with Running(tmp_path / "daemon", config=config) as daemon:
            made = Host(daemon, place, memory / "scratch" / "fs0.img", entry.source)
            for pool in pools:
                assert made.create(pool, pool).body["Err"] == ""
                (made.mount(pool) / "file").write_text(pool)
                made.unmount(pool)
            yield made
            assert "Traceback" not in daemon.log
    finally:
        unmount_under(memory / "scratch")
        scratch.close()
        until(lambda: not loops_under(memory), "the loop devices to be gone")
        mount.unmount(memory)


def refused(ask: Callable[[int], Answer]) -> str:
    """Ask until it is refused, and return why."""
    for number in range(50):
        answer = ask(number)
        if answer.status != 200:
            said: str = answer.body["Err"]
            return said
    raise AssertionError("it is never refused")


def test_a_pool_that_is_unmounted_is_not_taken_for_an_empty_one_and_comes_back(host: Host) -> None:
    held = {driver: host.mount(driver) for driver in DRIVERS}
    host.ask("Remove", "good")
    for driver in DRIVERS:
        host.create(f"{driver}-old", driver)
    run.run(["umount", "--lazy", str(host.place)])
    for driver in DRIVERS:
        for said in (
            host.create(f"{driver}-new", driver).body["Err"],
            host.ask("Mount", f"{driver}-old", ID="c2").body["Err"],
            host.ask("Remove", f"{driver}-old").body["Err"],
        ):
            assert "was unmounted" in said or "is not mounted" in said
        assert host.ask("Get", driver).body["Volume"]["Mountpoint"] == str(held[driver])
        assert (held[driver] / "file").read_text() == driver  # who has it goes on
    assert host.names() == {*DRIVERS, *(f"{driver}-old" for driver in DRIVERS)}
    until(lambda: host.daemon.log.count("is not mounted or was emptied") >= 2 * len(DRIVERS), "two looks at the pools")
    assert os.listdir(host.place) == []
    mount.mount(host.device, host.place, fs_type="btrfs")
    for driver in DRIVERS:
        until(partial(mounts_again, host, f"{driver}-old"), f"pool {driver}")
        assert host.ask("Unmount", f"{driver}-old", ID="c2").body["Err"] == ""
        assert host.ask("Remove", f"{driver}-old").body["Err"] == ""
        assert host.unmount(driver) == ""
        assert host.read(driver) == driver


def test_what_was_to_be_removed_while_its_pool_was_unmounted_is_removed_when_it_is_back(host: Host) -> None:
    for driver in DRIVERS:
        assert host.ask("Remove", driver).body["Err"] == ""
    rows = host.daemon.api("GET", "/v1/volumes?state=removed&removed_notnull=1").body["data"]
    mount.unmount(host.place)
    for row in rows:
        assert not is_purged(host, row["id"])
    run.run(["mount", "-t", "btrfs", "-o", "loop", str(host.image), str(host.place)])
    for row in rows:
        until(partial(is_purged, host, row["id"]), f"the pool of volume {row['name']}")
    until(lambda: not list(host.place.glob("*/trees/*")), "the trees to be gone")


def test_a_read_only_file_system_serves_what_it_can_and_says_why_it_refuses(host: Host) -> None:
    mount.mount("none", host.place, flags=mount.MS_REMOUNT | mount.MS_RDONLY)
    for driver in DRIVERS:
        said = host.create(f"{driver}-new", driver).body["Err"]
        assert f"{driver}-new" in said
        assert "read-only" in said
        row = next(row for row in host.daemon.api("GET", "/v1/volumes").body["data"] if row["name"] == driver)
        snapshot = host.daemon.api("POST", f"/v1/volumes/{row['id']}/?action=snapshot", {"name": "one"})
        assert "read-only" in snapshot.body["message"] + str(snapshot.body["detail"])
    assert host.names() == {*DRIVERS, "good"}
    assert host.read("good") == "good"
    host.daemon.restart()
    assert host.names() == {*DRIVERS, "good"}
    assert host.read("good") == "good"
    mount.mount("none", host.place, flags=mount.MS_REMOUNT)
    for driver in DRIVERS:
        until(partial(mounts_again, host, driver), f"pool {driver}")
        assert host.ask("Unmount", driver, ID="c2").body["Err"] == ""
        assert host.create(f"{driver}-new", driver).body["Err"] == ""
        assert host.read(driver) == driver


def test_a_failing_disk_is_named_and_the_other_pools_are_served(host: Host) -> None:
    held = {driver: host.mount(driver) for driver in DRIVERS}
    fill(host.image.parent)  # so that what the image has not yet allocated cannot be written
    for driver in DRIVERS:
        said = refused(partial(create_one, host, driver))
        assert f" volume {driver}-" in said
        assert "the device of the pool is failing" in said or "read-only" in said or "ended with status" in said
    assert set(DRIVERS) < host.names()
    assert host.create("more", "good").body["Err"] == ""
    assert host.read("good") == "good"
    for driver in DRIVERS:
        host.unmount(driver)
        assert mount.at(held[driver]) is None
    host.daemon.kill()
    host.daemon.start()
    assert set(DRIVERS) < host.names()
    assert host.read("good") == "good"


def test_images_that_were_cut_short_are_refused_and_the_others_are_served(host: Host) -> None:
    for kept_bytes in (0, 5_000, 8 * MIB):
        name = f"cut-{kept_bytes}"
        host.create(name, "loop")
        os.truncate(host.place / "loop" / "trees" / key(host, name), kept_bytes)
        said = host.ask("Mount", name, ID="c1").body["Err"]
        assert f"cannot mount volume {name}: its image is damaged or cut short" in said
        assert host.ask("Remove", name).body["Err"] == ""
    assert host.read("loop") == "loop"


def test_an_image_that_is_cut_short_while_it_is_mounted_fails_alone(host: Host) -> None:
    host.create("other", "loop")
    shown = host.mount("loop")
    other = host.mount("other")
    path = host.place / "loop" / "trees" / key(host, "loop")
    os.truncate(path, 64 << 10)
    with pytest.raises(OSError, match=r"Input/output error|Read-only file system|Structure needs cleaning"):
        write_until_refused(shown)
    (other / "file").write_bytes(bytes(MIB))
    for name in ("loop", "other"):
        assert host.unmount(name) == ""
        assert host.ask("Remove", name).body["Err"] == ""
    assert mount.at(shown) is None


def mounts_again(host: Host, name: str) -> bool:
    """Tell whether a volume can be mounted."""
    return not host.ask("Mount", name, ID="c2").body["Err"]


def is_purged(host: Host, volume_id: str) -> bool:
    """Purge a volume, and tell whether that was possible."""
    return host.daemon.api("POST", f"/v1/volumes/{volume_id}/?action=purge", {}).status == 200


def create_one(host: Host, driver: str, number: int) -> Answer:
    """Make one of many volumes, and mount it, for only then it must be on the disk."""
    name = f"{driver}-{number}"
    made = host.create(name, driver)
    if made.status == 200:
        made = host.ask("Mount", name, ID="c1")
        host.unmount(name)
    return made


def write_until_refused(place: Path) -> None:
    """Write and sync."""
    for number in range(12):
        fd = os.open(place / f"{number}", os.O_WRONLY | os.O_CREAT)
        try:
            os.write(fd, bytes(MIB))
            os.fsync(fd)
        finally:
            os.close(fd)


def fill(place: Path) -> None:
    """Take all space that is left in memory."""
    with suppress(OSError), (place / "filler").open("wb", buffering=0) as file:  # ENOSPC, at last
        while True:
            file.write(bytes(4096))


def key(host: Host, name: str) -> str:
    """Return the key of a volume's tree."""
    link = host.daemon.root / "by-name" / name
    until(partial(os.path.lexists, link), f"the link of volume {name}")
    return Path(os.readlink(link)).name
