"""Containers on our volumes: first use, sharing, copying, stopping (the cases A13 to A27)."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.docker_host import NAME, Dockerd, Voldriverd
from tests.scratch import loops_under
from tests.world import until

pytestmark = [pytest.mark.root, pytest.mark.docker]

ON_OURS: Final = ("--volume-driver", NAME)
FILES: Final = {"/data/one", "/data/sub/two"}


def create(dockerd: Dockerd, name: str, driver: str, *options: str) -> None:
    given = [argument for option in (f"driver={driver}", *options) for argument in ("-o", option)]
    dockerd.docker("volume", "create", "-d", NAME, *given, name)


def counts(vd: Voldriverd, name: str) -> tuple[int, int, int]:
    """Return how many Create, Mount and Unmount there were."""
    calls = vd.calls(name)
    return calls.count("Create"), calls.count("Mount"), calls.count("Unmount")


def test_a13_a_file_of_one_container_is_there_in_the_next(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    on = ("-v", f"{name}:/mnt", *ON_OURS)
    dockerd.run(*on, "bb", "touch", "/mnt/file")
    assert dockerd.run(*on, "bb", "ls", "/mnt") == "file"
    assert counts(vd, name) == (1, 2, 2)
    assert (vd.holders(name), vd.mounted()) == (0, set())


def test_a14_a_new_volume_gets_the_files_owner_and_mode_of_the_image(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    create(dockerd, name, driver)
    script = "find /data -type f; stat -c '%u:%g %a' /data; ls -a /data"
    shown = dockerd.run("-v", f"{name}:/data", "bb", "sh", "-c", script).split()
    assert set(shown) == FILES | {"1000:1001", "750", ".", "..", "one", "sub"}
    assert counts(vd, name) == (1, 2, 2)


def test_a15_nothing_is_copied_from_the_image_with_nocopy(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    assert dockerd.run("-v", f"{name}:/data:nocopy", *ON_OURS, "bb", "ls", "-A", "/data") == ""
    assert counts(vd, name) == (1, 1, 1)


def test_a16_a_read_only_use_gets_the_files_and_cannot_write(dockerd: Dockerd, name: str, driver: str) -> None:
    create(dockerd, name, driver)
    shown = dockerd.run("-v", f"{name}:/data:ro", "bb", "sh", "-c", "find /data -type f; touch /data/new 2>&1 || true")
    assert set(shown.split()) >= FILES
    assert "Read-only file system" in shown
    dockerd.run("-v", f"{name}:/data", "bb", "touch", "/data/new")
    assert set(dockerd.run("-v", f"{name}:/data:ro", "bb", "find", "/data", "-type", "f").split()) == FILES | {
        "/data/new"
    }


def test_a17_a_volume_that_holds_a_file_gets_no_other(dockerd: Dockerd, name: str) -> None:
    dockerd.run("-v", f"{name}:/mnt", *ON_OURS, "bb", "touch", "/mnt/own")
    assert dockerd.run("-v", f"{name}:/data", "bb", "ls", "-A", "/data") == "own"


def test_a18_a_nameless_volume_goes_with_its_container_and_leaves_nothing(vd: Voldriverd, dockerd: Dockerd) -> None:
    before = len(vd.calls())
    found = dockerd.run("-v", "/mnt", *ON_OURS, "bb", "grep", " /mnt ", "/proc/self/mountinfo")
    assert " /mnt " in found
    calls = vd.calls()[before:]
    assert [calls.count(each) for each in ("Create", "Mount", "Unmount", "Remove")] == [1, 1, 1, 1]
    assert dockerd.volumes() == set()
    removed = vd.api("GET", "/v1/volumes?state=removed&removed_notnull=1").body["data"]
    assert not [row for row in removed if re.fullmatch("[0-9a-f]{64}", row["name"])], "it is not in the trash"


def test_a19_the_volume_of_an_image_goes_with_its_container_only_if_asked(dockerd: Dockerd, name: str) -> None:
    dockerd.keep(f"{name}-a", *ON_OURS, image="bbvol")
    dockerd.keep(f"{name}-b", *ON_OURS, image="bbvol")
    assert len(dockerd.volumes(f"driver={NAME}")) == 2
    dockerd.docker("rm", "-fv", f"{name}-a")
    assert len(dockerd.volumes(f"driver={NAME}")) == 1
    dockerd.docker("rm", "-f", f"{name}-b")
    assert len(dockerd.volumes(f"driver={NAME}")) == 1


@pytest.mark.parametrize("driver", ["btrfs", "loop"])
def test_a20_writing_past_the_size_fails(vd: Voldriverd, dockerd: Dockerd, name: str, driver: str) -> None:
    options = f"volume-driver={NAME},volume-opt=driver={driver},volume-opt=size=64m"
    mount = f"type=volume,source={name},target=/mnt,{options}"
    script = "df -m /mnt | tail -1; dd if=/dev/zero of=/mnt/file bs=1M count=80 2>&1; stat -c '%s bytes' /mnt/file"
    shown = dockerd.run("--mount", mount, "bb", "sh", "-c", script)
    assert re.search(r"No space left on device|Disk quota exceeded", shown)
    (size_bytes,) = re.findall(r"(\d+) bytes$", shown)
    assert (48 << 20) < int(size_bytes) < (64 << 20)
    if driver == "loop":
        total_mib = int(shown.split()[1])
        assert 48 < total_mib <= 64
    assert vd.status(name)["options"] == {"driver": driver, "size": "64m"}


def test_a20_a_driver_without_sizes_refuses_one_and_names_those_that_can(dockerd: Dockerd, name: str) -> None:
    text = dockerd.refused("volume", "create", "-d", NAME, "-o", "driver=directory", "-o", "size=64m", name)
    assert "the loop driver can, and the btrfs driver" in text


def test_a22_a_volume_in_use_is_not_removed(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt", *ON_OURS)
    assert "in use" in dockerd.refused("volume", "rm", name)
    dockerd.refused("volume", "rm", "-f", name)
    assert "Remove" not in vd.calls(name)


def test_a23_data_stay_through_restart_kill_stop_and_start(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    create(dockerd, name, driver)
    container = f"{name}-c"
    dockerd.keep(container, "-v", f"{name}:/mnt")
    dockerd.docker("exec", container, "sh", "-c", "echo kept >/mnt/file")
    for verbs in (("restart",), ("kill", "start"), ("stop", "start")):
        for verb in verbs:
            dockerd.docker(verb, container)
        assert dockerd.docker("exec", container, "cat", "/mnt/file") == "kept"
        assert vd.holders(name) == 1
    dockerd.docker("rm", "-f", container)
    created, mounts, unmounts = counts(vd, name)
    assert (created, mounts) == (1, unmounts)
    assert (vd.holders(name), vd.mounted()) == (0, set())


def test_a25_files_go_to_and_from_a_stopped_container(
    vd: Voldriverd, dockerd: Dockerd, name: str, tmp_path: Path
) -> None:
    container = dockerd.docker("create", "--network=none", "-v", f"{name}:/mnt", *ON_OURS, "bb", "true")
    (tmp_path / "file").write_text("copied")
    dockerd.docker("cp", str(tmp_path / "file"), f"{container}:/mnt/there")
    dockerd.docker("cp", f"{container}:/mnt/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "copied"
    assert dockerd.run("-v", f"{name}:/mnt", "bb", "cat", "/mnt/there") == "copied"
    created, mounts, unmounts = counts(vd, name)
    assert (created, mounts) == (1, unmounts)


def test_files_go_to_and_from_a_running_container_that_keeps_its_mount(
    vd: Voldriverd, dockerd: Dockerd, name: str, tmp_path: Path, driver: str
) -> None:
    create(dockerd, name, driver)
    container = f"{name}-c"
    dockerd.keep(container, "-v", f"{name}:/mnt")
    (tmp_path / "file").write_text("copied")
    dockerd.docker("cp", str(tmp_path / "file"), f"{container}:/mnt/there")
    dockerd.docker("cp", f"{container}:/mnt/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "copied"
    assert (vd.holders(name), len(vd.mounted())) == (1, 1)
    dockerd.docker("exec", container, "sh", "-c", "cat /mnt/there && echo more >>/mnt/there")
    dockerd.docker("kill", container)
    until(lambda: not vd.mounted(), "the volume to be unmounted")
    created, mounts, unmounts = counts(vd, name)
    assert (created, mounts) == (1, unmounts)
    assert dockerd.run("-v", f"{name}:/mnt", "bb", "cat", "/mnt/there") == "copiedmore"


def test_a26_what_does_not_touch_volumes_makes_no_call(
    vd: Voldriverd, dockerd: Dockerd, name: str, tmp_path: Path
) -> None:
    container = f"{name}-c"
    dockerd.keep(container, "-v", f"{name}:/mnt", *ON_OURS)
    before = vd.calls()
    for command in (
        ("pause", container),
        ("unpause", container),
        ("exec", container, "true"),
        ("commit", container, f"{name}-image"),
        ("export", "-o", str(tmp_path / "tar"), container),
        ("ps", "-s"),
        ("system", "df"),
        ("inspect", container),
    ):
        dockerd.docker(*command)
    assert vd.calls() == before
    dockerd.docker("rmi", f"{name}-image")


def test_a27_eight_containers_at_once_share_one_tree(vd: Voldriverd, dockerd: Dockerd, name: str, driver: str) -> None:
    create(dockerd, name, driver)
    with ThreadPoolExecutor(8) as threads:
        runs = [
            threads.submit(dockerd.run, "-v", f"{name}:/mnt", "bb", "sh", "-c", f"echo {number} >/mnt/{number}; sync")
            for number in range(8)
        ]
        for each in runs:
            each.result()
    assert dockerd.run("-v", f"{name}:/mnt", "bb", "sh", "-c", "cat /mnt/*").split() == [str(each) for each in range(8)]
    assert vd.holders(name) == 0
    until(
        lambda: not [backing for backing in loops_under(vd.root).values() if "/trees/" in backing], "loop devices to go"
    )


def test_a27_creations_at_once_make_one_volume_for_each_name(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    wanted = [f"{name}-{number}" for number in range(8)] + [name] * 5
    with ThreadPoolExecutor(13) as threads:
        done = list(threads.map(lambda each: dockerd.docker("volume", "create", "-d", NAME, each), wanted))
    assert done == wanted
    assert dockerd.volumes(f"driver={NAME}") == set(wanted)
    assert vd.calls(name).count("Create") == 1


def test_two_containers_and_one_that_takes_its_volumes_from_another_are_three_holders(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    dockerd.keep(f"{name}-a", "-v", f"{name}:/mnt", *ON_OURS)
    dockerd.keep(f"{name}-b", "-v", f"{name}:/mnt")
    dockerd.keep(f"{name}-c", "--volumes-from", f"{name}-a")
    assert vd.holders(name) == 3
    dockerd.docker("rm", "-f", f"{name}-a", f"{name}-c")
    assert (vd.holders(name), len(vd.mounted())) == (1, 1)
    dockerd.docker("exec", f"{name}-b", "touch", "/mnt/file")


def test_the_container_that_uses_a_volume_is_named_where_its_removal_is_refused(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    container = dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt", *ON_OURS)
    text = vd.plugin("VolumeDriver.Remove", Name=name).body["Err"]
    (pid,) = json.loads(dockerd.docker("inspect", "-f", "[{{.State.Pid}}]", container))
    assert f"it is mounted by sleep (pid {pid}) of container {container[:12]} at /mnt" in text
