"""Volumes and snapshots through the Rancher v1 API, on every driver, with the data looked at (rancher-api 4, 6)."""

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.running import Running, scratch_config
from tests.scratch import Scratch
from voldriverd.kernel import mount

pytestmark = pytest.mark.root

DRIVERS = ["btrfs", "loop", "directory"]
RETENTION_S = 7 * 86_400
Resource = dict[str, Any]


@pytest.fixture(scope="module")
def daemon(session_scratch: Scratch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("d"), config=scratch_config(session_scratch)) as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a name that no other test has."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[-200:].lstrip("-")


def create(daemon: Running, name: str, driver: str = "btrfs", **fields: object) -> Resource:
    answer = daemon.api("POST", "/v1/volumes", {"name": name, "driver": driver, **fields})
    assert answer.status == 201, answer.body
    return dict(answer.body)


def act(daemon: Running, resource: Resource, action: str, **fields: object) -> Resource:
    answer = daemon.api("POST", f"/v1/{resource['type']}s/{resource['id']}/?action={action}", fields)
    assert answer.status in {200, 201, 202}, answer.body
    return dict(answer.body)


def again(daemon: Running, resource: Resource) -> Resource:
    answer = daemon.api("GET", f"/v1/{resource['type']}s/{resource['id']}")
    assert answer.status == 200, answer.body
    return dict(answer.body)


def listed(daemon: Running, path: str) -> list[str]:
    return [each["name"] for each in daemon.api("GET", path).body["data"]]


@contextmanager
def active(daemon: Running, volume: Resource) -> Iterator[Path]:
    """Hold a volume mounted by the host."""
    place = Path(act(daemon, volume, "activate")["mountpoint"])
    try:
        yield place
    finally:
        act(daemon, volume, "deactivate")


def write(daemon: Running, volume: Resource, text: str) -> None:
    with active(daemon, volume) as place:
        (place / "file").write_text(text)


def read(daemon: Running, volume: Resource) -> str:
    with active(daemon, volume) as place:
        return (place / "file").read_text()


# Volumes


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_created_volume_rests_inactive_with_the_values_of_the_reference(
    daemon: Running, name: str, driver: str
) -> None:
    volume = create(daemon, name, driver, description="why")
    expected: Resource = {
        "accessMode": "singleHostRW",
        "accountId": "1a1",
        "description": "why",
        "driver": driver,
        "driverOpts": {},
        "externalId": None,
        "health": "available",
        "imageId": None,
        "instanceId": None,
        "isHostPath": False,
        "kind": "volume",
        "labels": {},
        "mountpoint": None,
        "name": name,
        "protected": False,
        "removed": None,
        "snapshotCount": 0,
        "state": "inactive",
        "transitioning": "no",
        "transitioningMessage": None,
        "transitioningProgress": None,
        "type": "volume",
        "uri": f"local:///{name}",
    }
    assert {key: volume[key] for key in expected} == expected
    assert set(volume["actions"]) == {
        *("activate", "backup", "clone", "remove", "resize", "restorefrombackup", "reverttosnapshot", "snapshot"),
    }
    assert again(daemon, volume) == volume


def test_driver_options_are_kept_as_given(daemon: Running, name: str) -> None:
    volume = create(daemon, name, "loop", driverOpts={"size": "64M", "fs": "ext4", "label.a": "1"}, labels={"b": "2"})
    assert volume["driverOpts"] == {"size": "64M", "fs": "ext4", "label.a": "1"}
    assert (volume["sizeBytes"], volume["labels"]) == (64 << 20, {"a": "1", "b": "2"})


@pytest.mark.parametrize(
    ("options", "driver"),
    [
        ({"driver": "directory"}, "directory"),
        ({"pool": "images", "size": "16M"}, "loop"),
        ({"from": "origin"}, "btrfs"),
    ],
)
def test_the_driver_may_follow_from_the_options(
    daemon: Running, name: str, options: dict[str, str], driver: str
) -> None:
    if options.get("from"):
        create(daemon, "origin")
    answer = daemon.api("POST", "/v1/volume", {"name": name, "driverOpts": options})
    assert (answer.status, answer.body.get("driver")) == (201, driver), answer.body


def test_an_existing_name_is_refused_even_with_the_same_options(daemon: Running, name: str) -> None:
    create(daemon, name)
    answer = daemon.api("POST", "/v1/volumes", {"name": name, "driver": "btrfs"})
    assert (answer.status, answer.body["code"], answer.body["fieldName"]) == (422, "NotUnique", "name")


def test_of_many_who_create_one_name_at_once_one_does(daemon: Running, name: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        body = {"name": name, "driver": "btrfs"}
        statuses = list(pool.map(lambda _: daemon.api("POST", "/v1/volumes", body).status, range(8)))
    assert sorted(statuses) == [201, *[422] * 7]


def test_properties_are_changed_by_put(daemon: Running, name: str) -> None:
    volume = create(daemon, name, labels={"a": "1"})
    answer = daemon.api(
        "PUT", f"/v1/volumes/{volume['id']}", {"description": "new", "protected": True, "labels": {"b": "2"}}
    )
    found = again(daemon, volume)
    assert answer.body == found
    assert (found["description"], found["protected"], found["labels"]) == ("new", True, {"b": "2"})
    changed = daemon.api("PUT", f"/v1/volumes/{volume['id']}", {"labelChanges": {"c": "3", "b": "", "none": ""}})
    assert (changed.body["labels"], changed.body["labelChanges"]) == ({"c": "3"}, None)
    many = daemon.api("PUT", f"/v1/volumes/{volume['id']}", {"labelChanges": {str(each): "x" for each in range(100)}})
    assert (many.status, many.body["message"]) == (422, "cannot use 101 labels: a volume has at most 100")
    daemon.api("PUT", f"/v1/volumes/{volume['id']}", {"description": None, "protected": "false", "labels": None})
    found = again(daemon, volume)
    assert (found["description"], found["protected"], found["labels"]) == (None, False, {})


def test_a_protected_volume_is_not_removed(daemon: Running, name: str) -> None:
    volume = create(daemon, name, protected=True)
    answer = daemon.api("DELETE", f"/v1/volumes/{volume['id']}")
    assert (answer.status, answer.body["code"]) == (409, "Conflict")
    assert again(daemon, volume)["state"] == "inactive"


# Mounts


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_activated_volume_is_mounted_by_the_host_until_it_is_deactivated(
    daemon: Running, name: str, driver: str
) -> None:
    volume = create(daemon, name, driver)
    with active(daemon, volume) as place:
        found = again(daemon, volume)
        assert (found["state"], found["mountpoint"]) == ("active", str(place))
        assert set(found["actions"]) == {"backup", "clone", "deactivate", "resize", "snapshot"}
        assert mount.at(place) is not None
        (held,) = daemon.api("GET", f"/v1/volumes/{volume['id']}/mounts").body["data"]
        assert (held["holder"], held["count"], held["path"], held["volumeId"]) == ("host", 1, str(place), volume["id"])
        assert daemon.api("GET", f"/v1/mounts/{held['id']}").body == held
    found = again(daemon, volume)
    assert (found["state"], found["mountpoint"]) == ("inactive", None)
    assert mount.at(place) is None


def test_a_deactivated_volume_stays_active_for_its_containers(daemon: Running, name: str) -> None:
    volume = create(daemon, name)
    daemon.plugin("VolumeDriver.Mount", Name=name, ID="c1")
    with active(daemon, volume):
        assert again(daemon, volume)["state"] == "active"
    assert again(daemon, volume)["state"] == "active"
    assert set(again(daemon, volume)["actions"]) == {"activate", "backup", "clone", "resize", "snapshot"}
    daemon.plugin("VolumeDriver.Unmount", Name=name, ID="c1")
    assert again(daemon, volume)["state"] == "inactive"


def test_activating_twice_is_not_offered(daemon: Running, name: str) -> None:
    volume = create(daemon, name)
    with active(daemon, volume):
        answer = daemon.api("POST", f"/v1/volumes/{volume['id']}/?action=activate")
        assert (answer.status, answer.body["code"]) == (422, "ActionNotAvailable")
        assert "the host has it mounted already" in answer.body["message"]


def test_an_active_volume_is_not_deleted_and_its_holder_is_named(daemon: Running, name: str) -> None:
    volume = create(daemon, name)
    with active(daemon, volume):
        answer = daemon.api("DELETE", f"/v1/volumes/{volume['id']}")
        assert (answer.status, answer.body["code"]) == (405, "MethodNotAllowed")
        assert answer.body["message"] == f"cannot remove volume {name}: it is mounted by the host"
        answer = daemon.api("POST", f"/v1/volumes/{volume['id']}/?action=remove")
        assert (answer.status, answer.body["code"]) == (422, "ActionNotAvailable")


def test_who_uses_a_volume_is_named_with_process_and_mount_point(daemon: Running, name: str, tmp_path: Path) -> None:
    volume = create(daemon, name)
    (tmp_path / "in").mkdir()
    with active(daemon, volume) as place:
        script = f"mount --bind {place} {tmp_path}/in && echo done && exec cat"
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as user:
            assert user.stdout is not None
            assert user.stdin is not None
            assert user.stdout.readline() == b"done\n"
            refusal = daemon.api("POST", f"/v1/volumes/{volume['id']}/?action=reverttosnapshot", {"snapshotId": "1s1"})
            user.stdin.close()
    message = refusal.body["message"]
    assert (refusal.status, refusal.body["code"]) == (422, "ActionNotAvailable")
    assert f"(pid {user.pid})" in message
    assert f"{tmp_path}/in" in message


# Snapshots


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_snapshot_is_made_by_the_action_or_by_post_and_has_the_fields_of_both_documents(
    daemon: Running, name: str, driver: str
) -> None:
    volume = create(daemon, name, driver)
    made = act(daemon, volume, "snapshot", name="one", description="why")
    posted = daemon.api("POST", "/v1/snapshot", {"volumeId": volume["id"], "name": "two"})
    assert (posted.status, posted.body["name"]) == (201, "two")
    expected = {
        "automatic": False,
        "description": "why",
        "expires": None,
        "kind": "snapshot",
        "managedVolumeUUID": volume["uuid"],
        "name": "one",
        "removed": None,
        "sizeBytes": volume["sizeBytes"],
        "state": "created",
        "transitioning": "no",
        "type": "snapshot",
        "volumeId": volume["id"],
    }
    assert {key: made[key] for key in expected} == expected
    assert set(made["actions"]) == {"backup", "remove"}
    assert listed(daemon, f"/v1/volumes/{volume['id']}/snapshots") == ["one", "two"]
    assert again(daemon, volume)["snapshotCount"] == 2


@pytest.mark.parametrize("given", [{}, {"name": ""}, {"name": "  "}])
def test_a_blank_name_is_none(daemon: Running, name: str, given: dict[str, str]) -> None:
    assert act(daemon, create(daemon, name), "snapshot", **given)["name"] is None


def test_a_snapshot_may_expire(daemon: Running, name: str) -> None:
    time = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    made = act(daemon, create(daemon, name), "snapshot", expires=time.isoformat())
    assert datetime.fromisoformat(made["expires"]) == time
    assert made["expiresTS"] == time.timestamp() * 1000


def test_a_snapshot_is_renamed_and_unnamed_by_put(daemon: Running, name: str) -> None:
    volume = create(daemon, name)
    made = act(daemon, volume, "snapshot", name="old")
    act(daemon, volume, "snapshot", name="taken")
    path = f"/v1/snapshots/{made['id']}"
    assert daemon.api("PUT", path, {"name": "new", "description": "d"}).body["name"] == "new"
    assert daemon.api("PUT", path, {"name": "taken"}).body["code"] == "NotUnique"
    assert daemon.api("PUT", path, {}).body["name"] == "new"
    changed = daemon.api("PUT", path, {"name": None, "description": ""}).body
    assert (changed["name"], changed["description"]) == (None, None)


@pytest.mark.parametrize("method", ["DELETE", "remove"])
def test_a_removed_snapshot_leaves_the_list_and_is_found_by_id(daemon: Running, name: str, method: str) -> None:
    volume = create(daemon, name)
    made = act(daemon, volume, "snapshot", name="one")
    path = f"/v1/snapshots/{made['id']}"
    gone = daemon.api("DELETE", path) if method == "DELETE" else daemon.api("POST", f"{path}?action=remove")
    assert (gone.status, gone.body["state"]) == (200, "removed")
    assert gone.body["removed"] is not None
    assert listed(daemon, f"/v1/volumes/{volume['id']}/snapshots") == []
    assert again(daemon, made)["state"] == "removed"
    assert daemon.api("DELETE", path).status == 405
    assert daemon.api("PUT", path, {"name": "x"}).status == 405
    assert daemon.api("POST", f"{path}?action=remove").body["code"] == "ActionNotAvailable"


# Revert, clone, resize


@pytest.mark.parametrize("driver", DRIVERS)
def test_revert_brings_content_back_keeps_every_snapshot_and_can_be_undone(
    daemon: Running, name: str, driver: str
) -> None:
    volume = create(daemon, name, driver, **({"driverOpts": {"size": "32M"}} if driver == "loop" else {}))
    write(daemon, volume, "old")
    older = act(daemon, volume, "snapshot", name="older")
    write(daemon, volume, "new")
    act(daemon, volume, "snapshot", name="newer")
    reverted = act(daemon, volume, "reverttosnapshot", snapshotId=older["id"])
    assert (reverted["id"], reverted["state"]) == (volume["id"], "inactive")
    assert read(daemon, volume) == "old"
    kept = daemon.api("GET", f"/v1/snapshots/{reverted['displacedSnapshotId']}").body
    assert (kept["automatic"], kept["state"], kept["name"][:14]) == (True, "created", "before-revert-")
    assert kept["expires"] is not None
    assert listed(daemon, f"/v1/volumes/{volume['id']}/snapshots") == ["older", "newer", kept["name"]]
    act(daemon, volume, "reverttosnapshot", snapshotId=kept["id"].removeprefix("1s"))
    assert read(daemon, volume) == "new"
    assert again(daemon, volume)["displacedSnapshotId"] is None


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_clone_has_the_content_of_then_or_now_and_is_independent(daemon: Running, name: str, driver: str) -> None:
    volume = create(daemon, name, driver, **({"driverOpts": {"size": "32M"}} if driver == "loop" else {}))
    write(daemon, volume, "then")
    snapshot = act(daemon, volume, "snapshot", name="s")
    write(daemon, volume, "now")
    before = act(daemon, volume, "clone", name=f"{name}-then", snapshotId=snapshot["id"], description="d")
    after = act(daemon, volume, "clone", name=f"{name}-now")
    assert (before["driver"], before["description"], before["sizeBytes"]) == (driver, "d", volume["sizeBytes"])
    assert before["driverOpts"] == {"from": f"{name}@s"}
    assert (read(daemon, before), read(daemon, after)) == ("then", "now")
    write(daemon, before, "other")
    assert read(daemon, volume) == "now"


def test_a_nameless_snapshot_is_cloned_by_its_id(daemon: Running, name: str) -> None:
    volume = create(daemon, name)
    write(daemon, volume, "then")
    snapshot = act(daemon, volume, "snapshot")
    write(daemon, volume, "now")
    assert read(daemon, act(daemon, volume, "clone", name=f"{name}-1", snapshotId=snapshot["id"])) == "then"
    other = create(daemon, f"{name}-2", driverOpts={"from": f"{name}@{snapshot['id']}"})
    assert read(daemon, other) == "then"


def test_a_snapshot_that_is_named_like_the_id_of_a_nameless_one_is_never_cloned_for_it(
    daemon: Running, name: str
) -> None:
    volume = create(daemon, name)
    nameless = act(daemon, volume, "snapshot")
    act(daemon, volume, "snapshot", name=nameless["id"])
    path = f"/v1/volumes/{volume['id']}/?action=clone"
    answer = daemon.api("POST", path, {"name": f"{name}-1", "snapshotId": nameless["id"]})
    assert (answer.status, answer.body["code"]) == (422, "InvalidReference")


@pytest.mark.parametrize("driver", ["btrfs", "loop"])
def test_resize_changes_the_size(daemon: Running, name: str, driver: str) -> None:
    volume = create(daemon, name, driver, driverOpts={"size": "32M"})
    assert act(daemon, volume, "resize", size="48M")["sizeBytes"] == 48 << 20
    assert again(daemon, volume)["state"] == "inactive"
    clone = act(daemon, volume, "clone", name=f"{name}-c", size="64M")
    assert clone["sizeBytes"] == 64 << 20


def test_resize_of_what_has_no_sizes_says_who_has(daemon: Running, name: str) -> None:
    volume = create(daemon, name, "directory")
    answer = daemon.api("POST", f"/v1/volumes/{volume['id']}/?action=resize", {"size": "1G"})
    assert (answer.status, answer.body["code"]) == (422, "Unsupported")
    assert "loop" in answer.body["message"]


def test_what_is_used_is_shown_as_it_is_now(daemon: Running, name: str) -> None:
    volume = create(daemon, name)
    before = volume["usedBytes"]
    with active(daemon, volume) as place:
        with (place / "file").open("wb") as file:
            file.write(os.urandom(4 << 20))
            file.flush()
            os.fsync(file.fileno())
        daemon.api("POST", f"/v1/volumes/{volume['id']}/?action=snapshot")  # commits, which is when btrfs counts
    shown = daemon.api("GET", f"/v1/volumes?name={name}").body["data"][0]["usedBytes"]
    deadline = datetime.now(UTC) + timedelta(seconds=10)
    while shown - before < 4 << 20 and datetime.now(UTC) < deadline:  # an answer may be a second old
        shown = again(daemon, volume)["usedBytes"]
    assert shown - before >= 4 << 20


# The trash


@pytest.mark.parametrize("method", ["DELETE", "remove"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_removed_volume_is_in_the_trash_with_its_snapshots_and_comes_back(
    daemon: Running, name: str, driver: str, method: str
) -> None:
    volume = create(daemon, name, driver, **({"driverOpts": {"size": "32M"}} if driver == "loop" else {}))
    write(daemon, volume, "kept")
    snapshot = act(daemon, volume, "snapshot", name="one")
    path = f"/v1/volumes/{volume['id']}"
    gone = (daemon.api("DELETE", path) if method == "DELETE" else daemon.api("POST", f"{path}?action=remove")).body
    assert (gone["state"], set(gone["actions"])) == ("removed", {"restore", "purge"})
    assert gone["removeTimeTS"] - gone["removedTS"] == RETENTION_S * 1000
    assert listed(daemon, f"/v1/volumes?name={name}") == []
    assert listed(daemon, f"/v1/volumes?name={name}&removed_notnull=1") == [name]
    assert listed(daemon, f"/v1/snapshots?volumeId={volume['id']}") == []
    assert listed(daemon, f"/v1/snapshots?volumeId={volume['id']}&removed_notnull=1") == ["one"]
    in_trash = again(daemon, snapshot)
    assert (in_trash["state"], in_trash["removed"], in_trash["removeTime"]) == (
        *("removed", gone["removed"], gone["removeTime"]),
    )
    assert in_trash["actions"] == {}
    assert "in the trash" in daemon.api("DELETE", f"/v1/snapshots/{snapshot['id']}").body["message"]

    back = act(daemon, gone, "restore")
    assert (back["state"], back["removed"], back["removeTime"]) == ("inactive", None, None)
    assert again(daemon, snapshot)["state"] == "created"
    assert read(daemon, volume) == "kept"


def test_a_volume_comes_back_under_another_name_when_its_own_is_taken(daemon: Running, name: str) -> None:
    old = create(daemon, name)
    daemon.api("DELETE", f"/v1/volumes/{old['id']}")
    new = create(daemon, name)
    answer = daemon.api("POST", f"/v1/volumes/{old['id']}/?action=restore")
    assert (answer.status, answer.body["code"]) == (409, "Conflict")
    assert new["id"] in answer.body["message"]
    answer = daemon.api("POST", f"/v1/volumes/{old['id']}/?action=restore", {"name": "not a name"})
    assert (answer.status, answer.body["code"]) == (422, "InvalidCharacters")
    assert act(daemon, old, "restore", name=f"{name}-2")["uri"] == f"local:///{name}-2"


def test_a_purged_volume_leaves_a_tombstone_that_offers_nothing(daemon: Running, name: str) -> None:
    volume = create(daemon, name)
    snapshot = act(daemon, volume, "snapshot", name="one")
    removed = daemon.api("DELETE", f"/v1/volumes/{volume['id']}")
    assert daemon.api("DELETE", f"/v1/volumes/{volume['id']}").status == 405
    purged = act(daemon, removed.body, "purge")
    assert (purged["state"], purged["actions"], purged["removed"] is None) == ("purged", {}, False)
    assert again(daemon, volume)["state"] == "purged"
    assert again(daemon, snapshot)["state"] == "removed"
    assert again(daemon, snapshot)["managedVolumeUUID"] == volume["uuid"]
    assert daemon.api("GET", f"/v1/snapshots/{snapshot['id']}/volume").body["state"] == "purged"
    assert daemon.api("DELETE", f"/v1/volumes/{volume['id']}").status == 405
    assert daemon.api("POST", f"/v1/volumes/{volume['id']}/?action=restore").body["code"] == "ActionNotAvailable"
    assert listed(daemon, f"/v1/volumes?name={name}&removed_notnull=1") == []


def test_an_anonymous_volume_is_destroyed_at_once(daemon: Running) -> None:
    volume = create(daemon, "ab" * 32)
    assert daemon.api("DELETE", f"/v1/volumes/{volume['id']}").body["state"] == "purged"


# The host and its pools


def test_pools_tell_their_space_and_health(daemon: Running) -> None:
    pools = {pool["name"]: pool for pool in daemon.api("GET", "/v1/storagepools").body["data"]}
    assert {name: pool["driverName"] for name, pool in pools.items()} == {
        "fast": "btrfs",
        "images": "loop",
        "plain": "directory",
    }
    for pool in pools.values():
        assert (pool["state"], pool["health"], pool["orphans"]) == ("active", "available", [])
        assert 0 < pool["freeBytes"] <= pool["capacityBytes"]
        assert daemon.api("GET", f"/v1/storagepools/{pool['id']}").body["name"] == pool["name"]


def test_the_host_counts_what_it_has(daemon: Running, name: str) -> None:
    before = daemon.api("GET", "/v1/hosts/1h1").body
    volume = create(daemon, name)
    act(daemon, volume, "snapshot")
    daemon.api("DELETE", f"/v1/volumes/{create(daemon, f'{name}-2')['id']}")
    with active(daemon, volume):
        after = daemon.api("GET", "/v1/hosts").body["data"][0]
    grown = {key: after[key] - before[key] for key in ("volumeCount", "snapshotCount", "mountedCount", "trashCount")}
    assert grown == {"volumeCount": 1, "snapshotCount": 1, "mountedCount": 1, "trashCount": 1}
    assert after["root"] == str(daemon.root)
    assert after["defaultDriver"] == "btrfs"


def test_verbs_of_many_clients_on_one_volume_end_well(daemon: Running, name: str) -> None:
    volume = create(daemon, name)
    start = threading.Barrier(6)

    def work(number: int) -> list[int]:
        start.wait()
        path = f"/v1/volumes/{volume['id']}"
        made = daemon.api("POST", f"{path}/?action=snapshot", {"name": f"s{number}"})
        reverted = daemon.api("POST", f"{path}/?action=reverttosnapshot", {"snapshotId": made.body.get("id")})
        return [made.status, reverted.status, daemon.api("GET", path).status]

    with ThreadPoolExecutor(6) as pool:
        statuses = {status for found in pool.map(work, range(6)) for status in found}
    assert statuses <= {200, 202, 409, 422}
    assert again(daemon, volume)["transitioning"] == "no"
