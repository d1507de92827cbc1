"""Volumes at the docker client: create, show, list, remove (the cases A01 to A12, A28 to A30, A41)."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.docker_host import NAME, Dockerd, Voldriverd
from tests.world import until

pytestmark = [pytest.mark.root, pytest.mark.docker]

BAD_NAMES = ("..", ".", "../x", "/abs", "a/b", "sp ace", "new\nline", "n" * 300, "a%2fb", "ünï")


def trees(vd: Voldriverd) -> set[str]:
    return {path.name for path in vd.files.glob("embedded/*/trees/*")}


def test_a01_the_first_creation_activates_asks_and_creates_in_this_order(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.stop()
    before = len(vd.calls())
    dockerd.start()
    assert dockerd.docker("volume", "create", "-d", NAME, name) == name
    assert vd.calls()[before : before + 2] == ["Activate", "Capabilities"]
    assert vd.calls(name) == ["Get", "Create"]


def test_a01_a_new_volume_is_shown_with_driver_scope_time_and_status(dockerd: Dockerd, name: str) -> None:
    dockerd.docker("volume", "create", "-d", NAME, "--label", "tier=gold", name)
    shown = dockerd.inspect(name)
    assert (shown["Driver"], shown["Scope"], shown["Labels"]) == (NAME, "local", {"tier": "gold"})
    assert abs(datetime.now(UTC) - datetime.fromisoformat(shown["CreatedAt"])) < timedelta(seconds=5)
    assert shown["Status"]["state"] == "inactive"


def test_a02_a_volume_is_created_once(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    dockerd.docker("volume", "create", "-d", NAME, name)
    assert dockerd.docker("volume", "create", "-d", NAME, name) == name
    assert vd.calls(name).count("Create") == 1


def test_a03_another_size_for_a_volume_that_docker_knows_changes_nothing(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.docker("volume", "create", "-d", NAME, "-o", "size=1g", name)
    dockerd.docker("volume", "create", "-d", NAME, "-o", "size=2g", name)
    assert vd.status(name)["sizeBytes"] == 1 << 30
    assert vd.calls(name).count("Create") == 1


@pytest.mark.parametrize("option", ["nosuch=1", "size=banana", "driver=zfs", "size=1k", "fs=ntfs", "pool=none"])
def test_a04_a05_a_bad_option_is_refused_naming_it_and_nothing_is_left(
    vd: Voldriverd, dockerd: Dockerd, name: str, option: str
) -> None:
    before = trees(vd)
    key, _, value = option.partition("=")
    text = dockerd.refused("volume", "create", "-d", NAME, "-o", option, name)
    assert key in text
    assert value in text or value == "1k"
    assert name not in dockerd.volumes()
    assert trees(vd) == before


@pytest.mark.parametrize("bad", BAD_NAMES, ids=ascii)
def test_a06_a_bad_name_is_refused_and_nothing_is_made(vd: Voldriverd, dockerd: Dockerd, bad: str) -> None:
    before = trees(vd), sorted(vd.root.parent.iterdir())
    assert "name" in dockerd.refused("volume", "create", "-d", NAME, "--", bad)
    assert (trees(vd), sorted(vd.root.parent.iterdir())) == before
    assert dockerd.volumes() == set()


def test_a07_a08_a_name_belongs_to_one_driver(dockerd: Dockerd, name: str) -> None:
    dockerd.docker("volume", "create", f"{name}-local")
    assert "must be unique" in dockerd.refused("volume", "create", "-d", NAME, f"{name}-local")
    dockerd.docker("volume", "create", "-d", NAME, name)
    assert "must be unique" in dockerd.refused("volume", "create", name)


def test_a09_a_volume_of_our_own_client_is_listed_shown_and_used_without_a_driver(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    assert vd.cli("volume", "create", name) == name
    assert name in dockerd.volumes()
    assert dockerd.inspect(name)["Driver"] == NAME
    dockerd.run("-v", f"{name}:/mnt", "bb", "touch", "/mnt/file")
    assert "Create" not in vd.calls(name)


def test_a10_a_removed_volume_is_in_the_trash_and_gone_when_purged(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    before = trees(vd)
    dockerd.docker("volume", "create", "-d", NAME, "-o", f"driver={driver}", name)
    calls = len(vd.calls(name))
    dockerd.docker("volume", "rm", name)
    assert vd.calls(name)[calls:] == ["Get", "Get", "Remove"]
    assert name not in dockerd.volumes()
    assert len(trees(vd) - before) == 1
    vd.act("purge", vd.row(name, is_trashed=True))
    until(lambda: trees(vd) == before, "the tree to be gone")


def test_a11_a_volume_that_is_not_there_can_be_removed_by_force_only(dockerd: Dockerd) -> None:
    assert "no such volume" in dockerd.refused("volume", "rm", "nosuch").lower()
    dockerd.docker("volume", "rm", "-f", "nosuch")


def test_a_volume_that_was_removed_behind_dockers_back_is_created_anew_with_other_options(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.docker("volume", "create", "-d", NAME, "-o", "size=1g", name)
    vd.cli("volume", "rm", name)
    assert "no such volume" in dockerd.refused("volume", "inspect", name).lower()
    dockerd.docker("volume", "create", "-d", NAME, "-o", "size=2g", name)
    assert vd.status(name)["sizeBytes"] == 2 << 30
    vd.cli("volume", "rm", name)
    dockerd.docker("volume", "create", name)
    assert dockerd.inspect(name)["Driver"] == "local"


def test_a28_filters_and_formats_select_our_volumes(dockerd: Dockerd, name: str) -> None:
    dockerd.docker("volume", "create", "-d", NAME, f"{name}-a")
    dockerd.docker("volume", "create", "-d", NAME, f"{name}-b")
    dockerd.docker("volume", "create", f"{name}-local")
    dockerd.docker("create", "--network=none", "-v", f"{name}-a:/mnt", "bb", "true")
    assert dockerd.volumes(f"driver={NAME}") == {f"{name}-a", f"{name}-b"}
    assert dockerd.volumes("dangling=true") == {f"{name}-b", f"{name}-local"}
    assert dockerd.volumes(f"name={name}-a") == {f"{name}-a"}
    shown = dockerd.docker("volume", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}").splitlines()
    assert f"{name}-a {NAME} local" in shown


def test_a29_prune_leaves_our_volumes_alone(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    dockerd.docker("volume", "create", "-d", NAME, name)
    dockerd.docker("volume", "create", f"{name}-local")
    before = len(vd.calls(name))
    dockerd.docker("volume", "prune", "-f")
    dockerd.docker("system", "prune", "--volumes", "-f")
    assert dockerd.volumes() - {f"{name}-local"} == {name}
    assert set(vd.calls(name)[before:]) <= {"Get"}


def test_a30_three_hundred_volumes_are_listed_in_a_second_and_outlive_a_restart_of_dockerd(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    names = {f"{name}-{number}" for number in range(300)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda each: dockerd.create(each, NAME), names))
    begun_s = time.monotonic()
    assert dockerd.volumes(f"driver={NAME}") == names
    assert time.monotonic() - begun_s < 1
    dockerd.stop()
    before = len(vd.calls())
    dockerd.start()
    assert vd.calls()[before:].count("Get") >= 300
    assert dockerd.volumes(f"driver={NAME}") == names


@pytest.mark.parametrize("fs", ["ext4", "xfs"])
def test_a41_a_large_loop_volume_is_created_within_five_seconds(dockerd: Dockerd, name: str, fs: str) -> None:
    begun_s = time.monotonic()
    dockerd.docker("volume", "create", "-d", NAME, "-o", "driver=loop", "-o", "size=100g", "-o", f"fs={fs}", name)
    assert time.monotonic() - begun_s < 5


def test_the_files_of_a_volume_lie_under_its_name_for_people(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    dockerd.keep(
        f"{name}-c",
        "-v",
        f"{name}:/mnt",
        "--volume-driver",
        NAME,
        command=("sh", "-c", "echo hi >/mnt/file; sleep 600"),
    )
    file = vd.files / "by-name" / name / "file"
    until(lambda: file.exists() and file.read_text() == "hi\n", "the file to be there")
    assert Path(dockerd.inspect(name)["Mountpoint"]).parent == vd.root / "mounts"
