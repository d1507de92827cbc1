"""Backups by a real daemon with a configured target: it is stopped and killed while it sends, and goes on."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.running import Running, pools_config
from tests.scratch import Scratch
from tests.world import until

pytestmark = pytest.mark.root

DRIVERS: Final = ("btrfs", "loop", "directory")
_MIB: Final = 1 << 20
SIZE_BYTES: Final = 64 * _MIB
"""What takes a second to compress and write."""
STOP_S: Final = 5.0
"""How long the daemon may take to end after SIGTERM."""


@pytest.fixture
def place(scratch: Scratch) -> Path:
    """A directory on a btrfs of its own."""
    return scratch.shared("backups", "btrfs")


@pytest.fixture
def daemon(tmp_path: Path, place: Path) -> Iterator[Running]:
    pools = place / "pools" / os.urandom(4).hex()
    target = tmp_path / "target"
    target.mkdir()
    places = {"nightly": target, "away": target / "away"}
    config = 'reserve = "0%"\n' + "".join(f'[targets.{name}]\nurl = "file://{at}"\n' for name, at in places.items())
    config += pools_config(**{name: (name, pools / name) for name in DRIVERS})
    with Running(tmp_path / "daemon", config=config) as running:
        yield running
        assert "Traceback" not in running.log, running.log
        for row in rows(running, "volumes"):
            running.plugin("VolumeDriver.Remove", Name=row["name"])


def rows(daemon: Running, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.api("GET", f"/v1/{kind}").body["data"]
    return found


def begin(daemon: Running, driver: str) -> str:
    """Make a volume with much in it and begin a backup; return the backup's id."""
    options = {"driver": driver, **({"size": "256M"} if driver == "loop" else {})}
    assert daemon.plugin("VolumeDriver.Create", Name="db", Opts=options).status == 200
    path = Path(daemon.plugin("VolumeDriver.Mount", Name="db", ID="c1").body["Mountpoint"])
    with (path / "file").open("wb") as file:
        for _ in range(SIZE_BYTES // _MIB):
            file.write(os.urandom(_MIB))
    daemon.plugin("VolumeDriver.Unmount", Name="db", ID="c1")
    answer = daemon.api("POST", "/v1/snapshots", {"volumeId": "1v1"})
    until(lambda: rows(daemon, "snapshots")[0]["state"] == "created", "the snapshot to be there")
    answer = daemon.api("POST", f"/v1/snapshots/{answer.body['id']}/?action=backup", {"backupTargetId": "1bt1"})
    assert answer.status < 300, answer.body
    shown_id: str = answer.body["id"]
    return shown_id


def is_made(daemon: Running, shown_id: str) -> bool:
    row = daemon.api("GET", f"/v1/backups/{shown_id}").body
    assert row["state"] in {"creating", "created"}, row
    return bool(row["state"] == "created")


@pytest.mark.parametrize("way", ["stop", "kill"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_backup_outlives_the_daemon(daemon: Running, driver: str, way: str) -> None:
    shown_id = begin(daemon, driver)
    until(lambda: list(daemon.base.parent.glob("target/volumes/*/chunks/*/*")), "the first bytes to arrive")
    begun_s = time.monotonic()
    getattr(daemon, way)()
    assert time.monotonic() - begun_s < STOP_S
    daemon.start()
    until(lambda: is_made(daemon, shown_id), "the backup to be made")
    answer = daemon.api("POST", f"/v1/backups/{shown_id}/?action=verify", {})
    assert answer.status < 300, answer.body
    until(lambda: daemon.api("GET", f"/v1/backups/{shown_id}").body["verified"], "the backup to be verified")
    assert f"verb=backup backup={shown_id} volume=db target=nightly" in daemon.log


def test_configured_targets_are_listed_with_their_health(daemon: Running) -> None:
    def healths() -> dict[str, str]:
        return {row["name"]: row["health"] for row in rows(daemon, "backuptargets")}

    until(lambda: healths() == {"nightly": "available", "away": "unavailable"}, "the first look")
    assert [row["id"] for row in rows(daemon, "backuptargets")] == ["1bt1", "1bt2"]
