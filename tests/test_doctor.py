"""`voldriver doctor` where the daemon was killed: each trouble is made for real, found, and mended where it may."""

import fcntl
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.doctors import Patient, found, well
from tests.running import Running, pools_config
from tests.scratch import Scratch, loops_under
from tests.world import until
from voldriverd.doctor import mend, scope
from voldriverd.doctor.finding import Act, Finding, Fix, Level
from voldriverd.engine import remembered
from voldriverd.kernel import mount

pytestmark = pytest.mark.root

MIB = 1 << 20
VOLUMES = {"db": "btrfs", "img": "loop", "www": "directory"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    scratch = Scratch(tmp_path_factory.mktemp("places"))
    btrfs, ext4 = scratch.make("btrfs"), scratch.make("ext4", size_bytes=256 * MIB)
    yield {"fast": btrfs / "fast", "images": ext4 / "images", "plain": scratch.make("tmpfs", size_bytes=32 * MIB) / "p"}
    scratch.close()


@pytest.fixture(scope="module")
def patient(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    """Give three pools with a volume in each, `img` mounted, and a daemon that was killed; no socket is left."""
    quota = f'[pools.fast]\ndriver = "btrfs"\npath = "{places["fast"]}"\nquota = "simple"\n'
    others = pools_config(images=("loop", places["images"]), plain=("directory", places["plain"]))
    daemon = Running(tmp_path_factory.mktemp("d"), config=quota + others)
    try:
        daemon.start()
        for name, driver in VOLUMES.items():
            options = {"size": "20M"} if driver == "loop" else {}
            assert (
                daemon.api("POST", "/v1/volumes", {"name": name, "driver": driver, "driverOpts": options}).status == 201
            )
        daemon.api("POST", "/v1/volumes/1v3?action=snapshot", {"name": "monday"})
        daemon.plugin("VolumeDriver.Mount", Name="img", ID="c1")
        links = daemon.root / "by-name"
        until(lambda: len(list(links.iterdir())) == 3 and remembered_in(places) == 3, "what is a second behind")
        daemon.kill()
        daemon.api_socket.unlink()
        daemon.plugin_socket.unlink()
        yield Patient(daemon)
    finally:
        daemon.close()


def remembered_in(places: dict[str, Path]) -> int:
    return sum(remembered.read(place).volume_count for place in places.values())


@contextmanager
def bound(image: Path, *options: str) -> Iterator[str]:
    """Give an image a loop device as `losetup` does."""
    argv = ["losetup", "--find", "--show", *options, str(image)]
    device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], capture_output=True, check=False)


# All is well


WELL = (
    *("file-systems", "loop-devices", "configuration", "database", "modes", "links", "pools", "direct-io", "quotas"),
    *("space", "leaked-loops", "leaked-mounts", "orphan-trees", "missing-trees"),
)


@pytest.mark.parametrize("check", WELL)
def test_where_nothing_is_wrong_nothing_is_said(patient: Patient, check: str) -> None:
    well(patient.look(check))


def test_nothing_is_changed_by_looking(patient: Patient) -> None:
    def state() -> list[tuple[str, int, int, int]]:
        paths = [path for path in patient.root.rglob("*") if "mounts/v2.1/" not in str(path)]
        statuses = [(str(path), path.lstat()) for path in sorted(paths)]
        return [
            (path, status.st_mode, status.st_size, status.st_mtime_ns)
            for path, status in statuses
            if "lock" not in path
        ]

    before = state()
    patient.look()
    after = [each for each in state() if each[0] != str(patient.root / "mounts")]
    assert after == [each for each in before if each[0] != str(patient.root / "mounts")]
    assert (patient.root / "voldriver.db-wal").exists(), "the journal of a daemon that was killed is read, not used up"


# The daemon


def test_a_dead_daemon_is_bad_and_how_to_start_it_is_said(patient: Patient) -> None:
    diagnosis = patient.look("daemon")
    found(diagnosis, "bad", "no daemon")
    assert "systemctl start voldriverd" in diagnosis.only["remedy"]


def test_a_wrong_configuration_is_said_and_the_rest_is_looked_at(patient: Patient) -> None:
    before = patient.daemon.config_file.read_text()
    patient.daemon.config_file.write_text('[pools.x]\ndriver = "zfs"\n')
    try:
        found(patient.look("configuration"), "bad", "zfs")
        assert len(patient.look().findings) > 15
        patient.root.chmod(0o755)
        assert patient.look("modes", "--fix").mended == [], "nobody knows whether this is the right root"
    finally:
        patient.root.chmod(0o711)
        patient.daemon.config_file.write_text(before)


# Sockets


@pytest.fixture
def dead_socket(patient: Patient) -> Iterator[Path]:
    path = patient.daemon.plugin_socket
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    yield path
    path.unlink(missing_ok=True)


def test_a_dead_socket_is_found_and_removed(patient: Patient, dead_socket: Path) -> None:
    found(patient.look("sockets"), "bad", f"{dead_socket} has nobody behind it")
    assert dead_socket.exists()
    mended = patient.look("sockets", "--fix")
    well(mended)
    assert mended.mended == [f"removed the dead socket {dead_socket}"]
    assert not dead_socket.exists()


def test_a_socket_that_somebody_listens_on_is_never_removed(patient: Patient, dead_socket: Path) -> None:
    dead_socket.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead_socket))
        listener.listen()
        patient.look("sockets", "--fix")
        assert dead_socket.exists()


@pytest.mark.parametrize(("mode", "level"), [(0o666, "bad"), (0o600, "warning")])
def test_a_socket_with_a_wrong_mode_is_found_and_set_right(
    patient: Patient, dead_socket: Path, mode: int, level: str
) -> None:
    dead_socket.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead_socket))
        listener.listen()
        shutil.chown(dead_socket, group="docker")
        dead_socket.chmod(mode)
        found(patient.look("sockets"), level, f"has mode {mode:04o}")
        patient.look("sockets", "--fix")
        assert stat.S_IMODE(dead_socket.stat().st_mode) == 0o660


def test_a_socket_of_a_wrong_group_is_found_and_set_right(patient: Patient, dead_socket: Path) -> None:
    dead_socket.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead_socket))
        listener.listen()
        dead_socket.chmod(0o660)
        shutil.chown(dead_socket, group="daemon")
        found(patient.look("sockets"), "warning", "has group daemon, and should have docker")
        patient.look("sockets", "--fix")
        assert dead_socket.group() == "docker"


def test_a_file_in_the_place_of_a_socket_is_found_and_left(patient: Patient) -> None:
    path = patient.daemon.plugin_socket
    path.write_text("mine")
    try:
        found(patient.look("sockets"), "bad", "is no socket")
        patient.look("sockets", "--fix")
        assert path.read_text() == "mine"
    finally:
        path.unlink()


# The database


def test_a_damaged_database_is_found_and_not_written_to(patient: Patient) -> None:
    path = patient.root / "voldriver.db"
    with patient.kept():
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
        content = bytearray(path.read_bytes())
        content[4096 : 3 * 4096] = os.urandom(2 * 4096)
        path.write_bytes(content)
        before = {each.name for each in patient.root.iterdir()}
        found(patient.look("database"), "bad", "it is damaged")
        found(patient.look("database", "--fix"), "bad", "it is damaged")
        assert path.read_bytes() == content
        assert {each.name for each in patient.root.iterdir()} == before
        told = "not looked at: neither a daemon nor its database tells what there is"
        assert patient.look("orphan-trees").of("note") == [told]


def test_a_database_of_a_later_version_is_found(patient: Patient) -> None:
    with patient.changed(lambda database: database.execute("PRAGMA user_version = 99")):
        found(patient.look("database"), "bad", "it has version 99")


def test_a_lost_database_is_found_by_what_the_pools_tell(patient: Patient) -> None:
    with patient.kept():
        for path in patient.root.glob("voldriver.db*"):
            path.unlink()
        found(patient.look("database"), "bad", "the pools tell of 3 volumes")
        assert not (patient.root / "voldriver.db").exists()


def test_the_database_is_read_though_the_usual_place_for_a_copy_is_full(
    patient: Patient, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scratch.make("tmpfs", size_bytes=MIB)
    (place / "full").write_bytes(bytes(MIB - 4096))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    well(patient.look("database"))


def test_a_database_with_values_that_no_version_wrote_is_unreadable(patient: Patient) -> None:
    with patient.changed(lambda database: database.execute("UPDATE volumes SET created_at = 'soon'")):
        found(patient.look("database"), "bad", "soon")


def test_a_database_that_is_a_directory_is_said_to_be_unreadable(patient: Patient) -> None:
    with patient.kept():
        for path in patient.root.glob("voldriver.db*"):
            path.unlink()
        (patient.root / "voldriver.db").mkdir()
        try:
            found(patient.look("database"), "bad", "Is a directory")
        finally:
            (patient.root / "voldriver.db").rmdir()


# Modes and links


@pytest.mark.parametrize(
    ("where", "mode", "level"),
    [("", 0o755, "bad"), ("mounts", 0o755, "bad"), ("voldriver.db", 0o644, "bad"), ("by-name", 0o700, "note")],
)
def test_a_wrong_mode_is_found_and_set_right(patient: Patient, where: str, mode: int, level: str) -> None:
    path = patient.root / where
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode)
    found(patient.look("modes"), level, f"{path} has mode {mode:04o}")
    well(patient.look("modes", "--fix"))
    assert stat.S_IMODE(path.stat().st_mode) == before


def test_a_pool_that_others_may_enter_is_found_and_closed(patient: Patient, places: dict[str, Path]) -> None:
    places["plain"].chmod(0o755)
    found(patient.look("modes"), "bad", "has mode 0755")
    well(patient.look("modes", "--fix"))


def test_another_owner_is_found_and_left(patient: Patient) -> None:
    os.chown(patient.root / "mounts", 1000, -1)
    try:
        found(patient.look("modes"), "bad", "belongs to user 1000")
        found(patient.look("modes", "--fix"), "bad", "belongs to user 1000")
    finally:
        os.chown(patient.root / "mounts", 0, -1)


def test_a_missing_link_is_found_and_made(patient: Patient) -> None:
    link = patient.root / "by-name" / "db"
    leads = os.readlink(link)
    link.unlink()
    found(patient.look("links"), "warning", "volume db has no link")
    well(patient.look("links", "--fix"))
    assert os.readlink(link) == leads


def test_a_link_that_leads_elsewhere_is_found_and_led_right(patient: Patient) -> None:
    link = patient.root / "by-name" / "db"
    leads = os.readlink(link)
    link.unlink()
    link.symlink_to("/etc")
    found(patient.look("links"), "warning", "leads to /etc")
    well(patient.look("links", "--fix"))
    assert os.readlink(link) == leads


def test_a_stale_link_is_found_and_removed_and_a_file_is_not(patient: Patient) -> None:
    link, file = patient.root / "by-name" / "gone", patient.root / "by-name" / "file"
    link.symlink_to("../mounts/v77.1")
    file.write_text("mine")
    try:
        found(patient.look("links"), "note", f"{link} is the name of no volume")
        well(patient.look("links", "--fix"))
        assert not link.is_symlink()
        assert file.read_text() == "mine"
    finally:
        file.unlink()


# Pools


@contextmanager
def moved(path: Path) -> Iterator[Path]:
    """Have a file or directory lie elsewhere for the block."""
    aside = path.with_name(f"{path.name}-aside")
    path.rename(aside)
    try:
        yield aside
    finally:
        aside.rename(path)


def test_a_pool_that_is_not_mounted_is_found(patient: Patient, places: dict[str, Path]) -> None:
    with moved(places["fast"]):
        places["fast"].mkdir()
        try:
            found(patient.look("pools"), "bad", ".voldriver-pool is missing")
            assert patient.look("orphan-trees", "missing-trees", "modes").status == 0
        finally:
            places["fast"].rmdir()


def test_another_pool_in_its_place_is_found(patient: Patient, places: dict[str, Path]) -> None:
    marker = places["plain"] / ".voldriver-pool"
    before = marker.read_text()
    marker.write_bytes((places["fast"] / ".voldriver-pool").read_bytes())
    try:
        found(patient.look("pools"), "bad", "the marker says")
    finally:
        marker.write_text(before)


def test_a_marker_that_is_damaged_is_no_pool_of_ours(patient: Patient, places: dict[str, Path]) -> None:
    marker = places["plain"] / ".voldriver-pool"
    before = marker.read_text()
    marker.write_text("{")
    try:
        found(patient.look("pools"), "bad", "the marker says")
    finally:
        marker.write_text(before)


def test_a_read_only_file_system_is_found(patient: Patient, places: dict[str, Path]) -> None:
    place = places["plain"].parent
    mount.set_read_only(place, read_only=True)
    try:
        found(patient.look("pools"), "bad", "tmpfs is read-only")
    finally:
        mount.set_read_only(place, read_only=False)


def test_a_pool_that_is_not_configured_any_more_is_found(patient: Patient) -> None:
    before = patient.daemon.config_file.read_text()
    patient.daemon.config_file.write_text(before.partition("[pools.plain]")[0])
    try:
        found(patient.look("pools"), "warning", "1 volumes")
    finally:
        patient.daemon.config_file.write_text(before)


def test_a_btrfs_pool_on_another_file_system_is_found(patient: Patient) -> None:
    before = patient.daemon.config_file.read_text()
    patient.daemon.config_file.write_text(before.replace('driver = "directory"', 'driver = "btrfs"'))
    try:
        found(patient.look("pools"), "bad", "it is on tmpfs")
    finally:
        patient.daemon.config_file.write_text(before)


def test_a_loop_pool_without_reflinks_is_a_note(patient: Patient) -> None:
    found(patient.look("reflinks"), "note", "images: no FICLONE")


def test_quotas_that_were_stopped_are_found(patient: Patient, places: dict[str, Path]) -> None:
    subprocess.run(["btrfs", "quota", "disable", str(places["fast"])], check=True)
    found(patient.look("quotas"), "bad", "fast: simple is configured, off is found")
    subprocess.run(["btrfs", "quota", "enable", str(places["fast"])], check=True)
    diagnosis = patient.look("quotas")
    found(diagnosis, "warning", "fast: simple is configured, full is found")
    assert f"btrfs quota disable {places['fast']}" in diagnosis.only["remedy"]


def test_a_loop_device_without_direct_io_is_a_note(patient: Patient, places: dict[str, Path]) -> None:
    with bound_aside(places) as device:
        found(patient.look("direct-io"), "note", f"{device} of v9.1")


@contextmanager
def bound_aside(places: dict[str, Path]) -> Iterator[str]:
    """Give a new image in the loop pool a loop device."""
    image = places["images"] / "trees" / "v9.1"
    image.touch()
    os.truncate(image, MIB)
    try:
        with bound(image, "--direct-io=off") as device:
            yield device
    finally:
        image.unlink(missing_ok=True)


@pytest.mark.parametrize(("left_bytes", "level"), [(MIB, "warning"), (64 << 10, "bad")])
def test_a_pool_that_runs_out_of_space_is_found(
    patient: Patient, places: dict[str, Path], left_bytes: int, level: str
) -> None:
    ballast = places["plain"] / "ballast"
    state = os.statvfs(places["plain"])
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - left_bytes)
    try:
        found(patient.look("space"), level, "plain: ")
    finally:
        ballast.unlink()


def test_a_file_system_without_inodes_is_found(patient: Patient, places: dict[str, Path]) -> None:
    directory = places["plain"] / "many"
    mount.mount("none", places["plain"].parent, flags=mount.MS_REMOUNT, data="nr_inodes=60")
    directory.mkdir()
    try:
        while os.statvfs(directory).f_favail:
            (directory / uuid.uuid4().hex).touch()
        found(patient.look("space"), "bad", "plain: ")
    finally:
        shutil.rmtree(directory)
        mount.mount("none", places["plain"].parent, flags=mount.MS_REMOUNT, data="nr_inodes=0")


def test_space_of_the_database_that_was_given_up_is_found(patient: Patient) -> None:
    ballast = patient.root / "ballast"
    os.truncate(ballast, MIB)
    try:
        found(patient.look("space"), "warning", "the root directory: ")
    finally:
        os.truncate(ballast, 8 * MIB)


def test_images_that_may_outgrow_their_pool_are_a_note(patient: Patient, places: dict[str, Path]) -> None:
    image = places["images"] / "trees" / "v2.1"
    before = image.stat().st_size
    os.truncate(image, 1 << 30)
    try:
        found(patient.look("space"), "note", "images: images may grow by")
    finally:
        os.truncate(image, before)


# What is left over


def test_a_leaked_loop_device_of_an_image_is_found_and_cleared(patient: Patient, places: dict[str, Path]) -> None:
    with bound_aside(places) as device:
        found(patient.look("leaked-loops"), "warning", f"{device} of {places['images']}/trees/v9.1 is not mounted")
        well(patient.look("leaked-loops", "--fix"))
        assert device.removeprefix("/dev/") not in loops_under(places["images"])


def test_a_loop_device_that_is_mounted_is_never_cleared(patient: Patient, places: dict[str, Path]) -> None:
    well(patient.look("leaked-loops", "--fix"))
    assert str(places["images"] / "trees" / "v2.1") in loops_under(places["images"]).values()


def test_a_leaked_loop_device_that_somebody_has_mounted_elsewhere_is_left(
    patient: Patient, places: dict[str, Path], tmp_path: Path
) -> None:
    image = places["images"] / "trees" / "v9.1"
    shutil.copy(places["images"] / "trees" / "v2.1", image)
    try:
        with bound(image) as device:
            mount.mount(device, tmp_path, fs_type="ext4", flags=mount.MS_RDONLY)
            try:
                well(patient.look("leaked-loops", "--fix"))
            finally:
                mount.unmount(tmp_path)
    finally:
        image.unlink()


def test_a_second_loop_device_of_an_image_is_bad(patient: Patient, places: dict[str, Path]) -> None:
    image = places["images"] / "trees" / "v2.1"
    with bound(image, "--read-only") as device:
        diagnosis = patient.look("leaked-loops")
        assert sorted(diagnosis.levels) == ["bad", "warning"]
        assert device in diagnosis.of("bad")[0]
        patient.look("leaked-loops", "--fix")
        assert list(loops_under(places["images"]).values()).count(str(image)) == 1


def test_a_loop_device_of_a_deleted_image_is_found_and_left(patient: Patient, places: dict[str, Path]) -> None:
    with bound_aside(places) as device:
        (places["images"] / "trees" / "v9.1").unlink()
        found(patient.look("leaked-loops"), "warning", "which was deleted")
        found(patient.look("leaked-loops", "--fix"), "warning", "which was deleted")
        assert device.removeprefix("/dev/") in loops_under(places["images"])


def test_a_loop_device_that_somebody_has_open_is_a_note_and_left(patient: Patient, places: dict[str, Path]) -> None:
    with bound_aside(places) as device, open(device, "rb"):
        subprocess.run(["losetup", "--detach", device], check=True)  # clears itself when the file is closed
        found(patient.look("leaked-loops", "--fix"), "note", f"{device} of {places['images']}/trees/v9.1 is open")


@pytest.fixture
def leaked_mount(patient: Patient, tmp_path: Path) -> Iterator[Path]:
    """Mount something at the mount point of a tree that never was."""
    point, directory = patient.root / "mounts" / "v99.1", tmp_path / "tree"
    point.mkdir()
    directory.mkdir()
    mount.bind(directory, point, read_only=False)
    yield point
    if mount.at(point):
        mount.unmount(point)
    point.rmdir()


def test_a_leaked_mount_is_found_and_unmounted(patient: Patient, leaked_mount: Path) -> None:
    found(patient.look("leaked-mounts"), "warning", f"{leaked_mount}: nothing that is known has this key")
    well(patient.look("leaked-mounts", "--fix"))
    assert mount.at(leaked_mount) is None
    assert mount.at(patient.root / "mounts" / "v2.1"), "what is known stays mounted"


def test_a_leaked_mount_that_somebody_uses_is_left(patient: Patient, leaked_mount: Path, tmp_path: Path) -> None:
    other = tmp_path / "container"
    other.mkdir()
    mount.bind(leaked_mount, other, read_only=False)
    try:
        found(patient.look("leaked-mounts"), "warning", f"at {other}")
        found(patient.look("leaked-mounts", "--fix"), "warning", f"at {other}")
        assert mount.at(leaked_mount) is not None
    finally:
        mount.unmount(other)


def test_a_leaked_mount_with_an_open_file_is_left_and_that_is_said(patient: Patient, leaked_mount: Path) -> None:
    with (leaked_mount / "open").open("wb"):
        diagnosis = patient.look("leaked-mounts", "--fix")
        assert diagnosis.mended == [f"unmount {leaked_mount}: device or resource busy; left as it is"]
        found(diagnosis, "warning", "nothing that is known has this key")


def test_a_mount_whose_directory_was_removed_is_found(patient: Patient, tmp_path: Path) -> None:
    point, directory = patient.root / "mounts" / "v3.1", tmp_path / "tree"
    point.mkdir(exist_ok=True)
    directory.mkdir()
    mount.bind(directory, point, read_only=False)
    directory.rmdir()
    try:
        found(patient.look("leaked-mounts"), "warning", "was removed")
    finally:
        mount.unmount(point)


def test_mounts_on_each_other_are_a_note(patient: Patient, tmp_path: Path) -> None:
    point = patient.root / "mounts" / "v2.1"
    mount.bind(tmp_path, point, read_only=False)
    try:
        found(patient.look("leaked-mounts"), "note", "2 mounts")
    finally:
        mount.unmount(point)


def test_a_mount_aside_that_a_crash_left_is_a_note(patient: Patient, tmp_path: Path) -> None:
    point = patient.root / "mounts" / ".v2.1-x"
    point.mkdir()
    mount.bind(tmp_path, point, read_only=False)
    try:
        found(patient.look("leaked-mounts"), "note", str(point))
    finally:
        mount.unmount(point)
        point.rmdir()


def test_a_mount_whose_disk_has_gone_is_found(patient: Patient, scratch: Scratch) -> None:
    place, point = scratch.make("xfs"), patient.root / "mounts" / "v3.1"
    point.mkdir(exist_ok=True)
    mount.bind(place, point, read_only=False)
    try:
        subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(place)], check=True)
        found(patient.look("leaked-mounts"), "bad", f"{point}: Input/output error")
    finally:
        mount.unmount(point)


@pytest.mark.parametrize("pool", ["fast", "images", "plain"])
def test_a_tree_that_nobody_knows_is_told_with_its_command_and_stays(
    patient: Patient, places: dict[str, Path], pool: str
) -> None:
    tree = places[pool] / "trees" / "v88.1"
    if pool == "fast":
        subprocess.run(["btrfs", "--quiet", "subvolume", "create", str(tree)], check=True)
    elif pool == "plain":
        tree.mkdir()
    else:
        tree.touch()
    commands = {"fast": "btrfs subvolume delete", "images": "rm", "plain": "rm -r"}
    try:
        diagnosis = patient.look("orphan-trees", "--fix")
        found(diagnosis, "warning", f"{pool}: v88.1")
        assert f"`{commands[pool]} {places[pool]}/trees/KEY`" in diagnosis.only["remedy"]
        assert tree.exists()
    finally:
        if tree.is_dir():
            tree.rmdir()
        else:
            tree.unlink()


def test_a_tree_that_is_missing_is_found(patient: Patient, places: dict[str, Path]) -> None:
    settled = "UPDATE trees SET is_settled = 1"
    tree = places["plain"] / "trees" / "v3.1"
    with patient.changed(lambda database: database.execute(settled)), moved_out(tree):
        diagnosis = patient.look("missing-trees")
        found(diagnosis, "bad", "volume www: tree v3.1 is missing")
        assert "--to www" in diagnosis.only["remedy"]


def test_snapshots_whose_trees_are_missing_are_found_together(patient: Patient, places: dict[str, Path]) -> None:
    with moved_out(places["plain"] / "trees" / "s1"):
        found(patient.look("missing-trees"), "bad", "1 snapshots: www@monday")


def test_a_new_empty_tree_that_power_loss_took_is_not_missed(patient: Patient, places: dict[str, Path]) -> None:
    unsettled = "UPDATE trees SET is_settled = 0"
    with patient.changed(lambda database: database.execute(unsettled)), moved_out(places["plain"] / "trees" / "v3.1"):
        well(patient.look("missing-trees"))


@contextmanager
def moved_out(tree: Path) -> Iterator[None]:
    aside = tree.parent.parent / "aside"
    tree.rename(aside)
    try:
        yield
    finally:
        aside.rename(tree)


def test_the_directory_of_a_target_that_is_not_there_is_found(patient: Patient, tmp_path: Path) -> None:
    insert = f"""INSERT INTO targets (uuid, name, is_configured, url) VALUES ('u', 'nas', 1, 'file://{tmp_path}/nas')"""
    with patient.changed(lambda database: database.execute(insert)):
        found(patient.look("targets"), "warning", f"nas: {tmp_path}/nas is not there")
        (tmp_path / "nas").mkdir()
        well(patient.look("targets"))


# The clock


def test_a_clock_behind_what_is_written_down_is_found(patient: Patient) -> None:
    later = "UPDATE volumes SET created_at = '2099-01-02T03:04:05.000006+00:00' WHERE name = 'db'"
    assert patient.look("clock").of("warning") == []
    with patient.changed(lambda database: database.execute(later)):
        (text,) = patient.look("clock").of("warning")
        assert "2099-01-02 03:04:05 UTC is written down" in text


# With it all


@pytest.mark.usefixtures("dead_socket", "leaked_mount")
def test_fix_does_all_that_is_safe_at_once(patient: Patient, places: dict[str, Path]) -> None:
    (patient.root / "by-name" / "db").unlink()
    patient.root.chmod(0o755)
    with bound_aside(places):
        diagnosis = patient.look("--fix")
    assert [line.split()[0] for line in diagnosis.mended] == ["removed", "set", "made", "cleared", "unmounted"]
    assert {found["check"] for found in diagnosis.findings if found["level"] == "bad"} <= {"daemon", "propagation"}


def test_fix_gives_way_to_a_daemon_that_has_started_meanwhile(
    patient: Patient, dead_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "lock_holder", lambda _: None)
    with (patient.root / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AssertionError, match="a daemon has started meanwhile"):
            patient.look("sockets", "--fix")
    assert dead_socket.exists()


# What has changed between the look and the mending


def mended(act: Act, path: Path, value: str = "") -> str:
    ((_, result),) = mend.mend([Finding(Level.BAD, "", fix=Fix(act, str(path), value))])
    return result


def test_a_socket_that_came_alive_is_left(dead_socket: Path) -> None:
    dead_socket.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead_socket))
        listener.listen()
        assert mended(Act.REMOVE_SOCKET, dead_socket) == f"{dead_socket} is not dead any more; left as it is"
    assert dead_socket.exists()


@pytest.mark.usefixtures("patient")
def test_a_loop_device_that_was_mounted_or_bound_anew_is_left(places: dict[str, Path]) -> None:
    image = places["images"] / "trees" / "v2.1"
    (name,) = [name for name, backing in loops_under(places["images"]).items() if backing == str(image)]
    number = name.removeprefix("loop")
    assert mended(Act.CLEAR_LOOP, image, number) == f"/dev/loop{number} is mounted now; left as it is"
    with bound_aside(places) as device:
        number = device.removeprefix("/dev/loop")
        assert mended(Act.CLEAR_LOOP, image, number) == f"{device} is not of {image} any more; left as it is"
        assert f"loop{number}" in loops_under(places["images"])


def test_a_mount_that_came_into_use_or_has_gone_is_left(leaked_mount: Path, tmp_path: Path) -> None:
    other = tmp_path / "container"
    other.mkdir()
    mount.bind(leaked_mount, other, read_only=False)
    assert mended(Act.UNMOUNT, leaked_mount) == f"{leaked_mount} is used now; left as it is"
    mount.unmount(other)
    mount.unmount(leaked_mount)
    assert mended(Act.UNMOUNT, leaked_mount) == f"{leaked_mount} is not mounted any more"


def test_what_took_the_place_of_a_link_is_left(tmp_path: Path) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    file.touch()
    directory.mkdir()
    assert mended(Act.UNLINK, file) == f"{file} is no link any more; left as it is"
    assert mended(Act.LINK, directory, "x") == f"make link {directory}: is a directory; left as it is"
    assert sorted(tmp_path.iterdir()) == [directory, file]


def test_it_is_quick(patient: Patient) -> None:
    before_s = time.process_time()  # whatever else the machine does
    patient.look()
    assert time.process_time() - before_s < 1.0
