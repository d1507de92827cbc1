"""Snapshots, clones, revert and trash beside docker (the cases A54 to A60)."""

import re
from typing import Any, Final

import pytest

from tests.docker_host import NAME, Dockerd, Voldriverd
from tests.world import until
from voldriverd.kernel import fs

pytestmark = [pytest.mark.root, pytest.mark.docker]

ON_OURS: Final = ("--volume-driver", NAME)


def create(dockerd: Dockerd, name: str, *options: str) -> None:
    given = [argument for option in options for argument in ("-o", option)]
    dockerd.docker("volume", "create", "-d", NAME, *given, name)


def write(dockerd: Dockerd, name: str, text: str) -> None:
    dockerd.run("-v", f"{name}:/mnt", "bb", "sh", "-c", f"echo {text} >/mnt/file")


def read(dockerd: Dockerd, name: str) -> str:
    return dockerd.run("-v", f"{name}:/mnt", "bb", "cat", "/mnt/file")


def snapshot(vd: Voldriverd, volume: str, name: str) -> dict[str, Any]:
    return vd.act("snapshot", vd.row(volume), name=name)


@pytest.mark.parametrize("driver", ["btrfs", "loop"])
def test_a54_a_clone_of_a_snapshot_of_a_volume_in_use_has_its_state(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    create(dockerd, name, f"driver={driver}")
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt")
    large = "dd if=/dev/urandom of=/mnt/large bs=1M count=200 2>/dev/null"
    dockerd.docker("exec", f"{name}-c", "sh", "-c", f"echo before >/mnt/file; {large}; sync")
    pool = vd.files / "embedded"
    fs.sync_file_system(pool)
    free_bytes = fs.capacity(pool)[1]
    snapshot(vd, name, "now")
    dockerd.docker("exec", f"{name}-c", "sh", "-c", "echo after >/mnt/file")
    create(dockerd, f"{name}-clone", f"from={name}@now")
    fs.sync_file_system(pool)
    assert free_bytes - fs.capacity(pool)[1] < 10 << 20, "nothing was copied"
    assert read(dockerd, f"{name}-clone") == "before"
    assert read(dockerd, name) == "after"


def test_a54_a_directory_in_use_is_not_copied_as_if_it_were_one_instant(
    vd: Voldriverd, dockerd: Dockerd, name: str
) -> None:
    create(dockerd, name, "driver=directory")
    dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt")
    refused = vd.tried("snapshot", vd.row(name), name="now")
    assert "cannot copy a volume in use as one instant" in refused.body["message"]
    dockerd.docker("stop", f"{name}-c")
    snapshot(vd, name, "now")


def test_a55_two_clones_of_a_snapshot_are_independent(vd: Voldriverd, dockerd: Dockerd, name: str, driver: str) -> None:
    create(dockerd, name, f"driver={driver}")
    write(dockerd, name, "source")
    snapshot(vd, name, "now")
    for clone in ("one", "two"):
        create(dockerd, f"{name}-{clone}", f"from={name}@now")
        write(dockerd, f"{name}-{clone}", clone)
    found = [read(dockerd, each) for each in (name, f"{name}-one", f"{name}-two")]
    assert found == ["source", "one", "two"]
    create(dockerd, f"{name}-three", f"from={name}@now")
    assert read(dockerd, f"{name}-three") == "source"


def test_two_clones_of_one_volume_are_mounted_beside_it(dockerd: Dockerd, name: str) -> None:
    create(dockerd, name, "driver=loop", "fs=xfs", "size=300m")
    write(dockerd, name, "source")
    create(dockerd, f"{name}-one", f"from={name}")
    create(dockerd, f"{name}-two", f"from={name}")
    mounts = [("-v", f"{each}:/{number}") for number, each in enumerate((name, f"{name}-one", f"{name}-two"))]
    assert dockerd.run(*sum(mounts, ()), "bb", "sh", "-c", "cat /0/file /1/file /2/file").split() == ["source"] * 3


def test_a57_a_removed_volume_comes_back_with_its_snapshots_and_its_clones_stay(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    create(dockerd, name, f"driver={driver}")
    write(dockerd, name, "kept")
    snapshot(vd, name, "now")
    create(dockerd, f"{name}-clone", f"from={name}@now")
    dockerd.docker("volume", "rm", name)
    assert dockerd.volumes() == {f"{name}-clone"}
    assert read(dockerd, f"{name}-clone") == "kept"
    vd.act("restore", vd.row(name, is_trashed=True))
    assert dockerd.volumes() == {name, f"{name}-clone"}
    assert dockerd.inspect(name)["Status"]["snapshotNames"] == ["now"]
    assert read(dockerd, name) == "kept"


def test_a57_a_name_is_free_again_when_its_volume_is_in_the_trash(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    create(dockerd, name)
    write(dockerd, name, "first")
    dockerd.docker("volume", "rm", name)
    create(dockerd, name)
    assert dockerd.run("-v", f"{name}:/mnt", "bb", "ls", "-A", "/mnt") == ""
    vd.act("restore", vd.row(name, is_trashed=True), name=f"{name}-back")
    assert read(dockerd, f"{name}-back") == "first"


@pytest.mark.parametrize("source", ["nowhere", "{}@never"])
def test_a58_a_clone_of_what_is_not_there_is_refused_naming_it(
    vd: Voldriverd, dockerd: Dockerd, name: str, source: str
) -> None:
    create(dockerd, name)
    missing = source.format(name)
    before = {path.name for path in vd.files.glob("embedded/*/trees/*")}
    text = dockerd.refused("volume", "create", "-d", NAME, "-o", f"from={missing}", f"{name}-clone")
    assert missing.rpartition("@")[2] in text
    assert dockerd.volumes() == {name}
    assert {path.name for path in vd.files.glob("embedded/*/trees/*")} == before


def test_a59_snapshots_are_in_the_status_and_no_volumes(vd: Voldriverd, dockerd: Dockerd, name: str) -> None:
    create(dockerd, name)
    for each in ("one", "two", "three"):
        snapshot(vd, name, each)
    status = dockerd.inspect(name)["Status"]
    assert (status["snapshots"], status["snapshotNames"]) == (3, ["three", "two", "one"])
    assert dockerd.volumes() == {name}


def test_a60_a_volume_in_use_is_not_reverted_and_the_container_is_named(
    vd: Voldriverd, dockerd: Dockerd, name: str, driver: str
) -> None:
    create(dockerd, name, f"driver={driver}")
    write(dockerd, name, "before")
    taken = snapshot(vd, name, "then")
    container = dockerd.keep(f"{name}-c", "-v", f"{name}:/mnt")
    dockerd.docker("exec", f"{name}-c", "sh", "-c", "echo after >/mnt/file")
    refused = vd.tried("reverttosnapshot", vd.row(name), snapshotId=taken["id"])
    assert re.search(rf"cannot revert volume {name}: .* of container {container[:12]} at /mnt", refused.body["message"])
    dockerd.docker("stop", f"{name}-c")
    vd.act("reverttosnapshot", vd.row(name), snapshotId=taken["id"])
    dockerd.docker("start", f"{name}-c")
    assert dockerd.docker("exec", f"{name}-c", "cat", "/mnt/file") == "before"
    (kept,) = [each for each in vd.status(name)["snapshotNames"] if each.startswith("before-revert-")]
    dockerd.docker("rm", "-f", f"{name}-c")
    create(dockerd, f"{name}-undo", f"from={name}@{kept}")
    assert read(dockerd, f"{name}-undo") == "after"
    until(lambda: not vd.mounted(), "the volumes to be unmounted")
