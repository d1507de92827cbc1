"""The daemon as a process: it starts, serves both sockets, survives its own end, and leaves nothing."""

import os
from pathlib import Path

import pytest

from tests.running import SMALL, Running, pools_config
from voldriverd.kernel import mount

pytestmark = pytest.mark.root


def test_it_serves_both_sockets_on_its_embedded_default(tmp_path: Path) -> None:
    with Running(tmp_path) as daemon:
        assert daemon.plugin("Plugin.Activate").body["Implements"] == ["VolumeDriver"]
        pools = daemon.api("GET", "/v1/storagepools").body["data"]
        assert {pool["name"] for pool in pools} == {"btrfs", "directory", "loop"}
        stacks = daemon.stacks()  # what a long form tells of a daemon that does not answer
        assert "in watch" in stacks, "the task that measures stalls"
        assert "Thread 0x" in stacks


def test_a_restart_after_a_kill_finds_volumes_and_mounts(tmp_path: Path) -> None:
    with Running(tmp_path) as daemon:
        daemon.plugin("VolumeDriver.Create", Name="db")
        place = Path(daemon.plugin("VolumeDriver.Mount", Name="db", ID="c1").body["Mountpoint"])
        (place / "file").write_text("kept")
        daemon.kill()
        daemon.restart()
        assert (place / "file").read_text() == "kept"
        assert daemon.plugin("VolumeDriver.Unmount", Name="db", ID="c1").body == {"Err": ""}
        assert mount.at(place) is None


def test_a_daemon_that_cannot_serve_fails_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="key 'sise'"), Running(tmp_path, config='sise = "1"'):
        pass


def test_a_daemon_whose_sockets_are_served_by_another_makes_no_image(tmp_path: Path) -> None:
    with Running(tmp_path / "one") as first:
        second = Running(tmp_path / "two", config=f'{SMALL}[api]\nsocket = "{first.api_socket}"')
        with pytest.raises(AssertionError, match=f"cannot listen on {first.api_socket}: another daemon does"), second:
            pass
        assert os.listdir(second.root) == ["lock"]
        assert first.api("GET", "/v1").status == 200


def trouble(daemon: Running) -> str | None:
    """Return why the pool of a daemon is not open."""
    message: str | None = daemon.api("GET", "/v1/storagepools").body["data"][0]["transitioningMessage"]
    return message


def test_a_pool_is_of_one_daemon_at_a_time(tmp_path: Path) -> None:
    config = pools_config(fast=("directory", tmp_path / "pool"))
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "one")
    with Running(tmp_path / "one", config=config) as first, Running(tmp_path / "two", config=config) as second:
        refused = f"{tmp_path}/pool is used by the voldriverd that runs on root {first.root}"
        assert refused in second.plugin("VolumeDriver.Create", Name="db").body["Err"]
        assert refused in str(trouble(second))
        assert first.plugin("VolumeDriver.Create", Name="db").body == {"Err": ""}
        first.restart()
        assert trouble(first) is None
        first.stop()
        second.restart()
        assert "the database does not know this pool" in str(trouble(second))
    with Running(linked, config=config) as again:
        assert trouble(again) is None
        again.restart()
        assert trouble(again) is None


@pytest.mark.parametrize(
    ("name", "driver", "reason"),
    [
        ("fast", "loop", "{path} is a pool of driver directory, not loop"),
        ("slow", "directory", "{path} is pool fast; its section is [pools.fast]"),
    ],
)
def test_a_pool_under_another_driver_or_name_is_refused_and_is_whole_when_that_is_mended(
    tmp_path: Path, name: str, driver: str, reason: str
) -> None:
    path = tmp_path / "pool"
    path.mkdir()
    with Running(tmp_path / "d", config=pools_config(fast=("directory", path))) as daemon:
        daemon.plugin("VolumeDriver.Create", Name="db")
        daemon.stop()
        before, right = sorted(path.rglob("*")), daemon.config_file.read_text()
        daemon.config_file.write_text(pools_config(**{name: (driver, path)}))
        daemon.restart()
        pools = {pool["name"]: pool for pool in daemon.api("GET", "/v1/storagepools").body["data"]}
        assert (pools[name]["health"], pools[name]["transitioningMessage"]) == ("unavailable", reason.format(path=path))
        assert reason.format(path=path) in daemon.plugin("VolumeDriver.Create", Name="web").body["Err"]
        assert "pool fast is unavailable" in daemon.plugin("VolumeDriver.Mount", Name="db", ID="c1").body["Err"]
        daemon.stop()
        assert sorted(path.rglob("*")) == before
        daemon.config_file.write_text(right)
        daemon.restart()
        assert daemon.plugin("VolumeDriver.Mount", Name="db", ID="c1").body["Err"] == ""


@pytest.mark.parametrize("is_there", [False, True])
def test_a_release_where_no_daemon_has_served_makes_nothing(tmp_path: Path, is_there: bool) -> None:  # noqa: FBT001 - a column
    absent = Running(tmp_path)
    if is_there:
        absent.root.mkdir()
    assert absent.release() == ""
    assert sorted(absent.root.glob("*")) == ([absent.root / "lock"] if is_there else [])


def test_a_release_after_the_loss_of_the_database_unmounts_the_image(tmp_path: Path) -> None:
    with Running(tmp_path) as daemon:
        daemon.stop()
        for path in daemon.root.glob("voldriver.db*"):
            path.unlink()
        assert mount.at(daemon.root / "embedded") is not None
        assert daemon.release() == ""
        assert mount.at(daemon.root / "embedded") is None


def test_a_configuration_that_has_lost_its_pools_makes_no_image_and_asks_for_them(tmp_path: Path) -> None:
    with Running(tmp_path, config=pools_config(plain=("directory", tmp_path / "plain"))) as daemon:
        daemon.stop()
        daemon.config_file.write_text("")
        daemon.start()
        pools = daemon.cli("pool", "ls")
        assert not (daemon.root / "embedded.img").exists()
    cause = f"the embedded image {daemon.root}/embedded.img is missing, and the database is not new"
    told = f"{cause}: is its disk mounted, and are [pools] missing in the configuration?"
    assert f"pool btrfs is unavailable: {told}\n" in pools.stderr
    assert "pool plain is unavailable: it is not configured any more" in pools.stderr


def test_nothing_is_left_of_mounted_volumes(tmp_path: Path) -> None:
    with Running(tmp_path) as daemon:
        for driver in ("btrfs", "directory", "loop"):
            daemon.plugin("VolumeDriver.Create", Name=f"{driver}-1", Opts={"driver": driver})
            assert daemon.plugin("VolumeDriver.Mount", Name=f"{driver}-1", ID="c1").status == 200
    assert not [entry for entry in mount.table() if entry.mount_point.startswith(str(tmp_path))]
    assert os.listdir(tmp_path / "root" / "embedded") == []
