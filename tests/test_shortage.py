"""Below the reserve the trash is emptied, but no more of it than is needed (D4), on real file systems."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running import Running
from tests.world import until
from voldriverd.kernel import btrfs, fs, mount

pytestmark = pytest.mark.root

_MIB = 1 << 20
ID = "c0ffee"
ANONYMOUS = "a" * 64


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("shortage"), config='[embedded]\nsize = "300M"\n') as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(params=["btrfs", "loop", "directory"])
def driver(daemon: Running, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a driver, and leave an empty pool."""
    yield request.param
    (daemon.root / "embedded" / "filler").unlink(missing_ok=True)
    for row in daemon.api("GET", "/v1/volumes").body["data"]:
        daemon.plugin("VolumeDriver.Unmount", Name=row["name"], ID=ID)
        assert daemon.plugin("VolumeDriver.Remove", Name=row["name"]).status == 200
    for row in trash(daemon).values():
        assert daemon.api("POST", f"/v1/volumes/{row}/?action=purge", {}).status == 200
    until(lambda: not any((daemon.root / "embedded").glob("*/trees/*")), "the trees to be gone")


def trash(daemon: Running) -> dict[str, str]:
    """Return the ids of the volumes in the trash by their names."""
    rows = daemon.api("GET", "/v1/volumes?state=removed&removed_notnull=1").body["data"]
    return {row["name"]: row["id"] for row in rows}


def create(daemon: Running, name: str, driver: str) -> None:
    options = {"driver": driver, **({"size": "280m"} if driver == "loop" else {})}
    answer = daemon.plugin("VolumeDriver.Create", Name=name, Opts=options)
    assert answer.status == 200, answer.body


def make(daemon: Running, name: str, driver: str, *, size_bytes: int) -> None:
    """Make a volume that holds so much."""
    create(daemon, name, driver)
    path = Path(daemon.plugin("VolumeDriver.Mount", Name=name, ID=ID).body["Mountpoint"])
    with (path / "file").open("wb") as file:
        file.write(os.urandom(size_bytes))
    unmount(daemon, name)


def unmount(daemon: Running, name: str) -> None:
    assert daemon.plugin("VolumeDriver.Unmount", Name=name, ID=ID).status == 200


def remove(daemon: Running, name: str) -> None:
    answer = daemon.plugin("VolumeDriver.Remove", Name=name)
    assert answer.status == 200, answer.body


@contextmanager
def full_but(daemon: Running, left_bytes: int) -> Iterator[None]:
    """Have the pools' file system full but for some bytes."""
    place = daemon.root / "embedded"
    with btrfs.opened(place) as fd:
        assert btrfs.reclaim(fd, timeout_s=20), "what tests before this one removed comes back"
    with (place / "filler").open("wb") as filler:
        size_bytes = 0
        for _ in range(100):  # btrfs counts what is reserved when it commits
            fs.sync_file_system(place)
            more_bytes = min(fs.capacity(place)[1] - left_bytes, 32 * _MIB)
            if more_bytes < _MIB:
                break
            os.posix_fallocate(filler.fileno(), size_bytes, more_bytes)
            size_bytes += more_bytes
    yield
    (place / "filler").unlink()
    fs.sync_file_system(place)


def write_until_refused(path: Path) -> str:
    """Write and sync; return why that ended."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(200):
            os.write(fd, os.urandom(_MIB))
            os.fsync(fd)
    except OSError as err:
        return errno.errorcode[err.errno or 0]
    finally:
        os.close(fd)
    return "nothing"


def test_a_shortage_destroys_no_more_of_the_trash_than_it_needs(daemon: Running, driver: str) -> None:
    make(daemon, "large", driver, size_bytes=80 * _MIB)
    make(daemon, "small", driver, size_bytes=8 * _MIB)
    remove(daemon, "large")
    remove(daemon, "small")
    with full_but(daemon, 10 * _MIB):
        create(daemon, "new", driver)
    assert set(trash(daemon)) == {"small"}


def test_the_trash_of_another_pool_on_the_same_file_system_goes_too(daemon: Running, driver: str) -> None:
    other = {"btrfs": "loop", "loop": "directory", "directory": "btrfs"}[driver]
    make(daemon, "large", other, size_bytes=80 * _MIB)
    remove(daemon, "large")
    with full_but(daemon, 10 * _MIB):
        create(daemon, "new", driver)
    assert trash(daemon) == {}


def test_creations_at_once_destroy_no_more_of_the_trash_than_one(daemon: Running, driver: str) -> None:
    for name in ("first", "second"):
        make(daemon, name, driver, size_bytes=80 * _MIB)
        remove(daemon, name)
    with full_but(daemon, 10 * _MIB), ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: create(daemon, f"new-{number}", driver), range(8)))
    assert set(trash(daemon)) == {"second"}


def test_what_was_destroyed_a_moment_ago_counts_as_free(daemon: Running, driver: str) -> None:
    make(daemon, "kept", driver, size_bytes=8 * _MIB)
    remove(daemon, "kept")
    make(daemon, ANONYMOUS, driver, size_bytes=80 * _MIB)
    with full_but(daemon, 10 * _MIB):
        remove(daemon, ANONYMOUS)
        create(daemon, "new", driver)
    assert set(trash(daemon)) == {"kept"}


def test_a_volume_that_could_not_write_any_more_is_unmounted_and_removed(daemon: Running, driver: str) -> None:
    make(daemon, "stuck", driver, size_bytes=_MIB)
    path = Path(daemon.plugin("VolumeDriver.Mount", Name="stuck", ID=ID).body["Mountpoint"])
    with full_but(daemon, 10 * _MIB):
        assert write_until_refused(path / "file") in {"ENOSPC", "EIO", "EROFS"}
        unmount(daemon, "stuck")
        assert not mount.at(path)
        remove(daemon, "stuck")
    assert set(trash(daemon)) == {"stuck"}
