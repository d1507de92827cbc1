"""Backups that go from host to host through one encrypted bucket, with all that a tree can have in it.

The first host makes a volume of each driver and eleven backups of it, and is lost with its database. The second finds
them, restores each, changes one and backs it up; the third restores that one, in every driver.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import likeness, s3
from tests.commands import Voldriver
from tests.running import Running, scratch_config
from tests.scratch import Scratch

pytestmark = pytest.mark.root

DRIVERS = ("btrfs", "loop", "directory")
INCREMENTS = 10


@contextmanager
def host(base: Path, scratch: Scratch, server: s3.Server) -> Iterator[Voldriver]:
    base.mkdir()
    for name, text in (("access", s3.ACCESS_KEY), ("secret", s3.SECRET_KEY), ("passphrase", "correct horse")):
        (base / name).write_text(text)
    target = f'[targets.bucket]\nurl = "{server.url("hosts")}"\nendpoint = "{server.endpoint}"\nregion = "us-east-1"\n'
    for name in ("access_key", "secret_key", "passphrase"):
        target += f'{name}_file = "{base / name.partition("_")[0]}"\n'
    with Running(base / "d", config=scratch_config(scratch) + target) as daemon:
        yield Voldriver(daemon.api_socket)


@contextmanager
def mounted(voldriver: Voldriver, volume: str) -> Iterator[Path]:
    yield Path(voldriver.out("volume", "mount", volume).strip())
    voldriver.out("volume", "unmount", volume)


def furnish(place: Path) -> None:
    """Put into a tree what is easily lost."""
    (place / "dir" / "deep").mkdir(parents=True)
    (place / "dir" / "name with\nnewline").write_text("text")
    os.link(place / "dir" / "name with\nnewline", place / "dir" / "deep" / "twin")
    (place / "large").write_bytes(os.urandom(5 << 20))
    with (place / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    (place / "link").symlink_to("dir/nowhere")
    os.mkfifo(place / "fifo", 0o640)
    os.mknod(place / "null", 0o20666, os.makedev(1, 3))
    os.setxattr(place / "large", "user.note", b"\x00\xff")
    os.setxattr(place / "dir", "trusted.note", b"for root")
    os.chown(place / "dir" / "deep", 12345, 54321)
    (place / "dir").chmod(0o3751)
    os.utime(place / "large", ns=(1_234_567_890_123_456_789, 987_654_321_012_345_678))
    (place / "empty").touch()


def facts(place: Path) -> dict[bytes, likeness.Facts]:
    """Return all facts of a tree but for access times, and the flags that are the file system's own."""
    found = likeness.describe(place)
    for each in found.values():
        each.pop("flags", None)
        times = each.pop("times")
        assert isinstance(times, tuple)
        each["changed"] = times[1]
    return found


def change(place: Path, number: int) -> None:
    (place / f"file-{number}").write_bytes(os.urandom(10_000))
    with (place / "large").open("r+b") as file:
        file.seek(number << 18)
        file.write(os.urandom(100))
    if number > 2:
        (place / f"file-{number - 2}").unlink()
    source, target = ("dir", "moved") if number % 2 else ("moved", "dir")
    (place / source).rename(place / target)


def test_backups_outlive_their_hosts(session_scratch: Scratch, tmp_path: Path) -> None:
    made: list[tuple[str, str, dict[bytes, likeness.Facts]]] = []
    with s3.Server(tmp_path / "s3") as server:
        with host(tmp_path / "first", session_scratch, server) as first:
            for driver in DRIVERS:
                made += eleven_backups(first, driver)
        with host(tmp_path / "second", session_scratch, server) as second:
            ids = found(second)
            assert set(ids) == {uuid for _, uuid, _ in made}
            for driver, uuid, had in made:
                second.out("backup", "restore", ids[uuid], "--as", "copy")
                assert second.json("volume", "inspect", "copy")["driver"] == driver
                check(second, "copy", had)
                second.out("volume", "rm", "--purge", "--yes", "copy")
            newest = {driver: ids[uuid] for driver, uuid, _ in made}
            last = [go_on(second, driver, backup) for driver, backup in newest.items()]
        with host(tmp_path / "third", session_scratch, server) as third:
            ids = found(third)
            for uuid, had in last:
                for driver in DRIVERS:
                    third.out("backup", "restore", ids[uuid], "--as", "copy", "-d", driver)
                    check(third, "copy", had)
                    third.out("volume", "rm", "--purge", "--yes", "copy")


def eleven_backups(voldriver: Voldriver, driver: str) -> list[tuple[str, str, dict[bytes, likeness.Facts]]]:
    voldriver.out("volume", "create", driver, "-d", driver)
    made = []
    for number in range(INCREMENTS + 1):
        with mounted(voldriver, driver) as place:
            if number == 0:
                furnish(place)
            else:
                change(place, number)
            had = facts(place)
        backup = voldriver.json("backup", "create", driver)
        assert backup["host"] == socket.gethostname()
        made.append((driver, str(backup["uuid"]), had))
    return made


def go_on(voldriver: Voldriver, driver: str, backup: str) -> tuple[str, dict[bytes, likeness.Facts]]:
    """Restore the last backup, change the volume, and back it up from here, with an increment on it."""
    voldriver.out("backup", "restore", backup, "--as", driver)
    for number in (INCREMENTS + 1, INCREMENTS + 2):
        with mounted(voldriver, driver) as place:
            change(place, number)
            had = facts(place)
        made: dict[str, Any] = voldriver.json("backup", "create", driver)
    return str(made["uuid"]), had


def found(voldriver: Voldriver) -> dict[str, str]:
    voldriver.out("backup", "scan", "bucket")
    return {backup["uuid"]: backup["id"] for backup in voldriver.json("backup", "ls")}


def check(voldriver: Voldriver, volume: str, had: dict[bytes, likeness.Facts]) -> None:
    with mounted(voldriver, volume) as place:
        assert facts(place) == had
