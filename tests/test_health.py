"""What befalls devices and file systems under pools and volumes is their health, an event and a line of the log."""

import ctypes
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.docs import Page
from tests.engines import Bench
from tests.memory import Memory, Switch
from tests.running import Running, pools_config
from tests.scratch import Scratch, count_ext4_error
from tests.test_events import Stream
from tests.test_uevent import announce
from tests.world import until
from voldriverd import health, model, store
from voldriverd.cli import events as cli_events
from voldriverd.cli.connection import Resource
from voldriverd.engine import health as looking
from voldriverd.engine import pools
from voldriverd.engine.ailments import Ailments
from voldriverd.kernel import block, counters, fs, ioctl, loop, mount, run, tree, uevent
from voldriverd.model import Health, Trouble
from voldriverd.runner import CAUSE

pytestmark = pytest.mark.root

MIB: Final = 1 << 20
SIZES: Final = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 256 * MIB}
XFS_IOC_GOINGDOWN: Final = ioctl.ior(ord("X"), 125, 4)
XFS_FSOP_GOING_FLAGS_NOLOGFLUSH: Final = 2
"""fs/xfs/libxfs/xfs_fs.h"""
NEVER_S: Final = 3_600.0


class DiskBench(Bench):
    """An engine whose pool lies elsewhere than its database."""

    def __init__(self, base: Path, pool_root: Path) -> None:
        self._pool_root = pool_root
        super().__init__(base)

    @property
    def pool_root(self) -> Path:
        return self._pool_root


class Disk(NamedTuple):
    """A file system on a loop device, with an engine whose pool lies there."""

    bench: Bench
    place: Path
    image: Path
    device: loop.Device
    looks: looking.Looks

    @property
    def pool(self) -> pools.Pool:
        return next(iter(self.bench.engine.pools))

    def look(self) -> set[Trouble]:
        """Look, and return what ails the pool."""
        self.looks.look()
        return {ailment.trouble for ailment in self.pool.ailments}

    def set_size(self, size_bytes: int) -> None:
        """Make image and device larger or smaller."""
        os.truncate(self.image, size_bytes)
        loop.refresh_capacity(self.device)

    def err(self) -> None:
        """Have an ext4 count an error."""
        count_ext4_error(f"loop{self.device.number}")


def device_of(place: Path) -> tuple[Path, loop.Device]:
    """Return the image of a scratch file system, and its device."""
    image = place.with_suffix(".img")
    device = loop.attached(image)
    assert device is not None
    return image, device


def shut_down(place: Path) -> None:
    """Have an xfs give up, as after an error of its log."""
    fd = os.open(place, os.O_RDONLY)
    try:
        ioctl.call(fd, XFS_IOC_GOINGDOWN, ctypes.c_uint64(XFS_FSOP_GOING_FLAGS_NOLOGFLUSH))
    finally:
        os.close(fd)


@pytest.fixture
def disk(scratch: Scratch, memory_root: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    fs_type = getattr(request, "param", "ext4")
    place = scratch.make(fs_type, size_bytes=SIZES[fs_type])
    bench = DiskBench(memory_root, place / "pool")
    try:
        yield Disk(bench, place, *device_of(place), looking.Looks(bench.engine))
    finally:
        bench.close()
        tree.vanish(bench.root.parent)


on_each = pytest.mark.parametrize("disk", SIZES, indirect=True)
on_xfs = pytest.mark.parametrize("disk", ["xfs"], indirect=True)
on_btrfs = pytest.mark.parametrize("disk", ["btrfs"], indirect=True)


@on_each
def test_a_sound_pool_is_available_and_its_counters_are_known(disk: Disk) -> None:
    found = disk.looks.look()
    assert (disk.pool.health, disk.pool.trouble, found.turns, found.resized) == (Health.AVAILABLE, None, [], [])
    assert found.devices == {disk.device.numbers}
    assert sum(count.count for count in disk.pool.counts) == 0
    entry = mount.at(disk.place)
    assert entry is not None
    assert len(disk.pool.counts) == {"ext4": 2, "xfs": 0, "btrfs": 5}[entry.fs_type]


def test_errors_that_ext4_has_counted_are_told_once_and_shown_as_they_are(disk: Disk) -> None:
    disk.look()
    disk.err()
    (turn,) = disk.looks.look().turns
    assert (turn.kind, turn.name, turn.health) == ("pool", "memory", Health.DEGRADED)
    assert turn.text == "its ext4 has counted errors: errors_count 1"
    disk.err()
    assert disk.looks.look().turns == []
    assert disk.pool.trouble == "its ext4 has counted errors: errors_count 2"
    assert disk.pool.counts[0] == counters.Count(f"loop{disk.device.number}", "errors_count", 2)


@on_each
def test_a_file_system_that_is_read_only_is_degraded_until_it_is_not(disk: Disk) -> None:
    mount.mount("none", disk.place, flags=mount.MS_REMOUNT | mount.MS_RDONLY)
    (turn,) = disk.looks.look().turns
    assert turn.health is Health.DEGRADED
    assert "is read-only (ro)" in str(turn.text)
    mount.mount("none", disk.place, flags=mount.MS_REMOUNT)
    (turn,) = disk.looks.look().turns
    assert (turn.health, turn.text, disk.pool.trouble) == (Health.AVAILABLE, None, None)


def test_an_ext4_that_gives_up_is_read_only_although_it_is_mounted_for_writing(disk: Disk) -> None:
    mount.mount("none", disk.place, flags=mount.MS_REMOUNT, data="errors=remount-ro")
    disk.err()
    assert disk.look() == {Trouble.READ_ONLY, Trouble.ERRORS}
    entry = mount.at(disk.place)
    assert entry is not None
    assert {"ro", "emergency_ro"} & set(entry.super_options.split(","))


@on_xfs
def test_an_xfs_that_is_shut_down_is_unavailable(disk: Disk) -> None:
    disk.look()
    shut_down(disk.place)
    (turn,) = disk.looks.look().turns
    assert turn.health is Health.UNAVAILABLE
    assert turn.text == f"{disk.pool.row.path} fails: Input/output error"


@on_btrfs
def test_errors_of_btrfs_are_counted_until_they_are_reset(disk: Disk) -> None:
    disk.look()
    filled = disk.place / "filled"
    filled.write_bytes(os.urandom(MIB))
    os.sync()
    with disk.image.open("r+b") as image:
        image.seek(disk.image.read_bytes().find(filled.read_bytes()[:4096]))
        image.write(bytes(4096))
    fd = os.open(filled, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match="Input/output error"):
            os.read(fd, 4096)
    finally:
        os.close(fd)
    assert disk.look() == {Trouble.ERRORS}
    assert "its btrfs has counted errors: corruption_errs" in str(disk.pool.trouble)
    run.run(["btrfs", "device", "stats", "-z", str(disk.place)])
    assert disk.look() == set()


@on_each
def test_a_device_that_grows_is_told_and_one_that_shrinks_is_trouble_until_it_grows_again(disk: Disk) -> None:
    size_bytes = disk.image.stat().st_size
    disk.look()
    disk.set_size(size_bytes + 8 * MIB)
    ((pool, text),) = disk.looks.look().resized
    assert (pool, disk.pool.health) == (disk.pool, Health.AVAILABLE)
    was, now = size_bytes // MIB, size_bytes // MIB + 8
    assert text == f"its device loop{disk.device.number} has {now} MiB now, it had {was} MiB"
    disk.set_size(size_bytes + 4 * MIB)
    for _ in range(2):
        assert disk.look() == {Trouble.DEVICE_SHRUNK}
    assert "shrank to" in str(disk.pool.trouble)
    disk.set_size(size_bytes + 8 * MIB)
    assert disk.look() == set()


@on_each
def test_a_device_that_is_smaller_than_its_file_system_is_trouble_whenever_that_came(disk: Disk) -> None:
    size_bytes = disk.image.stat().st_size
    disk.set_size(size_bytes // 2)
    assert disk.look() == {Trouble.DEVICE_SHRUNK}
    assert f"lies on loop{disk.device.number} of {size_bytes // 2 // MIB} MiB" in str(disk.pool.trouble)
    disk.set_size(size_bytes)
    assert disk.look() == set()


def test_an_image_that_was_cut_short_or_deleted_is_trouble(disk: Disk) -> None:
    size_bytes = disk.image.stat().st_size
    os.truncate(disk.image, size_bytes - MIB)
    assert disk.look() == {Trouble.IMAGE_SHORT}
    assert "was cut short: it has 63 MiB, the device" in str(disk.pool.trouble)
    os.truncate(disk.image, size_bytes)
    assert disk.look() == set()
    spare = disk.image.with_name("spare")
    os.link(disk.image, spare)
    disk.image.unlink()
    assert disk.look() == {Trouble.IMAGE_DELETED}
    os.link(spare, disk.image)
    spare.unlink()


def test_a_device_that_is_read_only_is_trouble_for_who_writes(disk: Disk) -> None:
    run.run(["blockdev", "--setro", disk.device.path])
    assert disk.look() == {Trouble.DEVICE_READ_ONLY}
    run.run(["blockdev", "--setrw", disk.device.path])
    assert disk.look() == set()


@pytest.mark.parametrize(
    ("changes", "trouble", "fares"),
    [
        ({"state": "offline"}, Trouble.DEVICE_OFFLINE, Health.UNAVAILABLE),
        ({"state": "dead"}, Trouble.DEVICE_OFFLINE, Health.UNAVAILABLE),
        ({"state": "running", "missing": 0}, None, Health.AVAILABLE),
        ({"missing": 1}, Trouble.MEMBERS_MISSING, Health.DEGRADED),
    ],
)
def test_the_state_of_a_device_is_the_health_of_its_pool(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], trouble: Trouble | None, fares: Health
) -> None:
    look = block.look

    def changed(numbers: str, **options: Any) -> block.Device | None:
        device = look(numbers, **options)
        return None if device is None else replace(device, **changes)

    monkeypatch.setattr(block, "look", changed)
    assert disk.look() == (set() if trouble is None else {trouble})
    assert disk.pool.health is fares


def test_a_device_that_went_away_makes_its_pool_unavailable(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "look", lambda _, **_options: None)
    assert disk.look() == {Trouble.DEVICE_GONE}
    assert disk.pool.health is Health.UNAVAILABLE


@on_btrfs
def test_a_btrfs_that_lacks_a_device_is_degraded(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    members = counters.members

    def lacking(identity: str) -> counters.Members:
        return replace(members(identity), missing=("2",))

    monkeypatch.setattr(counters, "members", lacking)
    assert disk.look() == {Trouble.MEMBERS_MISSING}
    assert disk.pool.trouble == "its btrfs lacks a device (2)"


def test_a_volume_on_the_file_system_of_its_pool_has_no_trouble_of_its_own(disk: Disk) -> None:
    volume = disk.bench.create("db")
    disk.bench.mount("db")
    entry = mount.at(disk.bench.engine.mounts / volume.tree)
    assert entry is not None
    assert entry.device == disk.device.numbers
    disk.err()
    assert disk.look() == {Trouble.ERRORS}
    assert disk.bench.engine.ailments.all() == {}
    disk.bench.unmount("db")


def test_a_volume_that_is_only_read_is_not_taken_for_one_that_gave_up(disk: Disk, scratch: Scratch) -> None:
    volume = disk.bench.create("db")
    place = disk.bench.engine.mounts / volume.tree
    place.mkdir(exist_ok=True)
    other = scratch.make("ext4", size_bytes=SIZES["ext4"])
    mount.bind(other, place, read_only=True)
    found = disk.looks.look()
    assert found.volumes == {device_of(other)[1].numbers}
    assert disk.bench.engine.ailments.all() == {}
    mount.mount("none", other, flags=mount.MS_REMOUNT | mount.MS_RDONLY)
    disk.looks.look()
    (ailment,) = disk.bench.engine.ailments.of(volume.id)
    mount.unmount(place)
    assert ailment.trouble is Trouble.READ_ONLY


def test_what_has_just_gone_is_left_as_it_was(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.err()
    disk.look()

    def gone(_: Path) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(mount, "id_of", gone)
    assert disk.look() == {Trouble.ERRORS}


def test_a_pool_that_ails_gets_a_new_volume_only_where_there_is_no_other(tmp_path: Path) -> None:
    def make(root: Path) -> Memory:
        return Memory(root, tmp_path / "mounts", Switch())

    with closing(store.Store(tmp_path)) as database:
        specs = [pools.Spec(name, "memory", tmp_path / name, make) for name in ("one", "two")]
        opened = pools.Pools(database, specs, default_driver="memory")
        opened.open_all(lambda _pool, _driver: None)
        one, two = opened
        ailing = (model.Ailment(Trouble.ERRORS, "it has counted errors"),)
        for sick, well in ((one, two), (two, one)):
            opened.note(sick, ailing, ())
            opened.note(well, (), ())
            assert opened.choose(driver=None, name=None)[0] is well
            assert opened.choose(driver=None, name=sick.row.name)[0] is sick
        opened.note(one, ailing, ())
        opened.note(two, ailing, ())
        assert opened.choose(driver=None, name=None)[0] in [one, two]


@pytest.fixture
def watched(disk: Disk) -> Iterator[Callable[[float], list[Health]]]:
    """Give what starts a watcher of a disk that looks so often, and returns the healths that it tells."""
    started: list[health.Watcher] = []

    def start(look_s: float) -> list[Health]:
        told: list[Health] = []
        looked = threading.Event()
        look = disk.looks.look
        watcher = health.Watcher(disk.bench.engine, look_s=look_s)
        disk.bench.engine.pools.watch(lambda pool: told.append(pool.health))

        def looking_once() -> looking.Found:
            found = look()
            looked.set()
            return found

        watcher._looks.look = looking_once  # type: ignore[method-assign]
        watcher.start()
        started.append(watcher)
        assert looked.wait(20)
        return told

    yield start
    for watcher in started:
        watcher.stop()


def test_an_event_of_a_device_is_followed_by_a_look(disk: Disk, watched: Callable[[float], list[Health]]) -> None:
    told = watched(NEVER_S)
    disk.set_size(SIZES["ext4"] // 2)
    until(lambda: told[-1:] == [Health.DEGRADED], "the shrunken device")
    disk.set_size(SIZES["ext4"])
    until(lambda: told[-1:] == [Health.AVAILABLE], "the whole device")


def test_a_resize_is_told_with_the_health_as_it_is_and_a_cause_of_its_own(
    disk: Disk, watched: Callable[[float], list[Health]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    causes: list[str] = []
    disk.bench.engine.pools.watch(lambda _: causes.append(CAUSE.get()))
    told = watched(NEVER_S)
    disk.set_size(72 * MIB)
    until(lambda: told == [Health.AVAILABLE], "the larger device")
    assert causes == ["resize"]
    assert (
        f"verb=health pool=memory health=available result=its device loop{disk.device.number} has 72 MiB" in caplog.text
    )


def test_a_lost_event_is_followed_by_a_look(
    disk: Disk, watched: Callable[[float], list[Health]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(uevent, "_BUFFER_BYTES", 1)
    told = watched(NEVER_S)
    disk.err()  # of which there is no event
    (tmp_path / "other").write_bytes(bytes(MIB))
    with loop.held(tmp_path / "other") as other:
        announce(other, 50)
        until(lambda: told == [Health.DEGRADED], "a look after what was lost")


def test_events_of_others_are_passed_over(
    disk: Disk, watched: Callable[[float], list[Health]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = threading.Event()
    take = uevent.Listener.take

    def taking(self: uevent.Listener) -> tuple[list[uevent.Uevent], bool]:
        events, _ = take(self)
        taken.set()
        return [event for event in events if event.numbers != disk.device.numbers], False

    monkeypatch.setattr(uevent.Listener, "take", taking)
    told = watched(NEVER_S)
    disk.err()
    (tmp_path / "other").write_bytes(bytes(MIB))
    with loop.held(tmp_path / "other") as other:
        announce(other, 1)
        assert taken.wait(20)
        taken.clear()
        announce(other, 1)
        assert taken.wait(20)
    assert told == []


def test_where_there_are_no_events_it_is_looked_and_that_is_told_once(
    disk: Disk,
    watched: Callable[[float], list[Health]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def none() -> uevent.Listener:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(uevent, "Listener", none)
    told = watched(0.05)
    for _ in range(2):
        disk.set_size(SIZES["ext4"] // 2)
        until(lambda: told and told[-1] is Health.DEGRADED, "the shrunken device")
        disk.set_size(SIZES["ext4"])
        until(lambda: told[-1] is Health.AVAILABLE, "the whole device")
    said = [record.getMessage() for record in caplog.records if "no events of devices" in record.getMessage()]
    assert said == [
        "verb=health result=no events of devices can be had here (Protocol not supported): looking every 2 s"
    ]


def test_a_look_that_fails_is_told_once_and_the_next_one_counts(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = health.Watcher(disk.bench.engine)
    with monkeypatch.context() as patch:
        patch.setattr(mount, "matching", lambda _: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")))
        for _ in range(3):
            watcher._look()
    failures = [record for record in caplog.records if "Too many open files" in record.getMessage()]
    assert [record.levelno for record in failures] == [logging.WARNING]
    disk.err()
    watcher._look()
    assert disk.pool.health is Health.DEGRADED


def test_a_long_look_is_followed_by_a_longer_rest(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    watcher = health.Watcher(disk.bench.engine, look_s=0.001)
    times = iter([10.0, 10.5, 20.0, 20.0001, 30.0, 90.0])
    monkeypatch.setattr(time, "thread_time", lambda: next(times))
    monkeypatch.setattr(watcher, "_look", lambda: None)

    def resting(_listener: object, rest_s: float) -> None:
        rests.append(rest_s)
        watcher._is_stopped = len(rests) == 3

    monkeypatch.setattr(watcher, "_rest", resting)
    watcher._run()
    assert rests == pytest.approx([25.0, 0.005, health.REST_MAX_S])


def test_an_ailing_volume_is_told_when_the_kind_of_its_trouble_changes_and_shown_as_it_is() -> None:
    told: list[model.VolumeId] = []
    ailing, volume_id = Ailments(), model.VolumeId(1)
    ailing.watch(told.append)
    one, two = (model.Ailment(Trouble.ERRORS, f"errors_count {count}") for count in (1, 2))
    assert ailing.put({volume_id: (one,)}) == [volume_id]
    assert ailing.put({volume_id: (two,)}) == []
    assert ailing.of(volume_id) == (two,)
    assert ailing.put({volume_id: (two, model.Ailment(Trouble.READ_ONLY, "ro"))}) == [volume_id]
    assert ailing.put({}) == [volume_id]
    assert told == [volume_id] * 3
    assert ailing.of(volume_id) == ()


def test_the_worst_trouble_is_the_health() -> None:
    mild, grave = model.Ailment(Trouble.ERRORS, "a"), model.Ailment(Trouble.DEVICE_GONE, "b")
    assert [model.health_of(each) for each in ((), (mild,), (mild, grave))] == list(Health)
    assert model.worst(Health.DEGRADED, Health.AVAILABLE) is Health.DEGRADED
    assert model.worst(Health.DEGRADED, Health.UNAVAILABLE) is Health.UNAVAILABLE
    assert model.told((mild, grave)) == "a; b"


def test_the_command_shows_what_is_wrong() -> None:
    event = Resource({"time": "2026-01-02T03:04:05Z", "resourceType": "storagePool", "resourceId": "1sp1"})
    event |= {"name": "fast", "state": "active", "cause": "health", "message": "its ext4 has counted errors"}
    assert cli_events._line(event).endswith("health     fast: its ext4 has counted errors")
    assert cli_events._line(Resource({**event, "message": None})).endswith("health     fast")


class Host(NamedTuple):
    """A daemon with a pool of directories on an ext4, and one of images on an xfs."""

    daemon: Running
    plain: Path
    images: Path

    def row(self, kind: str, name: str) -> dict[str, Any]:
        """Return a resource by its name."""
        rows = self.daemon.api("GET", f"/v1/{kind}s").body["data"]
        return next(dict(row) for row in rows if row["name"] == name)

    def create(self, name: str, **options: str) -> Path:
        """Make a volume in the pool of images, and mount it."""
        for method, fields in (("Create", {"Opts": {"pool": "images", **options}}), ("Mount", {"ID": "c1"})):
            answer = self.daemon.plugin(f"VolumeDriver.{method}", Name=name, **fields)
            assert answer.body["Err"] == ""
        return Path(answer.body["Mountpoint"])

    def remove(self, name: str) -> None:
        """Unmount a volume and put it in the trash."""
        for method in ("Unmount", "Remove"):
            assert self.daemon.plugin(f"VolumeDriver.{method}", Name=name, ID="c1").body["Err"] == ""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    base = tmp_path_factory.mktemp("health")
    scratch = Scratch(base / "session-scratch")  # for the check of leaks: one of its mounts is made anew by a test
    try:
        plain, images = scratch.make("ext4", size_bytes=64 * MIB), scratch.make("xfs")
        config = 'reserve = "0%"\nreconcile_interval = "1s"\n'
        config += pools_config(plain=("directory", plain / "pool"), images=("loop", images / "pool"))
        with Running(base / "daemon", config=config) as daemon:
            yield Host(daemon, plain, images)
            assert "Traceback" not in daemon.log
    finally:
        scratch.close()


def told(
    stream: Stream, resource: str, name: str, fares: Health | None, cause: str | None = "health"
) -> dict[str, Any]:
    """Return the next event of somebody's health, from whomever (None); other events are passed over."""
    while True:
        event = stream.next().data
        is_his = (event["resourceType"], event["name"]) == (resource, name) and cause in {None, event["cause"]}
        if is_his and (fares is None or event["health"] == fares):
            return dict(event)


def test_errors_under_a_pool_are_told_within_seconds_and_so_is_their_end(host: Host) -> None:
    _, device = device_of(host.plain)
    with Stream(host.daemon.api_socket) as stream:
        count_ext4_error(f"loop{device.number}")
        event = told(stream, "storagePool", "plain", Health.DEGRADED)
        assert (event["state"], event["message"]) == ("active", "its ext4 has counted errors: errors_count 1")
        row = host.row("storagepool", "plain")
        assert (row["state"], row["health"], row["transitioning"]) == ("active", "degraded", "no")
        assert row["transitioningMessage"] == event["message"]
        assert host.row("storagepool", "images")["health"] == "available"
        listed = host.daemon.cli("pool", "ls")
        assert "pool plain is degraded: its ext4 has counted errors" in listed.stderr
        until(lambda: 'verb=health pool=plain health=degraded result="its ext4 has' in host.daemon.log, "the log")
        run.run(["umount", str(host.plain)])
        event = told(stream, "storagePool", "plain", Health.UNAVAILABLE, cause=None)
        assert (event["state"], "was unmounted" in event["message"]) == ("inactive", True)
        run.run(["e2fsck", "-f", "-y", str(host.plain.with_suffix(".img"))], good=(0, 1))
        run.run(["mount", "-o", "loop", str(host.plain.with_suffix(".img")), str(host.plain)])
        event = told(stream, "storagePool", "plain", Health.AVAILABLE, cause=None)
        assert (event["state"], event["message"]) == ("active", None)
    until(lambda: host.row("storagepool", "plain")["health"] == "available", "the pool")


def test_a_volume_whose_file_system_errs_is_degraded_alone_until_it_is_unmounted(host: Host) -> None:
    place, other = (host.create(name, size="32M") for name in ("errs", "sound"))
    number = os.minor(place.stat().st_dev)
    with Stream(host.daemon.api_socket) as stream:
        count_ext4_error(f"loop{number}")
        event = told(stream, "volume", "errs", Health.DEGRADED)
        assert (event["state"], "its ext4 has counted errors: errors_count 1" in event["message"]) == ("active", True)
        row = host.row("volume", "errs")
        assert (row["health"], row["transitioning"], row["transitioningMessage"]) == (
            "degraded",
            "no",
            event["message"],
        )
        assert host.row("volume", "sound")["health"] == "available"
        assert host.row("storagepool", "images")["health"] == "available"
        assert other.stat().st_dev != place.stat().st_dev
        host.remove("errs")
        event = told(stream, "volume", "errs", Health.AVAILABLE)
        assert event["message"] is None
    host.remove("sound")


def test_the_check_in_the_docs_ends_what_ails_a_volume(host: Host) -> None:
    place = host.create("mended", size="32M")
    fs.write_durably(place / "file", b"kept")
    with Stream(host.daemon.api_socket) as stream:
        count_ext4_error(f"loop{os.minor(place.stat().st_dev)}")
        told(stream, "volume", "mended", Health.DEGRADED)
        assert host.daemon.plugin("VolumeDriver.Unmount", Name="mended", ID="c1").body["Err"] == ""
        told(stream, "volume", "mended", Health.AVAILABLE)
    (block,) = Page("docs/health.md").blocks
    command = block.text.replace("POOL", str(host.images / "pool")).replace("KEY", place.name)
    run.run(command.split(), good=(0, 1))
    assert host.daemon.plugin("VolumeDriver.Mount", Name="mended", ID="c1").body["Err"] == ""
    name = f"loop{os.minor(place.stat().st_dev)}"
    assert counters.of_ext4(name)[0] == counters.Count(name, "errors_count", 0)
    assert (place / "file").read_text() == "kept"
    host.remove("mended")


def test_a_volume_whose_image_is_cut_short_is_degraded_until_it_is_whole_again(host: Host) -> None:
    place = host.create("short", size="32M")
    image = host.images / "pool" / "trees" / place.name
    with Stream(host.daemon.api_socket) as stream:
        os.truncate(image, 31 * MIB)
        event = told(stream, "volume", "short", Health.DEGRADED)
        assert f"its image {image} was cut short: it has 31 MiB" in event["message"]
        os.truncate(image, 32 * MIB)
        told(stream, "volume", "short", Health.AVAILABLE)
    host.remove("short")


def test_a_volume_whose_file_system_is_shut_down_is_unavailable(host: Host) -> None:
    place = host.create("down", size="320M", fs="xfs")
    with Stream(host.daemon.api_socket) as stream:
        shut_down(place)
        event = told(stream, "volume", "down", Health.UNAVAILABLE)
        row = host.row("volume", "down")
        assert (row["health"], row["transitioning"]) == ("unavailable", "error")
        assert row["transitioningMessage"] == event["message"] == "its file system fails: Input/output error"
        listed = host.daemon.cli("volume", "ls")
        assert any("down" in line and "unavailable" in line for line in listed.stdout.splitlines())
        run.run(["umount", str(place)])
        host.remove("down")
        told(stream, "volume", "down", Health.AVAILABLE)
